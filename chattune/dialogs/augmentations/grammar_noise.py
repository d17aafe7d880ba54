"""Mistakes of grammar that people make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, rewritten
from chattune.dialogs.dialog import Dialog

if TYPE_CHECKING:
    from chattune.dialogs.augmentations._text import Word

# A word and what stands in its place by mistake; nothing: it is left out.
_CONFUSED: dict[str, tuple[str, ...]] = {
    "a": ("", "an", "the"), "an": ("", "a"), "the": ("", "a"), "is": ("are", ""), "are": ("is", ""), "was": ("were",), "were": ("was",),
    "am": ("is",), "has": ("have",), "have": ("has",), "does": ("do",), "do": ("does",), "doesn't": ("don't",), "don't": ("doesn't",),
    "goes": ("go",), "went": ("goed", "go"), "in": ("on", "at"), "on": ("in", "at"), "at": ("in", "on"), "for": ("to",),
    "of": ("from",), "from": ("of",), "its": ("it's",), "it's": ("its",), "your": ("you're",), "you're": ("your",),
    "their": ("there", "they're"), "there": ("their",), "they're": ("their",), "then": ("than",), "than": ("then",),
    "to": ("too", ""), "too": ("to",), "who": ("which",), "which": ("who",), "much": ("many",), "many": ("much",),
    "less": ("fewer",), "me": ("I",), "good": ("well",), "well": ("good",), "better": ("more better",),
    "的": ("得", "地", ""), "得": ("的",), "地": ("的",), "了": ("",), "们": ("",), "在": ("再",), "再": ("在",), "他": ("她",),
    "她": ("他",), "做": ("作",), "作": ("做",), "吗": ("嘛",), "吧": ("把",), "和": ("合",), "以": ("已",), "已": ("以",),
    "只": ("个",), "张": ("个",), "条": ("个",), "件": ("个",), "位": ("个",), "辆": ("个",), "本": ("个",), "因为": ("应为",),
    "所以": ("所已",), "但是": ("但",),
}  # fmt: skip


class GrammarNoise(Augmentation):
    """Make mistakes that people make: articles left out, is for are, its for it's, no plural; 的 for 得, 在 for 再, 个 for all.

    Helps when: users write in a second language or in haste.
    Hurts when: the model is to correct grammar: then the mistake is the point.
    Cost: 10 µs a word.   Start with: 0.1.
    Source: synthetic errors as in Grundkiewicz et al. 2019, "Neural grammatical error correction systems with unsupervised
    pre-training on synthetic data", here from a list.
    """

    rate: float = setting(0.1, "share of the words that a rule fits that are made wrong", low=0.0, high=1.0, search=(0.02, 0.3))

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        from chattune.dialogs.augmentations._text import chosen, like, one_of, replaced, words

        def wrong(text: str) -> str:
            own = words(text)
            can = [(word, found) for place, word in enumerate(own) if (found := _mistakes(word, own, place))]
            changes = {can[hit][0]: like(one_of(can[hit][1], random), can[hit][0].text) for hit in chosen(len(can), self.rate, random)}
            return text if len(own) == 1 and "" in changes.values() else replaced(text, changes)

        return rewritten(dialog, self.roles, wrong)


def _mistakes(word: Word, own: Sequence[Word], place: int) -> tuple[str, ...]:
    """What may stand in the place of a word by mistake: of the list, or the word without its ending -s, or -ed."""
    if word.key in _CONFUSED:
        return _CONFUSED[word.key]
    plain = word.text
    if len(plain) > 4 and plain.isascii() and plain.isalpha() and plain.islower():
        if plain.endswith("ies"):
            return (f"{plain[:-3]}y",)
        if plain.endswith("s") and not plain.endswith(("ss", "us", "is", "as", "os")):
            return (plain[:-1],)
        if plain.endswith("ed") and plain[-3] not in "aeiou":
            return (plain[:-2],)
    return ()
