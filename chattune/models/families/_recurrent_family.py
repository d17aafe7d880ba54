"""What the recurrent families have in common as settings. Light: configuration imports it, and no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from chattune.core.part import setting
from chattune.models.families import Family
from chattune.models.families._sizes import power_of_two, recommended
from chattune.models.initializers import Initializer
from chattune.models.initializers.fan_in import FanIn
from chattune.models.initializers.orthogonal import Orthogonal
from chattune.models.norms import Norm

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel

Cell = Literal["rnn", "lstm", "gru"]
GATES = {"rnn": 1, "lstm": 4, "gru": 3}  # matrices side by side in a layer
BIASES = {"rnn": 1, "lstm": 4, "gru": 4}  # bias vectors of a layer


class RecurrentSettings(Family):
    """Recurrent layers of one width: a token's state is the one before it, changed by what was read."""

    # size: (layers, width); about the parameters that the GPT of that name has, for an LSTM
    sizes: ClassVar[dict[str, tuple[int, int]]] = {
        "micro": (2, 192), "tiny": (2, 384), "small": (2, 768), "medium": (3, 1024), "base": (4, 1536), "large": (4, 2560)
    }  # fmt: skip

    size: Literal["micro", "tiny", "small", "medium", "base", "large"] = setting(
        "tiny", "the dial from which all that is left open follows"
    )
    layers: int | None = setting(None, "recurrent layers, one above the other", low=1, high=64)
    width: int | None = setting(None, "numbers of a state, and of a token", low=1, high=65536)
    context: int | None = setting(None, "tokens that training walks back through, and that a reply may reach", low=8, high=1048576)
    norm: Norm | None = setting(None, "normalise the net input of the units inside the cell; none: plain, and by far the fastest")
    tied: bool = setting(True, "one table for input embeddings and output head")
    dropout: float = setting(
        0.0, "share dropped (not kept) of embeddings and of what leaves a layer", low=0.0, below=1.0, search=[0.0, 0.1, 0.3, 0.5]
    )
    init: Initializer = setting(FanIn(), "fresh tables and the matrices that tokens go through")
    init_recurrent: Initializer = setting(Orthogonal(), "fresh matrices from state to state")

    @field_validator("norm")
    @classmethod
    def _fits_a_cell(cls, norm: Norm | None) -> Norm | None:
        if norm is not None and not norm.per_token:
            message = "{norm} mixes tokens, so that earlier ones would know later ones; layer_norm, rms_norm and weight_norm fit"
            raise PydanticCustomError("norm", message, {"norm": norm.name})
        if norm is not None and norm.place != "input":
            message = "{norm} stands after an activation; a cell takes norms of the net input: layer_norm, rms_norm, weight_norm"
            raise PydanticCustomError("norm", message, {"norm": norm.name})
        return norm

    def resolved(self) -> Self:
        layers, width = self.sizes[self.size]
        width = self.width or width
        return self.changed(layers=self.layers or layers, width=width, context=self.context or max(256, power_of_two(width)))

    def recommended(self) -> dict[str, Any]:
        """Vocabulary, batch and rate that suit the width. The rate is in AdamW's scale."""
        return recommended(self.resolved().width or 0, per_width=8, rate=1.0)

    def context_length(self) -> int:
        return self.resolved().context or 0

    def layer_parameters(self, cell: Cell, width: int) -> int:
        """Trainable numbers of one layer."""
        gates, norm = GATES[cell], self.norm
        plain = 2 * gates * width * width + BIASES[cell] * width
        return plain if norm is None else plain + gates * norm.parameters(width) + 2 * norm.wrapped_parameters(gates * width)


class RecurrentFamily(RecurrentSettings):
    """A stack of recurrent layers."""

    cell: ClassVar[Cell]

    def build(self, vocabulary: int, seed: int) -> LanguageModel:
        from chattune.models.families._recurrent import RecurrentModel

        return RecurrentModel.fresh(self.resolved(), vocabulary, seed)

    def parameters(self, vocabulary: int) -> int:
        f = self.resolved()
        assert f.layers and f.width
        return f.layers * self.layer_parameters(self.cell, f.width) + f.width + vocabulary * f.width * (1 if f.tied else 2)

    def operations(self, vocabulary: int, time: int) -> float:
        f = self.resolved()
        assert f.layers and f.width
        return 2.0 * (f.layers * GATES[self.cell] * 2 * f.width**2 + vocabulary * f.width)
