"""Several ranks that hold the same model (DDP), and what every engine of several ranks shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from src.data.collate import PairBatch, collate
from src.data.pairset import TokenizedPair
from src.engine.deferred import Observed
from src.engine.gather import gathered_rows
from src.engine.join import join, watchdog
from src.engine.local import LocalEngine, device_of, random_state, restore_random_state
from src.engine.ranks import Ranks, ranks
from src.model.fused import FusedLoss, Share
from src.model.logps import Kernel, as_pairs
from src.objective.perturbations import PerturbedScope
from src.objective.types import PairLogProbs, each_tensor, tensors_of
from src.schema import EngineConfig, TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DdpEngine(LocalEngine):
    """Every rank holds model and optimizer whole; gradients are averaged over ranks in the last backward of a window.

    Forwards are of the pairs of all ranks (``training.micro_batch_size`` times their number). Each rank computes its
    share; log-probs are gathered, so the objective is computed on all pairs, alike on every rank.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: TrainingConfig,
        total_steps: int,
        engine: EngineConfig,
        dtype: str,
    ) -> None:
        self.engine = engine
        assert engine.timeout_s is not None
        self.joined = join(device_of(engine.device, ranks()), engine.timeout_s)
        self.watch = watchdog()
        super().__init__(model, config, total_steps, engine.device, dtype)

    @property
    def ranks(self) -> Ranks:
        return self.joined

    def wrapped(self, kernel: Kernel) -> torch.nn.Module:
        bucket_mb = self.engine.bucket_mb
        found = DistributedDataParallel(
            kernel, bucket_cap_mb=bucket_mb, gradient_as_bucket_view=True, forward_sync_buffers=False
        )
        self.settle(found)
        return found

    def settle(self, kernel: DistributedDataParallel) -> None:
        """A backward of nothing, after which DDP lays gradients out anew, in the order in which they came.

        Sums over three ranks or more are rounded in another order from then on. Were the first step's that backward, a
        run that goes on from a checkpoint would differ from one that was not interrupted.
        """
        before = random_state(self.device)
        batch = collate([TokenizedPair(0, "", [0], [0], [], None, None, flipped=False)]).to(self.device)
        with self.autocast():
            values = kernel(batch, False)
        torch.autograd.backward(0.0 * values[0].sum())
        kernel.zero_grad(set_to_none=True)
        restore_random_state(before, self.device)

    def at(self, step: int, doing: str) -> None:
        self.watch.at(step, doing)

    def forwards(self, window: Iterable[PairBatch]) -> Iterator[PairBatch]:
        batches = list(window)
        for number, batch in enumerate(batches, 1):
            self.synchronize(number == len(batches))
            yield batch

    def synchronize(self, last: bool) -> None:
        """Whether the next backward is the last of its window."""
        self.kernel.require_backward_grad_sync = last  # type: ignore[assignment]

    def log_probs(self, batch: PairBatch, *, per_token: bool = False, prompt: bool = False) -> PairLogProbs:
        self.watch.moved()
        with self.autocast():
            mine = self.kernel(own_share(batch, self.ranks), per_token, prompt)
        return self.of_all(mine, batch, prompt=prompt)

    def of_all(self, mine: Sequence[Tensor], batch: PairBatch, *, prompt: bool = False) -> PairLogProbs:
        """Log-probs of all pairs of ``batch``, from those of this rank's, which alone carry gradient."""
        return as_pairs(gathered_rows(mine, len(batch), self.ranks), prompt=prompt)

    def pair_loss(self, batch: PairBatch, share: Share, *, per_token: bool = False, prompt: bool = False) -> FusedLoss:
        self.watch.moved()
        mine, own_pairs = own_share(batch, self.ranks), of_own(share, self.ranks.share(len(batch)))
        found = super().pair_loss(mine, own_pairs, per_token=per_token, prompt=prompt)
        return FusedLoss(found.loss, self.of_all(tensors_of(wide(found.log_probs, batch)), batch, prompt=prompt))

    def record(
        self,
        batch: PairBatch,
        share: Share,
        *,
        per_token: bool = False,
        learning: bool = True,
        summed: bool = False,
    ) -> Observed:
        self.watch.moved()
        mine, own_pairs = own_share(batch, self.ranks), of_own(share, self.ranks.share(len(batch)))
        found = super().record(mine, own_pairs, per_token=per_token, learning=learning, summed=summed)
        return Observed(self.of_all(tensors_of(wide(found.log_probs, batch)), batch), len(batch), found.recording)

    def backward(self, loss: Tensor) -> None:
        # engines average over ranks; each has the gradient of its own pairs alone, and wanted is the sum
        super().backward(loss * self.ranks.size)

    def slopes(
        self, batch: PairBatch, scope: PerturbedScope, *, adaptive: bool = False, per_token: bool = False
    ) -> tuple[PairLogProbs, PairLogProbs]:
        found = super().slopes(own_share(batch, self.ranks), scope, adaptive=adaptive, per_token=per_token)
        values, slopes = (self.of_all(tensors_of(part), batch) for part in found)
        return values, slopes

    def save_model(self, directory: Path) -> None:
        if self.ranks.is_main:
            super().save_model(directory)

    def training_state(self) -> dict[str, Any]:
        return {**super().training_state(), "random": self.random_states(), "ranks": self.ranks.size}

    def load(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        super().load(checkpoint, {**state, "random": state["random"][0]})
        self.restore_random_states(state["random"])

    def random_states(self) -> list[Any]:
        """The generators of every rank, in order."""
        found: list[Any] = [None] * self.ranks.size
        dist.all_gather_object(found, random_state(self.device))
        return found

    def restore_random_states(self, states: list[Any]) -> None:
        """This rank's generators; those of a rank that was not there before start as rank 0's."""
        known = self.ranks.rank < len(states)
        restore_random_state(states[self.ranks.rank if known else 0], self.device)


def wide(log_probs: PairLogProbs, batch: PairBatch) -> PairLogProbs:
    """Per-token values in rows as wide on every rank, whichever responses it has."""
    time = batch.layout.input_ids.shape[1]

    def padded(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, time - tensor.shape[1])) if tensor.ndim == 2 else tensor

    return each_tensor(log_probs, padded)


def of_own(share: Share, own: range) -> Share:
    """``share`` told of this rank's pairs, which are ``own`` of the batch's; 0 of one that only stands in."""

    def own_pairs(policy: PairLogProbs, pairs: slice) -> Tensor:
        if not own:
            return 0.0 * policy.chosen.summed.sum()
        return share(policy, slice(own.start + pairs.start, own.start + pairs.stop))

    return own_pairs


def own_share(batch: PairBatch, ranks: Ranks) -> PairBatch:
    """The pairs of ``batch`` that this rank computes; where there is none, one that stands in for it."""
    share = ranks.share(len(batch))
    if len(share) == len(batch):
        return batch
    return batch[share.start : share.stop] if share else batch[:1]
