"""``python -m tests.engines.every_case``: every engine × method × number of ranks × accumulation × tied or not.

The tests run a choice of these cases, all methods on two ranks among them. This runs all 256 (minutes), compares each
with a single process, and writes results/benchmarks/engine_parity.json; it fails where a difference is above 1e-5.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from src.environment import environment
from tests.engines.jobs import apart, cases
from tests.support import ROOT

LIMIT = 1e-5
WHAT = (
    "largest difference to a single process over 5 steps, relative to max(1, size): loss, every metric of every pair, "
    "state, gradient norm, learning rate and weights after them (AdamW, eps 1e-3), over accumulation 1 and 4 and tied "
    "and untied embeddings; 3 pairs a forward and 12 a window, so that 2 and 3 ranks hold uneven shares"
)
OUTPUT = ROOT / "results" / "benchmarks" / "engine_parity.json"


def main() -> int:
    os.environ["EVERY_CASE"] = "1"
    with TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "tests.engines.world", folder, "parity"], cwd=ROOT, check=True)
        single = torch.load(Path(folder) / "1-0.pt", weights_only=False)
        worst: dict[str, dict[str, float]] = defaultdict(dict)
        for size in (2, 3):
            found = torch.load(Path(folder) / f"{size}-0.pt", weights_only=False)
            for case in cases(size):
                name = str(case)
                expected = single[name.replace(case.engine, "single", 1)]
                key = f"{case.engine}, {size} ranks"
                worst[key][case.method] = max(worst[key].get(case.method, 0.0), apart(expected, found[name]))
    most = max(value for row in worst.values() for value in row.values())
    written = {
        "what": WHAT,
        "command": "python -m tests.engines.every_case",
        "cases": len(cases(2)) + len(cases(3)),
        "largest": most,
        "by_engine_and_method": worst,
        "environment": environment(),
    }
    OUTPUT.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(worst, indent=1))
    return 0 if most <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
