"""Objectives: what the loss is.

An objective turns a batch into a `LossView`: the loss to descend and everything a regularizer may look at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chattune.core.part import Part

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.models.language_model import LanguageModel
    from chattune.tokens.batch import Batch


@dataclass(frozen=True)
class LossView:
    """One micro-batch seen by the loss; `n` is the number of positions with weight above zero.

    `loss`: scalar, ``sum(weights * nll) / sum(weights)`` in nats (or what the objective defines);
    `logits`: (n, vocabulary); `targets`: (n,) ids; `weights`: (n,) float32; `nll`: (n,) plain negative log-likelihood.
    """

    loss: Tensor
    logits: Tensor
    targets: Tensor
    weights: Tensor
    nll: Tensor


class Objective(Part):
    """A loss over batches. Its mean is over target tokens; the loop re-weights it to the whole global batch."""

    def view(self, model: LanguageModel, batch: Batch) -> LossView:
        raise NotImplementedError
