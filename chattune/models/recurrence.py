"""The steps of RNN and GRU along packed sequences, with their gradients written out.

torch's own kernels multiply the weight's gradient out at every step, and for packed sequences also that of what enters; here each is
one product at the end, several times faster on a processor. (Its LSTM has a fused cell and is used as it is.)

Legend: n tokens of s sequences in the order of `Sequences`; a step's tokens stand side by side, so the tokens before them are the
first rows of the step before.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rnn(x: Tensor, matrix: Tensor, start: Tensor, sizes: Tensor) -> Tensor:
    """(n, width) states ``h = tanh(x + U h')``; `x`: (n, width) what enters; `start`: (s, width); `sizes`: (longest,)."""
    states: Tensor = _RNN.apply(x, matrix, start, sizes.tolist())  # type: ignore[no-untyped-call]
    return states


def gru(x: Tensor, matrix: Tensor, bias: Tensor, start: Tensor, sizes: Tensor) -> Tensor:
    """(n, width) states ``h = (1 − z) m + z h'``, ``m = tanh(x₃ + r (U₃ h' + b))``, ``r, z = σ(x₁ + U₁ h'), σ(x₂ + U₂ h')``.

    `x`: (n, 3·width) what enters; `matrix`: (3·width, width) U; `bias`: (width,) b; `start`: (s, width); `sizes`: (longest,).
    """
    states: Tensor = _GRU.apply(x, matrix, bias, start, sizes.tolist())  # type: ignore[no-untyped-call]
    return states


def final(states: Tensor, sizes: Tensor) -> Tensor:
    """(s, …) of (n, …) `states`: each sequence's last one."""
    number = torch.arange(int(sizes[0]) if len(sizes) else 0)
    length = (sizes > number[:, None]).sum(1)
    return states.index_select(0, ((sizes.cumsum(0) - sizes)[length - 1] + number).to(states.device))


def _spans(sizes: list[int]) -> list[tuple[int, int]]:
    """First and past-the-last token of each step."""
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return list(pairwise(ends))


def _before(states: Tensor, start: Tensor, sizes: list[int]) -> Tensor:
    """(n, width): the state before each token."""
    spans = _spans(sizes)
    return torch.cat([start, *(states[first : first + size] for (first, _), size in zip(spans, sizes[1:], strict=False))])


def _arriving(gradient: Tensor, later: Tensor | None) -> Tensor:
    """A step's gradient, plus what comes from the next step, which has the same sequences or fewer."""
    if later is None:
        return gradient
    if len(later) == len(gradient):
        return gradient + later
    total = gradient.clone()
    total[: len(later)] += later
    return total


class _RNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, start: Tensor, sizes: list[int]) -> Tensor:
        states, turned, h = torch.empty_like(x), matrix.t(), start
        for first, last in _spans(sizes):
            h = torch.addmm(x[first:last], h[: last - first], turned, out=states[first:last]).tanh_()
        ctx.save_for_backward(states, matrix, start)
        ctx.sizes = sizes
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        states, matrix, start = ctx.saved_tensors
        for_x, later = torch.empty_like(states), None
        for first, last in reversed(_spans(ctx.sizes)):
            arriving = _arriving(gradient[first:last], later)
            torch.ops.aten.tanh_backward.grad_input(arriving, states[first:last], grad_input=for_x[first:last])
            later = for_x[first:last] @ matrix
        return for_x, for_x.t() @ _before(states, start, ctx.sizes), _or_zeros(later, start), None


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, bias: Tensor, start: Tensor, sizes: list[int]) -> Tensor:
        width = start.shape[1]
        gates, recalled, new, states = (x.new_empty(len(x), count * width) for count in (2, 1, 1, 1))
        turned, h = matrix.t(), start
        for first, last in _spans(sizes):
            h = h[: last - first]
            back, now, own = h @ turned, x[first:last], slice(first, last)
            gate = torch.add(now[:, : 2 * width], back[:, : 2 * width], out=gates[own]).sigmoid_()
            again = torch.add(back[:, 2 * width :], bias, out=recalled[own])
            m = torch.addcmul(now[:, 2 * width :], gate[:, :width], again, out=new[own]).tanh_()
            h = torch.lerp(m, h, gate[:, width:], out=states[own])
        ctx.save_for_backward(gates, recalled, new, states, matrix, start)
        ctx.sizes = sizes
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        gates, recalled, new, states, matrix, start = ctx.saved_tensors
        width, before, later = start.shape[1], _before(states, start, ctx.sizes), None
        for_net = states.new_empty(len(states), 3 * width)  # of U h': both gates, and the new state's part inside the reset gate
        for_new = torch.empty_like(states)
        for first, last in reversed(_spans(ctx.sizes)):
            own = slice(first, last)
            arriving = _arriving(gradient[own], later)
            r, z = gates[own].split(width, 1)
            m, net, inner = new[own], for_net[own], for_new[own]
            torch.ops.aten.tanh_backward.grad_input(arriving - arriving * z, m, grad_input=inner)
            torch.mul(inner, recalled[own], out=net[:, :width])
            torch.mul(arriving, before[own] - m, out=net[:, width : 2 * width])
            both = net[:, : 2 * width]
            torch.ops.aten.sigmoid_backward.grad_input(both, gates[own], grad_input=both)
            torch.mul(inner, r, out=net[:, 2 * width :])
            later = torch.addmm(arriving * z, net, matrix)
        for_x = torch.cat([for_net[:, : 2 * width], for_new], 1)
        return for_x, for_net.t() @ before, for_net[:, 2 * width :].sum(0), _or_zeros(later, start), None


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient
