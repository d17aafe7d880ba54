"""Balancers: how often each dialog of the training split is to be seen, so that no kind of dialog drowns the others.

A balancer only weighs; the stage `balance` draws by the weights. A weight of 0 leaves a dialog out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chattune.core.part import Part
from chattune.dialogs.dialog import Dialog


class Balancer(Part):
    """One way to weigh dialogs."""

    def weights(self, dialogs: Sequence[Dialog], seed: int = 0) -> np.ndarray:
        """(n,) float64 from 0, finite, not all 0: how often each dialog is wanted, up to a common factor."""
        raise NotImplementedError
