"""The Hessian of the output layer: Lanczos against numpy, products against second derivatives taken apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from src.analysis.curvature import OutputLayer, summary
from src.analysis.lanczos import ritz_values
from src.config import compose_train
from src.data.collate import collate
from src.data.pairset import TokenizedPair
from src.objective.objective import Objective
from src.objective.types import PairLogProbs, ResponseLogProbs
from src.training.assemble import build_objective
from tests.entry import assert_says, call, refused
from tests.support import SMALL_RUN, places

VOCABULARY, WIDTH = 11, 4


def symmetric(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """A matrix with these eigenvalues in random directions."""
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    turned, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    found: Tensor = turned @ torch.diag(eigenvalues.double()) @ turned.T
    return found


def test_as_many_steps_as_dimensions_give_the_whole_spectrum() -> None:
    matrix = symmetric(torch.linspace(-3, 7, 20))
    start = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = ritz_values(lambda vector: matrix @ vector, start, 20)
    np.testing.assert_allclose(found.numpy(), np.linalg.eigvalsh(matrix.numpy()), rtol=1e-9, atol=1e-9)


def test_the_ends_of_a_large_spectrum_are_found_in_few_steps() -> None:
    """A bulk near 0 and a few outliers on both sides, as the Hessian of a loss has."""
    bulk = torch.linspace(-0.5, 0.5, 394)
    values = torch.cat([torch.tensor([-8.0, -3.0]), bulk, torch.tensor([5.0, 9.0, 14.0, 20.0])])
    matrix = symmetric(values)
    start = torch.randn(400, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = ritz_values(lambda vector: matrix @ vector, start, 30)
    assert len(found) == 30
    assert found[-4:].tolist() == pytest.approx([5, 9, 14, 20], abs=1e-6)
    assert found[:2].tolist() == pytest.approx([-8, -3], abs=1e-6)


def test_no_eigenvalue_comes_again_and_an_invariant_space_ends_the_search() -> None:
    matrix = symmetric(torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 6.0]))
    start = torch.randn(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = ritz_values(lambda vector: matrix @ vector, start, 6)
    assert found.tolist() == pytest.approx([1, 2, 6], abs=1e-8)  # of equal ones the start has one direction


def test_the_zero_operator_has_the_eigenvalue_zero() -> None:
    assert ritz_values(torch.zeros_like, torch.ones(5), 5).tolist() == [0.0]


class Base(torch.nn.Module):
    """Hidden states that depend on the token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(VOCABULARY, WIDTH)

    def forward(self, input_ids: Tensor, use_cache: bool) -> tuple[Tensor]:
        return (self.table(input_ids),)


class Model(torch.nn.Module):
    """The least that the kernel asks of a causal model."""

    def __init__(self, cap: float | None) -> None:
        super().__init__()
        self.base_model = Base()
        self.head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.config = type("Config", (), {"final_logit_softcapping": cap})()

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head


PAIRS = [
    TokenizedPair(0, "a", [1, 2], [3, 4, 5], [6, 7], 4.0, 2.0, flipped=False),
    TokenizedPair(1, "b", [2], [8, 1], [9, 3, 3, 10], 3.0, 1.0, flipped=True),
    TokenizedPair(2, "c", [5, 5, 6], [2], [4], None, None, flipped=False),
]


def objective_of(method: str) -> Objective:
    return build_objective(compose_train([f"method={method}"]))


def apart(model: Model, method: str, weight: Tensor, reference: PairLogProbs | None) -> Tensor:
    """The loss in float64, token by token, without the kernel."""
    beta = float(compose_train([f"method={method}"]).method["beta"])
    table, cap = model.base_model.table.weight.detach().double(), model.config.final_logit_softcapping
    total = weight.new_zeros(())
    for place, pair in enumerate(PAIRS):
        rewards = []
        for side in ("chosen", "rejected"):
            response, before, summed = getattr(pair, f"{side}_ids"), pair.prompt_ids[-1], weight.new_zeros(())
            for token in response:
                logits = weight @ table[before]
                logits = logits if cap is None else cap * torch.tanh(logits / cap)
                summed, before = summed + logits[token] - torch.log(torch.exp(logits).sum()), token
            if reference is None:
                rewards.append(beta * summed / len(response))
            else:
                rewards.append(beta * (summed - getattr(reference, side).summed[place].double()))
        total = total - torch.nn.functional.logsigmoid(rewards[0] - rewards[1])
    return total / len(PAIRS)


@pytest.mark.parametrize(("method", "cap"), [("simpo", None), ("gapo", 3.0), ("dpo", None)])
def test_products_are_those_of_the_second_derivatives(method: str, cap: float | None) -> None:
    torch.manual_seed(5)
    model = Model(cap)
    reference = None
    if method == "dpo":
        sides = [ResponseLogProbs(torch.randn(3) - 5, torch.ones(3)) for _ in range(2)]
        reference = PairLogProbs(*sides)
    layer = OutputLayer.of(model, collate(PAIRS), objective_of(method), reference)  # type: ignore[arg-type]
    weight = model.head.weight.detach().double()
    assert float(layer.loss(layer.weight)) == pytest.approx(float(apart(model, method, weight, reference)), rel=1e-5)

    whole = torch.autograd.functional.hessian(lambda values: apart(model, method, values, reference), weight)  # type: ignore[no-untyped-call]
    matrix = whole.reshape(VOCABULARY * WIDTH, -1)
    scale = float(matrix.abs().max())
    direction = torch.randn(VOCABULARY * WIDTH)
    np.testing.assert_allclose(layer.product(direction).double(), matrix @ direction.double(), atol=1e-4 * scale)

    exact = np.linalg.eigvalsh(matrix.numpy())
    found = layer.eigenvalues(VOCABULARY * WIDTH, seed=0)
    assert float(found[-1]) == pytest.approx(exact[-1], abs=1e-4 * scale)
    assert float(found[0]) == pytest.approx(exact[0], abs=1e-4 * scale)
    assert exact[0] < -0.01 * scale < exact[-1]  # both ends are something


def test_summary_has_one_value_a_batch() -> None:
    batches = [torch.tensor([-2.0, 1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([-1.0, 0.0, 8.0])]
    found = summary(batches)
    assert found == {"lambda_max": [5.0, 8.0], "top5_mean": [3.0, pytest.approx(7 / 3)], "lambda_min": [-2.0, -1.0]}


def test_a_run_is_measured_into_a_record(tmp_path: Path) -> None:
    outcome = call("src.train", "method=dpo", *SMALL_RUN, "model.init=sft", *places(tmp_path))
    assert outcome.code == 0, outcome.err
    (run,) = (tmp_path / "runs").glob("dpo__*")
    options = (f"checkpoint={run}", "batches=2", "pairs=4", "steps=6", f"records_root={tmp_path / 'records'}")
    outcome = call("src.evaluation.curvature", *options, "device=cpu", "output=json", "scale=laptop")
    assert outcome.code == 0, outcome.err
    shown = json.loads(outcome.out)
    (path,) = (tmp_path / "records").glob("curvature__*.json")
    record = json.loads(path.read_text())
    values = {name: metric["value"] for name, metric in record["metrics"].items()}
    assert values["lambda_max"] >= values["top5_mean"] >= values["lambda_min"]
    assert shown["lambda_max"] == values["lambda_max"]
    assert (record["scale"], record["data"]["split"], record["settings"]["steps"]) == ("laptop", "train", 6)
    assert record["run"]["method"] == "dpo"
    assert record["evaluation_hash"]

    said = refused("src.evaluation.curvature", f"checkpoint={run}", "batches=500", "pairs=500")
    assert_says(said, "250000 pairs", "give fewer")
