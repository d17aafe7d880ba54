"""The library of the compiled step, built on first use (`core.native`)."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from chattune.core.native import built

SOURCE = Path(__file__).with_name("step.cpp")


@cache
def library() -> tuple[ctypes.CDLL | None, str]:
    """The compiled step, built if need be, and ``""``; or none and why."""
    return built(SOURCE)
