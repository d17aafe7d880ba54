"""The GPT family: decoder-only transformers, with one dial for their size. The network itself is in `_gpt`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from chattune.core.errors import SettingError
from chattune.core.part import setting
from chattune.models.families import Family
from chattune.models.families._sizes import head_size, power_of_two, recommended
from chattune.models.initializers import Initializer
from chattune.models.initializers.fan_in import FanIn
from chattune.models.norms import Norm
from chattune.models.norms.rms_norm import RMSNorm
from chattune.models.rope_scaling import RopeScaling

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel

# size: (layers, width). Everything else follows from the width.
_SIZES = {"micro": (4, 128), "tiny": (4, 256), "small": (6, 384), "medium": (8, 512), "base": (12, 768), "large": (16, 1024)}
_GATED = ("swiglu", "geglu", "geglu_tanh", "reglu")


class GPT(Family):
    """A decoder-only transformer; as it stands of the Llama kind: RMSNorm before each branch, rotary positions, SwiGLU, no biases.

    Helps when: almost always; the reference that other families are measured against.
    Hurts when: there is very little text (a few hundred dialogues): a small recurrent model or retrieval can be better.
    Cost: about 6 × parameters operations a training token; a key-value cache when decoding.
    Start with: `size: tiny` (4 layers of 256, about 4M parameters) for minutes on two cores; one size up when the training loss stalls.
    Source: Touvron et al. 2023, arXiv:2302.13971; grouped queries: Ainslie et al. 2023, arXiv:2305.13245; q/k norm: Dehghani
    et al. 2023, arXiv:2302.05442. ChatGPT is of this kind, a decoder and nothing else: Radford et al. 2018, Brown et al. 2020,
    arXiv:2005.14165 (E9).

    The dial: a size is a number of layers and a width (micro 4×128, tiny 4×256, small 6×384, medium 8×512, base 12×768, large
    16×1024). From the width follow heads of 64, hidden = 8/3 width (to the next 32; 4 × width without a gate), context = the next power
    of two from 256, and for other sections: vocabulary = 16 × width, batch = the power of two from 16 × width tokens, AdamW's rate =
    0.5 / width.

    Its settings cover what Llama, Mistral, Qwen2, Qwen3, Gemma 2, Gemma 3 and GPT-2 compute, so that their weights are read and
    written; under which of these names a model is saved follows from its settings (with `qk_norm` Qwen3, without it Llama).
    """

    dials: ClassVar[tuple[tuple[str, int], ...]] = (("width", 16), ("hidden", 8))

    size: Literal["micro", "tiny", "small", "medium", "base", "large"] = setting(
        "tiny", "the dial from which all that is left open follows"
    )
    layers: int | None = setting(None, "blocks of attention and feed-forward", low=1, high=256)
    positions: Literal["rotary", "learned", "none"] = setting(
        "rotary", "how a place is told: queries and keys turned by it, a table added to the embeddings, or not at all"
    )
    width: int | None = setting(None, "numbers that stand for a token between the layers", low=2, high=65536)
    head: int | None = setting(None, "numbers of one attention head; none: width / heads", low=1, high=4096)
    heads: int | None = setting(None, "attention heads; they divide the width unless `head` is given", low=1, high=1024)
    kv_heads: int | None = setting(None, "heads of keys and values; they divide the heads (fewer: a smaller cache)", low=1, high=1024)
    hidden: int | None = setting(None, "width inside the feed-forward branch", low=1, high=262144)
    context: int | None = setting(None, "positions that the model is made for, in tokens", low=8, high=1048576)
    qk_norm: bool = setting(True, "normalise queries and keys of each head, which steadies training at high rates")
    tied: bool = setting(True, "one table for input embeddings and output head")
    dropout: float = setting(
        0.0, "share dropped (not kept) of embeddings, attention weights and branch outputs", low=0.0, below=1.0, search=[0.0, 0.1, 0.2]
    )
    activation: Literal["swiglu", "geglu", "geglu_tanh", "reglu", "gelu", "gelu_tanh", "relu", "relu_squared", "silu"] = setting(
        "swiglu", "of the feed-forward branch; the first four have a gate, _tanh is the approximation of the error function"
    )
    biases: Literal["none", "qkv", "attention", "all"] = setting(
        "none", "which linear maps add a number to each output: none; queries, keys and values; all of attention; all of the branches"
    )
    norm: Norm = setting(RMSNorm(), "what brings the numbers of a token to one scale; it must look at that token alone")
    norm_placement: Literal["pre", "post", "both"] = setting(
        "pre", "pre: before each branch; post: after the sum, as in the first transformer; both: around each branch, as in Gemma"
    )
    residual: bool = setting(True, "add each branch to what enters it; without, only the branch goes on (for experiments with depth)")
    rope_theta: float = setting(10000.0, "base of the rotary wavelengths; larger for longer contexts", above=1.0, high=1e9, log=True)
    rope_scaling: RopeScaling | None = setting(None, "stretch the rotary wavelengths for a longer context")
    window: int | None = setting(None, "tokens that a layer sees, the token itself included; none: all before it", low=1, high=1 << 24)
    global_layers: tuple[int, ...] = setting((), "layers, counted from 0, that see everything although there is a window")
    local_rope_theta: float | None = setting(
        None, "base of the wavelengths in layers with a window, which are never stretched; none: as in the others", above=1.0, high=1e9
    )
    embedding_scale: float = setting(1.0, "factor on the embeddings; √width in Gemma", above=0.0, high=1e4, log=True)
    attention_scale: float | None = setting(None, "factor on the products of queries and keys; none: 1/√head", above=0.0, high=1e4)
    attention_softcap: float | None = setting(None, "attention scores s become cap·tanh(s/cap); none: they stay", above=0.0, high=1e6)
    logit_softcap: float | None = setting(None, "logits z become cap·tanh(z/cap); none: they stay", above=0.0, high=1e6)
    init: Initializer = setting(FanIn(), "what fresh matrices are drawn from")
    init_outputs: Literal["zero", "scaled", "same"] = setting(
        "zero", "fresh output matrices of the branches: zeros, divided by √(2·layers) as in GPT-2, or the same as the others"
    )
    saved_as: Literal["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2"] | None = setting(
        None, "architecture of transformers under which the weights are saved; none: the first of these that computes the same"
    )

    @field_validator("width")
    @classmethod
    def _even(cls, width: int | None, info: ValidationInfo) -> int | None:
        if width is not None and width % 2 and info.data.get("positions") == "rotary":
            raise PydanticCustomError("even", "must be even, since rotary positions turn pairs")
        return width

    @field_validator("head")
    @classmethod
    def _even_head(cls, head: int | None, info: ValidationInfo) -> int | None:
        if head is not None and head % 2 and info.data.get("positions") == "rotary":
            raise PydanticCustomError("even", "must be even, since rotary positions turn pairs")
        return head

    @field_validator("heads")
    @classmethod
    def _heads_divide_width(cls, heads: int | None, info: ValidationInfo) -> int | None:
        if heads is not None and {"size", "width", "head", "positions"} <= info.data.keys() and info.data["head"] is None:
            width = info.data["width"] or _SIZES[info.data["size"]][1]
            if width % heads or (width // heads % 2 and info.data["positions"] == "rotary"):
                near = width // head_size(width)
                message = "must divide the width {width} into even parts, as {near} do"
                raise PydanticCustomError("heads", message, {"width": width, "near": near})
        return heads

    @field_validator("kv_heads")
    @classmethod
    def _kv_heads_divide_heads(cls, kv_heads: int | None, info: ValidationInfo) -> int | None:
        if kv_heads is not None and {"size", "width", "head", "heads"} <= info.data.keys():
            width = info.data["width"] or _SIZES[info.data["size"]][1]
            heads = info.data["heads"] or max(1, width // (info.data["head"] or head_size(width)))
            if heads % kv_heads:
                raise PydanticCustomError("kv_heads", "must divide the heads {heads}", {"heads": heads})
        return kv_heads

    @field_validator("norm")
    @classmethod
    def _norm_fits(cls, norm: Norm) -> Norm:
        if not norm.per_token or norm.place != "input" or type(norm).wrap is not Norm.wrap:
            why = (
                "mixes tokens, so that earlier ones would know later ones" if not norm.per_token
                else "has its place after an activation" if norm.place != "input" else "changes the matrices, not the numbers"
            )  # fmt: skip
            raise PydanticCustomError("norm", "'{name}' {why}; rms_norm and layer_norm fit", {"name": norm.name, "why": why})
        return norm

    @field_validator("global_layers")
    @classmethod
    def _global_layers_exist(cls, chosen: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if chosen and {"size", "layers", "window"} <= info.data.keys():
            layers = info.data["layers"] or _SIZES[info.data["size"]][0]
            if info.data["window"] is None:
                raise PydanticCustomError("global_layers", "says nothing without a window: all layers see everything")
            if not all(0 <= layer < layers for layer in chosen):
                raise PydanticCustomError("global_layers", "must be numbers from 0 to {last}", {"last": layers - 1})
        return tuple(sorted(set(chosen)))

    def resolved(self) -> Self:
        layers, width = _SIZES[self.size]
        width = self.width or width
        head = self.head or (width // self.heads if self.heads else head_size(width))
        heads = self.heads or max(1, width // head)
        family = self.changed(
            layers=self.layers or layers,
            width=width,
            head=head,
            heads=heads,
            kv_heads=self.kv_heads or heads,
            hidden=self.hidden or (math.ceil(width * 8 / 3 / 32) * 32 if self.gated else 4 * width),
            context=self.context or max(256, power_of_two(width)),
        )
        if self.saved_as is not None:
            from chattune.models.architectures import ARCHITECTURES

            if misfits := ARCHITECTURES[self.saved_as].misfits(family):
                raise SettingError(
                    f"a {self.saved_as} model cannot hold {'; '.join(misfits)}.", path="model.saved_as", value=self.saved_as,
                    rule=f"settings of {self.saved_as}", hint="Leave model.saved_as open.",
                )
        return family

    @property
    def gated(self) -> bool:
        """The feed-forward branch multiplies its activation by a second product of what enters."""
        return self.activation in _GATED

    def local(self, layer: int) -> bool:
        """The layer sees only the last `window` tokens."""
        return self.window is not None and layer not in self.global_layers

    def recommended(self) -> dict[str, Any]:
        """Vocabulary, batch and rate that suit the width. The rate is in AdamW's scale."""
        return recommended(self.resolved().width or 0)

    def context_length(self) -> int:
        return self.resolved().context or 0

    def build(self, vocabulary: int, seed: int) -> LanguageModel:
        from chattune.models.families._gpt import GPTModel

        return GPTModel.fresh(self.resolved(), vocabulary, seed)

    def empty(self, vocabulary: int) -> LanguageModel:
        from chattune.models.families._gpt import GPTModel

        return GPTModel.empty(self.resolved(), vocabulary)

    def parameters(self, vocabulary: int) -> int:
        f = self.resolved()
        assert f.layers and f.width and f.head and f.heads and f.kv_heads and f.hidden and f.context
        qkv, inner = (f.heads + 2 * f.kv_heads) * f.head, f.hidden * (2 if f.gated else 1)
        biases = {"none": 0, "qkv": qkv, "attention": qkv + f.width, "all": qkv + inner + 2 * f.width}[f.biases]
        norms = f.norm.parameters(f.width)
        block = self._matrices(f) + biases + (2 * f.norm.parameters(f.head) if f.qk_norm else 0)
        block += norms * (4 if f.norm_placement == "both" else 2)
        tables = vocabulary * (1 if f.tied else 2) + (f.context if f.positions == "learned" else 0)
        return f.layers * block + (0 if f.norm_placement == "post" else norms) + tables * f.width

    def operations(self, vocabulary: int, time: int) -> float:
        f = self.resolved()
        assert f.layers and f.width and f.head and f.heads
        attention = 2 * time * f.heads * f.head  # scores and their mix of values, over all pairs: the masked ones are computed, too
        return 2.0 * (f.layers * (self._matrices(f) + attention) + vocabulary * f.width)

    @staticmethod
    def _matrices(f: GPT) -> int:
        """Numbers in the matrices of one block."""
        assert f.width and f.head and f.heads and f.kv_heads and f.hidden
        return 2 * f.width * f.head * (f.heads + f.kv_heads) + (3 if f.gated else 2) * f.width * f.hidden
