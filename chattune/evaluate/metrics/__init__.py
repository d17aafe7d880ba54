"""Metrics: numbers about replies, each with an interval over conversations.

Every reply counts: an empty one scores nothing where there was something to say, and is never left out. No figure depends
on the order of the items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from chattune.core.part import Part


@dataclass(frozen=True, slots=True)
class Item:
    """One reply to judge: the conversation it belongs to, what was said, what a person answered, what the model answered."""

    conversation: str
    prompt: str
    reference: str
    reply: str


@dataclass(frozen=True, slots=True)
class Score:
    """A value with its 95 % bootstrap interval over conversations; `per_item` in the order of the items, where it exists.

    `note` declares what the value depends on: the tokenisation, the signature of a library.
    """

    value: float
    low: float
    high: float
    per_item: tuple[float, ...] = field(default=())
    note: str = ""

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


class Metric(Part):
    """A number over replies. `better` says which direction is good: ``"higher"``, ``"lower"`` or ``"neither"``."""

    def score(self, items: Sequence[Item], seed: int = 0) -> Score:
        raise NotImplementedError

    @property
    def better(self) -> str:
        return "higher"

    @property
    def needs_reference(self) -> bool:
        """True when the reply is compared with what a person answered; otherwise people can be scored beside the model."""
        return True
