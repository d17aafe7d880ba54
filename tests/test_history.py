"""How much history helps: the curve of the loss over the length of the context, and its knee."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from chattune.evaluate.history import TOLERANCE, history_curve, knee, lengths, sentence
from chattune.models.families.gpt import GPT
from chattune.models.language_model import LanguageModel
from chattune.tokens.token_set import TokenSplit

VOCABULARY, BACK = 32, 20


class Echo(LanguageModel):
    """Expects the token of `BACK` places before, and knows nothing where that lies outside of what it sees."""

    def __init__(self) -> None:
        super().__init__(GPT(), VOCABULARY)
        self.scale = torch.nn.Parameter(torch.tensor(9.0))

    def hidden(self, ids: Tensor, *_: object, **__: object) -> Tensor:
        seen = torch.zeros(*ids.shape, VOCABULARY)
        seen[:, BACK - 1 :] = torch.nn.functional.one_hot(ids[:, : max(0, ids.shape[1] - BACK + 1)], VOCABULARY).float()
        return seen * self.scale

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


def echoing(dialogs: int = 12, length: int = 400) -> TokenSplit:
    """Each dialog repeats a random phrase of `BACK` tokens of its own."""
    random = np.random.default_rng(0)
    phrases = [np.resize(random.integers(8, VOCABULARY, BACK), length).tolist() for _ in range(dialogs)]
    return TokenSplit.of([(phrase, [0.0] + [1.0] * (length - 1)) for phrase in phrases], {"pad": 0, "end": 1})


@pytest.mark.requirement("R203")
def test_the_knee_is_where_a_longer_history_stops_paying() -> None:
    curve = history_curve(Echo(), echoing(), np.ones(VOCABULARY, dtype=np.int64), context=256, dialogs=8, seed=0)
    values = {point["context"]: point["value"] for point in curve["points"]}
    assert [*values] == [8, 16, 32, 64, 128, 256]
    assert values[8] == pytest.approx(5.0), "nothing is known of 32 tokens"
    assert values[32] > 1.5 * values[64], "some tokens see 20 back, others do not"
    # From 64 on every token sees at least 32, but for the first phrase of a dialog, which is the same for all lengths.
    assert values[64] == pytest.approx(values[256], rel=TOLERANCE)
    assert curve["knee"] == 64
    assert curve["conversations"] == 8
    assert all(point["more"]["low"] <= point["more"]["value"] <= point["more"]["high"] for point in curve["points"])
    assert "64 tokens of history are as good as 256" in sentence(curve)


def test_a_curve_that_still_falls_says_that_more_may_pay() -> None:
    curve = history_curve(Echo(), echoing(), np.ones(VOCABULARY, dtype=np.int64), context=32, dialogs=8, seed=0)
    assert curve["knee"] == 32
    assert "History still helps" in sentence(curve)


def test_lengths_halve_down_and_never_below_a_few_words() -> None:
    assert lengths(1024) == [32, 64, 128, 256, 512, 1024]
    assert lengths(96) == [12, 24, 48, 96]
    assert lengths(8) == [8]


def test_a_dip_before_a_rise_is_no_knee() -> None:
    def point(context: int, more: float) -> dict[str, object]:
        return {"context": context, "value": 1.0 + more, "more": {"value": more, "low": more, "high": more}}

    assert knee([point(8, 0.0), point(16, 0.5), point(32, 0.001), point(64, 0.0)]) == 32
