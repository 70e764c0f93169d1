"""The planner's arithmetic, by hand: what engines hold and send, what methods cost, what is proposed."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from src.combinations import OFFLOAD
from src.config import CONF, compose_train
from src.model.trainable import Share
from src.objective.perturbations import AnchorProbe
from src.planner.engines import ENGINES, backward_buffers, forward_buffers, precision_of, sent, states_of
from src.planner.fit import Fit, alternatives, fit_of
from src.planner.gpus import GIB, GPUS, Gpu, usable
from src.planner.head import head_backward, head_forward
from src.planner.launch import launch_command
from src.planner.memory import memory_of, phases
from src.planner.roofline import forward_flops, step_time, units_of
from src.planner.shape import shape_of
from src.planner.sizes import INT8_MOMENTS, MethodWork, ModelShape, Perturbation, Rows, Setting
from src.planner.words import duration, verdict
from src.schema import PreflightConfig
from src.training.assemble import build_objective
from src.training.plan_sizes import Machines, kind_of, rows_of, setting_of, work_of

BILLION = 10**9
SHAPE = ModelShape(
    kind="llama",
    layers=10,
    hidden=1000,
    inner=4000,
    heads=10,
    query_width=1000,
    key_width=200,
    vocabulary=100_000,
    tied=False,
    capped_scores=False,
    capped_logits=False,
    eager=False,
    share=Share(BILLION, BILLION),
    block=80_000_000,
    linear=900_000_000,
    known=True,
)
ROWS = Rows(longest=500, response=200, tokens=800.0, supervised=300.0, both=True)
ONE = Setting("single", 1, 1, micro_batch=8, global_batch=64, checkpointing=False, bfloat16=True)
NOTHING = MethodWork()


def on(engine: str, nodes: int = 1, gpus: int = 4) -> Setting:
    return replace(ONE, engine=engine, nodes=nodes, gpus_per_node=gpus)


@pytest.mark.parametrize(
    ("setting", "weights", "gradients", "optimizer", "host"),
    [
        (ONE, 4.0, 4.0, 8.0, 0.0),
        (replace(ONE, moment_bytes=4.0), 4.0, 4.0, 4.0, 0.0),
        (replace(ONE, split=True, moment_bytes=INT8_MOMENTS, gradient_bytes=2.0), 4.0, 2.0, 2.03125, 0.0),
        (on("ddp"), 4.0, 4.0, 8.0, 0.0),
        (on("fsdp2"), 1.0, 1.0, 2.0, 0.0),
        (on("fsdp2", nodes=2), 0.5, 0.5, 1.0, 0.0),
        (on("zero2"), 2.0, 1.0, 3.0, 0.0),
        (on("zero3"), 0.5, 1.0, 3.0, 0.0),
        (replace(on("zero3"), bfloat16=False), 1.0, 1.0, 3.0, 0.0),
        (replace(on("zero2"), offload=True), 2.0, 0.0, 0.0, 4 * 4.0),
        (replace(on("fsdp2"), offload=True), 0.0, 0.0, 0.0, 4 * 4.0),
    ],
)
def test_bytes_a_parameter_of_every_engine(
    setting: Setting, weights: float, gradients: float, optimizer: float, host: float
) -> None:
    found = states_of(setting, SHAPE.share)
    per_parameter = [value / BILLION for value in (found.weights, found.gradients, found.optimizer, found.host)]
    assert per_parameter == [weights, gradients, optimizer, host]


def test_what_is_frozen_has_no_gradient_and_no_moments() -> None:
    found = states_of(on("zero2"), Share(BILLION // 10, BILLION))
    assert (found.weights, found.gradients, found.optimizer) == (2 * BILLION, BILLION // 10, 3 * BILLION // 10)


def test_every_engine_and_gpu_that_can_be_chosen_is_known() -> None:
    names = {path.stem.removesuffix(OFFLOAD) for path in (CONF / "engine").glob("*.yaml")}
    assert names == set(ENGINES)
    (choices,) = (spec.metadata["choices"] for spec in fields(PreflightConfig) if spec.name == "gpu")
    assert choices == ("all", *GPUS)


def test_weights_in_the_computing_type() -> None:
    """Casts of all matrices without sharding; outside the blocks and two blocks where weights are gathered."""
    assert [precision_of(setting) for setting in (ONE, on("ddp"), on("fsdp2"), replace(ONE, split=True))] == [
        *["autocast"] * 2,
        *["bfloat16"] * 2,
    ]
    assert forward_buffers(ONE, SHAPE) == 2 * SHAPE.linear
    assert backward_buffers(replace(ONE, checkpointing=True), SHAPE) == 2 * (SHAPE.head + SHAPE.block)
    rest = BILLION - 10 * SHAPE.block
    assert forward_buffers(on("fsdp2"), SHAPE) == 2 * (rest + 2 * SHAPE.block)
    assert forward_buffers(replace(on("fsdp2"), reshard=False), SHAPE) == 2 * BILLION
    assert forward_buffers(replace(on("zero2"), bucket_bytes=7), SHAPE) == 3 * 7
    assert backward_buffers(on("fsdp2"), SHAPE) > forward_buffers(on("fsdp2"), SHAPE)


def test_bytes_sent_in_a_step() -> None:
    """Of 4 ranks each sends 3/4 of what is gathered or scattered; as benchmarks/weak_scaling.py counts them."""
    counts = {"forwards": 5, "backwards": 3, "passes": 2}
    expected = {
        "single": 0.0,
        "ddp": 2 * 2 * 4.0,
        # blocks for every forward and backward, what lies outside them once for both, and for one pass ahead
        "fsdp2": (0.8 * (5 + 3) + 0.2 * (3 + 1)) * 2 + 3 * 4.0,
        # summed on all ranks; moved, put back and updated
        "zero2": 3 * 2 * 4 + 3 * 2.0,
        # of so small a model all stays gathered for the backward
        "zero3": 5 * 2 + 3 * 4.0,
    }
    for engine, bytes_each in expected.items():
        assert sent(on(engine), SHAPE, **counts) == pytest.approx(0.75 * bytes_each * BILLION), engine
    assert sent(replace(on("fsdp2"), reshard=False), SHAPE, **counts) == pytest.approx(0.75 * 20 * BILLION)
    large = replace(SHAPE, share=Share(8 * BILLION, 8 * BILLION))
    assert sent(on("zero3"), large, **counts) == pytest.approx(0.75 * ((5 * 8 + 3 * 7) * 2 + 3 * 8 * 4) * BILLION)


@pytest.mark.parametrize(
    ("work", "units"),
    [
        (NOTHING, 3.0),
        (MethodWork("anchor"), 3 + 1 + 3),
        (MethodWork("slopes"), 3 + 3.6 + 3),
        (MethodWork("norms"), 3 + 3),
        (MethodWork("sharpness"), 3 + 3),
        (MethodWork(mismatched=True), 4.0),
        (MethodWork(statistics=64), 4.0),
        (MethodWork(statistics=4), 3.0),
        (MethodWork(within_forward=True), 3.0),
    ],
)
def test_units_of_methods(work: MethodWork, units: float) -> None:
    body, head = units_of(SHAPE, work, ONE)
    assert body == pytest.approx(units)
    assert head == pytest.approx(units)
    trained = 1 if units < 6 else 2
    assert units_of(SHAPE, work, replace(ONE, checkpointing=True))[0] == pytest.approx(units + trained)


@pytest.mark.parametrize(
    ("perturbation", "held", "again"),
    [("anchor", 5.0, 7.0), ("sketch", 3.2, 5.2), ("stream", 3.0, 3.0), ("none", 3.0, 4.0)],
)
def test_what_is_kept_saves_a_second_forward(perturbation: Perturbation, held: float, again: float) -> None:
    """5/3 of a step in place of 7/3, as GAPO's plan says in words."""
    work = MethodWork(perturbation, statistics=64 if perturbation == "none" else 0, together=64, kept=8)
    assert units_of(SHAPE, work, ONE) == pytest.approx((held, held))
    for setting, other in (
        (ONE, replace(work, kept=7)),
        (replace(ONE, engine="fsdp2"), work),
        (replace(ONE, checkpointing=True), work),
    ):
        more = 0 if not setting.checkpointing else 1 if again < 5 else 2
        assert units_of(SHAPE, other, setting)[0] == pytest.approx(again + more)
    assert units_of(SHAPE, replace(work, kept=2), on("ddp"))[0] == pytest.approx(held), "16 pairs a rank, 8 a forward"
    # of a frozen body the gradients of weights cost nothing
    frozen = replace(SHAPE, share=Share(0, BILLION))
    assert units_of(frozen, work, ONE)[0] == pytest.approx(held - (2 if perturbation == "anchor" else 1))


def test_statistics_of_a_window_that_is_one_forward_cost_nothing() -> None:
    assert units_of(SHAPE, MethodWork(statistics=64), on("ddp", gpus=8))[0] == 3


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    assert units_of(replace(SHAPE, share=Share(0, BILLION)), NOTHING, ONE) == (2, 2)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("dpo", MethodWork(moved=1)),
        ("amapo", MethodWork(moved=1, statistics=32, together=32, kept=1)),
        ("simpo_sam", MethodWork("sharpness", moved=1)),
        ("gapo", MethodWork("anchor", moved=1, together=32, kept=1)),
        ("gapo method.probe=sketch method.anchor_pairs=8", MethodWork("sketch", moved=1, together=8, kept=1)),
        ("gapo method.probe=stream", MethodWork("stream", moved=1)),
        ("gapo model.architecture.model_type=opt", MethodWork("anchor", moved=1, together=32)),
        ("gradnorm_reweight", MethodWork("norms", moved=1, statistics=32)),
    ],
)
def test_work_of_methods(method: str, expected: MethodWork) -> None:
    """The reference of DPO costs nothing: its log-probs are stored."""
    config = compose_train([f"method={method.split()[0]}", "model=tiny", *method.split()[1:]])
    shape = SHAPE if "opt" in method else shape_of(config, None)
    assert work_of(config, build_objective(config), shape) == replace(expected, moved=shape.share.trained)


def test_gapo_by_probe_and_scope() -> None:
    config = compose_train(["method=gapo", "model=tiny", "method.probe=perturb", "method.scope=lm_head"])
    shape = shape_of(config, None)
    assert work_of(config, build_objective(config), shape).moved == shape.head == 96 * 768
    assert kind_of(AnchorProbe(0.05, 1, probe="first_order")) == "slopes"


def test_flops_of_a_forward() -> None:
    """Two for each parameter and token; of attention, where both rows have 400 tokens, half the scores of each."""
    body, head = forward_flops(SHAPE, ROWS)
    assert body == 2 * (SHAPE.linear - SHAPE.head) * 800 + 4 * 10 * 1000 * (2 * 400**2 / 2)
    assert head == 2 * SHAPE.head * 300
    assert forward_flops(replace(SHAPE, eager=True), ROWS)[0] > body


def test_time_is_that_of_the_slower_of_arithmetic_and_links() -> None:
    slow = Gpu("slow", 80, bf16=1, fp32=1, hbm=1e9, nvlink=1e9, network=1e9)
    time = step_time(slow, SHAPE, ROWS, NOTHING, on("fsdp2"))
    flops = 64 * 3 * sum(forward_flops(SHAPE, ROWS))
    assert time.arithmetic == pytest.approx(flops / 4 / 0.4e12)
    assert time.limit == "arithmetic"
    assert time.total == pytest.approx(time.arithmetic)
    far = replace(slow, bf16=1e9, network=1.0)
    found = step_time(far, SHAPE, ROWS, NOTHING, on("fsdp2", nodes=2))
    # 64 pairs are one forward of 8 pairs on each of 8 ranks: blocks are gathered twice in bfloat16, the rest
    # once, and there is one reduction in float32
    assert found.limit == "communication"
    assert found.links == pytest.approx(7 / 8 * 7.6 * BILLION / 0.7e9)
    assert step_time(far, SHAPE, ROWS, NOTHING, on("fsdp2")).links < 1


def test_sharpness_keeps_its_snapshot_through_the_second_backward_and_an_anchor_does_not() -> None:
    for work, during in ((MethodWork("sharpness", moved=BILLION), 4 * BILLION), (MethodWork("anchor", BILLION), 0)):
        found = {memory.phase: memory.snapshot for memory in phases(SHAPE, ROWS, work, ONE)}
        assert found["backward of the head"] == during
        assert found["perturbation"] == 4 * BILLION
    sharded = memory_of(SHAPE, ROWS, MethodWork("sharpness", moved=BILLION), on("zero3"))
    assert sharded.snapshot == BILLION


def test_the_head_alone_knows_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    supervised = 8 * 2 * 200
    found = memory_of(SHAPE, ROWS, NOTHING, ONE)
    assert found.logits == max(
        head_backward(SHAPE, "autocast", supervised), head_forward(SHAPE, "autocast", supervised)
    )
    monkeypatch.setattr("src.planner.memory.head_backward", lambda *_: 7)
    monkeypatch.setattr("src.planner.memory.head_forward", lambda *_: 5)
    assert {memory.logits for memory in phases(SHAPE, ROWS, NOTHING, ONE)} == {5, 7, 0}


def test_logits_of_more_than_a_chunk_take_no_more() -> None:
    """4096 tokens of this vocabulary at a time on a GPU; the gradient of the head is there besides, in float32."""
    small, lone, more = 1000, 4096, 100_000
    assert head_backward(SHAPE, "bfloat16", small) == 2 * small * SHAPE.vocabulary + 6 * SHAPE.head
    forwards = [head_forward(SHAPE, "bfloat16", tokens) for tokens in (small, lone, more)]
    assert forwards[0] < forwards[1] == forwards[2] == (2 * 4096 + 4 * 256) * SHAPE.vocabulary
    assert head_backward(SHAPE, "float32", more) == 4 * 4096 * SHAPE.vocabulary + 4 * SHAPE.head
    capped = replace(SHAPE, capped_logits=True)
    assert head_forward(capped, "float32", lone) == 3 * head_forward(SHAPE, "float32", lone)
    assert head_backward(replace(SHAPE, share=Share(1000, BILLION)), "float32", small) == 4 * small * SHAPE.vocabulary


def test_prompts_that_are_computed_once() -> None:
    lengths = np.array([[100, 50, 30], [10, 200, 100]])
    padded, packed = (rows_of(lengths, both=True, packed=choice) for choice in (False, True))
    assert (padded.longest, padded.response, padded.tokens, padded.supervised) == (210, 200, 300, 190)
    assert (padded.at_most, packed.at_most) == (2 * 210, 10 + 200 + 100)
    assert (padded.forwarded, packed.forwarded) == (300, 245)
    assert memory_of(SHAPE, packed, NOTHING, ONE).activations < memory_of(SHAPE, padded, NOTHING, ONE).activations
    assert rows_of(lengths, both=False, packed=False).at_most == 210


# --- what is proposed -------------------------------------------------------------------------------------------------


def room_for(setting: Setting, work: MethodWork = NOTHING) -> Gpu:
    """A GPU on which exactly this fits."""
    total = memory_of(SHAPE, ROWS, work, setting).total
    gpu = replace(GPUS["h100"], memory=total / GIB / 0.95 + 1.5 + 1e-6)
    assert usable(gpu) >= total
    return gpu


def proposed(setting: Setting, room: Setting, work: MethodWork = NOTHING) -> Fit:
    return fit_of(room_for(room, work), SHAPE, ROWS, work, setting)


def test_the_smallest_change_is_proposed() -> None:
    ddp = on("ddp")
    assert proposed(ddp, ddp).fits
    checkpointed = replace(ddp, checkpointing=True)
    found = proposed(ddp, checkpointed)
    assert (found.fits, found.changes) == (False, ("model.gradient_checkpointing=true",))
    small = replace(checkpointed, micro_batch=2)
    assert proposed(checkpointed, small).changes == ("training.micro_batch_size=2",)
    least = replace(checkpointed, micro_batch=1)
    (change,) = proposed(least, replace(least, engine="zero2")).changes
    assert change == "engine=zero2"
    shards = replace(least, engine="fsdp2")
    found = proposed(shards, replace(shards, gpus_per_node=8))
    assert found.changes == ("gpus_per_node=8",)
    assert found.without_more_gpus == ("engine=fsdp2_offload",)
    assert proposed(replace(shards, gpus_per_node=8), replace(shards, nodes=2, gpus_per_node=8)).changes == ("nodes=2",)


def test_one_process_is_offered_leaner_storage_before_more_gpus() -> None:
    least = replace(ONE, checkpointing=True, micro_batch=1)
    assert proposed(least, replace(least, split=True)).changes == ("training.master=split",)
    assert "training.moments=int8" in proposed(least, replace(least, split=True, moment_bytes=INT8_MOMENTS)).changes


def test_nothing_is_proposed_that_training_would_refuse() -> None:
    perturbed = MethodWork("sharpness", moved=BILLION)
    for setting in (ONE, on("fsdp2"), on("zero3", nodes=2)):
        found = list(alternatives(setting, perturbed))
        assert found
        assert not any(other.offload or other.split for other in found)
        assert all(other.global_batch % (other.micro_batch * other.world) == 0 for other in found)
        assert not any(other.engine == "single" and other.world > 1 for other in found)
        assert all(other.world >= setting.world for other in found)
    assert {other.engine for other in alternatives(ONE, MethodWork("slopes"))} == {"single", "ddp"}
    assert {other.engine for other in alternatives(ONE, MethodWork("stream"))} == {"single"}
    assert not any(other.checkpointing for other in alternatives(ONE, MethodWork("sketch")))
    assert {other.micro_batch for other in alternatives(ONE, MethodWork(within_forward=True))} == {8}
    tiny = replace(GPUS["a100_40"], memory=1.6)
    assert "no change that is known here" in verdict(fit_of(tiny, SHAPE, ROWS, perturbed, ONE))


# --- words ------------------------------------------------------------------------------------------------------------


def test_launch_commands() -> None:
    overrides = ["method=gapo", "nodes=2", "gpus_per_node=8", "+gpu=h200", "a.b='x y'"]
    assert launch_command(ONE, overrides) == """python -m src.train method=gapo 'a.b='"'"'x y'"'"''"""
    one = launch_command(on("ddp", gpus=8), overrides[:3])
    assert one == "torchrun --standalone --nnodes 1 --nproc-per-node 8 -m src.train method=gapo"
    two = launch_command(on("zero3", nodes=2), overrides[:3])
    assert two == (
        "torchrun --nnodes 2 --nproc-per-node 4 --node-rank $NODE_RANK --rdzv-backend static "
        "--master-addr $MASTER_ADDR --master-port 29500 -m src.train method=gapo"
    )


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.05, "50.0 ms"), (90, "90.0 s"), (7200, "2.0 h"), (86400 * 3, "3.0 days")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_setting_of_a_configuration() -> None:
    config = compose_train(["method=simpo", "model=llama3_8b_base", "engine=zero3_offload", "engine.bucket_mb=1"])
    found = setting_of(config, Machines(2, 8))
    assert (found.engine, found.offload, found.option) == ("zero3", True, "zero3_offload")
    assert (found.world, found.bucket_bytes, found.micro_steps) == (16, 2**20, 1)
    assert found.checkpointing
    assert found.bfloat16
