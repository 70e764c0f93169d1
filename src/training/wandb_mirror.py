"""metrics.jsonl and timings.jsonl in Weights & Biases: every step once, however often the run was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from src.schema import LoggingConfig
from src.training.metrics import Mirror
from src.wandb_files import read_offline
from src.wandb_runs import Identity, open_run

AXES = {"train/*": "step", "validation/*": "step", "speed/*": "step", "pairs": "step"}
"""What is drawn against what."""

COLUMNS = ("pair", "prompt", "chosen", "rejected", "flipped")
MEASURED = ("rewards/chosen", "rewards/rejected", "rewards/margins")


@dataclass(frozen=True)
class SamplePair:
    """A validation pair as text."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    flipped: bool

    @property
    def cells(self) -> list[Any]:
        """In the order of ``COLUMNS``."""
        return [self.id, self.prompt, self.chosen, self.rejected, self.flipped]


class WandbMirror(Mirror):
    """One W&B run per run directory, continued on resume.

    W&B's own step counts rows: 2s is training step s, 2s + 1 the validation after it, so each row has one place and
    none is written twice; curves are drawn against ``step``. What an earlier process did not bring there (it was
    killed) is taken from metrics.jsonl, which is complete up to the checkpoint.
    """

    def __init__(
        self,
        logging: LoggingConfig,
        identity: Identity,
        directory: Path,
        config: Mapping[str, Any],
        samples: Callable[[], Sequence[SamplePair]],
    ) -> None:
        earlier = read_offline(directory, identity.id) if logging.backend == "wandb_offline" else None
        self.run = open_run(logging, identity, directory, config, notes=f"run directory: {directory}")
        self.directory = directory
        self.batch = int(config["training"]["global_batch_size"])
        self.last = max(earlier.rows, default=-1) if earlier is not None else int(self.run.step) - 1
        self.row = self.last
        self.samples: Callable[[], Sequence[SamplePair]] = samples
        self.measured: dict[int, Mapping[str, Sequence[float]]] = {}
        self.count = int(logging.samples)
        self.caught_up = False
        for name, axis in AXES.items():
            self.run.define_metric(name, step_metric=axis)

    def log(self, record: Mapping[str, Any], step: int) -> None:
        if not self.caught_up:
            self.caught_up = True
            for earlier in self.missing(before=row_of(record)):
                self.send(earlier)
        self.send(record)

    def missing(self, before: int) -> Iterator[Mapping[str, Any]]:
        """Lines of metrics.jsonl and timings.jsonl that W&B has not, in order, up to the row ``before``."""
        lines = [line for name in ("metrics.jsonl", "timings.jsonl") for line in lines_of(self.directory / name)]
        found = {(row_of(line), "split" in line): line for line in lines}  # of a step timed twice, the later counts
        yield from (found[key] for key in sorted(found) if self.last < key[0] < before)

    def send(self, record: Mapping[str, Any]) -> None:
        """One line, unless W&B has its row."""
        row, step = row_of(record), int(record["step"])
        if row <= self.last:
            return
        prefix = record.get("split", "speed")
        shown = {f"{prefix}/{key}": value for key, value in record.items() if key not in ("step", "split")}
        self.run.log({"step": step, "pairs": step * self.batch, **shown}, step=row)
        self.row = row

    def pairs(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Keep what the first and the latest validation gave of the sampled pairs."""
        kept = {name: metrics[name][: self.count].tolist() for name in MEASURED if name in metrics}
        if "rewards/margins" in kept:  # demonstrations have none
            first = min(self.measured, default=step)
            self.measured = {key: value for key, value in self.measured.items() if key == first} | {step: kept}

    def finish(self) -> None:
        """Log the table of pairs beside the last row, flush and close."""
        if self.measured and self.count and self.row > self.last:
            self.run.log({"validation/samples": self.table()}, step=self.row)
        self.run.finish()

    def table(self) -> Any:
        """Pairs, their rewards after the last validation, and the margin before."""
        import wandb

        first, last = min(self.measured), max(self.measured)
        now, before = self.measured[last], self.measured[first]
        heads: list[Any] = [*COLUMNS, *MEASURED, "ranked right", f"margin at step {first}"]
        rows = []
        for place, pair in enumerate(self.samples()[: len(now["rewards/margins"])]):
            margin = now["rewards/margins"][place]
            numbers = [now[name][place] for name in MEASURED]
            rows.append([*pair.cells, *numbers, margin > 0, before["rewards/margins"][place]])
        return wandb.Table(columns=heads, data=rows)


def row_of(record: Mapping[str, Any]) -> int:
    """W&B's own step of a line of metrics.jsonl or timings.jsonl."""
    return 2 * int(record["step"]) + (record.get("split") == "validation")


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; what a kill left half-written is not one."""
    found = []
    for text in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
    return found
