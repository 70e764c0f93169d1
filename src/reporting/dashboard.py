"""W&B workspaces from our own panels: one per paper and one for sweeps, as checked-in definitions.

``results/dashboards/<name>.json`` is what the package wandb-workspaces makes of a board of ``panels.py``, without
project and team. It is made and checked offline; only publishing needs an account.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.errors import Problems, UserError
from src.reporting.panels import BOARDS, Bar, Board, Panel

FORMAT = "marginalia dashboard 1"
COLUMNS = 3
WRITE = "python -m src.dashboard --write"


def boards(names: list[str]) -> list[Board]:
    """The boards of those names; [] is all of them. Raises ``UserError`` for an unknown one."""
    known = {board.name: board for board in BOARDS}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"boards={unknown[0]} is unknown; choose of: {', '.join(known)}")
    return [known[name] for name in names] if names else list(BOARDS)


def workspace(board: Board, entity: str = "", project: str = "") -> Any:
    """The workspace of a board. Raises ``UserError`` where wandb-workspaces is not installed or does not fit wandb."""
    workspaces, reports = packages()
    sections = []
    for place, section in enumerate(board.sections):
        layout = workspaces.SectionLayoutSettings(columns=COLUMNS, rows=-(-len(section.panels) // COLUMNS))
        panels = [drawn(reports, panel) for panel in section.panels]
        sections.append(workspaces.Section(name=section.name, panels=panels, is_open=place < 2, layout_settings=layout))
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=board.title,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis="step", remove_legends_from_panels=False),
        runset_settings=workspaces.RunsetSettings(
            filters=[workspaces.Tags().isin([board.tag])],
            groupby=[workspaces.Config(key) for key in board.group_by],
        ),
        auto_generate_panels=False,
    )


def packages() -> tuple[Any, Any]:
    """wandb_workspaces.workspaces and .reports.v2, which print a notice when they are imported."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import wandb_workspaces.reports.v2 as reports
            import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError(
            f"dashboards need the package wandb-workspaces ({error}); install it: "
            "pip install -r requirements/wandb.txt -c requirements/constraints.txt"
        ) from error
    return workspaces, reports


def drawn(reports: Any, panel: Panel | Bar) -> Any:
    """A panel of ours as one of W&B's."""
    if isinstance(panel, Bar):
        return reports.BarPlot(title=panel.title, metrics=[panel.logged])
    return reports.LinePlot(title=panel.title, x="step", y=list(panel.logged))


def definition(board: Board) -> dict[str, Any]:
    """What is checked in: the same at every call, in every project."""
    model = workspace(board)._to_model()
    spec = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    for place, node in enumerate(identified(spec)):
        node["__id__"] = hashlib.sha256(f"{board.name} {place}".encode()).hexdigest()[:11]  # W&B draws them at random
    return {"format": FORMAT, "name": board.name, "title": board.title, "spec": spec}


def identified(node: Any) -> Iterator[dict[str, Any]]:
    """Every object below ``node`` that has an id, in order."""
    if isinstance(node, dict):
        if "__id__" in node:
            yield node
        for value in node.values():
            yield from identified(value)
    elif isinstance(node, list):
        for value in node:
            yield from identified(value)


def file_of(folder: Path, board: Board) -> Path:
    """Where the definition of a board stands."""
    return folder / f"{board.name}.json"


def write(folder: Path, chosen: list[Board]) -> list[Path]:
    """Write the definitions; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for board in chosen:
        text = json.dumps(definition(board), indent=1, ensure_ascii=False) + "\n"
        aside = file_of(folder, board).with_suffix(".tmp")
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, file_of(folder, board))
    return [file_of(folder, board) for board in chosen]


def problems(folder: Path, chosen: list[Board]) -> list[str]:
    """What is wrong with the definitions: absent, unreadable, not what W&B's package reads or ``panels.py`` says."""
    found = []
    for board in chosen:
        path = file_of(folder, board)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            found.append(f"{path} cannot be read ({error}); make it: {WRITE}")
            continue
        if fault := fault_of(content):
            found.append(f"{path} is no definition of a workspace ({fault}); make it again: {WRITE}")
        elif content != definition(board):
            found.append(f"{path} is not what src/reporting/panels.py says ({difference(content, board)}); {WRITE}")
    known = {file_of(folder, board) for board in BOARDS}
    found += [f"{path} belongs to no board; remove it" for path in sorted(folder.glob("*.json")) if path not in known]
    return found


def fault_of(content: Any) -> str:
    """Why the package cannot read a definition; "" when it can."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return f"its format is not '{FORMAT}'"
    packages()
    from pydantic import ValidationError
    from wandb_workspaces.workspaces import internal

    models: Any = internal
    try:
        models.WorkspaceViewspec.model_validate(content.get("spec"))
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return ""


def difference(content: dict[str, Any], board: Board) -> str:
    """In which panels a definition differs, for its message."""
    old, new = (set(metrics_of(each)) for each in (content, definition(board)))
    said = [f"lacks {', '.join(sorted(new - old)[:3])}"] if new - old else []
    said += [f"has {', '.join(sorted(old - new)[:3])}"] if old - new else []
    return "; ".join(said) or "layout, titles or settings differ"


def metrics_of(content: dict[str, Any]) -> Iterator[str]:
    """The metrics that a definition draws."""
    for section in content["spec"]["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            yield from panel["config"].get("metrics", ())


def publish(folder: Path, chosen: list[Board], entity: str | None, project: str) -> list[str]:
    """Save the workspaces on the server; return their addresses. The next time the same views are replaced: their
    names are kept in ``<folder>/published``, by team and project.

    Raises ``UserError`` without a login, or when the definitions are not up to date.
    """
    from src.wandb_runs import package, refusals, require_login

    wandb = package("publishing dashboards", f"look at the report, which has the same panels; {WRITE} needs no account")
    require_login(wandb, "make dashboard", "look at the report (make report), which has the same panels")
    if wrong := problems(folder, chosen):
        raise Problems(wrong)
    with refusals("make dashboard", "try again when it is"):
        return list(saved(wandb, folder, chosen, entity, project))


def saved(wandb: Any, folder: Path, chosen: list[Board], entity: str | None, project: str) -> Iterator[str]:
    """Save each workspace and give its address."""
    owner = entity or str(wandb.Api().default_entity)
    kept = folder / "published" / f"{owner}__{project}.json"
    views: dict[str, dict[str, str]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for board in chosen:
        view = workspace(board, owner, project)
        before = views.get(board.name, {})
        view._internal_name, view._internal_id = before.get("name", ""), before.get("id", "")
        view.save()
        views[board.name] = {"name": view._internal_name, "id": view._internal_id}
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(views, indent=1) + "\n", encoding="utf-8")
        yield str(view.url)
