"""Units held down by their strong neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from chattune.core.part import setting
from chattune.models.norms import Norm

if TYPE_CHECKING:
    from torch import nn


class LocalResponseNorm(Norm):
    """a / (k + α·Σ a²)^β, the sum over the n units around: after the activation, without taking a mean away.

    Helps when: an old image network is repeated. Hurts when: used instead of a norm of today: with the published constants it changes
    numbers of order 1 by a factor of about k^−β = 0.59 and little else. Cost: a sliding sum over the units. Start with: the
    constants of AlexNet, n 5, k 2, α 1e-4 (not 10e-4, as sometimes printed: E7), β 0.75.
    Source: Krizhevsky et al. 2012, section 3.3. Their α is not divided by n, as that of torch.nn.LocalResponseNorm is.
    """

    place: ClassVar[Literal["input", "activation"]] = "activation"

    size: int = setting(5, "n: units in the sum, the unit itself in their middle", low=1, high=255)
    k: float = setting(2.0, "added to the sum", above=0.0, high=100.0)
    alpha: float = setting(1e-4, "α: weight of the sum of squares", above=0.0, high=10.0, log=True)
    beta: float = setting(0.75, "β: exponent of the divisor", low=0.0, high=5.0)

    @field_validator("size")
    @classmethod
    def _odd(cls, size: int) -> int:
        if size % 2 == 0:
            raise PydanticCustomError("odd", "must be odd, since the unit stands in the middle")
        return size

    def build(self, width: int) -> nn.Module:
        from chattune.models.norms._local_response import LocalResponse

        return LocalResponse(self)

    def parameters(self, width: int) -> int:
        return 0
