"""Annotating: what is scored, kept when killed, paired and counted, and the chain of manifests behind it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.annotation.annotate import annotate
from src.annotation.base import Batch, Candidates, Scorer
from src.annotation.given import Oracle, Recorded
from src.annotation.inputs import Corpus, read_corpus
from src.data.cache import json_hash
from src.data.pairs import PreferencePair
from src.data.sources import LocalPairs, ScoredResponsesFile
from src.data.toy.scorer import score_response
from src.data.toy.source import ToySource
from src.errors import UserError
from src.generation.shards import read_records
from tests.unit.annotation_tools import Lengths, candidates, options, shard_of, write_generations
from tests.unit.data_tools import write_lines


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return read_corpus([str(write_generations(tmp_path / "generations", shard_of(9), model="tiny"))])


def pairs_of(directory: Path) -> list[PreferencePair]:
    return list(LocalPairs(str(directory / "pairs.jsonl")).pairs())


def contents(directory: Path) -> dict[str, bytes]:
    """Every file that must not depend on how often a run was interrupted."""
    wanted = [*directory.glob("shards/*"), *directory.glob("*.jsonl"), *directory.glob("*.manifest.json")]
    return {path.name: path.read_bytes() for path in wanted if path.name != "seconds.jsonl"}


# --- what comes of it -------------------------------------------------------------------------------------------------


def test_every_response_is_scored_once_and_the_best_stands_against_the_worst(corpus: Corpus, tmp_path: Path) -> None:
    seen: list[Batch] = []
    manifest = annotate(corpus, Lengths(seen=seen.append), tmp_path / "out", options(tmp_path))
    assert sum(map(len, seen)) == 27
    records = list(read_records(tmp_path / "out"))
    assert [record["prompt_id"] for record in records] == [f"q{number}" for number in range(9)]
    assert all(entry["score"] == len(entry["text"]) for record in records for entry in record["responses"])
    first = records[0]["responses"][1]
    assert (first["writer"], first["sample"], first["seed"], first["temperature"]) == ("w1", 1, 7, 0.8)
    made = pairs_of(tmp_path / "out")
    for item, pair in zip(corpus.candidates, made, strict=True):
        ordered = sorted(item.responses, key=lambda response: len(response.text))
        assert (pair.chosen, pair.rejected) == (ordered[-1].text, ordered[0].text)
        assert (pair.chosen_score, pair.rejected_score) == (len(pair.chosen), len(pair.rejected))
        assert (pair.chosen_writer, pair.rejected_writer) == (ordered[-1].writer, ordered[0].writer)
        assert pair.prompt == item.prompt
    assert manifest["counts"] == {"prompts": 9, "responses": 27, "unscored": {}, "pairs": 9, "skipped": {}}
    assert [link["stage"] for link in manifest["chain"]] == ["generate", "annotate", "pairs"]


def test_both_files_give_the_same_pairs(corpus: Corpus, tmp_path: Path) -> None:
    annotate(corpus, Lengths(), tmp_path / "out", options(tmp_path))
    assert list(ScoredResponsesFile(str(tmp_path / "out" / "responses.jsonl")).pairs()) == pairs_of(tmp_path / "out")
    every = ScoredResponsesFile(str(tmp_path / "out" / "responses.jsonl"), pairing="all_pairs")
    assert len(list(every.pairs())) > len(pairs_of(tmp_path / "out"))


def test_ties_identical_and_single_responses_make_no_pair_and_are_counted(tmp_path: Path) -> None:
    shard = [
        candidates("one", "two", number=0),  # same length
        candidates("alone", number=1),
        candidates("long enough", "no", number=2),
        candidates("twice", "twice", number=3),
        candidates("abc", "abcd", number=4),  # closer than min_gap
    ]
    corpus = read_corpus([str(write_generations(tmp_path / "generations", shard))])
    manifest = annotate(corpus, Lengths(), tmp_path / "out", options(tmp_path, min_gap=2.0))
    assert [pair.id for pair in pairs_of(tmp_path / "out")] == ["q2/0-1"]
    assert manifest["counts"]["skipped"] == {
        "fewer than two responses": 1,
        "score gap below min_gap": 1,
        "tied scores": 2,
    }
    assert manifest["identity"]["min_gap"] == 2.0


def test_identical_texts_of_different_score_make_no_pair(tmp_path: Path) -> None:
    """A judge may grade the same text twice otherwise."""
    texts = iter([1.0, 2.0, 3.0, 4.0])
    shard = [candidates("same", "same", number=0), candidates("one", "other", number=1)]
    corpus = read_corpus([str(write_generations(tmp_path / "generations", shard))])
    manifest = annotate(corpus, Lengths(value=lambda text: next(texts)), tmp_path / "out", options(tmp_path))
    assert manifest["counts"]["skipped"] == {"identical responses": 1}
    assert [pair.chosen for pair in pairs_of(tmp_path / "out")] == ["other"]


def test_responses_without_a_score_are_left_out_and_counted_up_to_a_share(corpus: Corpus, tmp_path: Path) -> None:
    lacking = corpus.candidates[3].responses[2].text
    scorer = Lengths(value=lambda text: None if text == lacking else float(len(text)))
    with pytest.raises(
        UserError, match=r"1 of 27 responses have no score \(1 × no length\), more than max_unscored=0.03"
    ):
        annotate(corpus, scorer, tmp_path / "out", options(tmp_path, max_unscored=0.03))
    manifest = annotate(corpus, scorer, tmp_path / "out", options(tmp_path, max_unscored=0.04))
    assert manifest["counts"]["unscored"] == {"no length": 1}
    responses = list(ScoredResponsesFile(str(tmp_path / "out" / "responses.jsonl")).scored_responses())
    assert [len(item.responses) for item in responses] == [3, 3, 3, 2, 3, 3, 3, 3, 3]
    assert lacking not in {pair.chosen for pair in pairs_of(tmp_path / "out")}


def test_empty_responses_are_shown_to_no_scorer_and_count_for_no_limit(tmp_path: Path) -> None:
    shard = [candidates("", "long enough", "no", number=0), candidates(" \n", "one", number=1)]
    corpus = read_corpus([str(write_generations(tmp_path / "generations", shard))])
    seen: list[Batch] = []
    manifest = annotate(corpus, Lengths(seen=seen.append), tmp_path / "out", options(tmp_path, max_unscored=0.0))
    assert seen == [((0, 1), (0, 2)), ((1, 1),)]
    assert manifest["counts"]["unscored"] == {"empty response": 2}
    assert manifest["counts"]["skipped"] == {"fewer than two responses": 1}
    assert [(pair.chosen, pair.rejected) for pair in pairs_of(tmp_path / "out")] == [("long enough", "no")]


def test_no_pair_at_all_is_an_error_that_leaves_no_file_of_pairs(corpus: Corpus, tmp_path: Path) -> None:
    annotate(corpus, Lengths(), tmp_path / "out", options(tmp_path))
    with pytest.raises(UserError, match=r"no pair can be made of .*: 9 × score gap below min_gap; generate more"):
        annotate(corpus, Lengths(), tmp_path / "out", options(tmp_path, min_gap=1e6))
    assert not list((tmp_path / "out").glob("pairs.jsonl*"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_orders_nothing_is_refused(corpus: Corpus, tmp_path: Path, value: float) -> None:
    with pytest.raises(UserError, match=rf"gives {value} for response 0 to prompt 'q0'"):
        annotate(corpus, Lengths(value=lambda text: value), tmp_path / "out", options(tmp_path))


def test_min_gap_is_changed_without_scoring_again(corpus: Corpus, tmp_path: Path) -> None:
    annotate(corpus, Lengths(), tmp_path / "out", options(tmp_path))
    before = len(pairs_of(tmp_path / "out"))
    annotate(corpus, Lengths(seen=pytest.fail), tmp_path / "out", options(tmp_path, min_gap=35.0))
    assert 0 < len(pairs_of(tmp_path / "out")) < before


# --- interruptions ----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", range(7))
def test_killed_at_any_batch_nothing_finished_is_lost_or_repeated(corpus: Corpus, tmp_path: Path, after: int) -> None:
    whole = tmp_path / "whole"
    annotate(corpus, Lengths(), whole, options(tmp_path))
    seen: list[Batch] = []

    def stop(batch: Batch) -> None:
        if len(seen) == after:
            raise Killed
        seen.append(batch)

    with pytest.raises(Killed):
        annotate(corpus, Lengths(seen=stop), tmp_path / "out", options(tmp_path))
    later: list[Batch] = []
    annotate(corpus, Lengths(seen=later.append), tmp_path / "out", options(tmp_path))
    assert len(seen) == after
    assert sum(map(len, seen + later)) == 27
    assert contents(tmp_path / "out") == contents(whole)
    annotate(corpus, Lengths(seen=pytest.fail), tmp_path / "out", options(tmp_path))


def test_a_line_that_was_half_written_is_scored_again(corpus: Corpus, tmp_path: Path) -> None:
    calls: list[Batch] = []

    def stop(batch: Batch) -> None:
        calls.append(batch)
        if len(calls) == 3:
            raise Killed

    with pytest.raises(Killed):
        annotate(corpus, Lengths(seen=stop), tmp_path / "out", options(tmp_path))
    journal = tmp_path / "out" / "partial" / "000000.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])
    later: list[Batch] = []
    annotate(corpus, Lengths(seen=later.append), tmp_path / "out", options(tmp_path))
    assert later[0] == calls[1]
    assert sum(map(len, later)) == 27 - 4


def test_a_directory_of_another_scorer_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    annotate(corpus, Lengths(), tmp_path / "out", options(tmp_path))
    with pytest.raises(UserError, match=r"holds records of other settings \(different: scorer\)"):
        annotate(corpus, Recorded(), tmp_path / "out", options(tmp_path))


# --- what is read -----------------------------------------------------------------------------------------------------


def test_responses_of_several_directories_stand_together(tmp_path: Path) -> None:
    one = write_generations(tmp_path / "one", [candidates("a", number=0), candidates("b", number=1)], model="one")
    two = write_generations(tmp_path / "two", [candidates("c", "d", number=1), candidates("e", number=2)], model="two")
    corpus = read_corpus([str(one), str(two)])
    found = [(item.id, [response.text for response in item.responses]) for item in corpus.candidates]
    assert found == [("q0", ["a"]), ("q1", ["b", "c", "d"]), ("q2", ["e"])]
    assert [link["stage"] for link in corpus.chain] == ["generate", "generate"]


def test_one_response_per_prompt_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    single = write_generations(tmp_path / "one", [candidates("a", number=number) for number in range(3)])
    with pytest.raises(UserError, match=r"none of 3 prompts has two responses.*generations=\[A,B\]"):
        read_corpus([str(single)])


def test_one_id_with_two_prompts_is_refused(tmp_path: Path) -> None:
    other = Candidates("q0", candidates(number=1).prompt, candidates("x", "y").responses)
    paths = [
        write_generations(tmp_path / name, [item]) for name, item in (("one", candidates("a", "b")), ("two", other))
    ]
    with pytest.raises(UserError, match="prompt id 'q0' names two different prompts"):
        read_corpus([str(path) for path in paths])


def test_a_file_of_responses_is_annotated_too(tmp_path: Path) -> None:
    records = [{"prompt_id": 3, "prompt": "Say it", "responses": [{"model": "m", "text": "a"}, {"text": "bcd"}]}]
    corpus = read_corpus([write_lines(tmp_path / "responses.jsonl.gz", records)])
    manifest = annotate(corpus, Lengths(), tmp_path / "out", options(tmp_path))
    (pair,) = pairs_of(tmp_path / "out")
    assert (pair.id, pair.chosen, pair.rejected, pair.rejected_writer) == ("3/1-0", "bcd", "a", "m")
    assert [link["stage"] for link in manifest["chain"]] == ["file", "annotate", "pairs"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt_id": 1, "prompt": "x", "responses": [{"text": 5}]}, ":1: response 0: field 'text' must be a string"),
        ({"prompt_id": 1, "prompt": "x", "responses": ["a"]}, ":1: response 0: must be an object with text"),
        ({"prompt_id": 1, "prompt": "x", "responses": "a"}, ":1: field 'responses' must be a list"),
        ({"prompt": "x", "responses": []}, ":1: field 'prompt_id' is missing"),
    ],
)
def test_bad_records_are_errors_with_their_line(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_corpus([write_lines(tmp_path / "responses.jsonl", [record])])


def test_a_repeated_prompt_and_a_missing_score_are_refused(tmp_path: Path) -> None:
    record = {"prompt_id": 1, "prompt": "x", "responses": [{"text": "a", "score": 1}, {"text": "b"}]}
    with pytest.raises(UserError, match=r":2: the prompt id '1' occurs twice"):
        read_corpus([write_lines(tmp_path / "twice.jsonl", [record, record])])
    corpus = read_corpus([write_lines(tmp_path / "once.jsonl", [record])])
    with pytest.raises(UserError, match="prompt '1', response 1: no score is recorded"):
        annotate(corpus, Recorded(), tmp_path / "out", options(tmp_path))


def test_recorded_scores_give_the_pairs_of_the_file_itself(tmp_path: Path) -> None:
    records = [
        {"prompt_id": n, "prompt": f"{n}?", "responses": [{"text": f"{n}{s}", "score": s * n % 5} for s in range(4)]}
        for n in range(6)
    ]
    path = write_lines(tmp_path / "scored.jsonl", records)
    annotate(read_corpus([path]), Recorded(), tmp_path / "out", options(tmp_path))
    assert pairs_of(tmp_path / "out") == list(ScoredResponsesFile(path).pairs())


def test_the_oracle_gives_the_toy_worlds_own_scores_and_knows_no_other_world(tmp_path: Path, corpus: Corpus) -> None:
    items = list(ToySource(seed=3, prompts=6, demonstration_prompts=10).scored_responses())
    records = [
        {
            "prompt_id": item.id,
            "prompt": [{"role": message.role, "content": message.content} for message in item.prompt],
            "responses": [{"writer": response.writer, "text": response.text} for response in item.responses],
        }
        for item in items
    ]
    annotate(read_corpus([write_lines(tmp_path / "toy.jsonl", records)]), Oracle(), tmp_path / "out", options(tmp_path))
    for item, record in zip(items, read_records(tmp_path / "out"), strict=True):
        wanted = [score_response(item.prompt, response.text).overall for response in item.responses]
        assert [entry["score"] for entry in record["responses"]] == wanted
    with pytest.raises(UserError, match=r"prompt 'q0': not a prompt of the toy world.*scorer=reward_model"):
        annotate(corpus, Oracle(), tmp_path / "other", options(tmp_path))


def test_scorers_are_known_by_what_they_can_do() -> None:
    assert isinstance(Oracle(), Scorer)
    assert isinstance(Lengths(), Scorer)
    assert not isinstance(ToySource(), Scorer)


# --- the chain --------------------------------------------------------------------------------------------------------


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def add_line(path: Path) -> None:
    line = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(path.read_bytes() + line)


@pytest.fixture
def made(corpus: Corpus, tmp_path: Path) -> Path:
    annotate(corpus, Lengths(), tmp_path / "out", options(tmp_path))
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["pairs.jsonl", "responses.jsonl"])
def test_training_data_is_compared_with_its_manifest(made: Path, name: str) -> None:
    source = LocalPairs(str(made / name)) if name == "pairs.jsonl" else ScoredResponsesFile(str(made / name))
    assert len(source.fingerprint()) == 64
    add_line(made / name)
    with pytest.raises(UserError, match=rf"{name} is not the file that {name}.manifest.json describes"):
        source.fingerprint()


def test_a_manifest_that_was_changed_is_refused(made: Path) -> None:
    source = LocalPairs(str(made / "pairs.jsonl"))
    change(made / "pairs.jsonl.manifest.json", lambda manifest: manifest["counts"].update(pairs=1))
    with pytest.raises(UserError, match=r"pairs.jsonl.manifest.json was changed after it was written"):
        source.fingerprint()


def test_a_manifest_whose_last_link_is_not_its_own_is_refused(made: Path) -> None:
    def reseal(manifest: dict[str, Any]) -> None:
        manifest["identity"]["min_gap"] = 3.0
        manifest["hash"] = json_hash({name: value for name, value in manifest.items() if name != "hash"})

    change(made / "pairs.jsonl.manifest.json", reseal)
    with pytest.raises(UserError, match=r"pairs\.jsonl\.manifest\.json was changed after it was written"):
        LocalPairs(str(made / "pairs.jsonl")).fingerprint()


def test_pairs_of_another_annotation_are_refused(made: Path, corpus: Corpus, tmp_path: Path) -> None:
    other = Lengths(value=lambda text: -float(len(text)))
    annotate(corpus, other, tmp_path / "other", options(tmp_path))
    for name in ("pairs.jsonl", "pairs.jsonl.manifest.json"):
        shutil.copy(tmp_path / "other" / name, made / name)
    with pytest.raises(UserError, match=r"was made from another .*manifest.json.*the chain is broken"):
        LocalPairs(str(made / "pairs.jsonl")).fingerprint()


def test_generations_that_were_made_again_break_the_chain(made: Path, tmp_path: Path) -> None:
    source = LocalPairs(str(made / "pairs.jsonl"))
    shutil.rmtree(tmp_path / "generations")
    assert source.fingerprint()  # gone is not changed
    write_generations(tmp_path / "generations", shard_of(9), model="another")
    with pytest.raises(UserError, match=r"was made from another .*generations.*the chain is broken"):
        source.fingerprint()


def test_a_changed_shard_of_generations_is_not_annotated(corpus: Corpus, tmp_path: Path) -> None:
    add_line(tmp_path / "generations" / "shards" / "000001.jsonl")
    with pytest.raises(UserError, match=r"the shards are not those that manifest\.json describes"):
        read_corpus([str(tmp_path / "generations")])


def test_unfinished_or_forged_generations_are_not_annotated(corpus: Corpus, tmp_path: Path) -> None:
    manifest = tmp_path / "generations" / "manifest.json"
    change(manifest, lambda content: content["identity"].update(model="better"))
    with pytest.raises(UserError, match="was changed after it was written"):
        read_corpus([str(tmp_path / "generations")])
    manifest.unlink()
    with pytest.raises(UserError, match="is not finished"):
        read_corpus([str(tmp_path / "generations")])


def test_a_file_that_was_annotated_and_then_changed_breaks_the_chain(tmp_path: Path) -> None:
    records = [{"prompt_id": 3, "prompt": "Say it", "responses": [{"text": "a"}, {"text": "bcd"}]}]
    path = write_lines(tmp_path / "responses.jsonl", records)
    annotate(read_corpus([path]), Lengths(), tmp_path / "out", options(tmp_path))
    assert LocalPairs(str(tmp_path / "out" / "pairs.jsonl")).fingerprint()
    write_lines(tmp_path / "responses.jsonl", [*records, records[0] | {"prompt_id": 4}])
    with pytest.raises(UserError, match=r"was made from another .*responses\.jsonl than is there now"):
        LocalPairs(str(tmp_path / "out" / "pairs.jsonl")).fingerprint()


def test_a_file_of_ones_own_needs_no_manifest(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "own.jsonl", [{"id": 1, "prompt": "x", "chosen": "a", "rejected": "b"}])
    assert LocalPairs(path).fingerprint()
