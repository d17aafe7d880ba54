"""The same dialog about the other side: she for he, one region, name or view for another, in every turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Rewriting, Unit
from chattune.dialogs.augmentations._counterparts import Counterparts
from chattune.dialogs.augmentations._sides import Swaps
from chattune.dialogs.dialog import Dialog

if TYPE_CHECKING:
    import numpy as np


class Counterfactual(Swaps, Augmentation):
    """Swap the terms of one side for those of another through the whole dialog, replies included: a paired copy that balances the data.

    English and Chinese words of gender with given names by default; countries, provinces of China, and pairs of your own (two parties,
    two products) where asked for. All sides that a dialog mentions change at once, with their capitals and "a" or "an"; what has no
    other side stays. Where a list has more than two sides, which one comes instead is drawn for each dialog.
    "her" becomes "his" before what can be a thing, else "him"; "his" becomes "hers" at an end or before few words such as "is" and
    "and", else "her": "gave her money" comes out as "gave his money". Names are met with a capital only; 他 not where it is part of
    其他 and the like. A pair such as Ms → Mr → Mrs does not come back when swapped twice.
    Helps when: training data say one thing of one side (nurses are "she") and the model should treat sides alike. Measure it with
    evaluate.parity.
    Hurts when: replies tell facts of real people and places (Marie Curie, the Thames), or the side matters (pregnancy, sports).
    Cost: 10 µs a word.   Start with: 1.0, gender; own pairs for views. One variant is the pair; more differ where sides are many.
    Source: counterfactual data augmentation, Lu et al. 2018, arXiv:1807.11714; names, Maudslay et al. 2019, arXiv:1909.00871; languages
    with more agreement need more than words, Zmigrod et al. 2019, arXiv:1906.04571.
    """

    unit: ClassVar[Unit] = "dialog"
    answers: ClassVar[bool] = True
    roles: tuple[Literal["system", "user", "assistant", "tool"], ...] = setting(
        ("system", "user", "assistant", "tool"), "a dialog changes where a message of these mentions a side; all its messages do then"
    )
    rate: float = setting(1.0, "share of the dialogs mentioning a side that get a counterpart", low=0.0, high=1.0, search=(0.5, 1.0))

    def files(self) -> Iterable[Path]:
        return Swaps.files(self)

    def begin(self, dialogs: Collection[Dialog]) -> Rewriting:
        return _Swapping(self, Counterparts(self.axes()))


@dataclass(frozen=True)
class _Swapping:
    part: Counterfactual
    counterparts: Counterparts
    swapped: Counter[str] = field(default_factory=Counter)  # dialogs by what was swapped in them

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        if random.random() >= self.part.rate:
            return dialog
        shifts = self.counterparts.drawn(random)
        if not self.counterparts.counts(dialog, self.part.roles):
            return dialog
        after = self.counterparts.dialog(dialog, shifts)
        if after is not dialog:
            self.swapped.update(self.counterparts.counts(dialog).keys())
        return after

    def account(self) -> Mapping[str, int]:
        return self.swapped
