"""The map of LoRA and DoRA: a frozen matrix, and beside it thin factors whose product is added; forward and backward in one.

Legend: n tokens, `in` and `out` numbers, rank r. The matrix' own gradient, which is most of a backward pass after the one of its
input, is never computed; the factors of all pieces of a map share one product with the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from chattune.models.adapters._maps import Map, Piece, plain
from chattune.models.adapters._nf4 import Packed
from chattune.models.layers import Linear, dropout


class LowRank(nn.Module):
    """``x Wᵀ + b + scale · (x Aᵀ) Bᵀ``, with a pair A = ``down`` (r, in), B = ``up`` (rows, r) for each piece of W.

    B begins as zero. W and b keep the names ``weight`` and ``bias`` of the map that this one replaces; with `packed`, W stands in
    4 bits instead.
    """

    def __init__(self, linear: Map, pieces: list[Piece], rank: int, scale: float, drop: float, packed: bool) -> None:
        super().__init__()
        weight, self.bias = linear.weight, linear.bias
        assert isinstance(weight, nn.Parameter)
        if not packed:
            self._parameters["weight"] = weight
        self.packed = Packed.of(weight) if packed else None
        self.pieces, self.scale, self.drop = pieces, scale, drop
        self.down = nn.ParameterList(nn.Parameter(weight.new_empty(rank, weight.shape[1])) for _ in pieces)
        self.up = nn.ParameterList(nn.Parameter(weight.new_zeros(p.stop - p.start, rank)) for p in pieces)

    @property
    def weight(self) -> Tensor:
        """(out, in): the sum, for those who multiply by themselves (torch's recurrent kernels); gradients reach the factors.

        While W is divided over processes nobody can multiply with it, and it is FSDP that asks for the parameter of this name.
        """
        own = self.own()
        if own is not None and hasattr(own, "full_tensor"):
            return own
        return self.matrix() + self.added()

    def own(self) -> Tensor | None:
        """The parameter W; none where it is packed."""
        return self._parameters.get("weight")

    def matrix(self) -> Tensor:
        """(out, in): W alone; unpacked, where it is packed."""
        own = self.own()
        if own is not None:
            return own
        assert self.packed is not None
        return self.packed.plain()

    def added(self) -> Tensor:
        """(out, in): what the factors add to W."""
        sums = self.matrix().new_zeros(self.matrix().shape)
        for piece, down, up in zip(self.pieces, self.down, self.up, strict=True):
            sums[piece.start : piece.stop] = self.scale * (up @ down)
        return sums

    @torch.no_grad()
    def merged(self) -> Linear:
        """The plain map that computes the same; the sum is taken in float64 and rounded once."""
        return plain((self.matrix().double() + self.added().double()).to(self.matrix().dtype), self.bias)

    def detached(self) -> Linear:
        """The plain map without the factors."""
        return plain(self.matrix(), self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.sum_of_both(x, self.bias)

    def sum_of_both(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x (W + scale · B A)ᵀ + bias``."""
        drop = self.drop if self.training else 0.0
        if torch.compiler.is_compiling():
            return self._plainly(x, bias, drop)
        dropped = dropout(x, drop) if drop else None
        result: Tensor = _Sum.apply(x, dropped, self.own(), bias, self, *self.down, *self.up)  # type: ignore[no-untyped-call]
        return result

    def _plainly(self, x: Tensor, bias: Tensor | None, drop: float) -> Tensor:
        inner = dropout(x, drop)
        sums = x.new_zeros(*x.shape[:-1], len(self.matrix()))
        for piece, down, up in zip(self.pieces, self.down, self.up, strict=True):
            sums[..., piece.start : piece.stop] = self.scale * F.linear(F.linear(inner, down), up)
        return F.linear(x, self.matrix(), bias) + sums


class _Sum(torch.autograd.Function):
    """x, x after dropout or none, W or none (packed), b or none, the map, all A, all B → (…, out)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, weight: Tensor | None, bias: Tensor | None, owner: LowRank, *factors: Tensor
    ) -> Tensor:
        pieces, downs, ups = owner.pieces, factors[: len(owner.pieces)], factors[len(owner.pieces) :]
        matrix = owner.matrix() if weight is None else weight
        rows = x.reshape(-1, x.shape[-1])
        read = rows if dropped is None else dropped.reshape(rows.shape)
        result = rows @ matrix.t() if bias is None else torch.addmm(bias, rows, matrix.t())
        inner = (read @ _joined(downs, x).t()).mul_(owner.scale)  # (n, pieces · r)
        for place, (piece, up) in enumerate(zip(pieces, ups, strict=True)):
            result[:, piece.start : piece.stop].addmm_(inner[:, place * up.shape[1] : (place + 1) * up.shape[1]], up.t())
        ctx.owner, ctx.shape, ctx.dropped = owner, x.shape, dropped is not None
        ctx.save_for_backward(read, rows if weight is not None and weight.requires_grad else None, inner, weight, *factors)
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        read, rows, inner, weight, *factors = ctx.saved_tensors
        owner, gradient = ctx.owner, gradient.reshape(-1, gradient.shape[-1])
        pieces, downs, ups = owner.pieces, factors[: len(owner.pieces)], factors[len(owner.pieces) :]
        rank = len(downs[0]) if downs else 0
        thin = torch.empty_like(inner)  # the gradient of x Aᵀ
        for_ups = []
        for place, (piece, up) in enumerate(zip(pieces, ups, strict=True)):
            part = gradient[:, piece.start : piece.stop]
            for_ups.append(part.t() @ inner[:, place * rank : (place + 1) * rank])
            torch.mm(part, up, out=thin[:, place * rank : (place + 1) * rank])
        thin.mul_(owner.scale)
        for_downs = (thin.t() @ read).split(rank) if downs else ()
        for_x = for_dropped = None
        if ctx.needs_input_grad[0]:
            for_x = gradient @ (owner.matrix() if weight is None else weight)
            if not ctx.dropped:
                for_x.addmm_(thin, _joined(downs, read))
            for_x = for_x.view(ctx.shape)
        if ctx.needs_input_grad[1]:
            for_dropped = (thin @ _joined(downs, read)).view(ctx.shape)
        for_weight = gradient.t() @ rows if ctx.needs_input_grad[2] else None
        for_bias = gradient.sum(0) if ctx.needs_input_grad[3] else None
        return (for_x, for_dropped, for_weight, for_bias, None, *for_downs, *for_ups)


def _joined(downs: Sequence[Tensor], like: Tensor) -> Tensor:
    """(pieces · r, in): all A, one above the other; a map that is packed and not adapted has none."""
    return torch.cat(tuple(downs)) if downs else like.new_zeros(0, like.shape[-1])


class Magnitudes(LowRank):
    """DoRA: every row of ``V = W + scale · B A`` brought to a length that is learned: ``x (m/‖V‖ · V)ᵀ + b``.

    ``magnitude`` holds m of each piece, and begins as the lengths of W's rows. The length of V counts as a constant in the
    gradient, as in the paper (its equation 11), which saves a quarter of the memory and changes little.
    """

    def __init__(self, linear: Map, pieces: list[Piece], rank: int, scale: float, drop: float, packed: bool) -> None:
        super().__init__(linear, pieces, rank, scale, drop, packed)
        lengths = torch.linalg.vector_norm(self.matrix().detach(), dim=1)
        self.magnitude = nn.ParameterList(nn.Parameter(lengths[p.start : p.stop].clone()) for p in pieces)

    @property
    def weight(self) -> Tensor:
        return (self.matrix() + self.added()) * self.ratios()[:, None]

    @torch.no_grad()
    def lengths(self) -> list[Tensor]:
        """Of each piece, the lengths (rows) of ``W + scale · B A``, without ever holding the sum of the matrices."""
        matrix, found = self.matrix(), []
        for piece, down, up in zip(self.pieces, self.down, self.up, strict=True):
            rows, thin = matrix[piece.start : piece.stop], self.scale * up
            # ‖w + b A‖² = ‖w‖² + 2 b·(A w) + b (A Aᵀ) b
            cross = (rows @ down.t()).mul_(2.0).addmm_(thin, down @ down.t()).mul_(thin).sum(1)
            found.append((torch.linalg.vector_norm(rows, dim=1).square_() + cross).clamp_min_(0.0).sqrt_())
        return found

    def ratios(self) -> Tensor:
        """(out): m/‖V‖ of the rows that are adapted, 1 of the others."""
        one = self.down[0].new_ones(())
        total, ratios, place = len(self.matrix()), [], 0
        for piece, magnitude, length in zip(self.pieces, self.magnitude, self.lengths(), strict=True):
            ratios += [one.expand(piece.start - place), magnitude / length]
            place = piece.stop
        return torch.cat([*ratios, one.expand(total - place)])

    @torch.no_grad()
    def merged(self) -> Linear:
        both = self.matrix().double() + self.added().double()
        lengths = torch.linalg.vector_norm(both, dim=1)
        for piece, magnitude in zip(self.pieces, self.magnitude, strict=True):
            both[piece.start : piece.stop] *= (magnitude.double() / lengths[piece.start : piece.stop])[:, None]
        return plain(both.to(self.matrix().dtype), self.bias)

    def forward(self, x: Tensor) -> Tensor:
        scaled = self.sum_of_both(x, None) * self.ratios()
        return scaled if self.bias is None else scaled + self.bias
