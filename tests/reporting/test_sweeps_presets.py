"""The search ranges of conf/sweep: what they say, how many jobs they are, and that every one of them composes."""

from __future__ import annotations

import re
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from src.config import CONF, ROOT, composed_train, training_problems
from tests.entry import call, refused

PRESETS = sorted(path for path in (CONF / "sweep").glob("*.yaml") if path.stem != "none")
JOBS = {
    "amapo_figure1": 4,
    "amapo_table11": 3,
    "amapo_table7_alpha_dpo": 96,
    "amapo_table7_amapo": 16,
    "amapo_table7_simpo_beta2": 24,
    "amapo_table7_simpo_beta2_5": 24,
    "amapo_table7_slic": 64,
    "gamma_po_table6_r_dpo": 60,
    "gamma_po_table6_simpo": 60,
    "gapo_table_e": 4,
    "gapo_table_f": 4,
    "gapo_table_g": 2,
    "tiny_simpo": 12,
}
"""Jobs of some presets, counted by hand in the papers."""


def params(name: str) -> dict[str, str]:
    content = yaml.safe_load((CONF / "sweep" / f"{name}.yaml").read_text())
    return {key: str(value) for key, value in content["params"].items()}


def jobs(name: str) -> list[list[str]]:
    """The overrides of every job, as Hydra makes them."""
    texts = [f"{key}={value}" for key, value in params(name).items()]
    parsed = OverridesParser.create().parse_overrides(texts)
    return [list(job) for job in chain.from_iterable(BasicSweeper.split_arguments(parsed, None))]


def numbers(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_has_as_many_jobs_as_it_says(path: Path) -> None:
    assert len(PRESETS) >= 29
    found = jobs(path.stem)
    said = re.search(r": (\d+) jobs\.", path.read_text())
    assert said, f"{path.name} does not say its number of jobs"
    assert len(found) == int(said[1]) == prod(value.count(",") + 1 for value in params(path.stem).values())
    assert len({tuple(job) for job in found}) == len(found)
    assert JOBS.get(path.stem, len(found)) == len(found)


def keys_of_methods() -> dict[str, dict[str, str]]:
    """Method -> every key that some preset sets for it, and one of its values."""
    found: dict[str, dict[str, str]] = {}
    for path in PRESETS:
        for (_, method), *others in ([override.split("=") for override in job] for job in jobs(path.stem)):
            found.setdefault(method, {}).update(dict(others))
    return found


@pytest.mark.parametrize(("method", "keys"), keys_of_methods().items())
def test_the_jobs_of_every_preset_compose(method: str, keys: dict[str, str]) -> None:
    config = composed_train(
        [f"method={method}", "training.global_batch_size=128", *(f"{key}={keys[key]}" for key in keys)]
    )
    for key, value in keys.items():
        section, constant = key.split(".")
        wanted = config[section][constant]
        assert wanted == (value if isinstance(wanted, str) else float(value))
    assert training_problems(config) == []


def test_ranges_are_those_that_the_papers_print() -> None:
    keys = {
        "beta": "method.beta",
        "tau": "method.tau",
        "delta": "method.delta",
        "alpha": "method.alpha",
        "epsilon": "method.label_smoothing",
    }
    names = {"alpha-DPO": "alpha_dpo", "R-DPO": "r_dpo", "rDPO": "rdpo", "beta-DPO": "beta_dpo"}
    compared = 0
    for paper, table in (("amapo", "7"), ("gamma_po", "6")):
        published = yaml.safe_load((ROOT / "results" / "published" / f"{paper}.yaml").read_text())["tables"][table]
        for method, parameter, values in published["rows"]:
            name = f"{paper}_table{table}_{names.get(method, method.lower())}"
            if parameter in keys and (CONF / "sweep" / f"{name}.yaml").exists():
                assert numbers(params(name)[keys[parameter]]) == values, (name, parameter)
                compared += 1
    assert compared >= 15


def test_margins_in_reward_units_became_ratios() -> None:
    printed = [0.3, 0.5, 1.0, 1.2, 1.4, 1.6]  # AMaPO Table 7
    for name, beta in (("amapo_table7_simpo_beta2", 2.0), ("amapo_table7_simpo_beta2_5", 2.5)):
        assert numbers(params(name)["method.beta"]) == [beta]
        assert numbers(params(name)["method.gamma_beta_ratio"]) == pytest.approx([g / beta for g in printed])


def test_hydra_runs_every_job_of_a_preset() -> None:
    seen = []

    def task(config: Any) -> None:
        assert "sweep" not in config
        seen.append((config.method.name, config.method.rho, config.seed))

    outcome = call("src.train", "-m", "sweep=gapo_table_e", "method.rho=0.025,0.05", "seed=4", task=task)
    assert outcome.code == 0, outcome.err
    assert seen == [("gapo", 0.025, 4), ("gapo", 0.05, 4)]  # the command line narrows a preset


def test_a_preset_without_m_is_refused() -> None:
    message = refused("src.train", "sweep=tiny_dpo_beta", "seed=1")
    assert "add -m to run each of them: -m sweep=tiny_dpo_beta seed=1" in message
    assert "did you mean sweep=tiny_dpo_beta" in refused("src.train", "-m", "sweep=tiny_dpo_bet")


def test_the_document_lists_every_preset() -> None:
    text = (ROOT / "docs" / "sweeps.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| .* \| (\d+) \|$", text, re.MULTILINE)
    assert listed == [(path.stem, str(len(jobs(path.stem)))) for path in PRESETS]
