"""The GPT family: a decoder of the Llama kind, with one dial for its size. The network itself is in `_gpt`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from chattune.core.part import setting
from chattune.models.families import Family

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel

# size: (layers, width). Everything else follows from the width.
_SIZES = {"micro": (4, 128), "tiny": (4, 256), "small": (6, 384), "medium": (8, 512), "base": (12, 768), "large": (16, 1024)}
_HEAD = 64


class GPT(Family):
    """A decoder-only transformer of the Llama kind: RMSNorm before each branch, rotary positions, SwiGLU, no biases.

    Helps when: almost always; the reference that other families are measured against.
    Hurts when: there is very little text (a few hundred dialogues): a small recurrent model or retrieval can be better.
    Cost: about 6 × parameters operations a training token; a key-value cache when decoding.
    Start with: `size: tiny` (4 layers of 256, about 4M parameters) for minutes on two cores; one size up when the training loss stalls.
    Source: Touvron et al. 2023, arXiv:2302.13971; grouped queries: Ainslie et al. 2023, arXiv:2305.13245; q/k norm: Dehghani
    et al. 2023, arXiv:2302.05442. With `qk_norm` it is Qwen3 in transformers, without it Llama.

    The dial: a size is a number of layers and a width (micro 4×128, tiny 4×256, small 6×384, medium 8×512, base 12×768, large
    16×1024). From the width follow heads of 64, hidden = 8/3 width (to the next 32), context = the next power of two from 256, and for
    other sections: vocabulary = 16 × width, batch = the power of two from 16 × width tokens, AdamW's rate = 0.5 / width.
    """

    dials: ClassVar[tuple[tuple[str, int], ...]] = (("width", 16), ("hidden", 8))

    size: Literal["micro", "tiny", "small", "medium", "base", "large"] = setting(
        "tiny", "the dial from which all that is left open follows"
    )
    layers: int | None = setting(None, "blocks of attention and feed-forward", low=1, high=256)
    width: int | None = setting(None, "numbers that stand for a token between the layers", low=2, high=65536)
    heads: int | None = setting(None, "attention heads; they divide the width", low=1, high=1024)
    kv_heads: int | None = setting(None, "heads of keys and values; they divide the heads (fewer: a smaller cache)", low=1, high=1024)
    hidden: int | None = setting(None, "width inside the feed-forward branch", low=1, high=262144)
    context: int | None = setting(None, "positions that the model is made for, in tokens", low=8, high=1048576)
    qk_norm: bool = setting(True, "normalise queries and keys of each head, which steadies training at high rates")
    tied: bool = setting(True, "one table for input embeddings and output head")
    dropout: float = setting(
        0.0, "share dropped (not kept) of embeddings, attention weights and branch outputs", low=0.0, below=1.0, search=[0.0, 0.1, 0.2]
    )
    rope_theta: float = setting(10000.0, "base of the rotary wavelengths; larger for longer contexts", above=1.0, high=1e9, log=True)
    norm_epsilon: float = setting(1e-5, "added to the mean square in RMSNorm", above=0.0, high=1e-2, log=True)
    init: Literal["zero", "scaled", "normal"] = setting(
        "zero", "fresh output matrices of the branches: zeros, normal / √(2·layers) as in GPT-2, or normal"
    )
    init_std: float | None = setting(
        None, "standard deviation of fresh matrices; none: 1/√inputs (embeddings 0.02)", above=0.0, high=1.0, log=True
    )

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
                near = width // _head(width)
                message = "must divide the width {width} into even parts, as {near} do"
                raise PydanticCustomError("heads", message, {"width": width, "near": near})
        return heads

    @field_validator("kv_heads")
    @classmethod
    def _kv_heads_divide_heads(cls, kv_heads: int | None, info: ValidationInfo) -> int | None:
        if kv_heads is not None and {"size", "width", "heads"} <= info.data.keys():
            width = info.data["width"] or _SIZES[info.data["size"]][1]
            heads = info.data["heads"] or width // _head(width)
            if heads % kv_heads:
                raise PydanticCustomError("kv_heads", "must divide the heads {heads}", {"heads": heads})
        return kv_heads

    def resolved(self) -> Self:
        layers, width = _SIZES[self.size]
        width = self.width or width
        heads = self.heads or width // _head(width)
        return self.changed(
            layers=self.layers or layers,
            width=width,
            heads=heads,
            kv_heads=self.kv_heads or heads,
            hidden=self.hidden or math.ceil(width * 8 / 3 / 32) * 32,
            context=self.context or max(256, _power_of_two(width)),
        )

    def recommended(self) -> dict[str, Any]:
        """Vocabulary, batch and rate that suit the width. The rate is in AdamW's scale."""
        width = self.resolved().width or 0
        return {
            "prepare.vocabulary_at_most": max(512, 16 * width),
            "train.batch_tokens": _power_of_two(16 * width),
            "train.optimizer.lr": float(f"{0.5 / width:.2g}"),
        }

    def context_length(self) -> int:
        return self.resolved().context or 0

    def build(self, vocabulary: int, seed: int) -> LanguageModel:
        from chattune.models.families._gpt import GPTModel

        return GPTModel.fresh(self.resolved(), vocabulary, seed)

    def parameters(self, vocabulary: int) -> int:
        f = self.resolved()
        assert f.layers and f.width and f.heads and f.kv_heads and f.hidden
        head = f.width // f.heads
        attention = f.width * head * 2 * (f.heads + f.kv_heads) + (2 * head if f.qk_norm else 0)
        block = attention + 3 * f.width * f.hidden + 2 * f.width
        return f.layers * block + f.width + vocabulary * f.width * (1 if f.tied else 2)

    def operations(self, vocabulary: int, time: int) -> float:
        f = self.resolved()
        assert f.layers and f.width and f.heads and f.kv_heads and f.hidden
        head = f.width // f.heads
        projections = f.width * head * 2 * (f.heads + f.kv_heads) + 3 * f.width * f.hidden
        attention = 2 * time * f.heads * head  # scores and their mix of values, over all pairs: the masked ones are computed, too
        return 2.0 * (f.layers * (projections + attention) + vocabulary * f.width)


def _head(width: int) -> int:
    """The largest even head size up to 64 that divides the width."""
    return next(head for head in range(min(_HEAD, width), 0, -1) if width % head == 0 and head % 2 == 0)


def _power_of_two(number: int) -> int:
    """The next power of two, or the number itself."""
    return 1 << (number - 1).bit_length()
