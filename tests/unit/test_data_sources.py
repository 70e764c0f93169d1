"""Sources: what is read, what is skipped and counted, ids and fingerprints."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from src.data import hub
from src.data.pairs import Message, PreferencePair, prompt_hash
from src.data.sources import (
    HHRLHF,
    LocalPairs,
    ScoredResponsesFile,
    ScoredSource,
    Skipped,
    Source,
    UltraFeedbackBinarized,
    chosen_demonstrations,
)
from src.data.sources.tables import table_hash
from src.data.toy.source import ToySource
from src.errors import UserError
from tests.unit.data_tools import Records, pair, write_lines

PROMPT = "\n\nHuman: hello\n\nAssistant: yes?\n\nHuman: two\n\nlines\n\nAssistant:"


def reasons(source: Any) -> Counter[str]:
    return Counter(record.reason for record in source.records() if isinstance(record, Skipped))


# --- HH-RLHF ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".txt.gz"])
def test_hh_cuts_at_the_last_assistant(tmp_path: Path, suffix: str) -> None:
    path = write_lines(tmp_path / f"hh{suffix}", [{"chosen": PROMPT + " fine\n\nthanks", "rejected": PROMPT + "  no "}])
    (only,) = HHRLHF(path=path).pairs()
    assert only == PreferencePair(
        "hh-000001",
        (Message("user", "hello"), Message("assistant", "yes?"), Message("user", "two\n\nlines")),
        "fine\n\nthanks",
        " no ",
    )


def test_hh_skips_and_counts_what_is_no_pair(tmp_path: Path) -> None:
    other = "\n\nHuman: other\n\nAssistant:"
    twice = "\n\nHuman: a\n\nAssistant: b\n\nAssistant:"
    records = [
        {"chosen": PROMPT + " a", "rejected": other + " b"},
        {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"},
        {"chosen": twice + " a", "rejected": twice + " b"},
        {"chosen": other + " a\n\nHuman: more", "rejected": other + " b"},
        {"chosen": "Preface" + other + " a", "rejected": "Preface" + other + " b"},
        {"chosen": PROMPT + " a", "rejected": PROMPT + " b"},
    ]
    source = HHRLHF(path=write_lines(tmp_path / "hh.jsonl", records))
    assert reasons(source) == {
        "chosen and rejected have different prompts": 1,
        "no assistant turn": 1,
        "prompt does not end with a human turn": 2,
        "does not end with an assistant turn": 1,
    }
    assert [found.id for found in source.pairs()] == ["hh-000006"]


def test_hh_directory_is_read_by_subset_and_split(tmp_path: Path) -> None:
    for subset, split in itertools.product(("harmless-base", "helpful-base"), ("train", "test")):
        (tmp_path / subset).mkdir(exist_ok=True)
        text = f"\n\nHuman: {subset} {split}\n\nAssistant:"
        write_lines(tmp_path / subset / f"{split}.jsonl.gz", [{"chosen": text + " a", "rejected": text + " b"}])

    def prompts(**options: Any) -> list[str]:
        return [found.prompt[0].content for found in HHRLHF(path=str(tmp_path), **options).pairs()]

    assert prompts() == ["harmless-base train", "helpful-base train"]
    assert prompts(split="test", subset="helpful-base") == ["helpful-base test"]
    assert [found.id for found in HHRLHF(path=str(tmp_path)).pairs()] == ["hh-000001", "hh-000002"]
    with pytest.raises(UserError, match="without a file that matches helpful-online/train"):
        prompts(subset="helpful-online")


def test_every_subset_of_hh_and_what_is_none(tmp_path: Path) -> None:
    subsets = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
    for subset in subsets:
        (tmp_path / subset).mkdir()
        text = f"\n\nHuman: {subset}\n\nAssistant:"
        write_lines(tmp_path / subset / "train.jsonl.gz", [{"chosen": text + " a", "rejected": text + " b"}])
    (tmp_path / "red-team-attempts").mkdir()
    write_lines(tmp_path / "red-team-attempts" / "red_team_attempts.jsonl.gz", [{"transcript": "x"}])
    for subset in subsets:
        (only,) = HHRLHF(path=str(tmp_path), subset=subset).pairs()
        assert only.prompt[0].content == subset
    assert len(list(HHRLHF(path=str(tmp_path)).pairs())) == 4
    with pytest.raises(UserError, match="subset=red-team-attempts has no pairs; use one of harmless-base, "):
        HHRLHF(subset="red-team-attempts")
    with pytest.raises(UserError, match="subset=helpful is unknown; use one of harmless-base, "):
        HHRLHF(subset="helpful")


@pytest.mark.parametrize(
    ("option", "source"), [("subset", HHRLHF), ("split", HHRLHF), ("split", UltraFeedbackBinarized)]
)
def test_options_without_meaning_for_a_single_file_are_refused(tmp_path: Path, option: str, source: Any) -> None:
    path = write_lines(tmp_path / "hh.jsonl", [{"chosen": PROMPT + " a", "rejected": PROMPT + " b"}])
    with pytest.raises(UserError, match=f"dataset.source.{option}=helpful-base has no meaning"):
        list(source(path=path, **{option: "helpful-base"}).pairs())


# --- scored responses -------------------------------------------------------------------------------------------------

SCORES = (0.5, 0.9, 0.1, 0.5)


@pytest.fixture
def scored(tmp_path: Path) -> str:
    responses = [{"model": f"m{place}", "text": f"text {place}", "score": s} for place, s in enumerate(SCORES)]
    tied = [{"writer": name, "text": name, "score": 1} for name in "ab"]
    records = [
        {"prompt_id": 7, "prompt": "why", "responses": responses},
        {"prompt_id": "t", "prompt": [{"role": "user", "content": "tie"}], "responses": tied},
        {"prompt_id": "one", "prompt": "alone", "responses": tied[:1]},
    ]
    return write_lines(tmp_path / "scored.jsonl.gz", records)


def test_best_against_worst_keeps_scores_and_writers(scored: str) -> None:
    source = ScoredResponsesFile(scored)
    assert list(source.pairs()) == [
        PreferencePair("7/1-2", (Message("user", "why"),), "text 1", "text 2", 0.9, 0.1, "m1", "m2")
    ]
    assert reasons(source) == {"tied scores": 1, "fewer than two responses": 1}


def test_writer_is_read_like_model(scored: str) -> None:
    second = list(ScoredResponsesFile(scored).scored_responses())[1]
    assert [response.writer for response in second.responses] == ["a", "b"]


def test_all_pairs_above_a_gap(scored: str) -> None:
    every = list(ScoredResponsesFile(scored, pairing="all_pairs").pairs())
    assert {found.id for found in every} == {"7/1-0", "7/0-2", "7/1-2", "7/1-3", "7/3-2"}
    assert all((found.chosen_score or 0) > (found.rejected_score or 0) for found in every)
    far = ScoredResponsesFile(scored, pairing="all_pairs", min_gap=0.5)
    assert [found.id for found in far.pairs()] == ["7/1-2"]
    at_the_gap = ScoredResponsesFile(scored, pairing="all_pairs", min_gap=0.9 - 0.5)
    assert {found.id for found in at_the_gap.pairs()} == {"7/1-0", "7/0-2", "7/1-2", "7/1-3", "7/3-2"}
    assert reasons(far) == {"tied scores": 2, "score gap below min_gap": 4, "fewer than two responses": 1}


def test_random_pairs_are_drawn_by_seed_and_prompt_alone(tmp_path: Path, scored: str) -> None:
    def ids(path: str, seed: int) -> set[str]:
        source = ScoredResponsesFile(path, pairing="random", pairs_per_prompt=2, seed=seed)
        return {found.id for found in source.pairs()}

    assert len(ids(scored, 0)) == 2
    assert ids(scored, 0) == ids(scored, 0)
    assert len({frozenset(ids(scored, seed)) for seed in range(20)}) > 3
    import gzip

    lines = gzip.decompress(Path(scored).read_bytes()).decode().splitlines()
    turned = write_lines(tmp_path / "turned.jsonl", [json.loads(line) for line in reversed(lines)])
    assert ids(turned, 3) == ids(scored, 3)


def test_prompts_are_drawn_from_apart(tmp_path: Path) -> None:
    responses = [{"model": f"m{place}", "text": f"text {place}", "score": place} for place in range(6)]
    records = [{"prompt_id": number, "prompt": "why", "responses": responses} for number in range(20)]
    source = ScoredResponsesFile(write_lines(tmp_path / "s.jsonl", records), pairing="random", pairs_per_prompt=1)
    assert len({found.id.partition("/")[2] for found in source.pairs()}) > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairing": "best"}, "pairing=best is unknown; use one of best_worst, all_pairs, random"),
        ({"min_gap": -1}, "min_gap=-1 must be a number from 0 on"),
        ({"min_gap": float("nan")}, "min_gap=nan"),
        ({"pairing": "random"}, "needs dataset.source.pairs_per_prompt"),
        ({"pairing": "random", "pairs_per_prompt": 0}, "needs dataset.source.pairs_per_prompt"),
        ({"pairs_per_prompt": 3}, "pairs_per_prompt=3 has no meaning with pairing=best_worst"),
    ],
)
def test_pairing_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScoredResponsesFile("anything", **options)


# --- binarized UltraFeedback ------------------------------------------------------------------------------------------


def feedback(number: int) -> dict[str, Any]:
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": f"question {number}"}]
    return {
        "prompt": f"question {number}",
        "chosen": [*turns, {"role": "assistant", "content": "yes"}],
        "rejected": [*turns, {"role": "assistant", "content": "no"}],
        "score_chosen": 8.5,
        "score_rejected": 3.0,
    }


@pytest.mark.parametrize("name", ["part.parquet", "part.jsonl.gz"])
def test_ultrafeedback_from_a_local_copy(tmp_path: Path, name: str) -> None:
    rows = [feedback(0), feedback(1) | {"rejected": feedback(2)["rejected"]}]
    path = tmp_path / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_lines(path, rows)
    source = UltraFeedbackBinarized(path=str(path))
    prompt = (Message("system", "be kind"), Message("user", "question 0"))
    assert list(source.pairs()) == [PreferencePair("uf-000001", prompt, "yes", "no", 8.5, 3.0)]
    assert reasons(source) == {"chosen and rejected have different prompts": 1}


def test_ultrafeedback_directory_is_read_by_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number, split in enumerate(("train_prefs", "test_prefs")):
        pq.write_table(pa.Table.from_pylist([feedback(number)]), tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    for chosen, expected in ((None, "question 0"), ("test_prefs", "question 1")):
        (only,) = UltraFeedbackBinarized(path=str(tmp_path), split=chosen).pairs()
        assert only.prompt[-1].content == expected


def test_hub_rows_are_read_like_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's side by a stand-in for ``datasets.Dataset``: rows by iteration, a table behind ``data.table``."""
    asked: list[Any] = []

    class Stored(list[Any]):
        @property
        def data(self) -> Any:
            return type("Data", (), {"table": pa.Table.from_pylist(list(self))})

    def load(hub_id: str, **options: Any) -> Stored:
        asked.append((hub_id, options))
        return Stored([feedback(0)])

    monkeypatch.setattr("src.data.sources.file_or_hub.load_hub_dataset", load)
    local = UltraFeedbackBinarized(path=write_lines(tmp_path / "u.jsonl", [feedback(0)]))
    assert list(UltraFeedbackBinarized(split="test_prefs").pairs()) == list(local.pairs())
    assert asked == [("HuggingFaceH4/ultrafeedback_binarized", {"split": "test_prefs", "revision": None})]
    assert UltraFeedbackBinarized().fingerprint() == UltraFeedbackBinarized(revision="main").fingerprint()


def test_a_failing_hub_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_reachable", lambda: True)

    def fail(cached_only: bool) -> None:
        assert not cached_only
        raise ValueError("Unknown split 'x'\nmore")

    with pytest.raises(UserError, match=r"thing could not be loaded from the hub \(Unknown split 'x'\); .* or do that"):
        hub.from_hub(fail, "thing", "do that")


# --- all of them ------------------------------------------------------------------------------------------------------


def test_local_pairs_round_trip(tmp_path: Path) -> None:
    pairs = [pair(0), pair(1, flipped=True, chosen_score=None, rejected_writer=None)]
    path = write_lines(tmp_path / "pairs.jsonl", [found.to_json() for found in pairs])
    assert list(LocalPairs(path).pairs()) == pairs


def test_fingerprint_depends_on_content_and_options_alone(tmp_path: Path, scored: str) -> None:
    records = [pair(0).to_json(), pair(1).to_json()]
    here, there = write_lines(tmp_path / "a.jsonl", records), write_lines(tmp_path / "b.jsonl.gz", records)
    other = write_lines(tmp_path / "c.jsonl", records[:1])
    assert LocalPairs(here).fingerprint() == LocalPairs(there).fingerprint()
    assert LocalPairs(here).fingerprint() != LocalPairs(other).fingerprint()
    variants = [
        ScoredResponsesFile(scored),
        ScoredResponsesFile(scored, min_gap=0.5),
        ScoredResponsesFile(scored, pairing="all_pairs"),
        ScoredResponsesFile(scored, pairing="random", pairs_per_prompt=1),
        ScoredResponsesFile(scored, pairing="random", pairs_per_prompt=1, seed=1),
    ]
    assert len({variant.fingerprint() for variant in variants}) == len(variants)
    assert ScoredResponsesFile(scored).fingerprint() == ScoredResponsesFile(scored, seed=5).fingerprint()


def test_demonstrations_are_the_chosen_responses_each_once() -> None:
    pairs = [pair(0), pair(1), pair(2, prompt=pair(0).prompt, chosen=pair(0).chosen)]
    found = list(chosen_demonstrations(pairs))
    assert [item.id for item in found] == ["p0", "p1"]
    assert (found[0].prompt, found[0].response) == (pairs[0].prompt, pairs[0].chosen)
    assert list(Records(tuple(pairs)).demonstrations()) == found


def test_every_source_is_a_source(tmp_path: Path, scored: str) -> None:
    for source in (HHRLHF(), LocalPairs("x"), ScoredResponsesFile(scored), UltraFeedbackBinarized(), Records(())):
        assert isinstance(source, Source)


def test_the_toy_world_and_files_of_responses_share_the_protocol(tmp_path: Path) -> None:
    toy = ToySource(prompts=3, demonstration_prompts=0)
    assert isinstance(toy, ScoredSource)
    items = list(toy.scored_responses())
    assert len({prompt_hash(item.prompt) for item in items}) == 3
    record = {"prompt_id": "p", "prompt": "why", "responses": [{"text": "a", "score": 1}, {"text": "b", "score": 2}]}
    path = write_lines(tmp_path / "s.jsonl", [record, record])
    assert isinstance(ScoredResponsesFile(path), ScoredSource)
    with pytest.raises(UserError, match=r"s.jsonl:2: prompt_id 'p' was used in line 1; give each prompt its own"):
        list(ScoredResponsesFile(path).pairs())


def test_table_hash_ignores_chunks_and_metadata() -> None:
    rows = [{"text": f"row {number}", "tags": [number, None]} for number in range(2500)]
    whole = pa.Table.from_pylist(rows)
    pieces = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 1500), whole.slice(1507)])
    assert table_hash(pieces.replace_schema_metadata({"a": "b"})) == table_hash(whole)
    rows[2400]["tags"] = [1, 1]
    assert table_hash(pa.Table.from_pylist(rows)) != table_hash(whole)
