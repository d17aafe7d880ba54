"""The encoder–decoder Transformer over dialogs. The network itself is in `_encoder_decoder`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from chattune.core.part import setting
from chattune.models.families import Family
from chattune.models.families._sizes import head_size, power_of_two, recommended
from chattune.models.initializers import Initializer
from chattune.models.initializers.fan_in import FanIn
from chattune.models.norms import Norm
from chattune.models.norms.rms_norm import RMSNorm
from chattune.tokens.control import CONTROL

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel

# size: (layers of each stack, width)
_SIZES = {"micro": (2, 128), "tiny": (2, 256), "small": (3, 384), "medium": (4, 512), "base": (6, 768), "large": (8, 1024)}
_NORM, _INIT = RMSNorm(), FanIn()


class EncoderDecoder(Family):
    """A Transformer in two halves: an encoder reads the turns that have ended, both ways, and a decoder writes the current one.

    A turn reaches up to and including its end token. Every token of the encoder sees its whole turn and the turns before it; every
    token of the decoder sees its own turn up to itself, and through cross-attention what the encoder made of the turns that ended
    before. So all turns of a dialog are learned at once, nothing is known too early, and a turn is encoded once when replying.

    Helps when: what was said before should be read as a whole, as in translation-like or question-answering tasks.
    Hurts when: computation or parameters are scarce: every token goes through both stacks. ChatGPT is not of this kind: GPT models
    are decoder-only (`gpt`), and changing to an encoder–decoder is another family, not an improvement by itself (E9).
    Cost: per token about that of a `gpt` with as many parameters; keys and values are kept three times when decoding.
    Start with: `size: tiny` (2 + 2 layers of 256). Source: Vaswani et al. 2017, arXiv:1706.03762; blocks as in `gpt`, with rotary
    positions also between the stacks, and a learned slot that stands for "nothing was said yet".
    """

    dials: ClassVar[tuple[tuple[str, int], ...]] = (("width", 16), ("hidden", 8))

    size: Literal["micro", "tiny", "small", "medium", "base", "large"] = setting(
        "tiny", "the dial from which all that is left open follows: layers × width from 2×128 to 8×1024"
    )
    layers: int | None = setting(None, "blocks of the encoder, and as many of the decoder", low=1, high=128)
    width: int | None = setting(None, "numbers that stand for a token between the layers", low=2, high=65536)
    heads: int | None = setting(None, "attention heads; they divide the width", low=1, high=1024)
    hidden: int | None = setting(None, "width inside the feed-forward branch", low=1, high=262144)
    context: int | None = setting(None, "positions that the model is made for, in tokens", low=8, high=1048576)
    norm: Norm = setting(_NORM, "what each branch normalises first")
    tied: bool = setting(True, "one table for input embeddings and output head")
    dropout: float = setting(
        0.0, "share dropped (not kept) of embeddings, attention weights and branch outputs", low=0.0, below=1.0, search=[0.0, 0.1, 0.2]
    )
    rope_theta: float = setting(10000.0, "base of the rotary wavelengths; larger for longer contexts", above=1.0, high=1e9, log=True)
    end: int = setting(CONTROL.index("end"), "id of the token that ends a turn", low=0, high=1 << 24)
    init: Initializer = setting(_INIT, "what fresh weights are drawn from")
    init_outputs: Literal["zero", "scaled", "same"] = setting(
        "zero", "fresh output matrices of the branches: zeros, `init` divided by the root of the number of branches, or `init`"
    )

    @field_validator("norm")
    @classmethod
    def _fits(cls, norm: Norm) -> Norm:
        if not norm.per_token or norm.place != "input" or norm.wrapped_parameters(1):
            raise PydanticCustomError("norm", "{norm} does not fit before a branch; rms_norm and layer_norm do", {"norm": norm.name})
        return norm

    @field_validator("width")
    @classmethod
    def _even(cls, width: int | None) -> int | None:
        if width is not None and width % 2:
            raise PydanticCustomError("even", "must be even, since rotary positions turn pairs")
        return width

    @field_validator("heads")
    @classmethod
    def _heads_divide_width(cls, heads: int | None, info: ValidationInfo) -> int | None:
        if heads is not None and "size" in info.data and "width" in info.data:
            width = info.data["width"] or _SIZES[info.data["size"]][1]
            if width % heads or width // heads % 2:
                near = width // head_size(width)
                message = "must divide the width {width} into even parts, as {near} do"
                raise PydanticCustomError("heads", message, {"width": width, "near": near})
        return heads

    def resolved(self) -> Self:
        layers, width = _SIZES[self.size]
        width = self.width or width
        return self.changed(
            layers=self.layers or layers,
            width=width,
            heads=self.heads or width // head_size(width),
            hidden=self.hidden or math.ceil(width * 8 / 3 / 32) * 32,
            context=self.context or max(256, power_of_two(width)),
        )

    def recommended(self) -> dict[str, Any]:
        """Vocabulary, batch and rate that suit the width, as for GPT. The rate is in AdamW's scale."""
        return recommended(self.resolved().width or 0)

    def context_length(self) -> int:
        return self.resolved().context or 0

    def build(self, vocabulary: int, seed: int) -> LanguageModel:
        from chattune.models.families._encoder_decoder import EncoderDecoderModel

        return EncoderDecoderModel.fresh(self.resolved(), vocabulary, seed)

    def parameters(self, vocabulary: int) -> int:
        f = self.resolved()
        assert f.layers and f.width and f.heads and f.hidden
        attention, norm = 4 * f.width**2 + 2 * (f.width // f.heads), f.norm.parameters(f.width)
        feed_forward = 3 * f.width * f.hidden + norm
        encoder = attention + norm + feed_forward
        decoder = 2 * (attention + norm) + 2 * f.width + feed_forward
        return f.layers * (encoder + decoder) + 2 * norm + vocabulary * f.width * (1 if f.tied else 2)

    def operations(self, vocabulary: int, time: int) -> float:
        f = self.resolved()
        assert f.layers and f.width and f.hidden
        projections = 3 * 4 * f.width**2 + 2 * 3 * f.width * f.hidden  # self twice, cross once; two feed-forward branches
        attention = 2 * (3 * time + 1) * f.width  # all pairs of tokens, masked ones included, and the slot of nothing
        return 2.0 * (f.layers * (projections + attention) + vocabulary * f.width)
