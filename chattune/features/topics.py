"""Topics: clusters of texts by their embeddings, each named by the words that stand out in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, islice

import numpy as np

from chattune.core.seeds import generator
from chattune.features.little_words import LITTLE
from chattune.features.words import chosen, splitter

LEARNT_FROM = 20_000  # rows that the centres are sought among
_ROUNDS = 30
_NAMED_BY = 3  # words


def clusters(rows: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Centres (k, d) of at most `count` clusters, and (n,) the number of the nearest one for each row. No cluster is empty.

    k-means from a k-means++ start (Arthur & Vassilvitskii 2007), the centres learnt from 20,000 rows at the most.
    """
    random = generator(seed, "clusters")
    some = rows if len(rows) <= LEARNT_FROM else rows[np.sort(random.choice(len(rows), LEARNT_FROM, replace=False))]
    different = np.unique(some, axis=0).astype(np.float64)
    centres = different if len(different) <= count else _means(some.astype(np.float64), count, random)
    nearest = _nearest(rows, centres)
    used, numbers = np.unique(nearest, return_inverse=True)
    return centres[used], numbers


def names(texts: Iterable[str], numbers: Sequence[int] | np.ndarray, least: int = 2) -> list[str]:
    """A name for each cluster: the words that are more frequent in it than elsewhere, of those that at least `least` of its texts hold.

    A word weighs (share among the cluster's words) · ln(1 + clusters' mean words / its count). Equal names get a number.
    Source: class-based tf-idf, Grootendorst 2022, arXiv:2203.05794.
    """
    texts = iter(texts)
    first = [*islice(texts, 5000)]
    split = splitter(chosen("auto", first))
    counts: list[Counter[str]] = [Counter() for _ in range(int(max(numbers, default=-1)) + 1)]
    for text, number in zip(chain(first, texts), numbers, strict=True):
        counts[int(number)].update({word for word in split(text) if len(word) > 1 and not word.isdigit() and word not in LITTLE})
    everywhere: Counter[str] = sum(counts, Counter())
    mean = everywhere.total() / max(1, len(counts))
    found: list[str] = []
    for own in counts:
        weight = {w: n / own.total() * math.log(1 + mean / everywhere[w]) for w, n in own.items() if n >= least}
        best = sorted(weight, key=lambda word: (-weight[word], word))[:_NAMED_BY]
        name = ", ".join(best) or "other"
        found.append(name if name not in found else f"{name} ({sum(other.startswith(name) for other in found) + 1})")
    return found


def _means(rows: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Lloyd's rounds until no row changes its cluster; a centre that lost all its rows stays where it was."""
    centres = _spread(rows, count, random)
    before = np.full(len(rows), -1)
    for _ in range(_ROUNDS):
        nearest = _nearest(rows, centres)
        if np.array_equal(nearest, before):
            break
        before, sizes, sums = nearest, np.bincount(nearest, minlength=count), np.zeros_like(centres)
        np.add.at(sums, nearest, rows)
        centres[sizes > 0] = sums[sizes > 0] / sizes[sizes > 0, None]
    return centres


def _spread(rows: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """k-means++: each further centre is a row drawn with a probability proportional to its squared distance from those before."""
    centres = [rows[random.integers(len(rows))]]
    distance = ((rows - centres[0]) ** 2).sum(1)
    while len(centres) < count:
        centres.append(rows[random.choice(len(rows), p=distance / distance.sum())])
        distance = np.minimum(distance, ((rows - centres[-1]) ** 2).sum(1))
    return np.array(centres)


def _nearest(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    half = (centres**2).sum(1) / 2
    blocks = [(rows[first : first + 8192] @ centres.T - half).argmax(1) for first in range(0, len(rows), 8192)]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.int64)
