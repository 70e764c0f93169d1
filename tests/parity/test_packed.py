"""Packed rows against the padded rows' full logits: log-probs and the gradient of every parameter."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from src.data.collate import PairBatch, collate
from src.data.pairset import TokenizedPair
from src.model import packed
from src.model.logps import log_prob_slopes, pair_log_probs
from src.model.packed import KNOWN, share_prefixes, shares_prefixes
from src.objective.types import PairLogProbs, ResponseLogProbs

VOCABULARY = 61
WINDOW = 6
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
GEMMA = {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 20}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "gemma2": GEMMA | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "gpt_neox": {},
    "gemma": {"head_dim": 8},
    "gemma3_text": GEMMA,
    "olmo2": {},
    "phi3": {"sliding_window": WINDOW},
    "qwen3": {"head_dim": 8},
}
ISSUED = ("llama", "mistral", "gemma2", "qwen2", "gpt_neox")


def small_model(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    values = {**SMALL, **ARCHITECTURES.get(kind, {})}
    if kind in ("gpt_neox", "gpt2"):
        values.pop("num_key_value_heads")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values), dtype=dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def in_double(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``model`` without the float32 in which transformers takes norms and eager softmax whatever the type."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, torch.nn.RMSNorm(child.weight.shape[0], eps=1e-6, dtype=torch.float64))
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim=None, dtype=None: softmax(x, dim=dim))
    return model


def pair(number: int, prompt: int, chosen: int, rejected: int, same: int = 0) -> TokenizedPair:
    """A pair of so many tokens, whose responses begin with ``same`` equal ones."""
    draw = torch.Generator().manual_seed(number)
    ids = torch.randint(0, VOCABULARY, (prompt + chosen + rejected,), generator=draw).tolist()
    first, last = ids[prompt : prompt + chosen], ids[prompt + chosen :]
    return TokenizedPair(number, str(number), ids[:prompt], first, first[:same] + last[same:], None, None, False)


PAIRS = [
    pair(0, 5, 7, 3),
    pair(1, 0, 5, 6),  # no prompt: nothing predicts the first token of a response
    pair(2, 1, 4, 4),
    pair(3, WINDOW + 9, 1, 9),  # longer than the window
    pair(4, 3, 20, 1),
    pair(5, 4, 6, 8, same=5),
    pair(6, 0, 1, 1),
]


def full_logits(model: Any, batch: PairBatch, prompt: bool) -> PairLogProbs:
    """The plain way: every row, every position, the whole vocabulary."""
    layout, pairs = batch.layout, len(batch)
    log_probs = model(input_ids=layout.input_ids, use_cache=False).logits.log_softmax(-1)
    terms = torch.zeros(layout.input_ids.shape, dtype=log_probs.dtype)
    terms[:, 1:] = log_probs[:, :-1].gather(-1, layout.input_ids[:, 1:, None]).squeeze(-1)
    columns = torch.arange(terms.shape[1])

    def of(where: Tensor, rows: slice) -> Any:
        where = where & (columns > 0)
        kept = (terms * where)[rows]
        return ResponseLogProbs(kept.sum(-1), where[rows].sum(-1).to(kept.dtype), kept)

    chosen = of(layout.supervised, slice(0, pairs))
    rejected = of(layout.supervised, slice(pairs, 2 * pairs)) if batch.has_rejected else chosen
    prompts = of(columns < layout.starts[:, None], slice(0, pairs)) if prompt else None
    return PairLogProbs(chosen, rejected, prompts)


def loss_of(found: PairLogProbs) -> Tensor:
    """A sum in which every term counts differently, so that no misplaced gradient can cancel."""
    total = torch.zeros((), dtype=found.chosen.summed.dtype)
    for factor, side in ((1.0, found.chosen), (1.7, found.rejected), (0.6, found.prompt)):
        if side is not None:
            weights = torch.arange(1, len(side.summed) + 1).to(total.dtype).cos() + 2
            total = total + factor * (weights * side.average).sum()
            if side.per_token is not None:
                total = total + (side.per_token / 10).sin().sum()
    return total


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    assert len(found) > 8
    return found


def compare(model: Any, batch: PairBatch, tolerance: float, *, plain: Any = None, **options: bool) -> None:
    """The packed model against full logits of the same weights: values absolutely (in nats), gradients relatively."""
    plain = copy.deepcopy(model) if plain is None else plain
    assert share_prefixes(model)
    expected = full_logits(plain, batch, options.get("prompt", False))
    found = pair_log_probs(model, batch, **options)
    if not options.get("per_token"):
        expected = replace(
            expected,
            chosen=replace(expected.chosen, per_token=None),
            rejected=replace(expected.rejected, per_token=None),
        )
    if expected.prompt is not None:
        expected = replace(expected, prompt=replace(expected.prompt, per_token=None))
    sides = ("chosen", "rejected", "prompt") if batch.has_rejected else ("chosen", "prompt")
    for side in sides:
        mine, theirs = getattr(found, side), getattr(expected, side)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            scale = theirs.summed.abs().clamp(min=1)
            assert ((mine.summed - theirs.summed).abs() / scale).max() < tolerance
            assert torch.equal(mine.tokens, theirs.tokens)
            assert (mine.per_token is None) == (theirs.per_token is None)
            if mine.per_token is not None:
                torch.testing.assert_close(mine.per_token, theirs.per_token, rtol=tolerance, atol=tolerance)
    if not batch.has_rejected:
        assert found.rejected.summed.abs().sum() == 0
        found, expected = replace(found, rejected=found.chosen), replace(expected, rejected=expected.chosen)
    loss, other = loss_of(found), loss_of(expected)
    assert abs(loss - other) <= tolerance * abs(other)
    mine, theirs = gradients(model, loss), gradients(plain, other)
    assert mine.keys() == theirs.keys()
    # what is 0 but for rounding (queries of which all see one key) is held against a share of the whole
    floor = 1e-2 * torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    for name, gradient in mine.items():
        assert (gradient - theirs[name]).norm() <= tolerance * theirs[name].norm().clamp(min=floor), name


@pytest.mark.parametrize("kind", ISSUED)
def test_exact_in_double(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(in_double(small_model(kind), monkeypatch), collate(PAIRS), 1e-10, per_token=True, prompt=True)


@pytest.mark.parametrize("kind", KNOWN)
def test_exact_in_single(kind: str) -> None:
    compare(small_model(kind, torch.float32), collate(PAIRS[::-1]), 1e-5)


def test_every_known_architecture_is_compared() -> None:
    assert set(KNOWN) == set(ARCHITECTURES)


@pytest.mark.parametrize("kind", ISSUED)
def test_close_in_bfloat16(kind: str) -> None:
    """Under autocast, as the engines run it; weights small enough that bfloat16 means something."""
    model = small_model(kind, torch.float32)
    for parameter in model.parameters():
        parameter.data *= 0.3
    with torch.autocast("cpu", torch.bfloat16):
        compare(model, collate(PAIRS), 2e-2)


def test_demonstrations(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [replace(one, rejected_ids=[]) for one in PAIRS]
    model = in_double(small_model("mistral"), monkeypatch)
    compare(model, collate(alone), 1e-10, per_token=True, prompt=True)


@settings(max_examples=3, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(0, 5),
)
def test_any_pairs_in_any_order(lengths: list[tuple[int, int, int]], same: int) -> None:
    pairs = [pair(number, *one, same=min(same, *one[1:])) for number, one in enumerate(lengths)]
    compare(small_model("mistral", torch.float32), collate(pairs), 1e-5, prompt=True)


def test_checkpointed_layers_are_run_again_on_the_packed_row() -> None:
    model = small_model("mistral", torch.float32).train()
    plain = copy.deepcopy(model)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    runs: list[int] = []
    model.base_model.layers[0].input_layernorm.register_forward_hook(lambda _m, _i, out: runs.append(out.shape[1]))
    compare(model, collate(PAIRS), 1e-5, plain=plain)
    tokens = sum(len(one.prompt_ids) + len(one.chosen_ids) + len(one.rejected_ids) for one in PAIRS)
    assert runs == [tokens, tokens], "once forward, once backward, each prompt once, no padding"


def test_parts_of_a_batch_give_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = in_double(small_model("llama"), monkeypatch)
    share_prefixes(model)
    batch = collate(PAIRS)
    whole = pair_log_probs(model, batch, per_token=True)
    parts = [pair_log_probs(model, batch[part], per_token=True) for part in (slice(0, 3), slice(3, 4), slice(4, 7))]
    joined = PairLogProbs.concatenate(parts)
    for side in ("chosen", "rejected"):
        torch.testing.assert_close(getattr(joined, side).per_token, getattr(whole, side).per_token)


def test_slopes_by_forward_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    model = in_double(small_model("gemma2"), monkeypatch)
    batch, parameters = collate(PAIRS), dict(model.named_parameters())
    directions = {name: torch.ones_like(one) for name, one in parameters.items()}
    expected = log_prob_slopes(model, batch, parameters, directions)
    assert share_prefixes(model)
    found = log_prob_slopes(model, batch, parameters, directions)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.rejected.summed, theirs.rejected.summed, rtol=1e-10, atol=1e-10)


def test_who_else_calls_the_model_sees_no_difference() -> None:
    for kind in ("mistral", "gemma2"):
        model = small_model(kind)
        ids = torch.arange(24).reshape(2, 12)
        mask = torch.ones_like(ids)
        mask[1, :5] = 0
        before = model(input_ids=ids, attention_mask=mask).logits
        share_prefixes(model)
        after = model(input_ids=ids, attention_mask=mask).logits
        # nothing is said of padding on the left, where eager attention has nothing to see
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
        assert packed.SHARED not in str(model.config.to_dict())


def test_other_architectures_are_padded_and_say_so_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "SAID", set())
    model = small_model("gpt2")
    expected = pair_log_probs(model, collate(PAIRS)).chosen.summed
    assert not share_prefixes(model)
    assert not share_prefixes(model)
    assert not shares_prefixes(model)
    assert torch.equal(pair_log_probs(model, collate(PAIRS)).chosen.summed, expected)
    said = capsys.readouterr().err
    assert said.count("gpt2 is none of the architectures that take packed rows") == 1
    unsupported = small_model("llama")
    unsupported._supports_attention_backend = False
    assert not share_prefixes(unsupported)
