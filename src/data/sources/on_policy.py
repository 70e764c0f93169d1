"""The on-policy UltraFeedback sets of the SimPO paper: five responses of one model a prompt, scored by a reward model.

Source: Meng et al. 2024, https://huggingface.co/princeton-nlp (llama3-ultrafeedback and its relatives); columns
prompt_id, prompt, all_generated_responses, all_rm_scores, chosen, rejected. Chosen and rejected are the responses of
highest and lowest score (on_policy_data_gen/reward_model_annotate.py of the SimPO repository).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from src.data.pairs import (
    PreferencePair,
    ScoredResponse,
    ScoredResponses,
    prompt_from_json,
    require,
    score_field,
    text_field,
)
from src.data.sources.base import Skipped
from src.data.sources.file_or_hub import SplitOfHub, at
from src.data.sources.pairing import Pairing, comparable
from src.data.sources.ultrafeedback import messages
from src.errors import UserError

PUBLISHED = "published"


@dataclass(frozen=True)
class OnPolicy(SplitOfHub):
    """Such a set from the hub, or from ``path``: a parquet or JSON-lines file, or a directory of ``<split>*`` files.

    ``pairing``: ``published`` (the columns chosen and rejected) or one of ``Pairing``, whose settings the last three
    fields are. ``writer``: the model that wrote every response. ``split``: ``train`` (the default) or ``test``.
    """

    default_split: ClassVar[str] = "train"

    hub_id: str
    writer: str
    path: str | None = None
    revision: str | None = None
    split: str | None = None
    pairing: str = PUBLISHED
    min_gap: float = 0.0
    pairs_per_prompt: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.how()
        if self.pairing == PUBLISHED and self.min_gap:
            raise UserError(
                f"dataset.source.min_gap={self.min_gap} has no meaning with pairing={PUBLISHED}; use "
                "dataset.min_score_gap, which filters training pairs, or pairing=best_worst"
            )

    def how(self) -> Pairing:
        """The pairing where it is ours; raises ``UserError`` for settings that cannot work."""
        kind = "best_worst" if self.pairing == PUBLISHED else self.pairing
        return Pairing(kind, self.min_gap, self.pairs_per_prompt, self.seed)

    def scored_responses(self) -> Iterator[ScoredResponses]:
        """All responses to each prompt, named by its row; raises ``UserError`` with file and row for a bad record."""
        for position, (where, record) in enumerate(self.rows(), 1):
            with at(where):
                item = responses_of(f"op-{position:06d}", record, self.writer)
            yield item

    def records(self) -> Iterator[PreferencePair | Skipped]:
        """The published pair of each row, named by it, or the pairs of its responses."""
        if self.pairing != PUBLISHED:
            for item in comparable(self.scored_responses()):
                yield from self.how().pairs_of(item)
            return
        for position, (where, record) in enumerate(self.rows(), 1):
            with at(where):
                pair = published_pair(f"op-{position:06d}", record, self.writer)
            yield pair

    def options(self) -> dict[str, Any]:
        """Pairing and writer."""
        how = {"pairing": PUBLISHED} if self.pairing == PUBLISHED else self.how().options()
        return how | {"writer": self.writer}


def responses_of(identity: str, record: Mapping[str, Any], writer: str) -> ScoredResponses:
    """All responses in one row; raises ``UserError`` unless every response is a text and has a score or null."""
    texts, scores = listed(record, "all_generated_responses"), listed(record, "all_rm_scores")
    if len(texts) != len(scores):
        raise UserError(
            f"{len(texts)} responses in 'all_generated_responses', but {len(scores)} scores in 'all_rm_scores'; "
            "each response must have one"
        )
    responses = []
    for place, (text, score) in enumerate(zip(texts, scores, strict=True)):
        if not isinstance(text, str):
            raise UserError(f"response {place} of 'all_generated_responses' must be a string, not {text!r:.60}")
        with at(f"response {place}"):
            responses.append(ScoredResponse(text, score_field({"all_rm_scores": score}, "all_rm_scores"), writer))
    return ScoredResponses(identity, prompt_from_json(messages(record, "chosen")[:-1]), tuple(responses))


def published_pair(identity: str, record: Mapping[str, Any], writer: str) -> PreferencePair | Skipped:
    """The pair in the columns chosen and rejected, with the scores that these responses have among all of the row.

    A response that is not among them has no score. Of equal texts with several scores the chosen one takes the highest,
    the rejected one the lowest, as they were picked.
    """
    item = responses_of(identity, record, writer)
    chosen, rejected = messages(record, "chosen"), messages(record, "rejected")
    if chosen[:-1] != rejected[:-1]:
        return Skipped(identity, "chosen and rejected have different prompts")
    better, worse = text_field(chosen[-1], "content"), text_field(rejected[-1], "content")
    return PreferencePair(
        identity,
        item.prompt,
        better,
        worse,
        chosen_score=max(scores_of(item, better), default=None),
        rejected_score=min(scores_of(item, worse), default=None),
        chosen_writer=writer,
        rejected_writer=writer,
    )


def scores_of(item: ScoredResponses, text: str) -> list[float]:
    """The scores of the responses with this text; white space around a text does not count."""
    wanted = text.strip()
    return [found.score for found in item.responses if found.score is not None and found.text.strip() == wanted]


def listed(record: Mapping[str, Any], name: str) -> Sequence[Any]:
    """The list in field ``name``; raises ``UserError`` for anything else."""
    value = require(record, name)
    if not isinstance(value, (list, tuple)):
        raise UserError(f"field '{name}' must be a list, not {value!r:.60}")
    return value
