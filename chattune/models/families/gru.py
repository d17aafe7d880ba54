"""The gated recurrent unit. The network itself is in `_recurrent`."""

from __future__ import annotations

from typing import ClassVar

from chattune.core.part import setting
from chattune.models.families._recurrent_family import Cell, RecurrentFamily


class GRU(RecurrentFamily):
    """A stack of GRU layers: the state is kept or replaced, unit by unit, as gates say.

    h = (1 − z) n + z h with n = tanh(W x + b + r (U h + b')): z keeps, r says how much of the last state the new one sees (the reset
    gate after the matrix, as in torch and cuDNN).

    Helps when: as `lstm`, with a quarter fewer weights; often as good. Hurts when: as `lstm`, and where things must be counted.
    Cost: 2 × parameters operations a token forward, one token after another; a cache of one state a layer, however long the dialog.
    Start with: `size: tiny`, dropout 0.1 to 0.3 on little text; `memory` about as long as the dialogs where far things matter.
    Source: Cho et al. 2014, arXiv:1406.1078; biases by the time that is to be bridged: Tallec & Ollivier
    2018, arXiv:1804.11188 (there spread over 1 … memory).
    """

    cell: ClassVar[Cell] = "gru"

    memory: float | None = setting(
        None, "fresh gates keep what they hold for about so many tokens: σ(bias) = 1 − 1/memory; none: bias 0", low=2.0, high=1e6
    )
