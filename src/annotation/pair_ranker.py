"""Pairwise rankers: a cross-encoder reads a prompt and two responses, and says which of the two is better."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from src.annotation.base import Batch, Score, ScoreBatch, Shard, by_prompt, conversation_text
from src.errors import UserError

if TYPE_CHECKING:
    from src.annotation.classifier import Classifier

PLACES = ("prompt", "first", "second")


@dataclass(frozen=True)
class PairRanker:
    """The score of a response is its mean probability to win against the other responses to its prompt, in [0, 1].

    The model's only logit l(x, a, b) is that of "a is better than b". Both orders are read, so that a liking for a
    place cancels: P(a beats b) = (σ(l(x, a, b)) + σ(−l(x, b, a))) / 2, n(n−1) forwards for n responses. Equal texts
    draw.

    ``layout`` is what the model reads, with {prompt}, {first} and {second}; the default is that of PairRM (Jiang et al.
    2023, LLM-Blender). ``max_prompt_length`` and ``max_response_length``: what is kept of each, tokens from its start.

    PairRM itself has a head that pools at its marker tokens and is published for a program of its own: only a
    checkpoint that ``AutoModelForSequenceClassification`` reads whole can be used here.
    """

    path: str
    revision: str | None = None
    layout: str = "<|source|>{prompt}<|candidate1|>{first}<|candidate2|>{second}"
    batch_size: int = 8
    max_prompt_length: int = 1224
    max_response_length: int = 412
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if missing := [name for name in PLACES if f"{{{name}}}" not in self.layout]:
            raise UserError(
                f"scorer.layout={self.layout!r} has no place for {{{missing[0]}}}, so the model would not read it; "
                "write {prompt}, {first} and {second} once each"
            )
        for name in ("batch_size", "max_prompt_length", "max_response_length"):
            if getattr(self, name) < 1:
                raise UserError(f"scorer.{name}={getattr(self, name)} cannot work; give at least 1")

    def describe(self) -> dict[str, Any]:
        from src.annotation.classifier import identity_of

        names = ("layout", "max_prompt_length", "max_response_length", "dtype")
        settings = {name: getattr(self, name) for name in names}
        return {"scorer": "pair_ranker", "weights": identity_of(self.path, self.revision), **settings}

    def batches(self, shard: Shard) -> list[Batch]:
        return by_prompt(shard)

    def open(self, folder: Path) -> ScoreBatch:
        from src.annotation.classifier import open_classifier

        classifier = open_classifier(self.path, self.revision, self.dtype, self.device, self.trust_remote_code)

        def score(shard: Shard, batch: Batch) -> list[Score]:
            candidates = shard[batch[0][0]]
            if len(batch) < 2:
                return [Score(None, "the only response to its prompt")]
            prompt = beginning(conversation_text(candidates.prompt), self.max_prompt_length, classifier)
            texts = [
                beginning(candidates.responses[place].text, self.max_response_length, classifier) for _, place in batch
            ]
            return [Score(value) for value in mean_wins(self.win_matrix(classifier, prompt, texts))]

        return score

    def win_matrix(self, classifier: Classifier, prompt: str, texts: list[str]) -> list[list[float]]:
        """[n, n]: probability that the row's response beats the column's; the diagonal is 1/2."""
        orders = [(a, b) for a, b in permutations(range(len(texts)), 2) if texts[a] != texts[b]]
        rows = [
            list(classifier.tokenizer(filled(self.layout, prompt, texts[a], texts[b]))["input_ids"]) for a, b in orders
        ]
        longest = max(map(len, rows), default=0)
        if classifier.longest is not None and longest > classifier.longest:
            raise UserError(
                f"a prompt with two responses takes {longest} tokens, scorer.path={self.path} at most "
                f"{classifier.longest}; lower scorer.max_prompt_length or scorer.max_response_length"
            )
        by_length = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        wins = [[0.5] * len(texts) for _ in texts]
        for start in range(0, len(rows), self.batch_size):
            chunk = by_length[start : start + self.batch_size]
            for row, logit in zip(chunk, classifier.outputs([rows[row] for row in chunk]), strict=True):
                a, b = orders[row]
                half = (sigmoid(logit) - 0.5) / 2
                wins[a][b] += half
                wins[b][a] -= half
        return wins


def mean_wins(wins: list[list[float]]) -> list[float]:
    """The mean of each row without the diagonal."""
    return [(math.fsum(row) - row[place]) / (len(row) - 1) for place, row in enumerate(wins)]


def sigmoid(logit: float) -> float:
    """1/(1 + e^−x) that does not overflow."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def filled(layout: str, prompt: str, first: str, second: str) -> str:
    """``layout`` with the three texts in their places; braces inside the texts stay as they are."""
    texts = dict(zip(PLACES, (prompt, first, second), strict=True))
    return re.sub(r"\{(prompt|first|second)\}", lambda match: texts[match.group(1)], layout)


def beginning(text: str, tokens: int, classifier: Classifier) -> str:
    """The first ``tokens`` tokens of a text."""
    tokenizer = classifier.tokenizer
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return text if len(ids) <= tokens else str(tokenizer.decode(ids[:tokens]))
