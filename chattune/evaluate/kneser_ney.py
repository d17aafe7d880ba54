"""Interpolated modified Kneser-Ney: the n-gram model that any neural model must beat. Knows token ids only, and no torch.

An n-gram is stored by order as one sorted array of keys ``context * vocabulary + token``, where `context` is the number of
the n-gram that stands before the token one order below. So every table is a few flat arrays, and training, scoring and
sampling are sorts and binary searches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class _Table:
    """All n-grams of one order k: number g of an n-gram is its place in `keys`.

    `keys`: (grams,) sorted; `kept`: (grams,) discounted count over the context's total: the part that is not given away;
    `rest`: (contexts,) share that each context gives to the order below, 1 where the context was never followed by a target.
    """

    keys: Array
    kept: Array
    rest: Array
    discounts: tuple[float, float, float]


class KneserNey:
    """A distribution over the next token given at most ``order - 1`` tokens before it, within one dialog.

    `ids`: (tokens,) int; dialog i is ``ids[offsets[i]:offsets[i+1]]``; `targets`: (tokens,) bool, the tokens that are
    predicted: only they are counted, while every token may stand in a context. The first token of a dialog
    (``<|begin|>``) is a context only. Probabilities over the `vocabulary` sum to one after every context.

    Discounts: one set of three for each order, from the counts of counts n1…n4. Lower orders count distinct left
    neighbours; an n-gram at the start of a dialog has none, so there its occurrences count.
    Source: Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 3; the unigram
    is interpolated with the uniform distribution.
    """

    def __init__(self, ids: Array, offsets: Array, targets: Array, vocabulary: int, order: int = 5) -> None:
        ids = np.asarray(ids).astype(np.int64)
        place = _places(offsets)
        targets = np.asarray(targets, dtype=bool) & (place > 0)
        self.vocabulary, self.order = vocabulary, order
        types: list[Array] = []
        numbers = [np.zeros(len(ids), dtype=np.int64)]  # the empty n-gram, number 0, stands before every token
        for k in range(1, order + 1):
            keys, number = _number(np.roll(numbers[-1], 1) * vocabulary + ids, place >= k - 1)
            types.append(keys)
            numbers.append(number)
        counts = np.bincount(numbers[order][targets & (numbers[order] >= 0)], minlength=len(types[-1]))
        tables = [_table(types[-1], counts, _contexts(types, order), vocabulary)]
        for k in range(order - 1, 0, -1):
            longer, shorter = numbers[k + 1], numbers[k]
            suffix = np.zeros(len(counts), dtype=np.int64)
            suffix[longer[longer >= 0]] = shorter[longer >= 0]  # all occurrences of an n-gram end with the same shorter one
            neighbours = np.bincount(suffix[counts > 0], minlength=len(types[k - 1]))
            starts = np.bincount(shorter[targets & (place == k - 1)], minlength=len(types[k - 1]))
            counts = neighbours + starts
            tables.append(_table(types[k - 1], counts, _contexts(types, k), vocabulary))
        self.tables = tables[::-1]

    @property
    def discounts(self) -> list[tuple[float, float, float]]:
        """What is taken from counts of one, two, and three or more, for each order from 1."""
        return [table.discounts for table in self.tables]

    def log_probabilities(self, ids: Array, offsets: Array) -> Array:
        """(tokens,) natural logarithm of each token's probability after those before it in its dialog.

        The first token of a dialog has no context and is never a target; its entry is the unigram's.
        """
        ids = np.asarray(ids).astype(np.int64)
        place = _places(offsets)
        probability = np.full(len(ids), 1.0 / self.vocabulary)
        before = np.zeros(len(ids), dtype=np.int64)
        for k, table in enumerate(self.tables, start=1):
            context = before if k == 1 else np.where(place >= k - 1, np.roll(before, 1), -1)
            found = _find(table.keys, np.where(context >= 0, context * self.vocabulary + ids, -1))
            probability = probability * _at(table.rest, context, 1.0) + _at(table.kept, found, 0.0)
            before = found
        logarithms: Array = np.log(probability)
        return logarithms

    def distribution(self, context: Sequence[int] | Array) -> Array:
        """(vocabulary,) probabilities of the next token after `context`, a dialog from its start or any tail of one."""
        probability = np.full(self.vocabulary, 1.0 / self.vocabulary)
        context = np.asarray(context[max(0, len(context) - self.order + 1) :], dtype=np.int64)
        for k, table in enumerate(self.tables, start=1):
            number = self._number_of(context[len(context) - k + 1 :]) if k - 1 <= len(context) else -1
            if number < 0:
                break
            low, high = np.searchsorted(table.keys, (number * self.vocabulary, (number + 1) * self.vocabulary))
            probability *= table.rest[number]
            probability[table.keys[low:high] - number * self.vocabulary] += table.kept[low:high]
        return probability

    def _number_of(self, gram: Array) -> int:
        number = 0
        for table, token in zip(self.tables, gram, strict=False):
            number = int(_find(table.keys, np.array([number * self.vocabulary + token]))[0])
            if number < 0:
                return -1
        return number


def _places(offsets: Array) -> Array:
    """(tokens,) place of each token in its dialog, from 0."""
    offsets = np.asarray(offsets, dtype=np.int64)
    lengths = np.diff(offsets)
    places: Array = np.arange(offsets[-1] - offsets[0]) - np.repeat(offsets[:-1] - offsets[0], lengths)
    return places


def _contexts(types: list[Array], order: int) -> int:
    return len(types[order - 2]) if order > 1 else 1


def _number(keys: Array, usable: Array) -> tuple[Array, Array]:
    """Sorted distinct keys, and for each place the number of its key, -1 where not `usable`."""
    distinct, inverse = np.unique(keys[usable], return_inverse=True)
    number = np.full(len(keys), -1, dtype=np.int64)
    number[usable] = inverse
    return distinct, number


def _find(keys: Array, wanted: Array) -> Array:
    """Place of each wanted key in sorted `keys`, or -1."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def _at(values: Array, places: Array, otherwise: float) -> Array:
    found = np.full(len(places), otherwise)
    found[places >= 0] = values[places[places >= 0]]
    return found


def _table(keys: Array, counts: Array, contexts: int, vocabulary: int) -> _Table:
    discounts = _discounts(counts)
    context = keys // vocabulary
    taken = np.array((0.0, *discounts))[np.minimum(counts, 3)]
    total = np.bincount(context, weights=counts, minlength=contexts)
    given = np.bincount(context, weights=taken, minlength=contexts)
    safe = np.maximum(total, 1.0)
    return _Table(keys, (counts - taken) / safe[context], np.where(total > 0, given / safe, 1.0), discounts)


def _discounts(counts: Array) -> tuple[float, float, float]:
    """What Chen & Goodman take from counts of one, two and three or more, from the numbers of such counts.

    Tables too small for the estimate (some n1…n4 is zero, or the estimate leaves [0, count]) use 0.5, 1 and 1.5.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == c)) for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return 0.5, 1.0, 1.5
    share = n1 / (n1 + 2 * n2)
    estimates = (1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3)
    usual = (0.5, 1.0, 1.5)
    one, two, three = (e if 0 < e <= c else u for e, c, u in zip(estimates, (1, 2, 3), usual, strict=True))
    return one, two, three
