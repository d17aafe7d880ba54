"""The oldest turns left out."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Unit
from chattune.dialogs.dialog import Dialog


class ContextTruncation(Augmentation):
    """Leave out the oldest turns of a dialog, so that it begins with a later turn of the user. A system message stays.

    How many exchanges go is drawn evenly; one stays at least. What is left is in its order, whoever's `roles` are set.
    Helps when: in use the beginning is often missing: long chats beyond the context, requests that send the last turns only.
    Hurts when: later replies lean on what is gone: they then teach to invent what was never said. Short chats lose least.
    Cost: none.   Start with: 0.2.
    Source: what a bounded context does in use; its danger is that of E21.
    """

    unit: ClassVar[Unit] = "dialog"
    reorders: ClassVar[bool] = True
    rate: float = setting(0.2, "share of the dialogs of several exchanges that lose some", low=0.0, high=1.0, search=(0.05, 0.5))

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        messages = dialog.messages
        last = max((place for place, message in enumerate(messages) if message.role == "assistant"), default=0)
        # A turn of the user that is answered, with more than system messages before it.
        later = [
            place for place, message in enumerate(messages)
            if message.role == "user" and place < last and any(own.role != "system" for own in messages[:place])
        ]  # fmt: skip
        if random.random() >= self.rate or not later:
            return dialog
        begin = later[int(random.integers(len(later)))]
        system = tuple(message for message in messages[:begin] if message.role == "system")
        return replace(dialog, messages=(*system[:1], *messages[begin:]))
