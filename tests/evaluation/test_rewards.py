"""Log-probs of given responses under a run and its reference, and RM-Bench of a checkpoint, which is made of them."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from src.benchmark_schema import RMBenchConfig
from src.data.pairs import Message
from src.data.preparation.options import PrepareOptions
from src.errors import UserError
from src.evaluation.kept import from_json, to_json
from src.evaluation.rewards import (
    OFFICIAL,
    LogProbScorer,
    Row,
    RowLogProbs,
    Truncation,
    Weights,
    as_log_probs,
    batches,
    encode,
    initial_weights,
    training_truncation,
)
from src.evaluation.rmbench.items import toy_items
from src.evaluation.rmbench.measure import RewardPlan
from src.generation.policy import Policy, policy_of_run, trained_config
from src.objective.types import PairLogProbs
from src.training.run import sft_base
from tests.entry import assert_says, call, refused
from tests.support import SMALL_RUN, places

PROGRAM = "src.evaluation.rm_bench"
ITEMS = 2
PROMPT = (Message("user", "Name three fruits, please."),)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DPO run that started from its SFT base."""
    folder = tmp_path_factory.mktemp("rewards")
    outcome = call("src.train", "method=dpo", *SMALL_RUN, "model.init=sft", *places(folder))
    assert outcome.code == 0, outcome.err
    (directory,) = (folder / "runs").glob("dpo__*")
    return directory


@pytest.fixture(scope="module")
def policy(run: Path) -> Policy:
    return policy_of_run(run, "best")


def scorer_of(policy: Policy) -> LogProbScorer:
    return LogProbScorer(Weights(policy.directory, policy.model), "cpu")


@lru_cache
def model_in(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory)


def by_hand(directory: Path, prompt_ids: list[int], response_ids: list[int]) -> list[float]:
    """Log-prob of every response token by the plainest forward there is."""
    model = model_in(directory)
    ids = torch.tensor([prompt_ids + response_ids])
    with torch.no_grad():
        logs = model(ids).logits.double().log_softmax(-1)
    return [float(logs[0, place - 1, ids[0, place]]) for place in range(len(prompt_ids), ids.shape[1])]


def test_log_probs_are_those_of_a_plain_forward(policy: Policy) -> None:
    """With the template's prompt and the stop token; neighbours in the batch and their lengths do not matter."""
    texts = ["pear", "pear, apple and plum, which are all that come to mind just now", ""]
    (rows,) = encode(policy.template, [(PROMPT, texts)], OFFICIAL)
    expected = policy.template.encode(PROMPT, texts[0])
    assert (rows[0].prompt_ids, rows[0].response_ids) == (expected.prompt_ids, expected.response_ids)
    assert rows[0].response_ids[-1] == policy.template.stop_id
    found = dict[int, RowLogProbs]()
    for indices, results in scorer_of(policy).responses(rows, 2):
        found |= dict(zip(indices, results, strict=True))
    for index, row in enumerate(rows):
        terms = by_hand(policy.directory, row.prompt_ids, row.response_ids)
        assert found[index].per_token == pytest.approx(terms, abs=1e-4)
        assert found[index].summed == pytest.approx(sum(terms), rel=1e-5)
        assert found[index].tokens == len(terms)
        assert found[index].average == pytest.approx(sum(terms) / len(terms), rel=1e-5)
        assert found[index].norm == pytest.approx(-math.sqrt(sum(term**2 for term in terms)), rel=1e-5)
    together = as_log_probs([found[index] for index in range(3)])
    assert together.per_token is not None
    assert together.per_token.sum(1).tolist() == pytest.approx(together.summed.tolist(), rel=1e-5)


def test_pairs_and_responses_have_the_same_log_probs(policy: Policy) -> None:
    from src.data.pairset import TokenizedPair

    (rows,) = encode(policy.template, [(PROMPT, ["yes", "no, not today"])], OFFICIAL)
    chosen, rejected = rows
    pair = TokenizedPair(0, "a", chosen.prompt_ids, chosen.response_ids, rejected.response_ids, None, None, False)
    scorer = scorer_of(policy)
    found: PairLogProbs = scorer.pairs([pair, pair, pair], micro_batch_size=2)
    alone = {indices[0]: results[0] for indices, results in scorer.responses(rows, 1)}
    assert found.chosen.summed.tolist() == pytest.approx([alone[0].summed] * 3, rel=1e-5)
    assert found.rejected.summed.tolist() == pytest.approx([alone[1].summed] * 3, rel=1e-5)


def test_truncation_judges_responses_that_belong_together(policy: Policy) -> None:
    """The longest response decides; a prompt keeps its end, with its bos or not; then the responses are cut."""
    tokens = len(policy.template.encode_prompt(PROMPT))
    short, long = "a", "b " * 40
    (alone,), (first, second) = encode(
        policy.template,
        [(PROMPT, [short]), (PROMPT, [short, long])],
        Truncation("t", PrepareOptions(tokens + 10, 8), keeps_bos=False),
    )
    assert not alone.cut
    assert first.cut
    assert second.cut
    assert first.prompt_ids == second.prompt_ids == alone.prompt_ids[-8:]
    assert first.response_ids == alone.response_ids
    assert len(second.response_ids) == tokens + 10 - 8
    ((with_bos, _),) = encode(
        policy.template, [(PROMPT, [short, long])], Truncation("t", PrepareOptions(tokens + 10, 8))
    )
    bos = policy.template.tokenizer.bos_token_id
    assert alone.prompt_ids[0] == bos
    assert with_bos.prompt_ids == [bos, *alone.prompt_ids[-7:]]
    assert (OFFICIAL.options.max_length, OFFICIAL.options.max_prompt_length) == (2048, 128)


def test_what_the_runs_own_truncation_leaves_out_is_refused(run: Path, policy: Policy) -> None:
    own = training_truncation(trained_config(run))
    assert own.describe()["rule"] == "simpo"
    dropping = Truncation("training", PrepareOptions(30, 10, "drop"))
    with pytest.raises(UserError, match="prompt 1 of 1 is left out"):
        encode(policy.template, [(PROMPT, ["word " * 60])], dropping)


def test_batches_are_sorted_by_length() -> None:
    rows = [Row([1], [2] * length) for length in (1, 5, 3, 5, 2)]
    assert batches(rows, 2) == [[1, 3], [2, 4], [0]]


def test_token_ids_that_the_weights_do_not_embed(policy: Policy) -> None:
    with pytest.raises(UserError, match="weights and tokenizer do not belong together"):
        list(scorer_of(policy).responses([Row([1], [10**6])], 1))


def test_the_reference_is_where_the_run_started(run: Path, policy: Policy) -> None:
    trained = trained_config(run)
    found = initial_weights(trained, policy.directory, sft_base)
    assert found is not None
    assert found.parts[-4].startswith("sft__")
    assert initial_weights(trained, policy.directory, lambda _: None) is None


def test_numbers_that_are_not_finite_survive_json() -> None:
    row = RowLogProbs(math.nan, 2, -math.inf, (math.nan, -1.5))
    again = from_json(json.loads(json.dumps(to_json(row, per_token=True), allow_nan=False)))
    assert math.isnan(again.summed)
    assert math.isnan(again.norm)
    assert again.per_token is not None
    assert again.per_token[1] == -1.5
    assert from_json(to_json(RowLogProbs(-3.5, 2, -2.5, (-1.0, -2.5)), per_token=False)) == RowLogProbs(-3.5, 2, -2.5)


def below(folder: Path, *overrides: str) -> tuple[str, ...]:
    return (
        *(f"output_root={folder / 'evaluations'}", f"records_root={folder / 'records'}", "device=cpu"),
        *("benchmark=toy", f"max_items={ITEMS}", "output=json", "shard_size=5", *overrides),
    )


def scores_of(run: Path, folder: Path, *overrides: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The printed result and the kept samples."""
    outcome = call(PROGRAM, f"checkpoint={run}", *below(folder, *overrides))
    assert outcome.code == 0, outcome.err
    (path,) = [line.partition("rewards: ")[2] for line in outcome.err.splitlines() if line.startswith("rewards: ")]
    return json.loads(outcome.out), [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_runs_rewards_are_made_of_its_log_probs(run: Path, policy: Policy, tmp_path: Path) -> None:
    base = initial_weights(trained_config(run), policy.directory, sft_base)
    assert base is not None
    item = toy_items(1)[0]
    texts = [*item.chosen, *item.rejected]
    sums: dict[str, list[float]] = {"policy": [], "reference": []}
    tokens = []
    for text in texts:
        encoded = policy.template.encode(item.prompt, text)
        tokens.append(len(encoded.response_ids))
        for name, directory in (("policy", policy.directory), ("reference", base)):
            sums[name].append(sum(by_hand(directory, encoded.prompt_ids, encoded.response_ids)))
    ratio = [one - other for one, other in zip(sums["policy"], sums["reference"], strict=True)]
    beta = trained_config(run).method["beta"]
    _, samples = scores_of(run, tmp_path, "reward=method")
    (sample,) = [one for one in samples if one["id"] == item.id]
    assert sample["log_probs"]["sum"] == pytest.approx(sums["policy"], rel=1e-5)
    assert sample["log_probs"]["reference_sum"] == pytest.approx(sums["reference"], rel=1e-5)
    assert sample["log_probs"]["tokens"] == tokens
    beta = trained_config(run).method["beta"]
    scores = sample["score_chosen"] + sample["score_rejected"]
    assert scores == pytest.approx([beta * value for value in ratio], rel=1e-3, abs=2e-5)


def test_rewards_without_a_method() -> None:
    policy = [RowLogProbs(-6.0, 3, -4.0), RowLogProbs(-2.0, 4, -1.5)]
    reference = [RowLogProbs(-5.0, 3, -3.0), RowLogProbs(-4.0, 4, -2.0)]
    expected = {"average": [-2.0, -0.5], "sum": [-6.0, -2.0], "norm": [-4.0, -1.5], "reference": [-1.0, 2.0]}
    assert {name: RewardPlan(name, OFFICIAL).rewards(policy, reference) for name in expected} == expected


def test_stored_samples_give_the_records_numbers(run: Path, tmp_path: Path) -> None:
    printed, _ = scores_of(run, tmp_path)
    (path,) = tmp_path.glob("evaluations/rm_bench__*/samples.jsonl")
    outcome = call(PROGRAM, "stage=score", f"samples={path}", "benchmark=toy", "output=json")
    again = json.loads(outcome.out)
    assert again["notes"] == []
    assert printed["notes"] == ["a trial: the first 2 items of each part"]
    assert {**again, "notes": 0} == {**printed, "notes": 0}
    (record,) = (json.loads(file.read_text()) for file in (tmp_path / "records").glob("*.json"))
    assert record["metrics"]["overall"]["value"] == printed["overall"]
    assert record["sources"]["samples"]["path"] == str(path)
    assert record["settings"]["truncation"]["max_length"] == 2048
    assert record["counts"] == printed["counts"]
    measured_again = call(PROGRAM, f"checkpoint={run}", "stage=score", *below(tmp_path))
    assert json.loads(measured_again.out) == printed
    elsewhere = refused(PROGRAM, f"checkpoint={run}", "stage=score", *below(tmp_path / "elsewhere"))
    assert_says(elsewhere, "does not hold all log-probs", "leave stage out")


def test_a_killed_evaluation_goes_on_with_the_next_forward(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = LogProbScorer._forward
    calls = 0

    def counted(self: LogProbScorer, pairs: Any, per_token: bool) -> PairLogProbs:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return forward(self, pairs, per_token)

    whole = scores_of(run, tmp_path / "whole")
    monkeypatch.setattr(LogProbScorer, "_forward", counted)
    assert call(PROGRAM, f"checkpoint={run}", *below(tmp_path / "killed")).code == 130
    journal = next((tmp_path / "killed").rglob("partial/*.jsonl"))
    with journal.open("ab") as file:
        file.write(b'{"rows": [{"sum": -1')  # a line that it was killed writing
    again = scores_of(run, tmp_path / "killed")
    assert again == whole
    # 12 items in shards of 5, 5 and 2: 30, 30 and 12 rows in forwards of 8; the one that was killed was done anew
    assert calls == 4 + 4 + 2 + 1


def test_a_dry_run_computes_and_writes_nothing(run: Path, tmp_path: Path) -> None:
    outcome = call(PROGRAM, f"checkpoint={run}", "reward=reference", "dry_run=true", *below(tmp_path))
    assert (outcome.code, outcome.out) == (0, "")
    assert_says(
        outcome.err, "12 items (", "72 answers", "twice 10 forwards of up to 8 answers", "tokens", "no paid call"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_model_directory_beside_itself_is_all_ties(run: Path, policy: Policy, tmp_path: Path) -> None:
    template = f"template={trained_config(run).model.template}"
    found, _ = scores_of(policy.directory, tmp_path, template, "reward=reference", f"reference={policy.directory}")
    assert found["overall"] == 0
    assert found["counts"]["ties"] == found["counts"]["comparisons"]


@pytest.mark.parametrize(
    ("reward", "truncation", "fragments"),
    [
        ("method", "official", ["reward=method is that of a run", "leave reward out"]),
        ("average", "training", ["truncation=training is that of a run"]),
        ("reference", "official", ["none is known for checkpoint=MODEL", "give reference="]),
    ],
)
def test_what_only_a_run_has(policy: Policy, reward: str, truncation: str, fragments: list[str]) -> None:
    from src.evaluation.rm_bench import plan_of

    with pytest.raises(UserError) as error:
        plan_of(RMBenchConfig(checkpoint="MODEL", reward=reward, truncation=truncation), None, policy)
    assert_says(str(error.value), *fragments)
