"""Prompts and writers held back: who is where, what is drawn, and what is refused."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from src.data.generalization import PARTS, Generalization, SeenPairs, TestPairs
from src.data.pairs import Message, PreferencePair, ScoredResponse, ScoredResponses, prompt_hash
from src.data.sources import LocalPairs, PairSource, ScoredResponsesFile, Skipped
from src.data.splits import TRAIN, split_of
from src.data.toy.source import ToySource
from src.errors import UserError

FRACTION, SPLIT_SEED = 0.1, 0
WRITERS = tuple(f"w{number}" for number in range(8))


def item(number: int, writers: tuple[str, ...] = WRITERS, **changes: Any) -> ScoredResponses:
    """A prompt to which every writer responds; the score grows with the writer's number."""
    responses = tuple(ScoredResponse(f"{name} on {number}", int(name[1:]) + number / 1000, name) for name in writers)
    fields = {"id": f"p{number}", "prompt": (Message("user", f"question {number}"),), "responses": responses}
    return ScoredResponses(**(fields | changes))


@dataclass(frozen=True)
class Given(PairSource):
    """A source of given responses."""

    items: tuple[ScoredResponses, ...]
    pairing: str = "best_worst"

    def scored_responses(self) -> Iterator[ScoredResponses]:
        return iter(self.items)

    def records(self) -> Iterator[PreferencePair | Skipped]:
        return iter(())

    def content(self) -> str:
        return str(self.items)

    def options(self) -> dict[str, Any]:
        return {}


MANY = Given(tuple(item(number) for number in range(200)))
SETTINGS = Generalization(unseen_prompts=0.25, unseen_writers=3)


def part_of(seen: SeenPairs, part: str) -> TestPairs:
    return TestPairs(seen, part, FRACTION, SPLIT_SEED)


def prompts_of(pairs: Any) -> set[str]:
    return {prompt_hash(pair.prompt) for pair in pairs}


def writers_of(pairs: Any) -> set[str]:
    return {str(writer) for pair in pairs for writer in (pair.chosen_writer, pair.rejected_writer)}


def reasons(source: Any) -> Counter[str]:
    return Counter(record.reason for record in source.records() if isinstance(record, Skipped))


@pytest.mark.parametrize("seed", range(3))
def test_four_scenarios_share_with_training_what_they_should_and_nothing_else(seed: int) -> None:
    seen = dataclasses.replace(SETTINGS, seed=seed).of(MANY)
    train = [pair for pair in seen.pairs() if split_of(pair.prompt, FRACTION, SPLIT_SEED) == TRAIN]
    parts = {part: list(part_of(seen, part).pairs()) for part in PARTS}
    prompts, writers = prompts_of(train), writers_of(train)
    assert len(writers) == 5
    for part, pairs in parts.items():
        part_of(seen, part).refuse_overlap()
        assert len(pairs) == len(prompts_of(pairs)) > 20
        if part in ("prompt_ood", "mutual_ood"):
            assert not prompts_of(pairs) & prompts
        else:
            assert prompts_of(pairs) == prompts
        if part in ("response_ood", "mutual_ood"):
            assert writers_of(pairs) <= set(WRITERS) - writers
        else:
            assert writers_of(pairs) <= writers
    assert prompts_of(parts["prompt_ood"]) == prompts_of(parts["mutual_ood"])
    assert 0.15 < len(parts["prompt_ood"]) / 200 < 0.35
    used = {(pair.prompt, text) for pair in train for text in (pair.chosen, pair.rejected)}
    assert not used & {
        (pair.prompt, text) for pair in parts["in_distribution"] for text in (pair.chosen, pair.rejected)
    }


def test_pairs_of_the_ood_sets_are_the_best_against_the_worst() -> None:
    seen = SETTINGS.of(MANY)
    kept, held = (sorted(names) for names in seen.writers)
    for part, names in (("prompt_ood", kept), ("response_ood", held), ("mutual_ood", held)):
        for pair in part_of(seen, part).pairs():
            assert (pair.chosen_writer, pair.rejected_writer) == (names[-1], names[0])
            assert (pair.chosen_score or 0) > (pair.rejected_score or 0)


def test_training_and_in_distribution_pairs_are_drawn_at_random() -> None:
    seen = SETTINGS.of(MANY)
    for pairs in (list(seen.pairs()), list(part_of(seen, "in_distribution").pairs())):
        drawn = Counter(frozenset((pair.chosen_writer, pair.rejected_writer)) for pair in pairs)
        assert len(drawn) == 10, "every two of five writers meet"
        assert max(drawn.values()) < 35


def test_several_training_pairs_of_a_prompt_share_no_response() -> None:
    seen = dataclasses.replace(SETTINGS, pairs_per_prompt=2).of(MANY)
    texts = Counter(text for pair in seen.pairs() for text in (pair.chosen, pair.rejected))
    assert set(texts.values()) == {1}
    assert Counter(pair.prompt for pair in seen.pairs()).most_common(1)[0][1] == 2
    with pytest.raises(UserError, match=r"split=in_distribution has no pair .* beside those trained on"):
        list(part_of(seen, "in_distribution").pairs())


def test_draws_do_not_depend_on_order() -> None:
    """Other order of prompts and of the responses to each: the same writers, prompts and texts everywhere."""
    rng = random.Random(1)
    items = [dataclasses.replace(found, responses=tuple(rng.sample(found.responses, 8))) for found in MANY.items]
    turned = SETTINGS.of(Given(tuple(reversed(items))))
    straight = SETTINGS.of(MANY)

    def texts(source: Any) -> set[tuple[str, str]]:
        return {(pair.chosen, pair.rejected) for pair in source.pairs()}

    assert texts(turned) == texts(straight)
    for part in PARTS:
        assert texts(part_of(turned, part)) == texts(part_of(straight, part))
    other = dataclasses.replace(SETTINGS, seed=1).of(MANY)
    assert other.writers != straight.writers
    assert prompts_of(other.pairs()) != prompts_of(straight.pairs())


def test_fingerprints_tell_settings_and_parts_apart() -> None:
    settings = [
        SETTINGS,
        dataclasses.replace(SETTINGS, seed=1),
        dataclasses.replace(SETTINGS, unseen_prompts=0.3),
        dataclasses.replace(SETTINGS, unseen_writers=("w0", "w1")),
        dataclasses.replace(SETTINGS, pairs_per_prompt=2),
    ]
    sources: list[PairSource] = [chosen.of(MANY) for chosen in settings]
    sources += [part_of(SETTINGS.of(MANY), part) for part in PARTS]
    assert len({source.fingerprint() for source in sources}) == len(sources)


def test_what_makes_no_pair_is_counted() -> None:
    shared = item(3, responses=tuple(ScoredResponse("same", 1.0, name) for name in WRITERS))
    tied = item(4, responses=tuple(ScoredResponse(name, 1.0, name) for name in WRITERS))
    repeated = item(1, id="again")
    unscored = item(5, responses=tuple(ScoredResponse(name, None, name) for name in WRITERS))
    source = Given((*(item(number) for number in range(3)), shared, tied, repeated, unscored))
    settings = Generalization(unseen_prompts=1e-9, unseen_writers=("w0", "w1"))
    assert reasons(settings.of(source)) == {
        "prompt occurs twice": 1,
        "fewer than two responses by seen writers": 2,
        "tied scores": 1,
    }
    held = Generalization(unseen_prompts=0.5, unseen_writers=("w0", "w1")).of(source)
    assert reasons(held)["prompt held back"] == sum(held.settings.is_unseen(found.prompt) for found in source.items[:5])


def test_a_prompt_whose_training_pair_is_tied_was_not_trained_on() -> None:
    tied = item(0, responses=(*(ScoredResponse(name, 1.0, name) for name in "abcd"), *item(0).responses[:2]))
    seen = Generalization(1e-9, ("w0", "w1")).of(Given((tied, *(item(number) for number in range(1, 30)))))
    assert reasons(seen) == {"tied scores": 1}
    for part in ("in_distribution", "response_ood"):
        assert reasons(part_of(seen, part)) == {"prompt without a training pair": 1}


def test_named_writers_are_held_back() -> None:
    seen = Generalization(0.25, ("w6", "w7")).of(MANY)
    assert seen.writers[1] == {"w6", "w7"}
    assert writers_of(part_of(seen, "mutual_ood").pairs()) == {"w6", "w7"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"unseen_prompts": 0.0}, r"unseen_prompts=0.0 must be a share of the prompts between 0 and 1"),
        ({"unseen_prompts": 1}, r"unseen_prompts=1 must be a share"),
        ({"unseen_writers": 1}, r"unseen_writers=1 leaves no pair of responses by unseen writers; give 2 or more"),
        ({"unseen_writers": ("w1", "w1")}, r"leaves no pair of responses by unseen writers"),
        ({"pairs_per_prompt": 0}, r"pairs_per_prompt=0 gives no training pair"),
        ({"unseen_writers": 7}, r"unseen_writers=7 leaves 1 of the 8 writers .*\(w0, w1, .* hold fewer back"),
        (
            {"unseen_writers": ("w1", "gpt-5")},
            r"unseen_writers names gpt-5, but the writers of dataset.source are: w0, w1, w2",
        ),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        list(dataclasses.replace(SETTINGS, **options).of(MANY).pairs())


def test_sources_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"LocalPairs has pairs alone; use a source with several scored responses"):
        SETTINGS.of(LocalPairs("pairs.jsonl"))
    with pytest.raises(UserError, match=r"dataset.source.pairing=all_pairs would not be read with dataset.general"):
        SETTINGS.of(ScoredResponsesFile("x", pairing="all_pairs"))
    nameless = Given((item(0), item(1, responses=(ScoredResponse("a", 1.0), ScoredResponse("b", 2.0)))))
    with pytest.raises(UserError, match=r"response 0 to prompt 'p1' of dataset.source names no writer"):
        list(SETTINGS.of(nameless).pairs())
    two = Given(tuple(item(number, ("w0", "w1")) for number in range(9)))
    with pytest.raises(UserError, match=r"leaves 0 of the 2 writers .*; hold fewer back, or use data"):
        list(dataclasses.replace(SETTINGS, unseen_writers=2).of(two).pairs())
    few = Generalization(0.01, 3).of(Given(MANY.items[:2]))
    with pytest.raises(UserError, match=r"split=prompt_ood has no pair \(no prompt is in it\); train with another"):
        list(part_of(few, "prompt_ood").pairs())


def test_an_overlap_is_refused() -> None:
    """Data that reads differently each time: what was held back turns up in training."""

    @dataclass(frozen=True)
    class Changing(SeenPairs):
        def records(self) -> Iterator[PreferencePair | Skipped]:
            for found in self.items():
                assert isinstance(found, ScoredResponses)
                yield PreferencePair(found.id, found.prompt, "x", "y", 1.0, 0.0, "w0", "w7")

    seen = Changing(MANY, SETTINGS)
    with pytest.raises(UserError, match="of split=mutual_ood has its prompt and a writer in common"):
        part_of(seen, "mutual_ood").refuse_overlap()
    with pytest.raises(UserError, match="of split=prompt_ood has its prompt in common"):
        part_of(seen, "prompt_ood").refuse_overlap()
    part_of(seen, "in_distribution").refuse_overlap()


def test_demonstrations_are_of_what_is_seen() -> None:
    seen = SETTINGS.of(MANY)
    assert [found.response for found in seen.demonstrations()] == [pair.chosen for pair in seen.pairs()]
    toy = SETTINGS.of(ToySource(prompts=5, demonstration_prompts=100))
    kept = list(toy.demonstrations())
    assert 50 < len(kept) < 95
    assert not any(SETTINGS.is_unseen(found.prompt) for found in kept)


def test_the_toy_world_has_all_four() -> None:
    toy = ToySource(prompts=150, demonstration_prompts=0, responses_per_prompt=6)
    seen = Generalization(0.2, 2).of(toy)
    assert [len(names) for names in seen.writers] == [4, 2]
    for part in PARTS:
        found = part_of(seen, part)
        found.refuse_overlap()
        assert len(list(found.pairs())) > 10


SCORED = Path(__file__).resolve().parents[3] / "shared" / "data" / "pref" / "alpaca_pref_24x805.jsonl.gz"


@pytest.mark.skipif(not SCORED.exists(), reason=f"{SCORED} is not on this machine")
def test_twenty_four_writers_of_the_pack() -> None:
    source = Given(tuple(ScoredResponsesFile(str(SCORED)).scored_responses()))
    seen = Generalization(0.2, 4).of(source)
    assert [len(names) for names in seen.writers] == [20, 4]
    train = {pair.prompt for pair in seen.pairs() if split_of(pair.prompt, FRACTION, SPLIT_SEED) == TRAIN}
    counts = {}
    for part in PARTS:
        found = part_of(seen, part)
        found.refuse_overlap()
        counts[part] = len(list(found.pairs()))
    assert counts["prompt_ood"] >= counts["mutual_ood"] > 120
    assert len(train) >= counts["in_distribution"] * 0.95
