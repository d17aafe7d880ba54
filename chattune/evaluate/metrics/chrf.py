"""chrF by sacrebleu, with a bootstrap over its sufficient statistics."""

from __future__ import annotations

from collections.abc import Sequence

from chattune.core.part import setting
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

        from chattune.evaluate import bootstrap, overlap

        judge = chrf.CHRF(char_order=self.characters, word_order=self.word_order, beta=self.beta)
        judge.num_refs = 1
        note = str(judge.get_signature())
        if not items:
            return Score(0.0, 0.0, 0.0, note=note)
        rows = judge._extract_corpus_statistics([item.reply for item in items], [[item.reference for item in items]])
        sums = bootstrap.by_conversation([item.conversation for item in items], rows)
        interval = bootstrap.interval(sums, lambda totals: overlap.chrf(totals, self.beta), seed)
        return Score(*interval, tuple(overlap.chrf(rows, self.beta).tolist()), note)
