"""CONTRIBUTING.md's example of a new method is complete: its part, its YAML and its test run as printed."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from src.cli import register_schemas
from src.combinations import constants_of
from src.config import CONF, finished
from src.objective import types, weights
from src.objective.objective import Objective
from src.objective.types import PairInputs, PairLogProbs, ResponseLogProbs, WindowTotals
from src.schema import TrainConfig
from src.training.assemble import build_objective

PAGE = (CONF.parent / "CONTRIBUTING.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def named(text: str) -> str:
    """The class that a block of the page defines."""
    [name] = re.findall(r"^class (\w+)", text, re.MULTILINE)
    return str(name)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's part, placed in the module that the page names."""
    name = named(blocks("python")[0])
    assert not hasattr(weights, name), "the example is to be something that the project lacks"
    namespace = dict(vars(weights))
    exec(blocks("python")[0], namespace)
    monkeypatch.setattr(weights, name, namespace[name], raising=False)
    return namespace[name]


def composed(folder: Path, *overrides: str) -> TrainConfig:
    """The whole configuration, with the page's YAML beside those of conf/method."""
    text = blocks("yaml")[0]
    name = str(OmegaConf.create(text)["name"])
    assert not (CONF / "method" / f"{name}.yaml").exists()
    (folder / "method").mkdir()
    (folder / "method" / f"{name}.yaml").write_text(text)
    register_schemas()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        search = f"hydra.searchpath=[file://{folder}]"
        return finished(hydra.compose("train", overrides=[search, f"method={name}", *overrides]))


def inputs() -> PairInputs:
    """Margins 2 and -1 nats per token at score gaps 3 and 1."""
    log_probs = PairLogProbs(*(ResponseLogProbs(torch.tensor(x), torch.ones(2)) for x in ([-1.0, -2.0], [-3.0, -1.0])))
    return PairInputs(log_probs, chosen_scores=torch.tensor([5.0, 3.0]), rejected_scores=torch.tensor([2.0, 2.0]))


def loss_of(objective: Objective) -> float:
    pairs = inputs()
    terms, _ = objective.terms(pairs, objective.initial_state())
    return objective.loss(pairs, terms, WindowTotals(pairs=2, chosen_tokens=2)).item()


def test_page_has_a_part_a_yaml_and_a_test() -> None:
    assert (len(blocks("python")), len(blocks("yaml"))) == (2, 1)


def test_yaml_of_the_example_composes_and_weighs_by_score(part: Any, tmp_path: Path) -> None:
    config = composed(tmp_path, "method.half_gap=3")
    raw = OmegaConf.to_container(OmegaConf.create(blocks("yaml")[0]))
    assert isinstance(raw, dict)
    assert constants_of(raw) == ["beta", "gamma_beta_ratio", "half_gap"]
    objective = build_objective(config)
    assert objective.weight == part(half_gap=3)
    assert objective.needs.scores
    expected = (0.5 * math.log1p(math.exp(-1.5)) + 0.25 * math.log1p(math.exp(1.5))) / 2
    assert loss_of(objective) == pytest.approx(expected, rel=1e-6)


def test_test_of_the_example_passes(part: Any) -> None:
    namespace: dict[str, Any] = {**vars(types), part.__name__: part, "torch": torch, "pytest": pytest}
    exec(blocks("python")[1], namespace)
    [example] = [value for name, value in namespace.items() if name.startswith("test_")]
    example()


def test_test_of_the_example_fails_when_the_part_is_wrong(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "__call__", lambda self, group: torch.ones_like(group.margins))
    with pytest.raises(AssertionError):
        test_test_of_the_example_passes(part)


def test_names_of_the_page_exist() -> None:
    """Slots, protocols and needs that the page speaks of beside its example."""
    spoken = set(re.findall(r"^\* .*?`(\w+)", PAGE.partition("What the example does not use")[2], re.MULTILINE))
    assert {"Stateful", "Diagnosed", "Needs"} <= spoken
    assert all(hasattr(types, name) for name in ("Stateful", "Diagnosed", "Needs"))
    assert {"temperature", "perturbation"} <= Objective.__dataclass_fields__.keys()
    assert {"statistics", "spread"} <= types.Needs.__dataclass_fields__.keys()
