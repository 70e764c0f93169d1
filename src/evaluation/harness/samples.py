"""Per-sample logs of lm-eval, ours and its own (``--log_samples``), as data.

A line is one document under one filter. Ours is what ``simple_evaluate`` gives, with ``model`` and ``task`` put in
front; lm-eval's own file has numbers as text and arguments as ``{"gen_args_0": {"arg_0": …}}``. Both are read.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.data.sources.files import located, open_content, read_json_lines
from src.errors import UserError

OWN_KEYS = {
    *("model", "task", "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
    *("doc_hash", "prompt_hash", "target_hash", "schema_version"),
}
"""What is no metric in a line."""


@dataclass(frozen=True)
class Row:
    """One document under one filter. ``resps``: for each request the answers (one, or as many as repeats): texts, or
    (log-likelihood, whether greedy). ``values``: metrics as they were logged."""

    doc_id: int
    doc: Mapping[str, Any]
    target: Any
    arguments: tuple[tuple[Any, ...], ...]
    resps: tuple[tuple[Any, ...], ...]
    filter: str
    values: Mapping[str, Any]


@dataclass
class Log:
    """All rows of one model on one task, in the order of the file."""

    model: str
    task: str
    path: Path
    rows: list[Row] = field(default_factory=list)


def sample_line(model: str, task: str, sample: Mapping[str, Any]) -> bytes:
    """One sample of ``simple_evaluate`` as a line of ours."""
    from lm_eval.utils import handle_non_serializable

    line = {"model": model, "task": task, **sample}
    return (json.dumps(line, ensure_ascii=False, default=handle_non_serializable) + "\n").encode("utf-8", "replace")


def read_logs(paths: Sequence[Path], tasks: Sequence[str]) -> list[Log]:
    """The logs in files, in their order. ``tasks``: of the files, where the files do not say it (one for each)."""
    logs: dict[tuple[str, str], Log] = {}
    for number, path in enumerate(paths):
        named = tasks[number] if len(tasks) == len(paths) else None
        model_of_file, task_of_file = names_of(path)
        for line, record in records_of(path):
            with located(path, line):
                row = row_of(record)
            model = str(record.get("model", model_of_file))
            task = str(record.get("task", named or task_of_file))
            log = logs.setdefault((model, task), Log(model, task, path))
            if log.path != path:
                raise UserError(
                    f"{log.path} and {path} both hold {task} of {model}, and which of them counts cannot be told "
                    "(other examples in the prompt, another date?); give one of them to samples"
                )
            log.rows.append(row)
    return list(logs.values())


def records_of(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line, sample) of JSON lines, or of one JSON list, as lm-eval wrote before 0.4.3 (then: number in the list)."""
    with open_content(path) as content:
        begins = content.read(1)
        if begins != b"[":
            yield from read_json_lines(path)
            return
        try:
            listed = json.loads(begins + content.read())
        except ValueError as error:
            raise UserError(f"{path} is no valid JSON: {error}; give a file that lm-eval wrote") from error
    for number, record in enumerate(listed, 1):
        if not isinstance(record, Mapping):
            raise UserError(f"{path}: entry {number} is no object; give a file that lm-eval wrote with --log_samples")
        yield number, record


def names_of(path: Path) -> tuple[str, str]:
    """(model, task) by the name of a file: lm-eval writes ``MODEL/samples_TASK_DATE.jsonl``, ours say it themselves."""
    stem = re.sub(r"\.jsonl(\.gz)?$|\.json(\.gz)?$", "", path.name)
    if match := re.fullmatch(r"samples_(.+?)_\d{4}-\d\d-\d\dT[\d.:-]+", stem):
        return path.absolute().parent.name, match[1]
    return stem, re.sub(r"\.samples$", "", re.sub(r"^samples_", "", stem))


def row_of(record: Mapping[str, Any]) -> Row:
    """One line; raises ``UserError`` for what is no sample of lm-eval."""
    absent = [key for key in ("doc_id", "doc", "resps") if key not in record]
    if absent:
        raise UserError(
            f"no sample of lm-eval: it lacks {', '.join(absent)}; give files that lm-eval wrote with --log_samples, or "
            "the .samples.jsonl files of this program"
        )
    if isinstance(record["doc_id"], bool) or not isinstance(record["doc_id"], int):
        raise UserError(f"doc_id must be a whole number, not {record['doc_id']!r:.40}")
    if not isinstance(record["doc"], Mapping) or not isinstance(record["resps"], list):
        raise UserError("doc must be an object and resps a list, as lm-eval writes them")
    names = record.get("metrics")
    listed = names if isinstance(names, list) else [key for key in record if key not in OWN_KEYS]
    return Row(
        doc_id=record["doc_id"],
        doc=record["doc"],
        target=record.get("target"),
        arguments=arguments_of(record.get("arguments") or []),
        resps=tuple(tuple(map(answer_of, flat(one))) for one in record["resps"]),
        filter=str(record.get("filter", "none")),
        values={str(name): record[name] for name in listed if name in record},
    )


def arguments_of(value: Any) -> tuple[tuple[Any, ...], ...]:
    """Arguments of each request."""
    if isinstance(value, Mapping):
        value = [list(one.values()) if isinstance(one, Mapping) else [one] for one in value.values()]
    return tuple(tuple(one) if isinstance(one, list) else (one,) for one in value)


def flat(value: Any) -> list[Any]:
    """The answers to one request: a pair alone is one answer, not two."""
    if not isinstance(value, list):
        return [value]
    return [value] if is_pair(value) else value


def is_pair(value: Any) -> bool:
    """Whether this is (log-likelihood, whether greedy), as numbers or as text."""
    if not isinstance(value, list) or len(value) != 2 or str(value[1]) not in ("True", "False"):
        return False
    try:
        float(value[0])
    except (TypeError, ValueError):
        return False
    return True


PAIR = re.compile(r"\((?P<ll>[-+.\deE]+|-?inf|nan), (?P<greedy>True|False)\)")


def answer_of(value: Any) -> Any:
    """A text, or (log-likelihood, whether greedy)."""
    if is_pair(value):
        return float(value[0]), str(value[1]) == "True"
    if isinstance(value, str) and (match := PAIR.fullmatch(value)):
        return float(match["ll"]), bool(ast.literal_eval(match["greedy"]))
    return value


def is_choice(row: Row) -> bool:
    """Whether every answer is a log-likelihood, and there are several: a multiple choice."""
    return len(row.resps) > 1 and all(len(one) == 1 and isinstance(one[0], tuple) for one in row.resps)
