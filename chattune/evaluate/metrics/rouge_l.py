"""ROUGE-L."""

from __future__ import annotations

from collections.abc import Sequence

from chattune.evaluate.rouge import Rouge, shared_subsequence


class RougeL(Rouge):
    """Words that reply and reference share in the same order, gaps allowed, as an F-score from 0 to 1.

    Helps when: wording may vary but the order of thoughts should hold.   Hurts when: many answers are good; read it beside
    the baselines.   Cost: milliseconds.   Start with: this one of the three.
    Source: Lin 2004; equal to the rouge-score library for ASCII text.
    """

    def compare(self, reference: Sequence[str], reply: Sequence[str]) -> float:
        return shared_subsequence(reference, reply)
