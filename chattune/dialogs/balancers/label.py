"""As much of each label as is wanted."""

from __future__ import annotations

from collections.abc import Collection

from chattune.core.part import setting
from chattune.dialogs.balancers import Balancer, Weights
from chattune.dialogs.dialog import Dialog


class Label(Balancer):
    """Mix labels that the data brings with it (an intent, a domain, a rating), each by its size to the power of 1/temperature.

    Helps when: some intents are asked all the time and others hardly ever.
    Hurts when: frequencies are as they will be in use, and the rare may be answered worse.
    Cost: none.   Start with: temperature 2.
    Source: temperature mixing, Arivazhagan et al. 2019, arXiv:1907.05019.
    """

    key: str = setting("label", "which entry of a dialog's metadata is its label; dialogs without it are a kind of their own")
    temperature: float = setting(2.0, "1: as it is; large: every label equally often", low=1.0, high=1e6, log=True, search=(1.0, 10.0))

    def weights(self, dialogs: Collection[Dialog], seed: int = 0) -> Weights:
        from chattune.core.errors import DataError, did_you_mean
        from chattune.dialogs.balancing import shares

        kinds = [str(dialog.metadata.get(self.key, "none")) for dialog in dialogs]
        if set(kinds) == {"none"}:
            known = sorted({key for dialog in dialogs for key in dialog.metadata})
            raise DataError(
                f"no training dialog has metadata called '{self.key}'.", path="balance.balancer.key", value=self.key,
                rule=f"one of {', '.join(known) or '(there are none)'}", hint=did_you_mean(self.key, known),
            )  # fmt: skip
        return Weights(shares(kinds, self.temperature), kinds)
