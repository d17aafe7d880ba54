"""Repetition penalty: what was said becomes less likely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.generate.rules import Rule

if TYPE_CHECKING:
    from torch import Tensor


class RepetitionPenalty(Rule):
    """Divide positive logits of tokens in the history by the penalty, and multiply negative ones by it; 1 changes nothing.

    Helps when: a small model repeats itself.   Hurts when: repeating is right (code, names, short words), from about 1.3 on.
    Cost: none.   Start with: 1.1.
    Source: Keskar et al. 2019, arXiv:1909.05858, in the form for logits of either sign that transformers uses; prompt included.
    """

    penalty: float = setting(1.0, "above 1: tokens of the history become less likely", low=1.0, high=10.0, search=[1.0, 1.1, 1.2])

    def adjust(self, logits: Tensor, history: Tensor) -> Tensor:
        if self.penalty == 1.0 or history.shape[-1] == 0:
            return logits
        # Padding (-1) is sent to a column of its own, which is cut off again.
        said = logits.new_zeros((*logits.shape[:-1], logits.shape[-1] + 1)).scatter(-1, history.remainder(logits.shape[-1] + 1), 1.0)
        weaker = (logits / self.penalty).where(logits > 0, logits * self.penalty)
        return weaker.where(said[..., :-1] > 0, logits)
