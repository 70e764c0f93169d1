"""`python -m src.data.show`: the pairs that training would see, in the terminal and as a page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from src.schema import ShowConfig, TrainConfig
from tests.entry import Outcome, assert_says, call, refused
from tests.support import SMALL_DATA, SMALL_MODEL, places


def show(folder: Path, *more: str) -> Outcome:
    outcome = call("src.data.show", *SMALL_MODEL, *SMALL_DATA, *places(folder), *more)
    assert outcome.code == 0, outcome.err
    return outcome


def from_file(folder: Path, records: list[dict[str, Any]]) -> list[str]:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return ["dataset=local", f"dataset.source.path={path}", "dataset.validation_fraction=0.3"]


def record(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": f"p{number}", "prompt": f"question {number}?", "chosen": f"yes {number}", "rejected": "no"} | changes


def test_the_toy_world(tmp_path: Path) -> None:
    page = tmp_path / "deep" / "pairs.html"
    outcome = show(
        tmp_path,
        "noise=random_flip",
        "noise.rate=0.5",
        "pairs=4",
        f"html={page}",
        "dataset.max_length=40",
        "dataset.max_prompt_length=20",
    )
    assert outcome.out.count("\n#") == 4
    assert outcome.out.endswith(f"{page}\n")
    assert "template roles, span completion, stop token <|end|>" in outcome.out
    assert "\x1b" not in outcome.out
    text = page.read_text()
    assert text.count("<article>") == 4
    assert text.count("<h3>") == 8
    assert 'class="t cut' in text
    assert show(tmp_path, "only=[toy-0-000003]", "ids=true").out.count("\n#") == 1


def test_it_shows_what_training_prepares(tmp_path: Path) -> None:
    """The heading's hash is that of the manifest a run of the same keys records; flips are shown as they are there."""
    keys = [*SMALL_MODEL, *SMALL_DATA, *places(tmp_path), "noise=random_flip", "noise.rate=0.5"]
    assert call("src.preflight", *keys).code == 0
    (manifest,) = [json.loads(path.read_text()) for path in (tmp_path / "cache/prepared").glob("*/manifest.json")]
    outcome = call("src.data.show", *keys, "pairs=1000")
    assert f"prepared set {manifest['hash'][:12]}, {manifest['flipped']['count']} training" in outcome.out
    flipped = [line.split()[1] for line in outcome.out.splitlines() if line.startswith("#") and "FLIPPED" in line]
    assert flipped == manifest["flipped"]["ids"]
    assert len(flipped) > 10
    assert len(list((tmp_path / "cache/prepared").glob("*/manifest.json"))) == 1


def test_demonstrations_have_one_side(tmp_path: Path) -> None:
    shown = show(tmp_path, "method=sft", "pairs=2").out
    assert shown.count("chosen: ") == 2
    assert "rejected" not in shown


def test_a_page_escapes_what_data_says(tmp_path: Path) -> None:
    bad = "</span><script>alert(1)</script>"
    data = from_file(tmp_path, [record(n, id=f"{bad}{n}", chosen=f"{bad} {n}") for n in range(30)])
    page = tmp_path / "pairs.html"
    outcome = call("src.data.show", *SMALL_MODEL, *places(tmp_path), *data, f"html={page}")
    assert outcome.code == 0, outcome.err
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_a_template_that_does_not_fit_shows(tmp_path: Path) -> None:
    """The plain template of transcripts on a model with role tokens: no role token is in what is shown."""
    shown = show(tmp_path, "model.template=plain", "pairs=1").out
    assert "<|user|>" not in shown
    assert "Human:" in shown.replace("│", "")


def test_refusals(tmp_path: Path) -> None:
    small = [*SMALL_MODEL, *SMALL_DATA, *places(tmp_path)]
    assert_says(
        refused("src.data.show", *small, "pairs=0", "dataset.truncation=no", "split=test"),
        "3 problems found",
        "pairs=0 is too small",
        "dataset.truncation=no is not known",
        "split=test is not known",
    )
    assert_says(refused("src.data.show", *small, "only=[a]"), "only=a: no prepared pair of this split has that id")
    assert_says(refused("src.data.show", *small, f"html={tmp_path}"), f"html={tmp_path} cannot be written")
    assert_says(refused("src.data.show", "dataset=local"), "dataset.source.path has no value")
    assert_says(refused("src.data.show", *small, "splt=1"), "unknown key splt; did you mean split?")


def test_keys_of_training_keep_their_values() -> None:
    """A default of the schema of its own keys must not replace what a choice of model or data set says."""
    chosen = ("method=simpo", "model=llama3_8b_base", "adapter=lora", "dataset=hh_rlhf", "debug=smoke", "run_dir=x")
    trained = yaml.safe_load(call("src.train", *chosen, "--cfg", "job").out)
    shown = yaml.safe_load(call("src.data.show", *chosen, "--cfg", "job").out)
    own = {"split": "train", "pairs": 3, "only": [], "ids": False, "html": None}
    assert shown == trained | own
    inherited = {spec.name for spec in dataclasses.fields(TrainConfig)}
    schema = OmegaConf.structured(ShowConfig)
    assert [name for name in inherited if not OmegaConf.is_missing(schema, name)] == [], "must be MISSING in ShowConfig"


@pytest.mark.parametrize("arguments", [["--help"]])
def test_help(arguments: list[str]) -> None:
    shown = call("src.data.show", *arguments).out
    assert "html: null  # also write the pairs to this file" in shown
    assert "$" not in shown
