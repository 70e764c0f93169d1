"""`python -m benchmarks.calibrate_toy`: measure again whether the toy world can tell methods apart.

Trains the SFT base, DPO, SimPO, AMaPO and DPO on 30 % flipped labels with their recipes (finished runs are skipped),
ranks the held-out pairs, samples responses to prompts that no training data has, and holds the figures against the
targets of docs/toy_world.md. Prints the tables, writes results/benchmarks/toy_calibration.json and, with
``--update-docs``, the tables of docs/toy_world.md. Ends with 1 when a target is missed. Other arguments are
overrides for `src.train`, e.g. ``seed=1``.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.commands import directory_of, run
from src.config import ROOT
from src.data.pairs import Prompt
from src.data.toy.benchmarks import instructions
from src.data.toy.scorer import LENGTH_BIAS, judge_preference, length_bonus, score_response
from src.data.toy.source import ToySource, world_version
from src.data.toy.writers import dress

if TYPE_CHECKING:
    from src.evaluation.records import Record

RUNS: dict[str, list[str]] = {
    "sft": ["method=sft"],
    "dpo": ["method=dpo"],
    "simpo": ["method=simpo"],
    "amapo": ["method=amapo"],
    "dpo, 30 % flipped": ["method=dpo", "noise=random_flip", "noise.rate=0.3"],
}
TRAINED = ("dpo", "simpo", "amapo")
RESULT = ROOT / "results" / "benchmarks" / "toy_calibration.json"
RECORDS = Path("results/benchmarks/toy_records")
DOCUMENT = ROOT / "docs" / "toy_world.md"
MARKED = re.compile(r"(<!-- calibration -->\n).*?(<!-- end of calibration -->)", re.DOTALL)
SAMPLES = 400
TOKENS = 96  # most tokens of a sampled response
BATCH = 100
SEED = 0  # of sampling


@dataclass(frozen=True)
class Target:
    """A figure that must lie between ``low`` and ``high``."""

    name: str
    value: float
    low: float
    high: float

    @property
    def met(self) -> bool:
        """Whether it does."""
        return self.low <= self.value <= self.high


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update-docs", action="store_true", help="write the tables into docs/toy_world.md")
    parser.add_argument("overrides", nargs="*", help="for src.train")
    arguments = parser.parse_args()
    directories = {}
    for name, overrides in RUNS.items():
        run("src.train", *overrides, *arguments.overrides)
        directories[name] = directory_of([*overrides, *arguments.overrides])
    ranking = {name: ranked(directory) for name, directory in directories.items()}
    prompts = instructions(SAMPLES)
    sampled = {name: sample(directory, prompts) for name, directory in directories.items()}
    responses = {name: measure_responses(prompts, texts, sampled["sft"]) for name, texts in sampled.items()}
    figures = {"ranking": ranking, "responses": responses, "data": measure_data(), "dressed": dressed(prompts, sampled)}
    targets = targets_of(figures)
    write(figures, targets, arguments.overrides)
    tables = to_markdown(figures, targets)
    print(f"\n{tables}\n\n{RESULT.relative_to(ROOT)}")
    if arguments.update_docs:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(MARKED.sub(lambda match: f"{match[1]}{tables}\n{match[2]}", text), encoding="utf-8")
    return 0 if all(target.met for target in targets) else 1


def ranked(directory: Path) -> dict[str, dict[str, Any]]:
    """The ranking metrics of a run on the held-out pairs."""
    from src.evaluation.records import read_records

    run("src.evaluation.ranking", f"checkpoint={directory}", "split=validation", f"records_root={RECORDS}")
    measured: list[Record] = [record for record in read_records([RECORDS]) if record.run.directory == str(directory)]
    return {name: dict(metric) for name, metric in max(measured, key=lambda record: record.created).metrics.items()}


def sample(directory: Path, prompts: list[Prompt]) -> list[str]:
    """One response per prompt, sampled at temperature 1 from the best checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = directory / "checkpoints" / "best" / "model"
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    torch.manual_seed(SEED)
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH):
        rendered = [
            tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in prompt],
                tokenize=False,
                add_generation_prompt=True,
            )
            for prompt in prompts[start : start + BATCH]
        ]
        batch = tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            tokens = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=TOKENS,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                eos_token_id=tokenizer.convert_tokens_to_ids("<|end|>"),
                pad_token_id=tokenizer.pad_token_id,
            )
        answers = tokens[:, batch["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(answers, skip_special_tokens=True)
    return texts


def measure_responses(prompts: list[Prompt], texts: list[str], base: list[str]) -> dict[str, float]:
    """Ground truth of sampled responses, and win rates in % against ``base`` (ties count half)."""
    scores = [score_response(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    return {
        "parsed": 100 * statistics.mean(score.parsed for score in scores),
        "score": statistics.mean(score.overall for score in scores),
        "correctness": statistics.mean(score.aspects["correctness"] for score in scores),
        "characters": statistics.mean(map(len, texts)),
        "win rate, oracle": win_rate(prompts, texts, base, 0.0),
        "win rate, uncontrolled": win_rate(prompts, texts, base, LENGTH_BIAS),
    }


def win_rate(prompts: list[Prompt], texts: list[str], base: list[str], length_bias: float) -> float:
    """Share in % of the prompts for which the judge prefers ``texts`` to ``base``."""
    return 100 * statistics.mean(
        judge_preference(prompt, text, other, length_bias=length_bias, temperature=0)
        for prompt, text, other in zip(prompts, texts, base, strict=True)
    )


def dressed(prompts: list[Prompt], sampled: dict[str, list[str]]) -> dict[str, float]:
    """A verbose model: the base's own short answers, dressed in sentences, against the same without them."""
    short = [
        (prompt, text.strip())
        for prompt, text in zip(prompts, sampled["sft"], strict=True)
        if len(text.split()) <= 8 and score_response(prompt, text).parsed
    ]
    verbose = [dress(text, "plain", random.Random(number), 1) for number, (_, text) in enumerate(short)]
    asked, plain = [prompt for prompt, _ in short], [text for _, text in short]
    return {
        "responses": float(len(short)),
        "win rate, oracle": win_rate(asked, verbose, plain, 0.0),
        "win rate, uncontrolled": win_rate(asked, verbose, plain, LENGTH_BIAS),
    }


def measure_data() -> dict[str, float]:
    """What the pairs are like, in % (gap: points between chosen and rejected annotation)."""
    source = ToySource()
    pairs = list(source.pairs())

    def share(holds: Callable[[Prompt, str, str], bool]) -> float:
        return 100 * statistics.mean(holds(pair.prompt, pair.chosen, pair.rejected) for pair in pairs)

    def truth(prompt: Prompt, text: str) -> float:
        return score_response(prompt, text).overall

    def expected(prompt: Prompt, text: str) -> float:
        return truth(prompt, text) + length_bonus(text, source.length_bias)

    gaps = [(pair.chosen_score or 0.0) - (pair.rejected_score or 0.0) for pair in pairs]
    return {
        "pairs": float(len(pairs)),
        "chosen is longer": share(lambda _, chosen, rejected: len(chosen) > len(rejected)),
        "chosen is better in truth": share(lambda p, chosen, rejected: truth(p, chosen) > truth(p, rejected)),
        "ranked right by the annotator's rule": share(lambda p, c, r: expected(p, c) > expected(p, r)),
        "gap below 0.25": 100 * statistics.mean(gap < 0.25 for gap in gaps),
        "gap above 1.5": 100 * statistics.mean(gap > 1.5 for gap in gaps),
    }


def targets_of(figures: dict[str, Any]) -> list[Target]:
    """The calibration targets, in %."""

    def accuracy(name: str, metric: str = "accuracy/reward") -> float:
        return 100 * float(figures["ranking"][name][metric]["value"])

    loss = accuracy("dpo") - accuracy("dpo, 30 % flipped")
    return [
        Target("SFT base ranks held-out pairs right", accuracy("sft", "accuracy/average"), 55, 65),
        *(Target(f"{name} ranks held-out pairs right", accuracy(name), 75, 90) for name in TRAINED),
        Target("30 % flipped labels cost DPO", loss, 5, 50),
        Target("sampled responses of the SFT base that parse", figures["responses"]["sft"]["parsed"], 80, 100),
        Target("verbose model wins, uncontrolled judge", figures["dressed"]["win rate, uncontrolled"], 55, 100),
        Target("verbose model wins, oracle", figures["dressed"]["win rate, oracle"], 0, 45),
    ]


def write(figures: dict[str, Any], targets: list[Target], overrides: list[str]) -> None:
    """The figures as JSON."""
    from src.environment import environment

    content = {
        "command": " ".join(["python -m benchmarks.calibrate_toy", *overrides]),
        "world": world_version(),
        "environment": environment(),
        "targets": [{**vars(target), "met": target.met} for target in targets],
        **figures,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def to_markdown(figures: dict[str, Any], targets: list[Target]) -> str:
    """Targets, ranking, responses and data as Markdown tables."""
    lines = ["| target | measured | wanted | |", "|---|---|---|---|"]
    for target in targets:
        verdict = "met" if target.met else "missed"
        lines.append(f"| {target.name} | {target.value:.1f} % | {target.low:.0f}-{target.high:.0f} % | {verdict} |")
    lines += ["", "| run | own reward | average log-prob | summed log-prob | sum relative to the reference |"]
    lines += ["|---|---|---|---|---|"]
    for name, metrics in figures["ranking"].items():
        cells = [interval(metrics.get(f"accuracy/{kind}", {})) for kind in ("reward", "average", "sum", "reference")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    columns = list(figures["responses"]["sft"])
    lines += ["", f"| run | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, values in figures["responses"].items():
        lines.append(f"| {name} | {' | '.join(f'{values[column]:.3g}' for column in columns)} |")
    lines += ["", "| the data | |", "|---|---|"]
    for name, value in figures["data"].items():
        lines.append(f"| {name} | {value:.0f} |" if name == "pairs" else f"| {name} | {value:.1f} % |")
    return "\n".join(lines)


def interval(metric: dict[str, Any]) -> str:
    """An accuracy in % with its interval, or a dash."""
    if metric.get("value") is None:
        return "-"
    value, low, high = (100 * metric[name] for name in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    sys.exit(main())
