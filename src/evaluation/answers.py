"""A model's answers to a benchmark's questions: turn by turn, and each temperature apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.data.cache import json_hash
from src.data.pairs import Message, Prompt
from src.errors import UserError
from src.evaluation.benchmark import Item, Outputs
from src.evaluation.decoding import AnswerDecoding
from src.evaluation.subject import Subject
from src.generation.base import Generator, Request, Response
from src.generation.generate import Job, generate
from src.generation.prompts import NamedPrompt
from src.generation.shards import MANIFEST, read_manifest, read_records, whole_lines

Say = Callable[[str], None]


@dataclass(frozen=True)
class Answers:
    """All answers. ``directories``: where they are kept, with the hash of each; ``refused``: ids by the reason why
    the model cannot be asked (its answer counts as the empty text); ``generator``: its kind."""

    outputs: Outputs
    directories: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    generator: str = ""

    @property
    def hash(self) -> str:
        """Of the texts."""
        return json_hash([[identity, *answers] for identity, answers in self.outputs.items()])

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers must know."""
        return tuple(
            f"{len(ids)} answers are empty because the model could not be asked ({reason}): {', '.join(ids[:5])}"
            + ("…" if len(ids) > 5 else "")
            for reason, ids in self.refused.items()
        )


class Described:
    """A generator that hashes its weights once, however many jobs it serves."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self._described: dict[str, Any] | None = None

    def describe(self) -> dict[str, Any]:
        if self._described is None:
            self._described = self.generator.describe()
        return self._described

    def refusal(self, prompt: Prompt) -> str | None:
        return self.generator.refusal(prompt)

    def respond(self, requests: Sequence[Request]) -> Iterator[tuple[int, Response]]:
        return self.generator.respond(requests)

    def close(self) -> None:
        self.generator.close()


class UnfinishedError(Exception):
    """Some answers are not there yet."""


@dataclass(frozen=True)
class Answering:
    """Who answers what. ``name``: of the benchmark, part of the directories' names."""

    generator: Described
    subject: Subject
    decoding: AnswerDecoding
    items: Sequence[Item]
    name: str
    root: Path
    shard_size: int

    def write(self, say: Say, **notes: Any) -> Answers:
        """Answer everything that has no answer yet."""

        def fill(job: Job, directory: Path, what: str) -> None:
            if not (directory / MANIFEST).exists():
                say(f"answers: {what}, into {directory}")
            generate(job, directory, self.shard_size, say=say, **notes)

        return self._collect(fill)

    def read(self, remedy: str) -> Answers:
        """Answers that are there; raises ``UserError`` with ``remedy`` where some are not."""

        def require(job: Job, directory: Path, what: str) -> None:
            if not (directory / MANIFEST).exists():
                state = "not finished" if directory.exists() else "not there"
                raise UserError(f"the answers of {self.subject.name} ({what}) are {state}: {directory}; {remedy}")

        return self._collect(require)

    def left(self) -> tuple[Answers | None, int]:
        """The answers if all are there, and how many are not. Of later turns, which follow on what is not written
        yet, all."""
        total = sum(len(item.turns) for item in self.items)
        there = 0

        def count(job: Job, directory: Path, what: str) -> None:
            nonlocal there
            if not (directory / MANIFEST).exists():
                files = [*directory.glob("shards/*.jsonl"), *directory.glob("partial/*.jsonl")]
                there += sum(len(whole_lines(path)[0]) for path in files)
                raise UnfinishedError
            there += len(job.prompts)

        try:
            return self._collect(count), 0
        except UnfinishedError:
            return None, total - there

    def _collect(self, visit: Callable[[Job, Path, str], None]) -> Answers:
        """All answers, after ``visit`` saw each job: turn by turn, since later turns hold the earlier answers."""
        said: dict[str, list[str]] = {item.id: [] for item in self.items}
        directories: dict[str, str] = {}
        refused: dict[str, list[str]] = {}
        for turn in range(max(len(item.turns) for item in self.items)):
            for temperature, items in self._by_temperature(turn):
                prompts = [NamedPrompt(item.id, conversation(item.turns, said[item.id])) for item in items]
                askable = self._askable(prompts, turn, refused)
                texts: dict[str, str] = {}
                if askable:
                    job = Job(self.generator, self.decoding.at(temperature), askable, self.subject.name)
                    several = max(len(item.turns) for item in self.items) > 1
                    part = f"{self.name}-turn{turn + 1}-t{job.decoding.temperatures[0]:g}" if several else self.name
                    directory = job.directory(self.root, part)
                    what = f"{len(askable)} to turn {turn + 1}" if several else f"{len(askable)} questions"
                    visit(job, directory, what)
                    directories[str(directory)] = str(read_manifest(directory)["hash"])
                    texts = {record["prompt_id"]: record["response"] for record in read_records(directory)}
                for item in items:
                    said[item.id].append(texts.get(item.id, ""))
        outputs = {identity: tuple(answers) for identity, answers in said.items()}
        kind = str(self.generator.describe()["generator"])
        return Answers(outputs, directories, {reason: tuple(ids) for reason, ids in refused.items()}, kind)

    def _by_temperature(self, turn: int) -> list[tuple[float | None, list[Item]]]:
        """The items that have this turn, by temperature, in order of the first of each."""
        groups: dict[float, list[Item]] = {}
        for item in self.items:
            if turn < len(item.turns):
                drawn = self.decoding.temperature if item.temperature is None else item.temperature
                groups.setdefault(drawn, []).append(item)
        return list(groups.items())

    def _askable(self, prompts: Sequence[NamedPrompt], turn: int, refused: dict[str, list[str]]) -> list[NamedPrompt]:
        """The prompts that the generator takes; the others go to ``refused``."""
        askable = []
        for prompt in prompts:
            reason = self.generator.refusal(prompt.prompt)
            if reason is None:
                askable.append(prompt)
            else:
                refused.setdefault(reason, []).append(prompt.id if turn == 0 else f"{prompt.id} (turn {turn + 1})")
        return askable


def conversation(turns: Sequence[str], answers: Sequence[str]) -> Prompt:
    """The user's turns with the model's own answers between them, up to the next user turn."""
    messages = []
    for number, answer in enumerate(answers):
        messages += [Message("user", turns[number]), Message("assistant", answer)]
    return (*messages, Message("user", turns[len(answers)]))


@contextmanager
def closing(generator: Described | None) -> Iterator[None]:
    """Give back what a generator holds at the end of the block."""
    try:
        yield
    finally:
        if generator is not None:
            generator.close()
