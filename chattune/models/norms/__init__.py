"""Norms: what brings the numbers of a layer to a common scale.

A norm stands before the activation (`place` "input": the net input of units, or what enters a residual branch) or after it
("activation"); weight normalisation rescales the matrix instead. A family asks `per_token` where it must: a norm that mixes
tokens is refused by those for which earlier tokens must not know later ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from chattune.core.part import Part

if TYPE_CHECKING:
    from torch import nn


class Norm(Part):
    """One way to normalise the numbers of a layer."""

    per_token: ClassVar[bool] = True  # uses only the token's own numbers: causality, packing and cached decoding hold
    place: ClassVar[Literal["input", "activation"]] = "input"
    shifts: ClassVar[bool] = False  # adds a number to each unit after subtracting its mean: a bias before it has no effect

    def build(self, width: int) -> nn.Module:
        """A module (…, width) → (…, width) that begins as plain normalisation."""
        raise NotImplementedError

    def wrap(self, linear: nn.Module) -> nn.Module:
        """The linear map (with `weight` of (outputs, inputs)) to use in place of `linear`; itself by default."""
        return linear

    def parameters(self, width: int) -> int:
        """Trainable numbers of `build(width)`."""
        raise NotImplementedError

    def wrapped_parameters(self, outputs: int) -> int:
        """Trainable numbers that `wrap` adds to a linear map with so many outputs."""
        return 0
