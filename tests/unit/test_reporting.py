"""Tables, figures and the page, from made-up run directories and records."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from src.errors import UserError
from src.evaluation.records import DataInfo, Record, RunInfo, write_record
from src.evaluation.statistics import Metric
from src.reporting import plots
from src.reporting.console import print_records
from src.reporting.html import build_report, render_tables
from src.reporting.runs import find_runs, read_run
from src.reporting.tables import build_tables, cell_text, to_csv, to_markdown

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def make_run(
    root: Path, method: str = "simpo", *, seed: int = 0, dataset: str = "toy", noise: Any = None, **status: Any
) -> Path:
    """A run directory of 60 steps with training and validation curves."""
    directory = root / f"{method}__tiny__{dataset}__s{seed}__0123456789"
    directory.mkdir(parents=True)
    config = {"seed": seed, "method": {"name": method}, "model": {"name": "tiny"}, "dataset": {"name": dataset}}
    (directory / "config.yaml").write_text(yaml.safe_dump({**config, "noise": noise}))
    state = {
        "state": "finished",
        "step": 60,
        "total_steps": 60,
        "message": "",
        "config_hash": f"{method}{seed}{dataset}",
    }
    (directory / "status.json").write_text(json.dumps({**state, **status}))
    lines = []
    for step in range(1, 61):
        rise = 1 - math.exp(-step / 20) + 0.05 * math.sin(step * (3 + seed) + len(method))
        train = {"loss": 0.7 - 0.3 * rise, "rewards/margins": 2 * rise, "rewards/accuracies": 0.5 + 0.3 * rise}
        train |= {"grad_norm": 3 - rise, "rewards/chosen": rise, "rewards/rejected": -rise, "lr": 1e-3}
        lines.append({"step": step, "split": "train", **train})
        if step % 15 == 0:
            lines.append({"step": step, "split": "validation", "loss": 0.6, "rewards/accuracies": 0.5 + 0.25 * rise})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "timings.jsonl").write_text(json.dumps({"step": 10, "pairs_per_second": 42.0}) + "\n")
    (directory / "environment.json").write_text(json.dumps({"commit": "abc123", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.0.0"}))
    return directory


def metric(value: float | None, reason: str = "") -> Metric:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": 0, "reason": reason}
    return {"value": value, "low": value - 0.04, "high": value + 0.04, "n": 300}


def make_record(
    method: str = "simpo",
    accuracy: float = 0.8,
    *,
    seed: int = 0,
    constants: Mapping[str, Any] | None = None,
    noise: str = "none",
    config_hash: str = "",
    metrics: Mapping[str, Metric] | None = None,
) -> Record:
    given = metrics or {
        "accuracy/average": metric(accuracy),
        "accuracy/sum": metric(accuracy - 0.05),
        "accuracy/reference": metric(None, "no reference log-probs given"),
        "spearman/average": metric(accuracy - 0.3),
        "lengths/chosen_mean": metric(30.0),
    }
    name = config_hash or f"{method}{seed}toy"
    run = RunInfo(f"runs/{name}", name, method, "tiny", "toy", noise, seed, 60, "best", dict(constants or {}))
    created = "2026-01-01T00:00:00+00:00"
    environment = {"commit": "abc123", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.0.0"}
    return Record("ranking", run, DataInfo("validation", "m", 300), given, {}, environment, "python -m x", created)


# --- tables


def test_rows_are_sorted_marked_and_formatted() -> None:
    (table,) = build_tables([make_record("sft", 0.6), make_record("amapo", 0.85), make_record("dpo", 0.8)])
    assert [row.label for row in table.rows] == ["amapo", "dpo", "sft"]
    assert [row.cells["accuracy/average"].best for row in table.rows] == [True, False, False]
    assert not any(row.cells["lengths/chosen_mean"].best for row in table.rows)
    assert cell_text("accuracy/average", table.rows[0].cells["accuracy/average"]) == "85.0 [81.0, 89.0]"
    assert cell_text("spearman/average", table.rows[0].cells["spearman/average"]) == "0.550 [0.510, 0.590]"
    assert cell_text("accuracy/reference", table.rows[0].cells["accuracy/reference"]) == "–"


def test_seeds_are_averaged_with_the_sample_deviation() -> None:
    (table,) = build_tables([make_record(accuracy=value, seed=seed) for seed, value in enumerate([0.7, 0.8, 0.9])])
    (row,) = table.rows
    assert row.seeds == (0, 1, 2)
    assert row.cells["accuracy/average"].value == pytest.approx(0.8)
    assert cell_text("accuracy/average", row.cells["accuracy/average"]) == "80.0 ± 10.0"


def test_settings_of_a_method_are_never_averaged() -> None:
    sweep = [make_record(config_hash=f"h{beta}{seed}", seed=seed, constants={"beta": beta, "lr": 1}) for beta in (1, 2)
             for seed in (0, 1)]  # fmt: skip
    (table,) = build_tables(sweep)
    assert [(row.label, row.seeds) for row in table.rows] == [("simpo beta=1", (0, 1)), ("simpo beta=2", (0, 1))]


def test_runs_that_differ_in_something_unnamed_are_told_apart_by_hash() -> None:
    (table,) = build_tables([make_record(config_hash="aaaaaaaa"), make_record(config_hash="bbbbbbbb")])
    assert [row.label for row in table.rows] == ["simpo #aaaaaa", "simpo #bbbbbb"]


def test_noise_settings_and_splits_are_separate_tables() -> None:
    tables = build_tables([make_record(), make_record(noise="RandomFlip(rate=0.3)")])
    assert [table.noise for table in tables] == ["RandomFlip(rate=0.3)", "none"]


def test_markdown_and_csv() -> None:
    tables = build_tables([make_record("sft", 0.6), make_record("weird|name", 0.8)])
    text = to_markdown(tables)
    assert "| weird\\|name | 1 | **80.0 [76.0, 84.0]** |" in text
    assert "| sft | 1 | 60.0 [56.0, 64.0] |" in text
    assert "no reference log-probs given" in text
    rows = list(csv.DictReader(io.StringIO(to_csv(tables))))
    assert len(rows) == 10
    assert {row["method"]: float(row["value"]) for row in rows if row["metric"] == "accuracy/average"} == {
        "sft": 0.6,
        "weird|name": 0.8,
    }
    empty = [row for row in rows if row["metric"] == "accuracy/reference"]
    assert all(row["value"] == "" and row["reason"] for row in empty)


def test_html_fragment_escapes() -> None:
    fragment = render_tables(build_tables([make_record("<b>bad</b>", 0.6), make_record("dpo", 0.8)]))
    assert "&lt;b&gt;bad&lt;/b&gt;" in fragment
    assert "<b>bad" not in fragment
    assert "<strong>80.0</strong>" in fragment


def test_console_shows_values_and_takes_names_literally() -> None:
    out = io.StringIO()
    console = Console(file=out, width=160)
    print_records([make_record("sft", 0.6), make_record("[red]x", 0.8)], console)
    text = out.getvalue()
    assert "80.0 [76.0, 84.0]" in text
    assert "[red]x" in text
    assert "vs reference" not in text  # no row has it


# --- run directories


def test_find_runs_at_any_depth(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "runs"), make_run(tmp_path / "runs" / "deeper", "dpo")
    (first / "checkpoints" / "step-1" / "model").mkdir(parents=True)
    (first / "checkpoints" / "step-1" / "config.yaml").write_text("")
    assert find_runs([tmp_path / "runs", first]) == sorted([first, second])
    assert find_runs([tmp_path / "nowhere"]) == []


def test_half_written_metrics_are_noted_and_the_rest_is_kept(tmp_path: Path) -> None:
    directory = make_run(tmp_path)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "loss": null, "rewards/margins": NaN, "grad_norm": 1.5}\n{"step": 62, "spl')
    run = read_run(directory)
    assert run.notes == ["metrics.jsonl: 1 line is half-written or malformed and left out (line 66)"]
    assert run.curves["train", "grad_norm"][0][-1] == run.step == 61
    assert run.curves["train", "loss"][0][-1] == 60
    assert run.curves["train", "rewards/margins"][0][-1] == 60


def test_a_step_written_twice_keeps_its_last_value(tmp_path: Path) -> None:
    directory = make_run(tmp_path)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "split": "train", "loss": 9.0}\n')
    steps, values = read_run(directory).curves["train", "loss"]
    assert steps == list(range(1, 61))
    assert values[29] == 9.0


def test_a_broken_run_directory_is_still_shown(tmp_path: Path) -> None:
    directory = tmp_path / "broken"
    directory.mkdir()
    (directory / "status.json").write_text("{")
    (directory / "config.yaml").write_text("a: [")
    run = read_run(directory)
    assert run.state == "unknown"
    assert len(run.notes) == 3
    path = build_report([directory], [], tmp_path / "out")  # a folder
    assert path == tmp_path / "out" / "report.html"
    page = path.read_text()
    assert "status.json is not a JSON object" in page


# --- figures


def test_figures_are_deterministic(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path))
    contents = []
    for name in ("a", "b"):
        figure = plots.draw_panel(lambda axes: plots.single_panel(axes, plots.PANELS[0], run, 0))
        contents.append([path.read_bytes() for path in plots.save(figure, tmp_path / name / "figure")])
    assert contents[0] == contents[1]
    assert contents[0][0].startswith(b"\x89PNG")


def test_a_long_label_leaves_room_for_the_figure(recwarn: pytest.WarningsRecorder) -> None:
    (table,) = build_tables([make_record("simpo", 0.7)])
    long = replace(table, rows=tuple(replace(row, label="simpo " + "adapter.alpha=None " * 20) for row in table.rows))
    figure = plots.draw_accuracy(long, [0])
    assert "adapter.alpha" in plots.inline_svg(figure, "label", "salt")
    assert figure.axes[0].get_position().width > 0.3
    assert [str(warning.message) for warning in recwarn if "layout" in str(warning.message)] == []


def test_thin_and_smooth_keep_ends_and_means() -> None:
    steps, values = list(range(1, 1001)), [float(i % 2) for i in range(1000)]
    thinned = plots.thin((steps, values))
    assert len(thinned[0]) == plots.MAX_POINTS
    assert thinned[0][-1] == 1000
    smoothed = plots.smooth((steps, values))[1]
    assert (smoothed[0], smoothed[-1]) == (values[0], values[-1])
    assert max(abs(value - 0.5) for value in smoothed[100:-100]) < 0.02
    slope = [float(step) for step in steps]
    assert plots.smooth((steps, slope))[1] == pytest.approx(slope)  # no lag
    assert plots.smooth(([1, 2], [0.0, 5.0])) == ([1, 2], [0.0, 5.0])


def test_a_run_keeps_its_colour_and_class_in_every_figure(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path, method)) for method in ("simpo", "amapo", "dpo")]
    colours = plots.assign_colours(runs)
    assert sorted(colours.values()) == [0, 1, 2]
    panel = plots.PANELS[0]
    figure = plots.draw_panel(lambda axes: plots.overlay_panel(axes, panel, runs, colours))
    svg = plots.inline_svg(figure, 'a "label" <x>', "salt")
    for number in range(3):
        assert f'class="series-{number}"' in svg
        assert f"var(--series-{number})" in svg
    assert "&quot;label&quot; &lt;x&gt;" in svg
    assert "http" not in svg


# --- the page


class Page(HTMLParser):
    """Collects ids, links and whatever would make a browser fetch something; checks that tags nest."""

    VOID = ("meta", "link", "img", "br", "line", "path", "use", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.stack: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.ids.append(values["id"])
        if "href" in values:
            self.links.append(values["href"])
        if tag in ("link", "img", "iframe", "object", "embed") or "src" in values or "srcset" in values:
            self.fetched.append(f"<{tag}>")
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.stack.pop() == tag


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    for method in ("sft", "simpo"):
        make_run(root / "runs", method)
    make_run(
        root / "runs", "dpo", dataset="hh", noise={"name": "flip", "rate": 0.3}, state="failed", message="loss <nan>"
    )
    for method, accuracy in (("sft", 0.6), ("dpo", 0.78), ("simpo", 0.8)):
        write_record(root / "records", make_record(method, accuracy))
    out = root / "out" / "report.html"
    return build_report([root / "runs"], [root / "records"], out, now=NOW, command="python -m src.report")


def test_page_is_self_contained_and_well_formed(report: Path) -> None:
    text = report.read_text()
    page = Page(text)
    assert page.stack == []
    assert page.fetched == []
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"@import|url\((?!#)|https?:|fetch\(|XMLHttp", text)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(text) < 1_500_000


def test_page_says_what_there_is(report: Path) -> None:
    text = report.read_text()
    assert text.count("<svg") >= 3 * 4 + 2 * 4 + 1
    assert "<strong>80.0</strong>" in text
    assert "[76.0, 84.0]" in text
    assert "loss &lt;nan&gt;" in text
    assert "flip(rate=0.3)" in text
    assert "2026-01-02 03:04 UTC" in text
    assert "commit abc123" in text
    assert "simpo0toy" in text


def test_figures_and_tables_lie_beside_the_page(report: Path) -> None:
    names = {path.name for path in (report.parent / "figures").iterdir()}
    assert {"curves__toy.png", "curves__toy.svg", "curves__hh.svg", "ranking__toy__tiny__none__validation.svg"} <= names
    assert len(names) == 2 * (3 + 2 + 1)
    assert "| simpo | 1 | **80.0" in (report.parent / "tables" / "results.md").read_text()
    assert (report.parent / "tables" / "results.csv").read_text().count("\n") == 1 + 3 * 5


def test_page_is_the_same_for_the_same_input(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_record(tmp_path / "records", make_record())
    pages = [
        build_report([run], [tmp_path / "records"], tmp_path / name, now=NOW, command="x").read_bytes() for name in "ab"
    ]
    assert pages[0] == pages[1]


def test_everything_from_a_run_is_escaped(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'
    name = "x' onload=y $\\frac$ <i>"
    directory = make_run(tmp_path / "runs", name, dataset="<img src=x>", message=evil, state=evil, config_hash=evil)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(evil)
    record = make_record(evil, config_hash=evil, metrics={evil: metric(None, evil), "accuracy/sum": metric(0.5)})
    write_record(tmp_path / "records", record)
    text = build_report([tmp_path / "runs"], [tmp_path / "records"], tmp_path / "r.html", command=evil).read_text()
    assert text.count("<script") == 1
    assert "<img" not in text
    assert Page(text).stack == []


def test_records_alone_and_runs_alone_are_enough(tmp_path: Path) -> None:
    write_record(tmp_path / "records", make_record())
    page = build_report([tmp_path / "none"], [tmp_path / "records"], tmp_path / "a.html").read_text()
    assert 'id="curves"' not in page
    make_run(tmp_path / "runs")
    page = build_report([tmp_path / "runs"], [tmp_path / "none"], tmp_path / "b.html").read_text()
    assert "No evaluation record yet" in page


def test_nothing_to_report_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=r"nothing to report.*python -m src\.train.*make demo") as caught:
        build_report([tmp_path / "runs"], [tmp_path / "records"], tmp_path / "r.html")
    assert str(tmp_path / "runs") in str(caught.value)
    assert not (tmp_path / "r.html").exists()


def test_unwritable_output(tmp_path: Path) -> None:
    make_run(tmp_path / "runs")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        build_report([tmp_path / "runs"], [], tmp_path / "file" / "r.html")
