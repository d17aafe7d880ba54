"""Targets that leave a little probability to every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.train.regularizers import Regularizer

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.train.objectives import LossView


class LabelSmoothing(Regularizer):
    """Move a little probability from the right token to all tokens of the vocabulary.

    Helps when: some targets are wrong, or confidence grows on a small corpus.   Hurts when: runs are compared by perplexity (the
    best possible loss rises: compare by plain NLL, E30), or the model shall teach another one.
    Cost: one pass over the logits.   Start with: strength 0.05 to 0.1.
    Source: Szegedy et al. 2016, arXiv:1512.00567: (1 − ε)·onehot + ε/K, which is also PyTorch's. The form with ε/(K − 1) for the
    others only is this one with ε·K/(K − 1) (E14). As a penalty: loss + ε·mean(z_target − mean z) is the smoothed loss exactly.
    """

    strength: float = setting(0.1, "share ε of the target spread over the vocabulary", low=0.0, high=0.5, search=(0.0, 0.2))

    def penalty(self, view: LossView) -> Tensor | float:
        if not self.strength:
            return 0.0
        import torch

        right = view.logits.gather(1, view.targets[:, None])[:, 0].float()
        # Σ −log p_k / K − (−log p_target): the log of the normaliser cancels
        excess = right - view.logits.mean(dim=1, dtype=torch.float32)
        return self.strength * (view.weights * excess).sum() / view.weights.sum()
