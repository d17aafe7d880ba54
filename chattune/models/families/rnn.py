"""The plain recurrent network. The network itself is in `_recurrent`."""

from __future__ import annotations

from typing import ClassVar

from chattune.models.families._recurrent_family import Cell, RecurrentFamily


class RNN(RecurrentFamily):
    """A stack of plain recurrent layers: h = tanh(U h + W x + b), each state a squashed mix of the last one and the token read.

    With `norm: layer_norm` the net input is normalised at every step, h = tanh(LN(U h + W x) + b), so that it neither grows nor fades.

    Helps when: methods are compared or taught, and what matters was said a few tokens ago. Hurts when: it was said earlier: the
    gradient is multiplied by U and by the slopes of tanh once a token, so that it vanishes (or explodes) with the lag; `lstm` and
    `gru` carry it.
    Cost: 2 × parameters operations a token forward, one token after another; a cache of one state, however long the dialog.
    Start with: `lstm` or `gru` instead; else `size: tiny`, `train.clip: 1`.
    Source: Elman 1990; vanishing gradients: Bengio et al. 1994; layer norm in the cell: Ba et al. 2016, arXiv:1607.06450. Often
    translated 递归神经网络; it is the recurrent (循环) network, not the recursive one, and ChatGPT is neither (E20).
    """

    cell: ClassVar[Cell] = "rnn"
