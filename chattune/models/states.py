"""A cache of constant size, for families that remember states instead of every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from chattune.models.language_model import Cache, put_rows, take_rows


class StateCache(Cache):
    """Tensors (rows, …), one or more a layer: `states`, as the family fills them, and how many tokens each row has read.

    Its size does not grow with `length`, which only bounds what a row may read. Before a row has read anything its states are 0.
    """

    rewinds: ClassVar[bool] = False

    def __init__(self, states: list[tuple[Tensor, ...]], length: int) -> None:
        rows, device = states[0][0].shape[0], states[0][0].device
        super().__init__(0, rows, 1, length, 1, dtype=torch.float32, device=device)
        self.states = [tuple(state.clone() for state in layer) for layer in states]  # given ones may be one tensor twice
        self.room = length

    @property
    def length(self) -> int:
        return self.room

    def advance(self, time: int, segments: Tensor | None) -> Tensor:
        """Count `time` more tokens a row (those that are real); gives (rows,) how many were real. Refuses more than it may hold."""
        self.slots(time)
        real = torch.full_like(self.lengths, time) if segments is None else (segments >= 0).sum(1)
        self.lengths = self.lengths + real
        return real

    def select(self, rows: Tensor) -> None:
        self.states = [tuple(state.index_select(0, rows) for state in layer) for layer in self.states]
        self.lengths = self.lengths.index_select(0, rows)

    def at(self, rows: Sequence[int], starts: Sequence[int]) -> Self:
        part = super().at(rows, starts)
        fresh = part.lengths == 0
        part.states = [tuple(_emptied(take_rows(state, rows), fresh) for state in layer) for layer in self.states]
        return part

    def put(self, rows: Sequence[int], part: Self) -> None:
        super().put(rows, part)
        for layer, after in zip(self.states, part.states, strict=True):
            for state, new in zip(layer, after, strict=True):
                put_rows(state, rows, new)


def _emptied(state: Tensor, fresh: Tensor) -> Tensor:
    """States with zeros in the rows that begin anew."""
    return state.masked_fill(fresh.view(-1, *[1] * (state.ndim - 1)), 0.0) if bool(fresh.any()) else state
