"""The terminal: a progress bar where there is one, a line now and then where output goes to a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def shown(value: float | None, digits: int = 3) -> str:
    """A number for people; — when there is none."""
    return "—" if value is None else f"{value:.{digits}f}"


class NoDisplay:
    """What ranks other than rank 0 show: nothing."""

    @contextmanager
    def showing(self, first_step: int) -> Iterator[None]:
        yield

    def step(self, step: int, record: dict[str, Any], speed: dict[str, Any]) -> None: ...

    def validation(self, step: int, record: dict[str, Any], best: bool) -> None: ...


class TerminalDisplay:
    """Shows steps and validations of one run on standard error, within ``showing``."""

    def __init__(self, title: str, total_steps: int) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.total_steps = total_steps
        self.every = max(total_steps // 10, 1)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not sys.stderr.isatty(),
        )
        self.task = self.bar.add_task(title, total=total_steps, numbers="")

    @contextmanager
    def showing(self, first_step: int) -> Iterator[None]:
        """Show the bar from ``first_step`` on, and leave the terminal in order."""
        self.bar.update(self.task, completed=first_step)
        with self.bar:
            yield

    def step(self, step: int, record: dict[str, Any], speed: dict[str, Any]) -> None:
        numbers = f"loss {shown(record['loss'])}"
        if "rewards/accuracies" in record:
            numbers += f"  accuracy {shown(record['rewards/accuracies'], 2)}"
        numbers += f"  {speed['pairs_per_second']:.0f} pairs/s"
        self.bar.update(self.task, completed=step, numbers=numbers)
        if self.bar.disable and (step % self.every == 0 or step == self.total_steps):
            self.console.print(f"  step {step}/{self.total_steps}  {numbers}")

    def validation(self, step: int, record: dict[str, Any], best: bool) -> None:
        numbers = f"loss {shown(record['loss'])}"
        if "rewards/accuracies" in record:
            numbers += f"  accuracy {shown(record['rewards/accuracies'])}"
        mark = "  [green]best so far[/green]" if best else ""
        self.console.print(f"  validation at step {step}: {numbers}{mark}")
