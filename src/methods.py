"""`python -m src.methods`: the methods, one explained in words, and vectors that check them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from src.config import ROOT
from src.errors import UserError

USAGE = """python -m src.methods                                     every method: parts, needs, constants
       python -m src.methods METHOD                              one method in words, with its equation
       python -m src.methods check FILE [--tag TAG] [--dtype D]  test vectors through the composed objectives
       python -m src.methods --update-readme                     write the table into README.md"""


def main(arguments: list[str]) -> int:
    given = parser().parse_args(arguments)
    try:
        refuse_useless(given)
        code = answer(given)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m src.methods", usage=USAGE, description=__doc__)
    made.add_argument("what", nargs="?", metavar="METHOD", help="a method of conf/method, or the word check")
    made.add_argument("file", nargs="?", metavar="FILE", type=Path, help="with check: a JSON file of test vectors")
    made.add_argument("--tag", action="append", default=[], help="with check: this tag alone (may be given again)")
    made.add_argument(
        "--dtype", action="append", choices=("float64", "float32"), help="with check: this precision alone"
    )
    made.add_argument("--update-readme", action="store_true", help="write the table of methods into README.md")
    return made


def refuse_useless(given: argparse.Namespace) -> None:
    """Raise ``UserError`` for arguments that the command would not read."""
    if given.what == "check" and given.file is None:
        raise UserError("check needs a file of test vectors; write python -m src.methods check FILE")
    if given.what != "check" and (given.file or given.tag or given.dtype):
        raise UserError("FILE, --tag and --dtype belong to check; write python -m src.methods check FILE ...")
    if given.what is not None and given.update_readme:
        raise UserError(f"--update-readme writes the whole table, so it goes without {given.what}; leave one out")


def answer(given: argparse.Namespace) -> int:
    """Carry out what was asked; returns the exit code."""
    if given.what == "check":
        from src.catalogue.vectors import check_file

        return check_file(given.file, given.tag, given.dtype or ["float64", "float32"])
    if given.what is not None:
        from src.catalogue.explain import explained

        print(explained(given.what))
        return 0
    from src.catalogue.rows import markdown_table, rows, terminal_table, with_table

    shown = rows()
    print(terminal_table(shown))
    if given.update_readme:
        readme = ROOT / "README.md"
        text = with_table(readme.read_text(encoding="utf-8"), markdown_table(shown))
        readme.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
