"""The recurrent encoder–decoder. The network itself is in `_seq2seq`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from chattune.core.part import setting
from chattune.models.families._recurrent_family import GATES, Cell, RecurrentSettings
from chattune.tokens.control import CONTROL

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel


class Seq2Seq(RecurrentSettings):
    """A recurrent encoder reads the dialog; a recurrent decoder writes each turn and looks back at the turns before it by attention.

    The decoder of a turn begins with the encoder's state at the end of the last turn and attends to the encoder's states of all turns
    that ended: a softmax over query · state, with one empty place where nothing is worth a look. All turns of a dialog train at once.

    Helps when: replies rest on what was said long ago, and there is little text: the attention finds what a single state forgot.
    Hurts when: there is much text or a GPU: `gpt` and `encoder_decoder` read all tokens of a row at once.
    Cost: two recurrent networks, one token after another, and attention; the cache holds one state a token.
    Start with: `cell: lstm`, `size: tiny`; `attention: false` shows what attention gives (all of the past in one state).
    Source: Sutskever et al. 2014, arXiv:1409.3215; attention: Bahdanau et al. 2015, arXiv:1409.0473, in the multiplicative form of
    Luong et al. 2015, arXiv:1508.04025. Here the encoder walks forwards only, and goes on from turn to turn.
    """

    sizes: ClassVar[dict[str, tuple[int, int]]] = {
        "micro": (1, 192), "tiny": (1, 384), "small": (1, 768), "medium": (2, 896), "base": (2, 1536), "large": (2, 2560)
    }  # fmt: skip

    cell: Cell = setting("lstm", "of encoder and decoder")
    attention: bool = setting(True, "look at the states of all turns that ended; without, only at the last one")
    memory: float | None = setting(
        None, "fresh gates of lstm and gru keep what they hold for about so many tokens; none: the usual biases", low=2.0, high=1e6
    )
    end: int = setting(CONTROL.index("end"), "id of the token that ends a turn", low=0, high=1 << 24)

    def build(self, vocabulary: int, seed: int) -> LanguageModel:
        from chattune.models.families._seq2seq import Seq2SeqModel

        return Seq2SeqModel.fresh(self.resolved(), vocabulary, seed)

    def parameters(self, vocabulary: int) -> int:
        f = self.resolved()
        assert f.layers and f.width
        states = 2 if f.cell == "lstm" else 1
        layer = 2 * f.layer_parameters(f.cell, f.width) + states * f.width**2
        looking = 3 * f.width**2 if f.attention else 0
        return f.layers * layer + looking + f.width + vocabulary * f.width * (1 if f.tied else 2)

    def operations(self, vocabulary: int, time: int) -> float:
        f = self.resolved()
        assert f.layers and f.width
        states = 2 if f.cell == "lstm" else 1
        cells = 2 * f.layers * GATES[f.cell] * 2 * f.width**2
        begins = f.layers * states * f.width**2 / time  # once a turn; of a window with one turn
        looking = 3 * f.width**2 + 2 * (time + 1) * f.width if f.attention else 0
        return 2.0 * (cells + begins + looking + vocabulary * f.width)
