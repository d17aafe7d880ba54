"""The end-to-end memory network over a dialog. The network itself is in `_memory_network`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from chattune.core.part import setting
from chattune.models.families import Family
from chattune.models.families._sizes import power_of_two, recommended
from chattune.models.initializers import Initializer
from chattune.models.initializers.normal import Normal
from chattune.models.norms import Norm

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel

# size: (hops, width)
_SIZES = {"micro": (3, 128), "tiny": (3, 256), "small": (4, 384), "medium": (4, 512), "base": (6, 768), "large": (6, 1024)}
_INIT = Normal(std=0.05)


class MemoryNetwork(Family):
    """Every token said so far is a slot of a memory; the current token asks it several times over before the next is predicted.

    A slot holds two numbers for each unit: what it is found by and what it gives, each the token's row of a table plus the row of
    its age. A hop compares the state with what all slots are found by, and adds the mean of what they give, so weighted.

    Helps when: single facts far back in the dialog decide (who, where, which), with few layers and short training.
    Hurts when: meaning lies in the order of neighbouring words: a slot knows its own token only.
    Cost: like attention in `hops` layers without feed-forward branches; its tables are most of its parameters.
    Start with: `size: tiny` (3 hops of 256). Source: Sukhbaatar et al. 2015, arXiv:1503.08895, its language model: memories of age
    (temporal encoding), weights shared by all hops with a linear map of the state (`shared`) or each hop's output table being the
    next one's input table (`adjacent`), ReLU on half of the units. Here the state begins as the current token instead of a constant,
    and scores are divided by √width, so that rates do not depend on it.
    """

    size: Literal["micro", "tiny", "small", "medium", "base", "large"] = setting(
        "tiny", "the dial from which all that is left open follows: hops × width from 3×128 to 6×1024"
    )
    hops: int | None = setting(None, "times that the memory is asked", low=1, high=64)
    width: int | None = setting(None, "numbers of a state, and of a slot", low=1, high=65536)
    memory: int | None = setting(None, "slots: the newest tokens, the current one too; none: 256, or the context", low=1, high=1048576)
    context: int | None = setting(None, "positions that the model is made for, in tokens", low=8, high=1048576)
    weights: Literal["shared", "adjacent"] = setting("shared", "tables of all hops alike, as in an RNN, or a chain of tables")
    nonlinear: float = setting(0.5, "share of the units that pass a ReLU after each hop", low=0.0, high=1.0)
    norm: Norm | None = setting(None, "normalises the state after each hop; none: as in the paper")
    tied: bool = setting(True, "the state begins in the first table, and the last one is the output head")
    dropout: float = setting(0.0, "share dropped (not kept) of the state after each hop", low=0.0, below=1.0, search=[0.0, 0.1, 0.2])
    init: Initializer = setting(_INIT, "what fresh weights are drawn from")

    @field_validator("norm")
    @classmethod
    def _fits(cls, norm: Norm | None) -> Norm | None:
        if norm is not None and (not norm.per_token or norm.place != "input" or norm.wrapped_parameters(1)):
            raise PydanticCustomError("norm", "{norm} does not fit a state; rms_norm and layer_norm do", {"norm": norm.name})
        return norm

    def resolved(self) -> Self:
        hops, width = _SIZES[self.size]
        width = self.width or width
        context = self.context or max(256, power_of_two(width))
        return self.changed(hops=self.hops or hops, width=width, context=context, memory=min(self.memory or 256, context))

    def recommended(self) -> dict[str, Any]:
        """Vocabulary, batch and rate that suit the width, as for GPT. The rate is in AdamW's scale."""
        return recommended(self.resolved().width or 0)

    def context_length(self) -> int:
        return self.resolved().context or 0

    def build(self, vocabulary: int, seed: int) -> LanguageModel:
        from chattune.models.families._memory_network import MemoryNetworkModel

        return MemoryNetworkModel.fresh(self.resolved(), vocabulary, seed)

    def tables(self) -> int:
        """Different tables of slots: two that all hops share, or a chain."""
        return 2 if self.weights == "shared" else (self.resolved().hops or 0) + 1

    def parameters(self, vocabulary: int) -> int:
        f = self.resolved()
        assert f.hops and f.width and f.memory
        tables = self.tables() * (vocabulary + f.memory) + (0 if f.tied else 2 * vocabulary)
        return tables * f.width + (f.width**2 if f.weights == "shared" else 0) + (f.norm.parameters(f.width) if f.norm else 0)

    def operations(self, vocabulary: int, time: int) -> float:
        f = self.resolved()
        assert f.hops and f.width and f.memory
        looks = 2 * (time + min(time, f.memory)) * f.width  # scores and answers, each by token and by age
        hop = looks + (f.width**2 if f.weights == "shared" else 0)
        return 2.0 * (f.hops * hop + vocabulary * f.width)
