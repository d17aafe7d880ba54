"""`Batch`: what a model sees: rows of windows that do not see each other, as tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Tensors of shape (rows, time).

    `inputs`, `targets`: int64 ids, padding included; `weights`: float32 loss weight of each target, 0 on padding; `positions`:
    int64, from 0 within each window; `segments`: int32, the number of the window in its row, from 0, and -1 on padding.
    A position sees those before it that have the same segment. Padding sees and is seen by padding only.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    positions: Tensor
    segments: Tensor

    def __len__(self) -> int:
        """Number of rows."""
        return self.inputs.shape[0]

    def shares(self, count: int, part: int = 0, of: int = 1) -> list[Batch]:
        """The rows of process `part` of `of`, as at most `count` micro-batches of equal size within one row.

        Every row is in exactly one share of one process. Empty shares are left out, so that a batch of few rows gives fewer.
        """
        assert count >= 1 and 0 <= part < of
        rows = len(self)
        first, last = part * rows // of, (part + 1) * rows // of
        cuts = [first + share * (last - first) // count for share in range(count + 1)]
        return [self._rows(first, last) for first, last in pairwise(cuts) if last > first]

    @cached_property
    def learned(self) -> Tensor:
        """Numbers of the positions with a weight above zero, counted through the rows; int64, ascending."""
        return (self.weights > 0).view(-1).nonzero().squeeze(1)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        moved = self._map(lambda values: values.to(device, non_blocking=True))
        if moved.weights.device != self.weights.device:
            # Counted here: on a GPU the number of positions would be known only once it has caught up with the program.
            there = self.learned.pin_memory() if moved.weights.is_cuda else self.learned
            moved.__dict__["learned"] = there.to(device, non_blocking=True)
        return moved

    def pinned(self) -> Batch:
        """The same batch in page-locked memory, which a GPU reads by itself."""
        return self._map(lambda values: values.pin_memory())

    def _rows(self, first: int, last: int) -> Batch:
        return self._map(lambda values: values[first:last])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(**{field.name: change(getattr(self, field.name)) for field in fields(self)})
