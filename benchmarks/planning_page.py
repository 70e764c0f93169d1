"""Write the tables of docs/planning.md: `python -m benchmarks.planning_page`.

The papers' models at their global batch and length on servers of eight GPUs, and how far predictions of memory were
from measurements (results/benchmarks/memory_plan.json). Nothing is run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.memory_plan import OUTPUT
from src.config import CONF, ROOT, compose_train
from src.planner.fit import Fit, fit_of
from src.planner.gpus import GIB, GPUS
from src.planner.shape import shape_of
from src.planner.sizes import Rows
from src.planner.words import duration
from src.training.assemble import build_objective
from src.training.plan_sizes import Machines, setting_of, work_of

PAGE = ROOT / "docs" / "planning.md"
MARK = "<!-- {} by python -m benchmarks.planning_page -->"
MODELS = ("llama3_8b_base", "mistral_7b_instruct", "gemma2_9b_instruct")
METHODS = {"simpo": (), "gapo": ("method.probe=perturb",), "simpo_sam": ()}
"""One backward, GAPO's three and a half, SAM's two; AMaPO, γ-PO, GapPO and DPO with stored references are as SimPO."""

PROMPT, RESPONSE = 200, 400
"""Average tokens of a prompt and of a response, assumed: about what UltraFeedback has."""


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    begin, end = MARK.format("begun"), MARK.format("ended")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n\n{tables()}\n\n{end}{after}", encoding="utf-8")
    print(PAGE)
    return 0


def tables() -> str:
    """Both tables, as Markdown."""
    return "\n".join([*recipes(), "", *differences()])


def recipes() -> Iterator[str]:
    """A line for each model, method and number of servers: memory, and on each GPU the time of a step or what to
    change."""
    names = [gpu.name for gpu in GPUS.values()]
    yield f"| model | method | pairs a step | GPUs | pairs a forward | GiB a GPU | {' | '.join(names)} |"
    yield "|" + "---|" * (6 + len(names))
    for model in MODELS:
        for method, more in METHODS.items():
            for nodes in (1, 8) if (CONF / "recipe" / f"{method}__{model}.yaml").exists() else ():
                yield row(model, method, more, nodes)


def row(model: str, method: str, more: tuple[str, ...], nodes: int) -> str:
    """One line of ``recipes``."""
    machines = Machines(nodes, 8)
    choices = [f"method={method}", f"model={model}", "dataset=ultrafeedback_binarized", "engine=zero3", *more]
    config = compose_train([*choices, "training.micro_batch_size=2"])
    shape = shape_of(config, None)
    length = config.dataset.max_length
    rows = Rows(length, length, 2.0 * (PROMPT + RESPONSE), 2.0 * RESPONSE, both=True)
    setting, work = setting_of(config, machines), work_of(config, build_objective(config), shape)
    fits = [fit_of(gpu, shape, rows, work, setting) for gpu in machines.gpus]
    cells = [cell(fit) for fit in fits]
    memory = f"{fits[0].memory.total / GIB:.1f}"
    columns = [model, method, setting.global_batch, f"{nodes} x 8", setting.micro_batch, memory, *cells]
    return f"| {' | '.join(map(str, columns))} |"


def cell(fit: Fit) -> str:
    """Time of a step where it fits, else what to change."""
    if fit.fits:
        return duration(fit.time.total)
    return f"no: `{' '.join(fit.changes)}`" if fit.changes else "no"


def differences() -> Iterator[str]:
    """A line for each measured case: by how much predictions differ."""
    found: dict[str, Any] = json.loads(OUTPUT.read_text(encoding="utf-8"))
    yield "| architecture | computes in | blocks | states | activations | peak |"
    yield "|---|---|---|---|---|---|"
    for case in found["cases"]:
        shares = [
            f"{100 * (case[what]['predicted'] / case[what]['measured'] - 1):+.1f} %"
            for what in ("states", "activations", "peak")
        ]
        how = "checkpointed" if case["checkpointing"] else "kept"
        yield f"| {case['family']} | {case['precision']} | {how} | {' | '.join(shares)} |"


if __name__ == "__main__":
    sys.exit(main())
