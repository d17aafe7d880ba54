"""Balancers: how often each dialog of the training split is to be seen, so that no kind of dialog drowns the others.

A balancer only weighs; the stage `balance` draws by the weights. A weight of 0 leaves a dialog out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chattune.core.part import Part
from chattune.dialogs.dialog import Dialog

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Weights:
    """`each`: (n,) float64 from 0, finite, not all 0: how often each dialog is wanted, up to a common factor.

    `kinds`: what kind each dialog is, where the balancer tells kinds apart: their shares are met within one dialog, and told.
    `size`: dialogs that are to come out where the recipe does not say; none: as many as there are.
    """

    each: np.ndarray
    kinds: Sequence[str] | None = None
    size: int | None = None


class Balancer(Part):
    """One way to weigh dialogs."""

    def weights(self, dialogs: Collection[Dialog], seed: int = 0) -> Weights:
        """The weights of `dialogs`, which may be iterated over several times and need not fit into memory."""
        raise NotImplementedError
