"""`python -m src.demo`: supervised base, then DPO, SimPO and AMaPO on the toy world, ranked, with a report."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from src.commands import RECORDS, directory_of, records_of, run
from src.config import ROOT

METHODS = ("sft", "dpo", "simpo", "amapo")
README_TABLE = re.compile(r"(<!-- demo table -->\n).*?(<!-- end of demo table -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update-readme", action="store_true", help="write the table into README.md")
    parser.add_argument("overrides", nargs="*", help="passed on to src.train, e.g. seed=1")
    arguments = parser.parse_args()
    run("src.train", "-m", f"method={','.join(METHODS)}", *arguments.overrides)
    directories = [directory_of([f"method={method}", *arguments.overrides]) for method in METHODS]
    run("src.evaluation.ranking", "-m", f"checkpoint={','.join(map(str, directories))}", f"records_root={RECORDS}")
    show(records_of(directories), update_readme=arguments.update_readme)
    run("src.report")
    return 0


def show(paths: list[Path], *, update_readme: bool) -> None:
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
