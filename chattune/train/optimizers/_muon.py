"""The torch side of Muon: orthogonalised momentum for hidden matrices, AdamW for everything else, in one optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

NEAR = 0.1  # how far from 1 singular values may end


class MuonWithAdamW(torch.optim.Optimizer):
    """Groups with ``"muon": True`` hold matrices and take orthogonal steps; the others take AdamW's.

    Muon's groups: ``lr, momentum, weight_decay, iterations`` and, for each parameter, ``splits``: the row counts of the matrices
    that it holds one above the other (queries, keys, values), each of which is orthogonalised by itself. AdamW's groups: ``lr,
    betas, eps, weight_decay``. All state belongs to a parameter, so that it is stored and restored as any optimizer's.
    """

    _step_supports_amp_scaling = True  # torch's word for: `found_inf`, where set, tells on the device to leave this step out

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        self.found_inf: Tensor | None = None  # 1.0 where the gradient is no number

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; parameters without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._orthogonal_step if group["muon"] else self._adamw_step)(group, parameters)
        return loss

    def _orthogonal_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [_gradient(p) for p in parameters]
        splits = dict(zip(group["params"], group.get("splits", ()), strict=False))
        averages = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in parameters]
        keep: Any = 1.0
        if self.found_inf is not None:  # where the step is left out, the average meets itself and every change is times 0
            keep, left_out = 1.0 - self.found_inf, self.found_inf.bool()
            gradients = [torch.where(left_out, average, gradient) for average, gradient in zip(averages, gradients, strict=True)]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, averages, group["momentum"])  # Nesterov: one more look ahead
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"] * keep)
        together: dict[Any, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        divided: list[tuple[Tensor, Tensor]] = []
        for parameter, direction in zip(parameters, directions, strict=True):
            rows = list(splits.get(parameter) or parameter.shape[:1])
            target, direction = _in_one_piece(parameter, direction)
            divided += [(parameter, target)] if target is not parameter else []
            parts = zip(torch.split(target, rows), torch.split(direction, rows), strict=True)
            for weight, part in parts:  # views: adding to them changes the parameter
                # On a processor one matrix at a time is a tenth faster; a GPU wants all of one shape at once.
                together[weight.shape if weight.is_cuda else len(together)].append((weight, part))
        for pairs in together.values():
            height, width = pairs[0][0].shape
            steps = orthogonalised(torch.stack([part for _, part in pairs]), group["iterations"])
            rate = group["lr"] * max(1.0, height / width) ** 0.5  # equal change of the output's RMS for tall and wide
            steps = steps.to(pairs[0][0].dtype) if self.found_inf is None else steps.to(pairs[0][0].dtype) * keep
            torch._foreach_add_([weight for weight, _ in pairs], list(steps.unbind()), alpha=-rate)
        for parameter, change in divided:
            parameter.add_(_divided_like(change, parameter))

    def _adamw_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in parameters]
        adamw(
            parameters, [_gradient(p) for p in parameters], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [],
            [s["step"] for s in states], fused=True, amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1],
            lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False, found_inf=self.found_inf,
        )  # fmt: skip


def _in_one_piece(parameter: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """What to add the step to, and the direction as a whole. A weight that is divided over processes (a DTensor) gets zeros to
    collect its step in; every process computes that step, which is cheaper than sending it where matrices are of this size."""
    gather = getattr(direction, "full_tensor", None)
    if gather is None:
        return parameter, direction
    whole: Tensor = gather()
    return torch.zeros_like(whole), whole


def _divided_like(change: Tensor, parameter: Any) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(change, parameter.device_mesh, parameter.placements, src_data_rank=None)


def orthogonalised(matrices: Tensor, iterations: int) -> Tensor:
    """(count, rows, columns) → nearly the U·Vᵀ of each matrix' U·S·Vᵀ, by as many quintic polynomials as `iterations` says.

    For matrices at least 1.5 times as long as wide the iteration runs on their square Gram matrix, which gives the same
    polynomial for fewer multiplications. Float32: on CPUs bfloat16 products of this size were slower (RESULTS.md).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x.float() / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32) + 1e-7)
    alone = len(x) == 1
    x, added = (x[0], torch.addmm) if alone else (x, torch.baddbmm)
    gram = x @ x.mT
    if x.shape[-1] >= 1.5 * x.shape[-2]:
        product: Tensor | None = None
        for left, (a, b, c) in zip(reversed(range(iterations)), polynomials(iterations), strict=True):
            factor = added(gram, gram, gram, beta=b, alpha=c)  # p(G) = a·1 + b·G + c·G²
            factor.diagonal(dim1=-2, dim2=-1).add_(a)
            product = factor if product is None else factor @ product
            if left:
                gram = factor @ (factor @ gram)  # the Gram matrix of p(G)·X; all of these commute
        x = x if product is None else product @ x
    else:
        for left, (a, b, c) in zip(reversed(range(iterations)), polynomials(iterations), strict=True):
            x = added(x, added(gram, gram, gram, beta=b, alpha=c), x, beta=a)
            if left:
                gram = x @ x.mT
    x = x[None] if alone else x
    return x.mT if tall else x


@cache
def polynomials(count: int) -> tuple[tuple[float, float, float], ...]:
    """(a, b, c) of `count` polynomials a·s + b·s³ + c·s⁵ that, one after the other, bring all singular values from some smallest
    one up to 1 as near to 1 as polynomials can. The smallest one is where `NEAR` is just kept: 0.08, 0.02, 0.005 and 0.001 for two
    to five of them; smaller ones grow, but not all the way.

    Source: Amsel et al. 2025, "The Polar Express", arXiv:2505.16932: each is the best approximation on what the one before left.
    """
    low, high = 1e-12, 1.0
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _chain(middle, count)[1] > NEAR else (low, middle)
    return _chain(high, count)[0]


def _chain(smallest: float, count: int) -> tuple[tuple[tuple[float, float, float], ...], float]:
    """The polynomials for singular values from `smallest` to 1, and how far from 1 the last one leaves them."""
    found, low, high, error = [], smallest, 1.0, 1.0 - smallest
    for _ in range(count):
        polynomial, error = _best_quintic(low, high)
        found.append(polynomial)
        low, high = 1.0 - error, 1.0 + error
    return tuple(found), error


def _best_quintic(low: float, high: float) -> tuple[tuple[float, float, float], float]:
    """The odd quintic whose largest distance from 1 between `low` and `high` is least, and that distance (Remez' exchange)."""
    if high - low < 1e-7:  # every polynomial with p(1) = 1, p'(1) = p''(1) = 0
        return (1.875, -1.25, 0.375), 0.0
    inner = [low + (high - low) * share for share in (0.25, 0.75)]
    polynomial, error = (0.0, 0.0, 0.0), 1.0
    for _ in range(100):
        s = np.array([low, *inner, high])
        # The distance is the same at four places and changes its sign from one to the next.
        a, b, c, signed = np.linalg.solve(np.stack([s, s**3, s**5, [1.0, -1.0, 1.0, -1.0]], axis=1), np.ones(4))
        polynomial, before, error = (float(a), float(b), float(c)), error, abs(float(signed))
        root = max(9 * b * b - 20 * a * c, 0.0) ** 0.5  # where a + 3b·s² + 5c·s⁴ = 0
        inner = [max((-3 * b + sign * root) / (10 * c), 0.0) ** 0.5 for sign in (-1, 1)]
        if abs(error - before) <= 1e-13:
            break
    return polynomial, error


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
