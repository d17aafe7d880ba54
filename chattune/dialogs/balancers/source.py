"""As much of each source as is wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
from pydantic import field_validator

from chattune.core.part import setting
from chattune.dialogs.balancers import Balancer, Weights
from chattune.dialogs.dialog import Dialog


class Source(Balancer):
    """Mix sources: those with a share by hand get it, the others have the rest, each by its size to the power of 1/temperature.

    Helps when: a small source is what the model is for, or a huge one would drown all others.
    Hurts when: a tiny source is repeated so often that it is learnt by heart; `balance.repeat` bounds that.
    Cost: none.   Start with: temperature 2; shares by hand for a domain that matters.
    Source: temperature mixing, Arivazhagan et al. 2019, arXiv:1907.05019; mixtures by hand as in Gao et al. 2020, arXiv:2101.00027.
    """

    temperature: float = setting(2.0, "1: as it is; large: every source equally often", low=1.0, high=1e6, log=True, search=(1.0, 10.0))
    shares: dict[str, float] = setting({}, "share of the training split by the name of a source, as collect.sources has it")

    @field_validator("shares")
    @classmethod
    def _no_more_than_all(cls, value: dict[str, float]) -> dict[str, float]:
        if any(share < 0 for share in value.values()) or sum(value.values()) > 1 + 1e-9:
            raise ValueError("should be shares from 0 whose sum is at most 1")
        return value

    def weights(self, dialogs: Collection[Dialog], seed: int = 0) -> Weights:
        from chattune.core.errors import DataError, did_you_mean

        kinds = [dialog.source for dialog in dialogs]
        count = Counter(kinds)
        for name in self.shares:
            if name not in count:
                raise DataError(
                    f"the training split has nothing from '{name}'.", path="balance.balancer.shares", value=name,
                    rule=f"one of {', '.join(sorted(count))}", hint=did_you_mean(name, count),
                )  # fmt: skip
        by_size = {name: n ** (1 / self.temperature) for name, n in count.items() if name not in self.shares}
        rest = 1 - sum(self.shares.values()) if by_size else 0.0
        share = {name: rest * size / sum(by_size.values()) for name, size in by_size.items()} | self.shares
        if not any(share.values()):
            raise DataError("no source has a share above 0.", path="balance.balancer.shares", rule="one source at least")
        return Weights(np.array([max(0.0, share[kind]) / count[kind] for kind in kinds], np.float64), kinds)
