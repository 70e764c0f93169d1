"""Gradients made from one forward and backward once pairs' weights are known, against autograd and the plain path."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from src.engine.local import LocalEngine
from src.errors import UserError
from src.model.adapter import add_adapter
from src.model.packed import share_prefixes
from src.model.sketch import Sketcher, one_hot, random_signs, sketched
from src.model.tape import RECORDED, record, unrecordable, weighted_gradients
from src.model.trainable import select_trainable
from src.objective.objective import Objective
from src.objective.perturbations import AnchorProbe
from src.objective.regularizers import NegativeLogLikelihood
from src.schema import AdapterConfig
from src.training.deferred import units_of
from src.training.probe import probe_parameters
from src.training.step import training_step, validate
from src.training.stream import Products
from tests.methods import composed
from tests.unit.probe_tools import BETA, RHO, TRAINING, engine, objective, tiny, window

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def built(kind: str, tied: bool) -> Any:
    torch.manual_seed(0)
    more: dict[str, Any] = {} if kind == "gpt_neox" else {"num_key_value_heads": 1}
    more |= {"head_dim": 8} if kind in ("gemma2", "qwen3") else {}
    config = AutoConfig.for_model(kind, **SHAPE, **more, tie_word_embeddings=tied)
    return AutoModelForCausalLM.from_config(config).double().train()


def trained(model: Any) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def share(policy: Any, pairs: slice) -> Tensor:
    return objective().rewards(policy, None).margins.sum()


def differentiated(model: Any, factors: Tensor) -> list[Tensor]:
    """Gradients, flat, of Σ f_i·m_i by autograd for every row of ``factors`` [rows, 6]."""
    [batch] = window()
    margins = objective().rewards(engine(model).log_probs(batch), None).margins
    found = []
    for row in factors:
        own = torch.autograd.grad(row @ margins, trained(model), retain_graph=True, allow_unused=True)
        pairs = zip(own, trained(model), strict=True)
        found.append(torch.cat([(torch.zeros_like(one) if part is None else part).flatten() for part, one in pairs]))
    return found


def recorded(model: Any, *, summed: bool = False) -> Any:
    """A recording of the six pairs."""
    return record(model, window()[0], share, per_token=False, learning=True, summed=summed)[1]


def weighted(model: Any, recording: Any, factors: Tensor | None) -> Tensor:
    sums = {parameter: torch.zeros_like(parameter) for parameter in trained(model)}
    with torch.no_grad():
        for parameter, gradient in weighted_gradients(model, [recording], [factors]):
            sums[parameter] += gradient
    return torch.cat([value.flatten() for value in sums.values()])


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("kind", RECORDED)
@pytest.mark.parametrize("packed", [False, True])
def test_weighted_gradients_are_autograd_s(kind: str, packed: bool) -> None:
    factors = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64)
    model = built(kind, tied=packed)
    if packed:
        assert share_prefixes(model)
    assert unrecordable(model) is None
    wanted, of_sum = differentiated(model, torch.stack([factors, torch.ones_like(factors)]))
    # these layers normalize in float32 whatever the weights; GPT-NeoX's do not
    limit, recording = (1e-13 if kind == "gpt_neox" else 1e-6), recorded(model)
    assert apart(weighted(model, recording, factors), wanted) < limit
    assert apart(weighted(model, recording, None), of_sum) < limit
    assert apart(weighted(model, recorded(model, summed=True), None), of_sum) < limit
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("what", ["lora", "mlp", "chunks", "bias"])
def test_whatever_is_trained_is_weighted(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("gpt_neox" if what == "bias" else "llama", tied=False)
    if what == "lora":
        model = built("llama", tied=False).float()
        add_adapter(model, AdapterConfig(name="lora", r=2, alpha=4, target_modules="all-linear"), seed=0)
        model.double()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # 0 at the start, where the gradient of A vanishes
                torch.nn.init.normal_(parameter)
    elif what == "mlp":
        select_trainable(model, "mlp")
    elif what == "chunks":
        monkeypatch.setattr("src.model.tape_head.chunk_tokens", lambda *_: 5)
        monkeypatch.setattr("src.model.tape.entries", lambda _: 0)
    factors = torch.linspace(0.5, 2.0, 6, dtype=torch.float64)
    assert unrecordable(model) is None
    wanted, of_sum = differentiated(model, torch.stack([factors, torch.ones_like(factors)]))
    recording = recorded(model)
    assert (recording.head.residuals is None) == (what == "chunks")
    assert apart(weighted(model, recording, factors), wanted) < 1e-6
    assert apart(weighted(model, recording, None), of_sum) < 1e-6
    recording = recorded(model, summed=True)
    assert apart(weighted(model, recording, None), of_sum) < 1e-6
    assert not recording.gradients
    assert apart(weighted(model, recording, factors), wanted) < 1e-6


def test_residuals_are_kept_where_layers_leave_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.model.tape_head.chunk_tokens", lambda *_: 5)
    found = []
    for more in (0, -1):
        tokens = len(recorded(built("llama", tied=False)).head.labels)
        monkeypatch.setattr("src.model.tape.entries", lambda _, size=tokens * SHAPE["vocab_size"] + more: size)
        found.append(recorded(built("llama", tied=False)).head.residuals)
    assert found[0] is not None
    assert len(found[0]) == tokens
    assert found[1] is None


def test_what_cannot_be_recorded_is_named() -> None:
    model = tiny()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    assert "checkpointing" in str(unrecordable(model))
    other = tiny()
    other.config.model_type = "opt"
    assert "opt is none of llama" in str(unrecordable(other))
    layer = tiny()
    layer.model.norm = torch.nn.GroupNorm(1, 16)
    assert "GroupNorm" in str(unrecordable(layer))
    with pytest.raises(UserError, match=r"method.probe=sketch.*checkpointing.*probe=stream"):
        probe_parameters(engine(model), objective(perturbation=AnchorProbe(RHO, 6, probe="sketch")), window())
    assert units_of(engine(model), objective(), window()) is None


@cache
def method_of(name: str) -> Objective:
    windowed = ("amapo", "gamma_simpo", "beta_simpo")
    return composed(name, *(["statistics=window"] if name in windowed else []))


class Caught(LocalEngine):
    """An engine that shows the gradient of its step in place of making it."""

    def clip_and_step(self, gradient_norm: Tensor, max_norm: float) -> None:
        self.caught = torch.cat([p.grad.flatten() for p in trained(self.model) if p.grad is not None])
        self.discard_gradients()


def stepped(method: Objective, cuts: Sequence[int], kept: int, model: Any, dtype: str = "float32") -> tuple[Any, ...]:
    """Loss, gradient, metrics and state of a step."""
    one = Caught(model, TRAINING, 1, "cpu", dtype)
    one.kept_forwards = kept
    before = [parameter.detach().clone() for parameter in model.parameters()]
    batches = window(cuts)
    assert (units_of(one, method, batches) is not None) == (kept > 0)
    output = training_step(one, method, method.initial_state(), batches, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "restored bit for bit"
    return output.loss, one.caught, output.pair_metrics, output.state


def assert_alike(one: tuple[Any, ...], other: tuple[Any, ...], rounding: float) -> None:
    assert float(one[0]) == pytest.approx(float(other[0]), rel=rounding)
    assert apart(one[1], other[1]) < rounding
    assert one[2].keys() == other[2].keys()
    for name, values in other[2].items():
        assert torch.allclose(one[2][name], values.to(one[2][name]), rtol=rounding, atol=rounding), name
    assert repr(one[3]) == repr(other[3]) or one[3].keys() == other[3].keys()


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        *(("gapo", cuts) for cuts in ([6], [2, 4])),
        ("gapo_instance", [6]),
        ("gapo_lm_head", [3, 3]),
        ("gapo_released", [6]),
        *((name, [2, 4]) for name in ("amapo", "gamma_simpo", "beta_simpo")),
    ],
)
def test_a_step_without_a_second_forward_is_the_same_step(name: str, cuts: list[int]) -> None:
    method = method_of(name)
    model = tiny(tied=True).float()
    assert_alike(stepped(method, cuts, 9, model), stepped(method, cuts, 0, model), 1e-5)


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_groups_and_forwards_of_any_size(data: st.DataObject) -> None:
    first = data.draw(st.integers(1, 6))
    cuts = [first] if first == 6 else [first, *data.draw(st.sampled_from([[6 - first], [1] * (6 - first)]))]
    method = objective(perturbation=AnchorProbe(RHO, data.draw(st.integers(1, 6))))
    assert_alike(stepped(method, cuts, 6, tiny()), stepped(method, cuts, 0, tiny()), 1e-6)


def test_bfloat16_products_round_alike() -> None:
    method = objective(perturbation=AnchorProbe(2.0, "window"))
    kept, plain = (stepped(method, [6], kept, tiny().float(), "bfloat16") for kept in (1, 0))
    assert apart(kept[1], plain[1]) < 2e-2
    assert torch.allclose(kept[2]["anchor/gap"], plain[2]["anchor/gap"], rtol=0.1, atol=0.05)


def test_only_so_many_forwards_are_kept() -> None:
    one = engine(tiny())
    assert one.kept_forwards == 1
    assert units_of(one, objective(), window([6])) is not None
    assert units_of(one, objective(), window([3, 3])) is None
    halves = objective(perturbation=AnchorProbe(RHO, 3))
    found = units_of(one, halves, window([3, 3]))
    assert found is not None
    assert [[len(group) for group in unit] for unit in found] == [[1], [1]], "each half is weighed by itself"
    assert units_of(one, objective(regularizer=NegativeLogLikelihood(1.0)), window([6])) is None
    one.kept_forwards = 2
    assert units_of(one, objective(), window([3, 3])) is not None


def test_sketches_have_the_right_products_in_the_mean() -> None:
    model = tiny(tied=True)
    own, recording = differentiated(model, torch.eye(6, dtype=torch.float64)), recorded(model)
    gram, found, seeds = torch.stack(own) @ torch.stack(own).t(), torch.zeros(6, 6, dtype=torch.float64), 60
    for seed in range(seeds):
        with torch.no_grad():
            sketches = Sketcher(model, trained(model), 8, seed * 1000).of(recording)
        rows = torch.cat(list(sketches.values()), 1)
        found += rows @ rows.t() / seeds
    assert float((found - gram).abs().max() / gram.diagonal().max()) < 0.12
    large = Sketcher(model, trained(model), 512, 7).of(recording)
    rows = torch.cat([value.detach() for value in large.values()], 1)
    assert apart(rows @ rows.t(), gram) < 1e-6, "and no noise where no layer is wider"


def test_sketches_by_addition_and_by_product_are_one() -> None:
    torch.manual_seed(0)
    tokens, signs = torch.randn(5, 23, dtype=torch.float64), random_signs(23, 8, 1, torch.float64, torch.device("cpu"))
    assert torch.allclose(sketched(tokens, signs, 8), sketched(tokens, signs, 8, by_product=True), rtol=1e-14)
    assert torch.equal(sketched(torch.eye(23).to(tokens), signs, 8), one_hot(torch.arange(23), signs, 8))
    assert sketched(tokens, signs, 23) is tokens


@pytest.mark.parametrize("scope", ["full", "lm_head", "backbone"])
def test_sketched_gaps_are_near_the_slope_whatever_the_cut(scope: Any) -> None:
    def gaps(probe: Any, cuts: Sequence[int], size: int = 256) -> Tensor:
        anchor = AnchorProbe(RHO, "window", scope, probe, sketch_size=size)
        found = probe_parameters(engine(tiny()), objective(perturbation=anchor), window(cuts))
        assert found is not None
        assert found.anchor_gaps is not None
        return found.anchor_gaps

    exact, sketched = gaps("first_order", [6]), gaps("sketch", [6])
    assert apart(sketched.to(exact), exact) < 0.2
    assert torch.allclose(gaps("sketch", [2, 1, 3]), sketched, rtol=1e-5)
    method = objective(perturbation=AnchorProbe(RHO, "window", scope, "sketch"))
    kept, twice = (stepped(method, [4, 2], kept, tiny()) for kept in (2, 0))
    assert_alike(kept, twice, 1e-6)


def test_a_stream_weighs_each_pair_by_its_own_norm_and_what_came_before() -> None:
    """Against gradients by hand: what src/training/stream.py says, and an update that is exact for its weights."""
    model = tiny()
    own = torch.stack(differentiated(model, torch.eye(6, dtype=torch.float64)))
    products, wanted = Products(6), []
    for number in range(6):
        square, product = own[number] @ own[number], own[number] @ own[:number].sum(0)
        slope, norm = products.slope(square, product)
        wanted.append(RHO * slope / norm)
    gaps = torch.stack(wanted)
    direction = own.mean(0)
    assert float(gaps[-1]) == pytest.approx(float(RHO * own[-1] @ direction / direction.norm()), rel=1e-9)
    assert float(gaps[0]) == pytest.approx(float(RHO * own[0].norm() / 6**0.5), rel=1e-9), "its own norm alone"
    method = objective(perturbation=AnchorProbe(RHO, "window", probe="stream"))
    one = Caught(model, TRAINING, 1, "cpu", "float32")
    output = training_step(one, method, {}, window([2, 4]), 1.0)
    assert torch.allclose(output.pair_metrics["anchor/gap"].to(gaps), gaps, rtol=1e-5)
    weights = torch.sigmoid(BETA * 0.5 - gaps)
    assert apart(one.caught, -(weights[:, None] * own).mean(0)) < 1e-5
    validated = validate(one, method, {}, window([3, 3]))
    assert float(validated.loss) == pytest.approx(float(output.loss), rel=1e-6)


def test_a_stream_needs_no_kept_layer() -> None:
    model = tiny()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    method = objective(perturbation=AnchorProbe(RHO, 3, probe="stream"))
    plain, checked = (
        training_step(Caught(one, TRAINING, 1, "cpu", "float32"), method, {}, window([6]), 1.0)
        for one in (tiny(), model)
    )
    assert torch.allclose(plain.pair_metrics["anchor/gap"], checked.pair_metrics["anchor/gap"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"probe": "sketch", "fidelity": "released"}, "probe=sketch with fidelity=released"),
        ({"probe": "stale"}, "perturb, sketch, stream, first_order"),
        ({"probe": "sketch", "sketch_size": 0}, "sketch_size=0"),
    ],
)
def test_probes_that_cannot_work_are_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        AnchorProbe(RHO, 8, **more)


def test_a_stream_beside_statistics_is_refused() -> None:
    with pytest.raises(UserError, match=r"probe=stream weighs each pair before"):
        objective(perturbation=AnchorProbe(RHO, 8, probe="stream"), regularizer=NegativeLogLikelihood(1.0))
