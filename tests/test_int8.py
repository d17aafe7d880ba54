"""Training in int8: products within their rounding, gradients too, the loss follows float32; never chosen by itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from chattune.core.errors import SettingError
from chattune.models import int8, products
from chattune.models.families import Family
from chattune.models.families.gpt import GPT
from chattune.models.families.lstm import LSTM
from chattune.models.language_model import LanguageModel
from chattune.models.layers import Linear
from chattune.tokens.batch import Batch
from chattune.train import device
from chattune.train.budget import Budget
from chattune.train.config import TrainConfig
from chattune.train.loop import Training

VOCABULARY = 40
TINY = GPT(layers=2, width=64, heads=2, hidden=96, context=32)


def batch(number: int, rows: int = 8, time: int = 32) -> Batch:
    """Rows that repeat a short random phrase, so that there is something to learn."""
    random = torch.Generator().manual_seed(number)
    phrase = torch.randint(4, VOCABULARY, (rows, 5), generator=random)
    ids = phrase.repeat(1, time // 5 + 2)[:, : time + 1]
    place = torch.arange(time).expand(rows, -1).contiguous()
    weights = torch.ones(rows, time)
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), weights, place, torch.zeros_like(place, dtype=torch.int32))


class Batches:
    index = 0

    def next(self) -> Batch:
        self.index += 1
        return batch(self.index)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": 0, "index": self.index}

    def load_state_dict(self, state: Any) -> None:
        self.index = int(state["index"])


def view(model: LanguageModel) -> None:
    TrainConfig(steps=1).objective.view(model, batch(0)).loss.backward()  # type: ignore[no-untyped-call]


def trained(precision: str, steps: int) -> tuple[list[float], LanguageModel]:
    config = TrainConfig.model_validate({"steps": steps})
    master = TINY.build(VOCABULARY, 0).train()
    chosen, _ = device.choose_precision(master, view, precision)
    training = Training(config, device.Worker(master, chosen), Batches(), Budget(steps=steps), 0)
    return [training.step()["loss"] for _ in range(steps)], master


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).detach().norm() / wanted.detach().norm())


def test_products_of_whole_numbers_up_to_127_are_exact() -> None:
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-126, 127, (rows, 33), generator=random).float() for rows in (7, 5))
    x[:, 0] = weight[:, 0] = 127.0  # the largest of every row sets a scale of one
    torch.testing.assert_close(int8.int8_linear(x, weight), x @ weight.t(), rtol=1e-6, atol=0.0)  # the scales' own rounding


def test_products_and_gradients_are_off_by_the_rounding_alone() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, 100, 256, generator=random).requires_grad_()
    weight = torch.randn(80, 256, generator=random).requires_grad_()
    outer = torch.randn(3, 100, 80, generator=random)
    wanted = x @ weight.t()
    exact = torch.autograd.grad(wanted, (x, weight), outer)
    found = int8.int8_linear(x, weight)
    # A step is max/127 of a row; of 256 normal numbers the largest is about 2.8, so either operand is off by 2.8/127/√12 = 0.64 %.
    assert 0.004 < error(found, wanted) < 0.012
    for ours, theirs in zip(torch.autograd.grad(found, (x, weight), outer), exact, strict=True):
        assert 0.004 < error(ours, theirs) < 0.012


def test_rows_of_different_size_keep_their_own_precision() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4, 64, generator=random) * torch.tensor([[1e-6], [1.0], [1e6], [0.0]])
    weight = torch.randn(8, 64, generator=random)
    found, wanted = int8.int8_linear(x, weight), x @ weight.t()
    assert all(error(ours, theirs) < 0.02 for ours, theirs in zip(found[:3], wanted[:3], strict=True))
    assert torch.equal(found[3], torch.zeros(8))


def test_long_sums_are_taken_in_pieces_that_int32_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.ones(2, 1000), torch.ones(3, 1000)
    assert torch.equal(int8.int8_linear(x, weight), torch.full((2, 3), 1000.0))
    monkeypatch.setattr(int8, "_LONGEST", 64)
    torch.testing.assert_close(int8.int8_linear(x, weight), torch.full((2, 3), 1000.0), rtol=1e-6, atol=0.0)
    assert (1 << 16) * 127**2 < 2**31  # the piece that is used


def test_a_frozen_matrix_gets_no_gradient_and_lets_it_pass() -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(3, 8)
    int8.int8_linear(x, weight).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert weight.grad is None


def test_the_loss_in_int8_follows_float32() -> None:
    wide, _ = trained("float32", 60)
    narrow, _ = trained("int8", 60)
    assert wide[-1] < 0.9 * wide[0]  # something was learnt
    assert narrow != wide  # and int8 was really used
    # Later losses differ by what one per cent of noise in the products does: less than two per cent of the loss here.
    assert math.fabs(sum(narrow[-10:]) / sum(wide[-10:]) - 1) < 0.02


def test_int8_is_for_training_alone() -> None:
    _, model = trained("int8", 2)
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    assert linears
    assert all(linear.int8 for linear in linears)
    linear, x = linears[0].eval(), torch.randn(5, 64)
    assert torch.equal(linear(x), torch.nn.functional.linear(x, linear.weight))
    assert not torch.equal(linear.train()(x), torch.nn.functional.linear(x, linear.weight))


def test_int8_keeps_the_head_in_float32() -> None:
    model = TINY.changed(tied=False).build(VOCABULARY, 0)
    worker = device.Worker(model, "int8")
    assert [name for name, module in worker.model.named_modules() if isinstance(module, Linear) and not module.int8] == ["output"]


def test_auto_never_chooses_int8() -> None:
    chosen, why = device.choose_precision(TINY.build(VOCABULARY, 0), view, "auto")
    assert chosen in ("float32", "bfloat16")
    assert "int8" not in why


@pytest.mark.parametrize("family", [LSTM(layers=1, width=16)])
def test_a_family_without_such_products_is_refused_by_name(family: Family) -> None:
    model = family.build(VOCABULARY, 0).train()
    with pytest.raises(SettingError, match="int8 has nothing to do in the lstm family"):
        device.choose_precision(model, view, "int8")


def test_a_processor_with_wrong_sums_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert int8.int8_is_exact()
    monkeypatch.setattr(device, "int8_is_exact", lambda: False)
    with pytest.raises(SettingError, match="wrong sums"):
        device.choose_precision(TINY.build(VOCABULARY, 0), view, "int8")


@pytest.mark.parametrize(("gain", "remark"), [(4.0, ""), (0.05, ", though its products take 20 times as long as float32's here")])
def test_the_choice_says_in_how_many_maps_and_whether_it_pays(monkeypatch: pytest.MonkeyPatch, gain: float, remark: str) -> None:
    monkeypatch.setattr(device, "int8_gain", lambda: gain)  # what another processor would measure
    chosen, why = device.choose_precision(TINY.build(VOCABULARY, 0).train(), view, "int8")
    assert chosen == "int8"
    assert why == f"int8 as set, in 8 linear maps{remark}"  # queries with keys and values, output, gate with up, output; two layers


def test_bfloat16_is_not_tried_where_its_products_are_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[LanguageModel] = []
    for gain, expected in ((0.1, 0), (2.0, 8)):
        monkeypatch.setattr(device, "bfloat16_gain", lambda gain=gain: gain)
        passes.clear()
        chosen, why = device.choose_precision(TINY.build(VOCABULARY, 0).train(), passes.append, "auto")
        assert len(passes) == expected, "no pass is spent on what the products alone decide"
        assert (chosen == "float32" and "10 times as long" in why) if gain < 1 else "ms in bfloat16" in why


def test_gains_are_measured_on_this_processor() -> None:
    assert 0 < products.int8_gain(64) < 1e3
    assert 0 < products.bfloat16_gain(64) < 1e3
