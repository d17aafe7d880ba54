"""Balancing: from weights to how often each dialog is there, as near to them as whole numbers can be."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from chattune.core.errors import DataError
from chattune.dialogs.dialog import Dialog

if TYPE_CHECKING:
    from chattune.features.embedding import Choice

TOLD = 100  # kinds at the most
_READ = 2000  # characters of what a user said that a dialog is placed by
_TOGETHER = 4096  # texts encoded at once


def times(
    weights: np.ndarray, size: int, most: int | None, random: np.random.Generator, kinds: Sequence[str] | None = None
) -> np.ndarray:
    """(n,) int64: how often each dialog is there, `size` in all, each at most `most` times; proportional to `weights`.

    Systematic resampling (Madow 1949): each count is its expectation rounded up or down, and so is the count of each kind where `kinds`
    are told. What would be beyond `most` goes to the others by their weights.
    """
    if len(weights) == 0 or not np.all(np.isfinite(weights)) or weights.min() < 0 or not weights.any():
        raise AssertionError("a balancer gives finite weights from 0, not all 0")
    usable = int((weights > 0).sum())
    if most is not None and most * usable < size:
        raise DataError(
            f"{usable} training dialogs, each at most {most} times, cannot make {size}.", path="balance.repeat", value=most,
            rule=f"size ≤ {most * usable}", hint="Raise balance.repeat or lower balance.size.",
        )
    wanted, full = _capped(weights.astype(np.float64), size, most)
    # Kind by kind, and within one in a random order, so that which of equal neighbours is rounded up depends on the seed and not on
    # the file.
    number = np.unique(np.asarray(kinds), return_inverse=True)[1] if kinds is not None else np.zeros(len(weights), np.int64)
    order = np.lexsort((random.permutation(len(weights)), number))
    found = np.where(full, most or 0, 0).astype(np.int64)
    left = size - int(found.sum())
    edges = np.concatenate([[0.0], np.cumsum(np.where(full, 0.0, wanted)[order])])
    if left:
        edges *= left / edges[-1]
    edges[-1] = left
    start = (int(random.integers(1 << 20)) + 0.5) / (1 << 20)  # away from whole numbers, where rounding errors would decide
    steps: np.ndarray = np.floor(edges + start).astype(np.int64)
    found[order] += steps[1:] - steps[:-1]
    return found


def _capped(weights: np.ndarray, size: int, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Expected counts with the sum `size`, none above `most`; and which of them are at `most` because they would be above."""
    wanted = weights * (size / weights.sum())
    full = np.zeros(len(weights), bool)
    while most is not None and (over := (wanted > most) & ~full).any():
        full |= over
        left = size - most * int(full.sum())
        rest = weights * ~full
        wanted = np.where(full, float(most), rest * (left / rest.sum()) if rest.any() else 0.0)
    return wanted, full


def again(dialog: Dialog, number: int) -> Dialog:
    """The dialog for the `number`-th time, from 0, with an id of its own."""
    return dialog if number == 0 else replace(dialog, id=f"{dialog.id}~again{number}")


def told(kinds: Iterable[str], often: np.ndarray) -> dict[str, Any]:
    """Dialogs of each kind before and after, the commonest kinds first, 100 at the most; and how much more there are of the commonest
    kind than of the rarest (none: a kind is not there any more)."""
    before, after = Counter[str](), Counter[str]()
    for own, count in zip(kinds, often.tolist(), strict=True):
        before[own] += 1
        after[own] += count
    names = sorted(before, key=lambda own: (-before[own], own))
    return {
        "kinds": {own: {"before": before[own], "after": after[own]} for own in names[:TOLD]},
        "further_kinds": max(0, len(names) - TOLD),
        "imbalance": {
            name: max(count.values()) / least if (least := min(count[own] for own in names)) else None
            for name, count in (("before", before), ("after", after))
        },
    }


def shares(labels: Sequence[Any], temperature: float) -> np.ndarray:
    """(n,) weights under which label i comes with a probability proportional to its count to the power of 1/`temperature`.

    1: as it is; ∞: every label equally often. Source: temperature mixing, Arivazhagan et al. 2019, arXiv:1907.05019.
    """
    count = Counter(labels)
    return np.array([count[label] ** (1.0 / temperature) / count[label] for label in labels], np.float64)


def kept(share: float, count: int) -> int:
    """Dialogs that a subset of that share of `count` holds: at least one."""
    return max(1, math.floor(share * count + 0.5))


def asked(dialogs: Iterable[Dialog]) -> Iterator[str]:
    """What the user of each dialog says, its first 2,000 characters."""
    for dialog in dialogs:
        yield "\n".join(message.content for message in dialog.messages if message.role == "user")[:_READ]


def placed(dialogs: Collection[Dialog], encoder: Choice, seed: int) -> np.ndarray:
    """(n, d) float32: where each dialog lies by what its user says. Only these rows, and no texts, are held in memory."""
    from chattune.features.embedding import LEARNT_FROM, fit

    step = max(1, len(dialogs) // LEARNT_FROM)
    embedding = fit([*islice(asked(dialogs), 0, None, step)], size=64, seed=seed, choice=encoder)
    texts = asked(dialogs)
    return np.concatenate([embedding.encode(some) for some in iter(lambda: [*islice(texts, _TOGETHER)], [])])


def topics_of(dialogs: Collection[Dialog], count: int, encoder: Choice, seed: int) -> list[str]:
    """The topic of each dialog: the name of its cluster, of at most `count`."""
    from chattune.features.topics import clusters, names

    _, numbers = clusters(placed(dialogs, encoder, seed), count, seed)
    called = names(asked(dialogs), numbers)
    return [called[number] for number in numbers.tolist()]
