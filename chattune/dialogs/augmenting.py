"""Augmenting: variants of training dialogs, each drawn from the seed, the dialog's id and its number, whatever the order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from typing import Any

from chattune.core.errors import ChattuneError
from chattune.core.seeds import generator
from chattune.dialogs.augmentations import Augmentation, Rewriting
from chattune.dialogs.dialog import Dialog
from chattune.dialogs.near_duplicates import spaced

EXAMPLES = 20


@dataclass(frozen=True)
class Augmented:
    """A dialog and what was made of it."""

    dialog: Dialog
    variants: list[Dialog]


@dataclass
class _Tally:
    name: str
    changed: int = 0  # variants that it changed
    words: int = 0  # of the messages it may rewrite
    different: int = 0  # of these words, those that are others now
    examples: list[dict[str, Any]] = field(default_factory=list)


class Variants:
    """Each dialog with its variants, in order; after all were taken, `told` says what each augmentation did.

    A variant that came out equal to its dialog is not kept: it would only repeat it.
    """

    def __init__(self, dialogs: Collection[Dialog], augmentations: Sequence[Augmentation], variants: int, seed: int) -> None:
        self.dialogs, self.augmentations, self.count, self.seed = dialogs, augmentations, variants, seed
        self._tallies = [_Tally(part.name) for part in augmentations]

    def __iter__(self) -> Iterator[Augmented]:
        working = [part.begin(self.dialogs) for part in self.augmentations]
        for dialog in self.dialogs:
            found = []
            for number in range(self.count):
                variant = self._variant(dialog, working, number)
                if variant.messages != dialog.messages:
                    found.append(replace(variant, id=f"{dialog.id}~variant{number + 1}", group=dialog.group))
            yield Augmented(dialog, found)

    def told(self) -> list[dict[str, Any]]:
        """For each augmentation the variants it changed, the share of words that it changed, and examples."""
        return [
            {
                "augmentation": tally.name, "changed": tally.changed, "share": tally.different / max(1, tally.words),
                "examples": tally.examples,
            }
            for tally in self._tallies
        ]

    def _variant(self, dialog: Dialog, working: Sequence[Rewriting], number: int) -> Dialog:
        for part, rewriting, tally in zip(self.augmentations, working, self._tallies, strict=True):
            before = dialog
            dialog = rewriting.rewrite(before, generator(self.seed, "augment", part.name, before.id, number))
            if [message.role for message in dialog.messages] != [message.role for message in before.messages] and not part.reorders:
                raise ChattuneError(f"{part.name} changed roles or the number of messages.", path=f"augment.augmentations.{part.name}")
            self._count(part, before, dialog, tally)
        return dialog

    def _count(self, part: Augmentation, before: Dialog, after: Dialog, tally: _Tally) -> None:
        tally.changed += after.messages != before.messages
        for old, new in zip(before.messages, after.messages, strict=False):
            if old.role in part.roles:
                words = spaced(old.content).split()
                tally.words += len(words)
                if old.content != new.content:
                    tally.different += len(words) - _kept(words, spaced(new.content).split())
                    if len(tally.examples) < EXAMPLES:
                        tally.examples.append({"id": before.id, "before": old.content[:200], "after": new.content[:200]})


def _kept(before: Sequence[str], after: Sequence[str]) -> int:
    """Words of `before` that stand in `after` in the same order."""
    return sum(block.size for block in SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks())
