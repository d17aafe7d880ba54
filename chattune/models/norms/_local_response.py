"""The module of local response normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

if TYPE_CHECKING:
    from chattune.models.norms.local_response_norm import LocalResponseNorm


class LocalResponse(nn.Module):
    """(…, width) → (…, width)."""

    def __init__(self, norm: LocalResponseNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        squares = x.square().reshape(-1, 1, x.shape[-1])
        mean = F.avg_pool1d(squares, norm.size, stride=1, padding=norm.size // 2)  # padding counts: the divisor is always `size`
        return x / (norm.k + norm.alpha * norm.size * mean.view_as(x)) ** norm.beta
