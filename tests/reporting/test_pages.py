"""The pages of the report, from made-up run directories and records."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from src.errors import UserError
from src.evaluation.records import write_record
from src.reporting.html import build_report
from src.reporting.runs import read_run
from tests.reporting.made_up import NOW, make_record, make_run, metric


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
    page = (tmp_path / "out" / "runs" / "broken.html").read_text()
    assert "status.json is not a JSON object" in page
    assert 'href="runs/broken.html"' in path.read_text()


# --- the page


class Page(HTMLParser):
    """Collects ids, links and whatever would make a browser fetch something; checks that tags nest."""

    VOID = ("meta", "link", "img", "br", "line", "path", "use", "rect", "input", "circle")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.stack: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.attributes.update(values)
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


FRAGMENT = """<table class="paper-table" onclick="alert(2)"><caption>paper, table1: a title</caption>
<thead><tr><th scope="col">method</th></tr></thead>
<tbody><tr><th scope="row">SimPO</th><td>1 &lt; 2</td></tr></tbody></table>
<script>alert(1)</script>
<ul class="footer"><li>Configurations: 0a1b2c3d4e, ffffffffff.</li></ul>"""


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
    make_run(root / "runs", "ipo", config_hash="0a1b2c3d4e")
    (root / "tables").mkdir()
    (root / "tables" / "paper_table1_laptop.html").write_text(FRAGMENT)
    out = root / "out" / "report.html"
    return build_report(
        [root / "runs"], [root / "records"], out, tables=[root / "tables"], now=NOW, command="python -m src.report"
    )


def pages_of(overview: Path) -> dict[str, Page]:
    """Every page of a report, by its path relative to the overview's folder."""
    root = overview.parent
    return {path.relative_to(root).as_posix(): Page(path.read_text()) for path in sorted(root.rglob("*.html"))}


def test_pages_are_self_contained_and_well_formed(report: Path) -> None:
    pages = pages_of(report)
    assert len(pages) == 1 + 5 + 1
    for name, page in pages.items():
        text = (report.parent / name).read_text()
        assert page.stack == [], name
        assert page.fetched == [], name
        assert not re.search(r"@import|url\((?!#)|https?:|fetch\(|XMLHttp", text), name
        assert len(page.ids) == len(set(page.ids)), name
        assert len(text) < 700_000, name


def test_every_link_leads_somewhere(report: Path) -> None:
    pages = pages_of(report)
    followed = set()
    for name, page in pages.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            path = (report.parent / name).parent / target if target else report.parent / name
            found = path.resolve().relative_to(report.parent.resolve()).as_posix()
            assert found in pages, (name, link)
            assert not anchor or anchor in pages[found].ids, (name, link)
            followed.add(found)
    assert followed == set(pages)  # each page is linked from another


def test_only_our_own_script_may_run(report: Path) -> None:
    for name in pages_of(report):
        text = (report.parent / name).read_text()
        (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in text
        assert "default-src 'none'" in text


def test_pages_say_what_there_is(report: Path) -> None:
    text = report.read_text()
    assert text.count('<svg class="chart"') >= 4 + 4
    assert "<strong>80.0</strong>" in text
    assert "[76.0, 84.0]" in text
    assert "flip(rate=0.3)" in text
    assert "2026-01-02 03:04 UTC" in text
    assert "commit abc123" in text
    assert "simpo0toy" in text
    assert "<option>simpo</option>" in text
    run = (report.parent / "runs" / "dpo__tiny__hh__s0__0123456789.html").read_text()
    assert "loss &lt;nan&gt;" in run
    assert run.count('<svg class="chart"') == 7  # four main panels, two of rewards, the learning rate


def test_a_run_that_is_only_recorded_has_a_page(report: Path) -> None:
    text = (report.parent / "runs" / "dpo0toy.html").read_text()
    assert "78" in text
    assert "recorded" in text
    assert 'id="curves"' not in text


def test_tables_of_papers_link_to_their_runs(report: Path) -> None:
    text = (report.parent / "tables" / "paper_table1_laptop.html").read_text()
    assert "<caption>paper, table1: a title</caption>" in text
    assert '<a href="../runs/simpo__tiny__toy__s0__0123456789.html">simpo0toy0</a>' not in text
    assert '<a href="../runs/ipo__tiny__toy__s0__0123456789.html">0a1b2c3d4e</a>' in text
    assert "alert" not in text.partition("<main")[2].partition("</main>")[0]
    run = (report.parent / "runs" / "ipo__tiny__toy__s0__0123456789.html").read_text()
    assert '<a href="../tables/paper_table1_laptop.html">paper, table1: a title</a>' in run


def test_figures_and_tables_lie_beside_the_overview(report: Path) -> None:
    names = {path.name for path in (report.parent / "figures").iterdir()}
    assert names == {
        f"{stem}.{suffix}"
        for stem in ("curves__toy", "curves__hh", "ranking__toy__tiny__none__validation")
        for suffix in ("png", "svg")
    }
    assert "| simpo | 1 | **80.0" in (report.parent / "tables" / "results.md").read_text()
    assert (report.parent / "tables" / "results.csv").read_text().count("\n") == 1 + 3 * 5


def test_pages_are_the_same_for_the_same_input(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_record(tmp_path / "records", make_record())
    found = []
    for name in "ab":
        page = build_report([run], [tmp_path / "records"], tmp_path / name, now=NOW, command="x")
        found.append({path.name: path.read_bytes() for path in page.parent.rglob("*.html")})
    assert found[0] == found[1]
    assert len(found[0]) == 2


EVIL = '"><script>alert(1)</script>'


def test_everything_from_a_run_is_escaped(tmp_path: Path) -> None:
    name = "x' onload=y $\\frac$ <i>"
    directory = make_run(tmp_path / "runs", name, dataset="<img src=x>", message=EVIL, state=EVIL, config_hash=EVIL)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(EVIL)
    (directory / "manifest.json").write_text(json.dumps({"counts": {EVIL: EVIL}, "noise": {EVIL: EVIL}}))
    edges = {"edges": [0.0, 1.0], "counts": {EVIL: [3]}}
    (directory / "distributions.json").write_text(json.dumps({"step": EVIL, "metrics": {EVIL: edges, "bad": EVIL}}))
    record = make_record(EVIL, config_hash=EVIL, metrics={EVIL: metric(None, EVIL), "accuracy/sum": metric(0.5)})
    write_record(tmp_path / "records", replace(record, settings={EVIL: EVIL}, notes=(EVIL,), counts={EVIL: 1}))
    out = build_report([tmp_path / "runs"], [tmp_path / "records"], tmp_path / "out" / "r.html", command=EVIL)
    pages = pages_of(out)
    assert len(pages) == 2
    for path, page in pages.items():
        text = (out.parent / path).read_text()
        assert text.count("<script") == 1
        assert "<img" not in text
        assert page.stack == []
        assert not any(attribute.startswith("on") for attribute in page.attributes)
        assert "bad is no histogram" in text or path == "r.html"


def test_names_of_pages_stay_within_their_folder(tmp_path: Path) -> None:
    for name in ("../../up", "A", "a"):
        write_record(tmp_path / "records", make_record(config_hash=name))
    out = build_report([], [tmp_path / "records"], tmp_path / "out")
    names = set(pages_of(out))
    assert {"report.html", "runs/up.html"} < names
    assert names - {"report.html", "runs/up.html"} in (
        {"runs/A.html", "runs/a-2.html"},
        {"runs/a.html", "runs/A-2.html"},
    )


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
