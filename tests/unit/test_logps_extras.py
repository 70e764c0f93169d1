"""Log-probs token by token, and those of prompts, against log-softmax over the whole vocabulary, row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from src.data.collate import collate
from src.data.pairset import TokenizedPair
from src.model import logps
from src.model.logps import pair_log_probs
from src.objective.types import PairLogProbs

VOCABULARY = 61


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    found = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return found.eval()


def pair(number: int, prompt: int, chosen: int, rejected: int) -> TokenizedPair:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, VOCABULARY, (prompt + chosen + rejected,), generator=generator).tolist()
    sides = ids[:prompt], ids[prompt : prompt + chosen], ids[prompt + chosen :]
    return TokenizedPair(number, f"p{number}", *sides, None, None, False)


# a prompt of one token has none that is predicted; rows of very different length are padded
PAIRS = [pair(0, 5, 7, 3), pair(1, 12, 1, 9), pair(2, 1, 4, 4), pair(3, 3, 20, 1)]


def full_vocabulary(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """log π of every token of the row but the first, [len(prompt) + len(response) − 1]."""
    ids = torch.tensor([prompt + response])
    log_probs = model(ids).logits[0, :-1].log_softmax(-1)
    found: torch.Tensor = log_probs.gather(-1, ids[0, 1:, None]).squeeze(-1)
    return found


def test_terms_of_each_token_stand_at_its_place(model: Any) -> None:
    result = pair_log_probs(model, collate(PAIRS), per_token=True)
    plain = pair_log_probs(model, collate(PAIRS))
    for side in ("chosen", "rejected"):
        found = getattr(result, side)
        assert found.per_token.shape == (4, 3 + 20)
        for row, one in zip(found.per_token, PAIRS, strict=True):
            response = getattr(one, f"{side}_ids")
            start, end = len(one.prompt_ids), len(one.prompt_ids) + len(response)
            expected = full_vocabulary(model, one.prompt_ids, response)[start - 1 :]
            torch.testing.assert_close(row[start:end], expected, rtol=1e-10, atol=1e-10)
            assert row[:start].abs().sum() == 0
            assert row[end:].abs().sum() == 0
        torch.testing.assert_close(found.per_token.sum(-1), found.summed, rtol=1e-12, atol=1e-12)
        assert torch.equal(found.summed, getattr(plain, side).summed), "asking for more changes no bit of the rest"
        assert torch.equal(found.tokens, getattr(plain, side).tokens)
    assert plain.chosen.per_token is None


def test_prompts_are_those_of_the_chosen_rows_without_the_first_token(model: Any) -> None:
    batch = collate(PAIRS)
    result = pair_log_probs(model, batch, prompt=True)
    plain = pair_log_probs(model, batch)
    assert plain.prompt is None
    assert result.prompt is not None
    expected = [
        full_vocabulary(model, one.prompt_ids, one.chosen_ids)[: len(one.prompt_ids) - 1].sum().item() for one in PAIRS
    ]
    assert result.prompt.summed.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert result.prompt.tokens.tolist() == [4, 11, 0, 2]
    assert batch.prompt_tokens == 17, "once per pair, though two rows hold each prompt"
    for side in ("chosen", "rejected"):
        torch.testing.assert_close(getattr(result, side).summed, getattr(plain, side).summed, rtol=1e-13, atol=1e-13)
        assert torch.equal(getattr(result, side).tokens, getattr(plain, side).tokens)


def test_prompts_of_demonstrations(model: Any) -> None:
    lone = [TokenizedPair(0, "d", one.prompt_ids, one.chosen_ids, [], None, None, False) for one in PAIRS]
    result = pair_log_probs(model, collate(lone), prompt=True, per_token=True)
    whole = pair_log_probs(model, collate(PAIRS), prompt=True, per_token=True)
    assert result.prompt is not None
    assert whole.prompt is not None
    torch.testing.assert_close(result.prompt.summed, whole.prompt.summed, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.chosen.per_token, whole.chosen.per_token, rtol=1e-12, atol=1e-12)
    assert result.rejected.per_token is not None
    assert result.rejected.per_token.abs().sum() == 0
    assert not result.rejected.per_token.requires_grad


def test_gradients_equal_full_vocabulary(model: Any) -> None:
    """Of a sum in which every term counts differently, so that no misplaced gradient can cancel."""
    result = pair_log_probs(model, collate(PAIRS), per_token=True, prompt=True)
    assert result.chosen.per_token is not None
    assert result.rejected.per_token is not None
    assert result.prompt is not None
    (result.chosen.per_token.exp().sum() + 2 * result.rejected.per_token.square().sum()).backward(retain_graph=True)
    (3 * result.prompt.summed).sum().backward()
    mine = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    for one in PAIRS:
        start = len(one.prompt_ids) - 1
        chosen = full_vocabulary(model, one.prompt_ids, one.chosen_ids)
        rejected = full_vocabulary(model, one.prompt_ids, one.rejected_ids)
        loss = chosen[start:].exp().sum() + 2 * rejected[start:].square().sum() + 3 * chosen[:start].sum()
        loss.backward()
    assert mine
    # Llama's norm rounds to float32 whatever the weights
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-5, atol=1e-6)


def test_logits_are_made_of_no_other_token(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = logps.token_log_probs

    def counted(hidden: torch.Tensor, *inputs: Any, **options: Any) -> torch.Tensor:
        made.append(hidden.shape[0])
        return real(hidden, *inputs, **options)

    monkeypatch.setattr(logps, "token_log_probs", counted)
    batch = collate(PAIRS)
    pair_log_probs(model, batch)
    pair_log_probs(model, batch, per_token=True)
    pair_log_probs(model, batch, prompt=True)
    supervised = sum(len(one.chosen_ids) + len(one.rejected_ids) for one in PAIRS)
    assert made == [supervised, supervised, supervised + 17]


def test_forwards_of_different_width_are_put_together(model: Any) -> None:
    options = {"per_token": True, "prompt": True}
    parts = [pair_log_probs(model, collate(PAIRS[part]), **options) for part in (slice(0, 1), slice(1, 3), slice(3, 4))]
    joined, whole = PairLogProbs.concatenate(parts), pair_log_probs(model, collate(PAIRS), **options)
    assert joined.prompt is not None
    assert whole.prompt is not None
    torch.testing.assert_close(joined.prompt.summed, whole.prompt.summed, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(joined.chosen.per_token, whole.chosen.per_token, rtol=1e-12, atol=1e-12)
