"""Log-probs and fused losses against full logits: values and every gradient, whatever the sizes and the chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from src.model.fused import FusedLoss, PairGroup, fused_pair_loss, pair_groups
from src.model.head import chunk_tokens, plain_log_probs, spans, token_log_probs
from src.objective.types import PairLogProbs, ResponseLogProbs

EXACT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass
class Case:
    """Leaves of one head over m tokens of n pairs, and who owns them."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    owner: Tensor
    pairs: int
    softcap: float | None

    @property
    def leaves(self) -> list[Tensor]:
        return [one for one in (self.hidden, self.weight, self.bias) if one is not None and one.requires_grad]

    @property
    def counts(self) -> list[int]:
        return torch.bincount(self.owner % self.pairs, minlength=self.pairs).tolist()

    @property
    def head(self) -> dict[str, Any]:
        return {"bias": self.bias, "softcap": self.softcap}


def case(
    tokens: int = 23,
    vocabulary: int = 50,
    width: int = 8,
    pairs: int = 4,
    *,
    biased: bool = False,
    softcap: float | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    frozen: bool = False,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def integers(below: int) -> Tensor:
        return torch.randint(0, below, (tokens,), generator=generator)

    return Case(
        leaf(tokens, width).requires_grad_(),
        leaf(vocabulary, width).requires_grad_(not frozen),
        leaf(vocabulary).requires_grad_(not frozen) if biased else None,
        integers(vocabulary),
        integers(3 * pairs),
        pairs,
        softcap,
    )


def full_logits(one: Case) -> Tensor:
    """log p(label) from logits of everything, by torch's own log-softmax."""
    logits = one.hidden @ one.weight.t()
    logits = logits if one.bias is None else logits + one.bias
    logits = logits if one.softcap is None else one.softcap * torch.tanh(logits / one.softcap)
    exact = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(exact).log_softmax(-1).gather(1, one.labels[:, None]).squeeze(1)


def by_pair(one: Case, terms: Tensor, pairs: slice = slice(None)) -> PairLogProbs:
    """Sums of each response, token by token as written."""

    def side(number: int) -> ResponseLogProbs:
        of_each = [terms[one.owner == number * one.pairs + pair] for pair in range(one.pairs)][pairs]
        tokens = torch.tensor([float(len(found)) for found in of_each], dtype=terms.dtype)
        per_token = torch.nn.utils.rnn.pad_sequence(of_each, batch_first=True)
        return ResponseLogProbs(torch.stack([found.sum() for found in of_each]), tokens, per_token)

    return PairLogProbs(side(0), side(1), side(2))


def share(policy: PairLogProbs, pairs: slice) -> Tensor:
    """A loss in which everything counts, differently for every pair."""
    weights = torch.arange(1, 100, dtype=policy.chosen.summed.dtype)[pairs]
    loss = weights * torch.sigmoid(policy.rejected.average - policy.chosen.average)
    if policy.chosen.per_token is not None:
        loss = loss + torch.expm1(policy.chosen.per_token).sum(-1)
    if policy.prompt is not None:
        loss = loss - 0.1 * policy.prompt.summed
    return loss.sum()


def apart(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """Largest difference, relative to the largest entry of each tensor."""
    differences = [0.0]
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert other is not None
        assert one.shape == other.shape
        if one.numel():
            scale = other.double().abs().max().clamp(min=1e-2)
            differences.append(float(((one.double() - other.double()).abs().max() / scale).detach()))
    return max(differences)


def with_gradients(loss: Tensor, one: Case, scale: float = 1.0) -> list[Tensor]:
    return [loss, *torch.autograd.grad(loss * scale, one.leaves)]


def summed(one: Case, compute: Callable[..., Tensor], **options: Any) -> list[Tensor]:
    """Log-probs, and gradients of a sum in which each counts differently."""
    found = compute(one.hidden, one.weight, one.labels, **one.head, **options)
    coefficients = torch.linspace(-1, 2, len(found), dtype=found.dtype)
    return [found, *torch.autograd.grad((found * coefficients).sum(), one.leaves)]


def expected_of(one: Case) -> list[Tensor]:
    return summed(one, lambda *_, **__: full_logits(one))


def fused(one: Case, budget: int, **options: Any) -> FusedLoss:
    groups = pair_groups(one.counts, budget)
    return fused_pair_loss(
        one.hidden, one.weight, one.labels, one.owner, groups, share, budget=budget, **one.head, **options
    )


SIZES = {
    "tokens": st.integers(0, 30),
    "vocabulary": st.integers(1, 40),
    "pairs": st.integers(1, 5),
    "biased": st.booleans(),
    "softcap": st.sampled_from([None, 2.0]),
    "frozen": st.booleans(),
    "seed": st.integers(0, 99),
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(chunk=st.integers(1, 40), dtype=st.sampled_from([torch.float64, torch.float32]), **SIZES)
def test_chunks_change_nothing(chunk: int, dtype: torch.dtype, **sizes: Any) -> None:
    one = case(dtype=dtype, **sizes)
    found, expected = summed(one, token_log_probs, chunk=chunk), expected_of(one)
    assert found[0].dtype == dtype
    assert apart(found, expected) < EXACT[dtype]
    plain = summed(one, token_log_probs, chunk=None)
    assert apart(plain, expected) < EXACT[dtype]
    with torch.no_grad():
        bare = token_log_probs(one.hidden, one.weight, one.labels, chunk=chunk, **one.head)
    assert torch.equal(bare, found[0]), "a log-prob is the same number whether a gradient is asked for or not"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(budget=st.integers(1, 40), dtype=st.sampled_from([torch.float64, torch.float32]), **SIZES)
def test_fused_equals_full_logits(budget: int, dtype: torch.dtype, **sizes: Any) -> None:
    """Groups of several pairs, of one, and of one that does not fit."""
    one = case(dtype=dtype, **sizes)
    result = fused(one, budget, per_token=True, prompt=True)
    log_probs = by_pair(one, full_logits(one))
    found = with_gradients(result.loss, one, 0.5)
    assert apart(found, with_gradients(share(log_probs, slice(0, one.pairs)), one, 0.5)) < EXACT[dtype]
    assert result.log_probs.prompt is not None
    for mine, other in (
        (result.log_probs.chosen, log_probs.chosen),
        (result.log_probs.rejected, log_probs.rejected),
        (result.log_probs.prompt, log_probs.prompt),
    ):
        assert other is not None
        assert apart([mine.summed, mine.tokens], [other.summed, other.tokens]) < EXACT[dtype]
        assert not mine.summed.requires_grad


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_low_precision(softcap: float | None) -> None:
    """bfloat16 throughout, and autocast over float32, against float64 of the same numbers; more rows than a block."""
    one = case(tokens=600, vocabulary=70, width=16, biased=True, softcap=softcap, dtype=torch.bfloat16)
    wide = case(tokens=600, vocabulary=70, width=16, biased=True, softcap=softcap, dtype=torch.bfloat16)
    for name in ("hidden", "weight", "bias"):
        setattr(wide, name, getattr(one, name).detach().double().requires_grad_())
    expected = expected_of(wide)
    for chunk in (128, 1000):
        found = summed(one, token_log_probs, chunk=chunk)
        assert [found[0].dtype, found[1].dtype] == [torch.float32, torch.bfloat16]
        assert apart(found, expected) < EXACT[torch.bfloat16]
    weighed = with_gradients(share(by_pair(wide, full_logits(wide)), slice(0, 4)), wide)
    assert apart(with_gradients(fused(one, 256, per_token=True, prompt=True).loss, one), weighed) < 3e-2
    floats = case(tokens=600, vocabulary=70, width=16, biased=True, softcap=softcap, dtype=torch.float32)
    for name in ("hidden", "weight", "bias"):
        setattr(floats, name, getattr(one, name).detach().float().requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = summed(floats, token_log_probs, chunk=128)
        fused_loss = fused(floats, 256, per_token=True, prompt=True).loss
    assert [part.dtype for part in found] == [torch.float32] * 4
    assert apart(found, expected) < EXACT[torch.bfloat16]
    assert apart(found, expected) > 1e-6, "products were taken in bfloat16"
    assert apart(with_gradients(fused_loss, floats), weighed) < 3e-2


def test_improbable_and_certain_labels() -> None:
    """Where p underflows and where it rounds to 1, log p is still exact."""
    hidden = torch.tensor([[200.0], [-200.0], [60.0]]).requires_grad_()
    weight = torch.tensor([[1.0], [0.0]]).requires_grad_()
    found = token_log_probs(hidden, weight, torch.tensor([1, 0, 0]))
    assert found.tolist() == [-200.0, -200.0, 0.0]
    (slope,) = torch.autograd.grad(found.sum(), hidden)
    assert slope.flatten().tolist() == [-1.0, 1.0, 0.0]


def test_only_what_needs_a_gradient_gets_one() -> None:
    one = case(biased=True)
    expected = expected_of(one)
    for name, number in (("hidden", 1), ("weight", 2), ("bias", 3)):
        alone = case(biased=True)
        for other in {"hidden", "weight", "bias"} - {name}:
            getattr(alone, other).requires_grad_(False)
        for chunk in (5, 100):
            assert apart(summed(alone, token_log_probs, chunk=chunk)[1:], [expected[number]]) < 1e-12
        (gradient,) = torch.autograd.grad(fused(alone, 8).loss, getattr(alone, name))
        whole = dict(
            zip(("hidden", "weight", "bias"), torch.autograd.grad(fused(one, 8).loss, one.leaves), strict=True)
        )
        assert apart([gradient], [whole[name]]) < 1e-12


def test_a_tied_head_adds_to_its_embedding() -> None:
    """The hidden states come from the weight of the head itself."""
    one = case()

    def gradients(compute: Callable[[Case], Tensor]) -> list[Tensor]:
        embedded = torch.nn.functional.embedding(one.labels.flip(0), one.weight).tanh()
        return list(torch.autograd.grad(compute(replace(one, hidden=embedded)), [one.weight]))

    expected = gradients(lambda tied: share(by_pair(tied, full_logits(tied)), slice(0, 4)))
    assert apart(gradients(lambda tied: fused(tied, 8, per_token=True, prompt=True).loss), expected) < 1e-12
    chunked = gradients(
        lambda tied: share(by_pair(tied, token_log_probs(tied.hidden, tied.weight, tied.labels, chunk=5)), slice(0, 4))
    )
    assert apart(chunked, expected) < 1e-12


def test_gradients_are_handed_out_once_and_log_probs_differentiated_again() -> None:
    one = case()
    result = fused(one, 8)
    torch.autograd.grad(result.loss, one.leaves, retain_graph=True)
    with pytest.raises(RuntimeError, match="handed out once"):
        torch.autograd.grad(result.loss, one.leaves)
    for chunk in (5, 100):
        found = token_log_probs(one.hidden, one.weight, one.labels, chunk=chunk).sum()
        first = torch.autograd.grad(found, one.leaves, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(found, one.leaves), strict=True))


def test_a_share_sees_its_own_pairs_and_no_gradient_is_made_where_none_is_wanted() -> None:
    one, seen = case(tokens=40, pairs=6), []

    def noted(policy: PairLogProbs, pairs: slice) -> Tensor:
        seen.append((pairs, policy.chosen.summed.detach(), policy.chosen.summed.requires_grad))
        return policy.chosen.summed.sum()

    groups = pair_groups(one.counts, 14)
    log_probs = by_pair(one, full_logits(one))
    with torch.no_grad():
        result = fused_pair_loss(one.hidden, one.weight, one.labels, one.owner, groups, noted)
    assert not result.loss.requires_grad
    assert [pairs for pairs, *_ in seen] == [group.pairs for group in groups]
    for pairs, chosen, _ in seen:
        torch.testing.assert_close(chosen, log_probs.chosen.summed.detach()[pairs], rtol=1e-12, atol=1e-12)
    constant = fused_pair_loss(
        one.hidden, one.weight, one.labels, one.owner, groups, lambda policy, _: policy.chosen.tokens.sum()
    )
    assert all(gradient.abs().max() == 0 for gradient in torch.autograd.grad(constant.loss, one.leaves))
    empty = fused_pair_loss(one.hidden[:0], one.weight, one.labels[:0], one.owner[:0], [], share, prompt=True)
    empty.loss.backward()
    assert empty.loss.item() == 0
    assert len(empty.log_probs) == 0
    assert one.weight.grad is not None
    assert one.weight.grad.abs().max() == 0


def test_groups_hold_consecutive_pairs_up_to_the_budget() -> None:
    groups = pair_groups([3, 4, 0, 9, 2, 2, 2], 7)
    assert [(one.pairs.start, one.pairs.stop, one.tokens, one.longest) for one in groups] == [
        (0, 3, 7, 4),
        (3, 4, 9, 9),
        (4, 7, 6, 2),
    ]
    assert pair_groups([], 7) == []
    assert pair_groups([0], 7) == [PairGroup(slice(0, 1), 0, 0)]


def test_chunks_are_even_and_of_a_size_for_the_vocabulary() -> None:
    assert [part.stop - part.start for part in spans(520, 512)] == [260, 260]
    assert spans(0, 512) == []
    assert chunk_tokens(128256, torch.device("cpu")) == 512
    assert chunk_tokens(4096, torch.device("cpu")) == 4096
    assert chunk_tokens(128256, torch.device("cuda")) == 4096


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives, and the most bytes alive at once."""

    def __init__(self, but: Sequence[Tensor]) -> None:
        super().__init__()
        self.entries, self.alive, self.peak = 0, {}, 0
        self.but = {one.untyped_storage().data_ptr() for one in but}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        found = function(*arguments, **(options or {}))
        for one in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in self.but:
                storage = one.untyped_storage()
                self.entries = max(self.entries, storage.nbytes() // one.element_size())
                self.alive[storage._cdata] = (
                    torch.multiprocessing.reductions.StorageWeakRef(storage),
                    storage.nbytes(),
                )
        self.alive = {key: value for key, value in self.alive.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return found


def peak(compute: Callable[[Case], Tensor], tokens: int, **options: Any) -> tuple[int, int]:
    """Largest tensor in entries, and bytes alive at once beyond the leaves, over a forward and a backward."""
    one = case(
        tokens=tokens, vocabulary=VOCABULARY, width=4, pairs=max(tokens // 16, 1), dtype=torch.float32, **options
    )
    with Largest([one.hidden, one.weight, one.labels, one.owner]) as noted:
        compute(one).backward()
    return noted.entries, noted.peak


VOCABULARY, CHUNK = 2000, 32

PATHS: dict[str, Callable[[Case], Tensor]] = {
    "chunked": lambda one: token_log_probs(one.hidden, one.weight, one.labels, chunk=CHUNK, **one.head).sum(),
    "fused": lambda one: fused(one, CHUNK).loss,
    "a pair that does not fit": lambda one: fused(replace(one, owner=one.owner * 0, pairs=1), CHUNK).loss,
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("frozen", [False, True])
def test_memory_does_not_grow_with_the_logits(path: str, frozen: bool) -> None:
    """16 times the tokens cost a few vectors of the width each, and no tensor is larger than one chunk's logits."""
    few, many = (peak(PATHS[path], tokens, frozen=frozen) for tokens in (64, 1024))
    assert many[0] <= CHUNK * VOCABULARY
    assert many[1] - few[1] < (1024 - 64) * 4 * 60, "bytes a token: far from 4 · vocabulary"
    full = peak(lambda one: plain_log_probs(one.hidden, one.weight, one.labels, None, None).sum(), 1024)
    assert full[0] == 1024 * VOCABULARY, "what is counted does show"
    assert full[1] > 10 * many[1]


def test_forward_mode_takes_the_plain_path() -> None:
    one = case(biased=True, softcap=2.0)
    move = torch.randn(one.hidden.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def run(hidden: Tensor) -> Tensor:
        assert one.bias is not None
        return token_log_probs(hidden, one.weight.detach(), one.labels, bias=one.bias.detach(), softcap=2.0, chunk=None)

    _, slopes = torch.func.jvp(run, (one.hidden.detach(),), (move,))
    found = token_log_probs(one.hidden, one.weight, one.labels, **one.head, chunk=7)
    (gradient,) = torch.autograd.grad(found.sum(), one.hidden)
    torch.testing.assert_close(slopes, (gradient * move).sum(1), rtol=1e-10, atol=1e-10)
