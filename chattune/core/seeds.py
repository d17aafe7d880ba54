"""Randomness as a function: every stream is derived from the run's seed and a path of names and numbers.

Nothing stateful needs saving: the numbers used at step 480 follow from ``(seed, "step", 480)`` whether or not the run was
interrupted before it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def derived(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the stream that `path` names; different paths give independent streams."""
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator for that stream."""
    import numpy as np  # here, so that help and errors come without it

    return np.random.Generator(np.random.Philox(derived(seed, *path)))
