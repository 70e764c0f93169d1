"""Running units: each below a folder of its own, finished ones never again, requests cached by the model's identity."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from src.benchmark_schema import LmHarnessConfig
from src.data.cache import json_hash
from src.errors import UserError
from src.evaluation.finish import say
from src.evaluation.harness.load import Unit
from src.evaluation.harness.package import require_lm_eval
from src.evaluation.harness.samples import sample_line
from src.generation.shards import claimed, json_text, read_json, write_durably

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from src.generation.policy import Policy

RESULT = "result.json"


@dataclass(frozen=True)
class Settings:
    """What numbers depend on besides model, task and data. ``seeds``: of Python, numpy, torch and the examples."""

    backend: str
    batch_size: int | str
    chat: bool
    multiturn: bool
    limit: int | None
    seeds: tuple[int, int, int, int]

    @classmethod
    def of(cls, config: LmHarnessConfig) -> Settings:
        """From the configuration; a chat template is the default of the toy world alone."""
        chat = config.benchmark == "toy" if config.apply_chat_template is None else config.apply_chat_template
        size = config.batch_size if config.batch_size == "auto" else int(config.batch_size)
        first, second, third, fourth = (int(seed) for seed in config.seeds)
        return cls(
            config.backend, size, chat, config.fewshot_as_multiturn, config.max_items, (first, second, third, fourth)
        )

    def describe(self) -> dict[str, Any]:
        """As plain data; what chat turns look like only where there are any."""
        found: dict[str, Any] = {
            "lm_eval": require_lm_eval(),
            "backend": self.backend,
            "batch_size": self.batch_size,
            "apply_chat_template": self.chat,
            "limit": self.limit,
            "seeds": list(self.seeds),
        }
        return found | ({"fewshot_as_multiturn": self.multiturn} if self.chat else {})


@dataclass(frozen=True)
class Place:
    """Where a model's results are. ``folder``: named by the model's identity; holds the request cache and a folder for
    each unit."""

    folder: Path

    @classmethod
    def of(cls, root: str, policy: Policy, settings: Settings) -> Place:
        """Below ``root``, named by the subject and everything that an answer to one request depends on."""
        identity = {"model": policy.describe(), "settings": {**settings.describe(), "limit": None, "seeds": None}}
        return cls(Path(root) / "lm_harness" / f"{safe(policy.name)}__{json_hash(identity)[:10]}")

    def unit(self, unit: Unit, settings: Settings) -> Path:
        """The folder of a unit: a pure function of its configuration, data and the settings."""
        return self.folder / f"{safe(unit.name)}__{json_hash(self.identity(unit, settings))[:10]}"

    def identity(self, unit: Unit, settings: Settings) -> dict[str, Any]:
        """Everything the unit's numbers depend on besides the model."""
        shots = {name: unit.shots(task) for name, task in sorted(unit.tasks.items())}
        return {
            "task": unit.name,
            "config": unit.config_hash,
            "data": unit.data_hash(settings.limit),
            "num_fewshot": shots,
            "settings": settings.describe(),
        }


def safe(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^\w.-]+", "_", name)


def finished_result(folder: Path) -> dict[str, Any] | None:
    """The result of a unit that was finished, with all its samples; ``None`` otherwise."""
    if not (folder / RESULT).exists():
        return None
    result = read_json(folder / RESULT)
    for sample in result["samples"].values():
        path = folder / sample["file"]
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != sample["hash"]:
            return None
    return result


def run_units(
    units: Sequence[Unit], place: Place, settings: Settings, model: str, opened: Callable[[], LM]
) -> list[dict[str, Any]]:
    """The result of every unit, in order; ``opened`` gives the model and is called only where something is left to do.

    Whatever ends it, finished units and answered requests are kept.
    """
    results = []
    lm: LM | None = None
    with claimed(place.folder):
        for number, unit in enumerate(units, 1):
            folder = place.unit(unit, settings)
            result = finished_result(folder)
            if result is None:
                lm = opened() if lm is None else lm
                say(f"  {number}/{len(units)} {unit.name}: {unit.documents(settings.limit)} documents")
                result = run_unit(unit, folder, place, settings, model, lm)
                say(f"  {number}/{len(units)} {unit.name}: {result['seconds']:.1f} s")
            else:
                say(f"  {number}/{len(units)} {unit.name}: finished before ({folder})")
            results.append(result)
    return results


def run_unit(unit: Unit, folder: Path, place: Place, settings: Settings, model: str, lm: LM) -> dict[str, Any]:
    """Ask everything of one unit that is not in the request cache, and write samples, then the result."""
    started = time.monotonic()
    found = evaluated(unit, settings, lm, str(place.folder / "requests"))
    folder.mkdir(parents=True, exist_ok=True)
    samples: dict[str, Any] = {}
    cut: dict[str, int] = {}
    for task, rows in found["samples"].items():
        name = f"{safe(task)}.samples.jsonl"
        content = b"".join(sample_line(model, task, row) for row in rows)
        write_durably(folder / name, content)
        samples[task] = {"file": name, "hash": hashlib.sha256(content).hexdigest(), "rows": len(rows)}
        cut[task] = truncated(lm, unit.tasks[task], rows)
    result = {
        "identity": place.identity(unit, settings),
        "results": {name: plain_results(of_task) for name, of_task in found["results"].items()},
        "versions": found["versions"],
        "n_shot": found["n-shot"],
        "n_samples": found["n-samples"],
        "samples": samples,
        "truncated": cut,
        "seconds": round(time.monotonic() - started, 3),
    }
    write_durably(folder / RESULT, json_text(json.loads(json.dumps(result, default=str))))
    return read_json(folder / RESULT)


def evaluated(unit: Unit, settings: Settings, lm: LM, cache: str | None) -> dict[str, Any]:
    """What ``lm_eval.simple_evaluate`` gives."""
    import lm_eval.evaluator

    first, second, third, fourth = settings.seeds
    refuse_long_answers(unit, lm)
    with mock.patch.object(lm_eval.evaluator, "add_env_info"):  # our record has it, and it takes seconds each time
        found = lm_eval.evaluator.simple_evaluate(
            model=lm,
            tasks=list(unit.objects),
            num_fewshot=unit.wanted.num_fewshot,
            batch_size=settings.batch_size,
            use_cache=cache,
            limit=settings.limit,
            log_samples=True,
            apply_chat_template=settings.chat,
            fewshot_as_multiturn=settings.multiturn,
            task_manager=unit.manager,
            random_seed=first,
            numpy_random_seed=second,
            torch_random_seed=third,
            fewshot_random_seed=fourth,
        )
    return dict(found)


def refuse_long_answers(unit: Unit, lm: LM) -> None:
    """Raise ``UserError`` where a task's longest answer leaves no room for a prompt."""
    longest = getattr(lm, "max_length", None)
    for name, task in unit.tasks.items():
        if task.OUTPUT_TYPE != "generate_until" or not isinstance(longest, int):
            continue
        answer = generated_tokens(lm, task.config.generation_kwargs or {})
        if answer >= longest:
            raise UserError(
                f"{name} lets answers have {answer} tokens, but the model takes {longest} tokens in all, so no prompt "
                "would fit before one; leave the task out, or give it as a YAML of your own with a smaller "
                "max_gen_toks in generation_kwargs (tasks_from)"
            )


def plain_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """A task's results with plain numbers."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in results.items()}


def truncated(lm: LM, task: Any, rows: Sequence[Mapping[str, Any]]) -> int:
    """How many documents' prompts lost their beginning because they did not fit into the model."""
    longest = getattr(lm, "max_length", None)
    if not isinstance(longest, int):
        return 0
    lengths: dict[str, int] = {}
    cut = set()
    for row in rows:
        for arguments in row["arguments"]:
            context, rest = arguments[0], arguments[1] if len(arguments) > 1 else ""
            if context not in lengths:
                lengths[context] = len(lm.tok_encode(context))
            if isinstance(rest, Mapping):
                room = longest - generated_tokens(lm, rest)
            else:
                room = longest + 1 - len(lm.tok_encode(rest)) if rest else longest
            if lengths[context] > room:
                cut.add(row["doc_id"])
    return len(cut)


def generated_tokens(lm: LM, options: Mapping[str, Any]) -> int:
    """How many tokens a response may have: room that is kept free for it."""
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    return next((int(options[name]) for name in names if options.get(name) is not None), int(lm.max_gen_toks))
