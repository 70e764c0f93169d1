"""KTO's link and reference points, AlphaPO token by token, and the NLL over prompt and chosen.

The batches of ``tests/parity/test_vectors.py`` cover the values; here are numbers by hand, signs, and what is detached.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from src.config import ROOT
from src.errors import UserError
from src.objective.links import Logistic, NoPreference
from src.objective.objective import Objective
from src.objective.prospect import MismatchedPoint, Prospect, SwappedPoint
from src.objective.reductions import Mean
from src.objective.regularizers import NegativeLogLikelihood, NoRegularizer
from src.objective.rewards import AlphaShapedTokens, AverageLogProb, ReferenceLogRatio
from src.objective.targets import Constant
from src.objective.types import Needs, PairInputs, PairLogProbs, PairRewards, ResponseLogProbs, WindowTotals
from src.objective.weights import Uniform

SHARED = ROOT.parent / "shared" / "vectors.json"


def objective(**parts: object) -> Objective:
    defaults: dict[str, object] = {
        "reward": ReferenceLogRatio(beta=0.1),
        "target": MismatchedPoint(),
        "link": Prospect(),
        "weight": Uniform(),
        "reduce": Mean(),
        "regularizer": NoRegularizer(),
    }
    return Objective(**{**defaults, **parts})  # type: ignore[arg-type]


KTO = objective()
SWAPPED = objective(target=SwappedPoint())


def summed(*values: float) -> ResponseLogProbs:
    return ResponseLogProbs(torch.tensor(values, dtype=torch.float64), torch.ones(len(values), dtype=torch.float64))


def ratios(chosen: list[float], rejected: list[float], drift: tuple[list[float], list[float]]) -> PairInputs:
    """Pairs of these log-ratios to a reference of −20 nats, and mismatched ones of log-ratios ``drift``."""
    sides = [summed(*(value - 20 for value in values)) for values in (chosen, rejected, *drift)]
    for side in sides[:2]:
        side.summed.requires_grad_()
    reference = PairLogProbs(*(summed(*[-20.0] * len(chosen)) for _ in range(2)))
    return PairInputs(PairLogProbs(*sides[:2]), reference, None, None, PairLogProbs(*sides[2:]), reference)


def loss_of(method: Objective, pairs: PairInputs) -> torch.Tensor:
    terms, _ = method.terms(pairs, {})
    return method.loss(pairs, terms, WindowTotals(len(pairs), 0))


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_one_pair_by_hand() -> None:
    """Both of its mismatched responses make the mean: z = (3 + 1)/2 = 2 nats."""
    pairs = ratios([4.0], [-1.0], ([3.0], [1.0]))
    terms, _ = KTO.terms(pairs, {})
    assert terms.target.tolist() == pytest.approx([0.2], abs=1e-15)
    loss = loss_of(KTO, pairs)
    gain, drop = sigma(0.1 * (4 - 2)), sigma(0.1 * (2 - -1))
    assert loss.item() == pytest.approx((1 - gain) / 2 + (1 - drop) / 2, abs=1e-15)
    loss.backward()
    chosen, rejected = pairs.policy.chosen.summed.grad, pairs.policy.rejected.summed.grad
    assert chosen is not None
    assert rejected is not None
    assert chosen.item() == pytest.approx(-0.1 * gain * (1 - gain) / 2, abs=1e-15)
    assert rejected.item() == pytest.approx(0.1 * drop * (1 - drop) / 2, abs=1e-15)


def test_a_point_is_never_negative_and_shared_by_the_group() -> None:
    pairs = ratios([4.0, 0.0], [-1.0, 2.0], ([-3.0, 1.0], [-1.0, 2.0]))
    assert KTO.terms(pairs, {})[0].target.tolist() == [0.0, 0.0]
    pairs = ratios([4.0, 0.0], [-1.0, 2.0], ([-3.0, 1.0], [-1.0, 7.0]))
    assert KTO.terms(pairs, {})[0].target.tolist() == pytest.approx([0.1, 0.1], abs=1e-15)


def test_swapped_points_by_hand() -> None:
    """Chosen rewards (mean 2 nats) are the point of rejected ones, rejected rewards (mean −1, so 0) that of chosen."""
    pairs = ratios([4.0, 0.0], [-4.0, 2.0], ([0.0, 0.0], [0.0, 0.0]))
    terms, _ = SWAPPED.terms(pairs, {})
    assert terms.target.tolist() == [[0.0, 0.2], [0.0, 0.2]]
    expected = [1 - sigma(0.4), 1 - sigma(0.0), 1 - sigma(0.2 + 0.4), 1 - sigma(0.2 - 0.2)]
    assert loss_of(SWAPPED, pairs).item() == pytest.approx(sum(expected) / 4, abs=1e-15)
    assert SWAPPED.metrics(pairs, terms)["target/mean"].tolist() == pytest.approx([0.1, 0.1])


def test_lambdas_scale_their_own_side() -> None:
    rewards = PairRewards(torch.tensor([0.3]), torch.tensor([-0.2]))
    target = torch.tensor([0.1])
    gain, loss = 1 - sigma(0.3 - 0.1), 1 - sigma(0.1 - -0.2)
    found = Prospect(lambda_chosen=1.5, lambda_rejected=0.25)(rewards, target)
    assert found.item() == pytest.approx((1.5 * gain + 0.25 * loss) / 2, abs=1e-7)
    two = Prospect()(rewards, torch.tensor([[0.1, 0.4]]))
    assert two.item() == pytest.approx((gain + 1 - sigma(0.4 - -0.2)) / 2, abs=1e-7)


@pytest.mark.parametrize("method", [KTO, SWAPPED])
def test_minimizing_raises_chosen_and_lowers_rejected_rewards(method: Objective) -> None:
    """The sign that AMaPO B.1 and γ-PO Table 6 have wrong."""
    chosen, rejected = [0.5, -1.0, 2.0], [0.2, 1.5, -0.5]
    for _ in range(20):
        pairs = ratios(chosen, rejected, ([0.3, -0.2, 0.4], [0.1, 0.2, 0.3]))
        loss = loss_of(method, pairs)
        loss.backward()
        sides = pairs.policy.chosen.summed, pairs.policy.rejected.summed
        moved = []
        for side in sides:
            assert side.grad is not None
            moved.append((side.detach() + 20 - 100 * side.grad).tolist())
        assert all(new > old for new, old in zip(moved[0], chosen, strict=True))
        assert all(new < old for new, old in zip(moved[1], rejected, strict=True))
        chosen, rejected = moved


@pytest.mark.parametrize("method", [KTO, SWAPPED])
def test_nothing_flows_through_the_points(method: Objective) -> None:
    """Autograd equals finite differences with the points held fixed, and differs from those with them moving."""
    # otherwise what the point does to one side nearly cancels what it does to the other
    method = replace(method, link=Prospect(lambda_chosen=3.0))
    pairs = ratios([0.5, -1.0, 2.0], [1.2, 1.5, -0.5], ([0.3, -0.2, 0.4], [0.1, 0.2, 3.0]))
    assert pairs.mismatched is not None
    mismatched = replace(pairs.mismatched, rejected=pairs.policy.rejected)
    pairs = replace(pairs, mismatched=mismatched)
    terms, _ = method.terms(pairs, {})
    totals = WindowTotals(3, 0)
    method.loss(pairs, terms, totals).backward()
    gradient = pairs.policy.rejected.summed.grad
    assert gradient is not None
    largest = 0.0
    for index in range(3):
        held, moving = [], []
        for sign in (1, -1):
            values = pairs.policy.rejected.summed.detach().clone()
            values[index] += sign * 1e-5
            policy = replace(pairs.policy, rejected=replace(pairs.policy.rejected, summed=values))
            # the mismatched forward is made with the same weights: let it drift with them
            drift = replace(mismatched, rejected=replace(mismatched.rejected, summed=values))
            moved = replace(pairs, policy=policy, mismatched=drift)
            held.append(method.loss(moved, terms, totals).item())
            moving.append(method.loss(moved, method.terms(moved, {})[0], totals).item())
        assert (held[0] - held[1]) / 2e-5 == pytest.approx(gradient[index].item(), abs=1e-9)
        largest = max(largest, abs((moving[0] - moving[1]) / 2e-5 - gradient[index].item()))
    assert largest > 1e-4, "the test would not notice a gradient through the points"


def test_large_rewards_are_finite() -> None:
    rewards = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    losses = Prospect()(PairRewards(rewards, -rewards), torch.zeros(3))
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0, 1, 0.5])
    assert rewards.grad is not None
    assert torch.isfinite(rewards.grad).all()


def test_needs() -> None:
    assert KTO.needs == Needs(rejected=True, reference=True, mismatched=True, statistics="forward")
    assert objective(target=MismatchedPoint(statistics=4)).needs.statistics == 4
    assert not SWAPPED.needs.mismatched


@pytest.mark.parametrize(("name", "value"), [("lambda_chosen", 0.0), ("lambda_rejected", -1.0)])
def test_a_side_that_would_not_count_is_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name}={value}"):
        Prospect(**{name: value})


def test_two_points_are_refused_by_a_link_that_reads_one() -> None:
    with pytest.raises(UserError, match=r"SwappedPoint gives .* link=Logistic .*Prospect"):
        objective(target=SwappedPoint(), link=Logistic())
    one = objective(target=MismatchedPoint(), link=Logistic())
    pairs = ratios([4.0], [-1.0], ([3.0], [1.0]))
    assert loss_of(one, pairs).item() == pytest.approx(math.log1p(math.exp(-(0.5 - 0.2)))), "one point serves any link"


def of_tokens(*rows: list[float]) -> ResponseLogProbs:
    """Responses of these log-probs, each after two tokens that are not supervised."""
    time = 2 + max(map(len, rows))
    table = torch.tensor([[0.0, 0.0, *row] + [0.0] * (time - 2 - len(row)) for row in rows], dtype=torch.float64)
    counts = torch.tensor([float(len(row)) for row in rows], dtype=torch.float64)
    return ResponseLogProbs(table.sum(1), counts, table.requires_grad_())


TOKENS = ([-0.5, -1.25, -0.25], [-3.0], [])


@pytest.mark.parametrize("alpha", [0.5, 0.25, -0.5])
def test_shaped_tokens_by_hand(alpha: float) -> None:
    found = AlphaShapedTokens(beta=2.0, alpha=alpha)(of_tokens(*TOKENS), None)
    expected = [2 * sum((math.exp(alpha * x) - 1) / alpha for x in row) / max(len(row), 1) for row in TOKENS]
    assert found.tolist() == pytest.approx(expected, abs=1e-14)


def test_shaped_tokens_without_shape_are_the_average() -> None:
    responses = of_tokens(*TOKENS)
    average = AverageLogProb(beta=2.0)(responses, None).tolist()
    assert AlphaShapedTokens(beta=2.0, alpha=0.0)(responses, None).tolist() == pytest.approx(average, abs=1e-15)
    assert AlphaShapedTokens(beta=2.0, alpha=1e-7)(responses, None).tolist() == pytest.approx(average, abs=1e-5)


def test_gradient_of_a_shaped_token_is_its_own() -> None:
    """d r/d log π_t = β/|y| · π_t^α: an improbable token moves less than a probable one of the same response."""
    responses = of_tokens(*TOKENS)
    AlphaShapedTokens(beta=2.0, alpha=0.5)(responses, None).sum().backward()
    assert responses.per_token is not None
    gradient = responses.per_token.grad
    assert gradient is not None
    assert gradient[0, 2:5].tolist() == pytest.approx([2 / 3 * math.exp(0.5 * x) for x in TOKENS[0]], abs=1e-15)


@pytest.mark.skipif(not SHARED.exists(), reason="the vectors of the development folder are not here; see by hand")
def test_shaped_tokens_are_those_of_the_vectors() -> None:
    vectors = json.loads(SHARED.read_text())["extra"]["alphapo_gappo_token_form"]
    assert len(vectors) == 3
    for vector in vectors:
        beta = vector["beta"]
        chosen, rejected = (of_tokens(*(pair[side] for pair in vector["tokens"])) for side in ("w", "l"))
        reward = AlphaShapedTokens(beta=beta, alpha=vector["alpha"])
        assert reward(chosen, None).tolist() == pytest.approx([beta * value for value in vector["r_w"]], rel=1e-12)
        method = objective(reward=reward, target=Constant(beta, vector["gamma"]), link=Logistic())
        loss = loss_of(method, PairInputs(PairLogProbs(chosen, rejected)))
        assert loss.item() == pytest.approx(sum(vector["loss"]) / len(vector["loss"]), rel=1e-9)


def demonstrations() -> PairInputs:
    chosen = ResponseLogProbs(torch.tensor([-9.0, -7.0]), torch.tensor([4.0, 3.0]))
    prompt = ResponseLogProbs(torch.tensor([-10.0, -6.0]), torch.tensor([5.0, 2.0]))
    return PairInputs(PairLogProbs(chosen, chosen, prompt))


def test_nll_over_prompt_and_chosen_is_a_mean_over_all_their_tokens() -> None:
    term = NegativeLogLikelihood(coefficient=0.5, normalization="prompt_and_chosen")
    method = objective(link=NoPreference(), regularizer=term)
    pairs, totals = demonstrations(), WindowTotals(pairs=2, chosen_tokens=7, prompt_tokens=7)
    terms, _ = objective(link=NoPreference(), target=Constant(1.0, 0.0), reward=AverageLogProb(1.0)).terms(pairs, {})
    assert method.loss(pairs, terms, totals).item() == pytest.approx(0.5 * (9 + 7 + 10 + 6) / 14)
    cut = [method.loss(pairs[index : index + 1], terms[index : index + 1], totals).item() for index in range(2)]
    assert sum(cut) == pytest.approx(0.5 * 32 / 14), "forwards of the window add up"


def test_prompts_are_asked_for_by_that_normalization_alone() -> None:
    assert NegativeLogLikelihood(normalization="prompt_and_chosen").needs == Needs(prompt=True)
    assert NegativeLogLikelihood(normalization="token_mean").needs == Needs()
