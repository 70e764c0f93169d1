"""The report in a real browser: the system's chromium, offline, from file://, at the width of a desk and of a phone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.evaluation.records import JudgeInfo, write_record
from src.reporting.html import build_report
from tests.reporting.made_up import NOW, make_record, make_run, metric

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FOUND = next((path for name in BROWSERS if (path := shutil.which(name))), None)
DESK, PHONE = 1200, 390

pytestmark = pytest.mark.skipif(FOUND is None, reason=f"none of {', '.join(BROWSERS)} is installed here")

EVIL = "</script><img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"
LONG = "an_answer_without_any_place_to_break_" * 12


def judged_record(folder: Path) -> Any:
    """An AlpacaEval record of the run amapo0toy, its answers and judgments on disk: two won, two lost, evil texts."""
    answers, judgments = folder / "answers" / "a", folder / "judgments" / "j"
    for path in (answers, judgments):
        (path / "shards").mkdir(parents=True)
    replies, verdicts = [], []
    for place, (first, likely) in enumerate([("own", "m"), ("own", "M"), ("baseline", "m"), ("baseline", "M")]):
        own = {"own": f"{EVIL} own {place} {LONG}", "baseline": f"baseline {place} {EVIL}"}
        prompt = [{"role": "user", "content": f"question {place} {EVIL}"}]
        replies.append({"prompt_id": f"{place:03d}", "prompt": prompt, "response": own["own"]})
        shown = [own["own"], own["baseline"]] if first == "own" else [own["baseline"], own["own"]]
        top = [{"token": likely, "logprob": -0.1}, {"token": "M" if likely == "m" else "m", "logprob": -2.4}]
        verdict = {"text": f"{likely} {EVIL}", "logprobs": [{"token": likely, "logprob": -0.1, "top_logprobs": top}]}
        verdicts.append({"id": f"{place:03d}", "shown": shown, "judge": {"model": EVIL}, **verdict})
    for path, rows in ((answers, replies), (judgments, verdicts)):
        (path / "shards" / "000000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = make_record("amapo", metrics={"length_controlled_winrate": metric(50.0)})
    sources = {"answers 1": {"path": str(answers), "hash": "x"}, "judgments": {"path": str(judgments), "hash": "y"}}
    judge = JudgeInfo("oracle", "oracle", "prompts")
    return replace(record, benchmark="alpaca_eval", sources=sources, judge=judge)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    for method in ("amapo", "simpo", "dpo"):
        make_run(root / "runs", method)
        write_record(root / "records", make_record(method, {"amapo": 0.9, "simpo": 0.8, "dpo": 0.7}[method]))
    make_run(root / "runs", "dpo", seed=1, noise={"name": "flip", "rate": 0.2}, state="failed", message=EVIL)
    write_record(root / "records", judged_record(root / "evaluations"))
    (root / "tables").mkdir()
    cells = "".join(f"<td>column {number}</td>" for number in range(30))
    (root / "tables" / "wide.html").write_text(f"<table><caption>Wide</caption><tr>{cells}</tr></table>{EVIL}")
    return build_report(
        [root / "runs"], [root / "records"], root / "out", tables=[root / "tables"], now=NOW, command="python -m x"
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=FOUND, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def opened(browser: Any, path: Path, width: int = DESK, **options: Any) -> Iterator[Any]:
    """A page in a fresh context; fails when it says anything on its console, throws, or asks for another file."""
    context = browser.new_context(viewport={"width": width, "height": 800}, offline=True, **options)
    context.set_default_timeout(5000)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.extend([] if request.url.endswith(".html") else [request.url]))
    page.goto(path.as_uri())
    yield page
    assert said == []
    assert page.title() != "pwned"
    context.close()


@pytest.mark.parametrize(("width", "scheme"), [(DESK, "light"), (PHONE, "light"), (PHONE, "dark")])
def test_every_page_opens_and_fits(report: Path, browser: Any, width: int, scheme: str) -> None:
    pages = sorted(report.parent.rglob("*.html"))
    assert len(pages) == 1 + 4 + 1
    with opened(browser, report, width, color_scheme=scheme) as page:
        for path in pages:
            page.goto(path.as_uri())
            closed, all_open, headings, background = page.evaluate(LOOK)
            assert max(closed, all_open) <= width, path
            assert headings == 1
            assert (sum(background) < 150) == (scheme == "dark"), background


LOOK = """() => {
  const wide = () => document.documentElement.scrollWidth;
  const closed = wide();
  for (const one of document.querySelectorAll("details")) one.open = true;
  const background = getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number);
  return [closed, wide(), document.querySelectorAll("h1").length, background];
}"""
"""How wide the page is, with its closed parts closed and opened; its first headings; its colour."""


def visible(page: Any) -> list[str]:
    """Names of the runs that the overview shows, in order."""
    return [text.strip() for text in page.locator("#overview tbody tr:visible th a").all_inner_texts()]


def test_filters_leave_rows_and_their_curves_out(report: Path, browser: Any) -> None:
    with opened(browser, report) as page:
        assert visible(page) == ["amapo", "dpo", "dpo", "simpo"]
        curves = page.locator(".overlay .curve:visible").count()
        assert curves > 0
        page.locator("#filters").get_by_label("Method").select_option("dpo")
        assert visible(page) == ["dpo", "dpo"]
        assert 0 < page.locator(".overlay .curve:visible").count() < curves
        assert page.locator(".overlay .legend button:visible").count() == 2
        page.locator("#filters").get_by_label("Labels").select_option("flip(rate=0.2)")
        assert visible(page) == ["dpo"]
        assert page.get_by_role("status").inner_text() == "1 of 4 runs"
        page.get_by_role("button", name="Clear").click()
        assert visible(page) == ["amapo", "dpo", "dpo", "simpo"]
        page.locator("#filters").get_by_label("Search").fill("pwned FAILED")
        assert visible(page) == ["dpo"]


def test_columns_sort_by_click_and_by_keyboard(report: Path, browser: Any) -> None:
    with opened(browser, report) as page:
        head = page.locator("#overview th", has_text="Ranking, %")
        page.get_by_role("button", name="Ranking, %").click()
        assert head.get_attribute("aria-sort") is not None
        order = visible(page)
        assert order[-1] == "dpo"  # the run without a number is last, whichever way it is sorted
        page.get_by_role("button", name="Ranking, %").press("Enter")
        assert visible(page)[:3] == order[:3][::-1]
        page.get_by_label("Sort by").select_option("name")
        assert visible(page) == ["amapo", "dpo", "dpo", "simpo"]


def test_legend_hides_curves_and_links_lead_to_runs_and_back(report: Path, browser: Any) -> None:
    with opened(browser, report, PHONE) as page:
        before = page.locator(".overlay .curve:visible").count()
        button = page.locator(".overlay .legend button", has_text="simpo")
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert page.locator(".overlay .curve:visible").count() < before
        page.locator("#overview a", has_text="amapo").click()
        assert page.locator("h1").inner_text().startswith("amapo, tiny, toy, seed 0")
        page.get_by_role("link", name="All runs").click()
        assert page.url.endswith("report.html#runs")
        page.get_by_role("link", name="Wide").click()
        assert page.locator(".scroll").evaluate("(one) => one.scrollWidth > one.clientWidth")  # it scrolls by itself


def test_samples_stand_side_by_side_and_are_texts(report: Path, browser: Any) -> None:
    run = report.parent / "runs" / "amapo__tiny__toy__s0__0123456789.html"
    with opened(browser, run) as page:
        samples = page.locator(".sample")
        assert [one.get_attribute("data-outcome") for one in samples.all()] == ["lost", "lost", "won", "won"]
        own, baseline = samples.first.locator(".sides .text").all()
        assert "own 1" in own.inner_text()
        assert "baseline 1" in baseline.inner_text()
        assert "</script><img" in own.inner_text()
        assert abs(own.bounding_box()["y"] - baseline.bounding_box()["y"]) < 2
        assert samples.first.locator(".verdict .text").inner_text().startswith("M ")
        assert page.locator("img").count() == 0
        page.locator(".choices button", has_text="lost").click()
        assert page.locator(".sample:visible").count() == 2
    with opened(browser, run, PHONE) as page:
        own, baseline = page.locator(".sample").first.locator(".sides .text").all()
        assert own.bounding_box()["y"] < baseline.bounding_box()["y"]


def test_without_scripts_everything_is_there(report: Path, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": PHONE, "height": 800})
    page = context.new_page()
    page.goto(report.as_uri())
    assert visible(page) == ["amapo", "dpo", "dpo", "simpo"]
    assert not page.locator("#filters").is_visible()
    assert page.locator(".overlay .chart").first.is_visible()
    context.close()
