"""One window a row: the plain baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.tokens.batchers import Batcher, in_batches

if TYPE_CHECKING:
    import numpy as np


class Padded(Batcher):
    """One window a row, padded to the context.

    Helps when: a plain baseline is wanted to compare with. Hurts when: dialogs are short: most positions are padding.
    Cost: context ÷ mean length times the work of packing. Start with: `packed` instead.
    Source: the default of most trainers.
    """

    def batches(self, lengths: np.ndarray, tokens: int, context: int, random: np.random.Generator) -> list[list[list[int]]]:
        return in_batches([[window] for window in range(len(lengths))], tokens, context, random)

    def time(self, context: int) -> int | None:
        return context
