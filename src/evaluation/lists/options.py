"""Which keys of a listwise evaluation go together, and the rules they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from src.errors import Problems, UserError

if TYPE_CHECKING:
    from src.benchmark_schema import ListwiseConfig
    from src.evaluation.lists.scoring import ListRules

REWARDS = ("method", "average", "sum", "reference", "length")


def refuse_contradictions(config: ListwiseConfig) -> None:
    """Raise ``Problems`` for keys that are missing, unknown, or would not be read."""
    problems = []
    if config.reward is not None and config.reward not in REWARDS:
        problems.append(f"reward={config.reward} is not known; choose one of: {', '.join(REWARDS)}")
    if config.benchmark == "toy" and config.dataset is not None:
        problems.append(f"dataset={config.dataset.name} would not be read with benchmark=toy; give one of the two")
    if config.benchmark == "toy" and config.split == "all":
        problems.append("split=all would not be read with benchmark=toy, none of whose prompts is trained on")
    if config.stage == "score":
        problems += unread_when_scoring(config)
    else:
        if config.checkpoint is None:
            problems.append(
                "checkpoint has no value; give a run directory, a model directory or a hub id, or score stored "
                "rewards: stage=score samples=FILE"
            )
        if config.samples is not None:
            problems.append(f"samples={config.samples} would not be read; add stage=score, or leave it out")
    if problems:
        raise Problems(problems)


def unread_when_scoring(config: ListwiseConfig) -> list[str]:
    """What is wrong with ``stage=score``."""
    given = {
        "checkpoint": config.checkpoint,
        "dataset": None if config.dataset is None else config.dataset.name,
        "benchmark": None if config.benchmark == "official" else config.benchmark,
        "split": None if config.split == "held_out" else config.split,
        "max_items": config.max_items,
    }
    problems = [
        f"{key}={value} would not be read with stage=score, which reads stored rewards alone; leave it out"
        for key, value in given.items()
        if value is not None
    ]
    if config.samples is None:
        problems.append("stage=score scores stored rewards, and samples has no value; give samples=FILE")
    return problems


def rules_of(config: ListwiseConfig) -> ListRules:
    """The metrics' rules; raises ``UserError`` for values that cannot work."""
    from src.evaluation.lists.metrics import Gains
    from src.evaluation.lists.scoring import ListRules

    zero = config.zero
    if zero != "prompt" and (isinstance(zero, bool) or not isinstance(zero, (int, float))):
        raise UserError(f"zero={zero} is no score; give a number, or prompt for the lowest score of each prompt")
    n: Any = config.n
    if n is not None and not isinstance(n, (str, Sequence)):
        n = [n]
    sizes = n if n is None or isinstance(n, str) else tuple(n)
    gains = Gains(config.gains, None if zero == "prompt" else float(cast(float, zero)))
    return ListRules(tuple(config.k), sizes, gains)
