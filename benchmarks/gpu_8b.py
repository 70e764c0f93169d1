"""Llama-3-8B's shape on one GPU: `python -m benchmarks.gpu_8b [--layers N]`. It has not run: no GPU was at hand.

Random weights, bfloat16, rows of at most 2048 tokens whose lengths are spread as those of chat data are (log-normal:
prompts of about 200 tokens, responses of about 400). Each setting runs in a process of its own, so that one that does
not fit is an entry like any other:

* ours: SimPO and DPO with stored reference, several token budgets a forward, with and without checkpointing, through
  the program's engine and step with a split float32 master and 8-bit moments; with the update and without, blocks
  compiled and not.
* TRL: CPOTrainer (SimPO) and DPOTrainer (precomputed reference), bfloat16 weights, several micro-batches, with and
  without checkpointing; without an update, for which its float32 states would not fit one GPU.

Reported are pairs a second of the median step, peak memory, and model FLOP utilisation on useful tokens: each prompt
counts once, padding and recomputation not at all. Writes results/benchmarks/gpu_8b.json and .md.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import paired

if TYPE_CHECKING:
    from src.data.pairset import TokenizedPair

LONGEST = 2048
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s by the makers' data sheets."""
BUDGETS = (4096, 7168, 14336)
MICRO_BATCHES = (1, 2, 4, 8)
TARGETS = {"utilisation": 0.45, "faster": 1.5}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="blocks of the model (default 32, which is 8B)")
    parser.add_argument("--pairs", type=int, default=32, help="pairs of a step (default 32)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a setting, after two (default 5)")
    parser.add_argument("--folder", type=Path, default=paired.RESULTS, help="where to write")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print(
            "error: this needs a GPU, and torch finds none here; on a CPU run benchmarks.against_trl", file=sys.stderr
        )
        return 2
    if given.child:
        print(json.dumps(measured(json.loads(given.child), given.layers, given.pairs, given.steps)))
        return 0
    found = []
    for setting in settings():
        found.append(setting | in_child(setting, given))
        print(found[-1], file=sys.stderr, flush=True)
    report = {
        "made": paired.report("gpu_8b", sys.argv[1:]),
        "gpu": torch.cuda.get_device_name(),
        "layers": given.layers,
        "pairs": given.pairs,
        "settings": found,
        "targets": reached(found),
    }
    print(paired.write("gpu_8b", report, page(report), given.folder))
    return 0


def settings() -> list[dict[str, Any]]:
    """What is measured, in the order of it."""
    ours = [
        {"side": "own", "method": method, "tokens": budget, "checkpointing": checkpointing}
        | {"updates": updates, "compiled": compiled}
        for method in ("simpo", "dpo")
        for checkpointing in (False, True)
        for budget in BUDGETS
        for updates in ((False, True) if method == "simpo" else (False,))
        for compiled in ((False, True) if method == "simpo" else (False,))
    ]
    theirs = [
        {"side": "trl", "method": method, "pairs": micro, "checkpointing": checkpointing, "updates": False}
        for method in ("simpo", "dpo")
        for checkpointing in (False, True)
        for micro in MICRO_BATCHES
    ]
    return ours + theirs


def in_child(setting: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """One setting in a process of its own; what it failed with where it did."""
    arguments = [f"--{name}={getattr(given, name)}" for name in ("layers", "pairs", "steps")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_8b", *arguments, "--child", json.dumps(setting)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def chat_pairs(count: int, vocabulary: int, seed: int) -> list[TokenizedPair]:
    """Pairs of random tokens with the lengths of chat data."""
    from src.data.pairset import TokenizedPair

    draw = random.Random(seed)

    def length(middle: float, spread: float, most: int) -> int:
        return max(1, min(int(draw.lognormvariate(middle, spread)), most))

    def tokens(number: int) -> list[int]:
        return [draw.randrange(2, vocabulary) for _ in range(number)]

    found = []
    for index in range(count):
        prompt = length(5.0, 0.9, 1800)
        responses = [length(5.8, 0.6, LONGEST - prompt) for _ in range(2)]
        before, better, worse = (tokens(number) for number in (prompt, *responses))
        found.append(TokenizedPair(index, f"p{index}", before, better, worse, None, None, flipped=False))
    return found


def useful_flops(pairs: Sequence[TokenizedPair], layers: int) -> float:
    """FLOPs of forward and backward that the pairs cannot do without: prompts once, logits of responses alone."""
    from benchmarks.memory_plan import LLAMA_8B

    width, inner, heads, keys = (
        LLAMA_8B[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    block = 2 * width * width + 2 * width * width * keys // heads + 3 * width * inner
    total = 0.0
    for pair in pairs:
        prompt, chosen, rejected = (len(ids) for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
        seen = prompt**2 / 2 + sum(prompt * one + one**2 / 2 for one in (chosen, rejected))
        total += 2.0 * layers * block * (prompt + chosen + rejected) + 4.0 * layers * width * seen
        total += 2.0 * width * LLAMA_8B["vocab_size"] * (chosen + rejected)
    return 3 * total


def measured(setting: dict[str, Any], layers: int, pairs: int, steps: int) -> dict[str, Any]:
    """Seconds of the median step, pairs a second, utilisation and peak memory of one setting."""
    import torch

    from benchmarks.memory_plan import LLAMA_8B

    step = own_step(setting, layers) if setting["side"] == "own" else trl_step(setting, layers)
    flops, seconds = [], []
    for number in range(steps + 2):
        drawn = chat_pairs(pairs, LLAMA_8B["vocab_size"], number)
        torch.cuda.synchronize()
        began = time.perf_counter()
        step(drawn)
        torch.cuda.synchronize()
        if number > 1:
            seconds.append(time.perf_counter() - began)
            flops.append(useful_flops(drawn, layers))
    name = torch.cuda.get_device_name()
    peak = next((value for kind, value in PEAK.items() if kind in name), None)
    rate = statistics.median(flop / second for flop, second in zip(flops, seconds, strict=True))
    return {
        "seconds": statistics.median(seconds),
        "pairs_per_second": pairs / statistics.median(seconds),
        "useful_tflops": rate / 1e12,
        "utilisation": None if peak is None else rate / peak,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def eight_billion(layers: int, dtype: Any, checkpointing: bool) -> Any:
    """The model on the GPU."""
    import torch
    from transformers import AutoConfig

    from benchmarks.memory_plan import LLAMA_8B
    from src.model.load import architecture_only, disable_dropout

    torch.manual_seed(0)
    architecture = AutoConfig.for_model("llama", **(LLAMA_8B | {"num_hidden_layers": layers, "pad_token_id": 0}))
    with torch.device("cuda"):
        model: Any = architecture_only(architecture, dtype=dtype, attn_implementation="sdpa")
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    disable_dropout(model)
    model.train()
    return model


def own_step(setting: dict[str, Any], layers: int) -> Any:
    """The program's step over a window, whose forwards hold pairs of alike length up to a token budget."""
    import torch

    from benchmarks.workloads import own
    from src.model.compiled import compile_blocks
    from src.model.packed import share_prefixes
    from src.training.step import training_step

    model = eight_billion(layers, torch.float32, setting["checkpointing"])
    share_prefixes(model)
    if setting["compiled"]:
        compile_blocks(model)
    ours = own(
        setting["method"], model, "model.dtype=bfloat16", "training.master=split", "training.moments=int8",
        updates=setting["updates"], device="cuda",
    )  # fmt: skip

    def step(pairs: Sequence[TokenizedPair]) -> float:
        window = [ours.batch(part) for part in within_budget(pairs, setting["tokens"])]
        output = training_step(ours.engine, ours.objective, ours.objective.initial_state(), window, 1.0)
        return float(output.loss)

    return step


def within_budget(pairs: Sequence[TokenizedPair], budget: int) -> list[list[TokenizedPair]]:
    """Pairs by length, in as few forwards of at most ``budget`` tokens as their order gives."""
    parts: list[list[TokenizedPair]] = []
    held = 0
    for pair in sorted(pairs, key=tokens_of):
        if not parts or held + tokens_of(pair) > budget:
            parts.append([])
            held = 0
        parts[-1].append(pair)
        held += tokens_of(pair)
    return parts


def tokens_of(pair: TokenizedPair) -> int:
    """Tokens of a pair, its prompt counted once."""
    return len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


def trl_step(setting: dict[str, Any], layers: int) -> Any:
    """TRL's forwards and backwards over the same pairs, sorted by length, which is more than its sampler does."""
    import torch

    from benchmarks.against_trl_trainers import theirs

    model = eight_billion(layers, torch.bfloat16, False)
    kind = "trl_cpo" if setting["method"] == "simpo" else "trl_dpo_precomputed"
    changed = {"use_cpu": False, "bf16": True, "gradient_checkpointing": setting["checkpointing"]}
    trainer = theirs(kind, model, **changed)
    if setting["checkpointing"]:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    def step(pairs: Sequence[TokenizedPair]) -> float:
        ordered, size = sorted(pairs, key=tokens_of), setting["pairs"]
        parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        return sum(trainer([replace(pair) for pair in part]) for part in parts)

    return step


def reached(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was asked for and what came of it."""
    best: dict[tuple[str, str], float] = {}
    for one in found:
        if "pairs_per_second" in one and not one["updates"]:
            key = (one["side"], one["method"])
            best[key] = max(best.get(key, 0.0), one["pairs_per_second"])
    updated = [one for one in found if one["updates"] and "utilisation" in one]
    used = [one["utilisation"] for one in found if one["side"] == "own" and one.get("utilisation") is not None]
    return {
        "utilisation": {"at_least": TARGETS["utilisation"], "measured": max(used, default=None)},
        "full fine-tune fits": bool(updated),
        **{
            f"{method}, times TRL at its best": {
                "at_least": TARGETS["faster"],
                "measured": best[("own", method)] / best[("trl", method)],
            }
            for method in ("simpo", "dpo")
            if ("own", method) in best and ("trl", method) in best
        },
    }


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = []
    for one in report["settings"]:
        size = f"{one['tokens']} tokens" if one["side"] == "own" else f"{one['pairs']} pairs"
        kept = "checkpointed" if one["checkpointing"] else "kept"
        kept += ", compiled" if one.get("compiled") else ""
        name = [one["side"], one["method"], size, kept, "yes" if one["updates"] else "no"]
        if "failed" in one:
            rows.append([*name, "", "", "", " ".join(one["failed"])[:80]])
            continue
        used = "" if one["utilisation"] is None else f"{100 * one['utilisation']:.1f} %"
        rows.append([*name, f"{one['pairs_per_second']:.2f}", used, f"{one['peak_gib']:.1f}", ""])
    head = ["side", "method", "forward", "activations", "update", "pairs / s", "MFU", "peak GiB", ""]
    lines = [
        f"# Llama-3-8B's shape on one {report['gpu']}",
        f"{report['layers']} blocks, {report['pairs']} pairs a step, rows of at most {LONGEST} tokens.",
        paired.table(head, rows),
        f"Targets: {json.dumps(report['targets'])}",
        paired.quiet_note(report["made"]),
    ]
    return "\n\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
