"""Run directories, read tolerantly, and the figures and charts of their curves."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from src.reporting import charts, plots
from src.reporting.pages.curves import fewer, overlay_charts
from src.reporting.runs import find_runs, read_run, recorded_runs
from src.reporting.tables import build_tables
from tests.reporting.made_up import make_record, make_run

# --- run directories


def test_find_runs_at_any_depth(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "runs"), make_run(tmp_path / "runs" / "deeper", "dpo")
    (first / "checkpoints" / "step-1" / "model").mkdir(parents=True)
    (first / "checkpoints" / "step-1" / "config.yaml").write_text("")
    (tmp_path / "runs" / ".jobs" / "train-1").mkdir(parents=True)
    (tmp_path / "runs" / ".jobs" / "train-1" / "status.json").write_text("{}")
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


# --- figures


def test_figures_are_deterministic(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path))
    contents = []
    for name in ("a", "b"):
        figure = plots.draw_grid([lambda axes: plots.overlay_panel(axes, plots.PANELS[0], [run], {str(run.path): 0})])
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


def test_a_run_keeps_its_colour_and_class_in_every_chart(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path, method)) for method in ("simpo", "amapo", "dpo")]
    colours = plots.assign_colours(runs)
    assert sorted(colours.values()) == [0, 1, 2]
    found = overlay_charts([(run, f"<{run.name}>", colours[str(run.path)]) for run in runs], 'a "name" <x>')
    drawing = str(next(chart for chart in found["Overview"] if chart.title == "Loss").drawing)
    for number in range(3):
        assert f"series-{number}" in drawing
        assert f"var(--series-{number})" in drawing
    assert "&quot;name&quot; &lt;x&gt;" in drawing
    assert "<simpo" not in drawing
    assert "http" not in drawing


def test_overlays_of_many_runs_stay_small(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path))
    steps = list(range(1, 5001))
    run.curves = {("train", "loss"): (steps, [1 / step for step in steps])}
    (chart,) = overlay_charts([(run, "a run", number) for number in range(200)], "toy")["Overview"]
    assert 10_000 < len(chart.drawing) < 200_000
    assert fewer(run.curves["train", "loss"], 24)[0][-1] == 5000  # where a run ended is never left out


# --- charts


def test_a_line_chart_places_its_points() -> None:
    drawing = charts.line_chart([charts.Line(([0, 10], [0.0, 1.0]), 12, "mean", "a & b")], "label", chance=0.5)
    curve = re.search(r'class="curve.*?d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', drawing)
    assert curve is not None
    left, low, right, high = map(float, curve.groups())
    assert (left, right) == (charts.LEFT, charts.RIGHT)
    assert charts.TOP < high < low < charts.BOTTOM
    assert "a &amp; b" in drawing
    assert 'stroke-dasharray="6 2.5"' in drawing  # the second ten runs are dashed
    middle = re.search(r'class="chance".*?y1="([\d.]+)"', drawing)
    assert middle is not None
    assert float(middle[1]) == pytest.approx((charts.TOP + charts.BOTTOM) / 2)
    assert charts.line_chart([charts.Line(([], []), 0)], "label") == ""
    assert "NaN" not in charts.line_chart([charts.Line(([5], [2.0]), 0)], "one point")


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.46, 0.81, ["0.5", "0.6", "0.7", "0.8"]),
        (-3.0, 3.0, ["-2", "0", "2"]),
        (0.0, 50_000.0, ["0k", "10k", "20k", "30k", "40k", "50k"]),
        (0.0, 5e-7, ["0", "1e-07", "2e-07", "3e-07", "4e-07", "5e-07"]),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, texts: list[str]) -> None:
    assert charts.texts_of(charts.nice(low, high, 5)) == texts


def test_histograms_share_their_bins_and_keep_their_tails() -> None:
    found = charts.binned({"clean": [*range(1000), 10_000_000], "flipped": [500.0, float("nan")]})
    assert found is not None
    assert found.totals == {"clean": 1001, "flipped": 1}
    assert found.edges[-1] < 1000
    assert found.counts["clean"][-1] > found.counts["clean"][-2]  # the outlier is in the last bin
    drawing = charts.histogram_chart(found, "label", "margin")
    assert drawing.count('class="bars"') == 2
    assert charts.binned({"all": [1.0, 1.0]}) is None
    assert charts.binned({"none": [float("inf")]}) is None


def test_a_recorded_run_stands_for_a_directory_that_is_not_here(tmp_path: Path) -> None:
    here = read_run(make_run(tmp_path, "dpo"))
    (run,) = recorded_runs([make_record("dpo"), make_record("simpo"), make_record("simpo", 0.7)], [here])
    assert run.recorded
    assert (run.section("method"), run.section("model"), run.seed, run.step) == ("simpo", "tiny", 0, 60)
    assert (run.noise, run.config_hash) == ("none", "simpo0toy")
