"""ROUGE-1."""

from __future__ import annotations

from collections.abc import Sequence

from chattune.evaluate.rouge import Rouge, shared_ngrams


class Rouge1(Rouge):
    """Single words that reply and reference share, as an F-score from 0 to 1.

    Helps when: the right words matter more than their order.   Hurts when: common words alone already score.
    Cost: milliseconds.   Start with: rouge_l.
    Source: Lin 2004; equal to the rouge-score library for ASCII text.
    """

    def compare(self, reference: Sequence[str], reply: Sequence[str]) -> float:
        return shared_ngrams(reference, reply, order=1)
