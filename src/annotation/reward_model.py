"""Reward models: sequence classifiers that read a conversation and give one number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from src.annotation.base import Batch, Item, Score, ScoreBatch, Shard, length_sorted
from src.data.pairs import Message
from src.errors import UserError


@dataclass(frozen=True)
class RewardModel:
    """Scores from ``AutoModelForSequenceClassification``: ``output.score``, or the only logit.

    The model reads prompt and response as its tokenizer's chat template (or the named ``template``) renders them, as
    SimPO's annotation with ArmoRM does. ``max_length``: longest conversation in tokens (``None``: what the model
    takes); a longer one gets no score and is counted. ``batch_size`` changes scores by rounding alone.
    """

    path: str
    revision: str | None = None
    template: str | None = None
    batch_size: int = 8
    max_length: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"scorer.batch_size={self.batch_size} cannot work; give at least 1")

    def describe(self) -> dict[str, Any]:
        from src.annotation.classifier import identity_of

        settings = {"template": self.template, "max_length": self.max_length, "dtype": self.dtype}
        return {"scorer": "reward_model", "weights": identity_of(self.path, self.revision), **settings}

    def batches(self, shard: Shard) -> list[Batch]:
        return length_sorted(shard, self.batch_size)

    def open(self, folder: Path) -> ScoreBatch:
        from src.annotation.classifier import open_classifier
        from src.data.templates import ChatTemplate, TemplateRefusal

        classifier = open_classifier(self.path, self.revision, self.dtype, self.device, self.trust_remote_code)
        try:
            template = ChatTemplate(classifier.tokenizer, template=self.template)
        except UserError as error:
            raise UserError(str(error).replace("model.template", "scorer.template")) from error
        limit = self.max_length or classifier.longest

        def encoded(shard: Shard, item: Item) -> list[int] | Score:
            candidates = shard[item[0]]
            turns = (*candidates.prompt, Message("assistant", candidates.responses[item[1]].text))
            try:
                ids = template.encode_conversation(turns)
            except TemplateRefusal:
                return Score(None, "refused by the chat template")
            return Score(None, "longer than max_length") if limit and len(ids) > limit else ids

        def score(shard: Shard, batch: Batch) -> list[Score]:
            rows = [encoded(shard, item) for item in batch]
            sequences = [row for row in rows if isinstance(row, list)]
            values = iter(classifier.outputs(sequences) if sequences else [])
            return [row if isinstance(row, Score) else Score(next(values)) for row in rows]

        return score
