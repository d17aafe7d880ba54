"""distinct-n: how many different n-grams a model says, with an interval that duplicates cannot bend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chattune.core.part import setting
from chattune.evaluate import bootstrap, words
from chattune.evaluate.metrics import Item, Metric, Score


class Distinct(Metric):
    """What distinct-1 and distinct-2 share."""

    word: words.Choice = setting("auto", "what a word is; auto: jieba for mostly Chinese references, else runs of letters and digits")

    @property
    def needs_reference(self) -> bool:
        return False

    def of_order(self, order: int, items: Sequence[Item], seed: int) -> Score:
        choice = words.chosen(self.word, (item.reference for item in items))
        split = words.splitter(choice)
        said = [split(item.reply) for item in items]
        grams = [list(zip(*(tokens[start:] for start in range(order)), strict=False)) for tokens in said]
        per_item = tuple(len(set(g)) / len(g) if g else 0.0 for g in grams)
        by_name: dict[str, list[tuple[str, ...]]] = {}
        for item, own in zip(items, grams, strict=True):
            by_name.setdefault(item.conversation, []).extend(own)
        value, low, high = distinct([by_name[name] for name in sorted(by_name)], seed)
        return Score(value, low, high, per_item, f"{order}-grams of words: {choice}; all replies together")


def distinct(conversations: Sequence[Sequence[tuple[str, ...]]], seed: int) -> tuple[float, float, float]:
    """Different n-grams over all n-grams, with a 95 % interval over conversations.

    Drawing conversations with replacement repeats some of them and would make every text look less diverse than it is. So
    the bootstrap draws the influence that each conversation has on the value (its delete-one jackknife), which is
    centred on the value. Source: Efron & Tibshirani 1993, chapter 11.
    """
    sizes = np.array([len(grams) for grams in conversations], dtype=np.float64)
    total = sizes.sum()
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
    _, low, high = bootstrap.interval(
        np.stack((influence, np.ones(len(sizes))), axis=1), lambda totals: value + bootstrap.ratio(totals), seed
    )
    return value, max(low, 0.0), min(high, 1.0)
