"""Batchers: how windows of tokens are put together into rows and batches.

A window is a piece of one dialog that fits the context. Windows in one row never see each other: positions and attention
start again at each.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from chattune.core.part import Part

if TYPE_CHECKING:
    import numpy as np


class Batcher(Part):
    """Decides the rows of one epoch, as a pure function of lengths and a generator."""

    def batches(self, lengths: np.ndarray, tokens: int, context: int, random: np.random.Generator) -> list[list[list[int]]]:
        """One epoch: batches → rows → indices of windows, every window exactly once.

        `lengths`: input tokens of each window (int, each at most `context`); `tokens`: input positions of one global batch;
        a batch holds about ``tokens // context`` rows of `context` positions, or more rows that are shorter.
        """
        raise NotImplementedError

    def time(self, context: int) -> int | None:
        """Positions that each row is padded to; none: to the longest row of its batch."""
        return None


def in_batches(rows: list[list[int]], tokens: int, context: int, random: np.random.Generator) -> list[list[list[int]]]:
    """`rows` of up to `context` positions in random order, in batches whose sizes differ by at most one row."""
    full = max(1, tokens // context)
    count = -(-len(rows) // full)
    order = random.permutation(len(rows)).tolist()
    cuts = [batch * len(rows) // count for batch in range(count + 1)] if count else [0]
    return [[rows[row] for row in order[first:last]] for first, last in pairwise(cuts)]
