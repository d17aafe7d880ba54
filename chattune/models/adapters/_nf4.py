"""NF4: four bits a weight, in blocks that share a scale. Plain torch, for any device."""

from __future__ import annotations

from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

BLOCK = 64
# The sixteen numbers of NormalFloat4: quantiles of a standard normal, scaled to [−1, 1], with an exact zero.
# Source: Dettmers et al. 2023, arXiv:2305.14314, appendix E.
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_BOUNDARIES = tuple((low + high) / 2 for low, high in pairwise(LEVELS))


class Packed(nn.Module):
    """A matrix in NF4: for each run of 64 weights, in the order of rows, their largest size as float32; 4.5 bits a weight.

    No parameters, and nothing that a checkpoint would hold: packed weights never learn. The scales are kept as the bits of
    float32, so that a conversion of the model to bfloat16 does not round them.
    """

    codes: Tensor  # (⌈weights / 2⌉) uint8; the first of two weights in the high half
    scales: Tensor  # (blocks) int32
    zero: Tensor  # (); bears the dtype that the model computes in

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("codes", torch.empty(0, dtype=torch.uint8), persistent=False)
        self.register_buffer("scales", torch.empty(0, dtype=torch.int32), persistent=False)
        self.register_buffer("zero", torch.zeros((), dtype=dtype), persistent=False)

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Tensor) -> Self:
        """The nearest level for each weight of a (rows, columns) matrix."""
        packed = cls((weight.shape[0], weight.shape[1]), weight.dtype)
        blocks = nn.functional.pad(weight.detach().float().flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
        scales = blocks.abs().amax(1)
        even = blocks / scales.where(scales > 0, 1.0)[:, None]
        codes = torch.bucketize(even.flatten(), torch.tensor(_BOUNDARIES, device=weight.device)).to(torch.uint8).view(-1, 2)
        packed.codes, packed.scales = codes[:, 0] << 4 | codes[:, 1], scales.view(torch.int32)
        packed.zero = torch.zeros((), dtype=weight.dtype, device=weight.device)
        return packed

    @torch.no_grad()
    def plain(self) -> Tensor:
        """(rows, columns): the levels times their scales, in the dtype that the model computes in."""
        levels = torch.tensor(LEVELS, device=self.codes.device)
        pairs = torch.cartesian_prod(levels, levels)  # both weights of a byte at once
        even = pairs.index_select(0, self.codes.int()).view(-1, BLOCK)
        weights = even.mul_(self.scales.view(torch.float32)[:, None]).flatten()
        return weights[: self.shape[0] * self.shape[1]].view(self.shape).to(self.zero.dtype)
