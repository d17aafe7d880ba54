"""The gated convolutional family. The network itself is in `_convolution`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from chattune.core.part import setting
from chattune.models.families import Family
from chattune.models.families._sizes import power_of_two, recommended
from chattune.models.initializers import Initializer
from chattune.models.initializers.fan_in import FanIn
from chattune.models.norms import Norm
from chattune.models.norms.rms_norm import RMSNorm

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel

# size: (layers, width); about the parameters that the GPT of that name has
_SIZES = {"micro": (6, 128), "tiny": (8, 256), "small": (8, 448), "medium": (12, 512), "base": (12, 1024), "large": (16, 1344)}


class Convolution(Family):
    """Gated causal convolutions over tokens: each layer mixes a token with a few before it, farther apart from layer to layer.

    x + W (a · σ(b)), where a and b are linear in `kernel` tokens that stand 1, 2, 4, … apart, with a norm before each branch. A
    prediction sees 1 + (kernel − 1) · (1 + 2 + 4 + …) tokens: 511 for 8 layers of kernel 3; nothing before them.

    Helps when: patterns are local, and training shall be parallel without attention's cost for long rows. Hurts when: a word said far
    back must be found again, which takes one look for attention and many layers here.
    Cost: 2 × parameters operations a token forward; a cache of (kernel − 1) · distance states a layer, whatever the length.
    Start with: `size: tiny`; a receptive field (see above) as long as the dialogs.
    Source: Dauphin et al. 2017, arXiv:1612.08083 (gates); Kalchbrenner et al. 2016, arXiv:1610.10099 (distances that double).
    ChatGPT is none of these, though texts list convolutional networks among its candidates (E20).
    """

    dials: ClassVar[tuple[tuple[str, int], ...]] = (("width", 8), ("hidden", 1))

    size: Literal["micro", "tiny", "small", "medium", "base", "large"] = setting(
        "tiny", "the dial from which all that is left open follows"
    )
    layers: int | None = setting(None, "blocks, each a gated convolution", low=1, high=256)
    width: int | None = setting(None, "numbers that stand for a token between the layers", low=1, high=65536)
    hidden: int | None = setting(None, "gated numbers inside a block; none: as the width", low=1, high=262144)
    kernel: int = setting(3, "tokens that a layer mixes, the current one included", low=2, high=64)
    cycle: int = setting(8, "layers after which their distance begins at 1 again; 1: always neighbours", low=1, high=20)
    context: int | None = setting(None, "positions of a training row, in tokens", low=8, high=1048576)
    norm: Norm | None = setting(RMSNorm(), "normalisation before each branch (weight_norm: of its matrices), or none")
    tied: bool = setting(True, "one table for input embeddings and output head")
    dropout: float = setting(
        0.0, "share dropped (not kept) of embeddings and branch outputs", low=0.0, below=1.0, search=[0.0, 0.1, 0.2]
    )
    init: Initializer = setting(FanIn(), "what fresh weights are drawn from")
    init_outputs: Literal["zero", "scaled", "same"] = setting(
        "zero", "fresh output matrices of the branches: zeros, as `init` says / √layers, or as `init` says"
    )

    @field_validator("norm")
    @classmethod
    def _per_token(cls, norm: Norm | None) -> Norm | None:
        if norm is not None and not norm.per_token:
            message = "{norm} mixes tokens, so that earlier ones would know later ones; rms_norm, layer_norm and weight_norm fit"
            raise PydanticCustomError("norm", message, {"norm": norm.name})
        return norm

    def distances(self) -> list[int]:
        """How far apart the tokens stand that each layer mixes."""
        layers = self.resolved().layers or 0
        return [2 ** (layer % self.cycle) for layer in range(layers)]

    def resolved(self) -> Self:
        layers, width = _SIZES[self.size]
        width = self.width or width
        return self.changed(
            layers=self.layers or layers,
            width=width,
            hidden=self.hidden or width,
            context=self.context or max(256, power_of_two(width)),
        )

    def recommended(self) -> dict[str, Any]:
        """Vocabulary, batch and rate that suit the width, as for GPT. The rate is in AdamW's scale."""
        return recommended(self.resolved().width or 0)

    def context_length(self) -> int:
        return self.resolved().context or 0

    def build(self, vocabulary: int, seed: int) -> LanguageModel:
        from chattune.models.families._convolution import ConvolutionModel

        return ConvolutionModel.fresh(self.resolved(), vocabulary, seed)

    def parameters(self, vocabulary: int) -> int:
        f, norm = self.resolved(), self.norm
        assert f.layers and f.width and f.hidden
        scales = 0
        if norm is not None:
            late = norm.place == "activation"
            block = norm.parameters(f.hidden if late else f.width) + norm.wrapped_parameters(2 * f.hidden + f.width)
            scales = f.layers * block + (0 if late else norm.parameters(f.width))
        return self._products(f) + scales + vocabulary * f.width * (1 if f.tied else 2)

    def operations(self, vocabulary: int, time: int) -> float:
        f = self.resolved()
        assert f.width
        return 2.0 * (self._products(f) + vocabulary * f.width)

    @staticmethod
    def _products(f: Convolution) -> int:
        """Weights of the blocks' matrices."""
        assert f.layers and f.width and f.hidden
        return f.layers * (2 * f.kernel + 1) * f.width * f.hidden
