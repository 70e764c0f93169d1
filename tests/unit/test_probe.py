"""Perturbations of the parameters, against gaps, norms and gradients computed by hand from full logits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from src.data.collate import collate
from src.data.pairset import TokenizedPair
from src.engine.perturb import scope_note
from src.errors import UserError
from src.objective.anchor import GradientNorm
from src.objective.links import Linear
from src.objective.perturbations import AnchorProbe, GradientNorms, Sharpness
from src.objective.targets import Constant, NoMargin
from src.training.groups import grouped
from src.training.probe import gaps_of_group, probe_parameters
from src.training.step import training_step, validate
from tests.unit.probe_tools import BETA, RHO, by_hand, engine, margins, objective, tiny, window

WHOLE, HALVES, EACH = [[0, 1, 2, 3, 4, 5]], [[0, 1, 2, 3], [4, 5]], [[index] for index in range(6)]


@pytest.mark.parametrize(("anchor_pairs", "groups"), [("window", WHOLE), (6, WHOLE), (4, HALVES), (1, EACH)])
@pytest.mark.parametrize("probe", ["perturb", "first_order"])
@pytest.mark.parametrize("scope", ["full", "lm_head"])
def test_gaps_are_those_computed_by_hand(anchor_pairs: Any, groups: Any, probe: Any, scope: Any) -> None:
    model = tiny()
    exact, first = by_hand(model, groups, scope == "lm_head")
    one = engine(model)
    for cuts in ((6,), (2, 2, 2), (1, 5)):
        method = objective(perturbation=AnchorProbe(RHO, anchor_pairs, scope, probe))
        found = probe_parameters(one, method, window(cuts))
        assert found is not None
        assert found.anchor_gaps is not None
        # Llama normalizes in float32 whatever the weights, so two ways of differentiating differ by its rounding
        wanted, rounding = (exact, 1e-8) if probe == "perturb" else (first, 1e-6)
        assert torch.allclose(found.anchor_gaps, wanted, rtol=rounding, atol=1e-12), cuts
        assert all(parameter.grad is None for parameter in model.parameters()), "no gradient is left behind"


def test_first_order_gap_is_the_limit_of_the_exact_one() -> None:
    ratios = []
    for rho in (1e-2, 1e-3):
        gaps = [
            probe_parameters(engine(tiny()), objective(perturbation=AnchorProbe(rho, "window", probe=probe)), window())
            for probe in ("perturb", "first_order")
        ]
        exact, first = (one.anchor_gaps for one in gaps if one is not None)
        assert exact is not None
        assert first is not None
        ratios.append(float((exact - first).norm() / first.norm()))
    assert ratios[1] < ratios[0] / 5, "the difference falls with rho"


def test_update_is_the_weighted_margin_gradient() -> None:
    """The gradient of the step is −mean σ(γ − Gap_i)·∇m_i, and the reported loss −mean log σ(Gap_i − γ)."""
    model = tiny()
    gaps, _ = by_hand(model, HALVES)
    weights = torch.sigmoid(BETA * 0.5 - gaps)
    wanted = torch.autograd.grad(-(weights * margins(model, window())).mean(), list(model.parameters()))
    norm = math.sqrt(sum(float((part * part).sum()) for part in wanted))
    method = objective(perturbation=AnchorProbe(RHO, 4))
    output = training_step(engine(model), method, {}, window((3, 3)), 1e9)
    assert output.gradient_norm is not None
    assert output.gradient_norm.item() == pytest.approx(norm, rel=1e-9)
    assert output.loss.item() == pytest.approx(-torch.nn.functional.logsigmoid(gaps - 1).mean().item(), rel=1e-9)
    assert torch.allclose(output.pair_metrics["weight/gradient"], weights, rtol=1e-9)
    assert torch.allclose(output.pair_metrics["anchor/gap"], gaps, rtol=1e-9)
    assert torch.allclose(output.pair_metrics["anchor/applied"], torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("probe", ["perturb", "first_order"])
def test_released_direction_is_that_of_simpo_s_loss_scaled_by_squared_weights(probe: Any) -> None:
    """The authors' code: θ + ρ·θ²∘g/‖θ∘g‖ over all but the output layer, g the gradient of SimPO's loss."""
    model, rho = tiny(), 1e-3
    moving = [p for p in model.parameters() if p is not model.lm_head.weight]
    before = margins(model, window())
    ascent = torch.autograd.grad(torch.nn.functional.softplus(BETA * 0.5 - before).mean(), moving, retain_graph=True)
    norm = math.sqrt(sum(float((p.detach() * g).square().sum()) for p, g in zip(moving, ascent, strict=True)))
    moves = [rho * p.detach() ** 2 * g / norm for p, g in zip(moving, ascent, strict=True)]
    if probe == "first_order":
        own = [torch.autograd.grad(margin, moving, retain_graph=True) for margin in before]
        wanted = -torch.stack([sum((g * move).sum() for g, move in zip(gs, moves, strict=True)) for gs in own])  # type: ignore[misc]
    else:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, move in zip(
                [p for p in moved.parameters() if p is not moved.lm_head.weight], moves, strict=True
            ):
                parameter += move
            wanted = before - margins(moved, window())
    anchor = AnchorProbe(rho, "window", "backbone", probe, "released", BETA, 0.5)
    found = probe_parameters(engine(model), objective(perturbation=anchor), window((2, 4)))
    assert found is not None
    assert found.anchor_gaps is not None
    assert torch.allclose(found.anchor_gaps, wanted.detach(), rtol=1e-5, atol=1e-9)


def test_parameters_are_restored_bit_for_bit() -> None:
    model = tiny().float()
    before, one = copy.deepcopy(model.state_dict()), engine(model)
    with torch.no_grad():
        forward = one.log_probs(window()[0])
    probe_parameters(one, objective(), window((2, 4)))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        again = one.log_probs(window()[0])
    assert torch.equal(forward.chosen.summed, again.chosen.summed)


def test_parameters_are_restored_after_an_error() -> None:
    model = tiny().float()
    before, one = copy.deepcopy(model.state_dict()), engine(model)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)

    def broken() -> None:
        with one.perturbed(torch.tensor(0.1), "full"):
            assert not torch.equal(model.lm_head.weight, before["lm_head.weight"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_validation_gives_the_loss_of_training_and_moves_nothing() -> None:
    model = tiny()
    before, one = copy.deepcopy(model.state_dict()), engine(model)
    validated = validate(one, objective(), {}, window((3, 3)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    trained = training_step(one, objective(), {}, window((6,)), 1e9)
    # training differentiates in another order, and Llama normalizes in float32 whatever the weights
    assert validated.loss.item() == pytest.approx(trained.loss.item(), rel=1e-8)


def test_tied_head_moves_the_embedding_and_says_so() -> None:
    model = tiny(tied=True)
    one = engine(model)
    assert "tied to the input embedding" in scope_note(model, "lm_head")
    assert "tied" not in scope_note(tiny(), "lm_head")
    found = probe_parameters(one, objective(perturbation=AnchorProbe(RHO, "window", "lm_head")), window())
    assert found is not None
    assert found.anchor_gaps is not None
    exact, _ = by_hand(model, WHOLE, head_only=True)
    assert torch.allclose(found.anchor_gaps, exact, rtol=1e-8)


def test_frozen_parameters_do_not_move() -> None:
    model = tiny()
    model.lm_head.weight.requires_grad_(False)
    one = engine(model)
    assert "frozen ones stay" in scope_note(model, "full")
    with pytest.raises(UserError, match="nothing to perturb"):
        scope_note(model, "lm_head")
    seen: list[Tensor] = []
    log_probs = one.log_probs
    one.log_probs = lambda batch, **more: (  # type: ignore[method-assign]
        seen.append(model.lm_head.weight.clone()) or log_probs(batch, **more)
    )
    probe_parameters(one, objective(), window())
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])


def test_no_direction_no_gap() -> None:
    model = tiny()
    [batch] = window()
    same = replace(batch, layout=replace(batch.layout, input_ids=torch.zeros_like(batch.layout.input_ids)))
    rows = same.layout.supervised.clone()
    rows[6:] = rows[:6]
    same = replace(same, layout=replace(same.layout, supervised=rows, spans=same.layout.spans[:6] * 2))
    found = probe_parameters(engine(model), objective(), [same])
    assert found is not None
    assert found.anchor_gaps is not None
    assert found.anchor_gaps.tolist() == [0] * 6
    assert found.diagnostics["anchor/skipped"].tolist() == [1] * 6


def test_a_perturbation_lost_in_rounding_stops_the_run() -> None:
    """Weights from a bfloat16 checkpoint: a small displacement is rounded away by bfloat16 compute."""
    model = tiny().to(torch.bfloat16).float()
    small = objective(perturbation=AnchorProbe(1e-4, "window"))
    with pytest.raises(UserError, match=r"survives rounding.*first_order"):
        probe_parameters(engine(copy.deepcopy(model), "bfloat16"), small, window())
    first = objective(perturbation=AnchorProbe(1e-4, "window", probe="first_order"))
    found = probe_parameters(engine(copy.deepcopy(model), "bfloat16"), first, window())
    precise = probe_parameters(engine(model.double()), first, window())
    assert found is not None
    assert found.anchor_gaps is not None
    assert precise is not None
    assert precise.anchor_gaps is not None
    assert torch.allclose(found.anchor_gaps.double(), precise.anchor_gaps, rtol=0.1, atol=0.02 * RHO)


def test_gradient_norms_are_those_of_each_pair() -> None:
    model = tiny()
    method = objective(
        target=NoMargin(), link=Linear(), weight=GradientNorm(BETA, 0.5), perturbation=GradientNorms("full")
    )
    before = margins(model, window())
    norms, gradient = [], []
    for index in range(6):
        own = torch.autograd.grad(before[index], list(model.parameters()), retain_graph=True)
        norms.append(math.sqrt(sum(float((part * part).sum()) for part in own)))
        gradient.append(own)
    scaled = torch.tensor(norms, dtype=torch.float64)
    weights = torch.sigmoid(BETA * 0.5 - scaled / scaled.mean())
    output = training_step(engine(model), method, {}, window((4, 2)), 1e9)
    assert output.pair_metrics["weight/gradient_norm"].tolist() == pytest.approx(norms, rel=1e-9)
    assert torch.allclose(output.pair_metrics["weight/gradient"], weights, rtol=1e-9)
    assert output.loss.item() == pytest.approx(-(weights * before).mean().item(), rel=1e-9)


def test_sharpness_takes_the_gradient_at_the_worst_point_nearby() -> None:
    model = tiny()
    plain = {"target": Constant(BETA, 0.5), "perturbation": Sharpness(RHO)}

    def loss(of: Any) -> Tensor:
        return torch.nn.functional.softplus(BETA * 0.5 - margins(of, window())).mean()

    ascent = torch.autograd.grad(loss(model), list(model.parameters()))
    norm = math.sqrt(sum(float((part * part).sum()) for part in ascent))
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, part in zip(moved.parameters(), ascent, strict=True):
            parameter += RHO * part / norm
    wanted = torch.autograd.grad(loss(moved), list(moved.parameters()))
    at_start = loss(model).item()
    sizes = math.sqrt(sum(float((part * part).sum()) for part in wanted))
    output = training_step(engine(model), objective(**plain), {}, window((4, 2)), 1e9)
    assert output.gradient_norm is not None
    assert output.gradient_norm.item() == pytest.approx(sizes, rel=1e-9)
    assert output.gradient_norm.item() != pytest.approx(norm, rel=1e-4), "not the gradient at the start"
    assert output.loss.item() == pytest.approx(at_start, rel=1e-12), "the loss reported is the one at the weights"
    assert output.pair_metrics["anchor/applied"].tolist() == pytest.approx([1] * 6)


def test_sharpness_steps_from_where_the_weights_were() -> None:
    """With SGD-like arithmetic out of reach, compare with the same step of an engine whose gradient is set by hand."""
    model, other = tiny(), tiny()
    sharp = objective(target=Constant(BETA, 0.5), perturbation=Sharpness(RHO))
    training_step(engine(model), sharp, {}, window(), 1e9)
    by_hand_engine = engine(other)
    start = copy.deepcopy(other)

    def loss(of: Any) -> Tensor:
        return torch.nn.functional.softplus(BETA * 0.5 - margins(of, window())).mean()

    ascent = torch.autograd.grad(loss(start), list(start.parameters()))
    norm = math.sqrt(sum(float((part * part).sum()) for part in ascent))
    with torch.no_grad():
        for parameter, part in zip(start.parameters(), ascent, strict=True):
            parameter += RHO * part / norm
    for parameter, part in zip(
        other.parameters(), torch.autograd.grad(loss(start), list(start.parameters())), strict=True
    ):
        parameter.grad = part
    by_hand_engine.clip_and_step(by_hand_engine.gradient_norm(), 1e9)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-6)


def test_groups_follow_the_order_of_the_window_whatever_the_cut() -> None:
    for cuts in ((6,), (1, 5), (2, 2, 2)):
        names = [[name for batch in group for name in batch.ids] for group in grouped(window(cuts), 4)]
        assert names == [["p0", "p1", "p2", "p3"], ["p4", "p5"]]


def test_a_slice_of_a_batch_is_the_batch_of_the_slice() -> None:
    [batch] = window()
    part, model = batch[1:4], engine(tiny())
    with torch.no_grad():
        whole, cut = model.log_probs(batch), model.log_probs(part)
    assert torch.allclose(whole.rejected.summed[1:4], cut.rejected.summed, rtol=1e-12)
    assert (part.ids, len(part)) == (("p1", "p2", "p3"), 3)
    alone = collate([TokenizedPair(0, "p", [1, 2], [3], [4, 5], None, None, False)])
    assert part.chosen_tokens == sum(int(row.sum()) for row in batch.layout.supervised[1:4])
    assert (alone[:].tokens, alone[:].chosen_tokens, alone[:].prompt_tokens) == (alone.tokens, 1, 1)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: AnchorProbe(0.0, 8), "rho=0.0"),
        (lambda: AnchorProbe(0.05, 0), "anchor_pairs=0"),
        (lambda: Sharpness(-1.0), "rho=-1.0"),
        (lambda: GradientNorm(2.0, 0.5, "rho"), "give rho"),
        (lambda: GradientNorm(2.0, 0.5, "batch_mean", 0.05), "not read"),
        (lambda: objective(perturbation=Sharpness(0.05)), "reads anchor gaps"),
        (lambda: objective(target=NoMargin()), "no part reads"),
        (lambda: objective(target=NoMargin(), perturbation=GradientNorms()), "no part reads"),
    ],
)
def test_constants_and_rows_that_cannot_work_are_refused(build: Callable[[], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build()


def test_a_group_needs_no_more_than_its_pairs() -> None:
    """A direction taken over the window is not the one of its forwards."""
    one = engine(tiny())
    found = gaps_of_group(one, objective(), window(), AnchorProbe(RHO, "window"))
    parts = [gaps_of_group(one, objective(), [batch], AnchorProbe(RHO, 3)).gaps for batch in window((3, 3))]
    gaps = found.gaps
    assert gaps.shape == (6,)
    assert found.norm > 0
    assert float(found.applied) == pytest.approx(1)
    assert not torch.allclose(gaps, torch.cat(parts), rtol=1e-3)
