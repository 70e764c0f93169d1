"""W&B dashboards as code: the checked-in definitions, what is wrong with others, and records as offline runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from src.config import ROOT
from src.errors import UserError
from src.objective.objective import PAIR_METRICS
from src.reporting import dashboard, plots
from src.reporting.panels import BENCHMARKS, BOARDS, PANELS, SECTIONS, Panel, bars_of, curves_once
from tests.entry import call, refused

DEFINITIONS = ROOT / "results" / "dashboards"
LOGGED = {*PAIR_METRICS, "loss", "grad_norm", "lr"}
"""What every run with pairs logs."""

wandb = pytest.importorskip("wandb")
pytest.importorskip("wandb_workspaces")


def test_definitions_are_those_of_the_panels() -> None:
    assert dashboard.problems(DEFINITIONS, list(BOARDS)) == []
    content = json.loads((DEFINITIONS / "gapo.json").read_text())
    sections = content["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [section.name for section in BOARDS[2].sections]
    anchor = next(section for section in sections if section["name"].startswith("Anchor"))
    assert anchor["panels"][0]["config"]["metrics"] == ["train/anchor/gap"]
    assert {panel["config"]["xAxis"] for panel in anchor["panels"]} == {"step"}
    (filtered,) = content["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert (filtered["key"]["name"], filtered["value"]) == ("tags", ["gapo"])


def test_papers_and_sweeps_have_a_board_each() -> None:
    papers = {path.stem for path in (ROOT / "results" / "published").glob("*.yaml")}
    assert {board.name for board in BOARDS} == papers | {"sweeps"}
    assert {board.tag for board in BOARDS} == papers | {"sweep"}  # tags that src/wandb_runs.py gives


def test_every_panel_is_of_something_that_is_logged() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py") if path.name != "panels.py")
    curves = [panel for board in BOARDS for section in board.sections for panel in section.curves]
    assert len(curves) > 40
    for panel in curves:
        metric = re.sub("_(clean|flipped)$", "", panel.metric)
        assert metric in LOGGED or f'"{metric}"' in sources, panel
    for bar in bars_of():
        assert (ROOT / "src" / "evaluation" / f"{bar.benchmark}.py").exists()
        assert f'"{bar.metric.split("/")[-1]}' in sources or bar.metric in sources, bar


def test_report_and_dashboard_draw_the_same_panels() -> None:
    assert plots.PANELS is PANELS
    metrics = [panel.metric for _, panel in curves_once()]
    assert len(metrics) == len(set(metrics))
    drawn = {panel.metric for board in BOARDS for section in board.sections for panel in section.curves}
    assert drawn == set(metrics)
    assert {bar for board in BOARDS for section in board.sections for bar in section.bars} == set(bars_of(BENCHMARKS))
    assert all(isinstance(panel, Panel) for section in SECTIONS for panel in section.panels)


def test_wrong_definitions_are_told_apart(tmp_path: Path) -> None:
    for board in BOARDS[:4]:
        shutil.copy(DEFINITIONS / f"{board.name}.json", tmp_path)
    first, second, third = (tmp_path / f"{board.name}.json" for board in BOARDS[:3])
    first.write_text("{")
    content: Any = json.loads(second.read_text())
    content["spec"]["section"]["panelBankConfig"]["sections"][0]["panels"][0]["config"]["metrics"] = ["train/lost"]
    second.write_text(json.dumps(content))
    content = json.loads(third.read_text())
    del content["spec"]["section"]["panelBankConfig"]
    third.write_text(json.dumps(content))
    (tmp_path / "mine.json").write_text("{}")
    broken, other, unreadable, absent, foreign = dashboard.problems(tmp_path, list(BOARDS))
    assert "amapo.json cannot be read" in broken
    assert "lacks train/loss, validation/loss; has train/lost" in other
    assert "gapo.json is no definition of a workspace (section.panelBankConfig: Field required)" in unreadable
    assert "sweeps.json cannot be read" in absent
    assert "mine.json belongs to no board" in foreign


def test_the_program_writes_checks_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"definitions={tmp_path}"
    assert call("src.dashboard", "action=write", place, "boards=[amapo]").code == 0
    assert (tmp_path / "amapo.json").read_bytes() == (DEFINITIONS / "amapo.json").read_bytes()
    assert "1 dashboards in" in call("src.dashboard", "action=check", place, "boards=[amapo]").out
    assert "python -m src.dashboard --write" in refused("src.dashboard", "action=check", place)
    assert "boards=amap is unknown; choose of: amapo" in refused("src.dashboard", "action=check", "boards=[amap]")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    message = refused("src.dashboard")
    assert "make dashboard needs a login: run `wandb login` or set WANDB_API_KEY" in message
    assert "the report (make report), which has the same panels" in message


def test_publishing_replaces_its_own_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's part alone is made up: it names a new view, and keeps the name of one that it knows."""
    sent: list[tuple[str, str, str]] = []

    def upsert(view: Any) -> dict[str, Any]:
        sent.append((view.project, view.name, view.id))
        known = {"name": view.name, "id": view.id or f"id{len(sent)}"}
        return {"upsertView": {"view": known}}

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr("wandb_workspaces.workspaces.internal.upsert_view2", upsert)
    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.url", "https://server/view")  # asks the server else
    monkeypatch.setattr("wandb.termlog", lambda text: None)
    shutil.copytree(DEFINITIONS, tmp_path / "d")
    for _ in range(2):
        addresses = dashboard.publish(tmp_path / "d", list(BOARDS[:2]), "team", "mine")
    assert addresses == ["https://server/view"] * 2
    assert [name for _, name, _ in sent[:2]] == [name for _, name, _ in sent[2:]]
    assert [view for _, _, view in sent] == ["", "", "id1", "id2"]
    (tmp_path / "d" / "amapo.json").unlink()
    with pytest.raises(UserError, match=r"amapo.json cannot be read"):
        dashboard.publish(tmp_path / "d", list(BOARDS[:2]), "team", "mine")
    assert len(sent) == 4
