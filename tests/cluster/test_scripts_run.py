"""The batch scripts under bash, with stand-ins for SLURM's commands: what they start, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from src.cluster.manifest import Task, write
from src.config import ROOT

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=1 exec "$@"
"""
SCONTROL = """#!/bin/bash
case $1 in
show) printf '%s\\n' $NODES ;;
requeue) echo "requeue $2" >>"$FOLDER/calls" ;;
esac
"""
PYTHON = """#!/bin/bash
echo "rank of node: ${PET_NODE_RANK:-none}, flag: $([ -e "$MARGINALIA_STOP_FILE" ] && echo there || echo none), $*" \
  >>"$FOLDER/calls"
write() { printf '{\\n "state": "%s",\\n "step": %s\\n}\\n' "$1" "$2" >"$FOLDER/run/status.json"; }
case ${STORY:-} in
waits) until [ -e "$MARGINALIA_STOP_FILE" ]; do sleep 0.05; kill -0 "$TESTS" || exit 1; done
  write stopped 3; exit ${CODE:-75} ;;
fails) write failed 3; exit 2 ;;
esac
write finished 5
"""
STAND_INS = {
    "srun": SRUN, "scontrol": SCONTROL, "python": PYTHON, "squeue": '#!/bin/bash\necho "${STATE:-RUNNING}"\n',
    "sleep": "#!/bin/bash\n[ $1 != 60 ] || exit 0\nexec /bin/sleep $1\n",
}  # fmt: skip


@dataclass
class Job:
    """A job that has ended, or one that runs."""

    folder: Path
    process: subprocess.Popen[bytes]

    def ends(self) -> int:
        return self.process.wait(timeout=60)

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in (self.folder / "run" / "slurm").glob("*.out"))

    def started(self) -> None:
        """Wait until the program runs."""
        end = time.monotonic() + 60
        while not self.calls:
            assert time.monotonic() < end
            time.sleep(0.05)


def start(folder: Path, script: str = "train.sbatch", **environment: str) -> Job:
    """``bash slurm/SCRIPT MANIFEST 0`` as SLURM starts it, with stand-ins first on PATH."""
    for name, text in STAND_INS.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    manifest = write(folder / "m", [Task("src.train", (), {}, str(folder / "run"))])
    given = {
        "FOLDER": str(folder), "NODES": "localhost", "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "MARGINALIA_ROOT": str(ROOT), "MARGINALIA_SUBMISSION": str(folder / "s"), "MARGINALIA_RANKS": "1",
        "MARGINALIA_PYTHON": str(folder / "bin" / "python"), "MARGINALIA_RESTARTS": "1", "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "marginalia-train", "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1",
        "TESTS": str(os.getpid()),  # without whom nobody would end a program that waits
    }  # fmt: skip
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "MARGINALIA_"))}
    command = ["bash", str(ROOT / "slurm" / script), str(manifest), "0"]
    return Job(folder, subprocess.Popen(command, env=kept | given | environment))


def test_a_training_of_one_process_is_started_and_ends(tmp_path: Path) -> None:
    job = start(tmp_path)
    assert job.ends() == 0, job.log
    (call,) = job.calls
    assert call.endswith(f"-m src.resolved {tmp_path}/m/manifest.jsonl 0")


def test_every_node_gets_its_own_rank_and_the_first_nodes_name(tmp_path: Path) -> None:
    job = start(tmp_path, SLURM_NNODES="2", MARGINALIA_RANKS="4", NODES="localhost other")
    assert job.ends() == 0, job.log
    (call,) = job.calls
    assert call.startswith("rank of node: 1, ")
    assert "--nnodes 2 --nproc-per-node 4 --rdzv-backend static --master-addr localhost --master-port 20007" in call


@pytest.mark.parametrize(("nodes", "words"), [("", "no first node"), ("no-such-node.invalid", "does not resolve")])
def test_a_first_node_that_cannot_be_found_is_said(tmp_path: Path, nodes: str, words: str) -> None:
    job = start(tmp_path, SLURM_NNODES="2", NODES=nodes)
    assert job.ends() == 1
    assert words in job.log
    assert "ranks have no place to meet" in job.log
    assert job.calls == []


def test_a_stop_flag_of_an_earlier_start_is_removed(tmp_path: Path) -> None:
    (tmp_path / "s" / "stop").mkdir(parents=True)
    (tmp_path / "s" / "stop" / "7").touch()
    job = start(tmp_path)
    assert job.ends() == 0, job.log
    assert "flag: none" in job.calls[0]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("code", ["75", "0"])  # of a plain process, and under torchrun
def test_asked_to_stop_it_is_queued_again(tmp_path: Path, number: signal.Signals, code: str) -> None:
    job = start(tmp_path, STORY="waits", CODE=code)
    job.started()
    job.process.send_signal(number)
    assert job.ends() == 0, job.log
    assert job.calls[1:] == ["requeue 7"]
    assert "asked to stop" in job.log


def test_without_a_step_between_starts_it_gives_up(tmp_path: Path) -> None:
    for expected in (0, 1):
        job = start(tmp_path, STORY="waits")
        wanted = 1 + sum("rank" in call for call in job.calls)
        while sum("rank" in call for call in job.calls) < wanted:
            time.sleep(0.05)
        job.process.send_signal(signal.SIGUSR1)
        assert job.ends() == expected, job.log
    assert job.calls.count("requeue 7") == 1
    assert "given up: 2 starts in a row brought no step (cluster.restarts=1)" in job.log


def test_what_slurm_ends_itself_is_left_to_it(tmp_path: Path) -> None:
    job = start(tmp_path, STORY="waits", STATE="COMPLETING")
    job.started()
    job.process.send_signal(signal.SIGTERM)
    assert job.ends() == 1
    assert "not queued again by this script: the job is COMPLETING" in job.log
    assert len(job.calls) == 1


def test_the_last_task_of_an_array_is_queued_again_alone(tmp_path: Path) -> None:
    """SLURM gives it the job id of the whole array."""
    job = start(tmp_path, STORY="waits", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="11")
    job.started()
    job.process.send_signal(signal.SIGUSR1)
    assert job.ends() == 0, job.log
    assert job.calls[1:] == ["requeue 7_11"]


@pytest.mark.parametrize("script", ["train.sbatch", "evaluate.sbatch", "judge.sbatch"])
def test_what_fails_by_itself_fails(tmp_path: Path, script: str) -> None:
    job = start(tmp_path, script, STORY="fails")
    assert job.ends() == 2
    assert "ended with exit code 2" in job.log
    assert len(job.calls) == 1
