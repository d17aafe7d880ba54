"""A part of the dialogs, drawn at random."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.balancers import Balancer, Weights
from chattune.dialogs.dialog import Dialog


class RandomSubset(Balancer):
    """Keep a share of the dialogs, each as likely as any other.

    Helps when: another choice of dialogs is to be judged: this is what it must be better than; a quick first run is wanted.
    Hurts when: there is time to train on all.
    Cost: none.   Start with: the share of what it is compared with.
    Source: Cochran 1977, "Sampling Techniques", chapter 2.
    """

    share: float = setting(0.5, "share of the dialogs that is kept", above=0.0, high=1.0, search=(0.2, 1.0))

    def weights(self, dialogs: Collection[Dialog], seed: int = 0) -> Weights:
        from chattune.core.seeds import generator
        from chattune.dialogs.balancing import kept

        size = kept(self.share, len(dialogs))
        each = np.zeros(len(dialogs))
        each[generator(seed, "random_subset").choice(len(dialogs), size, replace=False)] = 1.0
        return Weights(each, size=size)
