"""The kernel against the plain way: full logits, log-softmax, gather, row by row without padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from src.data.collate import collate
from src.data.pairset import TokenizedPair
from src.model.logps import pair_log_probs

VOCABULARY = 97
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "gemma2": {"head_dim": 16, "final_logit_softcapping": 3.0, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gpt_neox": {},
}
EXACT = dict.fromkeys(ARCHITECTURES, 1e-10) | {"gemma2": 1e-5}
"""Relative tolerance; Gemma-2's eager attention takes its softmax in float32 whatever the weights."""


def small_model(kind: str) -> Any:
    values = {**SMALL, **ARCHITECTURES[kind]}
    if kind == "gpt_neox":
        values.pop("num_key_value_heads")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values), dtype=torch.float64)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def pair(number: int, prompt: int, chosen: int, rejected: int) -> TokenizedPair:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, VOCABULARY, (prompt + chosen + rejected,), generator=generator).tolist()
    return TokenizedPair(
        number, f"p{number}", ids[:prompt], ids[prompt : prompt + chosen], ids[prompt + chosen :], 4.0, 2.0, False
    )


PAIRS = [pair(0, 5, 7, 3), pair(1, 12, 1, 9), pair(2, 1, 4, 4), pair(3, 3, 20, 1)]


def by_hand(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + response])
    log_probs = model(ids).logits[0, :-1].log_softmax(-1)
    return sum(log_probs[position - 1, ids[0, position]] for position in range(len(prompt), ids.shape[1]))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_kernel_equals_full_logits(kind: str) -> None:
    model = small_model(kind)
    result = pair_log_probs(model, collate(PAIRS))
    for index, one in enumerate(PAIRS):
        chosen, rejected = (by_hand(model, one.prompt_ids, ids) for ids in (one.chosen_ids, one.rejected_ids))
        assert result.chosen.summed[index].item() == pytest.approx(chosen.item(), rel=EXACT[kind])
        assert result.rejected.summed[index].item() == pytest.approx(rejected.item(), rel=EXACT[kind])
    assert result.chosen.tokens.tolist() == [len(one.chosen_ids) for one in PAIRS]
    assert result.rejected.tokens.tolist() == [len(one.rejected_ids) for one in PAIRS]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_gradients_equal_full_logits(kind: str) -> None:
    model = small_model(kind)
    pair_log_probs(model, collate(PAIRS)).chosen.summed.sum().backward()
    mine = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    sum(by_hand(model, one.prompt_ids, one.chosen_ids) for one in PAIRS).backward()  # type: ignore[union-attr]
    assert mine
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(mine[name], parameter.grad, rtol=100 * EXACT[kind], atol=EXACT[kind])


def test_result_does_not_depend_on_what_else_is_in_the_batch() -> None:
    model = small_model("llama")
    together = pair_log_probs(model, collate(PAIRS))
    backwards = pair_log_probs(model, collate(PAIRS[::-1]))
    assert together.chosen.summed.tolist() == pytest.approx(backwards.chosen.summed.tolist()[::-1], rel=1e-12)


def test_a_token_is_supervised_by_position_not_by_id() -> None:
    """Padding uses id 0; a response made of id 0 still counts."""
    model = small_model("llama")
    zeros = TokenizedPair(0, "z", [5, 6], [0, 0], [7, 0], None, None, False)
    longer = pair(1, 9, 9, 9)
    result = pair_log_probs(model, collate([zeros, longer]))
    assert result.chosen.tokens[0] == 2
    assert result.chosen.summed[0].item() == pytest.approx(by_hand(model, [5, 6], [0, 0]).item(), rel=1e-10)


def test_demonstrations_compute_no_rejected_rows() -> None:
    model = small_model("llama")
    lone = [TokenizedPair(0, "d", one.prompt_ids, one.chosen_ids, [], None, None, False) for one in PAIRS]
    batch = collate(lone)
    assert batch.layout.input_ids.shape[0] == len(PAIRS)
    result = pair_log_probs(model, batch)
    assert result.rejected.summed.tolist() == [0.0] * len(PAIRS)
    whole = pair_log_probs(model, collate(PAIRS))
    assert result.chosen.summed.tolist() == pytest.approx(whole.chosen.summed.tolist(), rel=1e-12)


def test_scores_are_none_when_any_is_missing() -> None:
    unscored = TokenizedPair(9, "u", [1], [2], [3], None, 1.0, True)
    batch = collate([PAIRS[0], unscored])
    assert batch.chosen_scores is None
    assert batch.rejected_scores is not None
    assert batch.flipped.tolist() == [False, True]
