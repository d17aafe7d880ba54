"""Min-p: candidates at least a share as likely as the likeliest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.generate.rules import Rule

if TYPE_CHECKING:
    from torch import Tensor


class MinP(Rule):
    """Leave out tokens whose probability is below p times that of the likeliest; 0 keeps all.

    Helps when: the temperature is high: the threshold follows the model's certainty.
    Hurts when: p is so large that replies become alike.   Cost: none.   Start with: 0.05.
    Source: Nguyen et al. 2024, arXiv:2407.01082.
    """

    p: float = setting(
        0.0, "least probability, as a share of the likeliest token's; 0: all", low=0.0, high=1.0, search=[0.0, 0.05, 0.1]
    )

    def adjust(self, logits: Tensor, history: Tensor) -> Tensor:
        if self.p == 0.0:
            return logits
        # Probabilities are compared as differences of logits: p_i ≥ p · p_max ⇔ l_i ≥ l_max + log p.
        return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(self.p), -math.inf)
