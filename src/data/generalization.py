"""Prompts and writers that training never sees: the four generalization scenarios of AMaPO (appendix D.1).

X_train and X_valid are disjoint sets of prompts, M_train and M_valid disjoint sets of writers (the models that wrote
the responses). Training pairs are of X_train by M_train; the test sets are

    in_distribution  X_train, M_train: other responses to the prompts trained on
    prompt_ood       X_valid, M_train
    response_ood     X_train, M_valid
    mutual_ood       X_valid, M_valid

As in Hong et al. 2025 ("On the Robustness of Reward Models for Language Model Alignment", appendix B), whose sets AMaPO
takes: two responses drawn at random make the training pair of a prompt, two others its in-distribution pair. The pairs
of the other three are the best against the worst response there is (AMaPO D.1). Prompts that occur twice and texts that
two writers gave to one prompt are left out, as there. (There X_train has 51,200 of 62,282 prompts, M_train 17 writers
and M_valid 4.) Every draw is by hash of the seed and of prompt, id, text or name, so order does not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import Any, cast

from src.data.pairs import Demonstration, PreferencePair, Prompt, ScoredResponses, prompt_hash
from src.data.sources.base import PairSource, Skipped, Source, chosen_demonstrations
from src.data.sources.pairing import Pairing, ScoredSource, best_and_worst, comparable
from src.data.splits import TRAIN, digest, split_of, uniform
from src.errors import UserError

PARTS = ("in_distribution", "prompt_ood", "response_ood", "mutual_ood")
UNSEEN_PROMPTS = ("prompt_ood", "mutual_ood")
UNSEEN_WRITERS = ("response_ood", "mutual_ood")
PAIRING_KEYS = ("pairing", "min_gap", "pairs_per_prompt")
KEY = "dataset.generalization"


@dataclass(frozen=True)
class Generalization:
    """What is held back from training. Raises ``UserError`` for settings that cannot work.

    ``unseen_prompts``: share of the prompts, by hash. ``unseen_writers``: their number, drawn by hash of the name, or
    their names. ``pairs_per_prompt``: training pairs of one prompt, of different responses.
    """

    unseen_prompts: float
    unseen_writers: int | tuple[str, ...]
    pairs_per_prompt: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.unseen_prompts < 1:
            raise UserError(
                f"{KEY}.unseen_prompts={self.unseen_prompts} must be a share of the prompts between 0 and 1 (0.2)"
            )
        given = self.unseen_writers
        if (given if isinstance(given, int) else len(set(given))) < 2:
            raise UserError(
                f"{KEY}.unseen_writers={given} leaves no pair of responses by unseen writers; give 2 or more, or their "
                "names: [A,B]"
            )
        if self.pairs_per_prompt < 1:
            raise UserError(f"{KEY}.pairs_per_prompt={self.pairs_per_prompt} gives no training pair; give 1 or more")

    def of(self, source: Source) -> SeenPairs:
        """What is trained on of ``source``; raises ``UserError`` for one without scored responses, or whose own pairing
        was set and would not be read."""
        if not isinstance(source, ScoredSource):
            raise UserError(
                f"{KEY} holds writers back, but {type(source).__name__} has pairs alone; use a source with several "
                "scored responses a prompt (dataset=scored_responses, ultrafeedback_full or toy)"
            )
        for spec in fields(cast(Any, source)):
            value = getattr(source, spec.name)
            if spec.name in PAIRING_KEYS and spec.default is not MISSING and value != spec.default:
                raise UserError(
                    f"dataset.source.{spec.name}={value} would not be read with {KEY}, which pairs responses by itself "
                    f"({KEY}.pairs_per_prompt); leave it out"
                )
        return SeenPairs(source, self)

    def is_unseen(self, prompt: Prompt) -> bool:
        """Whether the prompt is in X_valid."""
        return uniform(self.seed, "unseen prompt:" + prompt_hash(prompt)) < self.unseen_prompts

    def unseen_of(self, writers: Iterable[str]) -> frozenset[str]:
        """M_valid among all ``writers``; raises ``UserError`` for an unknown name, or when fewer than two are left."""
        known, given = sorted(set(writers)), self.unseen_writers
        if isinstance(given, int):
            unseen = frozenset(sorted(known, key=lambda name: digest(self.seed, "unseen writer:" + name))[:given])
        else:
            unseen = frozenset(given)
            if unknown := sorted(unseen - set(known)):
                raise UserError(
                    f"{KEY}.unseen_writers names {', '.join(unknown)}, but the writers of dataset.source are: "
                    + ", ".join(known)
                )
        if len(known) - len(unseen) < 2:
            raise UserError(
                f"{KEY}.unseen_writers={given} leaves {len(known) - len(unseen)} of the {len(known)} writers of "
                f"dataset.source to train on ({', '.join(known)}), and a pair needs two; hold fewer back"
                + (", or use data with more writers" if len(known) < 4 else "")
            )
        return unseen


@dataclass(frozen=True)
class SeenPairs(PairSource):
    """The training pairs: prompts of X_train, responses by M_train."""

    source: ScoredSource
    settings: Generalization

    def records(self) -> Iterator[PreferencePair | Skipped]:
        """The training pairs, named ``<prompt id>/<place of chosen>-<place of rejected>``, and what made none."""
        seen, _ = self.writers
        for item in self.items():
            if isinstance(item, Skipped):
                yield item
            elif self.settings.is_unseen(item.prompt):
                yield Skipped(item.id, "prompt held back")
            else:
                yield from self.training_pairs(item, seen)

    def demonstrations(self) -> Iterator[Demonstration]:
        """Chosen responses of the training pairs; of a source with demonstrations of its own (the toy world), those
        whose prompts are not held back."""
        if isinstance(self.source, PairSource):
            return chosen_demonstrations(self.pairs())
        return (found for found in self.source.demonstrations() if not self.settings.is_unseen(found.prompt))

    def content(self) -> str:
        """That of the source."""
        return self.source.fingerprint()

    def options(self) -> dict[str, Any]:
        """What is held back, and how it is drawn."""
        given, settings = self.settings.unseen_writers, self.settings
        return {
            "unseen_prompts": float(settings.unseen_prompts),
            "unseen_writers": given if isinstance(given, int) else sorted(given),
            "pairs_per_prompt": settings.pairs_per_prompt,
            "seed": settings.seed,
        }

    @cached_property
    def writers(self) -> tuple[frozenset[str], frozenset[str]]:
        """(M_train, M_valid); raises ``UserError`` for a response whose writer is not known."""
        known = set[str]()
        for item in comparable(self.source.scored_responses()):
            for place, response in enumerate(item.responses):
                if response.writer is None:
                    raise UserError(
                        f"response {place} to prompt '{item.id}' of dataset.source names no writer, and {KEY} holds "
                        "writers back; give every response its writer"
                    )
                known.add(response.writer)
        unseen = self.settings.unseen_of(known)
        return frozenset(known - unseen), unseen

    def items(self) -> Iterator[ScoredResponses | Skipped]:
        """All responses, prompt by prompt; a prompt that occurred before is skipped."""
        seen = set[str]()
        for item in self.source.scored_responses():
            key = prompt_hash(item.prompt)
            yield Skipped(item.id, "prompt occurs twice") if key in seen else item
            seen.add(key)

    def drawn(self, item: ScoredResponses, writers: frozenset[str]) -> list[int]:
        """Places of the scored responses by ``writers`` whose text nobody else gave, in the order in which they are
        drawn."""
        texts = Counter(response.text for response in item.responses)
        places = [
            place
            for place, response in enumerate(item.responses)
            if response.writer in writers and response.score is not None and texts[response.text] == 1
        ]
        return sorted(places, key=lambda place: self._rank(item, place))

    def _rank(self, item: ScoredResponses, place: int) -> bytes:
        response = item.responses[place]
        return digest(self.settings.seed, f"response:{item.id}:{response.writer}:{response.text}")

    def training_pairs(self, item: ScoredResponses, writers: frozenset[str]) -> Iterator[PreferencePair | Skipped]:
        """Those of one prompt, of responses by ``writers``."""
        places = self.drawn(item, writers)
        if len(places) < 2:
            yield Skipped(item.id, "fewer than two responses by seen writers")
        for start in range(0, min(len(places) - 1, 2 * self.settings.pairs_per_prompt), 2):
            yield Pairing().pair(item, places[start], places[start + 1])


@dataclass(frozen=True)
class TestPairs(PairSource):
    """The test pairs of one of ``PARTS``. Prompts of the run's own validation split were not trained on, and are left
    out of the parts whose prompts were."""

    __test__ = False  # no test class, whatever its name

    seen: SeenPairs
    part: str
    validation_fraction: float
    split_seed: int

    def records(self) -> Iterator[PreferencePair | Skipped]:
        """The pairs, and the prompts of this part that made none; raises ``UserError`` when none did."""
        reasons = Counter[str]()
        made = 0
        for item in self.seen.items():
            if isinstance(item, Skipped) or not self._has(item.prompt):
                continue
            found = self._pair(item)
            if isinstance(found, Skipped):
                reasons[found.reason] += 1
            else:
                made += 1
            yield found
        if not made:
            why = ", ".join(f"{count} × {reason}" for reason, count in sorted(reasons.items())) or "no prompt is in it"
            raise UserError(
                f"split={self.part} has no pair ({why}); train with another {KEY}.unseen_prompts or unseen_writers, or "
                "on data with more prompts or more responses a prompt"
            )

    def content(self) -> str:
        """That of the training pairs."""
        return self.seen.fingerprint()

    def options(self) -> dict[str, Any]:
        """The part, and which of the seen prompts were trained on."""
        return {"part": self.part, "validation_fraction": self.validation_fraction, "split_seed": self.split_seed}

    def refuse_overlap(self) -> None:
        """Raise ``UserError`` when a test pair shares with the training pairs what it must not: an unseen prompt, an
        unseen writer, or a response (prompt and text) at all."""
        prompts, writers, responses = set[str](), set[str | None](), set[bytes]()
        for pair in self.seen.pairs():
            if split_of(pair.prompt, self.validation_fraction, self.split_seed) == TRAIN:
                prompts.add(prompt_hash(pair.prompt))
                writers |= {pair.chosen_writer, pair.rejected_writer}
                responses |= set(_responses(pair))
        for pair in self.pairs():
            shared = []
            if self.part in UNSEEN_PROMPTS and prompt_hash(pair.prompt) in prompts:
                shared.append("its prompt")
            if self.part in UNSEEN_WRITERS and {pair.chosen_writer, pair.rejected_writer} & writers:
                shared.append("a writer")
            if responses.intersection(_responses(pair)):
                shared.append("a response")
            if shared:
                raise UserError(
                    f"pair '{pair.id}' of split={self.part} has {' and '.join(shared)} in common with the training "
                    "pairs, so it would not measure generalization; the data changes while it is read, or reads "
                    "differently each time"
                )

    def _has(self, prompt: Prompt) -> bool:
        unseen = self.seen.settings.is_unseen(prompt)
        if self.part in UNSEEN_PROMPTS:
            return unseen
        return not unseen and split_of(prompt, self.validation_fraction, self.split_seed) == TRAIN

    def _is_trained_on(self, item: ScoredResponses) -> bool:
        return any(isinstance(found, PreferencePair) for found in self.seen.training_pairs(item, self.seen.writers[0]))

    def _pair(self, item: ScoredResponses) -> PreferencePair | Skipped:
        seen, unseen = self.seen.writers
        if self.part not in UNSEEN_PROMPTS and not self._is_trained_on(item):
            return Skipped(item.id, "prompt without a training pair")
        places = self.seen.drawn(item, unseen if self.part in UNSEEN_WRITERS else seen)
        if self.part == "in_distribution":
            used = 2 * self.seen.settings.pairs_per_prompt
            places = places[used : used + 2]
            if len(places) < 2:
                return Skipped(item.id, "fewer than two responses by seen writers beside those trained on")
        if len(places) < 2:
            which = "unseen" if self.part in UNSEEN_WRITERS else "seen"
            return Skipped(item.id, f"fewer than two responses by {which} writers")
        return Pairing().pair(item, *best_and_worst(item, places))


def _responses(pair: PreferencePair) -> list[bytes]:
    prompt = prompt_hash(pair.prompt)
    return [digest(0, f"{prompt}\n{text}") for text in (pair.chosen, pair.rejected)]
