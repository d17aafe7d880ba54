"""The contract of every balancer, over whatever stands in the folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chattune.core.part import kind
from chattune.dialogs.balancers import Balancer, Weights
from chattune.dialogs.dialog import Dialog, Message

NAMES = kind("balancers").names()
SUBSETS = {"stratified", "k_center", "random_subset"}
TOPICS = {"cards": "where is my bank card number {}", "rates": "exchange rate of euros {}", "pins": "forgot the pin code again {}"}


def balancer(name: str, **settings: Any) -> Balancer:
    part = kind("balancers").load(name)(**settings)
    assert isinstance(part, Balancer)
    return part


def dialogs(count: int = 90) -> list[Dialog]:
    """Two thirds about cards, the others about rates and pins; of three sources, two languages, several lengths."""
    found = []
    for number in range(count):
        topic = "cards" if number % 3 else ("rates" if number % 2 else "pins")
        ask = Message("user", TOPICS[topic].format(number) if number % 10 else f"我的银行卡在哪里 {number}")
        reply = Message("assistant", "yes " * (1 + number % 4))
        turns = (ask, reply) * (1 + (number % 7 == 0))
        found.append(Dialog(str(number), turns, f"source {min(2, number % 9)}", "made", number + 1, None, {"label": topic}))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_finite_from_zero_and_not_all_zero(name: str) -> None:
    found = balancer(name).weights(dialogs(), seed=1)
    assert isinstance(found, Weights) and found.each.shape == (90,)
    assert np.isfinite(found.each).all() and found.each.min() >= 0 and found.each.any()
    if found.kinds is not None:
        assert len(found.kinds) == 90 and len(set(found.kinds)) > 1
    again = balancer(name).weights(dialogs(), seed=1)
    assert np.array_equal(found.each, again.each) and found.kinds == again.kinds and found.size == again.size


@pytest.mark.requirement("R016")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SUBSETS])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 1e6])
def test_kinds_come_with_the_power_of_their_size_that_the_temperature_says(name: str, temperature: float) -> None:
    found = balancer(name, temperature=temperature).weights(dialogs())
    assert found.kinds is not None
    sizes = {own: found.kinds.count(own) for own in found.kinds}
    total = sum(n ** (1 / temperature) for n in sizes.values())
    for own, n in sizes.items():
        weights = found.each[[other == own for other in found.kinds]]
        assert weights.sum() / found.each.sum() == pytest.approx(n ** (1 / temperature) / total)
        assert np.ptp(weights) < 1e-12, "dialogs of one kind are equal"


@pytest.mark.requirement("R019")
@pytest.mark.parametrize("name", sorted(SUBSETS))
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_subset_has_the_size_asked_for_and_each_dialog_once(name: str, share: float) -> None:
    found = balancer(name, share=share).weights(dialogs())
    assert set(np.unique(found.each)) <= {0.0, 1.0}
    assert found.each.sum() == found.size == round(share * 90)
    assert balancer(name, share=0.001).weights(dialogs()).size == 1


@pytest.mark.parametrize("name", NAMES)
def test_dialogs_need_not_be_in_memory(name: str) -> None:
    """They are iterated over, never looked up by their place."""

    class Streamed:
        def __iter__(self) -> Any:
            return iter(dialogs())

        def __len__(self) -> int:
            return 90

        def __contains__(self, dialog: object) -> bool:
            return dialog in dialogs()

    assert np.array_equal(balancer(name).weights(Streamed(), seed=2).each, balancer(name).weights(dialogs(), seed=2).each)
