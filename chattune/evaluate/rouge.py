"""ROUGE over words: F-scores of shared n-grams and of the longest common subsequence, equal to rouge-score's to the bit.

Written out here because it is forty lines, and rouge-score brings nltk and 1.5 s of imports; a test holds them equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from chattune.core.part import setting
from chattune.evaluate.metrics import Item, Metric, Score
from chattune.features import words


class Rouge(Metric):
    """What the ROUGE metrics share: words, the mean over items, and its interval."""

    word: words.Choice = setting("auto", "what a word is; auto: jieba for mostly Chinese references, else runs of letters and digits")

    def compare(self, reference: Sequence[str], reply: Sequence[str]) -> float:
        """F-score of two lists of words, from 0 to 1."""
        raise NotImplementedError

    def score(self, items: Sequence[Item], seed: int = 0) -> Score:
        from chattune.evaluate import bootstrap

        choice = words.chosen(self.word, (item.reference for item in items))
        split = words.splitter(choice)
        values = [self.compare(split(item.reference), split(item.reply)) for item in items]
        interval = bootstrap.mean([item.conversation for item in items], values, seed)
        return Score(*interval, tuple(values), f"F1, words: {choice}, no stemming")


def shared_ngrams(reference: Sequence[str], reply: Sequence[str], order: int) -> float:
    """ROUGE-n: F-score of n-grams, each counted as often as both hold it."""
    wanted, found = _ngrams(reference, order), _ngrams(reply, order)
    common = sum((wanted & found).values())
    return _f_score(common / max(found.total(), 1), common / max(wanted.total(), 1))


def shared_subsequence(reference: Sequence[str], reply: Sequence[str]) -> float:
    """ROUGE-L: F-score of the longest common subsequence."""
    if not reference or not reply:
        return 0.0
    common = longest_common_subsequence(reference, reply)
    return _f_score(common / len(reply), common / len(reference))


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length. Bits of one integer stand for the row of the table (Hyyrö 2004), so a row is one addition."""
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(a)) - 1
    row = every
    for word in b:
        match = row & places.get(word, 0)
        row = (row + match) | (row - match)
    return len(a) - (row & every).bit_count()


def _ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def _f_score(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


