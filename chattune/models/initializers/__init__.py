"""Initializers: what the fresh weights of a model are drawn from.

A family says of each matrix where it stands (`Place`); the initializer fills it. `chattune.models.fresh` gives every matrix
a stream of its own. ``chattune init-report`` shows what a choice does to the layers of a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from chattune.core.part import Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Role = Literal["matrix", "embedding", "head", "branch_output"]


@dataclass(frozen=True)
class Place:
    """Where a matrix stands: its parameter's `name`, how many numbers enter a unit (`fan_in`) and how many units there are that
    each input reaches (`fan_out`), its `role`, and how many `branches` add up on the way through the whole model.

    ``embedding`` and ``head`` are tables with a row for each token; ``branch_output`` is the matrix by which a residual branch
    adds to the stream.
    """

    name: str
    fan_in: int
    fan_out: int
    role: Role = "matrix"
    branches: int = 1

    @property
    def table(self) -> bool:
        """A row for each token: what enters is one token, so that the fans say nothing."""
        return self.role in ("embedding", "head")


class Initializer(Part):
    """A distribution of fresh weights."""

    by_matrix: ClassVar[bool] = False  # matrices that are stored as one are filled one by one: the fill looks at their outputs

    def fill(self, weight: Tensor, place: Place, random: torch.Generator) -> None:
        """Overwrite `weight` (outputs, inputs, …) in place, drawing from `random` only."""
        raise NotImplementedError
