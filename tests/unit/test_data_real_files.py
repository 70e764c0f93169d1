"""The two real files beside the checkout, and the same behaviour on generated ones where they are absent."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from src.data.noise import RandomFlip
from src.data.prepare import PrepareOptions, prepare
from src.data.sources import HHRLHF, PairSource, ScoredResponsesFile, Skipped
from src.data.sources.files import read_json_lines
from src.data.sources.hh import cut
from src.data.templates import ChatTemplate, TextTemplate
from src.data.tokenizer import train_tokenizer, training_texts
from tests.unit.data_tools import WORDS, write_lines

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
HH = SHARED / "hh" / "harmless-base_test.jsonl.gz"
SCORED = SHARED / "pref" / "alpaca_pref_24x805.jsonl.gz"


def shared(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return path


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(3, 12))) + "."


@pytest.fixture
def transcripts(tmp_path: Path) -> Path:
    rng = random.Random(0)
    records = []
    for number in range(80):
        prompt = "".join(
            f"\n\nHuman: {sentence(rng)}\n\nAssistant:{' ' + sentence(rng) if turn else ''}"
            for turn in range(number % 3, -1, -1)
        )
        other = "" if number % 20 else " No.\n\nAssistant:"
        records.append({"chosen": f"{prompt} {sentence(rng)}", "rejected": f"{prompt}{other} {sentence(rng)}"})
    return Path(write_lines(tmp_path / "hh.jsonl.gz", records))


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    rng = random.Random(0)
    records = [
        {
            "prompt_id": number,
            "prompt": sentence(rng),
            "responses": [
                {"model": f"m{place}", "text": sentence(rng), "score": rng.randint(0, 10) / 10} for place in range(5)
            ],
        }
        for number in range(120)
    ]
    return Path(write_lines(tmp_path / "scored.jsonl.gz", records))


def check(source: PairSource, root: Path) -> None:
    """Train a tokenizer, prepare, and account for every record."""
    tokenizer = train_tokenizer(islice(training_texts(source.pairs(), 0.1, 0), 1000), 1000, root)
    template = ChatTemplate(tokenizer)
    options = PrepareOptions(max_length=256, max_prompt_length=128, validation_fraction=0.1)
    data = prepare(source, RandomFlip(0.2), template, options, root)
    manifest = data.manifest
    dropped = {reason: entry["count"] for reason, entry in manifest["dropped"].items()}
    assert sum(manifest["counts"].values()) + sum(dropped.values()) == sum(1 for _ in source.records())
    skipped = Counter(record.reason for record in source.records() if isinstance(record, Skipped))
    assert skipped.items() <= dropped.items()
    assert int(data.train.lengths()[:, :2].sum(axis=1).max()) <= 256
    assert 0.04 < manifest["counts"]["validation"] / sum(manifest["counts"].values()) < 0.2
    assert 0.1 < manifest["flipped"]["count"] / manifest["counts"]["train"] < 0.3
    for row in (data.train[0], data.train[-1], data.validation[0]):
        assert row.prompt_ids.count(tokenizer.bos_token_id) == 1
        assert row.chosen_ids != row.rejected_ids


def test_hh_of_the_pack(tmp_path: Path) -> None:
    source = HHRLHF(path=str(shared(HH)))
    assert sum(1 for _ in source.records()) == 2312
    assert sum(1 for _ in source.pairs()) == 2307
    check(source, tmp_path)


def test_generated_transcripts(tmp_path: Path, transcripts: Path) -> None:
    source = HHRLHF(path=str(transcripts))
    assert sum(1 for _ in source.pairs()) == 76
    check(source, tmp_path)


@pytest.mark.parametrize("real", [True, False])
def test_transcripts_come_back(transcripts: Path, real: bool) -> None:
    """Parsing takes nothing away: the plain template gives every transcript's own text back."""
    path = shared(HH) if real else transcripts
    template = TextTemplate.named("plain")
    by_id = {found.id: found for found in HHRLHF(path=str(path)).pairs()}
    compared = 0
    for line, record in read_json_lines(path):
        found = by_id.get(f"hh-{line:06d}")
        if found is None or not all(cut(record[side])[1].startswith(" ") for side in ("chosen", "rejected")):
            continue
        for side in ("chosen", "rejected"):
            assert "".join(template.render_parts(found.prompt, getattr(found, side))) == record[side]
        compared += 1
    assert compared >= len(by_id) - 5


def test_scored_responses_of_the_pack(tmp_path: Path) -> None:
    path = str(shared(SCORED))
    best = list(ScoredResponsesFile(path).pairs())
    assert len(best) == 805
    assert all((found.chosen_score or 0) > (found.rejected_score or 0) and found.chosen_writer for found in best)
    check(ScoredResponsesFile(path), tmp_path)


@pytest.mark.parametrize("pairing", ["best_worst", "all_pairs", "random"])
def test_generated_scored_responses(tmp_path: Path, scored: Path, pairing: str) -> None:
    check(ScoredResponsesFile(str(scored), pairing, pairs_per_prompt=3 if pairing == "random" else None), tmp_path)
