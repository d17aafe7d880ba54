"""Top-k: a fixed number of candidates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.generate.rules import Rule

if TYPE_CHECKING:
    from torch import Tensor


class TopK(Rule):
    """Keep the k likeliest tokens, and those as likely as the k-th; 0 keeps all.

    Helps when: rare tokens derail replies.   Hurts when: the number of good continuations varies: top-p and min-p follow it.
    Cost: a partial sort.   Start with: 40, or leave it to top-p.
    Source: Fan, Lewis & Dauphin 2018, arXiv:1805.04833.
    """

    k: int = setting(0, "candidates kept; 0: all", low=0, search=[0, 10, 40])

    def adjust(self, logits: Tensor, history: Tensor) -> Tensor:
        if self.k == 0 or self.k >= logits.shape[-1]:
            return logits
        least = logits.topk(self.k, dim=-1).values[..., -1:]
        return logits.masked_fill(logits < least, -math.inf)
