"""Model families: one word in a recipe chooses the architecture.

A family's settings are its architecture; `resolved` derives what the user left open from the one dial, `build` makes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from chattune.core.part import Part

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel


class Family(Part):
    """An architecture. `build` gives a model with fresh weights on the CPU in float32."""

    def resolved(self) -> Self:
        """The same settings with every value that was left open derived from the dial."""
        return self

    def recommended(self) -> dict[str, Any]:
        """Values that follow from the dial for other sections: ``{"prepare.vocabulary_at_most": 4096, "train.batch_tokens": …}``."""
        return {}

    def context_length(self) -> int:
        """Positions that the model was made for."""
        raise NotImplementedError

    def build(self, vocabulary: int, seed: int) -> LanguageModel:
        """A model for token ids below `vocabulary`; the same seed gives the same weights."""
        raise NotImplementedError

    def parameters(self, vocabulary: int) -> int:
        """Number of trainable numbers, computed without building."""
        raise NotImplementedError
