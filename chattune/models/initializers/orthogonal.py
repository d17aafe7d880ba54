"""Matrices that turn without stretching."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from chattune.core.part import setting
from chattune.models.initializers import Initializer, Place
from chattune.models.initializers._draw import table

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Orthogonal(Initializer):
    """A random rotation times gain: rows (or, where there are more of them, columns) are orthogonal and of length gain.

    Helps when: a deep linear or tanh stack, or a recurrent matrix, shall keep lengths exactly and not only on average.
    Hurts when: nothing in particular. Cost: one QR decomposition a matrix, once (seconds at widths of thousands).
    Start with: gain 1, √2 for ReLUs. Source: Saxe et al. 2014, arXiv:1312.6120; the signs make the draw uniform over all rotations
    (Mezzadri 2007, arXiv:math-ph/0609050).
    """

    by_matrix: ClassVar[bool] = True

    gain: float = setting(1.0, "length of each row or column", above=0.0, high=100.0, log=True)

    def fill(self, weight: Tensor, place: Place, random: torch.Generator) -> None:
        if place.table:
            table(weight, random)
            return
        import torch

        flat = weight.detach().view(len(weight), -1)
        tall = max(flat.shape), min(flat.shape)
        drawn = torch.empty(tall, dtype=torch.float64).normal_(generator=random)
        q, r = torch.linalg.qr(drawn)
        q = q * r.diagonal().sign() * self.gain
        flat.copy_(q if len(flat) == tall[0] else q.T)
