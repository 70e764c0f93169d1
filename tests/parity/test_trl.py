"""Our update against TRL's, end to end: its own trainers tokenize, batch, train and step; ours replays the same tokens.

The formulas alone are covered without TRL by ``test_vectors.py``. Compared are loss, gradient (after clipping) and the
weights after each of two AdamW steps. Where TRL computes otherwise by design, its row says so:

* DPO and KTO trainers take log-probs in float32 whatever the weights, and ORPO its odds: tolerance of float32.
* CPO and ORPO trainers average the NLL over the tokens of each micro-batch, we over the window's: no accumulation.
* ORPO's NLL counts the prompt's tokens: ``nll_normalization=prompt_and_chosen``.
* SimPO's margin is absolute in TRL: ours is ``gamma_beta_ratio · beta``.
* KTO's trainer takes completions, not pairs (chosen ones first here), and forms mismatched ones within a batch, where
  our data settles them once: ours replays the mismatched tokens of TRL's batches.
* Conservative DPO has no counterpart: TRL's ``sigmoid`` ignores ``label_smoothing``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from src.config import compose_train
from src.data.collate import PairBatch, collate
from src.data.pairset import TokenizedPair
from src.engine.local import LocalEngine
from src.model.logps import pair_log_probs
from src.training.assemble import build_objective
from src.training.step import training_step

pytest.importorskip("trl", reason="TRL is not installed (make setup-test); the formulas are in test_vectors.py")

VOCABULARY = 40
PAIRS = 4  # of one micro-batch
STEPS = 2
RATE, EPSILON = 1e-2, 1e-3  # a large epsilon: Adam divides small gradients by themselves, and rounding with them
EXACT, SINGLE = 1e-12, 2e-6  # relative tolerance of float64, and of what TRL computes in float32


@dataclass(frozen=True)
class Row:
    """A loss of TRL's and the overrides that make it ours."""

    name: str
    trainer: str
    options: Mapping[str, Any]
    overrides: tuple[str, ...]
    tolerance: float = EXACT
    accumulation: int = 1


ROWS = (
    Row("dpo", "dpo", {"loss_type": "sigmoid", "beta": 0.3}, ("method=dpo", "method.beta=0.3"), SINGLE, 2),
    Row(
        "robust",
        "dpo",
        {"loss_type": "robust", "beta": 0.3, "label_smoothing": 0.2},
        ("method=rdpo_unbiased", "method.beta=0.3", "method.label_smoothing=0.2"),
        SINGLE,
        2,
    ),
    Row("ipo", "dpo", {"loss_type": "ipo", "beta": 0.5}, ("method=ipo_avg", "method.tau=0.5"), SINGLE, 2),
    Row("hinge", "dpo", {"loss_type": "hinge", "beta": 0.5}, ("method=slic_hinge", "method.tau=0.5"), SINGLE, 2),
    Row(
        "dpo_averaged",
        "dpo",
        {"loss_type": "sigmoid_norm", "beta": 2.0},
        ("method=dpo", "method.beta=2.0", "method.reward.average=true"),
        SINGLE,
        2,
    ),
    Row("sft", "dpo", {"loss_type": "sft"}, ("method=sft",), SINGLE),
    Row(
        "kto",
        "kto",
        {"loss_type": "kto", "beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.2},
        ("method=kto", "method.beta=0.5", "method.lambda_rejected=1.2"),
        SINGLE,
    ),
    Row("cpo", "cpo", {"loss_type": "sigmoid", "beta": 0.2, "cpo_alpha": 0.7}, (
        "method=cpo", "method.beta=0.2", "method.nll_coefficient=0.7")),
    Row("cpo_smoothed", "cpo", {"loss_type": "sigmoid", "beta": 0.2, "cpo_alpha": 0.0, "label_smoothing": 0.1}, (
        "method=cpo", "method.beta=0.2", "method.nll_coefficient=0", "+method.link.label_smoothing=0.1"),
        accumulation=2),
    Row("ipo_cpo", "cpo", {"loss_type": "ipo", "beta": 0.5, "cpo_alpha": 0.0}, (
        "method=ipo_cpo", "method.tau=0.5"), accumulation=2),
    Row("ipo_cpo_nll", "cpo", {"loss_type": "ipo", "beta": 0.5, "cpo_alpha": 1.0}, (
        "method=ipo_cpo", "method.tau=0.5", "method.nll_coefficient=1.0")),
    Row("slic", "cpo", {"loss_type": "hinge", "beta": 1.0, "cpo_alpha": 0.1}, (
        "method=slic", "method.delta=1.0", "method.nll_coefficient=0.1", "method.nll_normalization=token_mean")),
    Row("simpo", "cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.2, "cpo_alpha": 0.0}, (
        "method=simpo", "method.beta=2.0", "method.gamma_beta_ratio=0.6"), accumulation=2),
    Row("simpo_smoothed", "cpo",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.2, "cpo_alpha": 0.0, "label_smoothing": 0.2}, (
        "method=simpo_smoothed", "method.beta=2.0", "method.gamma_beta_ratio=0.6", "method.label_smoothing=0.2"),
        accumulation=2),
    Row("alphapo", "cpo", {"loss_type": "alphapo", "beta": 2.5, "simpo_gamma": 0.25, "alpha": 0.25}, (
        "method=alphapo", "method.beta=2.5", "method.gamma_beta_ratio=0.1", "method.alpha=0.25"), accumulation=2),
    Row("alphapo_negative", "cpo", {"loss_type": "alphapo", "beta": 2.5, "simpo_gamma": 1.0, "alpha": -0.5}, (
        "method=alphapo", "method.beta=2.5", "method.gamma_beta_ratio=0.4", "method.alpha=-0.5"), accumulation=2),
    Row("orpo", "orpo", {"beta": 0.4}, (
        "method=orpo", "method.odds_ratio_weight=0.4", "method.nll_normalization=prompt_and_chosen"), SINGLE),
)  # fmt: skip


@dataclass
class Trace:
    """What one side did: tokens and loss of each forward, gradients and weights of each step.

    ``mismatched``: KTO's, one list for each of ``batches``.
    """

    batches: list[list[TokenizedPair]] = field(default_factory=list)
    mismatched: list[list[TokenizedPair] | None] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word: w2, w3, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<pad>": 0, "<eos>": 1} | {f"w{index}": index for index in range(2, VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def small_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).to(torch.float64)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def examples(count: int) -> list[dict[str, str]]:
    """Pairs of words, of unequal lengths."""
    generator = torch.Generator().manual_seed(0)

    def words(number: int) -> str:
        return " ".join(f"w{index}" for index in torch.randint(2, VOCABULARY, (number,), generator=generator).tolist())

    return [
        {"prompt": words(2 + i % 3), "chosen": " " + words(2 + i % 4), "rejected": " " + words(1 + 2 * i % 5)}
        for i in range(count)
    ]


def completions(pairs: list[dict[str, str]]) -> list[dict[str, Any]]:
    """KTO's rows: of each batch the chosen ones first, then the rejected ones."""
    rows = []
    for start in range(0, len(pairs), PAIRS):
        part = pairs[start : start + PAIRS]
        rows += [{"prompt": pair["prompt"], "completion": pair["chosen"], "label": True} for pair in part]
        rows += [{"prompt": pair["prompt"], "completion": pair["rejected"], "label": False} for pair in part]
    return rows


def masked_ids(inputs: Mapping[str, Tensor], prefix: str = "") -> list[tuple[list[int], list[int]]]:
    """Prompt and response ids of each row, by the masks that TRL trains with."""
    rows = []
    present = inputs[f"{prefix}attention_mask"].bool()
    if f"{prefix}labels" in inputs:
        supervised = inputs[f"{prefix}labels"] != -100
    else:
        supervised = inputs[f"{prefix}completion_mask"].bool()
    for ids, there, counted in zip(inputs[f"{prefix}input_ids"], present, supervised, strict=True):
        rows.append((ids[there & ~counted].tolist(), ids[there & counted].tolist()))
    return rows


def pairs_of(inputs: Mapping[str, Tensor], prefix: str = "") -> list[TokenizedPair]:
    """The pairs of a batch of TRL's, or its mismatched ones (``KL_``)."""
    if "chosen_input_ids" in inputs:
        chosen, rejected = masked_ids(inputs, "chosen_"), masked_ids(inputs, "rejected_")
    else:
        rows = masked_ids(inputs, prefix)
        chosen, rejected = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    assert [prompt for prompt, _ in chosen] == [prompt for prompt, _ in rejected]
    return [
        TokenizedPair(index, f"p{index}", prompt, ids, worse, None, None, False)
        for index, ((prompt, ids), (_, worse)) in enumerate(zip(chosen, rejected, strict=True))
    ]


def copies(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values.items()}


class Recorder(TrainerCallback):
    """Gradients before each step and weights after it."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        named = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        self.trace.gradients.append(copies(named))

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        self.trace.weights.append(copies(dict(model.named_parameters())))


def recorded(trainer: type, trace: Trace) -> type:
    """TRL's trainer class that notes the tokens and the loss of every forward."""

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = trainer.compute_loss(self, model, inputs, *args, **kwargs)
        trace.batches.append(pairs_of(inputs))
        trace.mismatched.append(pairs_of(inputs, "KL_") if "KL_input_ids" in inputs else None)
        trace.losses.append(loss.item())
        return loss

    return type(trainer.__name__, (trainer,), {"compute_loss": compute_loss})


def trl_trains(row: Row, folder: Path) -> Trace:
    """``STEPS`` optimizer steps by TRL's trainer."""
    import trl
    from datasets import Dataset
    from trl.experimental import cpo, orpo

    trainers = {
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
        "kto": (trl.KTOTrainer, trl.KTOConfig),
        "cpo": (cpo.CPOTrainer, cpo.CPOConfig),
        "orpo": (orpo.ORPOTrainer, orpo.ORPOConfig),
    }
    trainer, config = trainers[row.trainer]
    trace = Trace()
    args = config(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=PAIRS * (2 if row.trainer == "kto" else 1),
        gradient_accumulation_steps=row.accumulation,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        adam_epsilon=EPSILON,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=64,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **row.options,
    )
    pairs = examples(PAIRS * row.accumulation * STEPS)
    reference = {"ref_model": small_model(1)} if row.trainer in ("dpo", "kto") else {}
    recorded(trainer, trace)(
        model=small_model(0),
        args=args,
        train_dataset=Dataset.from_list(completions(pairs) if row.trainer == "kto" else pairs),
        processing_class=tokenizer(),
        callbacks=[Recorder(trace)],
        **reference,
    ).train()
    return trace


def our_batch(pairs: list[TokenizedPair], mismatched: list[TokenizedPair] | None) -> PairBatch:
    """With the reference's log-probs, and the mismatched pairs where there are any."""
    with torch.no_grad():
        batch = collate(pairs)
        other = None if mismatched is None else our_batch(mismatched, None)
        return replace(batch, reference=pair_log_probs(small_model(1), batch), mismatched=other)


def we_train(row: Row, theirs: Trace) -> Trace:
    """The same steps by our own training step, on the tokens TRL trained on."""
    config = compose_train(
        [
            *row.overrides,
            "model=tiny",
            "~recipe",
            f"training.learning_rate={RATE}",
            f"training.adam_epsilon={EPSILON}",
            "training.scheduler=constant",
            "training.warmup_ratio=0",
            "training.weight_decay=0",
        ]
    )
    objective, trace, model = build_objective(config), Trace(), small_model(0)
    engine = LocalEngine(model, config.training, STEPS, "cpu", "float32")
    named = dict(model.named_parameters())

    def note_gradients(*_: Any) -> None:
        trace.gradients.append(copies({name: p.grad for name, p in named.items() if p.grad is not None}))

    engine.optimizer.register_step_pre_hook(note_gradients)
    state, forwards = objective.initial_state(), list(map(our_batch, theirs.batches, theirs.mismatched))
    for start in range(0, len(forwards), row.accumulation):
        window = forwards[start : start + row.accumulation]
        output = training_step(engine, objective, state, window, max_grad_norm=1.0)
        state = output.state
        trace.losses.append(output.loss.item())
        trace.weights.append(copies(named))
    return trace


def distance(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all parameters."""
    assert ours.keys() == theirs.keys()
    gap = sum(float((ours[name] - theirs[name]).square().sum()) for name in ours)
    return (gap / sum(float(value.square().sum()) for value in theirs.values())) ** 0.5


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_same_tokens_same_update(row: Row, tmp_path: Path) -> None:
    theirs = trl_trains(row, tmp_path)
    assert len(theirs.batches) == STEPS * row.accumulation
    assert all(len(pairs) == PAIRS for pairs in theirs.batches)
    ours = we_train(row, theirs)
    before = copies(dict(small_model(0).named_parameters()))
    for step in range(STEPS):
        part = theirs.losses[step * row.accumulation : (step + 1) * row.accumulation]
        assert ours.losses[step] == pytest.approx(sum(part) / row.accumulation, rel=row.tolerance)
        assert distance(ours.gradients[step], theirs.gradients[step]) < row.tolerance
        updates = [{name: side.weights[step][name] - before[name] for name in before} for side in (ours, theirs)]
        assert distance(*updates) < row.tolerance
        assert max(float(value.abs().max()) for value in updates[1].values()) > RATE / 10, "the step moved the weights"
