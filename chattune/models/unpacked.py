"""Packed windows as sequences of their own, for families that walk along time instead of masking it.

A row of a batch holds several windows, one after another, and padding. Recurrent kernels want sequences that each begin with a
state of their own; `Sequences` is the way there and back. No token is computed twice, and no padding is computed at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def beginnings(segments: Tensor) -> Tensor:
    """(rows, time) true at the first token of each window; `segments` as in `Batch`, -1 at padding."""
    first = torch.ones_like(segments, dtype=torch.bool)
    first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return first & (segments >= 0)


def ages(segments: Tensor) -> Tensor:
    """(rows, time) int64: how many tokens of its own window stand before each token; 0, 1, 2, … again in each run of padding."""
    first = torch.ones_like(segments, dtype=torch.bool)
    first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    place = torch.arange(segments.shape[1], device=segments.device).expand(segments.shape)
    return place - torch.where(first, place, 0).cummax(1).values


@dataclass(frozen=True)
class Sequences:
    """Runs of tokens in the order of torch's `PackedSequence`: all first tokens, all second ones, …, the longest sequence first.

    n tokens in s sequences. `order`: (n,) where each token stands in the flattened (rows, time); `sizes`: (longest,) int64 on the CPU,
    sequences that reach so far; `first` and `last`: (s,) where each sequence begins and ends, flattened, too; `shape`: (rows, time).
    """

    order: Tensor
    sizes: Tensor
    first: Tensor
    last: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, begins: Tensor, real: Tensor) -> Sequences:
        """Sequences that start where `begins` and hold what is `real`, both (rows, time) of truth values.

        Each run of real tokens in a row must start with a beginning. Sequences of equal length keep their order.
        """
        where = real.reshape(-1).nonzero().squeeze(1)
        number = begins.reshape(-1)[where].cumsum(0) - 1
        lengths = torch.bincount(number)
        starts = lengths.cumsum(0) - lengths
        sorted_lengths, rank_to_number = lengths.sort(descending=True, stable=True)
        rank = torch.empty_like(rank_to_number)
        rank[rank_to_number] = torch.arange(len(lengths), device=rank.device)
        longest = int(sorted_lengths[0]) if len(lengths) else 0
        # How many sequences are longer than t: what is left of all after those of length 1 … t ended.
        sizes = len(lengths) - torch.bincount(lengths, minlength=longest + 1)[: longest + 1].cumsum(0)[:longest]
        place = torch.arange(len(where), device=where.device) - starts[number]
        order = torch.empty_like(where)
        order[(sizes.cumsum(0) - sizes)[place] + rank[number]] = where
        first = where[starts[rank_to_number]]
        return cls(order, sizes.cpu(), first, first + sorted_lengths - 1, (begins.shape[0], begins.shape[1]))

    @classmethod
    def whole(cls, rows: int, time: int, device: torch.device) -> Sequences:
        """Every row one sequence of full length."""
        flat = torch.arange(rows * time, device=device).view(rows, time)
        return cls(flat.t().reshape(-1), torch.full((time,), rows), flat[:, 0], flat[:, -1], (rows, time))

    @property
    def rows(self) -> Tensor:
        """(s,) the row that each sequence stands in."""
        return self.first // self.shape[1]

    def take(self, values: Tensor) -> Tensor:
        """(rows, time, …) → (n, …) in the order of the sequences."""
        return values.flatten(0, 1).index_select(0, self.order)

    def put(self, values: Tensor) -> Tensor:
        """(n, …) back to (rows, time, …); zeros where there is padding."""
        rows, time = self.shape
        empty = values.new_zeros(rows * time, *values.shape[1:])
        return empty.index_copy(0, self.order, values).view(rows, time, *values.shape[1:])
