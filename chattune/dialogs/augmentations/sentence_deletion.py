"""Sentences left out."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Unit
from chattune.dialogs.dialog import Dialog


class SentenceDeletion(Augmentation):
    """Leave whole sentences out of messages that have several. What the replies rest on stays.

    A sentence stays if it asks, holds a number, a control token or a word that a later reply repeats, or is the only one left: a reply
    whose ground was deleted would teach to invent (E21). For that, with another reply, there is key_facts.
    Helps when: messages are long and say more than is needed.
    Hurts when: users say everything in one sentence: then nothing can go.
    Cost: 20 µs a sentence.   Start with: 0.2.
    Source: Xie et al. 2017, arXiv:1703.02573 (blank noise), by sentences and with its ground kept.
    """

    unit: ClassVar[Unit] = "sentence"
    rate: float = setting(0.2, "share of the sentences that can go that are left out", low=0.0, high=1.0, search=(0.05, 0.5))

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        from chattune.dialogs.augmentations._facts import needed, replied_after
        from chattune.dialogs.augmentations._text import chosen, joined, sentences

        messages, replied = list(dialog.messages), replied_after(dialog)
        for place, message in enumerate(dialog.messages):
            if message.role not in self.roles:
                continue
            pieces = sentences(message.content)
            can = [n for n, piece in enumerate(pieces) if not needed(piece, replied[place])]
            can = can[1:] if len(can) == len(pieces) else can
            gone = {can[hit] for hit in chosen(len(can), self.rate, random)}
            if gone:
                left = joined([piece for n, piece in enumerate(pieces) if n not in gone], message.content)
                messages[place] = replace(message, content=left)
        return dialog if tuple(messages) == dialog.messages else replace(dialog, messages=tuple(messages))
