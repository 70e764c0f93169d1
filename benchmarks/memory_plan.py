"""Predicted memory against measured: `python -m benchmarks.memory_plan [--cuda] [--output FILE]`.

On the CPU, scaled-down models of every family that the planner knows take two micro-batches and an update, with and
without gradient checkpointing, in float32, under bfloat16 autocast and with bfloat16 weights. Every tensor that any
operation makes is watched from its birth to its death, so the peaks are those of the program, not of an allocator;
what a kernel allocates for itself is not seen. With ``--cuda`` a model of Llama-3-8B's widths takes the same steps on
the GPU, where torch.cuda counts. Writes results/benchmarks/memory_plan.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.config import ROOT
from src.data.collate import PairBatch, collate
from src.data.pairset import TokenizedPair
from src.model.load import architecture_only, disable_dropout
from src.model.logps import pair_log_probs
from src.planner.engines import forward_buffers, precision_of, states_of
from src.planner.memory import kept_activations, memory_of
from src.planner.shape import shape_of_model
from src.planner.sizes import MethodWork, ModelShape, Rows, Setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OUTPUT = ROOT / "results" / "benchmarks" / "memory_plan.json"
COMMON = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "vocab_size": 1024,
}
GROUPED = {"num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": None},
    "gemma2": GROUPED | {"head_dim": 48, "query_pre_attn_scalar": 48, "tie_word_embeddings": True},
    "gpt_neox": {"intermediate_size": 512},
}
"""Scaled-down models: what they have of their own."""

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
PRECISIONS = ("float32", "autocast", "bfloat16")


@dataclass(frozen=True)
class Case:
    """One measurement: an architecture, how it computes, and rows that are all alike."""

    kind: str
    values: dict[str, Any]
    precision: str
    checkpointing: bool
    pairs: int = 2
    prompt: int = 24
    response: int = 40

    @property
    def setting(self) -> Setting:
        """One process; weights of the computing type are what engines that gather them have."""
        return Setting(
            engine="zero2" if self.precision == "bfloat16" else "single",
            nodes=1,
            gpus_per_node=1,
            micro_batch=self.pairs,
            global_batch=2 * self.pairs,
            checkpointing=self.checkpointing,
            bfloat16=self.precision != "float32",
        )

    @property
    def rows(self) -> Rows:
        length = self.prompt + self.response
        return Rows(length, self.response, 2.0 * length, 2.0 * self.response, both=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="Llama-3-8B's shape on a GPU instead")
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    if given.cuda and not torch.cuda.is_available():
        print("error: --cuda needs a GPU, and torch finds none here; leave it out", file=sys.stderr)
        return 2
    from src.environment import environment

    device = "cuda" if given.cuda else "cpu"
    found = [compared(case, device) for case in (cases_on_gpu() if given.cuda else scaled_down())]
    report = {
        "command": " ".join(["python -m benchmarks.memory_plan", *sys.argv[1:]]),
        "environment": environment(),
        "device": torch.cuda.get_device_name() if given.cuda else "cpu",
        "llama_3_8b_on_a_gpu": "these cases" if given.cuda else "not run: there was no GPU (--cuda runs it)",
        "largest_difference": {
            what: max(abs(case[what]["predicted"] / case[what]["measured"] - 1) for case in found)
            for what in ("states", "activations", "peak")
        },
        "cases": found,
    }
    output = given.output or (OUTPUT.with_stem("memory_plan_cuda") if given.cuda else OUTPUT)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for case in found:
        print(line(case))
    print(output)
    return 0


def scaled_down() -> Iterator[Case]:
    """What fits a CPU."""
    for kind, own in FAMILIES.items():
        for precision in PRECISIONS:
            for checkpointing in (False, True):
                yield Case(kind, COMMON | own, precision, checkpointing)


def cases_on_gpu() -> Iterator[Case]:
    """Llama-3-8B with few blocks (an update in float32 needs 16 bytes a parameter) and, without an update, with all."""
    for checkpointing in (False, True):
        yield Case("llama", LLAMA_8B | {"num_hidden_layers": 8}, "autocast", checkpointing, 1, 512, 1024)
    yield Case("llama", LLAMA_8B, "bfloat16", True, 1, 512, 1536)


def compared(case: Case, device: str) -> dict[str, Any]:
    """Predicted and measured bytes of a case, without the weights where a peak is meant."""
    measured = measure(case, device)
    shape = measured.pop("shape")
    memory = memory_of(shape, case.rows, MethodWork(), case.setting)
    states = states_of(case.setting, shape.share)
    # two buckets and the float32 masters of the engine are not there: plain steps are measured
    buckets = 0 if case.precision != "bfloat16" else forward_buffers(case.setting, shape)
    each = 2 if case.precision == "bfloat16" else 4
    predicted = {
        "states": 4 * each * shape.share.total if case.precision == "bfloat16" else state_bytes(states),
        "activations": kept_by_body(case, shape),
        "peak": memory.total - memory.weights - memory.optimizer - buckets - (4 - each) * shape.share.trained,
    }
    return {
        "family": case.kind,
        "precision": case.precision,
        "checkpointing": case.checkpointing,
        "tokens": case.pairs * 2 * (case.prompt + case.response),
        "phase": memory.phase,
        **{what: {"predicted": predicted[what], "measured": measured[what]} for what in predicted},
    }


def state_bytes(states: Any) -> int:
    """Weights, gradients and moments together."""
    return int(states.weights + states.gradients + states.optimizer)


def kept_by_body(case: Case, shape: ModelShape) -> int:
    """What the blocks keep, and casts of their weights as far as the graph holds them."""
    headless = replace(case.rows, response=0)
    casts = 2 * (shape.linear - shape.head) if case.precision == "autocast" and not case.checkpointing else 0
    assert precision_of(case.setting) == case.precision
    return kept_activations(shape, headless, case.setting) + casts


def model_of(case: Case, device: str) -> PreTrainedModel:
    """The case's model with random weights."""
    from transformers import AutoConfig

    torch.manual_seed(0)
    architecture = AutoConfig.for_model(case.kind, **case.values)
    attention = "eager" if case.kind == "gemma2" else "sdpa"
    with torch.device(device):
        dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
        model = architecture_only(architecture, dtype=dtype, attn_implementation=attention)
    if case.checkpointing:
        whole: Any = model
        whole.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    disable_dropout(model)
    model.train()
    return model


def batch_of(case: Case) -> PairBatch:
    """Pairs of random tokens."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return [int(value) for value in torch.randint(0, case.values["vocab_size"], (count,), generator=generator)]

    return collate(
        [
            TokenizedPair(
                number, str(number), ids(case.prompt), ids(case.response), ids(case.response), None, None, flipped=False
            )
            for number in range(case.pairs)
        ]
    )


def measure(case: Case, device: str) -> dict[str, Any]:
    """Bytes of the states after an update, of what the body keeps, and at the peak of the second micro-batch."""
    model, batch = model_of(case, device), batch_of(case).to(torch.device(device))
    shape = shape_of_model(model, eager=case.kind == "gemma2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    cast = torch.autocast(device, torch.bfloat16, enabled=case.precision == "autocast")
    watch = Allocated() if device == "cuda" else Watch()
    for tensor in (*model.parameters(), *model.buffers()):
        watch.born(tensor.untyped_storage())
    with watch:
        before = watch.now
        with cast:
            hidden = model.base_model(input_ids=batch.layout.input_ids, use_cache=False)[0]
        # the output itself is the head's to keep
        kept = watch.now - before - size(hidden)
        del hidden
        step(model, batch, cast)
        before = watch.now - sum(size(parameter.grad) for parameter in model.parameters())
        watch.forget_peak()
        step(model, batch, cast)
        peak = watch.peak - before
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    tensors += [tensor for parameter in model.parameters() for tensor in (parameter, parameter.grad)]
    return {"shape": shape, "states": sum(map(size, tensors)), "activations": kept, "peak": peak}


def step(model: PreTrainedModel, batch: PairBatch, cast: AbstractContextManager[Any]) -> None:
    """Forward and backward of one micro-batch."""
    with cast:
        found = pair_log_probs(model, batch)
    torch.autograd.backward((found.chosen.average - found.rejected.average).sum())


def size(tensor: Tensor | None) -> int:
    """Bytes of a tensor."""
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all storages that operations make within the block: ``now`` alive, and ``peak``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def forget_peak(self) -> None:
        """Look for a peak from here on."""
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.born(leaf.untyped_storage())
        return out

    def born(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, once, until it dies."""
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.died, key)

    def died(self, key: int) -> None:
        """Count a storage no longer."""
        self.now -= self.sizes.pop(key)


class Allocated:
    """The same by torch.cuda's own count."""

    def __enter__(self) -> Allocated:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @property
    def now(self) -> int:
        return torch.cuda.memory_allocated()

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    def born(self, storage: torch.UntypedStorage) -> None:
        """Nothing: torch.cuda counts for itself."""

    def forget_peak(self) -> None:
        """Look for a peak from here on."""
        torch.cuda.reset_peak_memory_stats()


def line(case: dict[str, Any]) -> str:
    """A case in a line: predicted / measured MB."""
    name = f"{case['family']:9} {case['precision']:9} {'checkpointed' if case['checkpointing'] else 'kept':13}"
    parts = [
        f"{what} {case[what]['predicted'] / 1e6:8.2f} / {case[what]['measured'] / 1e6:8.2f} "
        f"({100 * (case[what]['predicted'] / case[what]['measured'] - 1):+5.1f} %)"
        for what in ("states", "activations", "peak")
    ]
    return "  ".join([name, *parts, case["phase"]])


if __name__ == "__main__":
    sys.exit(main())
