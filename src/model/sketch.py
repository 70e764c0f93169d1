"""Inner products of the pairs' gradients from small random projections of them, without forming any gradient.

The gradient of m_i by a layer's weight is G_i = Σ_t δ_t·x_tᵀ over the tokens of pair i. With A and B such that
E[A·Aᵀ] = 1 = E[B·Bᵀ], independent, S_i = Aᵀ·G_i·B, [s, s], has E⟨S_i, S_j⟩ = ⟨G_i, G_j⟩, for i = j too. Here A and B
are count sketches: entry k of a vector is added to entry k mod s, with a random sign. So a projection costs one
addition an entry, and S_i costs s² products a token; a side of at most s entries stays as it is, without noise. Entries
of the vocabulary, of which a pair has few, get ``VOCABULARY`` times the room: two layers alone have such a side, and in
small models half of the gradient. Vectors (normalizing layers, biases) are taken as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from src.model.logps import head_of
from src.model.tape import Call, Recording, embedded, identity, kind_of, norm_terms, two_dimensional

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEED = 20_260
"""Signs depend on it, on the place of a parameter in the model and on its shape: they are alike in every step, on every
rank and after a resumed run."""

VOCABULARY = 8
"""How many times s a sketch over the vocabulary has."""

Sketches = dict[int, Tensor]
"""Per-pair sketches [pairs, entries] by the place of the parameter in the model."""


@lru_cache(maxsize=4096)
def random_signs(width: int, size: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Independent signs, [width]; all + where ``size`` dimensions hold them without a collision."""
    if width <= size:
        return torch.ones(width, dtype=dtype, device=device)
    drawn = torch.randint(2, (width,), generator=torch.Generator().manual_seed(seed))
    return (2 * drawn - 1).to(device, dtype)


def sketched(tokens: Tensor, signs: Tensor, size: int, *, by_product: bool = False) -> Tensor:
    """``tokens`` [tokens, width], and entry k of each times its sign added to entry k mod ``size``: [tokens, size].

    As they are where they are no wider than that. ``by_product``: the same by one product of matrices.
    """
    width = tokens.shape[1]
    if width <= size:
        return tokens
    if by_product:
        return tokens @ one_hot(torch.arange(width, device=tokens.device), signs, size)
    found = tokens[:, :size] * signs[:size]
    for start in range(size, width, size):
        part = slice(start, min(start + size, width))
        found[:, : part.stop - start].addcmul_(tokens[:, part], signs[part])
    return found


def one_hot(entries: Tensor, signs: Tensor, size: int) -> Tensor:
    """The unit vectors of these ``entries`` [m], as ``sketched`` makes them of vectors as long as ``signs``."""
    found = signs.new_zeros(len(entries), min(size, len(signs)))
    return found.scatter_(1, entries.remainder(size)[:, None], signs.index_select(0, entries)[:, None])


class Sketcher:
    """Sketches of one forward after the other; ``only``: the parameters that count, ``size``: s."""

    def __init__(self, model: PreTrainedModel, only: Collection[nn.Parameter], size: int, seed: int = SEED) -> None:
        self.head: Any = head_of(model)[0]
        wanted = {id(parameter) for parameter in only}
        # every parameter has two seeds; a tied weight is one parameter, whose sketches add up
        self.places = {id(p): number for number, p in enumerate(model.parameters()) if id(p) in wanted}
        self.size, self.seed = size, seed

    def of(self, recording: Recording) -> Sketches:
        """Sketches of ∇m_i of every pair of a recording."""
        found: Sketches = {}
        self.input: tuple[Any, int, Tensor] | None = None
        for call in recording.calls:
            self.add_call(found, call, recording)
        self.add_head(found, recording)
        return found

    def signs(self, width: int, size: int, place: int, side: int, like: Tensor) -> Tensor:
        """Of a parameter's side, which is ``width`` wide, for as many dimensions."""
        return random_signs(width, size, self.seed + 2 * place + side, like.dtype, like.device)

    def projected(self, tokens: Tensor, place: int, side: int) -> Tensor:
        """``tokens`` [tokens, width] in s dimensions at most, by the signs of a parameter's side."""
        signs = self.signs(tokens.shape[1], self.size, place, side, tokens)
        # a GPU would be asked for each of many small additions
        return sketched(tokens, signs, self.size, by_product=tokens.is_cuda)

    def add_call(self, found: Sketches, call: Call, recording: Recording) -> None:
        """Those of a layer."""
        module: Any = call.module
        kind = kind_of(module)
        place = self.places.get(id(module.weight))
        if kind == "linear":
            given, delta = two_dimensional(call)
            if place is not None:
                inputs = self.inputs(call, given, place)
                add(found, place, self.per_pair(self.projected(delta, place, 0), inputs, recording.spans))
            self.add_vectors(found, {"bias": delta} if module.bias is not None else {}, call, recording)
        elif kind != "embedding":
            self.add_vectors(found, norm_terms(call), call, recording)
        elif place is not None:
            ids, delta = embedded(call)
            size = VOCABULARY * self.size
            rows = one_hot(ids, self.signs(module.num_embeddings, size, place, 0, delta), size)
            add(found, place, self.per_pair(rows, self.projected(delta, place, 1), recording.spans))

    def inputs(self, call: Call, given: Tensor, place: int) -> Tensor:
        """A layer's input in s dimensions; layers in a row that have one input share its projection."""
        if self.input is None or self.input[0] != identity(call.given):
            self.input = (identity(call.given), place, self.projected(given, place, 1))
        return self.input[2]

    def per_pair(self, outputs: Tensor, inputs: Tensor, spans: Sequence[Sequence[slice]]) -> Tensor:
        """Σ_t output_t·input_tᵀ over the tokens of each pair, [pairs, entries], in float32."""
        found = []
        for mine in spans:
            products = [outputs[span].t() @ inputs[span] for span in mine]
            found.append((products[0] if len(products) == 1 else torch.stack(products).sum(0)).flatten())
        return torch.stack(found).to(torch.promote_types(outputs.dtype, torch.float32))

    def add_vectors(self, found: Sketches, terms: dict[str, Tensor], call: Call, recording: Recording) -> None:
        """Gradients of vectors, exactly: sums over each pair's tokens of ``terms`` [tokens, width]."""
        for name, tokens in terms.items():
            place = self.places.get(id(getattr(call.module, name)))
            if place is not None:
                sums = [torch.stack([tokens[span].sum(0) for span in mine]).sum(0) for mine in recording.spans]
                rows = torch.stack(sums)
                add(found, place, rows.to(torch.promote_types(rows.dtype, torch.float32)))

    def add_head(self, found: Sketches, recording: Recording) -> None:
        """Those of the output layer; its logits are made again unless they were kept."""
        head = recording.head
        place = self.places.get(id(self.head.weight))
        bias = None if self.head.bias is None else self.places.get(id(self.head.bias))
        if place is None and bias is None:
            return
        pairs = recording.pairs
        for part, residuals in head.parts():
            counted = head.coefficients[part, None].to(residuals.dtype).neg()
            owners = head.token_pairs[part]
            spans = [[slice(*ends)] for ends in bounds(owners, pairs)]
            if place is not None:
                size = VOCABULARY * self.size
                signs = self.signs(residuals.shape[1], size, place, 0, residuals)
                outputs = sketched(residuals, signs, size) * counted
                inputs = self.projected(head.hidden[part], place, 1)
                add(found, place, self.per_pair(outputs, inputs, spans))
            if bias is not None:
                sums = torch.zeros(pairs, residuals.shape[1], dtype=counted.dtype, device=counted.device)
                add(found, bias, sums.index_add_(0, owners, residuals * counted))


def bounds(owners: Tensor, pairs: int) -> list[tuple[int, int]]:
    """Where the tokens of each pair stand among sorted ``owners``."""
    marks = torch.searchsorted(owners, torch.arange(pairs + 1, device=owners.device)).tolist()
    return list(pairwise(marks))


def add(found: Sketches, place: int, rows: Tensor) -> None:
    found[place] = found[place] + rows if place in found else rows
