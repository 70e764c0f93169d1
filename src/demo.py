"""`python -m src.demo`: supervised base, then DPO, SimPO and AMaPO on the toy world, ranked, with a report.

It only runs the project's own commands, each printed before it runs, so that they can be typed again.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

from src.config import ROOT, compose_train

METHODS = ("sft", "dpo", "simpo", "amapo")
RECORDS = Path("results/records")
README_TABLE = re.compile(r"(<!-- demo table -->\n).*?(<!-- end of demo table -->)", re.DOTALL)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--update-readme", action="store_true", help="write the table into README.md")
    arguments.add_argument("--override", action="append", default=[], help="passed on to src.train, e.g. seed=1")
    chosen = arguments.parse_args()
    run("src.train", "-m", f"method={','.join(METHODS)}", *chosen.override)
    from src.training.run import planned_directory

    directories = [planned_directory(compose_train([f"method={method}", *chosen.override])) for method in METHODS]
    run("src.evaluation.ranking", "-m", f"checkpoint={','.join(map(str, directories))}", f"records_root={RECORDS}")
    shown = [path for directory in directories for path in record_of(directory)]
    print_table(shown, update_readme=chosen.update_readme)
    run("src.report")
    return 0


def run(module: str, *arguments: str) -> None:
    """Print a command and run it; end with its exit code when it fails."""
    print(f"\n$ python -m {module} {shlex.join(arguments)}".rstrip(), flush=True)
    code = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)


def record_of(directory: Path) -> list[Path]:
    """Record files made from the run in ``directory``."""
    from src.evaluation.records import read_records

    return [
        RECORDS / f"{record.id}.json" for record in read_records([RECORDS]) if record.run.directory == str(directory)
    ]


def print_table(paths: list[Path], *, update_readme: bool) -> None:
    """The ranking of the demo's runs in the terminal, and in README.md when asked for."""
    from src.evaluation.records import read_records
    from src.reporting.console import print_records
    from src.reporting.tables import build_tables, to_markdown

    records = read_records(paths)
    print()
    print_records(records)
    if update_readme:
        readme = ROOT / "README.md"
        table = to_markdown(build_tables(records))
        text = README_TABLE.sub(lambda match: f"{match[1]}\n{table}\n{match[2]}", readme.read_text(encoding="utf-8"))
        readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
