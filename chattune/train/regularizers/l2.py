"""A penalty on the size of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.train.regularizers import Regularizer

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel


class L2(Regularizer):
    """Add strength/2 · ‖θ‖² to the loss, for all weights but norms and biases.

    Helps when: with sgd, where it equals weight decay of rate × strength a step; for comparison.   Hurts when: with adamw or muon,
    which rescale its gradient: frequent directions are then hardly regularised. Use their `weight_decay` instead.
    Cost: one pass over the weights.   Start with: strength 1e-4.
    Source: Krogh & Hertz 1991; the difference under Adam: Loshchilov & Hutter 2019, arXiv:1711.05101. Its gradient, strength · θ,
    is added after all backward passes and before clipping; reported losses do not contain the penalty.
    """

    strength: float = setting(1e-4, "λ of λ/2 · ‖θ‖²", low=0.0, high=10.0, search=(0.0, 1e-2))

    def gradients(self, model: LanguageModel, step: int) -> None:
        if not self.strength:
            return
        for group in model.groups():
            for parameter in group["params"] if group["decay"] else ():
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach(), alpha=self.strength)
