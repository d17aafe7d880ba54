"""Numbers that follow from a width, for the families that have a dial."""

from __future__ import annotations


def head_size(width: int) -> int:
    """The largest even head size up to 64 that divides the width."""
    return next(head for head in range(min(64, width), 0, -1) if width % head == 0 and head % 2 == 0)


def power_of_two(number: int) -> int:
    """The next power of two, or the number itself."""
    return 1 << (number - 1).bit_length()
