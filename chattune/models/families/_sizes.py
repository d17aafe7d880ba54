"""Numbers that follow from a width, for the families that have a dial."""

from __future__ import annotations

from typing import Any


def head_size(width: int) -> int:
    """The largest even head size up to 64 that divides the width."""
    return next(head for head in range(min(64, width), 0, -1) if width % head == 0 and head % 2 == 0)


def power_of_two(number: int) -> int:
    """The next power of two, or the number itself."""
    return 1 << (number - 1).bit_length()


def recommended(width: int, per_width: int = 16, rate: float = 0.5) -> dict[str, Any]:
    """What suits a width in other sections: a vocabulary and a batch of `per_width` tokens for each number, a rate in AdamW's scale."""
    return {
        "prepare.vocabulary_at_most": max(512, per_width * width),
        "train.batch_tokens": power_of_two(per_width * width),
        "train.optimizer.lr": float(f"{rate / width:.2g}"),
    }
