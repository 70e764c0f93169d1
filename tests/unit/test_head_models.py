"""Losses fused with the head of a whole model, against the same loss of log-probs from full logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, GPTNeoXConfig

from src.data.collate import PairBatch, collate
from src.data.pairset import TokenizedPair
from src.model import logps
from src.model.adapter import add_adapter
from src.model.logps import pair_log_probs, pair_loss
from src.model.packed import share_prefixes
from src.objective.types import PairLogProbs
from src.schema import AdapterConfig

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    # a tied head with capped logits, and one of its own
    "gemma2": lambda: Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, final_logit_softcapping=4.0),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES, tie_word_embeddings=False),
}


def model_of(kind: str, *, packed: bool = False) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    if packed:
        share_prefixes(model)
    return model


def pair(number: int, prompt: int, chosen: int, rejected: int) -> TokenizedPair:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, VOCABULARY, (prompt + chosen + rejected,), generator=generator).tolist()
    sides = ids[:prompt], ids[prompt : prompt + chosen], ids[prompt + chosen :]
    return TokenizedPair(number, f"p{number}", *sides, None, None, False)


PAIRS = [pair(0, 5, 7, 3), pair(1, 12, 1, 9), pair(2, 1, 4, 4), pair(3, 0, 6, 2), pair(4, 3, 20, 1)]
BUDGET = 14


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that pairs share a group, are alone in one, and do not fit."""
    for kind in ("logps", "head", "fused"):
        monkeypatch.setattr(f"src.model.{kind}.chunk_tokens", lambda vocabulary, device: BUDGET)


def share(policy: PairLogProbs, pairs: slice) -> Tensor:
    margins = policy.chosen.average - policy.rejected.average
    loss = torch.arange(1, 9, dtype=margins.dtype)[pairs] * torch.nn.functional.softplus(-margins)
    if policy.chosen.per_token is not None:
        loss = loss + torch.expm1(policy.chosen.per_token).sum(-1)
    return loss.sum() if policy.prompt is None else loss.sum() - 0.1 * policy.prompt.summed.sum()


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def by_full_logits(model: Any, batch: PairBatch, monkeypatch: pytest.MonkeyPatch, **asked: bool) -> PairLogProbs:
    def plain(model: Any, found: Any, **_: Any) -> Tensor:
        head = model.get_output_embeddings()
        cap = getattr(model.config, "final_logit_softcapping", None)
        logits = head(found.hidden)
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        return logits.log_softmax(-1).gather(1, found.labels[:, None]).squeeze(1)

    with monkeypatch.context() as patch:
        patch.setattr(logps, "label_log_probs", plain)
        return pair_log_probs(model, batch, **asked)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("asked", [{}, {"per_token": True, "prompt": True}])
def test_fused_and_chunked_equal_full_logits(
    kind: str, packed: bool, asked: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = model_of(kind, packed=packed), collate(PAIRS)
    policy = by_full_logits(model, batch, monkeypatch, **asked)
    expected = share(policy, slice(0, 5))
    wanted = gradients(model, expected)
    fused = pair_loss(model, batch, share, **asked)
    chunked = share(pair_log_probs(model, batch, **asked), slice(0, 5))
    # norms within these models are taken in float32, whatever the weights
    for loss in (fused.loss, chunked):
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
        found = gradients(model, loss)
        assert found.keys() == wanted.keys()
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-6, msg=name)
    for side in ("chosen", "rejected"):
        mine, other = getattr(fused.log_probs, side), getattr(policy, side)
        torch.testing.assert_close(mine.summed, other.summed.detach(), rtol=1e-10, atol=1e-10)
        assert torch.equal(mine.tokens, other.tokens.to(mine.tokens.dtype))


def test_demonstrations(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt_neox")
    batch = collate([TokenizedPair(0, "d", one.prompt_ids, one.chosen_ids, [], None, None, False) for one in PAIRS])

    def likelihood(policy: PairLogProbs, pairs: slice) -> Tensor:
        return -policy.chosen.summed.sum()

    wanted = gradients(model, likelihood(by_full_logits(model, batch, monkeypatch), slice(0, 5)))
    fused = pair_loss(model, batch, likelihood)
    for name, found in gradients(model, fused.loss).items():
        torch.testing.assert_close(found, wanted[name], rtol=1e-5, atol=1e-6, msg=name)
    assert fused.log_probs.rejected.summed.abs().sum() == 0


@pytest.mark.parametrize("target", ["lm_head", "query_key_value"])
def test_adapters_on_the_head_and_below_it(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that is frozen costs no gradient of its own; one with an adapter is more than a product."""
    model, batch = model_of("gpt_neox"), collate(PAIRS)
    add_adapter(model, AdapterConfig(name="lora", r=2, alpha=4, target_modules=[target]), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3)
    wanted = gradients(model, share(by_full_logits(model, batch, monkeypatch), slice(0, 5)))
    assert wanted
    assert all(".lora_" in name for name in wanted)
    for loss in (pair_loss(model, batch, share).loss, share(pair_log_probs(model, batch), slice(0, 5))):
        found = gradients(model, loss)
        assert found.keys() == wanted.keys()
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-6, msg=name)
