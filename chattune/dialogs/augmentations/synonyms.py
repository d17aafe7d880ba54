"""Words replaced by others of the same meaning."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Rewriting, Working, rewritten
from chattune.dialogs.dialog import Dialog


class Synonyms(Augmentation):
    """Replace words by synonyms from a thesaurus: MyThes (.dat, also gzipped), a folder of WordNet's database, or lines of words.

    Lines hold words that can stand for one another, with tabs between. Words of many meanings are left alone, since the wrong one would
    be met; so are function words. Without a file, a small list that comes with chattune is used (English and Chinese).
    Helps when: there are few examples, and users will say the same in other words.
    Hurts when: a word is a term; the thesaurus is of another time or field; the rate is high.
    Cost: reading the thesaurus once; then 20 µs a word.   Start with: 0.1, with a thesaurus of your language.
    Source: Zhang et al. 2015, arXiv:1509.01626; Wei & Zou 2019, arXiv:1901.11196 (EDA).
    """

    rate: float = setting(0.1, "share of the words with synonyms that are replaced", low=0.0, high=1.0, search=(0.02, 0.3))
    thesaurus: str | None = setting(None, "a MyThes file, a folder of WordNet's database or lines of words; none: the list of chattune")
    meanings: int = setting(3, "words with more meanings in the thesaurus are left alone", low=1, high=100)

    def files(self) -> Iterable[Path]:
        from chattune.dialogs.augmentations._thesaurus import files_of

        return files_of(Path(self.thesaurus).expanduser()) if self.thesaurus else ()

    def begin(self, dialogs: Collection[Dialog]) -> Rewriting:
        from chattune.dialogs.augmentations._text import words
        from chattune.dialogs.augmentations._thesaurus import SAMPLE, senses
        from chattune.features.little_words import LITTLE

        messages = (message for dialog in dialogs for message in dialog.messages if message.role in self.roles)
        said = {word.key for message in messages for word in words(message.content) if not any(map(str.isdigit, word.text))}
        found = senses(Path(self.thesaurus).expanduser() if self.thesaurus else SAMPLE, said - LITTLE)
        others = {
            word: tuple(dict.fromkeys(other for meaning in meanings for other in meaning))
            for word, meanings in found.items() if len(meanings) <= self.meanings
        }  # fmt: skip
        return _Replacing(self, {word: own for word, own in others.items() if own})


@dataclass(frozen=True)
class _Replacing(Working):
    part: Synonyms
    others: dict[str, tuple[str, ...]]

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        from chattune.dialogs.augmentations._text import Word, word_changer

        def fitting(word: Word, own: object, place: int) -> tuple[str, ...]:
            name = place > 0 and word.text[:1].isupper() and not word.text.isupper()
            return () if name else self.others.get(word.key, ())

        return rewritten(dialog, self.part.roles, word_changer(self.part.rate, random, fitting))
