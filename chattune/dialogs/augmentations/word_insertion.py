"""Words put in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Rewriting, Working, rewritten
from chattune.dialogs.dialog import Dialog


class WordInsertion(Augmentation):
    """Put words between others, drawn from the training split as often as they occur in it (unigram noise).

    Helps when: a model hangs on exact wordings.
    Hurts when: the rate is high: a drawn word may change what is asked.
    Cost: 10 µs a word.   Start with: 0.05.
    Source: Xie et al. 2017, arXiv:1703.02573 (unigram noise); insertion as in Wei & Zou 2019, arXiv:1901.11196.
    """

    rate: float = setting(0.05, "words put in, as a share of those that are there", low=0.0, high=1.0, search=(0.02, 0.2))

    def begin(self, dialogs: Collection[Dialog]) -> Rewriting:
        from chattune.dialogs.augmentations._text import TURNING, words

        counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        for dialog in dialogs:
            for message in dialog.messages:
                if message.role in self.roles:
                    for word in words(message.content):
                        if word.key not in TURNING and not any(map(str.isdigit, word.text)):
                            counts[word.han][word.key] += 1
        drawn = {}
        for han, own in counts.items():
            common = sorted(own.most_common(50_000), key=lambda item: (-item[1], item[0]))
            numbers = np.array([count for _, count in common], np.float64)
            drawn[han] = tuple(word for word, _ in common), np.cumsum(numbers) / max(1.0, numbers.sum())
        return _Inserting(self, drawn)


@dataclass(frozen=True)
class _Inserting(Working):
    """`drawn`: for Chinese words and others, the words and their summed shares."""

    part: WordInsertion
    drawn: dict[bool, tuple[tuple[str, ...], np.ndarray]]

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        from chattune.dialogs.augmentations._text import chosen, replaced, words

        def longer(text: str) -> str:
            can = [word for word in words(text) if len(self.drawn[word.han][0])]
            changes = {}
            for hit in chosen(len(can), self.part.rate, random):
                known, shares = self.drawn[can[hit].han]
                new = known[min(len(known) - 1, int(np.searchsorted(shares, random.random(), side="right")))]
                changes[can[hit]] = f"{can[hit].text}{'' if can[hit].han else ' '}{new}"
            return replaced(text, changes)

        return rewritten(dialog, self.part.roles, longer)
