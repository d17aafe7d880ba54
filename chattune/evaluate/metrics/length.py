"""Length of replies."""

from __future__ import annotations

from collections.abc import Sequence

from chattune.core.part import setting
from chattune.evaluate.metrics import Item, Metric, Score
from chattune.features import words


class Length(Metric):
    """Mean number of words in a reply. Neither long nor short is good: compare with people's.

    Helps when: overlap scores moved and you want to know whether length did it.   Hurts when: read as quality.
    Cost: milliseconds.   Start with: auto.
    Source: none needed.
    """

    word: words.Choice = setting("auto", "what a word is; auto: jieba for mostly Chinese references, else runs of letters and digits")

    @property
    def better(self) -> str:
        return "neither"

    @property
    def needs_reference(self) -> bool:
        return False

    def score(self, items: Sequence[Item], seed: int = 0) -> Score:
        from chattune.evaluate import bootstrap

        choice = words.chosen(self.word, (item.reference for item in items))
        split = words.splitter(choice)
        values = [float(len(split(item.reply))) for item in items]
        return Score(*bootstrap.mean([item.conversation for item in items], values, seed), tuple(values), f"words: {choice}")
