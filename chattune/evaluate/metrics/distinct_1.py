"""distinct-1."""

from __future__ import annotations

from collections.abc import Sequence

from chattune.evaluate.distinct import Distinct
from chattune.evaluate.metrics import Item, Score


class Distinct1(Distinct):
    """Different words over all of them, all replies together: 0 (one phrase for everybody) to 1.

    Helps when: a model says the same to everyone: it then lies far below the figure of people beside it.
    Hurts when: the number of replies differs: it falls as text grows, so compare at equal numbers only.
    Cost: milliseconds.   Start with: distinct_2.
    Source: Li et al. 2016, arXiv:1510.03055.
    """

    def score(self, items: Sequence[Item], seed: int = 0) -> Score:
        return self.of_order(1, items, seed)
