"""Neighbouring words that change places."""

from __future__ import annotations

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, rewritten
from chattune.dialogs.dialog import Dialog


class WordSwap(Augmentation):
    """Let neighbouring words change places. The words of a message go in pairs, from its first or its second word on.

    Numbers and negations stay where they are, and a pair does not reach over a mark.
    Helps when: users' word order is loose, as in chats, or not a native speaker's.
    Hurts when: order decides who does what to whom.
    Cost: 10 µs a word.   Start with: 0.1.
    Source: Wei & Zou 2019, arXiv:1901.11196 (EDA), with neighbours as in Artetxe et al. 2018, arXiv:1710.11041.
    """

    rate: float = setting(0.1, "share of the pairs that change places", low=0.0, high=1.0, search=(0.02, 0.3))

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        from chattune.dialogs.augmentations._text import TURNING, Word, chosen, replaced, words

        def may(a: Word, b: Word, text: str) -> bool:
            fixed = {a.key, b.key} & TURNING or any(map(str.isdigit, a.text + b.text))
            return a.key != b.key and not fixed and not text[a.end : b.start].strip()

        def swapped(text: str) -> str:
            own = words(text)[int(random.integers(2)) :]
            pairs = [(a, b) for a, b in zip(own[::2], own[1::2], strict=False) if may(a, b, text)]
            changes: dict[Word, str] = {}
            for hit in chosen(len(pairs), self.rate, random):
                a, b = pairs[hit]
                changes |= {a: b.text, b: a.text}
            return replaced(text, changes)

        return rewritten(dialog, self.roles, swapped)
