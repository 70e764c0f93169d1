"""Prepare a million generated pairs: `python -m benchmarks.prepare_million [--pairs N] [--workers N]`.

Writes generated pairs to a file (dataset=local), trains a tokenizer on the first of them, prepares the file in a
process of its own and watches its memory and that of its workers. Writes results/benchmarks/prepare_million.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from src.config import ROOT

OUTPUT = ROOT / "results" / "benchmarks" / "prepare_million.json"
VOCABULARY = 8192
TOKENIZER_PAIRS = 20_000
"""Pairs at the beginning of the file that the tokenizer is trained on."""
MAX_LENGTH, MAX_PROMPT_LENGTH = 512, 128
FLIPPED = 0.2
EVERY = 0.2
"""Seconds between two looks at the memory."""
SYLLABLES = (
    "ba",
    "con",
    "de",
    "er",
    "fi",
    "gra",
    "ing",
    "ju",
    "ka",
    "lo",
    "men",
    "no",
    "or",
    "pre",
    "qua",
    "re",
    "sta",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=None, help="as prepare_workers; the default chooses")
    parser.add_argument("--length", type=float, default=1.0, help="texts so many times as long as usual")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--measured", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measured:
        print(json.dumps(prepared(given.measured, given.workers)))
        return 0
    from src.environment import environment

    with tempfile.TemporaryDirectory(prefix="prepare_million_") as folder:
        characters = write_pairs(Path(folder) / "pairs.jsonl", given.pairs, given.length)
        train_the_tokenizer(Path(folder))
        result = watched(Path(folder), given.workers)
    report = {
        "command": " ".join(["python -m benchmarks.prepare_million", *sys.argv[1:]]),
        "environment": environment() | {"cores": os.cpu_count()},
        "characters_per_pair": characters / given.pairs,
        # an extrapolation unless a million was asked for
        "minutes_for_a_million": 1e6 / result["pairs_per_second"] / 60,
        **result,
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))
    return 0


def write_pairs(path: Path, count: int, length: float = 1.0) -> int:
    """Write ``count`` pairs as JSON lines; returns the number of characters of prompts and responses.

    Words follow Zipf's law; a prompt has about 150 characters and a response about 300, both times ``length``, with
    long tails.
    """
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.choice((1, 1, 2, 2, 3, 4)))) for _ in range(20_000)]
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))

    def text(mean: float) -> str:
        size = max(1, int(rng.lognormvariate(0.0, 0.7) * mean * length / 1.28))
        return " ".join(rng.choices(words, cum_weights=weights, k=size)).capitalize() + "."

    total = 0
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            parts = {"prompt": text(22), "chosen": text(55), "rejected": text(50)}
            total += sum(map(len, parts.values()))
            scores = {"chosen_score": rng.randint(5, 10), "rejected_score": rng.randint(1, 5)}
            file.write(json.dumps({"id": f"generated-{number:07d}", **parts, **scores}) + "\n")
    return total


def train_the_tokenizer(folder: Path) -> None:
    from src.data.sources import LocalPairs
    from src.data.tokenizer import train_tokenizer, training_texts

    first = islice(LocalPairs(str(folder / "pairs.jsonl")).pairs(), TOKENIZER_PAIRS)
    train_tokenizer(training_texts(first, 0.05, 0), VOCABULARY, folder).save_pretrained(folder / "tokenizer")


def prepared(folder: Path, workers: int | None) -> dict[str, Any]:
    """Prepare the file of ``folder``; what came of it."""
    from src.data.noise import RandomFlip
    from src.data.prepare import PrepareOptions, prepare
    from src.data.sources import LocalPairs
    from src.data.templates import ChatTemplate
    from src.data.tokenizer import load_tokenizer

    template = ChatTemplate(load_tokenizer(str(folder / "tokenizer")))
    source, options = LocalPairs(str(folder / "pairs.jsonl")), PrepareOptions(MAX_LENGTH, MAX_PROMPT_LENGTH)
    started = time.perf_counter()
    manifest = prepare(source, RandomFlip(FLIPPED), template, options, folder, workers=workers).manifest
    kept = {name: manifest[name] for name in ("hash", "counts", "truncated", "tokens")}
    return {
        "seconds": time.perf_counter() - started,
        "dropped": {reason: entry["count"] for reason, entry in manifest["dropped"].items()},
        "flipped": manifest["flipped"]["count"],
        "manifest": kept,
    }


def watched(folder: Path, workers: int | None) -> dict[str, Any]:
    """Run ``prepared`` in a process of its own; its result with time and memory."""
    import psutil

    load = os.getloadavg()[0]
    chosen = [] if workers is None else ["--workers", str(workers)]
    command = [sys.executable, "-m", "benchmarks.prepare_million", "--measured", str(folder), *chosen]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    peaks = {"sum": 0, "parent": 0, "largest_worker": 0}
    most = 0
    while process.poll() is None:
        try:
            parent = psutil.Process(process.pid)
            children = [child.memory_info().rss for child in parent.children(recursive=True)]
            own = parent.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        seen = {"sum": own + sum(children), "parent": own, "largest_worker": max(children, default=0)}
        peaks = {name: max(peaks[name], seen[name]) for name in peaks}
        most = max(most, len(children))
        time.sleep(EVERY)
    assert process.stdout
    assert process.returncode == 0
    result = json.loads(process.stdout.read())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    pairs = sum(result["manifest"]["counts"].values()) + sum(result["dropped"].values())
    return {
        "pairs": pairs,
        "workers": most,
        "pairs_per_second": pairs / result["seconds"],
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_rss_megabytes": {name: size / 1e6 for name, size in peaks.items()},
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        **result,
    }


if __name__ == "__main__":
    sys.exit(main())
