"""A value that the reply needs deleted, and a question for it in the reply's place."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from chattune.core.part import setting
from chattune.dialogs.augmentations import Augmentation, Rewriting, Unit, Working
from chattune.dialogs.dialog import Dialog

if TYPE_CHECKING:
    from chattune.dialogs.augmentations._slots import Names, Slot

_ASKING = {
    "number": ("How many, or how much, do you mean?", "Could you tell me the number?"),
    "date": ("Could you tell me the date or the time?", "When exactly?"),
    "mail": ("Could you give me the mail address?", "Which mail address is it?"),
    "name": ("Could you tell me the name?", "Which one do you mean?"),
}
_ASKING_ZH = {
    "number": ("请问具体是多少？", "请告诉我具体的数字。"),
    "date": ("请问是什么时间？", "请告诉我具体的日期或时间。"),
    "mail": ("请提供一下邮箱地址。", "请问邮箱地址是什么？"),
    "name": ("请问您指的是哪一个？", "请告诉我名称。"),
}
_BLANK, _BLANK_ZH = {"number": "some", "date": "then", "mail": "my address", "name": "that one"}, "那个"


class KeyFacts(Augmentation):
    """Take a value that the next reply repeats out of what the user says, and let the reply ask for it instead.

    A value is a number, a date, a mail address or a name. The dialog ends there. Deleting the value alone would leave a reply that
    cannot be known, and teach to invent (E21).
    Helps when: the model answers although something is missing.
    Hurts when: the rate is high: it then asks back where nothing is missing.
    Cost: 50 µs a message.   Start with: 0.1.
    Source: correction E21; clarifying questions as in Rao & Daumé 2018, arXiv:1805.04655.
    """

    unit: ClassVar[Unit] = "dialog"
    reorders: ClassVar[bool] = True
    answers: ClassVar[bool] = True
    rate: float = setting(0.1, "share of the dialogs with such a value that lose one", low=0.0, high=1.0, search=(0.02, 0.3))
    questions: tuple[str, ...] = setting((), "what the reply asks; none: for each kind of value one of chattune, English or Chinese")

    def begin(self, dialogs: Collection[Dialog]) -> Rewriting:
        from chattune.dialogs.augmentations._slots import Names, capitals

        return _Asking(self, Names({"name": capitals(dialogs)}))


@dataclass(frozen=True)
class _Asking(Working):
    part: KeyFacts
    names: Names

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        from chattune.dialogs.augmentations._slots import filled
        from chattune.dialogs.augmentations._text import chinese, one_of

        hit = random.random() < self.part.rate
        can = self._grounds(dialog)
        if not (hit and can):
            return dialog
        place, slot, row = can[int(random.integers(len(can)))]
        message, reply = dialog.messages[place], dialog.messages[place + 1]
        han = chinese(message.content)
        blank = _BLANK_ZH if han else _BLANK[slot.kind]
        asking = self.part.questions or (_ASKING_ZH if han else _ASKING)[slot.kind]
        asked = replace(message, content=filled(message.content, row, {slot.key: blank}))
        return replace(dialog, messages=(*dialog.messages[:place], asked, replace(reply, content=one_of(asking, random))))

    def _grounds(self, dialog: Dialog) -> list[tuple[int, Slot, list[Slot]]]:
        """For each value that the next reply repeats and nobody has said before: its place, itself, all slots of its message."""
        from chattune.dialogs.augmentations._slots import slots

        found: list[tuple[int, Slot, list[Slot]]] = []
        before = ""
        for place, (message, reply) in enumerate(zip(dialog.messages, dialog.messages[1:], strict=False)):
            if message.role in self.part.roles and reply.role == "assistant":
                row = slots(message.content, self.names)
                repeated = {slot.key for slot in slots(reply.content, self.names)}
                once = {slot.key: slot for slot in row if slot.key in repeated and slot.text.casefold() not in before}
                found += [(place, slot, row) for slot in once.values()]
            before += message.content.casefold() + "\n"
        return found
