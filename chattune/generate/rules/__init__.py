"""Rules: adjustments of next-token logits before a token is drawn. Applied in the order given."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from chattune.core.part import Part

if TYPE_CHECKING:
    from torch import Tensor


class Rule(Part):
    """One adjustment."""

    counts_prompt: ClassVar[bool] = True  # False: the history given holds only what was generated

    def adjust(self, logits: Tensor, history: Tensor) -> Tensor:
        """`logits`: (rows, vocabulary) float32; `history`: (rows, time) ids so far, prompt included, padded with -1.

        Gives logits of the same shape. At least one token of each row stays possible. The input is not changed.
        """
        raise NotImplementedError

    def check(self, vocabulary: int) -> None:
        """Refuse settings that no model with so many token ids can follow (`SettingError`); most rules follow any."""
