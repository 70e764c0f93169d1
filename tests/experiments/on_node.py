"""What a node of the lab runs in place of Python: `on_node FOLDER -m src.resolved MANIFEST INDEX`, with the tables and
scales of FOLDER. While FOLDER/fail or FOLDER/sleep is there, tasks fail or sleep instead."""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path


def main(folder: Path, arguments: list[str]) -> None:
    """Run the module, as `python arguments` does."""
    if (folder / "fail").exists():
        print("a line of no interest\nthe disk is full", flush=True)
        sys.exit(3)
    if (folder / "sleep").exists():
        time.sleep(600)
    import src.experiments.experiment
    import src.experiments.scale

    src.experiments.experiment.EXPERIMENTS = folder
    src.experiments.scale.FOLDER = folder / "scale"
    assert arguments[0] == "-m"
    sys.argv = arguments[1:]
    runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
