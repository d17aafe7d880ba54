"""Layouts of weights for decoding: the same products however the numbers lie, chosen by a measurement, at no cost to the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chattune.generate import layouts
from chattune.generate.layouts import FEW, LAYOUTS, Layouts, fastest, laid_out
from chattune.generate.runner import Piece, TorchRunner, runner_for
from chattune.models.families.gpt import GPT
from chattune.models.language_model import LanguageModel
from chattune.models.layers import Linear

VOCABULARY = 300


def build(**settings: Any) -> LanguageModel:
    shape = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "context": 96, "init_outputs": "same"}
    return GPT(**{**shape, "init": {"name": "normal", "std": 0.2}, **settings}).build(VOCABULARY, seed=0).eval()


@pytest.fixture
def every_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even small matrices are laid out, in another way for one row and for a few."""
    monkeypatch.setattr(layouts, "_SMALL", 1)
    monkeypatch.setattr(layouts, "_fastest", lambda dtype, shape, threads: Layouts("turned", "blocked", 1.0))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("biased", [False, True])
def test_a_layout_gives_the_product_of_the_plain_matrix(name: str, biased: bool) -> None:
    random = torch.Generator().manual_seed(0)
    for outputs, inputs in ((48, 80), (300, 64), (1, 7), (16, 512)):
        weight = torch.randn(outputs, inputs, generator=random)
        bias = torch.randn(outputs, generator=random) if biased else None
        with torch.inference_mode():
            product = LAYOUTS[name](weight, bias)
            for shape in ((1, 1), (5, 1), (3, 4), (1, 40)):
                x = torch.randn(*shape, inputs, generator=random)
                # float32 sums of at most 512 terms of order 1, in another order
                torch.testing.assert_close(product(x), torch.nn.functional.linear(x, weight, bias), atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("every_layout")
@pytest.mark.parametrize(
    "settings",
    [{"tied": False}, {"tied": True}, {"biases": "all", "activation": "gelu"}, {"logit_softcap": 5.0, "tied": False}, {"window": 8}],
    ids=["plain", "tied", "biased", "capped", "windowed"],
)
def test_a_model_that_is_laid_out_gives_the_logits_of_the_model(settings: dict[str, Any]) -> None:
    model = build(**settings)
    laid, head = laid_out(model)
    assert laid is not model
    own_head = model.head_weight() is None  # where the head is more than a product, its matrix is laid out inside the model
    assert sum(type(module) is layouts._Laid for module in laid.modules()) == 8 + own_head
    assert (type(head) is layouts._Laid) != own_head
    assert all(one is two for one, two in zip(model.parameters(), laid.parameters(), strict=True)), "no weight is held twice"
    assert not any(type(module) is layouts._Laid for module in model.modules()), "the model stays as it was"
    plain, fast = TorchRunner(model, slots=3, length=60), TorchRunner(laid, slots=3, length=60, head=head)
    ids = torch.randint(0, VOCABULARY, (3, 60), generator=torch.Generator().manual_seed(1)).tolist()
    close = {"atol": 1e-3, "rtol": 1e-4}  # float32 sums of some dozens of terms of order 10 through two layers
    for start, stop in ((0, FEW + 4), (FEW + 4, FEW + 5), (FEW + 5, FEW + 8)):
        pieces = [Piece(slot, start, ids[slot][start:stop], True) for slot in range(3)]
        for some in (pieces, pieces[:1]):
            torch.testing.assert_close(fast.forward(some), plain.forward(some), **close)


@pytest.mark.usefixtures("every_layout")
def test_what_watches_a_map_goes_on_watching_it() -> None:
    model = build()
    seen: list[int] = []
    maps = [module for module in model.modules() if type(module) is Linear]
    maps[0].register_forward_hook(lambda module, given, made: seen.append(1))
    laid, head = laid_out(model)
    TorchRunner(laid, slots=1, length=8, head=head).forward([Piece(0, 0, [5])])
    assert seen == [1]


def test_layouts_are_chosen_by_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(**seconds: float) -> None:
        monkeypatch.setattr(layouts, "_seconds", lambda products, x: {name: seconds.get(f"{name}{len(x)}", 1.0) for name in products})

    def chosen() -> Layouts:
        return layouts._fastest.__wrapped__(torch.float32, "wide", 1)

    taken(turned1=0.5, blocked8=0.7)
    assert chosen() == Layouts("turned", "blocked", 1.2)
    taken(blocked1=0.95, turned8=0.95)
    assert chosen() == Layouts("plain", "plain", 2.0), "a little is no reason"
    monkeypatch.setitem(LAYOUTS, "blocked", lambda weight, bias: torch.ops.mkldnn.there_is_none(weight))
    taken(blocked1=0.1, blocked8=0.1)
    assert chosen() == Layouts("plain", "plain", 2.0), "what a machine lacks is not chosen"
    monkeypatch.undo()
    found = fastest(torch.float32, 100, 50)
    assert found.names <= LAYOUTS.keys() and found.seconds > 0
    assert fastest(torch.float32, 300, 20) is found, "measured once"


def test_numbers_are_chosen_by_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model, place = build(), {"slots": 1, "length": 20, "native": False}
    monkeypatch.setattr(layouts, "bfloat16_is_faster", lambda: False)
    assert "weights in float32:" in runner_for(model, **place).why
    rounded = runner_for(model, weights="bfloat16", **place)
    assert "weights in float32 rounded to bfloat16:" in rounded.why, "it would be slow, and is computed in float32"
    short = build().to(torch.bfloat16)
    assert "weights in float32 rounded to bfloat16:" in runner_for(short, **place).why
    piece = [Piece(0, 0, [5, 6, 7])]
    torch.testing.assert_close(rounded.forward(piece), runner_for(short, **place).forward(piece))
    monkeypatch.setattr(layouts, "bfloat16_is_faster", lambda: True)
    assert "weights in bfloat16:" in runner_for(model, **place).why
    assert "weights in float32:" in runner_for(model, weights="float32", **place).why
    assert "weights in float32: the model's own numbers were asked for" in runner_for(model, slots=1, length=20, weights="own").why
    assert model.dtype == torch.float32, "the model itself stays"
