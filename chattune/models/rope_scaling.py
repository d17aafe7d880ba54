"""The settings of stretched rotary positions. Knows no torch; the formulas are in `layers`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from chattune.core.part import Settings, setting


class RopeScaling(Settings):
    """Rotary positions for contexts longer than those a model was first trained with."""

    type: Literal["linear", "llama3"] = setting(
        "llama3", "linear: all wavelengths are stretched by the factor; llama3: only those that are long against the first context"
    )
    factor: float = setting(8.0, "by which wavelengths are stretched", low=1.0, high=1e4)
    low: float = setting(1.0, "llama3: wavelengths above the first context divided by this are stretched in full", above=0.0, high=1e4)
    high: float = setting(4.0, "llama3: wavelengths below the first context divided by this stay", above=0.0, high=1e4)
    context: int = setting(8192, "llama3: the first context, in tokens", low=1, high=1 << 24)

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low >= self.high:
            raise PydanticCustomError("rope_scaling", "low must be below high, {high}", {"high": self.high})
        return self
