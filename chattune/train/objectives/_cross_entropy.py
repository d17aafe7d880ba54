"""Cross-entropy of a linear head without ever holding all logits: loss and gradients are computed piece by piece."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_PIECE = 1 << 21  # logits held at once (8 MiB in float32): more leave the cache
_ROWS = 256  # but so many positions at least: the gradient of the table is read and written once for each piece


def linear_cross_entropy(hidden: Tensor, matrix: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """``Σ wᵢ·nllᵢ / Σ wᵢ`` for logits ``hidden · matrixᵀ``, and the plain nll of each position (no gradient flows from it).

    `hidden`: (n, width); `matrix`: (vocabulary, width); `targets`: (n,) ids; `weights`: (n,) float32. The loss is float32, or
    float64 where `hidden` is.
    """
    loss, nll = _LinearCrossEntropy.apply(hidden, matrix, targets, weights)  # type: ignore[no-untyped-call]
    return loss, nll


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, matrix: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        share = weights.to(wide) / weights.to(wide).sum()
        nll = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        for_hidden = torch.empty_like(hidden) if hidden.requires_grad else None
        # A frozen head needs no gradient of the size of its table.
        for_matrix = torch.zeros(matrix.shape, dtype=wide, device=matrix.device) if matrix.requires_grad else None
        rows = max(_ROWS, _PIECE // matrix.shape[0])
        for first in range(0, len(hidden), rows):
            piece, own = hidden[first : first + rows], targets[first : first + rows, None]
            logits = torch.log_softmax((piece @ matrix.t()).to(wide), dim=-1)
            nll[first : first + rows] = -logits.gather(1, own).squeeze(1)
            if for_hidden is None and for_matrix is None:
                continue
            # d nll / d logits = softmax − one-hot, times the position's share of the loss
            gradient = logits.exp_().scatter_add_(1, own, logits.new_full((1, 1), -1.0).expand_as(own))
            gradient = gradient.mul_(share[first : first + rows, None]).to(hidden.dtype)
            if for_hidden is not None:
                torch.mm(gradient, matrix, out=for_hidden[first : first + rows])
            if for_matrix is not None and hidden.dtype == wide:
                for_matrix.addmm_(gradient.t(), piece)
            elif for_matrix is not None:
                for_matrix += gradient.t() @ piece
        ctx.save_for_backward(for_hidden, for_matrix)
        ctx.matrix_dtype = matrix.dtype
        ctx.mark_non_differentiable(nll)
        return (share * nll).sum(), nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        for_hidden, for_matrix = ctx.saved_tensors
        return (
            None if for_hidden is None else for_hidden * gradient.to(for_hidden.dtype),
            None if for_matrix is None else (for_matrix * gradient).to(ctx.matrix_dtype), None, None,
        )  # fmt: skip
