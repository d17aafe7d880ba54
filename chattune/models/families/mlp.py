"""The feed-forward language model of a fixed window. The network itself is in `_mlp`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from chattune.core.part import setting
from chattune.models.families import Family
from chattune.models.families._sizes import recommended
from chattune.models.initializers import Initializer
from chattune.models.initializers.fan_in import FanIn
from chattune.models.norms import Norm
from chattune.models.norms.layer_norm import LayerNorm

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel

# size: (layers, width)
_SIZES = {"micro": (2, 128), "tiny": (2, 256), "small": (3, 384), "medium": (3, 512), "base": (4, 768), "large": (6, 1024)}
_NORM, _INIT = LayerNorm(), FanIn()


class MLP(Family):
    """A feed-forward network over the embeddings of the last tokens: the neural probabilistic language model, of any depth.

    It knows nothing of what stands before its window. Any norm, activation and initialiser fits, so that their effect on deep
    networks can be seen (`chattune init-report`), and batch normalisation is at home here.

    Helps when: methods are compared or taught; a strong, fast baseline for very short contexts. Hurts when: what matters was said
    more than a window ago, as in nearly all dialog. Cost: 2 × parameters operations a token forward; a cache of one window of ids.
    Start with: `size: tiny`, window 16. The network of the paper: layers 1, activation tanh, norm none, residual false, tied false.
    Source: Bengio et al. 2003, JMLR 3 (its direct connections from embeddings to output, which did not help there, are left out).
    """

    dials: ClassVar[tuple[tuple[str, int], ...]] = (("width", 8), ("hidden", 8))

    size: Literal["micro", "tiny", "small", "medium", "base", "large"] = setting(
        "tiny", "the dial from which all that is left open follows: layers × width from 2×128 to 6×1024"
    )
    layers: int | None = setting(None, "hidden layers", low=1, high=256)
    width: int | None = setting(None, "numbers that stand for a token", low=2, high=65536)
    hidden: int | None = setting(None, "units of each hidden layer; none: twice the width", low=1, high=262144)
    window: int = setting(16, "tokens that a prediction sees, the current one included", low=1, high=1024)
    context: int | None = setting(None, "positions of a training row, in tokens", low=8, high=1048576)
    activation: Literal["tanh", "logistic", "relu", "gelu", "identity"] = setting("gelu", "what a unit makes of its net input")
    norm: Norm | None = setting(_NORM, "normalisation in each hidden layer, or none")
    residual: bool = setting(True, "from the second hidden layer on add what enters a layer to what it gives")
    biases: bool | None = setting(None, "a number added to each unit's net input; none: unless the norm takes it away again")
    tied: bool = setting(True, "one table for input embeddings and output head")
    dropout: float = setting(0.0, "share dropped (not kept) of embeddings and units", low=0.0, below=1.0, search=[0.0, 0.1, 0.2])
    init: Initializer = setting(_INIT, "what fresh weights are drawn from")

    def notes(self) -> list[str]:
        advice = [f"init {self.init.name}: {note}" for note in self.init.notes()]
        if self.biases and self.norm is not None and self.norm.shifts:
            advice.append(f"biases: {self.norm.name} takes each unit's mean away and any bias before it with it; leave them out")
        return advice

    def resolved(self) -> Self:
        layers, width = _SIZES[self.size]
        width = self.width or width
        return self.changed(
            layers=self.layers or layers,
            width=width,
            hidden=self.hidden or 2 * width,
            context=self.context or 256,
            biases=self.biases if self.biases is not None else self.norm is None or not self.norm.shifts,
        )

    def recommended(self) -> dict[str, Any]:
        """Vocabulary, batch and rate that suit the width, as for GPT. The rate is in AdamW's scale."""
        return recommended(self.resolved().width or 0)

    def context_length(self) -> int:
        return self.resolved().context or 0

    def build(self, vocabulary: int, seed: int) -> LanguageModel:
        from chattune.models.families._mlp import MLPModel

        return MLPModel.fresh(self.resolved(), vocabulary, seed)

    def parameters(self, vocabulary: int) -> int:
        f = self.resolved()
        assert f.layers and f.width and f.hidden
        unit = (1 if f.biases else 0) + (f.norm.wrapped_parameters(1) if f.norm else 0)
        layer = f.hidden * unit + (f.norm.parameters(f.hidden) if f.norm else 0)
        return self._products(f) + f.layers * layer + vocabulary * f.width * (1 if f.tied else 2)

    def operations(self, vocabulary: int, time: int) -> float:
        f = self.resolved()
        assert f.width
        return 2.0 * (self._products(f) + vocabulary * f.width)

    @staticmethod
    def _products(f: MLP) -> int:
        """Weights of the hidden matrices."""
        assert f.layers and f.width and f.hidden
        return f.window * f.width * f.hidden + (f.layers - 1) * f.hidden**2 + f.hidden * f.width
