"""What a forward and one backward leave behind, from which the gradient of any weighing of the pairs follows.

Tokens of different pairs never meet, so the gradient that reaches a layer for Σ f_i·m_i is that for Σ m_i with the
tokens of pair i multiplied by f_i. A layer's input x and that gradient δ, kept from one backward, therefore give the
weights' gradient for any factors f by one product each: Σ_t f_t·δ_t·x_tᵀ. Nothing is run forward or backward again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from src.data.collate import PairBatch
from src.model.compiled import is_compiled
from src.model.fused import Share
from src.model.head import exact_type
from src.model.logps import head_of
from src.model.packed import lengths_of, predictions, shares_prefixes
from src.model.tape_head import HeadRecord, head_pass
from src.objective.types import PairLogProbs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECORDED = ("llama", "mistral", "gemma2", "qwen2", "qwen3", "gpt_neox")
"""Architectures whose weighted gradients were compared with autograd's (tests/unit/test_deferred.py): each layer sees
every token once, tokens in front of all other dimensions but the row's."""

RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Gemma2RMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
"""Layers of the form w·x/√(mean x² + ε), or with 1 + w."""

SCALED_EMBEDDINGS = ("Gemma2TextScaledWordEmbedding",)
"""Embeddings times ``embed_scale``."""

Kind = Literal["linear", "embedding", "rms_norm", "layer_norm"]


def kind_of(module: nn.Module) -> Kind | None:
    """How a layer's gradient is made from its input and its output's gradient; ``None`` where that is not known."""
    if type(module) is nn.Linear:
        return "linear"
    if type(module) is nn.Embedding or type(module).__name__ in SCALED_EMBEDDINGS:
        return "embedding"
    if type(module) is nn.LayerNorm:
        return "layer_norm"
    return "rms_norm" if type(module).__name__ in RMS_NORMS else None


def unrecordable(model: PreTrainedModel) -> str | None:
    """Why the layers of ``model`` cannot be recorded; ``None`` when they can."""
    if model.is_activation_checkpointing:
        return "gradient checkpointing keeps no inputs of layers"
    if is_compiled(model):
        return "compiled blocks hide the inputs of layers"
    if model.config.model_type not in RECORDED:
        return f"{model.config.model_type} is none of {', '.join(RECORDED)}"
    if type(head_of(model)[0]) is not nn.Linear:
        return "the output layer has an adapter"
    strange = [type(module).__name__ for module in trained_modules(model) if kind_of(module) is None]
    return f"it trains layers of unknown form ({', '.join(sorted(set(strange)))})" if strange else None


def trained_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The layers with trained weights of their own, but the output layer, whose weight alone is used."""
    head = head_of(model)[0]
    return [
        module
        for module in model.modules()
        if module is not head and any(p.requires_grad for p in module.parameters(recurse=False))
    ]


@dataclass(slots=True)
class Call:
    """A layer in a forward: its input, and the gradient of its output (until the backward: the output itself).

    ``terms``: of a normalizing layer, what ``norm_terms`` made of the two, which it is asked for more than once.
    """

    module: nn.Module
    given: Tensor
    delta: Tensor
    terms: dict[str, Tensor] | None = None


@contextmanager
def recorded(modules: Sequence[nn.Module]) -> Iterator[list[Call]]:
    """Within the block the calls of ``modules`` are written down, in order."""
    calls: list[Call] = []

    def note(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        calls.append(Call(module, given[0].detach(), output))

    handles = [module.register_forward_hook(note) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True)
class Recording:
    """One forward and its backward for Σ m_i over ``pairs`` pairs, each with factor 1.

    ``rows``: tokens of the forward as [rows, time]; ``token_pairs`` [rows · time]: whose they are.
    ``spans``: where each pair's tokens stand among them. ``gradients``: those of Σ m_i by the layers' parameters, if
    they were made on the way; ``weighted_gradients`` takes them out.
    """

    pairs: int
    calls: list[Call]
    token_pairs: Tensor
    spans: list[list[slice]]
    head: HeadRecord
    gradients: dict[nn.Parameter, Tensor]


def record(
    model: PreTrainedModel, batch: PairBatch, share: Share, *, per_token: bool, learning: bool, summed: bool = False
) -> tuple[PairLogProbs, Recording | None]:
    """Log-probs of ``batch``, without gradient, and when ``learning`` the recording for Σ m_i = ``share`` of them.

    ``share`` (log-probs of some pairs, which they are) gives the sum of what is differentiated of those pairs. Costs a
    forward and the gradients of hidden states; ``summed``: also those of weights for factors of 1, which are had for
    less now than from what is kept. Parameters' ``grad`` is not touched.
    """
    packed = shares_prefixes(model)
    with torch.set_grad_enabled(learning), recorded(trained_modules(model) if learning else []) as calls:
        found = predictions(model, batch, prompt=False, packed=packed)
    policy, head, slopes = head_pass(
        model, found, batch, share, per_token=per_token, learning=learning, room=entries(calls)
    )
    if head is None:
        return policy, None
    gradients: dict[nn.Parameter, Tensor] = {}
    if calls:
        outputs = [call.delta for call in calls]
        parameters = trained_parameters(calls) if summed else []
        made = torch.autograd.grad(found.hidden, [*outputs, *parameters], slopes, allow_unused=True)
        del outputs, slopes
        for call, delta in zip(calls, made, strict=False):
            call.delta = torch.zeros_like(call.delta) if delta is None else delta
        pairs = zip(parameters, made[len(calls) :], strict=True)
        # one for each parameter: ranks add them up in this order
        gradients = {p: torch.zeros_like(p) if value is None else value for p, value in pairs}
    token_pairs, spans = token_layout(batch, packed=packed)
    return policy, Recording(len(batch), calls, token_pairs, spans, head, gradients)


def trained_parameters(calls: Sequence[Call]) -> list[nn.Parameter]:
    """Those of the layers that were called, each once."""
    modules = dict.fromkeys(call.module for call in calls)
    own = (parameter for module in modules for parameter in module.parameters(recurse=False))
    return list(dict.fromkeys(parameter for parameter in own if parameter.requires_grad))


def entries(calls: Sequence[Call]) -> int:
    """How many the gradients of the layers' outputs have: what is kept besides may be as many."""
    return sum(call.delta.numel() for call in calls)


def token_layout(batch: PairBatch, *, packed: bool) -> tuple[Tensor, list[list[slice]]]:
    """Whose each token of a forward is, [tokens], and where each pair's tokens stand."""
    ids, pairs = batch.layout.input_ids, len(batch)
    if packed:
        sizes = [sum(one) for one in lengths_of(batch)]
        ends = [sum(sizes[: number + 1]) for number in range(pairs)]
        spans = [[slice(end - size, end)] for end, size in zip(ends, sizes, strict=True)]
        owners = torch.repeat_interleave(torch.arange(pairs), torch.tensor(sizes))
    else:
        rows, time = ids.shape
        spans = [[slice(row * time, (row + 1) * time) for row in range(pair, rows, pairs)] for pair in range(pairs)]
        owners = (torch.arange(rows) % pairs).repeat_interleave(time)
    return owners.to(ids.device), spans


def weighted_gradients(
    model: PreTrainedModel, recordings: Sequence[Recording], factors: Sequence[Tensor | None]
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Gradients of Σ f_i·m_i over the pairs of all ``recordings``, parameter by parameter, in the exact type.

    ``factors``: [pairs] for each recording, ``None`` for 1 each. A tied weight comes twice, once for each use. Costs
    one product of a layer's tokens; the output layer's logits are made again unless they were kept.
    """
    scaled = [
        Scaled(None if factor is None else factor.index_select(0, one.token_pairs))
        for one, factor in zip(recordings, factors, strict=True)
    ]
    by_module: dict[nn.Module, list[tuple[Call, Scaled]]] = {}
    for one, scale in zip(recordings, scaled, strict=True):
        if scale.share is None and one.gradients:
            yield from one.gradients.items()
            one.gradients.clear()  # the caller may add to them
            continue
        for call in one.calls:
            by_module.setdefault(call.module, []).append((call, scale))
    for module, uses in by_module.items():
        sums: dict[str, Tensor] = {}
        for call, scale in uses:
            add_gradients(sums, call, scale)
        yield from ((getattr(module, name), value) for name, value in sums.items())
    head = head_of(model)[0]
    yield from head_gradients(head, recordings, factors)


def head_gradients(
    head: Any, recordings: Sequence[Recording], factors: Sequence[Tensor | None]
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Those of the output layer."""
    wanted = [one is not None and one.requires_grad for one in (head.weight, head.bias)]
    if not any(wanted) or not recordings:
        return
    sums = recordings[0].head.sums(*wanted)
    for one, factor in zip(recordings, factors, strict=True):
        one.head.add(sums, factor)
    yield from ((p, value) for p, value in ((head.weight, sums.weight), (head.bias, sums.bias)) if value is not None)


class Scaled:
    """Inputs of layers times their tokens' factors (``None``: 1); that of the last input is kept, which neighbours
    share."""

    def __init__(self, share: Tensor | None) -> None:
        self.share = share
        self.last: tuple[Any, Tensor] | None = None

    def times(self, tokens: Tensor) -> Tensor:
        """``tokens`` [tokens, width] times the factors."""
        return tokens if self.share is None else tokens * self.share.to(tokens.dtype)[:, None]

    def total(self, tokens: Tensor) -> Tensor:
        """The sum of ``tokens`` [tokens, width] times the factors, [width]."""
        return tokens.sum(0) if self.share is None else torch.mv(tokens.t(), self.share.to(tokens.dtype))

    def has(self, given: Tensor) -> bool:
        return self.share is None or (self.last is not None and self.last[0] == identity(given))

    def input(self, given: Tensor, tokens: Tensor) -> Tensor:
        """``tokens``, which is the layer's input ``given`` in two dimensions, times the factors."""
        if self.share is None:
            return tokens
        if self.last is None or not self.has(given):
            self.last = (identity(given), self.times(tokens))
        return self.last[1]


def identity(tensor: Tensor) -> Any:
    """Equal for tensors of one memory, as long as that is held."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.dtype


def two_dimensional(call: Call) -> tuple[Tensor, Tensor]:
    """Input and output gradient of a linear layer, [tokens, width] each, in the type that the product has."""
    delta = call.delta.reshape(-1, call.delta.shape[-1])
    return call.given.reshape(-1, call.given.shape[-1]).to(delta.dtype), delta


def add_gradients(sums: dict[str, Tensor], call: Call, scale: Scaled) -> None:
    """Add the gradients of a layer's trained parameters to ``sums``, by name."""
    module: Any = call.module
    kind = kind_of(module)
    if kind == "linear":
        add_linear(sums, call, scale)
    elif kind == "embedding":
        found = sum_like(sums, "weight", module.weight)
        ids, tokens = embedded(call)
        found.index_add_(0, ids, scale.times(tokens).to(found.dtype))
    else:
        for name, terms in norm_terms(call).items():
            sum_like(sums, name, getattr(module, name)).add_(scale.total(terms))


def add_linear(sums: dict[str, Tensor], call: Call, scale: Scaled) -> None:
    """The same for a linear layer; the factors go to the narrower side, or to an input that has them already."""
    module: Any = call.module
    given, delta = two_dimensional(call)
    if module.weight.requires_grad:
        if scale.has(call.given) or given.shape[1] <= delta.shape[1]:
            sides = delta, scale.input(call.given, given)
        else:
            sides = scale.times(delta), given
        add_product(sums, "weight", *sides, exact_type(module.weight.dtype))
    if module.bias is not None and module.bias.requires_grad:
        found = sum_like(sums, "bias", module.bias)
        found.add_(scale.total(delta.to(found.dtype)))


def add_product(sums: dict[str, Tensor], name: str, left: Tensor, right: Tensor, exact: torch.dtype) -> None:
    """Add leftᵀ·right to the sum of that name, in ``exact``."""
    if name not in sums:
        sums[name] = (left.t() @ right).to(exact)
    elif sums[name].dtype == left.dtype == right.dtype:
        sums[name].addmm_(left.t(), right)
    else:
        sums[name] += left.t() @ right


def sum_like(sums: dict[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    """The sum of that name, from 0 on."""
    if name not in sums:
        sums[name] = torch.zeros_like(parameter, dtype=exact_type(parameter.dtype), requires_grad=False)
    return sums[name]


def embedded(call: Call) -> tuple[Tensor, Tensor]:
    """Ids [tokens] and output gradients [tokens, width] of an embedding; none for its padding, which is not trained."""
    module: Any = call.module
    ids, delta = call.given.reshape(-1), call.delta.reshape(-1, call.delta.shape[-1])
    if module.padding_idx is not None:
        delta = delta.masked_fill((ids == module.padding_idx)[:, None], 0)
    return ids, delta if type(module) is nn.Embedding else delta * module.embed_scale.to(delta.dtype)


def norm_terms(call: Call) -> dict[str, Tensor]:
    """What each token adds to the gradient of a normalizing layer's trained parameters, [tokens, width] by name."""
    if call.terms is None:
        call.terms = new_norm_terms(call)
    return call.terms


def new_norm_terms(call: Call) -> dict[str, Tensor]:
    """The same, from the layer's input and its output's gradient."""
    module: Any = call.module
    width = call.given.shape[-1]
    exact = exact_type(call.given.dtype)
    # layers of heads (Qwen-3) see [row, time, head, width]
    tokens = call.given.shape[0] * call.given.shape[1]
    given, delta = (part.reshape(tokens, -1, width) for part in (call.given, call.delta.to(exact)))
    if kind_of(module) == "layer_norm":
        normal = torch.nn.functional.layer_norm(given.to(exact), (width,), None, None, module.eps)
    else:
        epsilon = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
        given = given.float()  # as these layers do whatever the type of the weights
        normal = given * torch.rsqrt(given.square().mean(-1, keepdim=True) + epsilon)
    terms = {"weight": delta * normal}
    if getattr(module, "bias", None) is not None:
        terms["bias"] = delta
    wanted = {name: value for name, value in terms.items() if getattr(module, name).requires_grad}
    return {name: value[:, 0] if value.shape[1] == 1 else value.sum(1) for name, value in wanted.items()}
