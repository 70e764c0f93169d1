"""The toy world as data: grammar, writers, source, benchmark items."""

import dataclasses
import random
import statistics
from collections import defaultdict
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.pairs import prompt_hash
from src.data.toy.benchmarks import as_prompt, choice_items, conversations, exact_match_items, instructions, style_items
from src.data.toy.grammar import draw_prompt
from src.data.toy.lexicon import CATEGORY_OF, CLOSINGS, DETAILS, LEADS
from src.data.toy.scorer import score_response, score_task
from src.data.toy.source import ROLES, ToySource, draw_prompts, role_of, world_version
from src.data.toy.tasks import KINDS, find_items, parse_task
from src.data.toy.writers import WRITERS, ideal_answer, write
from src.errors import UserError

WORLD_VERSION = "dc79570f05a87919ca97f0cb66e9636f0b15aae82e6871a584db40458fdebfff"
SOURCE = ToySource(prompts=400, demonstration_prompts=400)
LARGE = ToySource(prompts=2500, demonstration_prompts=0)


def test_world_version_is_pinned() -> None:
    """A change of the world is a deliberate act: recalibrate (docs/toy_world.md), then pin the new version."""
    assert world_version() == WORLD_VERSION


@given(st.integers(0, 2**64), st.sampled_from(KINDS))
def test_every_prompt_parses_back_and_has_an_ideal_answer(seed: int, kind: str) -> None:
    prompt = draw_prompt(random.Random(seed), kind)
    task = parse_task(prompt)
    assert task.kind == kind
    assert len(prompt) == (3 if kind == "two_turn" else 1)
    assert score_task(task, ideal_answer(task, random.Random(seed))).overall == 5


@given(st.integers(0, 2**64), st.sampled_from(KINDS), st.sampled_from(list(WRITERS)))
def test_every_written_response_parses(seed: int, kind: str, writer: str) -> None:
    rng = random.Random(seed)
    task = parse_task(draw_prompt(rng, kind))
    text = write(WRITERS[writer], task, rng)
    score = score_task(task, text)
    assert score.parsed
    assert text == text.strip()
    assert all(1 <= value <= 5 for value in score.aspects.values())


def test_filler_holds_no_answer() -> None:
    for sentence in (*LEADS, *DETAILS, *CLOSINGS):
        assert not find_items(sentence, numeric=False)
        assert not any(character.isdigit() for character in sentence)
        assert " A " not in f" {sentence}", "an article would read as the letter of an option"


def test_categories_share_no_word() -> None:
    assert len(CATEGORY_OF) == 64


def test_generation_is_deterministic_and_stable_under_growth() -> None:
    grown = dataclasses.replace(SOURCE, prompts=700, demonstration_prompts=700)
    for method in ("pairs", "scored_responses", "demonstrations"):
        records = list(getattr(SOURCE, method)())
        assert len(records) == 400
        assert records == list(getattr(SOURCE, method)())
        assert records == list(islice(getattr(grown, method)(), 400))
        assert records != list(getattr(dataclasses.replace(SOURCE, seed=1), method)())


def test_prompts_are_distinct_and_demonstrations_have_their_own() -> None:
    preference = {prompt_hash(pair.prompt) for pair in SOURCE.pairs()}
    demonstrations = {prompt_hash(demonstration.prompt) for demonstration in SOURCE.demonstrations()}
    benchmark = {prompt_hash(prompt) for prompt in instructions(200)}
    assert (len(preference), len(demonstrations), len(benchmark)) == (400, 400, 200)
    assert not preference & demonstrations
    assert not benchmark & (preference | demonstrations)
    other_seed = {prompt_hash(pair.prompt) for pair in ToySource(seed=5, prompts=400).pairs()}
    assert not other_seed & demonstrations, "roles depend on the prompt alone, so they hold across seeds"


def test_roles_have_their_shares() -> None:
    prompts = [draw_prompt(random.Random(seed)) for seed in range(3000)]
    shares = [statistics.mean(role_of(prompt) == role for prompt in prompts) for role in ROLES]
    assert shares == pytest.approx([0.45, 0.45, 0.1], abs=0.03)


def test_fingerprint_follows_the_content() -> None:
    assert SOURCE.fingerprint() == dataclasses.replace(SOURCE).fingerprint()
    for change in (
        {"seed": 1},
        {"prompts": 401},
        {"pairing": "random"},
        {"length_bias": 0.0},
        {"annotator_noise": 0.0},
    ):
        assert SOURCE.fingerprint() != dataclasses.replace(SOURCE, **change).fingerprint()


def test_responses_are_distinct_and_by_several_writers() -> None:
    for record in SOURCE.scored_responses():
        assert len({response.text for response in record.responses}) == 4
        assert len({response.writer for response in record.responses}) >= 2


@pytest.mark.parametrize("pairing", ["best_worst", "best_random", "random"])
def test_pairs_keep_scores_and_writers_of_their_responses(pairing: str) -> None:
    source = dataclasses.replace(SOURCE, pairing=pairing)
    for pair, record in zip(source.pairs(), source.scored_responses(), strict=True):
        assert (pair.id, pair.prompt) == (record.id, record.prompt)
        scored = {response.text: (response.score, response.writer) for response in record.responses}
        assert scored[pair.chosen] == (pair.chosen_score, pair.chosen_writer)
        assert scored[pair.rejected] == (pair.rejected_score, pair.rejected_writer)
        scores = [score for score, _ in scored.values()]
        assert pair.chosen_score >= pair.rejected_score
        if pairing != "random":
            assert pair.chosen_score == max(scores)
        if pairing == "best_worst":
            assert pair.rejected_score == min(scores)


def test_gaps_are_graded_and_hold_near_ties() -> None:
    gaps = [pair.chosen_score - pair.rejected_score for pair in SOURCE.pairs()]
    assert 0.05 < statistics.mean(gap < 0.25 for gap in gaps) < 0.35
    assert 0.1 < statistics.mean(gap > 1.5 for gap in gaps) < 0.5
    assert len({round(gap, 2) for gap in gaps}) > 100


def test_annotation_is_truth_plus_length_bonus_without_noise() -> None:
    honest = dataclasses.replace(SOURCE, annotator_noise=0.0, length_bias=0.0, prompts=50)
    for record in honest.scored_responses():
        for response in record.responses:
            assert response.score == pytest.approx(score_response(record.prompt, response.text).overall, abs=1e-4)


def by_writer(source: ToySource) -> dict[str, list[tuple[float, float, int]]]:
    """(annotated score, true score, characters) of each writer's responses."""
    rows = defaultdict(list)
    for record in source.scored_responses():
        for response in record.responses:
            truth = score_response(record.prompt, response.text).overall
            rows[response.writer].append((response.score, truth, len(response.text)))
    return rows


def test_writers_differ_in_skill_and_the_annotator_loves_length() -> None:
    means = {
        name: [statistics.mean(column) for column in zip(*rows, strict=True)] for name, rows in by_writer(LARGE).items()
    }
    truth = {name: mean[1] for name, mean in means.items()}
    assert max(truth, key=truth.get) == "expert"
    assert truth["expert"] > truth["teacher"] > truth["editor"] > max(truth["rambler"], truth["novice"]) + 0.2
    assert means["rambler"][2] > 3 * means["expert"][2]
    assert means["editor"][0] > means["clerk"][0] + 0.15, "verbose beats concise for the annotator"
    assert truth["editor"] < truth["clerk"] - 0.1, "and loses in truth"


def test_chosen_responses_are_longer_only_because_of_the_bias() -> None:
    def longer(source: ToySource) -> float:
        return statistics.mean(len(pair.chosen) > len(pair.rejected) for pair in source.pairs())

    assert longer(LARGE) > 0.53
    assert longer(dataclasses.replace(LARGE, length_bias=0.0)) < 0.45


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pairing": "worst"}, "best_worst, best_random, random"),
        ({"responses_per_prompt": 1}, "use 2 or more"),
        ({"prompts": -1}, "prompts=-1 is negative"),
        ({"annotator_noise": -0.5}, "annotator_noise=-0.5 is negative"),
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ToySource(**fields)  # type: ignore[arg-type]


def test_running_out_of_prompts_is_said() -> None:
    with pytest.raises(UserError, match="the toy world has only about"):
        list(islice(draw_prompts("benchmark", 0, "arithmetic"), 10**6))


def test_style_items_differ_in_correctness_only_between_and_in_style_only_within() -> None:
    for item in style_items(60):
        right = [score_response(item.prompt, text).aspects["correctness"] for text in item.chosen]
        wrong = [score_response(item.prompt, text).aspects["correctness"] for text in item.rejected]
        assert right == [5, 5, 5]
        assert max(wrong) < 5
        assert len(set(wrong)) == 1
        assert len(item.chosen[0]) < len(item.chosen[1])
        assert "## Answer" in item.chosen[2]
        assert "## Answer" not in item.chosen[1]


def test_conversations_can_be_scored_with_any_first_answer() -> None:
    for item in conversations(30):
        assert parse_task(as_prompt(item.turns[0])).kind == item.kind
        for answer in ("", "5", "axe, dog"):
            task = parse_task(as_prompt(item.turns[0], answer, item.turns[1]))
            assert task.kind == "two_turn"
            assert score_task(task, ideal_answer(task, random.Random(0))).overall == 5
    assert {item.kind for item in conversations(3)} == {"list", "sort", "arithmetic"}


def test_question_items_have_the_right_answer() -> None:
    for item in (*exact_match_items(40), *choice_items(40)):
        assert score_response(as_prompt(item.question), item.answer).aspects["correctness"] == 5
    for item in choice_items(40):
        assert len(set(item.choices)) == 4
        assert sum(score_response(as_prompt(item.question), c).aspects["correctness"] == 5 for c in item.choices) == 1
