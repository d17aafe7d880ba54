"""Regularizers: levers against overfitting (and for robustness), each the identity at zero strength.

Six verbs, each doing nothing by default; the signature says what a method may touch. They are applied in the order of the
recipe. A method with memory (a moving average) returns a `Memory` from `begin`; settings stay frozen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from chattune.core.part import Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from chattune.models.language_model import LanguageModel
    from chattune.tokens.batch import Batch
    from chattune.train.objectives import LossView


class Memory(Protocol):
    """What a stateful regularizer keeps between steps; stored in checkpoints."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class Regularizer(Part):
    """One lever."""

    def begin(self, model: LanguageModel) -> Any:
        """Its memory for one run, or ``None``. Passed back as `memory`."""
        return None

    def edit(self, model: LanguageModel) -> None:
        """Once, before training: change the model (its dropout rates, say)."""

    def augment(self, batch: Batch, random: torch.Generator) -> Batch:
        """Each training micro-batch, before the forward pass."""
        return batch

    def penalty(self, view: LossView) -> Tensor | float:
        """Added to the loss of each micro-batch (mean over its target tokens)."""
        return 0.0

    def gradients(self, model: LanguageModel, step: int) -> None:
        """After all backward passes of a step, before clipping."""

    def weights(self, model: LanguageModel, step: int, memory: Any) -> None:
        """After the optimizer's step."""

    def chosen(self, model: LanguageModel, memory: Any) -> dict[str, Tensor] | None:
        """The weights to evaluate and keep, by parameter name, or ``None`` for the model's own."""
        return None
