"""A job that takes next to nothing: `python -m tests.experiments.job FOLDER key=value ...` writes down that it ran."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

STOPPED = 75


def main(folder: Path, *, seconds: float = 0.0, code: int = 0, heeds: bool = True) -> int:
    """Note the start in FOLDER/starts, and the end by the file FOLDER/done unless ``code`` says that it failed."""
    stop: list[int] = []
    if heeds:
        signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop:
        time.sleep(0.02)
    if stop:
        (folder / "checkpoint").touch()
        return STOPPED
    print("a line of no interest")
    if code:
        print("the disk is full", file=sys.stderr)
        return code
    (folder / "done").touch()
    return 0


if __name__ == "__main__":
    given = dict(argument.split("=") for argument in sys.argv[2:])
    sys.exit(
        main(
            Path(sys.argv[1]),
            seconds=float(given.get("seconds", 0)),
            code=int(given.get("code", 0)),
            heeds=given.get("heeds", "1") == "1",
        )
    )
