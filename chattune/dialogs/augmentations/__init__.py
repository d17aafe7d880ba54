"""Augmentations: other ways to say the same, for the training split only; never for validation or test.

Each is seeded and has a rate. By default they rewrite what the user says and leave the replies, which the model is to learn, as they
are. They never touch roles, the order of turns (but for those that say so) or control tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from chattune.core.part import Part, setting
from chattune.dialogs.dialog import Dialog

if TYPE_CHECKING:
    import numpy as np

Unit = Literal["word", "sentence", "message", "entity", "dialog"]


class Rewriting(Protocol):
    """An augmentation at work on one training split."""

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog: ...

    def account(self) -> Mapping[str, int]: ...


class Augmentation(Part):
    """One way to rewrite. The same dialog and the same state of `random` give the same result; a rate of 0 changes nothing."""

    unit: ClassVar[Unit] = "word"  # what `rate` is a share of
    reorders: ClassVar[bool] = False  # it may change the order or the number of turns
    answers: ClassVar[bool] = False  # it also changes replies, so that they stay right

    roles: tuple[Literal["system", "user", "assistant", "tool"], ...] = setting(("user",), "whose messages are rewritten")
    rate: float = setting(0.1, "share of what can be rewritten that is", low=0.0, high=1.0, search=(0.02, 0.3))

    def files(self) -> Iterable[Path]:
        """Files that the result depends on; `DataError` for one that is not there."""
        return ()

    def begin(self, dialogs: Collection[Dialog]) -> Rewriting:
        """What rewrites `dialogs`, the training split; those that must know all of it first (names, neighbours) look at it here."""
        return self

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        """A variant of the dialog, or the dialog itself where there is nothing to rewrite."""
        raise NotImplementedError

    def account(self) -> Mapping[str, int]:
        """What was counted on the way, such as failures, since `begin`."""
        return {}


class Working:
    """What most augmentations that look at all dialogs first need: a `Rewriting` with nothing to account for."""

    def account(self) -> Mapping[str, int]:
        """Nothing."""
        return {}


def rewritten(dialog: Dialog, roles: Collection[str], rewrite: Callable[[str], str]) -> Dialog:
    """`dialog` with the content of each message of `roles` rewritten, white space at its ends taken away.

    A message of which nothing would be left stays as it was. The same object where no content changes.
    """
    messages = []
    for message in dialog.messages:
        new = rewrite(message.content).strip() if message.role in roles else ""
        messages.append(replace(message, content=new) if new and new != message.content else message)
    if all(new is old for new, old in zip(messages, dialog.messages, strict=True)):
        return dialog
    return replace(dialog, messages=tuple(messages))
