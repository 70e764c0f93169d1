"""Who is measured: runs, models as they are, endpoints, stored answers; and what cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from src.errors import UserError
from src.evaluation.subject import endpoint_subject, stored_subject, subject_of
from tests.entry import call
from tests.evaluation.small import config_of
from tests.support import SMALL_RUN, places
from tests.unit.generation_tools import tiny_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("trained")
    outcome = call("src.train", "method=simpo", *SMALL_RUN, "training.max_steps=2", *places(folder))
    assert outcome.code == 0, outcome.err
    (found,) = (path for path in (folder / "runs").iterdir() if "simpo" in path.name)
    return found


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """The run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / trained.name, symlinks=True))


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_run_is_described_as_its_directory_says(trained: Path, tmp_path: Path) -> None:
    subject = subject_of(config_of(tmp_path, checkpoint=str(trained)))
    assert subject.name == trained.name
    assert (subject.run.method, subject.run.model, subject.run.dataset) == ("simpo", "tiny", "toy")
    assert (subject.run.checkpoint, subject.run.step) == ("best", 2)
    assert subject.policy is not None
    assert subject.policy.template.hash == json.loads((trained / "manifest.json").read_text())["template"]["hash"]
    last = subject_of(config_of(tmp_path, checkpoint=str(trained), which="last"))
    assert last.run.checkpoint == "last"


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_an_unfinished_run_is_refused(copied: Path, tmp_path: Path, state: str) -> None:
    change(copied / "status.json", state=state, step=1, message="asked to stop")
    with pytest.raises(UserError, match=rf"not a finished run \(state '{state}', step 1 of 2: asked to stop\)"):
        subject_of(config_of(tmp_path, checkpoint=str(copied)))


def test_a_run_without_status_or_checkpoints_is_refused(copied: Path, tmp_path: Path) -> None:
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(UserError, match="without checkpoints/"):
        subject_of(config_of(tmp_path, checkpoint=str(copied)))
    change(copied / "status.json", state="running")
    with pytest.raises(UserError, match="not a finished run"):
        subject_of(config_of(tmp_path, checkpoint=str(copied)))
    (copied / "checkpoints").mkdir()
    (copied / "status.json").write_text('{"state": "fini')
    with pytest.raises(UserError, match=r"status.json cannot be read"):
        subject_of(config_of(tmp_path, checkpoint=str(copied)))


def test_a_half_written_checkpoint_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "checkpoints" / "best" / "COMPLETED").unlink()
    with pytest.raises(UserError, match="no whole checkpoint 'best'"):
        subject_of(config_of(tmp_path, checkpoint=str(copied)))


def test_another_template_than_the_datas_is_refused(copied: Path, tmp_path: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    change(copied / "manifest.json", template={**manifest["template"], "hash": "0123456789abcdef"})
    with pytest.raises(UserError, match="trained under the chat template 0123456789ab, but"):
        subject_of(config_of(tmp_path, checkpoint=str(copied)))


def test_a_model_directory_is_known_by_its_weights(tmp_path: Path) -> None:
    subject = subject_of(config_of(tmp_path, checkpoint=str(tiny_model())))
    assert (subject.name, subject.run.method, subject.run.checkpoint) == ("model", "none", "as it is")
    other = Path(shutil.copytree(tiny_model(), tmp_path / "model"))
    assert subject_of(config_of(tmp_path, checkpoint=str(other))).run.config_hash == subject.run.config_hash
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert subject_of(config_of(tmp_path, checkpoint=str(other))).run.config_hash != subject.run.config_hash


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (None, "checkpoint has no value"),
        ("runs/no_such_run/at/all", "no such directory"),
        ("/nowhere/at/all", "no such directory"),
        ("no-such-owner/no-such-model", "no-such-owner/no-such-model"),
    ],
)
def test_what_is_nowhere_is_refused(
    checkpoint: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message):
        subject_of(config_of(tmp_path, checkpoint=checkpoint))


def test_a_misspelt_run_is_refused_with_the_one_that_is_there(trained: Path, tmp_path: Path) -> None:
    misspelt = str(trained)[:-1]
    with pytest.raises(UserError, match=rf"no such directory .* did you mean checkpoint={trained}\?"):
        subject_of(config_of(tmp_path, checkpoint=misspelt))


def test_keys_that_would_not_be_read_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"template=llama3, stop_tokens=\['x'\] would not be read"):
        subject_of(config_of(tmp_path, checkpoint=str(trained), template="llama3", stop_tokens=["x"]))
    with pytest.raises(UserError, match="which=last would not be read"):
        subject_of(config_of(tmp_path, checkpoint=str(tiny_model()), which="last"))


def test_endpoints_and_stored_answers_need_no_weights() -> None:
    here, there = endpoint_subject("http://127.0.0.1:1/v1", "m"), endpoint_subject("http://127.0.0.1:2/v1", "m")
    assert here.policy is None
    assert here.run.config_hash != there.run.config_hash
    assert stored_subject("m", "aa").run.config_hash != stored_subject("m", "bb").run.config_hash
