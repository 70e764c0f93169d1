"""TRL's trainers, brought to take one step on pairs of ours."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.workloads import END, reference_of
from src.data.pairset import TokenizedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAMES = ("trl_cpo", "trl_dpo", "trl_dpo_precomputed", "trl_dpo_compact")
"""CPOTrainer with SimPO's loss; DPOTrainer with a reference model, with precomputed log-probs of it, and so with the
head scoring responses alone, which it does where Triton is."""

SIMPO = ("method.beta=2.5", "method.gamma_beta_ratio=0.55")
"""Our SimPO with the constants that ``trainer_of`` gives CPOTrainer."""


@dataclass(frozen=True)
class Theirs:
    """A step of a trainer of TRL's: pairs laid out, loss, gradients and metrics."""

    trainer: Any
    kind: str

    def features(self, pairs: Sequence[TokenizedPair]) -> list[dict[str, Any]]:
        return cpo_features(pairs) if self.kind == "trl_cpo" else dpo_features(pairs, self.kind != "trl_dpo")

    def __call__(self, pairs: Sequence[TokenizedPair]) -> float:
        inputs = self.trainer._prepare_inputs(self.trainer.data_collator(self.features(pairs)))
        with scoring_responses_alone() if self.kind == "trl_dpo_compact" else nullcontext():
            loss = self.trainer.compute_loss(self.trainer.model, inputs)
            self.trainer.accelerator.backward(loss)
        self.trainer.model.zero_grad(set_to_none=True)
        return float(loss.detach())


def theirs(kind: str, model: PreTrainedModel, **changed: Any) -> Theirs:
    """The step of trainer ``kind`` on ``model``, which it changes the forward of; ``changed``: options of it."""
    step = Theirs(trainer_of(kind, model, **changed), kind)
    step.trainer.model.train()
    return step


def trainer_of(kind: str, model: PreTrainedModel, **changed: Any) -> Any:
    """The trainer around ``model``, on a data set of one pair that no step looks at."""
    from datasets import Dataset

    rows = Dataset.from_list([{"prompt": "w2 w3", "chosen": " w2", "rejected": " w3"}])
    given: dict[str, Any] = {"model": model, "train_dataset": rows, "processing_class": tokenizer()}
    common = options() | {"output_dir": tempfile.mkdtemp(prefix="trl-")} | changed
    if kind == "trl_cpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        settings = CPOConfig(loss_type="simpo", beta=2.5, simpo_gamma=1.375, cpo_alpha=0.0, **common)
        return CPOTrainer(args=settings, **given)
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    online = kind == "trl_dpo"
    reference: dict[str, Any] = {"ref_model": copy.deepcopy(model)} if online else {}
    return DPOTrainer(args=DPOConfig(beta=0.1, precompute_ref_log_probs=not online, **common), **given, **reference)


def options() -> dict[str, Any]:
    """What both trainers are told: float32 on the CPU, nothing recomputed, nothing written."""
    return {
        "per_device_train_batch_size": 4,
        "max_length": 8192,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def tokenizer() -> Any:
    """Two words are all the trainers are given to tokenise."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": END, "w2": 2, "w3": 3}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    factory: Any = PreTrainedTokenizerFast
    return factory(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def dpo_features(pairs: Sequence[TokenizedPair], precomputed: bool) -> list[dict[str, Any]]:
    """What DPOTrainer makes of a data set."""
    rows: list[dict[str, Any]] = [
        {"prompt_ids": pair.prompt_ids, "chosen_ids": pair.chosen_ids, "rejected_ids": pair.rejected_ids}
        for pair in pairs
    ]
    if precomputed:
        known = reference_of(pairs)
        for row, chosen, rejected in zip(rows, known.chosen.summed, known.rejected.summed, strict=True):
            row |= {"ref_chosen_logps": float(chosen), "ref_rejected_logps": float(rejected)}
    return rows


def cpo_features(pairs: Sequence[TokenizedPair]) -> list[dict[str, Any]]:
    """What CPOTrainer makes of a data set."""
    rows = []
    for pair in pairs:
        prompt = pair.prompt_ids
        row: dict[str, Any] = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side, response in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
            row |= {
                f"{side}_input_ids": prompt + response,
                f"{side}_attention_mask": [1] * (len(prompt) + len(response)),
                f"{side}_labels": [-100] * len(prompt) + response,
            }
        rows.append(row)
    return rows


@contextmanager
def scoring_responses_alone() -> Iterator[None]:
    """TRL's head leaves prompts and padding out, as it does on a GPU."""
    from trl.trainer import utils

    whole: Any = utils
    before = whole._use_triton
    whole._use_triton = lambda device: True
    try:
        yield
    finally:
        whole._use_triton = before
