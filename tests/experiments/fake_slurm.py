"""SLURM's commands as scripts that keep what they were given and say what a test wants."""

from __future__ import annotations

from pathlib import Path

import pytest

SBATCH = """#!/bin/sh
if [ -e {folder}/refuse ] && [ "$(wc -l < {folder}/calls)" -ge "$(cat {folder}/refuse)" ]; then
  echo "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified" >&2
  exit 1
fi
echo "$@" >> {folder}/calls
wc -l < {folder}/calls
"""
TOLD = """#!/bin/sh
if [ ! -e {folder}/{name} ]; then echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; fi
cat {folder}/{name}
"""


class FakeSlurm:
    """``calls`` of sbatch; what squeue and sacct say is written by ``says``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scripts = {"sbatch": SBATCH, "scancel": "#!/bin/sh\n", "sinfo": "#!/bin/sh\n"}
        for name, text in (scripts | dict.fromkeys(("squeue", "sacct"), TOLD)).items():
            script = folder / "bin" / name
            script.parent.mkdir(parents=True, exist_ok=True)
            script.write_text(text.replace("{folder}", str(folder)).replace("{name}", name))
            script.chmod(0o755)
        (folder / "calls").touch()
        self.says()

    @property
    def calls(self) -> list[list[str]]:
        """Arguments of each call of sbatch that was taken."""
        return [line.split() for line in (self.folder / "calls").read_text().splitlines()]

    def option(self, call: int, name: str) -> str:
        """An option of the call with that number, which is the job's; "" where it has none."""
        found = [word.removeprefix(f"--{name}=") for word in self.calls[call - 1] if word.startswith(f"--{name}=")]
        return found[0] if found else ""

    def says(self, **tasks: str) -> None:
        """From now on: ``t1_0="RUNNING"`` is what squeue knows of task 1_0, ``a1_0`` what sacct does."""
        for letter, name in (("t", "squeue"), ("a", "sacct")):
            rows = [f"{task[1:]}|{state}|None|1:30" for task, state in tasks.items() if task.startswith(letter)]
            (self.folder / name).write_text("".join(f"{row}\n" for row in rows))

    def is_down(self) -> None:
        """No controller answers."""
        (self.folder / "squeue").unlink()

    def refuses_after(self, calls: int) -> None:
        """sbatch takes so many jobs and no more."""
        (self.folder / "refuse").write_text(str(calls))

    def takes_all(self) -> None:
        (self.folder / "refuse").unlink()


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """The fake commands, first on PATH."""
    fake = FakeSlurm(tmp_path_factory.mktemp("slurm"))
    monkeypatch.setenv("PATH", f"{fake.folder / 'bin'}:/usr/bin:/bin")
    return fake
