"""What a run trains: all parameters, feed-forward projections alone, or adapters; the rest stays bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, get_scheduler

from src.config import compose_train
from src.data.collate import collate
from src.data.reference import weights_hash
from src.engine.optimizer import optimizer_and_schedule, rate_factor, warmup_steps
from src.errors import UserError
from src.model.adapter import adapters_off, add_adapter, base_state, merge_adapter, save_weights, tuned_layers
from src.model.load import build_model, read_model
from src.model.logps import pair_log_probs
from src.model.trainable import Share, select_trainable, trained_share
from src.planner.shape import parameter_share
from src.schema import ModelConfig, TrainConfig
from src.training import run as runs
from src.training.assemble import build_objective
from tests.entry import call
from tests.support import SMALL_RUN, metrics, places

WIDTH, INNER, WORDS = 8, 12, 20
COMMON = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 2, "vocab_size": WORDS}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
GATED = 2 * 3 * WIDTH * INNER
"""Gate, up and down of two blocks."""

ARCHITECTURES: dict[str, tuple[dict[str, Any], int]] = {
    "llama": (COMMON | HEADS, GATED),
    "mistral": (COMMON | HEADS, GATED),
    "qwen2": (COMMON | HEADS | {"tie_word_embeddings": True}, GATED),
    "gemma2": (COMMON | HEADS | {"head_dim": 4}, GATED),
    "gpt_neox": (COMMON | {"num_attention_heads": 2}, 2 * (2 * WIDTH * INNER + WIDTH + INNER)),
}
"""Tiny ones, and how many parameters their feed-forward projections have (GPT-NeoX's have biases)."""


def tiny(kind: str, values: dict[str, Any]) -> PreTrainedModel:
    return build_model(
        ModelConfig(name=kind, attention="eager", architecture={"model_type": kind, **values}), None, WORDS, 0
    )


def configured(tmp_path: Path, *more: str) -> TrainConfig:
    return compose_train([*SMALL_RUN, *places(tmp_path), *more])


def trained(config: TrainConfig) -> Path:
    assert runs.train(config) == 0
    return runs.planned_directory(config)


def initial_weights(config: TrainConfig, folder: Path) -> dict[str, torch.Tensor]:
    """Weights of a run before its first step."""
    folder.mkdir()
    loop = runs.assemble(folder, config, build_objective(config), runs.Base())
    return {name: value.clone() for name, value in loop.engine.model.state_dict().items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_feed_forward_projections_are_found_and_nothing_else(kind: str) -> None:
    values, count = ARCHITECTURES[kind]
    model = tiny(kind, values)
    select_trainable(model, "mlp")
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".mlp." in name and "norm" not in name for name in found)
    assert trained_share(model) == Share(count, sum(p.numel() for p in model.parameters()))
    assert not model.get_input_embeddings().weight.requires_grad
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert not head.weight.requires_grad


@pytest.mark.parametrize(
    ("kind", "values", "inside"),
    [
        ("opt", COMMON | {"num_attention_heads": 2, "ffn_dim": 12, "word_embed_proj_dim": 8}, "fc1, fc2"),
        ("gpt2", {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": WORDS}, "mlp"),
    ],
)
def test_an_architecture_without_them_is_refused(kind: str, values: dict[str, Any], inside: str) -> None:
    with pytest.raises(
        UserError, match=f"model.trainable=mlp: the blocks of a {kind} model .*{inside}.*use model.trai"
    ):
        select_trainable(tiny(kind, values), "mlp")


def test_shares_by_hand(tmp_path: Path) -> None:
    """One block of width 32, 48 inside, 300 tokens, tied; LoRA adds r·(inputs + outputs) for each of seven matrices."""
    everything = 300 * 32 + 4 * 32 * 32 + 3 * 32 * 48 + 3 * 32
    adapters = 4 * (4 * (32 + 32) + 3 * (32 + 48))
    expected = {
        "model.trainable=full": Share(everything, everything),
        "model.trainable=mlp": Share(3 * 32 * 48, everything),
        "adapter=lora": Share(adapters, everything + adapters),
    }
    for key, share in expected.items():
        config = configured(tmp_path, "method=simpo", key, *(["adapter.r=4"] if "lora" in key else []))
        assert parameter_share(config, 300) == share, key
    assert str(Share(1, 3)) == "1 of 3 parameters (33.33 %)"


def test_published_share_of_gappo() -> None:
    """GapPO section 3.5 says 63.5 % of Qwen2.5-0.5B."""
    share = parameter_share(compose_train(["method=simpo", "model=qwen2_5_0_5b_instruct", "model.trainable=mlp"]), None)
    assert share == Share(24 * 3 * 896 * 4864, 494_032_768)
    assert "(63.52 %)" in str(share)


def test_mlp_leaves_all_else_bit_identical(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, "method=dpo", "model.trainable=mlp", "training.weight_decay=0.1")
    before = initial_weights(config, tmp_path / "start")
    directory = trained(config)
    after = load_file(directory / "checkpoints" / "last" / "model" / "model.safetensors")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert len(after) > len(changed)
    assert "training 4,608 of " in capsys.readouterr().err
    said = json.loads((directory / "model.json").read_text())
    assert said["trained"] == 4608
    assert said["trained_share"] == 4608 / said["parameters"]


# --- LoRA -------------------------------------------------------------------------------------------------------------


def lora(tmp_path: Path, *more: str) -> TrainConfig:
    return configured(tmp_path, "adapter=lora", "adapter.r=4", "training.learning_rate=1e-2", *more)


def test_lora_trains_adapters_beside_an_untouched_base(tmp_path: Path) -> None:
    config = lora(tmp_path, "method=dpo")
    before = initial_weights(config, tmp_path / "start")
    directory = trained(config)
    model = read_model(config.model, str(directory / "checkpoints" / "last" / "model"))
    base = {name.replace(".base_layer.", "."): value for name, value in before.items() if "lora" not in name}
    assert base.keys() == base_state(model).keys()
    assert all(torch.equal(value, base[name]) for name, value in base_state(model).items())
    learned = [value for name, value in model.state_dict().items() if "lora_B" in name]
    assert len(learned) == 7
    assert all(value.abs().sum() > 0 for value in learned)
    lines = metrics(directory, "validation")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["rewards/margins"] == 0, "policy and reference agree before the first step, bit for bit"


def test_lora_has_the_reference_of_a_full_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The store is named by the base's weights and holds the base's log-probs, whatever the adapter has learned."""
    trained(configured(tmp_path, "method=dpo", "training.max_steps=1"))
    assert "computing those of" in capsys.readouterr().err
    trained(lora(tmp_path, "method=dpo", "training.max_steps=1"))
    assert "computing those of" not in capsys.readouterr().err
    stores = sorted((tmp_path / "cache" / "reference").iterdir())
    full = [load_file(store) for store in stores]
    for store in stores:
        store.unlink()
    config = lora(tmp_path, "method=dpo", "training.max_steps=2")
    (tmp_path / "run").mkdir()
    loop: Any = runs.assemble(tmp_path / "run", config, build_objective(config), runs.Base())
    with torch.no_grad():
        for layer in tuned_layers(loop.engine.model).values():
            layer.lora_B["default"].weight.fill_(0.1)
    for store in stores:
        store.unlink()
    data, _ = runs.run_data(config, loop.objective)
    weights = runs.weights_hash(runs.base_state(loop.engine.model))
    runs.with_references(loop.loader, loop.engine, data, config, weights)
    assert sorted((tmp_path / "cache" / "reference").iterdir()) == stores
    for store, values in zip(stores, full, strict=True):
        assert all(torch.equal(value, values[name]) for name, value in load_file(store).items())


@pytest.mark.parametrize("method", ["sft", "orpo", "kto", "ipo", "gradnorm_reweight"])
def test_methods_of_every_kind_learn_with_adapters(method: str, tmp_path: Path) -> None:
    """Demonstrations, prompts' log-probs, mismatched pairs with their reference, a reference alone, perturbation."""
    lines = metrics(trained(lora(tmp_path, f"method={method}", "training.max_steps=4")), "validation")
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize("part", ["adapter=lora", "model.trainable=mlp"])
def test_recomputed_activations_give_the_same_steps(part: str, tmp_path: Path) -> None:
    """Gradient checkpointing passes gradients through frozen layers too."""
    found = []
    for kept in ("false", "true"):
        more = [part, f"model.gradient_checkpointing={kept}", "training.max_steps=4"]
        found.append(
            [line["grad_norm"] for line in metrics(trained(configured(tmp_path, "method=dpo", *more)), "train")]
        )
    assert min(found[0]) > 0
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_adapters_can_be_off_merged_and_saved(tmp_path: Path) -> None:
    config = lora(tmp_path, "method=simpo", "training.max_steps=2")
    directory = trained(config)
    folder = directory / "checkpoints" / "last" / "model"
    data, _ = runs.run_data(config, build_objective(config))
    batch = collate([data.train[index] for index in range(4)])

    def scores(model: PreTrainedModel) -> torch.Tensor:
        with torch.no_grad():
            return pair_log_probs(model, batch).chosen.summed

    model = read_model(config.model, str(folder))
    base = read_model(config.model, str(directory / "base"))
    tuned = scores(model)
    with adapters_off(model):
        assert torch.equal(scores(model), scores(base))
        assert weights_hash(base_state(model)) == weights_hash(base.state_dict())
    assert torch.equal(scores(model), tuned)
    assert not torch.equal(tuned, scores(base))
    by_transformers = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(scores(by_transformers), tuned)
    merge_adapter(model)
    assert model.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(scores(model), tuned)
    save_weights(model, tmp_path / "merged")
    assert torch.equal(scores(read_model(config.model, str(tmp_path / "merged"))), scores(model))


def test_a_run_may_start_from_an_adapter(tmp_path: Path) -> None:
    first = trained(lora(tmp_path, "method=simpo", "training.max_steps=2")) / "checkpoints" / "last" / "model"
    start = ["model.init=pretrained", f"model.path={first}", "training.max_steps=2"]
    full = trained(configured(tmp_path, "method=dpo", *start))
    again = trained(lora(tmp_path, "method=dpo", *start))
    assert metrics(full, "validation")[0] == metrics(again, "validation")[0]
    model = read_model(configured(tmp_path, "method=dpo").model, str(again / "checkpoints" / "last" / "model"))
    assert len(tuned_layers(model)) == 7


def test_ranking_of_an_adapter_agrees_with_its_validation(tmp_path: Path) -> None:
    """The checkpoint is put on its base, and the base is the reference."""
    directory = trained(lora(tmp_path, "method=dpo"))
    outcome = call(
        "src.evaluation.ranking",
        f"checkpoint={directory}",
        "which=last",
        f"records_root={tmp_path}",
        "device=cpu",
        f"output_root={tmp_path}",
    )
    assert outcome.code == 0, outcome.err
    record = json.loads(next(tmp_path.glob("ranking__*.json")).read_text())
    assert record["metrics"]["accuracy/reward"]["value"] == metrics(directory, "validation")[-1]["rewards/accuracies"]


def test_an_adapter_whose_base_is_gone(tmp_path: Path) -> None:
    config = lora(tmp_path, "method=simpo", "training.max_steps=1")
    directory = trained(config)
    (directory / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"holds an adapter, whose base is {directory}/base .*put the base back there"):
        read_model(config.model, str(directory / "checkpoints" / "last" / "model"))


def test_initial_adapter_depends_on_the_seed_alone(tmp_path: Path) -> None:
    config, states = lora(tmp_path, "method=simpo"), []
    for seed in (0, 0, 1):
        model = tiny("llama", COMMON | HEADS)
        torch.rand(3)
        add_adapter(model, config.adapter, seed)
        states.append({name: value for name, value in model.state_dict().items() if "lora_A" in name})
    assert len(states[0]) == 14
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not any(torch.equal(value, states[2][name]) for name, value in states[0].items())


# --- optimizer --------------------------------------------------------------------------------------------------------


def test_rmsprop_takes_the_step_of_its_formula(tmp_path: Path) -> None:
    config = configured(
        tmp_path, "method=simpo", "training.optimizer=rmsprop", "training.rmsprop_alpha=0.9", "training.warmup_steps=0",
        "training.scheduler=constant",
    )  # fmt: skip
    model = tiny("llama", COMMON | HEADS)
    optimizer, _ = optimizer_and_schedule(model, config.training, 10)
    weight: Any = model.get_input_embeddings().weight
    before, gradient = weight.detach().clone(), torch.randn_like(weight)
    weight.grad = gradient.clone()
    optimizer.step()
    expected = before - 1e-3 * gradient / ((0.1 * gradient**2).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected)


def test_warm_up_by_steps_takes_the_place_of_the_share(tmp_path: Path) -> None:
    by_share = configured(tmp_path, "method=simpo").training
    by_steps = configured(tmp_path, "method=simpo", "training.warmup_steps=4", "training.scheduler=constant").training
    assert (warmup_steps(by_share, 25), warmup_steps(by_steps, 25)) == (3, 4)
    optimizer, schedule = optimizer_and_schedule(tiny("llama", COMMON | HEADS), by_steps, 25)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 7), (3, 11), (5, 5), (9, 4)])
def test_rates_are_those_of_transformers(kind: str, warmup: int, total: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    theirs = get_scheduler({"constant": "constant_with_warmup"}.get(kind, kind), optimizer, warmup, total).lr_lambdas[0]
    ours = [rate_factor(step, kind=kind, warmup=warmup, total=total) for step in range(total + 2)]
    assert ours == [theirs(step) for step in range(total + 2)]


def test_a_run_with_rmsprop_learns(tmp_path: Path) -> None:
    config = configured(tmp_path, "method=simpo", "training.optimizer=rmsprop", "training.warmup_steps=2")
    lines = metrics(trained(config), "validation")
    assert lines[-1]["loss"] < lines[0]["loss"]
