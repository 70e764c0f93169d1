"""Split masters and 8-bit moments in the engine: training, perturbing, saving, resuming, refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from src.config import compose_train, config_hash
from src.engine.chunked_adamw import ChunkedAdamW
from src.engine.local import LocalEngine
from src.engine.split_master import low_half, master_of
from src.errors import Problems, UserError
from src.objective.objective import Objective
from src.objective.perturbations import AnchorProbe, NoPerturbation, Sharpness
from src.objective.targets import Constant
from src.training.probe import probe_parameters
from src.training.step import training_step
from tests.unit.probe_tools import TRAINING, objective, tiny, window

SIMPO = objective(target=Constant(2.0, 0.5), perturbation=NoPerturbation())
SPLIT = {"master": "split", "learning_rate": 1e-3, "weight_decay": 0.01, "scheduler": "cosine", "max_grad_norm": 1.0}


def engine(tied: bool = False, **given: Any) -> LocalEngine:
    model = tiny(tied).float()
    # moments of small parameters stay float32, and all of this model's are small
    return LocalEngine(model, replace(TRAINING, **given), 10, "cpu", "bfloat16")


def trained(one: LocalEngine, steps: Sequence[int], method: Objective = SIMPO) -> None:
    for step in steps:
        training_step(one, method, {}, window((2, 4) if step % 2 else (6,)), 1.0)


def masters(one: LocalEngine) -> dict[str, Tensor]:
    return {name: master_of(p) if low_half(p) is not None else p.detach() for name, p in one.model.named_parameters()}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.engine.chunked_adamw.SMALLEST", 64)


def test_the_forward_reads_bfloat16_and_buffers_keep_their_type() -> None:
    one = engine(**SPLIT)
    assert {p.dtype for p in one.model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in one.model.buffers()} == {torch.float32}, "rounded, positions would be others"
    assert all(torch.equal(value, tiny().float().state_dict()[name]) for name, value in masters(one).items())
    assert isinstance(one.optimizer, ChunkedAdamW)
    assert type(engine().optimizer) is torch.optim.AdamW


@pytest.mark.parametrize("gradients", ["float32", "bfloat16"])
def test_a_step_is_that_of_adamw_on_float32_masters(gradients: str) -> None:
    """Same gradients, clipped alike; then torch's fused AdamW on float32 weights."""
    one = engine(**SPLIT, gradients=gradients)
    usual = [torch.nn.Parameter(value.clone()) for value in masters(one).values()]
    decayed = [{"params": [p for p in usual if p.ndim >= 2]}, {"params": [p for p in usual if p.ndim < 2]}]
    theirs = torch.optim.AdamW(decayed, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, fused=True)
    theirs.param_groups[1]["weight_decay"] = 0.0
    for step in range(4):
        for batch in window((2, 4)):
            one.backward(-one.log_probs(batch).chosen.summed.mean())
        norm, exact = one.gradient_norm(), torch.cat([p.grad.double().view(-1) for p in one.model.parameters()]).norm()  # type: ignore[union-attr]
        assert norm.dtype is torch.float32
        assert norm.item() == pytest.approx(exact.item(), rel=1e-5)
        for parameter, reference in zip(one.model.parameters(), usual, strict=True):
            assert parameter.grad is not None
            assert parameter.grad.dtype is getattr(torch, gradients)
            reference.grad = parameter.grad.float()
        theirs.param_groups[0]["lr"] = theirs.param_groups[1]["lr"] = one.learning_rate()
        theirs.step()
        one.clip_and_step(norm, 1e9)
        assert all(map(torch.equal, masters(one).values(), (p.detach() for p in usual))), step


@pytest.mark.parametrize(("kind", "tied"), [("split", False), ("int8", False), ("both", True)])
def test_resumed_equals_uninterrupted(kind: str, tied: bool, tmp_path: Path) -> None:
    given = {**SPLIT, "master": "float32" if kind == "int8" else "split"}
    given["moments"] = "float32" if kind == "split" else "int8"
    whole, stopped = engine(tied, **given), engine(tied, **given)
    trained(whole, range(5))
    trained(stopped, range(3))
    stopped.save_model(tmp_path / "model")
    torch.save(stopped.training_state(), tmp_path / "trainer.pt")
    written, saved = load_file(tmp_path / "model" / "model.safetensors"), masters(stopped)
    assert all(torch.equal(value, saved[name]) for name, value in written.items())
    assert len(written) == len(saved)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "float32"
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(read[name], value) for name, value in saved.items())
    resumed = engine(tied, **given)
    resumed.load(tmp_path, torch.load(tmp_path / "trainer.pt", weights_only=True))
    assert all(map(torch.equal, masters(resumed).values(), saved.values()))
    trained(resumed, range(3, 5))
    assert all(map(torch.equal, masters(resumed).values(), masters(whole).values()))
    assert not all(map(torch.equal, masters(resumed).values(), saved.values()))
    first, second = resumed.optimizer.state_dict()["state"], whole.optimizer.state_dict()["state"]
    assert all(
        torch.equal(torch.as_tensor(first[k][n]), torch.as_tensor(v)) for k in second for n, v in second[k].items()
    )


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    one = engine(**SPLIT)
    with pytest.raises(UserError, match=r"lack model\.embed_tokens\.weight; give the model that they were saved from"):
        one.load(tmp_path, {})


def test_8_bit_moments_learn_as_float32_ones() -> None:
    losses = {}
    for moments in ("float32", "int8"):
        one = engine(**{**SPLIT, "scheduler": "constant", "moments": moments, "learning_rate": 3e-3})
        trained(one, range(40))
        kinds = {state["exp_avg"].dtype for state in one.optimizer.state.values()}
        assert (torch.int8 in kinds) is (moments == "int8")
        losses[moments] = float(training_step(one, SIMPO, {}, window(), 1.0).loss)
    start = float(training_step(engine(**SPLIT), SIMPO, {}, window(), 1.0).loss)
    assert losses["float32"] < 0.5 * start
    assert losses["int8"] == pytest.approx(losses["float32"], abs=0.05 * start)


def test_a_perturbation_moves_what_the_forward_reads_and_says_how_much_of_it_arrived() -> None:
    one = engine(**SPLIT)
    before = {name: parameter.detach().clone() for name, parameter in one.model.named_parameters()}
    lower = [low_half(p).clone() for p in one.model.parameters()]  # type: ignore[union-attr]
    for rho, fate in ((30.0, "arrives"), (1e-4, "is lost")):
        trained_gradient(one)
        gradients = {name: p.grad.clone() for name, p in one.model.named_parameters() if p.grad is not None}
        scale = rho / one.gradient_norm()
        with one.perturbed(scale, "full") as applied:
            moved = dot = 0.0
            for name, parameter in one.model.named_parameters():
                change, intended = parameter.detach().double() - before[name].double(), gradients[name].double() * scale
                moved, dot = moved + float((change * intended).sum()), dot + float(intended.square().sum())
        assert float(applied) == pytest.approx(moved / dot, rel=1e-3)
        assert (float(applied) > 0.99) if fate == "arrives" else (float(applied) < 0.5)
        assert all(torch.equal(before[name], p) for name, p in one.model.named_parameters())
        assert all(map(torch.equal, lower, (low_half(p) for p in one.model.parameters())))  # type: ignore[arg-type]


def trained_gradient(one: LocalEngine) -> None:
    """Leave a gradient in the engine."""
    one.backward(-one.log_probs(window()[0]).chosen.summed.mean())


def test_a_perturbation_that_rounding_swallows_is_refused() -> None:
    one = engine(**SPLIT)
    with pytest.raises(UserError, match=r"of the perturbation survives rounding .*method.probe=first_order"):
        probe_parameters(one, objective(perturbation=AnchorProbe(1e-4, "window")), window())
    with pytest.raises(UserError, match="survives rounding"):
        trained(one, [0], objective(target=Constant(2.0, 0.5), perturbation=Sharpness(1e-4)))
    found = probe_parameters(one, objective(perturbation=AnchorProbe(1e-4, "window", probe="first_order")), window())
    assert found is not None
    assert found.anchor_gaps is not None
    assert bool((found.anchor_gaps != 0).any()), "first order moves no weight"


BF16 = "model.dtype=bfloat16"
REFUSED = [
    (["training.master=split"], "training.master=split stores bfloat16 weights, which model.dtype=float32 contradicts"),
    (["training.gradients=bfloat16"], "training.gradients=bfloat16 needs bfloat16 weights"),
    (["training.master=bfloat16"], "bfloat16 weights without a master do not train at training.learning_rate="),
    (["training.master=none"], "rounding keeps 8 % of it"),
    (["training.master=split", BF16, "adapter=lora"], "stores trained weights, which with adapter=lora are few"),
    (["training.master=split", BF16, "training.optimizer=rmsprop"], "split: this is how AdamW is stored"),
    (["training.moments=int8", "training.optimizer=rmsprop"], "training.moments=int8: this is how AdamW is stored"),
    (["training.moments=int8", "engine=fsdp2"], "engine=fsdp2 divides float32 masters and moments among its ranks"),
    (["training.master=split", BF16, "engine=zero3"], "engine=zero3 divides float32 masters and moments"),
    (["training.master=split", BF16, "engine=ddp"], "training.master=split with engine=ddp averages gradients"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=lambda value: " ".join(value) if len(value) < 4 else "")
def test_what_cannot_work_is_refused_with_the_reason(overrides: list[str], message: str) -> None:
    with pytest.raises(Problems) as refused:
        compose_train(["model=tiny", "method=simpo", *overrides])
    assert any(message in problem for problem in refused.value.problems), refused.value.problems


def test_defaults_keep_the_names_of_recorded_runs() -> None:
    usual = config_hash(compose_train(["method=simpo"]))
    explicit = [f"training.{key}=float32" for key in ("master", "gradients", "moments")]
    assert config_hash(compose_train(["method=simpo", *explicit])) == usual
    other = compose_train(["method=simpo", "training.moments=int8", "engine=ddp"])
    assert config_hash(other) != usual
    compose_train(["method=simpo", BF16, "training.master=split", "training.gradients=bfloat16", "engine=ddp"])
