"""How one training stands on its processes: `Alone`, or `Replicated` with gradients summed while backward still computes.

`train/sharded.py` holds the third: the weights themselves divided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from chattune.models.language_model import LanguageModel
from chattune.tokens.batch import Batch
from chattune.train.device import Worker, norm_of
from chattune.train.world import World, lost

BUCKET_BYTES = 25 << 20  # summed at once: large enough for the link's full speed, small enough to start early


class Alone:
    """One process: nothing is divided and nothing travels. The base of the others."""

    lockstep = False  # whether every process must make the same passes, since each pass needs all of them

    def __init__(self, worker: Worker, world: World | None = None) -> None:
        self.worker, self.world = worker, world or World()

    def parts(self, batch: Batch, accumulate: int) -> list[Batch]:
        """The micro-batches of this process."""
        return batch.shares(accumulate, self.world.rank, self.world.size)

    def spare(self, batch: Batch) -> Batch | None:
        """What a process computes with weight 0 where it has no targets; none: it may pass."""
        return None

    def last_backward(self) -> None:
        """Called before the last backward pass of an update: gradients that it completes may leave at once."""

    def reduce(self) -> None:
        """After all backward passes: every parameter holds the gradient of the whole batch."""

    def norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """The 2-norm of the whole gradient."""
        return norm_of([p.grad for p in parameters if p.grad is not None])

    def finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(torch.isfinite(p).all()) for p in self.worker.master.parameters())

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as one process would hold them; every process calls it with the same names."""
        return dict(tensors)

    def spread(self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of `whole`: each tensor divided as the one of its name in `like` is."""
        return dict(tensors)

    def whole_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state as one process would hold it."""
        return state

    def spread_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """The reverse of `whole_state`."""
        return state

    def after_step(self) -> None:
        """After the optimizer's step: what computes takes the new weights, and all processes move alike."""
        self.worker.follow()
        if self.world.size > 1:
            for value in self.worker.master.moving().values():  # a batch norm's memory of the rows of each process: their mean
                self.world.sum(value).div_(self.world.size)

    def rest(self) -> None:
        """After forward passes that no backward pass followed."""

    def whole_model(self) -> LanguageModel | None:
        """The master model in one piece, on the first process; it is the training's own where nothing is divided."""
        return self.worker.master


class Replicated(Alone):
    """The whole model on every process, the rows divided; gradients are summed in flat buckets, last layers first.

    Source: Li et al. 2020, arXiv:2006.15704 (PyTorch DDP). Buckets leave in the same order on every process, also where a process
    has no rows; the sum is over loss shares that were divided by the target tokens of the whole batch, so nothing is averaged.
    """

    def __init__(self, worker: Worker, world: World) -> None:
        super().__init__(worker, world)
        self._buckets = _bucketed(reversed(worker.pairs))
        self._bucket_of = {own: number for number, bucket in enumerate(self._buckets) for own, _ in bucket}
        self._armed, self._left, self._sent = False, [0] * len(self._buckets), 0
        self._moving: list[tuple[Any, Tensor]] = []
        for own in self._bucket_of:
            own.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]

    def last_backward(self) -> None:
        self._armed, self._left = True, [len(bucket) for bucket in self._buckets]

    def reduce(self) -> None:
        self._armed = False
        while self._sent < len(self._buckets):
            self._send()
        for work, _ in self._moving:
            try:
                work.wait()
            except RuntimeError as error:
                raise lost(error, self.world.rank) or error from None
        self._moving, self._sent = [], 0

    def _arrived(self, own: nn.Parameter) -> None:
        if not self._armed:
            return
        self._left[self._bucket_of[own]] -= 1
        while self._sent < len(self._buckets) and self._left[self._sent] == 0:
            self._send()

    def _send(self) -> None:
        bucket = self._buckets[self._sent]
        self._sent += 1
        for own, master in bucket:
            self.worker.collect(own, master)
            if master.grad is None:
                master.grad = torch.zeros_like(master)  # a process without rows still takes part
        flat = torch.cat([master.grad.reshape(-1) for _, master in bucket if master.grad is not None])
        pieces = torch.split(flat, [master.numel() for _, master in bucket])
        for (_, master), piece in zip(bucket, pieces, strict=True):
            master.grad = piece.view_as(master)
        try:
            self._moving.append((dist.all_reduce(flat, async_op=True), flat))
        except RuntimeError as error:
            raise lost(error, self.world.rank) or error from None


Pair = tuple[nn.Parameter, nn.Parameter]


def _bucketed(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Neighbours together, at most `BUCKET_BYTES` of their masters' gradients (or a single one) in each."""
    buckets: list[list[Pair]] = []
    room = 0
    for own, master in pairs:
        size = master.numel() * master.element_size()
        if not buckets or size > room or buckets[-1][-1][1].dtype != master.dtype:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append((own, master))
        room -= size
    return buckets
