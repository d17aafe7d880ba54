"""As much of each length as is wanted."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from chattune.core.part import setting
from chattune.dialogs.balancers import Balancer, Weights
from chattune.dialogs.dialog import Dialog


class Length(Balancer):
    """Mix lengths of dialogs, in classes that double (1, 2, 3–4, 5–8 …), each by its size to the power of 1/temperature.

    Helps when: nearly all dialogs are one exchange, and long talks are to be held too.
    Hurts when: the few long ones are of another kind in other ways.
    Cost: none.   Start with: messages, temperature 2.
    Source: temperature mixing, Arivazhagan et al. 2019, arXiv:1907.05019.
    """

    of: Literal["messages", "characters"] = setting("messages", "what is counted")
    temperature: float = setting(2.0, "1: as it is; large: every length equally often", low=1.0, high=1e6, log=True, search=(1.0, 10.0))

    def weights(self, dialogs: Collection[Dialog], seed: int = 0) -> Weights:
        from chattune.dialogs.balancing import shares

        def counted(dialog: Dialog) -> int:
            return len(dialog.messages) if self.of == "messages" else sum(len(message.content) for message in dialog.messages)

        classes = [max(0, counted(dialog) - 1).bit_length() for dialog in dialogs]
        kinds = [f"{(1 << own >> 1) + 1}–{1 << own} {self.of}" if own > 1 else f"{1 << own} {self.of}" for own in classes]
        return Weights(shares(kinds, self.temperature), kinds)
