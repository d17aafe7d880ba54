"""Empty replies."""

from __future__ import annotations

from collections.abc import Sequence

from chattune.evaluate.metrics import Item, Metric, Score


class Empty(Metric):
    """Share of replies without a single visible character: 0 to 1.

    Helps when: a model learned to end its turn at once; overlap metrics alone hide how often.
    Hurts when: silence is a right answer.   Cost: none.   Start with: nothing to set.
    Source: none needed; a character is visible when Python's ``str.isspace`` denies it and it is printable.
    """

    @property
    def better(self) -> str:
        return "lower"

    @property
    def needs_reference(self) -> bool:
        return False

    def score(self, items: Sequence[Item], seed: int = 0) -> Score:
        from chattune.evaluate import bootstrap

        values = [float(not any(letter.isprintable() and not letter.isspace() for letter in item.reply)) for item in items]
        return Score(*bootstrap.mean([item.conversation for item in items], values, seed), tuple(values))
