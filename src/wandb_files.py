"""What an offline run of Weights & Biases holds: its `.wandb` files read back, without network and without an account.

Such a file is a header and then blocks of 32 KiB as LevelDB writes its log: chunks of (checksum, length, type,
payload), where a record lies in one chunk or in a first, middle and last one; a payload is a protobuf of the package.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32768
FILE_HEADER = 7
CHUNK_HEADER = struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """One run, its parts put together. ``rows``: what was logged, by W&B's own step; ``identity``: id, name, project,
    group, job type and tags; ``repeated``: steps that more than one row has; ``finished``: whether the last part was.
    """

    identity: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    repeated: list[int] = field(default_factory=list)
    finished: bool = False


def parts_of(directory: Path, run_id: str) -> list[Path]:
    """The files of a run below ``directory`` (that was given to wandb.init), one per process, in order of start."""
    return sorted(directory.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb"))


def read_offline(directory: Path, run_id: str) -> OfflineRun:
    """All that the offline parts of a run hold. The torn end of a part whose process was killed is left out."""
    found = OfflineRun()
    for path in parts_of(directory, run_id):
        found.finished = False
        for record in records(path.read_bytes()):
            take(found, record)
    return found


def records(data: bytes) -> Iterator[Any]:
    """The messages of a file, up to the first that cannot be read: the machine went down while it was written."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2
    for payload in payloads(data):
        record = messages.Record()
        try:
            record.ParseFromString(payload)
        except DecodeError:
            return
        yield record


def payloads(data: bytes) -> Iterator[bytes]:
    """The payloads of a file, whole ones alone."""
    place, begun = FILE_HEADER, b""
    while place + CHUNK_HEADER.size <= len(data):
        left = BLOCK - place % BLOCK
        if left < CHUNK_HEADER.size:
            place += left
            continue
        _, length, kind = CHUNK_HEADER.unpack_from(data, place)
        start = place + CHUNK_HEADER.size
        if kind not in (WHOLE, FIRST, MIDDLE, LAST):
            place += left  # the rest of the block is padding
            continue
        if start + length > len(data):
            return
        place = start + length
        begun = data[start:place] if kind in (WHOLE, FIRST) else begun + data[start:place]
        if kind in (WHOLE, LAST):
            yield begun


def take(found: OfflineRun, record: Any) -> None:
    """Add one record to what was found."""
    kind = record.WhichOneof("record_type")
    if kind == "run":
        run = record.run
        found.identity = {
            "id": run.run_id,
            "name": run.display_name,
            "project": run.project,
            "group": run.run_group,
            "job_type": run.job_type,
            "tags": list(run.tags),
        }
        found.config |= {item.key: json.loads(item.value_json) for item in run.config.update}
    elif kind == "history":
        row = {name_of(item): json.loads(item.value_json) for item in record.history.item}
        step = int(row.get("_step", record.history.step.num))
        if step in found.rows:
            found.repeated.append(step)
        found.rows.setdefault(step, {}).update(row)
    elif kind == "summary":
        found.summary |= {name_of(item): json.loads(item.value_json) for item in record.summary.update}
    elif kind == "metric":
        name = record.metric.name or record.metric.glob_name
        found.axes[name] = record.metric.step_metric
    elif kind == "exit":
        found.finished = True


def name_of(item: Any) -> str:
    """The key of a value."""
    return ".".join(item.nested_key) if len(item.nested_key) else str(item.key)
