"""Response curves and verdicts of sweeps, on made-up runs whose optimum and noise are known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.errors import UserError
from src.evaluation.record import DataInfo, Record, RunInfo
from src.report import translated
from src.reporting import sweep_page
from src.reporting.runs import find_runs, read_run
from src.reporting.sweeps import Sweep, is_geometric, sweep_of
from src.reporting.trials import read_preset
from tests.entry import call, refused

BETAS = (0.03, 0.1, 0.3, 1.0, 3.0)
SPREAD = (-0.01, 0.0, 0.01)
"""What three seeds add to the accuracy of a setting."""


def make_run(root: Path, seed: int, accuracy: float, *, state: str = "finished", **constants: Any) -> None:
    """A run directory whose best checkpoint (step 20) has the accuracy; the last one is worse."""
    method = {"name": "dpo", "beta": 0.1, "reward": {"beta": constants.get("beta", 0.1)}, "seed": seed, **constants}
    rate = float(method.pop("learning_rate", 1e-3))
    name = f"{method['name']}__{seed}__{abs(hash(json.dumps([method, rate, seed], sort_keys=True))):x}"
    directory = root / name
    directory.mkdir(parents=True)
    config = {
        "seed": seed,
        "method": method,
        "training": {"learning_rate": rate},
        "model": {"name": "tiny"},
        "dataset": {"name": "toy", "source": {"seed": 0}},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    (directory / "status.json").write_text(json.dumps({"state": state, "best_step": 20, "config_hash": name}))
    lines = [{"step": s, "split": "validation", "rewards/accuracies": a} for s, a in ((20, accuracy), (30, 0.4))]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def response(beta: float) -> float:
    """An inverted parabola over log beta with its top at 0.3."""
    return 0.8 - 0.02 * math.log10(beta / 0.3) ** 2


def swept(root: Path, *what: str, records: Sequence[Record] = (), metrics: Sequence[str] = ()) -> Sweep:
    return sweep_of(what, [read_run(path) for path in find_runs([root])], records, metrics)


@pytest.fixture
def clear(tmp_path: Path) -> Path:
    """DPO over beta, three seeds whose noise is a tenth of what tells the settings apart."""
    for beta in BETAS:
        for seed, shift in enumerate(SPREAD):
            make_run(tmp_path, seed, response(beta) + shift / 100, beta=beta)
    return tmp_path


def test_the_known_optimum_wins_beyond_the_noise(clear: Path) -> None:
    sweep = swept(clear, "tiny_dpo_beta")
    verdict = sweep.verdicts[0]
    assert (sweep.keys, verdict.best.swept) == (("beta",), {"beta": 0.3})
    assert verdict.best.mean == pytest.approx(0.8)
    assert verdict.noise == pytest.approx(0.0001)  # of three seeds -1, 0, 1 e-4: their deviation is 1e-4
    assert (verdict.tied, verdict.edges) == ((), ())
    assert "beyond the seed noise" in verdict.text
    assert sweep.notes == ()


def test_a_difference_within_the_noise_is_called_so(tmp_path: Path) -> None:
    for beta, mean in ((0.1, 0.700), (0.3, 0.705), (1.0, 0.600)):
        for seed, shift in enumerate(SPREAD):
            make_run(tmp_path, seed, mean + shift, beta=beta)
    verdict = swept(tmp_path, "method.beta").verdicts[0]
    assert verdict.best.swept == {"beta": 0.3}
    assert [setting.swept["beta"] for setting in verdict.tied] == [0.1]
    assert "within the seed noise" in verdict.text
    # Student's t with 6 degrees at 1 - 0.05/4 is 2.9687; the standard error is 0.01 * sqrt(2/3)
    assert verdict.margin == pytest.approx(2.9687 * 0.01 * math.sqrt(2 / 3), rel=1e-4)


def test_one_seed_says_nothing_of_noise_and_edges_are_named(tmp_path: Path) -> None:
    for beta in (0.1, 0.3, 1.0):
        make_run(tmp_path, 0, beta / 10, beta=beta)
    verdict = swept(tmp_path, "method.beta").verdicts[0]
    assert (verdict.noise, verdict.tied, verdict.edges) == (None, (), ("beta",))
    assert "repeat with seed=0,1,2" in verdict.text
    assert "beta=1 is an end of its range" in verdict.text


def test_a_line_for_every_other_setting(tmp_path: Path) -> None:
    for rate in (1e-3, 1e-4):
        for beta in (0.1, 0.3):
            make_run(tmp_path, 0, beta + rate, beta=beta, learning_rate=rate)
    sweep = swept(tmp_path, "method.beta", "training.learning_rate")
    lines = sweep.lines(sweep.metrics[0], "beta")
    assert [(line.label, [s.swept["beta"] for s in line.settings]) for line in lines] == [
        ("learning_rate=0.0001", [0.1, 0.3]),
        ("learning_rate=0.001", [0.1, 0.3]),
    ]
    only = swept(tmp_path, "method.beta")  # what is not asked for still tells lines apart
    assert {line.label for line in only.lines(only.metrics[0], "beta")} == {
        "learning_rate=0.0001",
        "learning_rate=0.001",
    }


def test_what_is_missing_or_unfinished_is_said(tmp_path: Path) -> None:
    for beta in BETAS[:3]:
        make_run(tmp_path, 0, response(beta), beta=beta)
    make_run(tmp_path, 1, 0.9, beta=0.3, state="running")
    make_run(tmp_path, 0, 0.99, name="simpo", beta=0.3)  # of another method: no run of this sweep
    sweep = swept(tmp_path, "tiny_dpo_beta")
    assert sweep.notes == (
        "1 unfinished runs are left out",
        "2 of 5 settings of tiny_dpo_beta are not run yet: beta=1; beta=3",
    )
    assert sweep.verdicts[0].best.swept == {"beta": 0.3}


def record(run: Path, value: float, judge_split: str = "validation") -> Record:
    config = yaml.safe_load((run / "config.yaml").read_text())
    info = RunInfo(str(run), run.name, "dpo", "tiny", "toy", "none", config["seed"], 20, "best", {})
    metric: Any = {"value": value, "low": None, "high": None, "n": 10}
    return Record("ranking", info, DataInfo(judge_split, "x", 10), {"accuracy/reward": metric, "loss": metric})


def test_records_are_compared_apart_where_they_were_measured_apart(clear: Path) -> None:
    runs = find_runs([clear])
    records = [record(run, 0.5 + place / 100) for place, run in enumerate(runs)]
    sweep = swept(clear, "tiny_dpo_beta", records=records)
    assert [metric.name for metric in sweep.metrics] == ["validation/rewards/accuracies", "ranking/accuracy/reward"]
    records.append(record(runs[0], 0.9, "train"))
    assert [metric.name for metric in swept(clear, "tiny_dpo_beta", records=records).metrics] == [
        "validation/rewards/accuracies",
        "ranking[best, train]/accuracy/reward",
        "ranking[best, validation]/accuracy/reward",
    ]
    chosen = swept(clear, "tiny_dpo_beta", records=records[:-1], metrics=["ranking/loss"])
    assert [(metric.name, metric.higher_is_better) for metric in chosen.metrics] == [("ranking/loss", False)]
    assert chosen.verdicts[0].best.mean == min(setting.mean for setting in chosen.settings["ranking/loss"])


def test_mistakes_are_said(clear: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sweep=method.bta is neither a preset nor a key.*tiny_dpo_beta.*beta"):
        swept(clear, "method.bta")
    with pytest.raises(UserError, match=r"none of learning_rate differs among them .what does: beta"):
        swept(clear, "training.learning_rate")
    with pytest.raises(UserError, match=r"no finished run of it was found; run python -m src.train"):
        swept(clear, "tiny_simpo")
    with pytest.raises(UserError, match="sweep_metrics=ranking/x was not measured; there are: validation"):
        swept(clear, "tiny_dpo_beta", metrics=["ranking/x"])


@pytest.mark.parametrize(
    ("values", "geometric"),
    [
        ((0.03, 0.1, 0.3, 1.0), True),
        ((1.0, 2.0, 3.0, 5.0), False),
        ((4e-7, 6e-7, 8e-7, 1e-6), False),
        ((0.025, 0.05, 0.075, 0.1), False),
        ((1.0, 4.0, 8.0, 16.0), True),
        ((0.0, 0.1, 1.0), False),
        ((0.1, 10.0), True),
        ((0.1, 0.2), False),
        (("full", "lm_head"), False),
    ],
)
def test_which_ranges_are_geometric(values: tuple[Any, ...], geometric: bool) -> None:
    assert is_geometric(values) is geometric


def test_presets_are_read_as_hydra_reads_them() -> None:
    preset = read_preset("amapo_table7_simpo_beta2")
    assert preset.fixed == {"method": "simpo", "beta": 2.0}
    assert preset.swept["learning_rate"] == (4e-7, 6e-7, 8e-7, 1e-6)
    assert read_preset("gapo_table_g").swept == {"scope": ("lm_head", "full")}


def test_files_of_a_sweep(clear: Path, tmp_path: Path) -> None:
    sweep = swept(clear, "tiny_dpo_beta")
    page, png, svg = sweep_page.write_sweep(sweep, tmp_path / "out")
    text = page.read_text()
    assert "| 0.3 |  | **0.8 ± 0.0001 (3 seeds)** |" in text
    assert "**Validation accuracy of the best checkpoint**: beta=0.3: 0.8 ± 0.0001 (3 seeds)" in text
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ">0.03<" in svg.read_text()
    section = sweep_page.section_of(sweep)
    assert section.body.count("<tr>") == 1 + len(BETAS)
    assert section.figures[0].startswith("<svg")


def test_names_are_escaped_in_the_page(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, seed, 0.5, scope="<script>alert(1)</script>")
        make_run(tmp_path, seed, 0.6 + seed / 10, scope="a|b")
    sweep = swept(tmp_path, "method.scope")
    section = sweep_page.section_of(sweep)
    assert "<script>" not in section.body + "".join(section.figures)
    assert "&lt;script&gt;" in section.body
    assert "a\\|b" in sweep_page.markdown(sweep)


def test_the_program_writes_a_page_beside_the_report(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for beta in (0.1, 0.3):
        for seed in (0, 1):
            make_run(runs, seed, beta + seed / 1000, beta=beta)
    assert translated(["sweep=a", "runs=b"]) == ["swept=a", "runs=b"]
    out = tmp_path / "report"
    common = (f"runs={runs}", f"records={tmp_path / 'none'}", f"tables={tmp_path / 'none'}", f"output={out}")
    done = call("src.report", *common, *translated(["sweep=tiny_dpo_beta"]))
    assert (done.code, done.out.splitlines()[0]) == (0, str(out / "sweeps" / "tiny_dpo_beta.md"))
    page = (out / "sweeps" / "tiny_dpo_beta.html").read_text()
    assert "beyond the seed noise" in page
    assert "<figure><svg" in page
    assert 'href="sweeps/tiny_dpo_beta.html"' in (out / "report.html").read_text()
    message = refused("src.report", *common, *translated(["sweep=[method.beta]"]), "sweep_metrics=[x]")
    assert "sweep_metrics=x was not measured" in message
