"""Mean 0 and variance 1 of each unit over the tokens of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from chattune.core.part import setting
from chattune.models.norms import Norm

if TYPE_CHECKING:
    from torch import nn


class BatchNorm(Norm):
    """(x − μ)/√(σ² + ε) · γ + β for each unit, with mean and variance over the tokens of the micro-batch.

    In the matrix of units × samples it works on rows, where layer normalisation works on columns. Once trained, fixed statistics take
    the batch's place: moving averages, or those of the whole training split, computed layer by layer when training is over.

    Helps when: the network is a plain feed-forward or convolutional one and micro-batches hold many tokens. Hurts when: they are small
    (the statistics become noise), and in transformers and recurrent models, where layer or RMS normalisation is the rule (E12): while
    it trains, a token's statistics know the tokens after it, so that families that promise causality refuse it by name.
    Cost: two passes over the numbers; with whole statistics as many passes over the training split as there are norms, once.
    Start with: momentum 0.1 and at least 32 tokens a micro-batch; biases before it have no effect, leave them out.
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167. That it works by removing internal covariate shift is disputed (E13: Santurkar et
    al. 2018, arXiv:1805.11604).
    """

    per_token: ClassVar[bool] = False
    shifts: ClassVar[bool] = True

    epsilon: float = setting(1e-5, "added to the variance", above=0.0, high=1e-2, log=True)
    statistics: Literal["moving", "whole"] = setting("moving", "what replaces the batch's statistics after training")
    momentum: float = setting(0.1, "share of the newest batch in the moving averages", above=0.0, high=1.0)

    def build(self, width: int) -> nn.Module:
        from chattune.models.norms._batch_norm import Normalise

        return Normalise(width, self)

    def parameters(self, width: int) -> int:
        return 2 * width
