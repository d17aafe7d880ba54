"""Logit bias: the caller's own wish for single tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import field_validator

from chattune.core.errors import SettingError
from chattune.core.part import setting
from chattune.generate.rules import Rule

if TYPE_CHECKING:
    from torch import Tensor

STRONGEST = 100.0  # a bias of this size bans a token, or leaves no other


class LogitBias(Rule):
    """Add a bias to the logits of the tokens named; -100 bans a token, 100 leaves only the tokens that bear it.

    Helps when: a word must not come, or one of a few answers must.   Hurts when: the id is that of another spelling: a word has
    several (with and without a space before it).   Cost: none.   Start with: -5 for rarely, -100 for never.
    Source: OpenAI's API reference, ``logit_bias``. Where a ban would leave a row without a token, the row stays as it was.
    """

    bias: Mapping[int, float] = setting({}, "token id → what is added to its logit, -100 (never) to 100 (only this)")

    @field_validator("bias")
    @classmethod
    def within_limits(cls, bias: Mapping[int, float]) -> Mapping[int, float]:
        for token, value in bias.items():
            if token < 0:
                raise ValueError(f"{token} is no token id: ids begin at 0")
            if not -STRONGEST <= value <= STRONGEST:
                raise ValueError(f"the bias of token {token} is {value:g}: it must lie between -100 and 100")
        return bias

    def check(self, vocabulary: int) -> None:
        unknown = [token for token in self.bias if token >= vocabulary]
        if unknown:
            raise SettingError(
                f"no token has the id {unknown[0]}: this model's are below {vocabulary}.", path="logit_bias", value=unknown[0],
                rule=f"ids from 0 to {vocabulary - 1}", hint="Ids belong to one tokenizer: take them from this model's.",
            )

    def adjust(self, logits: Tensor, history: Tensor) -> Tensor:
        if not self.bias:
            return logits
        import torch

        self.check(logits.shape[-1])
        bias = logits.new_zeros(logits.shape[-1])
        bias[torch.tensor([*self.bias], device=logits.device)] = bias.new_tensor([*self.bias.values()])
        adjusted = (logits + bias).masked_fill(bias <= -STRONGEST, -math.inf)
        wanted = adjusted.masked_fill(bias < STRONGEST, -math.inf)
        adjusted = wanted.where((wanted > -math.inf).any(-1, keepdim=True), adjusted)
        return adjusted.where((adjusted > -math.inf).any(-1, keepdim=True), logits)
