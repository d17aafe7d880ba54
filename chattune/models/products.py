"""How fast this processor multiplies matrices in other numbers than float32: a fraction of a second to ask, minutes if one tries."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from chattune.models.int8 import int8_product


@cache
def int8_gain(size: int = 512) -> float:
    """How many times as fast as in float32 two square matrices are multiplied in int8, rounding them included, by what training
    uses here: below 1 where there is neither VNNI nor the compiled product."""
    real = torch.ones(size, size)
    return _float32(size) / _seconds(lambda: int8_product(real, real))


@cache
def bfloat16_gain(size: int = 512) -> float:
    """How many times as fast as in float32 two square matrices are multiplied in bfloat16: far below 1 without AVX-512."""
    half = torch.ones(size, size, dtype=torch.bfloat16)
    return _float32(size) / _seconds(lambda: torch.mm(half, half))


def _float32(size: int) -> float:
    real = torch.ones(size, size)
    return _seconds(lambda: torch.mm(real, real))


def _seconds(product: Callable[[], Tensor]) -> float:
    """The best of three, after one that warms up."""
    times = []
    for _ in range(4):
        began = time.perf_counter()
        product()
        times.append(time.perf_counter() - began)
    return min(times[1:])
