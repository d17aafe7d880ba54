"""Optimizers: how a gradient becomes a step.

`build` gets parameter groups that already say where decay belongs; it returns a `torch.optim.Optimizer`, whose state the
checkpoint stores tensor by tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chattune.core.errors import SettingError
from chattune.core.part import Part, setting

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer


class Optimizer(Part):
    """A rule for steps. Every optimizer has a peak rate `lr`; ``None`` leaves it to the model's size."""

    lr: float | None = setting(None, "peak learning rate; none: derived from the model's size", above=0.0, high=10.0, log=True)

    @property
    def peak(self) -> float:
        """`lr`; `SettingError` where it was left open and nothing derived it."""
        if self.lr is None:
            raise SettingError(
                "has no value.", path="train.optimizer.lr", rule="a rate, or a model's size that it follows from",
                hint=f"Set it, as in {self.name}'s card (`chattune explain {self.name}`).",
            )
        return self.lr

    def build(self, groups: list[dict[str, Any]]) -> TorchOptimizer:
        """`groups`: dicts with ``params`` (list), ``names`` (list of str), ``role`` and ``decay`` (bool).

        ``role`` is ``"matrix"`` (hidden 2-D weights), ``"embedding"`` (token tables and output heads) or ``"vector"`` (norms,
        biases). Each torch group keeps ``base_lr``: the loop sets ``lr = base_lr * schedule`` before each step.
        """
        raise NotImplementedError
