"""Intervals by resampling conversations. Everything that is scored here is a function of sums over conversations."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from chattune.core.seeds import generator

Array = np.ndarray

RESAMPLES = 1000
LEVEL = 0.95
_CELLS = 8_000_000  # resampling weights held at once: 64 MB


def interval(sums: Array, statistic: Callable[[Array], Array], seed: int, resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """Value and 95 % percentile interval of a statistic of sums over conversations.

    `sums`: (conversations, quantities), additive; `statistic`: (n, quantities) totals → (n,) values. Conversations are
    drawn with replacement, as many as there are. The interval is widened to hold the value where a skewed statistic of
    very few conversations leaves it; with one conversation it has no width, which says nothing about certainty.
    Source: Efron & Tibshirani 1993, "An introduction to the bootstrap", chapter 13.
    """
    sums = np.asarray(sums, dtype=np.float64)
    count = len(sums)
    if not count:
        return 0.0, 0.0, 0.0
    value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
    random = generator(seed, "bootstrap")
    rows = max(1, _CELLS // count)
    drawn = [
        statistic(_times_drawn(random, min(rows, resamples - start), count) @ sums) for start in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(drawn), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return value, min(float(low), value), max(float(high), value)


def ratio(totals: Array) -> Array:
    """First quantity over the second; 0 where there is nothing to divide by."""
    quotient: Array = np.divide(totals[:, 0], totals[:, 1], out=np.zeros(len(totals)), where=totals[:, 1] > 0)
    return quotient


def mean(conversations: Sequence[Hashable], values: Sequence[float], seed: int) -> tuple[float, float, float]:
    """Mean of one number an item, and its interval over the conversations that the items belong to."""
    rows = np.stack((np.asarray(values, dtype=np.float64), np.ones(len(values))), axis=1)
    return interval(by_conversation(conversations, rows), ratio, seed)


def distinct(conversations: Sequence[Sequence[tuple[str, ...]]], seed: int) -> tuple[float, float, float]:
    """Different n-grams over all n-grams, with a 95 % interval over conversations.

    Drawing conversations with replacement repeats some of them and would make every text look less diverse than it is. So
    the bootstrap draws the influence that each conversation has on the value (its delete-one jackknife), which is
    centred on the value. Source: Efron & Tibshirani 1993, chapter 11.
    """
    sizes = np.array([len(grams) for grams in conversations], dtype=np.float64)
    total = float(sizes.sum())
    if not total:
        return 0.0, 0.0, 0.0
    holders: dict[tuple[str, ...], int] = {}
    for number, grams in enumerate(conversations):
        for gram in set(grams):
            holders[gram] = number if gram not in holders else -1
    alone = np.bincount([number for number in holders.values() if number >= 0], minlength=len(conversations))
    value = len(holders) / total
    if len(conversations) == 1:
        return value, value, value
    rest = total - sizes
    without = np.divide(len(holders) - alone, rest, out=np.full(len(sizes), value), where=rest > 0)
    influence = (len(sizes) - 1) * (without.mean() - without)
    _, low, high = interval(
        np.stack((influence, np.ones(len(sizes))), axis=1), lambda totals: value + ratio(totals), seed
    )
    return value, max(low, 0.0), min(high, 1.0)


def by_conversation(conversations: Sequence[Hashable], rows: Array) -> Array:
    """(conversations, quantities) sums of `rows` (items, quantities) over the items of each conversation, sorted by name.

    Sorting makes every figure that follows independent of the order of the items.
    """
    rows = np.asarray(rows, dtype=np.float64)
    names = {name: place for place, name in enumerate(sorted(set(conversations), key=str))}
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, np.array([names[name] for name in conversations], dtype=np.int64), rows)
    return sums


def _times_drawn(random: np.random.Generator, resamples: int, count: int) -> Array:
    """(resamples, count) how often each conversation was drawn."""
    drawn = random.integers(0, count, size=(resamples, count)) + np.arange(resamples)[:, None] * count
    return np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count).astype(np.float64)
