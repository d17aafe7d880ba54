"""Batchers: how windows of tokens are put together into rows and batches.

A window is a piece of one dialog that fits the context. Windows in one row never see each other: positions and attention
start again at each.
"""

from __future__ import annotations

import numpy as np

from chattune.core.part import Part


class Batcher(Part):
    """Decides the rows of one epoch, as a pure function of lengths and a generator."""

    def batches(self, lengths: np.ndarray, tokens: int, context: int, random: np.random.Generator) -> list[list[list[int]]]:
        """One epoch: batches → rows → indices of windows, every window exactly once.

        `lengths`: input tokens of each window (int, each at most `context`); `tokens`: input positions of one global batch;
        a batch holds about ``tokens // context`` rows of `context` positions, or more rows that are shorter.
        """
        raise NotImplementedError
