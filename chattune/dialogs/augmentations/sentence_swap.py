"""Neighbouring sentences that change places."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Unit, rewritten
from chattune.dialogs.dialog import Dialog


class SentenceSwap(Augmentation):
    """Let neighbouring sentences of a message change places. They go in pairs, from the first or the second sentence on.

    Helps when: users tell what happened and what they want in any order.
    Hurts when: a message is a story, a list of steps, or sentences lean on the one before ("It", "Then").
    Cost: 20 µs a sentence.   Start with: 0.2.
    Source: sentence permutation of BART, Lewis et al. 2019, arXiv:1910.13461, with neighbours only.
    """

    unit: ClassVar[Unit] = "sentence"
    rate: float = setting(0.2, "share of the pairs of sentences that change places", low=0.0, high=1.0, search=(0.05, 0.5))

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        from chattune.dialogs.augmentations._text import chosen, joined, sentences

        def swapped(text: str) -> str:
            pieces = sentences(text)
            begin = int(random.integers(2)) if len(pieces) > 2 else 0
            pairs = [n for n in range(begin, len(pieces) - 1, 2) if pieces[n].strip() != pieces[n + 1].strip()]
            hits = chosen(len(pairs), self.rate, random)
            for hit in hits:
                n = pairs[hit]
                pieces[n], pieces[n + 1] = pieces[n + 1], pieces[n]
            return joined(pieces, text) if hits else text

        return rewritten(dialog, self.roles, swapped)
