"""distinct-n: how many different n-grams a model says, with an interval that duplicates cannot bend."""

from __future__ import annotations

from collections.abc import Sequence

from chattune.core.part import setting
from chattune.evaluate.metrics import Item, Metric, Score
from chattune.features import words


class Distinct(Metric):
    """What distinct-1 and distinct-2 share."""

    word: words.Choice = setting("auto", "what a word is; auto: jieba for mostly Chinese references, else runs of letters and digits")

    @property
    def better(self) -> str:
        return "neither"  # dull models say too little that differs, and random ones too much

    @property
    def needs_reference(self) -> bool:
        return False

    def of_order(self, order: int, items: Sequence[Item], seed: int) -> Score:
        from chattune.evaluate.bootstrap import distinct

        choice = words.chosen(self.word, (item.reference for item in items))
        split = words.splitter(choice)
        said = [split(item.reply) for item in items]
        grams = [list(zip(*(tokens[start:] for start in range(order)), strict=False)) for tokens in said]
        per_item = tuple(len(set(g)) / len(g) if g else 0.0 for g in grams)
        by_name: dict[str, list[tuple[str, ...]]] = {}
        for item, own in zip(items, grams, strict=True):
            by_name.setdefault(item.conversation, []).extend(own)
        value, low, high = distinct([by_name[name] for name in sorted(by_name)], seed)
        return Score(value, low, high, per_item, f"{order}-grams of words: {choice}; all replies together")
