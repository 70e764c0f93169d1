"""What a run of tasks would take, said before the model is read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.evaluation.finish import say
from src.evaluation.harness.load import Unit
from src.evaluation.harness.run import Place, Settings, finished_result

if TYPE_CHECKING:
    from src.generation.policy import Policy

SAMPLED = 16
"""Documents of a task whose prompts are built to tell how long prompts are."""

RATES = {"cpu": (2e10, 5e9), "cuda": (1e14, 1e12)}
"""Rough floating point operations and bytes of memory a second."""

STEP = 0.004
"""Seconds that a step of generation takes at least."""


@dataclass(frozen=True)
class Work:
    """What a unit asks for. ``tokens``: of all prompts and continuations; ``steps``: of generation, at the longest."""

    documents: int
    requests: int
    tokens: int
    steps: int

    def seconds(self, parameters: int, device: str, batch_size: int) -> float:
        """At rough rates: 2 operations per parameter and token, and reading the weights once a step."""
        operations, memory = RATES[device]
        per_step = max(STEP, 4 * parameters / memory)
        return 2.0 * parameters * self.tokens / operations + self.steps / batch_size * per_step


def say_estimate(units: Sequence[Unit], place: Place, settings: Settings, policy: Policy, device: str) -> None:
    """Documents, requests and rough time of every unit, on standard error."""
    parameters = parameters_of(policy.directory)
    kind = device_kind(device)
    size = settings.batch_size if isinstance(settings.batch_size, int) else 16
    total = 0.0
    say(f"{len(units)} tasks or groups of lm-eval on {policy.name}, results below {place.folder}")
    for unit in units:
        if finished_result(place.unit(unit, settings)) is not None:
            say(f"  {unit.name}: finished before")
            continue
        work = work_of(unit, settings, policy)
        seconds = work.seconds(parameters, kind, size)
        total += seconds
        say(
            f"  {unit.name}: {work.documents} documents, {work.requests} requests, about {work.tokens} tokens to read"
            f"{f' and at most {work.steps} to write' if work.steps else ''}: {spoken(seconds)}"
        )
    say(f"  in all {spoken(total)} on {kind}, roughly, without what is in the request cache already")


def work_of(unit: Unit, settings: Settings, policy: Policy) -> Work:
    """What a unit asks for, from the prompts of a few documents of each of its tasks."""
    documents = requests = tokens = steps = 0
    for task in unit.tasks.values():
        size = len(task.eval_docs)
        count = size if settings.limit is None else min(size, settings.limit)
        chosen = random.Random(0).sample(range(count), min(SAMPLED, count))
        task.set_fewshot_seed(settings.seeds[3])
        asked = [arguments for index in chosen for arguments in arguments_of(task, unit.shots(task), index)]
        share = count / len(chosen)
        documents += count
        requests += round(len(asked) * share)
        tokens += round(sum(len(ids_of(policy, one)) for one in asked) * share)
        steps += round(sum(longest_answer(one) for one in asked) * share)
    return Work(documents, requests, tokens, steps)


def arguments_of(task: Any, shots: int, index: int) -> list[tuple[Any, ...]]:
    """The arguments of the requests about one document."""
    document = task.eval_docs[index]
    context = task.fewshot_context(document, num_fewshot=shots)
    built = task.construct_requests(doc=document, ctx=context, metadata=(task.config.task, index, 1))
    return [tuple(one.args) for one in (built if isinstance(built, list) else [built])]


def ids_of(policy: Policy, arguments: tuple[Any, ...]) -> list[int]:
    """The token ids of a request's texts."""
    text = "".join(part for part in arguments if isinstance(part, str))
    return list(policy.template.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def longest_answer(arguments: tuple[Any, ...]) -> int:
    """Tokens that a response may have; 0 where a log-likelihood is asked for."""
    options = arguments[1] if len(arguments) > 1 else None
    if not isinstance(options, dict):
        return 0
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    return next((int(options[name]) for name in names if options.get(name) is not None), 256)


def parameters_of(directory: Path) -> int:
    """Parameters of a model, by the size of its files (4 bytes each at most)."""
    size = sum(path.stat().st_size for pattern in ("*.safetensors", "*.bin") for path in directory.glob(pattern))
    return max(1, size // 4)


def device_kind(device: str) -> str:
    """``cpu`` or ``cuda``."""
    import torch

    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def spoken(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
