"""Patterns over the names of a model's parameters and maps, as `train.freeze` and an adapter's `targets` take them.

A pattern (``*`` and ``?`` as in file names) means what bears that name, or whose last words do, and everything inside it:
``embedding``, ``blocks.0``, ``blocks.*.attention``, ``q_proj``. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from chattune.core.errors import SettingError, did_you_mean


def meant(pattern: str, name: str) -> bool:
    """Whether `pattern` means the thing called `name` (dotted), or something that it is inside of."""
    words = name.split(".")
    places = (".".join(words[:count]) for count in range(1, len(words) + 1))
    return any(fnmatchcase(place, pattern) or fnmatchcase(place, f"*.{pattern}") for place in places)


def refuse_unused(patterns: Iterable[str], names: Sequence[str], path: str) -> None:
    """`SettingError` for the first pattern that means none of `names`."""
    for pattern in patterns:
        if not any(meant(pattern, name) for name in names):
            words = sorted({word for name in names for word in name.split(".") if not word.isdecimal()})
            raise SettingError(
                f"no part of the model is called '{pattern}'.", path=path, value=pattern,
                rule="a name or a pattern that means something",
                hint=did_you_mean(pattern.strip("*.").rpartition(".")[2], words) or f"There are: {', '.join(words)}.",
            )
