"""Turns in another order: here to be measured, not to be used."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Unit
from chattune.dialogs.dialog import Dialog


class TurnShuffle(Augmentation):
    """Shuffle the turns of a dialog among the places of their role. Off unless its rate is set: it teaches wrong answers (E15).

    A reply then stands behind a question that it does not answer, and that is what the model learns. Some texts recommend it all the
    same; what helps is to shuffle whole dialogs, which training does anew in every pass over the data (`tokens/order.py`).
    Helps when: never seen; as a control that must do worse.
    Hurts when: always, where replies depend on what was said.
    Cost: none.   Start with: 0, which leaves everything as it is.
    Source: correction E15; documents shuffled in place of turns: validation loss 3.211 → 3.204 and 3.345 → 3.332 in slowrun's record.
    """

    unit: ClassVar[Unit] = "dialog"
    reorders: ClassVar[bool] = True
    rate: float = setting(0.0, "share of the dialogs whose turns are shuffled", low=0.0, high=1.0, search=(0.0, 0.5))

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        if random.random() >= self.rate:
            return dialog
        messages = list(dialog.messages)
        for role in ("user", "assistant"):
            places = [place for place, message in enumerate(dialog.messages) if message.role == role]
            if len(places) > 1:
                order = random.permutation(len(places)).tolist()
                if order == sorted(order):
                    order = [*order[1:], order[0]]
                for place, source in zip(places, order, strict=True):
                    messages[place] = dialog.messages[places[source]]
        return dialog if tuple(messages) == dialog.messages else replace(dialog, messages=tuple(messages))
