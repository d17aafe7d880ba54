"""Augmenting: variants of training dialogs, each drawn from the seed, the dialog's id and its number, whatever the order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import numpy as np

from chattune.core.errors import ChattuneError
from chattune.core.seeds import generator
from chattune.dialogs.augmentations import Augmentation, Rewriting
from chattune.dialogs.dialog import Dialog, Message
from chattune.dialogs.near_duplicates import spaced

if TYPE_CHECKING:
    from chattune.features.embedding import Choice

EXAMPLES = 20
JUDGED = 200  # changed texts of each augmentation whose meaning is compared
_LEARNT = 5000  # texts that meanings are learnt from
_READ = 2000  # characters of a text that is judged


@dataclass(frozen=True)
class Augmented:
    """A dialog and what was made of it."""

    dialog: Dialog
    variants: list[Dialog]


class _Sample:
    """Some of many things, each as likely as any other, drawn while they pass. Source: Vitter 1985, algorithm R."""

    def __init__(self, count: int, random: np.random.Generator) -> None:
        self.kept: list[Any] = []
        self._count, self._random, self._seen = count, random, 0

    def see(self, thing: Any) -> None:
        self._seen += 1
        if len(self.kept) < self._count:
            self.kept.append(thing)
        elif (place := int(self._random.integers(self._seen))) < self._count:
            self.kept[place] = thing


@dataclass
class _Tally:
    part: Augmentation
    pairs: _Sample  # texts before and after
    rewriting: Rewriting | None = None
    changed: int = 0  # variants that it changed
    words: int = 0  # of the messages it may rewrite
    different: int = 0  # of these words, those that are gone or elsewhere; or words that came, where those are more
    examples: list[dict[str, Any]] = field(default_factory=list)


class Variants:
    """Each dialog with its variants, in order; after all were taken, `told` says what each augmentation did.

    A variant that came out equal to its dialog, or to a variant before it, is not kept: it would only repeat it.
    """

    def __init__(self, dialogs: Collection[Dialog], augmentations: Sequence[Augmentation], variants: int, seed: int) -> None:
        self.dialogs, self.augmentations, self.count, self.seed = dialogs, augmentations, variants, seed
        self._tallies = [
            _Tally(part, _Sample(JUDGED, generator(seed, "augment", "judged", place))) for place, part in enumerate(augmentations)
        ]
        self._texts = _Sample(_LEARNT, generator(seed, "augment", "learnt"))
        self._made = self._repeated = self._without = 0

    def __iter__(self) -> Iterator[Augmented]:
        for tally in self._tallies:
            tally.rewriting = tally.part.begin(self.dialogs)
        for dialog in self.dialogs:
            found: dict[tuple[Message, ...], Dialog] = {}
            for number in range(self.count):
                variant = self._variant(dialog, number)
                if variant.messages == dialog.messages or variant.messages in found:
                    self._repeated += 1
                else:
                    # Of one group with its dialog, which has a group of its own where it has none from elsewhere.
                    found[variant.messages] = replace(variant, id=f"{dialog.id}~variant{number + 1}", group=dialog.group or dialog.id)
            self._made += len(found)
            self._without += not found
            for message in dialog.messages:
                self._texts.see(message.content[:_READ])
            yield Augmented(dialog, [*found.values()])

    def totals(self) -> dict[str, int]:
        """Variants that were made, those that only repeated their dialog or one another, and dialogs that have none."""
        return {"made": self._made, "repeated": self._repeated, "dialogs_without": self._without}

    def told(self, encoder: Choice = "lsa") -> list[dict[str, Any]]:
        """For each augmentation what it changed, examples, and how near in meaning a sample of it stayed.

        `share`: words that are gone, new or elsewhere over all words of the messages that may be rewritten. `meaning`: mean and least
        cosine of up to 200 texts before and after, by the embedding, and for comparison that of texts of different messages.
        """
        return [
            {
                "augmentation": tally.part.name, "rate": tally.part.rate, "unit": tally.part.unit, "changed": tally.changed,
                "share": tally.different / max(1, tally.words), "meaning": meaning, "examples": tally.examples,
                "account": dict(tally.rewriting.account() if tally.rewriting else {}),
            }
            for tally, meaning in zip(self._tallies, self._meanings(encoder), strict=True)
        ]  # fmt: skip

    def _meanings(self, encoder: Choice) -> list[dict[str, Any] | None]:
        """Of each augmentation; none where nothing was changed, or where the texts have no words to learn from."""
        from chattune.core.errors import DataError
        from chattune.features.embedding import fit, similarities

        if not any(tally.pairs.kept for tally in self._tallies):
            return [None] * len(self._tallies)
        try:
            embedding = fit(self._texts.kept, seed=self.seed, choice=encoder)
        except DataError:
            return [None] * len(self._tallies)
        found: list[dict[str, Any] | None] = []
        for tally in self._tallies:
            if not tally.pairs.kept:
                found.append(None)
                continue
            before, after = (embedding.encode([pair[side] for pair in tally.pairs.kept]) for side in (0, 1))
            near, others = similarities(before, after), similarities(before, np.roll(before, 1, axis=0))
            found.append({
                "encoder": encoder, "pairs": len(near), "mean": round(float(near.mean()), 4), "least": round(float(near.min()), 4),
                "of_others": round(float(others.mean()), 4) if len(near) > 1 else None,
            })  # fmt: skip
        return found

    def _variant(self, dialog: Dialog, number: int) -> Dialog:
        for tally in self._tallies:
            before, part = dialog, tally.part
            assert tally.rewriting is not None
            dialog = tally.rewriting.rewrite(before, generator(self.seed, "augment", part.name, before.id, number))
            if [message.role for message in dialog.messages] != [message.role for message in before.messages] and not part.reorders:
                raise ChattuneError(f"{part.name} changed roles or the number of messages.", path=f"augment.augmentations.{part.name}")
            self._count(before, dialog, tally)
        return dialog

    def _count(self, before: Dialog, after: Dialog, tally: _Tally) -> None:
        own = [message for message in before.messages if message.role in tally.part.roles or tally.part.reorders]
        tally.words += sum(len(spaced(message.content).split()) for message in own)
        if after.messages == before.messages:
            return
        tally.changed += 1
        for old, new in _partners(before.messages, after.messages):
            if old == new or (old.role not in tally.part.roles and not tally.part.reorders):
                continue
            a, b = spaced(old.content).split(), spaced(new.content).split()
            kept = sum(block.size for block in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks())
            tally.different += max(len(a), len(b)) - kept
            if new.content:
                tally.pairs.see((old.content[:_READ], new.content[:_READ]))
            if len(tally.examples) < EXAMPLES:
                tally.examples.append({"id": before.id, "before": old.content[:200], "after": new.content[:200]})


def _partners(before: Sequence[Message], after: Sequence[Message]) -> Iterator[tuple[Message, Message]]:
    """Each message with what stands in its place; where messages are gone, each with the one that stayed, or with nothing."""
    if len(before) == len(after):
        yield from zip(before, after, strict=True)
        return
    left = list(after)
    for message in before:
        if message in left:
            left.remove(message)
            yield message, message
        elif left and left[0].role == message.role and left[0] not in before:
            yield message, left.pop(0)
        else:
            yield message, replace(message, content="")
