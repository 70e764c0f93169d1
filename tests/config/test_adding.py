"""The examples of docs/adding_*.md are complete: their files, put where the pages say, train and measure."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support import ROOT, SMALL_MODEL, metrics
from tests.test_house import keys_of

PAGES = sorted((ROOT / "docs").glob("adding_a_*.md"))
FENCE = re.compile(r"^(?P<before>[^\n]+)\n\n```(?P<language>\w+)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r"`([\w/]+\.(?:py|yaml))`")

SHORT = ("training.max_steps=2", "training.global_batch_size=8", "training.micro_batch_size=8")
JUDGED = ("benchmark=toy", "judge=oracle", "output=json", "max_items=6", "decoding.max_new_tokens=8")


def pieces() -> Iterator[tuple[str, str, str]]:
    """(language, file, text) of every block that belongs into a file, which the line above it names."""
    for page in PAGES:
        for match in FENCE.finditer(page.read_text()):
            if match["language"] in ("python", "yaml", "diff"):
                file = QUOTED.findall(match["before"])[0]
                yield match["language"], file, match["text"]


def placed(tree: Path, language: str, file: str, text: str) -> None:
    """Put a block into its file: a new one, the end of one that is there, or lines after those it shows."""
    path = tree / file
    if language != "diff":
        assert (ROOT / file).exists() == (language == "python" and text.startswith("@")), f"{file} is there already"
        path.write_text(f"{path.read_text()}\n\n{text}" if path.exists() else text)
        return
    content = path.read_text()
    for before, added in re.findall(r"^ (.*)\n\+(.*)$", text, re.MULTILINE):
        assert content.count(f"{before}\n") == 1, before
        content = content.replace(f"{before}\n", f"{before}\n{added}\n")
    path.write_text(content)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with the pages' examples in it."""
    folder: Path = tmp_path_factory.mktemp("program")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("local"))
    (folder / "results").mkdir()
    shutil.copy(ROOT / "results" / "record.schema.json", folder / "results")
    for piece in pieces():
        placed(folder, *piece)
    rows = [
        {
            "history": f"Which number is larger than {index}?",
            "human_ref_A": f"The number {index + 1} is.",
            "human_ref_B": "No idea.",
            "labels": index % 2,
            "score_A": 3 + index % 2 * 6,
            "score_B": 6 - index % 2 * 3,
            "score_ratio": 1.2 if index % 5 == 0 else 3.0,
        }
        for index in range(100)
    ]
    (folder / "shp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


PROGRAM = """
import json, sys
from pathlib import Path
from tests.entry import PROGRAMS, call

PROGRAMS["src.evaluation.acceptance"] = "acceptance"
train, measure = json.loads(sys.argv[1])
done = call("src.train", *train)
print(done.err, file=sys.stderr)
assert done.code == 0
(run,) = Path("runs").iterdir()
done = call("src.evaluation.acceptance", f"checkpoint={run}", *measure)
print(done.err, file=sys.stderr)
print(done.out)
sys.exit(done.code)
"""
"""Both commands in one process: the libraries take seconds to load."""


def said(tree: Path, train: tuple[str, ...], measure: tuple[str, ...]) -> str:
    """What the measurement of a run says on standard output, in the copy."""
    search = os.pathsep.join(map(str, (tree, ROOT)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": search}
    command = [sys.executable, "-c", PROGRAM, json.dumps([train, measure])]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pages_have_their_blocks() -> None:
    files = [file for _, file, _ in pieces()]
    assert len(PAGES) == 3
    assert [file for file in files if file.startswith("src/")] == [
        "src/evaluation/acceptance.py",
        "src/benchmark_schema.py",
        "src/config.py",
        "src/data/sources/shp.py",
    ]
    assert len(files) == 9


def test_their_yaml_keys_have_comments() -> None:
    for language, file, text in pieces():
        lines = text.splitlines()
        for key in keys_of(yaml.compose(text)) if language == "yaml" else ():
            number = key.start_mark.line
            above = lines[number - 1] if number else ""
            commented = re.search(r"\s#\s*\S", lines[number]) or (above.startswith("#") and "@package" not in above)
            assert commented, f"{file}: {key.value}"


def test_the_examples_train_and_measure(tree: Path) -> None:
    data = ("dataset=shp", "dataset.source.path=shp.jsonl", "dataset.source.min_score_ratio=2")
    train = ("method=simpo_hinge", *data, *SMALL_MODEL, *SHORT, "engine.device=cpu")
    found = json.loads(said(tree, train, (*JUDGED, "generator.device=cpu")))
    assert found["judge"] == "oracle"
    assert found["counts"] == {"judged": 6, "unparsable": 0}
    assert 0 <= found["accepted"] <= 100
    (path,) = (tree / "results" / "records").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["benchmark"], record["metrics"]["accepted"]["value"]) == ("acceptance", found["accepted"])
    (run,) = (tree / "runs").iterdir()
    assert run.name.startswith("simpo_hinge__tiny__shp__s0__")
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["learning_rate"] == 7e-4  # the page's recipe
    assert "votes lie too close" in (run / "manifest.json").read_text()
    assert all(0 < line["loss"] < 10 for line in metrics(run, "train"))
