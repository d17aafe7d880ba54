"""Dialogs that say nearly the same as one before them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, Cleaning, dropped
from chattune.dialogs.dialog import Dialog, Drop


class NearDuplicates(Cleaner):
    """Of dialogs that are near-duplicates as a whole, one is kept: the longest, and of equally long ones the first.

    Helps when: logs hold canned talks, templates, or the same talk exported twice with small changes.
    Hurts when: small differences are what is to be learned (numbers, names). The split keeps near-duplicates together in any case.
    Cost: about 20 µs a dialog; texts lie in a file.   Start with: 0.8.
    Source: MinHash and locality-sensitive hashing, Broder 1997, with every candidate compared exactly.
    """

    looks_at_all: ClassVar[bool] = True

    threshold: float = setting(
        0.8, "Jaccard similarity of character 5-grams from which two dialogs are near-duplicates", low=0.3, high=1.0
    )

    def begin(self, dialogs: Collection[Dialog]) -> Cleaning:
        import numpy as np

        from chattune.dialogs.near_duplicates import Joined, TextFile, normalised, similar_pairs

        ids: list[str] = []
        with TextFile.writing() as put:
            for dialog in dialogs:
                ids.append(dialog.id)
                put(normalised(" ".join(message.content for message in dialog.messages)))
        texts = put.texts
        joined = Joined(len(ids))
        once = np.ones(len(ids), bool)
        for group in texts.equal():
            joined.join(*group)
            once[group[1:]] = False
        places = np.flatnonzero(once)
        for a, b in places[similar_pairs(texts.some(places), self.threshold)].tolist():
            joined.join(a, b)
        kept: dict[int, int] = {}
        lengths = texts.lengths
        roots = joined.roots().tolist()
        for number, root in enumerate(roots):
            best = kept.get(root)
            if best is None or lengths[number] > lengths[best]:
                kept[root] = number
        return _Kept(self.threshold, {ids[n]: ids[kept[root]] for n, root in enumerate(roots) if kept[root] != n})


@dataclass(frozen=True)
class _Kept:
    """`instead`: the id of a dialog that goes, and of the one that stays for it."""

    threshold: float
    instead: dict[str, str]

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        other = self.instead.get(dialog.id)
        if other is None:
            return dialog
        return dropped(dialog, "near_duplicate", f"says nearly the same as {other} (chains of pairs from {self.threshold:g} on)")
