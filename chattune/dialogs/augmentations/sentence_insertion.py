"""Sentences of other users put in."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Rewriting, Unit, Working, rewritten
from chattune.dialogs.dialog import Dialog

_POOL = 5000  # sentences, drawn evenly from all
_SHORTEST, _LONGEST = 3, 30  # words
_TRIES = 8  # draws until one is not in the dialog yet


class SentenceInsertion(Augmentation):
    """Put a statement of another user of the training split behind a sentence.

    Only statements are put in, never questions, numbers or control tokens: a second question would ask for a second answer.
    Helps when: users tell much beside the point, and the point is to be found.
    Hurts when: a statement of elsewhere changes what the right reply is, as "I am allergic to nuts" would.
    Cost: one look at all messages; then 20 µs a sentence.   Start with: 0.1.
    Source: distractor sentences, Jia & Liang 2017, arXiv:1707.07328, drawn at random.
    """

    unit: ClassVar[Unit] = "sentence"
    rate: float = setting(0.1, "sentences put in, as a share of those that are there", low=0.0, high=1.0, search=(0.05, 0.3))

    def begin(self, dialogs: Collection[Dialog]) -> Rewriting:
        from chattune.core.seeds import generator
        from chattune.dialogs.augmentations._text import CONTROL, chinese, question, sentences, words

        pools: dict[bool, dict[str, None]] = {True: {}, False: {}}
        random, seen = generator(0, "sentence_insertion"), 0
        for dialog in dialogs:
            for message in dialog.messages:
                for piece in sentences(message.content) if message.role in self.roles else ():
                    plain = piece.strip()
                    if (
                        _SHORTEST <= len(words(plain)) <= _LONGEST and plain[-1] in ".!。！" and not question(plain)
                        and not CONTROL.search(plain) and not any(map(str.isdigit, plain))
                    ):  # fmt: skip
                        pool = pools[chinese(plain)]
                        seen += 1
                        if len(pool) < _POOL:
                            pool[plain] = None
                        elif random.random() < _POOL / seen:
                            pool.pop(next(iter(pool)))
                            pool[plain] = None
        return _Inserting(self, {han: tuple(pool) for han, pool in pools.items()})


@dataclass(frozen=True)
class _Inserting(Working):
    part: SentenceInsertion
    pools: dict[bool, tuple[str, ...]]

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        from chattune.dialogs.augmentations._text import chinese, chosen, joined, one_of, sentences

        said = "\n".join(message.content for message in dialog.messages)

        def longer(text: str) -> str:
            pool = self.pools[chinese(text)]
            pieces, whole = sentences(text), []
            hits = set(chosen(len(pieces), self.part.rate, random)) if pool else set()
            for number, piece in enumerate(pieces):
                drawn = [one_of(pool, random) for _ in range(_TRIES)] if number in hits else []
                whole += [piece, *[new for new in drawn if new not in said][:1]]
            return joined(whole, text) if hits else text

        return rewritten(dialog, self.part.roles, longer)
