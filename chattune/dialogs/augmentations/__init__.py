"""Augmentations: other ways to say the same, for the training split only; never for validation or test.

Each is seeded and has a rate. By default they rewrite what the user says and leave the replies, which the model is to learn, as they
are. They never touch roles, the order of turns (but for the one that says so) or control tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal, Protocol

import numpy as np

from chattune.core.part import Part, setting
from chattune.dialogs.dialog import Dialog


class Rewriting(Protocol):
    """An augmentation at work on one training split."""

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog: ...


class Augmentation(Part):
    """One way to rewrite. The same dialog and the same state of `random` give the same result."""

    reorders: ClassVar[bool] = False  # it may change the order or the number of turns

    roles: tuple[Literal["system", "user", "assistant", "tool"], ...] = setting(("user",), "whose messages are rewritten")

    def begin(self, dialogs: Collection[Dialog]) -> Rewriting:
        """What rewrites `dialogs`, the training split; those that must know all of it first (names, neighbours) look at it here."""
        return self

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        """A variant of the dialog, or the dialog itself where there is nothing to rewrite."""
        raise NotImplementedError
