"""Repetition: the share of replies that got stuck."""

from __future__ import annotations

import re
from collections.abc import Sequence

from chattune.core.part import setting
from chattune.evaluate.metrics import Item, Metric, Score
from chattune.features import words

_STUCK_KEY = re.compile(r"(\S)\1{9,}")


class Repetition(Metric):
    """Share of replies that say some sequence of four words twice, or one character ten times in a row: 0 to 1.

    Helps when: greedy decoding or a small model runs in circles; people's own figure stands beside it.
    Hurts when: replies are long lists or songs, where repeating is right.
    Cost: milliseconds.   Start with: four words.
    Source: the 4-gram test of Welleck et al. 2020, arXiv:1908.04319, counted by reply. A punctuation run counts as one word.
    """

    length: int = setting(4, "words in a row that must not come twice", low=2, high=16)
    word: words.Choice = setting("auto", "what a word is; auto: jieba for mostly Chinese references, else runs of letters and digits")

    @property
    def better(self) -> str:
        return "lower"

    @property
    def needs_reference(self) -> bool:
        return False

    def score(self, items: Sequence[Item], seed: int = 0) -> Score:
        from chattune.evaluate import bootstrap

        choice = words.chosen(self.word, (item.reference for item in items))
        split = words.with_marks(choice)
        values = [float(self._stuck(item.reply, split)) for item in items]
        interval = bootstrap.mean([item.conversation for item in items], values, seed)
        return Score(*interval, tuple(values), f"{self.length}-grams of words and marks: {choice}")

    def _stuck(self, reply: str, split: words.Words) -> bool:
        if _STUCK_KEY.search(reply):
            return True
        tokens = split(reply)
        grams = list(zip(*(tokens[start:] for start in range(self.length)), strict=False))
        return len(set(grams)) < len(grams)
