"""Repetition penalty: what was said becomes less likely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.generate.rules import Rule
from chattune.generate.rules._history import counts

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
        weaker = (logits / self.penalty).where(logits > 0, logits * self.penalty)
        return weaker.where(counts(logits, history) > 0, logits)
