"""Training in int8: products within their rounding, gradients too, the loss follows float32; never chosen by itself. The compiled
product gives PyTorch's bits, whatever the layout, the size and the number of threads; where there is none, the reason is said."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
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


@pytest.mark.parametrize(
    ("gain", "why", "remark"),
    [
        (4.0, "", ""),
        (0.05, "there is no C++ compiler", ", though its products take 20 times as long as float32's here: there is no C++ compiler"),
        (0.8, "", ", though its products take 1.2 times as long as float32's here"),
    ],
)
def test_the_choice_says_in_how_many_maps_and_whether_it_pays(
    monkeypatch: pytest.MonkeyPatch, gain: float, why: str, remark: str
) -> None:
    monkeypatch.setattr(device, "int8_gain", lambda: gain)  # what another processor would measure
    monkeypatch.setattr(device, "uncompiled", lambda: why)
    chosen, said = device.choose_precision(TINY.build(VOCABULARY, 0).train(), view, "int8")
    assert chosen == "int8"
    assert said == f"int8 as set, in 8 linear maps{remark}"  # queries with keys and values, output, gate with up, output; two layers


def test_bfloat16_is_not_tried_where_its_products_are_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[LanguageModel] = []
    for gain, expected in ((0.1, 0), (2.0, 8)):
        monkeypatch.setattr(device, "bfloat16_gain", lambda gain=gain: gain)
        passes.clear()
        chosen, why = device.choose_precision(TINY.build(VOCABULARY, 0).train(), passes.append, "auto")
        assert len(passes) == expected, "no pass is spent on what the products alone decide"
        assert (chosen == "float32" and "10 times as long" in why) if gain < 1 else "ms in bfloat16" in why


def test_gains_are_measured_on_this_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    product = int8.int8_product
    monkeypatch.setattr(products, "int8_product", lambda a, b: (asked.append(tuple(a.shape)), product(a, b))[1])
    assert 0 < products.int8_gain(48) < 1e3
    assert set(asked) == {(48, 48)}, "what training uses is what is timed"
    assert 0 < products.bfloat16_gain(64) < 1e3


# ---- the compiled product ----

needs_kernel = pytest.mark.skipif(int8._loaded()[0] is None, reason=f"no compiled product: {int8._loaded()[1]}")


def by_pytorch(a: Tensor, b: Tensor) -> Tensor:
    """The oracle: PyTorch's rounding, and sums of whole numbers that float64 holds exactly."""
    (whole_a, scale_a), (whole_b, scale_b) = int8.quantized(a, 1), int8.quantized(b, 0)
    return (whole_a.double() @ whole_b.double()).float() * scale_a * scale_b


def by_kernel(a: Tensor, b: Tensor) -> Tensor:
    return int8._by_kernel(a, b)


def same_bits(found: Tensor, wanted: Tensor) -> bool:
    """Also where both are not numbers."""
    return torch.equal(found.isnan(), wanted.isnan()) and torch.equal(found.nan_to_num(7.0), wanted.nan_to_num(7.0))


def layouts(x: Tensor) -> list[Tensor]:
    """`x` by rows, by columns, as a part of something larger, and with steps in both directions."""
    rows, columns = x.shape
    part, apart = torch.full((rows + 3, columns + 5), torch.nan), torch.full((2 * rows, 3 * columns), torch.nan)
    part[1 : rows + 1, 2 : columns + 2] = x
    apart[::2, ::3] = x
    return [x, x.t().contiguous().t(), part[1 : rows + 1, 2 : columns + 2], part.t().contiguous().t()[1 : rows + 1, 2 : columns + 2],
            apart[::2, ::3]]  # fmt: skip


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


SIZES = [
    (1, 1, 1), (1, 40, 1), (40, 1, 3), (6, 16, 16), (7, 17, 17), (13, 31, 24), (5, 8, 9), (96, 64, 64), (97, 65, 65), (103, 130, 200),
    (200, 513, 40), (31, 2100, 33),
]  # fmt: skip


@needs_kernel
@pytest.mark.parametrize("shape", SIZES, ids=lambda shape: "x".join(map(str, shape)))
def test_the_compiled_product_has_the_bits_of_pytorch_s_in_every_layout(shape: tuple[int, int, int]) -> None:
    rows, terms, columns = shape
    random = torch.Generator().manual_seed(rows * terms + columns)
    a, b = torch.randn(rows, terms, generator=random), torch.randn(terms, columns, generator=random)
    a *= 10 ** torch.randn(rows, 1, generator=random)
    a[torch.rand(rows, generator=random) < 0.2] = 0.0
    b[:, torch.rand(columns, generator=random) < 0.2] = 0.0
    wanted = by_pytorch(a, b)
    for left in layouts(a):
        for right in layouts(b):
            assert torch.equal(by_kernel(left, right), wanted), (left.stride(), right.stride())


@needs_kernel
def test_halves_are_rounded_to_even_and_the_largest_sums_are_exact() -> None:
    a = torch.arange(-127.0, 127.0, 0.5).repeat(2, 1)  # a scale of one: every half, between two whole numbers
    b = torch.eye(a.shape[1]) * 127
    assert torch.equal(by_kernel(a, b), by_pytorch(a, b))
    terms = int8._LONGEST
    high, low = torch.full((2, terms), 127.0), torch.full((terms, 2), -127.0)
    assert torch.equal(by_kernel(high, low), torch.full((2, 2), float(-(127**2) * terms)))


@needs_kernel
def test_what_is_no_number_spreads_as_in_pytorch() -> None:
    random = torch.Generator().manual_seed(0)
    for bad in (torch.nan, torch.inf, -torch.inf, 3e38, 1e-38, 1e-45, -0.0):
        a, b = torch.randn(20, 50, generator=random), torch.randn(50, 30, generator=random)
        a[3] *= 1e-30
        a[3, 7] = a[11, 0] = b[49, 29] = b[4, 2] = bad
        a[5] = bad
        wanted = torch._int_mm(int8.quantized(a, 1)[0], int8.quantized(b, 0)[0]).float() * int8.quantized(a, 1)[1]
        wanted = wanted * int8.quantized(b, 0)[1]
        for left in layouts(a)[:2]:
            for right in layouts(b)[:2]:
                assert same_bits(by_kernel(left, right), wanted), bad


@needs_kernel
def test_the_number_of_threads_changes_no_bit(threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(301, 700, generator=random), torch.randn(700, 210, generator=random)
    assert a.shape[0] * a.numel() > int8._ALONE
    found = []
    for count in (1, 2, 3):
        threads(count)
        found += [by_kernel(a, b), by_kernel(a.t().contiguous().t(), b)]
    monkeypatch.setattr(int8, "threads_of_torch", lambda: (None, None))  # a PyTorch with another pool: threads of the product's own
    found.append(by_kernel(a, b))
    assert all(torch.equal(one, by_pytorch(a, b)) for one in found)


@needs_kernel
def test_nothing_in_gives_nothing_out() -> None:
    assert by_kernel(torch.ones(0, 5), torch.ones(5, 3)).shape == (0, 3)
    assert by_kernel(torch.ones(2, 5), torch.ones(5, 0)).shape == (2, 0)
    assert torch.equal(by_kernel(torch.ones(2, 0), torch.ones(0, 3)), torch.zeros(2, 3))


@needs_kernel
def test_outputs_and_gradients_are_those_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, 41, 72, generator=random).requires_grad_()
    weight = torch.randn(50, 72, generator=random).requires_grad_()
    outer = torch.randn(3, 41, 50, generator=random)
    results = []
    for used in (True, False):
        monkeypatch.setattr(int8, "_compiled", lambda used=used: used)
        found = int8.int8_linear(x, weight)
        results.append((found.detach(), *torch.autograd.grad(found, (x, weight), outer)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@needs_kernel
def test_a_training_with_the_kernel_is_the_training_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for used in (True, False):
        monkeypatch.setattr(int8, "_compiled", lambda used=used: used)
        losses, model = trained("int8", 5)
        runs.append((losses, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())


@needs_kernel
def test_the_operation_keeps_the_rules_that_compilers_rely_on() -> None:
    a, b = torch.randn(5, 8), torch.randn(8, 3)
    torch.library.opcheck(int8._by_kernel, (a, b), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        ("chattune.core.native.shutil.which", "there is no C++ compiler"),
        ("torch.cpu.get_capabilities", "processor with VNNI"),
        ("CHATTUNE_NATIVE", "CHATTUNE_NATIVE=0"),
        ("_agrees", "something else than PyTorch"),
    ],
)
def test_where_the_kernel_is_not_used_pytorch_computes_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, setup: str, reason: str
) -> None:
    x, weight = torch.randn(9, 20), torch.randn(4, 20)
    wanted = int8.int8_linear(x, weight)
    if setup == "_agrees" and int8._loaded()[0] is None:
        pytest.skip(f"no compiled product: {int8._loaded()[1]}")
    monkeypatch.setattr(int8, "_loaded", int8._loaded.__wrapped__)  # looked for anew
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)  # where there is VNNI, that alone would be the reason
    if setup == "CHATTUNE_NATIVE":
        monkeypatch.setenv(setup, "0")
    elif setup == "_agrees":
        monkeypatch.setattr(int8, setup, lambda function: False)
    else:
        monkeypatch.setattr(setup, (lambda: {"avx512_vnni": True}) if "capab" in setup else (lambda name: None))
    assert reason in int8.uncompiled()
    monkeypatch.setattr(int8, "_by_kernel", None)  # not to be called
    assert torch.equal(int8.int8_linear(x, weight), wanted)


@needs_kernel
def test_a_product_that_computes_something_else_is_found_out() -> None:
    function, _ = int8._loaded()
    assert function is not None
    assert int8._agrees(function)

    def wrong(*given: Any) -> int:
        failed = function(*given)
        ctypes.cast(given[6], ctypes.POINTER(ctypes.c_float))[0] *= 1 + 1e-6
        return failed

    assert not int8._agrees(wrong)
