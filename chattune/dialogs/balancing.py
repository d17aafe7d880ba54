"""Balancing: from weights to how often each dialog is there, as near to them as whole numbers can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chattune.core.errors import DataError
from chattune.dialogs.dialog import Dialog


def times(weights: np.ndarray, size: int, most: int | None, random: np.random.Generator) -> np.ndarray:
    """(n,) int64: how often each dialog is there, `size` in all, each at most `most` times; proportional to `weights`.

    Systematic resampling (Madow 1949): each count is its expectation rounded up or down, so that groups of dialogs come to their
    shares within one. What would be beyond `most` goes to the others by their weights.
    """
    if len(weights) == 0 or not np.all(np.isfinite(weights)) or weights.min() < 0 or not weights.any():
        raise AssertionError("a balancer gives finite weights from 0, not all 0")
    usable = int((weights > 0).sum())
    if most is not None and most * usable < size:
        raise DataError(
            f"{usable} training dialogs, each at most {most} times, cannot make {size}.", path="balance.repeat", value=most,
            rule=f"size ≤ {most * usable}", hint="Raise balance.repeat or lower balance.size.",
        )
    wanted = _capped(weights.astype(np.float64), size, most)
    # In a random order, so that which of equal neighbours is rounded up depends on the seed and not on the file.
    order = random.permutation(len(weights))
    edges = np.concatenate([[0.0], np.cumsum(wanted[order])]) * (size / wanted.sum())
    edges[-1] = size
    start = random.random()
    counts = np.diff(np.floor(edges + start).astype(np.int64))
    found = np.empty(len(weights), np.int64)
    found[order] = counts
    return found


def _capped(weights: np.ndarray, size: int, most: int | None) -> np.ndarray:
    """Expected counts with the sum `size`, none above `most`."""
    wanted = weights * (size / weights.sum())
    if most is None:
        return wanted
    full = np.zeros(len(weights), bool)
    while (over := (wanted > most) & ~full).any():
        full |= over
        left = size - most * int(full.sum())
        rest = weights * ~full
        wanted = np.where(full, float(most), rest * (left / rest.sum()) if rest.any() else 0.0)
    return wanted


def again(dialog: Dialog, number: int) -> Dialog:
    """The dialog for the `number`-th time, from 0, with an id of its own."""
    return dialog if number == 0 else replace(dialog, id=f"{dialog.id}~again{number}")


def kinds(dialogs: Sequence[Dialog], often: np.ndarray) -> dict[str, dict[str, int]]:
    """Dialogs of each source before and after."""
    before, after = Counter[str](), Counter[str]()
    for dialog, count in zip(dialogs, often.tolist(), strict=True):
        before[dialog.source] += 1
        after[dialog.source] += count
    return {source: {"before": before[source], "after": after[source]} for source in sorted(before)}


def shares(labels: Sequence[Any], temperature: float) -> np.ndarray:
    """(n,) weights under which label i comes with a probability proportional to its count to the power of 1/`temperature`.

    1: as it is; ∞: every label equally often. Source: temperature mixing, Arivazhagan et al. 2019, arXiv:1907.05019.
    """
    count = Counter(labels)
    return np.array([count[label] ** (1.0 / temperature) / count[label] for label in labels], np.float64)
