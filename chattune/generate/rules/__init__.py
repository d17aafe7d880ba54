"""Rules: adjustments of next-token logits before a token is drawn. Applied in the order given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import Part

if TYPE_CHECKING:
    from torch import Tensor


class Rule(Part):
    """One adjustment."""

    def adjust(self, logits: Tensor, history: Tensor) -> Tensor:
        """`logits`: (rows, vocabulary) float32; `history`: (rows, time) ids so far, prompt included, padded with -1.

        Gives logits of the same shape. At least one token of each row stays possible. The input is not changed.
        """
        raise NotImplementedError
