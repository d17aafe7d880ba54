"""chrF by sacrebleu, with a bootstrap over its sufficient statistics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chattune.core.part import setting
from chattune.evaluate import bootstrap
from chattune.evaluate.metrics import Item, Metric, Score


class ChrF(Metric):
    """Character sequences of one to six that reply and reference share, 0 to 100: an F-score that favours recall.

    Helps when: words inflect, spelling wanders, or the language has no spaces: it needs no tokenisation.
    Hurts when: long replies are cheap: recall counts four times as much as precision.
    Cost: milliseconds.   Start with: six characters, no words (chrF++ has word_order 2).
    Source: Popović 2015; sacrebleu's chrF2 (spaces left out, effective order).
    """

    characters: int = setting(6, "longest sequence of characters", low=1, high=12)
    word_order: int = setting(0, "longest sequence of words; 2 is chrF++", low=0, high=4)
    beta: int = setting(2, "weight of recall against precision", low=1, high=5)

    def score(self, items: Sequence[Item], seed: int = 0) -> Score:
        from sacrebleu.metrics import chrf

        judge = chrf.CHRF(char_order=self.characters, word_order=self.word_order, beta=self.beta)
        judge.num_refs = 1
        note = str(judge.get_signature())
        if not items:
            return Score(0.0, 0.0, 0.0, note=note)
        rows = np.array(judge._extract_corpus_statistics([item.reply for item in items], [[item.reference for item in items]]))
        sums = bootstrap.by_conversation([item.conversation for item in items], rows)
        return Score(*bootstrap.interval(sums, self._chrf, seed), tuple(self._chrf(rows)), note)

    def _chrf(self, totals: np.ndarray) -> np.ndarray:
        """(n, 3 * orders) of reply, reference and matching sequences → (n,) chrF."""
        reply, reference, match = totals[:, 0::3], totals[:, 1::3], totals[:, 2::3]
        both = (reply > 0) & (reference > 0)
        orders = np.maximum(both.sum(axis=1), 1)
        precision = np.where(both, match / np.maximum(reply, 1), 0.0).sum(axis=1) / orders
        recall = np.where(both, match / np.maximum(reference, 1), 0.0).sum(axis=1) / orders
        factor = self.beta**2
        below = factor * precision + recall
        score: np.ndarray = np.divide(100 * (1 + factor) * precision * recall, below, out=np.zeros(len(totals)), where=below > 0)
        return score
