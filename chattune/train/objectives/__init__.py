"""Objectives: what the loss is.

An objective turns a batch into a `LossView`: the loss to descend and everything a regularizer may look at.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from chattune.core.part import Part

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.models.language_model import LanguageModel
    from chattune.tokens.batch import Batch


class LossView:
    """One micro-batch seen by the loss; n is the number of positions with weight above zero.

    `loss`: scalar, ``sum(weights * nll) / sum(weights)`` in nats (or what the objective defines); `targets`: (n,) ids;
    `weights`: (n,) float32; `nll`: (n,) plain negative log-likelihood, for looking at; `logits`: (n, vocabulary), given as a
    tensor or as a function that computes it when somebody asks.
    """

    def __init__(self, *, loss: Tensor, logits: Tensor | Callable[[], Tensor], targets: Tensor, weights: Tensor, nll: Tensor) -> None:
        self.loss, self.targets, self.weights, self.nll = loss, targets, weights, nll
        self._logits = logits

    @cached_property
    def logits(self) -> Tensor:
        return self._logits() if callable(self._logits) else self._logits


class Objective(Part):
    """A loss over batches. Its mean is over target tokens; the loop re-weights it to the whole global batch."""

    def view(self, model: LanguageModel, batch: Batch, *, full: bool = False) -> LossView:
        """The loss of `batch`. `full` tells that a penalty will look at the logits, so that they are computed only once."""
        raise NotImplementedError
