"""Model families: one word in a recipe chooses the architecture.

A family's settings are its architecture; `resolved` derives what the user left open from the one dial, `build` makes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ValidationError

from chattune.core.errors import SettingError
from chattune.core.part import Part

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel


_LARGEST = 1 << 20  # no dial is turned beyond


class Family(Part):
    """An architecture. `build` gives a model with fresh weights on the CPU in float32.

    `dials` are the settings that `sized` turns, each with its step, the coarse one first; the number of parameters grows with each.
    """

    dials: ClassVar[tuple[tuple[str, int], ...]] = (("width", 1),)

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

    def empty(self, vocabulary: int) -> LanguageModel:
        """As `build`, for weights that are read from somewhere: what its own weights hold means nothing."""
        return self.build(vocabulary, seed=0)

    def parameters(self, vocabulary: int) -> int:
        """Number of trainable numbers, computed without building."""
        raise NotImplementedError

    def operations(self, vocabulary: int, time: int) -> float:
        """Floating-point operations of one token's forward pass, head included: the mean over a window of `time` tokens.

        Two a multiply-add; matrix products, convolutions and attention as they are computed, masked places included; norms,
        activations and look-ups are left out. Training costs about three times as much.
        """
        raise NotImplementedError

    def sized(self, parameters: int, vocabulary: int) -> Self:
        """The same family with its dials turned so that ``parameters(vocabulary)`` comes nearest to the number asked.

        Settings that were given stay, and what was left open follows. Raises `SettingError` where the first dial was given
        already, or where even its smallest value makes a model more than twice as large.
        """
        family = self
        for place, (dial, step) in enumerate(self.dials):
            if getattr(self, dial) is None:
                family = family._nearest(dial, step, parameters, vocabulary)
            elif place == 0:
                raise SettingError(
                    f"{dial} and the number of parameters contradict each other.", path=f"model.{dial}", value=getattr(self, dial),
                    rule="one of the two", hint=f"Leave model.{dial} open.",
                )
        if (found := family.parameters(vocabulary)) > 2 * parameters:
            raise SettingError(
                f"the smallest {self.name} that these settings allow has {found:,} parameters.", path="model", value=parameters,
                rule=f"at least {found:,}", hint="Ask for more, for fewer layers or for a smaller vocabulary.",
            )
        return family

    def _nearest(self, dial: str, step: int, parameters: int, vocabulary: int) -> Self:
        """The dial at the multiple of `step` that comes nearest; values that other settings do not allow are passed over."""
        best, distance = self, float("inf")
        for value in range(step, _LARGEST, step):
            try:
                family = self.changed(**{dial: value})
            except ValidationError as error:
                if any(problem["type"] == "less_than_equal" for problem in error.errors()):
                    break  # the largest that the setting allows
                continue
            count = family.parameters(vocabulary)
            if abs(count - parameters) < distance:
                best, distance = family, abs(count - parameters)
            if count >= parameters:
                break
        return best
