"""Batches of windows of about one length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.tokens.batchers import Batcher

if TYPE_CHECKING:
    import numpy as np


class Bucketed(Batcher):
    """Put windows of about the same length into a batch and pad them to the longest.

    Helps when: rows must hold one window each and lengths differ. Hurts when: length goes with content: a batch is then less
    varied than the data. Cost: little padding; shapes change from batch to batch, which compiled models dislike.
    Start with: `packed`; this one when a model cannot separate windows in a row.
    Source: length bucketing as in Khomenko et al. 2016, arXiv:1708.05604.
    """

    spread: float = setting(0.1, "share by which lengths in a batch may differ, which mixes batches anew each epoch", low=0.0, high=1.0)

    def batches(self, lengths: np.ndarray, tokens: int, context: int, random: np.random.Generator) -> list[list[list[int]]]:
        import numpy as np

        # Sorting by a key that is never below the length bounds the longest window of a batch by its first key.
        keys = lengths * (1.0 + self.spread * random.random(len(lengths)))
        order = np.lexsort((random.random(len(lengths)), -keys)).tolist()
        batches = []
        first = 0
        while first < len(order):
            longest = min(context, int(keys[order[first]]))
            last = first + max(1, tokens // longest)
            batches.append([[window] for window in order[first:last]])
            first = last
        return [batches[index] for index in random.permutation(len(batches))]
