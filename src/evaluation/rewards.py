"""Log-probs of given responses under a run's weights and under its reference: what rewards without a reward model are
made of.

Token ids are made as in training (chat template, response span, stop token at the end, truncation), and the forward is
that of training (``model/logps.py``), so a log-prob here is the one that the run optimised.

    rows = encode(template, [(prompt, [response, response]), …], truncation)   # one list of rows per prompt
    scorer = LogProbScorer(Weights(policy.directory, policy.model), device="auto")
    for indices, found in scorer.responses(rows_in_one_list, micro_batch_size=8):
        …

``kept.py`` does the same for many, shard by shard, and keeps what it found.

Reference: ``initial_weights`` says where the run started from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from src.config import run_directory
from src.data.collate import collate
from src.data.pairs import Prompt
from src.data.pairset import TokenizedPair
from src.data.preparation.options import PrepareOptions
from src.data.preparation.options import truncate as fit
from src.data.templates import ChatTemplate, TemplateRefusal
from src.errors import UserError
from src.generation.policy import directory_hash, local_directory
from src.model.adapter import saved_settings
from src.model.load import read_model
from src.model.logps import pair_log_probs
from src.model.packed import share_prefixes
from src.objective.types import PairLogProbs, ResponseLogProbs
from src.schema import ModelConfig, TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and a response as token ids. The response ends with the stop token unless it was cut.

    ``cut``: whether truncation took something from either.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    cut: bool = False

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class RowLogProbs:
    """Log-prob of one response, the stop token counted.

    ``summed``: nats, over its tokens. ``norm``: minus the L2 norm of the tokens' log-probs (RewardBench's
    ``ref_free_type=norm``). ``per_token``: the terms of the sum; ``None`` where they were not kept.
    """

    summed: float
    tokens: int
    norm: float
    per_token: tuple[float, ...] | None = None

    @property
    def average(self) -> float:
        """Nats per token; 0 for a response without tokens."""
        return self.summed / max(self.tokens, 1)


@dataclass(frozen=True)
class Truncation:
    """How prompts and responses that are too long are made to fit.

    ``name``: how a record calls it. Responses that are given together are judged by the longest of them, as the two of
    a pair are in training (``preparation/options.py``). ``keeps_bos``: whether a prompt that is cut keeps its bos.
    """

    name: str
    options: PrepareOptions
    keeps_bos: bool = True

    def describe(self) -> dict[str, Any]:
        """Plain data for records and identities."""
        options = self.options
        return {
            "name": self.name,
            "max_length": options.max_length,
            "max_prompt_length": options.max_prompt_length,
            "rule": options.truncation,
            "keeps_bos": self.keeps_bos,
        }


OFFICIAL = Truncation("official", PrepareOptions(max_length=2048, max_prompt_length=128), keeps_bos=False)
"""RewardBench's ``DPOInference``: 2048 tokens; where they do not suffice the prompt keeps its last 128, whatever they
are, and then responses keep their first 1920."""


def training_truncation(trained: TrainConfig) -> Truncation:
    """The one that the run's own data was prepared with."""
    dataset = trained.dataset
    options = PrepareOptions(dataset.max_length, dataset.max_prompt_length, dataset.truncation)
    return Truncation("training", options)


def encode(
    template: ChatTemplate, groups: Sequence[tuple[Prompt, Sequence[str]]], truncation: Truncation
) -> list[list[Row]]:
    """Rows of every (prompt, responses), truncated together. Raises ``UserError`` with the place of the group where
    the template refuses it, or the truncation would leave it out (``dataset.truncation=drop``)."""
    bos = template.tokenizer.bos_token_id if truncation.keeps_bos else None
    found: list[list[Row]] = []
    for place, encoded in enumerate(template.encode_batch(groups)):
        if isinstance(encoded, TemplateRefusal):
            raise UserError(f"prompt {place + 1} of {len(groups)} cannot be written in the chat template: {encoded}")
        prompt, responses = encoded
        fitted = fit(prompt, responses, truncation.options, bos)
        if isinstance(fitted, str):
            raise UserError(
                f"prompt {place + 1} of {len(groups)} is left out by dataset.truncation=drop ({fitted}), so it would "
                "have no score; choose truncation=official"
            )
        kept, bodies = fitted
        found.append(
            [
                Row(kept, body, cut=len(kept) < len(prompt) or len(body) < len(whole))
                for body, whole in zip(bodies, responses, strict=True)
            ]
        )
    return found


def batches(rows: Sequence[Row], micro_batch_size: int) -> list[list[int]]:
    """Indices of ``rows`` in forwards of ``micro_batch_size``, longest first; a function of the lengths alone."""
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    return [order[start : start + micro_batch_size] for start in range(0, len(order), micro_batch_size)]


@dataclass(frozen=True)
class Weights:
    """Weights that score responses: a directory or hub id, and the configuration they are read with (dtype)."""

    path: Path | str
    model: ModelConfig

    def describe(self) -> dict[str, Any]:
        """Hash of the weights, and the dtype; reads all of them."""
        return {"weights": directory_hash(local_directory(str(self.path))), "dtype": self.model.dtype}


class LogProbScorer:
    """Weights on a device, read when they are first needed; ``device``: auto (CUDA when present), cpu or cuda.

    Float32 weights; where the dtype is bfloat16 the forward runs under autocast, as in training.
    """

    def __init__(self, weights: Weights, device: str) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda, but torch finds no CUDA device here; use device=cpu or device=auto")
        self.weights = weights
        self.device = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model on the device."""
        model = read_model(self.weights.model, str(self.weights.path))
        if self.weights.model.layout == "prefix":
            share_prefixes(model)
        torch.nn.Module.to(model, self.device)
        return model

    def pairs(self, pairs: Sequence[TokenizedPair], micro_batch_size: int, *, per_token: bool = False) -> PairLogProbs:
        """Log-probs of prepared pairs, in their order, also token by token where asked for; on the CPU."""
        chunks = (pairs[start : start + micro_batch_size] for start in range(0, len(pairs), micro_batch_size))
        return PairLogProbs.concatenate([self._forward(chunk, per_token) for chunk in chunks])

    def responses(
        self, rows: Sequence[Row], micro_batch_size: int, skip: int = 0
    ) -> Iterator[tuple[list[int], list[RowLogProbs]]]:
        """(indices, log-probs) of one forward after the other, as ``batches`` cuts them; the first ``skip`` are left
        out (an earlier process did them)."""
        for indices in batches(rows, micro_batch_size)[skip:]:
            chosen = [rows[index] for index in indices]
            self._refuse_unknown_ids(chosen)
            found = self._forward([as_pair(row) for row in chosen], per_token=True).chosen
            yield indices, [of_row(found, place, row) for place, row in enumerate(chosen)]

    def close(self) -> None:
        """Give back the memory; the weights are read again when they are needed again."""
        self.__dict__.pop("model", None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _refuse_unknown_ids(self, rows: Sequence[Row]) -> None:
        """Raise ``UserError`` for token ids that the weights do not embed: those of another tokenizer."""
        embeddings: Any = self.model.get_input_embeddings()
        known = embeddings.weight.shape[0]
        if (largest := max(max(row.prompt_ids + row.response_ids) for row in rows)) >= known:
            raise UserError(
                f"{self.weights.path} embeds {known} tokens, but the tokenizer gives the id {largest}: weights and "
                "tokenizer do not belong together; give a reference of the same tokenizer"
            )

    @torch.no_grad()
    def _forward(self, pairs: Sequence[TokenizedPair], per_token: bool) -> PairLogProbs:
        half = self.weights.model.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            try:
                batch = collate(pairs).to(self.device)
                return pair_log_probs(self.model, batch, per_token=per_token).to(torch.device("cpu"))
            except torch.cuda.OutOfMemoryError as error:
                longest = max(len(pair.prompt_ids) + len(pair.chosen_ids) for pair in pairs)
                raise UserError(
                    f"{len(pairs)} rows of up to {longest} tokens do not fit on the GPU; make micro_batch_size smaller"
                ) from error


def as_pair(row: Row) -> TokenizedPair:
    """A row as a demonstration, which the forward takes as one row."""
    return TokenizedPair(0, "", row.prompt_ids, row.response_ids, [], None, None, False)


def of_row(found: ResponseLogProbs, place: int, row: Row) -> RowLogProbs:
    """What a forward gave for its row ``place``."""
    assert found.per_token is not None
    start = len(row.prompt_ids)
    terms = found.per_token[place, start : start + len(row.response_ids)].double()
    return RowLogProbs(
        float(found.summed[place]), int(found.tokens[place]), -float(terms.norm()), tuple(map(float, terms))
    )


def as_log_probs(found: Sequence[RowLogProbs]) -> ResponseLogProbs:
    """Rows as the tensors that a method's reward takes: float32, [n], and the terms [n, longest] where they were
    kept."""
    tokens = torch.tensor([row.tokens for row in found], dtype=torch.float32)
    kept = [torch.tensor(row.per_token) for row in found if row.per_token is not None]
    padded = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True) if len(kept) == len(found) else None
    return ResponseLogProbs(torch.tensor([row.summed for row in found]), tokens, padded)


def initial_weights(
    trained: TrainConfig, weights: Path, sft_base: Callable[[TrainConfig], TrainConfig | None]
) -> Path | None:
    """Where the run started from, which is its reference: for an adapter its base. ``None`` when that is gone, or
    for random weights, which a run keeps for its adapter alone.

    ``weights``: the run's own; ``sft_base``: ``src.training.run.sft_base``, which entry points hand in.
    """
    if (settings := saved_settings(weights)) is not None:
        return Path(str(settings.base_model_name_or_path))
    base = sft_base(trained)
    if base is not None:
        path = run_directory(base) / "checkpoints" / "best" / "model"
        return path if path.exists() else None
    return None if trained.model.path is None else Path(trained.model.path)
