"""The toy world as a source of preference pairs, demonstrations and scored responses."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice

from src.data.pairs import Demonstration, PreferencePair, Prompt, ScoredResponse, ScoredResponses, prompt_hash
from src.data.toy.grammar import draw_prompt
from src.data.toy.scorer import LENGTH_BIAS, length_bonus, score_task
from src.data.toy.tasks import Task, parse_task
from src.data.toy.writers import WRITERS, write
from src.errors import UserError

PAIRINGS = ("best_worst", "best_random", "random")
ROLES = ("preference", "demonstration", "benchmark")


def role_of(prompt: Prompt) -> str:
    """What a prompt is used for, by its hash: 45 % preference, 45 % demonstration, 10 % benchmark."""
    number = int(hashlib.sha256(f"toy role {prompt_hash(prompt)}".encode()).hexdigest(), 16) % 100
    return ROLES[0] if number < 45 else ROLES[1] if number < 90 else ROLES[2]


def draw_prompts(role: str, seed: int, kind: str | None = None) -> Iterator[Prompt]:
    """Endless distinct prompts of one role (and kind); how many are taken does not change the first ones."""
    seen: set[Prompt] = set()
    rng = random.Random(f"toy prompts {role} {kind} {seed}")
    misses = 0
    while misses < 10_000:
        prompt = draw_prompt(random.Random(rng.getrandbits(64)), kind)
        if prompt in seen or role_of(prompt) != role:
            misses += 1
            continue
        misses = 0
        seen.add(prompt)
        yield prompt
    raise UserError(f"the toy world has only about {len(seen)} {role} prompts of kind {kind or 'any'}; ask for fewer")


@dataclass(frozen=True)
class ToySource:
    """The toy world; the fields are the keys of conf/dataset/toy.yaml.

    ``prompts`` preference prompts with ``responses_per_prompt`` responses of distinct text each, scored by a noisy,
    length-loving annotator: ground truth + ``length_bias`` (points for a long response) + normal noise of
    ``annotator_noise`` points. One pair a prompt: the best response against the worst (``best_worst``),
    against a random other one (``best_random``), or two random ones (``random``). For ``demonstration_prompts``
    other prompts there is one response each, by any of the writers.
    """

    seed: int = 0
    prompts: int = 9000
    responses_per_prompt: int = 4
    pairing: str = "best_random"
    demonstration_prompts: int = 32000
    annotator_noise: float = 0.15
    length_bias: float = LENGTH_BIAS

    def __post_init__(self) -> None:
        """Raises ``UserError`` for values that cannot work."""
        if self.pairing not in PAIRINGS:
            raise UserError(f"dataset.source.pairing={self.pairing} is unknown; use one of {', '.join(PAIRINGS)}")
        if self.responses_per_prompt < 2:
            raise UserError(
                f"dataset.source.responses_per_prompt={self.responses_per_prompt} gives no pair; use 2 or more"
            )
        for name in ("prompts", "demonstration_prompts", "annotator_noise"):
            if getattr(self, name) < 0:
                raise UserError(f"dataset.source.{name}={getattr(self, name)} is negative; use 0 or more")

    def scored_responses(self) -> Iterator[ScoredResponses]:
        """All responses with their annotation scores and writers, prompt by prompt."""
        for number, prompt in enumerate(islice(draw_prompts("preference", self.seed), self.prompts)):
            rng = random.Random(f"toy responses {self.seed} {number}")
            responses = _draw_responses(parse_task(prompt), self.responses_per_prompt, rng)
            scored = tuple(
                ScoredResponse(text, self._annotate(text, truth, rng), writer) for text, truth, writer in responses
            )
            yield ScoredResponses(f"toy-{self.seed}-{number:06d}", prompt, scored)

    def pairs(self) -> Iterator[PreferencePair]:
        """One pair a prompt; the better annotated response is the chosen one."""
        for record in self.scored_responses():
            rng = random.Random(f"toy pairing {self.pairing} {record.id}")
            ranked = sorted(record.responses, key=lambda response: (-(response.score or 0.0), response.text))
            if self.pairing == "best_worst":
                chosen, rejected = ranked[0], ranked[-1]
            elif self.pairing == "best_random":
                chosen, rejected = ranked[0], rng.choice(ranked[1:])
            else:
                chosen, rejected = (ranked[index] for index in sorted(rng.sample(range(len(ranked)), 2)))
            yield PreferencePair(
                id=record.id,
                prompt=record.prompt,
                chosen=chosen.text,
                rejected=rejected.text,
                chosen_score=chosen.score,
                rejected_score=rejected.score,
                chosen_writer=chosen.writer,
                rejected_writer=rejected.writer,
            )

    def demonstrations(self) -> Iterator[Demonstration]:
        """Responses to imitate, for prompts that no pair has."""
        for number, prompt in enumerate(islice(draw_prompts("demonstration", self.seed), self.demonstration_prompts)):
            rng = random.Random(f"toy demonstrations {self.seed} {number}")
            response = write(rng.choice(tuple(WRITERS.values())), parse_task(prompt), rng)
            yield Demonstration(f"toy-demonstration-{self.seed}-{number:06d}", prompt, response)

    def fingerprint(self) -> str:
        """Hex hash of the world's version and the options."""
        options = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(f"{world_version()} {options}".encode()).hexdigest()

    def _annotate(self, text: str, truth: float, rng: random.Random) -> float:
        noise = rng.gauss(0.0, self.annotator_noise)
        return round(truth + length_bonus(text, self.length_bias) + noise, 4)


def _draw_responses(task: Task, count: int, rng: random.Random) -> list[tuple[str, float, str]]:
    """(text, true score, writer) of ``count`` responses of distinct text, by different writers as far as they go."""
    responses: dict[str, tuple[str, float, str]] = {}
    names: list[str] = []
    for _ in range(50 * count):
        if len(responses) == count:
            break
        names = names or rng.sample(tuple(WRITERS), len(WRITERS))
        name = names.pop()
        text = write(WRITERS[name], task, rng)
        if text not in responses:
            responses[text] = (text, score_task(task, text).overall, name)
    return list(responses.values())


@lru_cache(maxsize=1)
def world_version() -> str:
    """Hex hash of samples of everything the world generates: any change of grammar, writers or scorer changes it."""
    sample = ToySource(seed=0, prompts=300, demonstration_prompts=300)
    digest = hashlib.sha256()
    for record in sample.scored_responses():
        digest.update(repr(record).encode())
    for demonstration in sample.demonstrations():
        digest.update(repr(demonstration).encode())
    for prompt in islice(draw_prompts("benchmark", 0), 100):
        digest.update(repr(prompt).encode())
    return digest.hexdigest()
