"""Keep the normaliser of the softmax near one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.train.regularizers import Regularizer

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.train.objectives import LossView


class ZLoss(Regularizer):
    """Penalise the squared logarithm of the softmax's normaliser, so that logits do not drift.

    Helps when: logits grow without bound, in bfloat16 or at high rates; steadies training at the edge.   Hurts when: strong: it
    then pulls all logits to zero.   Cost: one pass over the logits.   Start with: strength 1e-4.
    Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311: strength · mean(log² Z).
    """

    strength: float = setting(1e-4, "weight of the mean of log² Z", low=0.0, high=1.0, search=(0.0, 1e-3))

    def penalty(self, view: LossView) -> Tensor | float:
        if not self.strength:
            return 0.0
        log_z = view.logits.float().logsumexp(dim=1)
        return self.strength * (view.weights * log_z.square()).sum() / view.weights.sum()
