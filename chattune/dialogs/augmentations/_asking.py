"""Messages said anew by a model elsewhere: what paraphrase and back-translation share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from chattune.dialogs.augmentations import rewritten
from chattune.dialogs.augmentations._endpoint import Endpoint
from chattune.dialogs.augmentations._text import PROTECTED
from chattune.dialogs.dialog import Dialog

_LONGEST = 4000  # characters of a message that is sent
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Asking:
    """`say`: the question of the endpoint for a text, given the text and a seed; nothing where it fails."""

    endpoint: Endpoint
    roles: tuple[str, ...]
    rate: float
    say: Callable[[str, int], str | None]

    def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
        """The dialog with some of its messages said anew."""

        def anew(text: str) -> str:
            hit, seed = random.random() < self.rate, int(random.integers(1 << 31))
            if not hit or len(text) > _LONGEST:
                return text
            new = self.say(text, seed)
            if new is None:
                return text
            reason = refused(text, new)
            if reason:
                self.endpoint.counts[reason] += 1
                return text
            return new

        return rewritten(dialog, self.roles, anew)

    def account(self) -> Mapping[str, int]:
        """Answers asked for and found, failures, and answers that were not taken, by reason."""
        return dict(sorted(self.endpoint.counts.items()))


def refused(old: str, new: str) -> str | None:
    """Why an answer is not taken: it lost a number or a protected piece, brought a control token, or is far longer."""
    if sorted(_NUMBER.findall(old)) != sorted(_NUMBER.findall(new)):
        return "lost_number"
    if sorted(found[0] for found in PROTECTED.finditer(old)) != sorted(found[0] for found in PROTECTED.finditer(new)):
        return "lost_protected"
    return "too_long" if len(new) > 3 * len(old) + 40 else None


def plain(answer: str) -> str:
    """An answer without the quotation marks or the one line of talk that models like to put around it."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    text = lines[-1] if len(lines) == 2 and lines[0].endswith((":", "：")) else answer.strip()
    for opening, closing in ('""', "''", "“”", "「」"):
        if len(text) > 2 and text[0] == opening and text[-1] == closing and opening not in text[1:-1]:
            text = text[1:-1].strip()
    return text
