"""CONTRIBUTING.md's example of a new method is complete: its part, its YAML and its test run as printed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from src.build import build
from src.config import CONF, constants_of, unread_constants
from src.objective import types, weights
from src.objective.objective import Objective
from src.objective.types import PairInputs, PairLogProbs, ResponseLogProbs, WindowTotals

PAGE = (CONF.parent / "CONTRIBUTING.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's part, placed in the module that the page names."""
    namespace = dict(vars(weights))
    exec(blocks("python")[0], namespace)
    monkeypatch.setattr(weights, "ScoreGap", namespace["ScoreGap"], raising=False)
    return namespace["ScoreGap"]


def test_page_has_a_part_a_yaml_and_a_test() -> None:
    assert (len(blocks("python")), len(blocks("yaml"))) == (2, 1)


def test_yaml_of_the_example_builds_and_weighs_by_score(part: Any) -> None:
    method: Any = OmegaConf.to_container(
        OmegaConf.create({"method": OmegaConf.create(blocks("yaml")[0])}), resolve=True
    )
    unresolved: Any = OmegaConf.to_container(OmegaConf.create(blocks("yaml")[0]))
    values = method["method"]
    assert constants_of(unresolved) == ["beta", "gamma_beta_ratio"]
    assert unread_constants(unresolved) == []
    slots = {name: build(node, f"method.{name}") for name, node in values.items() if isinstance(node, dict)}
    objective = Objective(**slots)
    assert isinstance(objective.weight, part)
    assert objective.needs.scores

    log_probs = PairLogProbs(*(ResponseLogProbs(torch.tensor(x), torch.ones(2)) for x in ([-1.0, -2.0], [-3.0, -1.0])))
    inputs = PairInputs(log_probs, chosen_scores=torch.tensor([5.0, 3.0]), rejected_scores=torch.tensor([2.0, 2.0]))
    terms, _ = objective.terms(inputs, objective.initial_state())
    loss = objective.loss(inputs, terms, WindowTotals(pairs=2, chosen_tokens=2))
    expected = (3 * torch.log1p(torch.exp(torch.tensor(-1.5))) + torch.log1p(torch.exp(torch.tensor(1.5)))) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_test_of_the_example_passes(part: Any) -> None:
    namespace: dict[str, Any] = {**vars(types), "ScoreGap": part, "torch": torch}
    exec(blocks("python")[1], namespace)
    [example] = [value for name, value in namespace.items() if name.startswith("test_")]
    example()
