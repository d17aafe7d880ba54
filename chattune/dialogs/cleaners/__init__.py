"""Cleaners: from a dialog as it was written to one worth learning from, or to the reason why it is left out.

They are applied in the order of the recipe, after dialogs have their normal shape (`dialogs/shape.py`) and before the split: what
cleaning makes equal is found by the split. What a cleaner changed is counted and kept with examples, what it leaves out is a `Drop`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Protocol

from chattune.core.files import digest_of
from chattune.core.part import Part
from chattune.dialogs.dialog import Dialog, Drop


class Cleaning(Protocol):
    """A cleaner at work on one set of dialogs."""

    def clean(self, dialog: Dialog) -> Dialog | Drop: ...


class Cleaner(Part):
    """One way to clean. `clean` looks at one dialog; what must know the others first looks at them in `begin`.

    Cleaning twice gives what cleaning once gives. Ids, places and the number of messages stay as they are: a message that is to go is
    emptied, and counted as such afterwards.
    """

    looks_at_all: ClassVar[bool] = False  # `begin` reads every dialog, and a `Cleaning` other than the cleaner itself does the work
    private: ClassVar[bool] = False  # what it takes away is shown to nobody: no example holds the text before
    logs_changes: ClassVar[bool] = False  # every change is written to the run's changes.jsonl, with the text before

    def files(self) -> tuple[Path, ...]:
        """Files that the cleaner reads: with other bytes in them the answer is another one."""
        return ()

    def fingerprint(self) -> dict[str, str]:
        """What beside the settings changes the answer, by name: the sha256 of each of `files`."""
        return {str(path): digest_of(path) for path in self.files() if path.is_file()}

    def begin(self, dialogs: Collection[Dialog]) -> Cleaning:
        """What cleans `dialogs`, which may be iterated over several times and are as the cleaners before this one left them.

        It is pickled to other processes where cleaning is spread over cores.
        """
        return self

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        """The dialog itself where nothing is to change, a changed copy, or a `Drop` whose reason is a word that is counted."""
        raise NotImplementedError


def rewritten(dialog: Dialog, rewrite: Callable[[str], str]) -> Dialog:
    """`dialog` with the content of each message rewritten; the same object where no content changes."""
    contents = [rewrite(message.content) for message in dialog.messages]
    if all(new == message.content for new, message in zip(contents, dialog.messages, strict=True)):
        return dialog
    return replace(
        dialog, messages=tuple(replace(message, content=new) for new, message in zip(contents, dialog.messages, strict=True))
    )


def dropped(dialog: Dialog, reason: str, detail: str = "") -> Drop:
    """The `Drop` of a dialog, with its place. The detail says what was measured, and repeats no text of the dialog."""
    return Drop(reason, dialog.file, dialog.line, f"{dialog.id}: {detail}" if detail else dialog.id)
