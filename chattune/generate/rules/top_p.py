"""Top-p, or nucleus sampling: as many candidates as hold a share of the probability."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.generate.rules import Rule

if TYPE_CHECKING:
    from torch import Tensor


class TopP(Rule):
    """Keep the smallest set of likeliest tokens whose probability is at least p (nucleus sampling); 1 keeps all.

    Helps when: the tail of unlikely tokens derails replies; the set grows and shrinks with the model's certainty.
    Hurts when: p is so small that replies become alike.   Cost: a sort.   Start with: 0.9.
    Source: Holtzman et al. 2020, arXiv:1904.09751. It truncates what is drawn from and changes no weight: no regularization.
    """

    p: float = setting(1.0, "share of probability kept; 1: all", above=0.0, high=1.0, search=[0.8, 0.9, 0.95, 1.0])

    def adjust(self, logits: Tensor, history: Tensor) -> Tensor:
        if self.p == 1.0:
            return logits
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        share = ordered.double().softmax(-1)  # float64: a running sum over a large vocabulary
        before = share.cumsum(-1) - share
        drop = before >= self.p  # what stands before a token already suffices; nothing stands before the first
        drop[..., 0] = False
        return logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)
