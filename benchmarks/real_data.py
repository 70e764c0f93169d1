"""Train and rank on two real preference files: `python -m benchmarks.real_data --hh FILE --scored FILE`.

``--hh`` is a file of Anthropic's transcripts, ``--scored`` one of scored responses (dataset=scored_responses). The tiny
model starts from an SFT base of the same file, with a tokenizer trained on it. Writes records to results/records and a
table to results/real_data.md. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from src.commands import RECORDS, directory_of, records_of, run
from src.config import ROOT

METHODS = ("sft", "dpo", "simpo", "amapo")
COMMON = (
    "model.architecture.vocab_size=2048",
    "dataset.validation_fraction=0.2",
)
"""A fifth of the prompts is held out, since the files are small; the last checkpoint is the one that is ranked, so that
nothing is chosen by the pairs it is measured on."""

SOURCES = {
    "hh": ("dataset=hh_rlhf", "dataset.max_length=256", "dataset.max_prompt_length=128"),
    "scored": ("dataset=scored_responses", "dataset.max_length=384", "dataset.max_prompt_length=128"),
}
AT_THE_END = ("evaluation.every_steps=0", "checkpoint.every_steps=0")
PREFERENCE = {
    "hh": ("training.learning_rate=3e-4", "training.epochs=2", *AT_THE_END),
    "scored": ("training.learning_rate=3e-4", "training.epochs=4", *AT_THE_END),
}
HEAD = """# Ranking on real preference data

Written by `python -m benchmarks.real_data --hh FILE --scored FILE` from the records it measures. FILEs: Anthropic's
harmless-base/test.jsonl.gz (2312 pairs), and 805 instructions with the answers of 24 models and a judge's scores (best
against worst). The tiny model, a tokenizer trained on the file, a fifth of the prompts held out; chance is 50 %.

"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in SOURCES:
        parser.add_argument(f"--{name}", type=Path, required=True)
    files = vars(parser.parse_args())
    directories = [measure(name, method, files[name]) for name in SOURCES for method in METHODS]
    write_table(records_of(directories, "last"))
    return 0


def measure(name: str, method: str, path: Path) -> Path:
    """Train and rank one run; its directory."""
    preference = PREFERENCE[name] if method != "sft" else ()
    overrides = [f"method={method}", *SOURCES[name], f"dataset.source.path={path}", *COMMON, *preference]
    run("src.train", *overrides)
    directory = directory_of(overrides)
    run("src.evaluation.ranking", f"checkpoint={directory}", "which=last", f"records_root={RECORDS}")
    return directory


def write_table(paths: list[Path]) -> None:
    """results/real_data.md from the records."""
    from src.evaluation.records import read_records
    from src.reporting.tables import build_tables, to_markdown

    table = to_markdown(build_tables(read_records(paths)))
    (ROOT / "results" / "real_data.md").write_text(HEAD + table, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
