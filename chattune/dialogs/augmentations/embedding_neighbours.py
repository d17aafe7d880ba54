"""Words replaced by others that keep the same company."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Rewriting, Working, rewritten
from chattune.dialogs.dialog import Dialog


class EmbeddingNeighbours(Augmentation):
    """Replace words by their nearest neighbours among word vectors that are learnt from the training split.

    Helps when: there is no thesaurus for the language or the field; tens of thousands of messages to learn from.
    Hurts when: there are few of them; and near in company is not near in meaning: opposites (hot, cold) and sisters (Monday, Tuesday)
    are neighbours too, and the reply that stays may then be wrong. Look at the examples.
    Cost: seconds for 10,000 words.   Start with: 0.05, at a high least cosine.
    Source: Wang & Yang 2015, "That's So Annoying!!!"; vectors as in Levy, Goldberg & Dagan 2015.
    """

    rate: float = setting(0.05, "share of the words with neighbours that are replaced", low=0.0, high=1.0, search=(0.02, 0.2))
    neighbours: int = setting(5, "nearest words that one is drawn from", low=1, high=100)
    least: float = setting(0.6, "cosine from which words are neighbours", low=-1.0, high=1.0, search=(0.4, 0.8))
    count: int = setting(5, "times that a word must occur", low=1, high=1_000_000)

    def begin(self, dialogs: Collection[Dialog]) -> Rewriting:
        from chattune.dialogs.augmentations._text import words
        from chattune.features.little_words import LITTLE
        from chattune.features.word_vectors import WordVectors

        def texts() -> Iterator[list[str]]:
            for dialog in dialogs:
                for message in dialog.messages:
                    yield [word.key for word in words(message.content)]

        found = WordVectors.fit(texts, least=self.count).neighbours(self.neighbours, self.least)
        usable = {
            word: tuple(other for other in others if other not in LITTLE and _alike(word, other))
            for word, others in found.items() if word not in LITTLE and not word.isdigit()
        }  # fmt: skip
        return _Replacing(self, {word: others for word, others in usable.items() if others})


@dataclass(frozen=True)
class _Replacing(Working):
    part: EmbeddingNeighbours
    others: dict[str, tuple[str, ...]]

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        from chattune.dialogs.augmentations._text import Word, word_changer

        def near(word: Word, own: object, place: int) -> tuple[str, ...]:
            return self.others.get(word.key, ())

        return rewritten(dialog, self.part.roles, word_changer(self.part.rate, random, near))


def _alike(word: str, other: str) -> bool:
    """Of one writing, and no number."""
    from chattune.dialogs.augmentations._text import chinese

    return chinese(word) == chinese(other) and not any(map(str.isdigit, other))
