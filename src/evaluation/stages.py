"""What every benchmark with a judge does: estimate, generate, judge, score, record; each restartable."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.build import build
from src.data.cache import json_hash
from src.data.sources.files import content_hash, existing
from src.errors import Problems, UserError
from src.evaluation.answers import Answering, Answers, Described, closing
from src.evaluation.benchmark import Benchmark, Item, Outputs
from src.evaluation.decoding import AnswerDecoding, decoding_for
from src.evaluation.estimate import Estimate, estimate_judging, guessed_outputs
from src.evaluation.finish import finish, say
from src.evaluation.judges.base import Judge, Judged, JudgeSettings
from src.evaluation.judging import identity_of, judge_all, judge_info, stored_judgments
from src.evaluation.outputs import completed
from src.evaluation.records import DataInfo
from src.evaluation.subject import Subject, endpoint_subject, stored_subject, subject_of
from src.generation.shards import MANIFEST, read_manifest

if TYPE_CHECKING:
    from src.benchmark_schema import JudgedConfig

ReadOutputs = Callable[[Path], tuple[str, Outputs]]


@dataclass(frozen=True)
class Plan:
    """What one call of an entry point does. ``short``: the program's name; ``items``: the benchmark's."""

    config: JudgedConfig
    benchmark: Benchmark
    module: str
    items: Sequence[Item]
    judge: JudgeSettings

    @property
    def short(self) -> str:
        return self.module.rpartition(".")[2]

    @property
    def root(self) -> Path:
        return Path(self.config.output_root)

    def command(self, stage: str | None = None) -> str:
        """This command line, or the one of another stage."""
        given = sys.argv[1:]
        if stage is not None:
            given = [argument for argument in given if not argument.startswith("stage=")] + [f"stage={stage}"]
        return shlex.join(["python", "-m", self.module, *given])


def run_judged(config: JudgedConfig, benchmark: Benchmark, module: str, read_outputs: ReadOutputs) -> int:
    """Estimate, then the stages that ``config.stage`` names; returns the exit code.

    ``module``: the entry point as ``python -m`` takes it. ``read_outputs``: a model's name and its answers from a file
    in the format of the benchmark's owners (``outputs=FILE``). Raises ``UserError``.
    """
    judge = build(config.judge, "judge")
    generator = build(config.generator, "generator")
    if problems := contradictions(config, judge, generator):
        raise Problems(problems)
    items = benchmark.items()
    plan = Plan(config, benchmark, module, items, judge)
    if config.outputs is not None:
        path = existing(config.outputs, "outputs")
        name, outputs = read_outputs(path)
        found = completed(items, outputs, f"outputs={config.outputs}")
        subject = stored_subject(name, content_hash([path]))
        return judged_stages(plan, subject, None, Answers(found, {str(path): content_hash([path])}))
    subject, opened, decoding = answering(plan, generator)
    with closing(opened):
        writer = Answering(opened, subject, decoding, items, plan.short, plan.root / "answers", config.shard_size)
        return generated_stages(plan, writer)


def contradictions(config: JudgedConfig, judge: JudgeSettings, generator: Any) -> list[str]:
    """What cannot work, all of it, before anything is done."""
    from src.evaluation.judges.settings import Oracle

    problems = []
    asks = config.stage in ("all", "judge")
    if config.outputs is not None:
        given = [f"{key}={value}" for key in ("checkpoint", "template", "dtype") if (value := getattr(config, key))]
        if given:
            problems.append(f"{', '.join(given)} would not be read: outputs={config.outputs} takes its place; give one")
        if config.stage == "generate":
            problems.append(f"stage=generate has nothing to do: outputs={config.outputs} holds the answers already")
    elif generator.needs_weights and config.checkpoint is None:
        problems.append("checkpoint has no value; give a run directory, a model directory or a hub id: checkpoint=...")
    elif not generator.needs_weights:
        problems += endpoint_problems(config, generator)
    if isinstance(judge, Oracle) and config.benchmark != "toy" and config.stage != "generate":
        problems.append("judge=oracle knows the toy world alone; give benchmark=toy, or another judge")
    if config.stage != "generate" and (not judge.paid or (asks and not config.dry_run)):
        problems += judge.problems()
    return problems


def endpoint_problems(config: JudgedConfig, generator: Any) -> list[str]:
    """What cannot work of a model behind an endpoint."""
    from src.evaluation.judges.settings import key_problems

    problems = []
    keys = ("checkpoint", "template", "dtype")
    given = [f"{key}={value}" for key in keys if (value := getattr(config, key)) is not None]
    given += [f"stop_tokens={list(config.stop_tokens)}"] if config.stop_tokens else []
    if given:
        problems.append(
            f"{', '.join(given)} would not be read: generator=openai asks a model elsewhere, which has its own; leave "
            "it out"
        )
    if config.stage != "score" and not config.dry_run:
        problems += key_problems("generator", generator.base_url, generator.model, generator.key_variable)
    return problems


def answering(plan: Plan, settings: Any) -> tuple[Subject, Described, AnswerDecoding]:
    """Who answers, the opened generator (no weights are read yet), and how."""
    config = plan.config
    if not settings.needs_weights:
        subject = endpoint_subject(settings.base_url, settings.model)
        decoding = decoding_for(plan.short, settings.model, config.decoding)
        return subject, Described(settings.open(decoding.at(None))), decoding
    subject = subject_of(config)
    decoding = decoding_for(plan.short, subject.run.model, config.decoding, str(config.checkpoint))
    return subject, Described(settings.open(subject.policy, decoding.at(None))), decoding


def generated_stages(plan: Plan, writer: Answering) -> int:
    """All stages of a model that answers here or behind an endpoint."""
    config = plan.config
    there, left = writer.left()
    if there is None and (config.dry_run or config.stage in ("all", "generate", "judge")):
        kind = str(config.generator["_target_"]).rpartition(".")[2]
        say(f"answers: {left} to write with {kind}, at most {writer.decoding.max_new_tokens} tokens each")
    elif config.dry_run:
        say(f"answers: all {sum(len(item.turns) for item in plan.items)} are there")
    if there is None and config.stage != "generate" and (config.dry_run or config.stage != "score"):
        tell_guess(plan)
    if config.dry_run and there is None:
        return 0
    if there is None:
        if config.stage == "score":
            writer.read(f"write them by: {plan.command('generate')}")
        there = writer.write(say, run=asdict(writer.subject.run), command=plan.command())
    if config.stage == "generate":
        for directory in there.directories:
            print(directory, file=sys.stderr if config.output == "json" else sys.stdout, flush=True)
        return 0
    return judged_stages(plan, writer.subject, writer.decoding, there)


def tell_guess(plan: Plan) -> None:
    """Say about what judging will take, while no answer is known."""
    requests = plan.benchmark.requests(guessed_outputs(plan.items))
    estimate = estimate_judging(plan.benchmark, plan.judge, None, requests, None, guessed=True)
    tell(estimate, plan)


def tell(estimate: Estimate, plan: Plan) -> None:
    for line in estimate.lines(plan.judge):
        say(line)


def judged_stages(plan: Plan, subject: Subject, decoding: AnswerDecoding | None, answers: Answers) -> int:
    """Judge, score and record answers that are there."""
    config, benchmark = plan.config, plan.benchmark
    requests = benchmark.requests(answers.outputs)
    for problem in plan.judge.problems() if config.dry_run else ():
        say(f"note: {problem}")
    judge: Judge = plan.judge.open(Path(config.cache_root) / "judge")
    try:
        described = judge.describe()
        directory = judgments_directory(plan, subject, identity_of(described, requests))
        if config.stage != "score" or config.dry_run:
            tell(estimate_judging(benchmark, plan.judge, judge, requests, directory), plan)
        if config.dry_run:
            return 0
        if config.stage == "score":
            refuse_unjudged(plan, directory)
            judged = stored_judgments(directory, requests)
        else:
            judged = judge_all(judge, benchmark, requests, directory, config.shard_size, say, plan.judge)
    finally:
        judge.close()
    if config.stage == "judge":
        print(directory, file=sys.stderr if config.output == "json" else sys.stdout, flush=True)
        return 0
    record(plan, subject, decoding, answers, described, judged, directory)
    return 0


def judgments_directory(plan: Plan, subject: Subject, identity: Mapping[str, Any]) -> Path:
    """Where judgments belong: a pure function of the judge and of all that it is asked. Rules that only score what it
    said are no part of it."""
    names = (subject.name, plan.short, str(identity["judge"]["model"]))
    safe = ["".join(letter if letter.isalnum() or letter in ".-_" else "_" for letter in name) for name in names]
    return plan.root / "judgments" / "__".join((*safe, json_hash(identity)[:10]))


def refuse_unjudged(plan: Plan, directory: Path) -> None:
    """Raise ``UserError`` when judgments are absent or unfinished, with the command that makes them."""
    if not (directory / MANIFEST).exists():
        state = "not finished" if directory.exists() else "not there"
        raise UserError(f"the judgments are {state}: {directory}; make them by: {plan.command('judge')}")


def record(
    plan: Plan,
    subject: Subject,
    decoding: AnswerDecoding | None,
    answers: Answers,
    described: Mapping[str, Any],
    judged: Sequence[Judged],
    directory: Path,
) -> None:
    """Score, write the record and show it."""
    config, benchmark = plan.config, plan.benchmark
    scores = benchmark.score(answers.outputs, judged)
    counts = dict(scores.counts)
    if answers.refused:
        counts["not_asked"] = sum(map(len, answers.refused.values()))
    limit = () if config.max_items is None else (f"only the first {len(plan.items)} items: a trial, not the benchmark",)
    rules = benchmark.describe()
    details = {**scores.details, "rules": rules, "decoding": decoding.describe() if decoding else None}
    scores = replace(scores, counts=counts, notes=(*scores.notes, *answers.notes, *limit), details=details)
    settings = {
        "max_items": config.max_items,
        "generator": answers.generator or "stored answers",
        **drawn(decoding),
        "rules": json_hash(rules)[:12],
    }
    sources: dict[str, Any] = {
        f"answers {number}": {"path": path, "hash": digest}
        for number, (path, digest) in enumerate(answers.directories.items(), 1)
    }
    sources["judgments"] = {"path": str(directory), "hash": str(read_manifest(directory)["hash"])}
    own = getattr(benchmark, "sources", None)
    if callable(own):
        sources |= own()
    data = DataInfo(config.benchmark, json_hash([asdict(item) for item in plan.items]), len(plan.items))
    finish(
        config,
        plan.short,
        subject,
        scores,
        data,
        settings,
        judge=judge_info(described, benchmark, judged),
        sources=sources,
        command=plan.command(),
    )


def drawn(decoding: AnswerDecoding | None) -> dict[str, Any]:
    """The decoding as settings of a record; nulls for stored answers, of which it is not known."""
    names = ("temperature", "top_p", "max_new_tokens", "seed")
    return {f"decoding.{name}": None if decoding is None else getattr(decoding, name) for name in names}
