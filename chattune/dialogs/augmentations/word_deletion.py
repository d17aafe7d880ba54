"""Words left out."""

from __future__ import annotations

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, rewritten
from chattune.dialogs.dialog import Dialog


class WordDeletion(Augmentation):
    """Leave words out at random. Negations and numbers stay, since without them a sentence says something else.

    Helps when: users write in haste, as in chats and searches.
    Hurts when: messages are so short that each word decides.
    Cost: 10 µs a word.   Start with: 0.1.
    Source: Wei & Zou 2019, arXiv:1901.11196 (EDA).
    """

    rate: float = setting(0.1, "share of the words that are left out", low=0.0, high=1.0, search=(0.02, 0.3))

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        from chattune.dialogs.augmentations._text import TURNING, chosen, replaced, words

        def shorter(text: str) -> str:
            own = words(text)
            can = [word for word in own if word.key not in TURNING and not any(map(str.isdigit, word.text))]
            gone = chosen(len(can), self.rate, random)
            if len(gone) == len(own) and gone:  # one stays in any case
                gone.pop(int(random.integers(len(gone))))
            return replaced(text, {can[hit]: "" for hit in gone})

        return rewritten(dialog, self.roles, shorter)
