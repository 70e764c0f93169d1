"""Compiled blocks: the same numbers as plain ones, and nothing compiled anew for other lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from src.config import compose_train
from src.data.collate import PairBatch, collate
from src.data.pairset import TokenizedPair
from src.engine.create import create_engine
from src.model.compiled import compile_blocks
from src.model.logps import pair_log_probs
from src.model.packed import share_prefixes
from src.model.tape import unrecordable
from src.training.assemble import build_objective
from src.training.deferred import plan_note
from tests.entry import refused


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What was compiled by other tests in this process does not count."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def model(layout: str) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    found = LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes)).train()
    if layout == "prefix":
        share_prefixes(found)
    return found


def batch(lengths: tuple[tuple[int, int, int], ...]) -> PairBatch:
    draw = random.Random(str(lengths))

    def tokens(count: int) -> list[int]:
        return [draw.randrange(2, 40) for _ in range(count)]

    return collate(
        [
            TokenizedPair(number, f"p{number}", *map(tokens, one), None, None, flipped=False)
            for number, one in enumerate(lengths)
        ]
    )


BATCHES = [
    batch(lengths) for lengths in (((5, 4, 7), (3, 2, 9)), ((9, 3, 3), (2, 6, 5), (4, 4, 8)), ((12, 5, 6), (7, 3, 2)))
]


def losses_and_gradients(model: Any, given: PairBatch) -> list[torch.Tensor]:
    model.zero_grad()
    found = pair_log_probs(model, given)
    (found.chosen.summed - 2 * found.rejected.summed).sum().backward()
    return [found.chosen.summed, found.rejected.summed, *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("layout", ["prefix", "padded"])
def test_same_numbers_without_compiling_for_every_length(layout: str) -> None:
    plain, compiled = model(layout), model(layout)
    counter = CompileCounterWithBackend("aot_eager")
    compile_blocks(compiled, counter)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    made = []
    for one in BATCHES:
        for mine, theirs in zip(losses_and_gradients(compiled, one), losses_and_gradients(plain, one), strict=True):
            torch.testing.assert_close(mine, theirs)
        made.append(counter.frame_count)
    assert made[0] > 0
    assert made[-1] == made[0]


def test_what_looks_into_layers_is_told(tmp_path: Any) -> None:
    given = ["method=gapo", "model=tiny", "engine.compile_blocks=true"]
    config = compose_train(given)
    engine = create_engine(config, model("prefix"), 4)
    assert unrecordable(engine.model) == "compiled blocks hide the inputs of layers"
    note = plan_note(config, build_objective(config), 1)
    assert note == "a step costs about 7/3 of SimPO's: engine.compile_blocks=true hides the inputs of layers"
    message = refused("src.train", *given, "method.probe=sketch", f"output_root={tmp_path}")
    assert "method.probe=sketch looks into layers, which engine.compile_blocks=true hides" in message
