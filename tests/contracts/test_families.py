"""The contract of every model family, over whatever stands in the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from chattune.core.errors import SettingError
from chattune.core.part import choose, kind
from chattune.models.checkpoint import load_model, save_model
from chattune.models.families import Family
from chattune.models.language_model import LanguageModel
from chattune.tokens.control import CONTROL
from chattune.tokens.template import Template
from chattune.tokens.tokenizer import Tokenizer

NAMES = kind("families").names()
VOCABULARY = 300
# Settings that make a model small, and its fresh outputs other than zero, wherever a family has them.
SMALL = {
    "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "context": 32, "init": {"name": "normal", "std": 0.2}, "init_outputs": "same",
}  # fmt: skip
END = CONTROL.index("end")
CLOSE = 1e-5  # float32 sums of some hundred terms of order 1, taken in another order
ROUNDING = 2e-6  # of float32 losses of some nats
# They encode each turn by itself: ids of a neighbour that end a turn elsewhere change the shapes of products, and so their last digits.
TURNS = ("encoder_decoder", "seq2seq")


def family(name: str, **settings: Any) -> Family:
    part = kind("families").load(name)
    return part(**{key: value for key, value in {**SMALL, **settings}.items() if key in part.model_fields})


def model(name: str, **settings: Any) -> LanguageModel:
    return family(name, **settings).build(VOCABULARY, seed=0).eval()


def ids(rows: int, time: int, seed: int = 0) -> Tensor:
    """Random tokens, every sixth or so the end of a turn."""
    random = torch.Generator().manual_seed(seed)
    words = torch.randint(7, VOCABULARY, (rows, time), generator=random)
    return torch.where(torch.rand(rows, time, generator=random) < 0.15, END, words)


def losses(m: LanguageModel, inputs: Tensor, positions: Tensor | None, segments: Tensor | None) -> Tensor:
    """(rows, time) nats of predicting each position's successor; the last column means nothing."""
    logits = m(inputs, positions, segments)
    return cross_entropy(logits.transpose(1, 2), inputs.roll(-1, 1), reduction="none")


@pytest.mark.requirement("R069", "E9")
@pytest.mark.parametrize("name", NAMES)
def test_later_tokens_never_change_earlier_logits(name: str) -> None:
    m, first = model(name), ids(2, 20)
    close = 0 if m.compiles else CLOSE  # the same sums, to the bit; products over turns of other lengths are rounded otherwise
    for cut in (1, 7, 19):
        second = torch.cat([first[:, :cut], ids(2, 20 - cut, seed=1)], 1)
        torch.testing.assert_close(m(first)[:, :cut], m(second)[:, :cut], atol=close, rtol=close)
        assert not torch.equal(m(first)[:, cut:], m(second)[:, cut:])


@pytest.mark.parametrize("pieces", [[1] * 20, [20], [7, 1, 1, 11]])
@pytest.mark.parametrize("name", NAMES)
def test_cached_decoding_equals_full_forward(name: str, pieces: list[int]) -> None:
    m, inputs = model(name), ids(3, 20)
    cache, found = m.new_cache(3, 20), []
    for piece in inputs.split(pieces, 1):
        found.append(m(piece, cache=cache))
    torch.testing.assert_close(torch.cat(found, 1), m(inputs), atol=CLOSE, rtol=CLOSE)
    with pytest.raises(ValueError, match="holds 20 tokens"):
        m(inputs[:, :1], cache=cache)


@pytest.mark.parametrize("name", NAMES)
def test_cached_decoding_of_ragged_prompts_equals_each_alone(name: str) -> None:
    m, inputs, lengths = model(name), ids(3, 12), [12, 5, 1]
    segments = torch.tensor([[0] * n + [-1] * (12 - n) for n in lengths])
    cache = m.new_cache(3, 16)
    m(inputs, segments=segments, cache=cache)
    assert cache.lengths.tolist() == lengths
    more = ids(3, 3, seed=1)
    steps = [m(more[:, :1], cache=cache), m(more[:, 1:2], cache=cache)]
    cache.select(torch.tensor([2, 0]))  # rows may leave and change places on the way
    steps.append(m(more[[2, 0], 2:], cache=cache))
    for row, length in enumerate(lengths):
        alone = m(torch.cat([inputs[row : row + 1, :length], more[row : row + 1]], 1))[0, length:]
        torch.testing.assert_close(torch.stack([steps[0][row, 0], steps[1][row, 0]]), alone[:2], atol=CLOSE, rtol=CLOSE)
        if row != 1:
            torch.testing.assert_close(steps[2][[2, 0].index(row), 0], alone[2], atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_read_back_to_the_bit(name: str, tmp_path: Path) -> None:
    Template(Tokenizer.train_at_most(["some words, 一些字"] * 3, 280)).save(tmp_path)
    m = model(name)
    save_model(m, tmp_path, tmp_path / "out", "# A model\n")
    again = load_model(tmp_path / "out")
    assert again.family == m.family.resolved()
    assert again.vocabulary == VOCABULARY
    torch.testing.assert_close(again(ids(2, 9)), m(ids(2, 9)), atol=0, rtol=0)


@pytest.mark.requirement("R026")
@pytest.mark.parametrize("name", NAMES)
def test_padding_never_changes_a_loss(name: str) -> None:
    m, inputs = model(name), ids(2, 12)
    segments = torch.tensor([[0] * 12, [0] * 5 + [-1] * 7])
    positions = torch.arange(12).repeat(2, 1)
    found = losses(m, inputs, positions, segments)
    assert found.isfinite().all(), "padding gives no NaN"
    torch.testing.assert_close(found[1, :4], losses(m, inputs[1:, :5], None, None)[0, :4], atol=CLOSE, rtol=CLOSE)
    for filler in (0, END, VOCABULARY - 1):
        other = torch.where(segments < 0, filler, inputs)
        assert torch.equal(losses(m, other, positions, segments)[1, :4], found[1, :4])


@pytest.mark.parametrize("name", NAMES)
def test_packed_windows_have_the_losses_they_have_alone(name: str) -> None:
    m, inputs = model(name), ids(1, 15)
    lengths = [4, 6, 3]
    positions = torch.tensor([[*range(4), *range(6), *range(3), 0, 0]])
    segments = torch.tensor([[0] * 4 + [1] * 6 + [2] * 3 + [-1] * 2])
    found, start = losses(m, inputs, positions, segments), 0
    for length in lengths:
        alone = losses(m, inputs[:, start : start + length], None, None)
        torch.testing.assert_close(found[:, start : start + length - 1], alone[:, :-1], atol=CLOSE, rtol=CLOSE)
        start += length
    changed = inputs.clone()
    changed[0, 4:10] = ids(1, 6, seed=5)  # the neighbour in the middle says something else
    other = losses(m, changed, positions, segments)
    for own in (slice(0, 3), slice(10, 12)):
        if name in TURNS:
            torch.testing.assert_close(other[0, own], found[0, own], atol=ROUNDING, rtol=ROUNDING)
        else:
            assert torch.equal(other[0, own], found[0, own])
    assert not torch.equal(other[0, 4:9], found[0, 4:9])


@pytest.mark.requirement("E12")
@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_the_others_in_its_batch(name: str) -> None:
    m, inputs = model(name).train(), ids(3, 10)
    other = torch.cat([inputs[:1], ids(2, 10, seed=9)])
    assert torch.equal(m(inputs)[0], m(other)[0])


@pytest.mark.requirement("R095")
@pytest.mark.parametrize("name", NAMES)
def test_gradients_flow_to_every_parameter(name: str) -> None:
    m = model(name).train()
    losses(m, ids(2, 16), None, None).mean().backward()
    for parameter, weight in m.named_parameters():
        assert weight.grad is not None, parameter
        assert weight.grad.isfinite().all(), parameter
        assert weight.grad.abs().sum() > 0, parameter


@pytest.mark.requirement("R095")
@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name: str) -> None:
    m, inputs = model(name, init={"name": "normal", "std": 0.5}).double().train(), ids(2, 8)

    def loss() -> Tensor:
        return losses(m, inputs, None, None)[:, :-1].mean()

    loss().backward()
    random = torch.Generator().manual_seed(0)
    for parameter, weight in m.named_parameters():
        direction = torch.randn(weight.shape, generator=random, dtype=torch.float64)
        step = 1e-6
        with torch.no_grad():
            weight += step * direction
            above = loss()
            weight -= 2 * step * direction
            below = loss()
            weight += step * direction
        assert weight.grad is not None
        # Central differences: an error of order step² from the third derivative, and 1e-16 / step from rounding.
        assert float((weight.grad * direction).sum()) == pytest.approx(float(above - below) / (2 * step), rel=1e-5, abs=1e-8), parameter


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_parameters_is_known_without_building(name: str) -> None:
    for settings in ({}, {"tied": False}, {"qk_norm": False}, {"kv_heads": 4, "hidden": 50, "layers": 1}):
        assert family(name, **settings).parameters(VOCABULARY) == sum(p.numel() for p in model(name, **settings).parameters())


@pytest.mark.requirement("R074", "R076")
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own flags ask about GPUs that are not there
@pytest.mark.parametrize("time", [16, 32])
@pytest.mark.parametrize("name", NAMES)
def test_the_operations_of_a_token_are_those_that_torch_counts(name: str, time: int) -> None:
    m, inputs = model(name), ids(4, time)
    # Fused recurrent kernels are not counted; the plain path does the same products.
    with FlopCounterMode(display=False) as counted, torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        m(inputs)
    assert m.family.operations(VOCABULARY, time) == pytest.approx(counted.get_total_flops() / inputs.numel(), rel=0.05)


@pytest.mark.requirement("R071", "R074")
@pytest.mark.parametrize("name", NAMES)
def test_a_family_can_be_given_a_number_of_parameters(name: str) -> None:
    part = kind("families").load(name)
    if not part.dials:
        pytest.skip("its size is a given one")
    for asked, vocabulary, near in ((120_000, 300, 0.1), (1_300_000, 4096, 0.02)):  # the steps of a dial are coarse in a small model
        sized = part(size="micro").sized(asked, vocabulary)
        assert sized.parameters(vocabulary) == pytest.approx(asked, rel=near)
        assert sized.resolved().parameters(vocabulary) == sized.parameters(vocabulary)
    with pytest.raises(SettingError, match="contradict") as caught:
        part(size="micro").resolved().sized(1_300_000, 4096)
    assert caught.value.path == f"model.{part.dials[0][0]}"
    with pytest.raises(SettingError, match="smallest"):
        part(size="micro").sized(10, 4096)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    first, same, other = (family(name).build(VOCABULARY, seed=seed) for seed in (3, 3, 4))
    for (parameter, a), b, c in zip(first.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), parameter
        assert a.ndim < 2 or not torch.equal(a, c), parameter


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_one_group_and_only_vectors_are_spared_decay(name: str) -> None:
    m = model(name)
    groups = m.groups()
    assert sorted(n for group in groups for n in group["names"]) == sorted(n for n, _ in m.named_parameters())
    by_name = dict(m.named_parameters())
    for group in groups:
        assert group["decay"] == (group["role"] != "vector")
        for parameter, weight, split in zip(group["names"], group["params"], group["splits"], strict=True):
            assert by_name[parameter] is weight
            assert (weight.ndim < 2) == (group["role"] == "vector")
            assert not split or sum(split) == len(weight)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_only_and_follows_the_seed(name: str) -> None:
    m, inputs = model(name), ids(2, 12)
    plain = m(inputs)
    m.set_dropout(0.5)
    assert torch.equal(m(inputs), plain)
    m.train()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = m(inputs)
        torch.manual_seed(1)
        assert torch.equal(m(inputs), first)
        assert not torch.equal(m(inputs), first)
    m.set_dropout(0.0)
    assert torch.equal(m(inputs), plain)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_follows_float32(name: str) -> None:
    m, inputs = model(name, init={"name": "normal", "std": 0.1}), ids(2, 24)
    exact = float(losses(m, inputs, None, None)[:, :-1].detach().mean())
    short = float(losses(m.to(torch.bfloat16), inputs, None, None)[:, :-1].detach().float().mean())
    assert short == pytest.approx(exact, abs=0.02)  # 8 bits of mantissa; errors of single tokens cancel in the mean
    cache = m.new_cache(2, 24)
    cached = torch.cat([m(inputs[:, :10], cache=cache), m(inputs[:, 10:], cache=cache)], 1)
    torch.testing.assert_close(cached, m(inputs), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_open_is_derived_once_and_survives_a_plan(name: str) -> None:
    open_settings = kind("families").load(name)()
    resolved = open_settings.resolved()
    assert resolved.resolved() == resolved
    assert None not in [value for key, value in resolved.model_dump().items() if key in ("layers", "width", "context")]
    assert choose(Family, resolved.dump()) == resolved
    assert resolved.recommended() == open_settings.recommended()
    assert all(path.count(".") >= 1 for path in resolved.recommended())
    assert resolved.context_length() == open_settings.context_length() > 0


@pytest.mark.requirement("R074", "R076")
def test_each_size_is_larger_than_the_one_before() -> None:
    gpt = kind("families").load("gpt")
    sizes = [gpt(size=size) for size in ("micro", "tiny", "small", "medium", "base", "large")]
    counts = [size.parameters(size.recommended()["prepare.vocabulary_at_most"]) for size in sizes]
    assert counts == sorted(counts)
    assert len(set(counts)) == 6
    assert 3e6 < counts[1] < 6e6, "the demo's size is the few million parameters that its card promises"


def test_settings_that_contradict_each_other_are_refused_by_their_path() -> None:
    from chattune.core.config import validate
    from chattune.core.part import Settings

    class Recipe(Settings):
        model: Family

    for settings, path in (
        ({"width": 64, "heads": 3}, "model.heads"), ({"width": 6, "heads": 2}, "model.heads"),
        ({"heads": 4, "kv_heads": 3}, "model.kv_heads"), ({"width": 33}, "model.width"),
        ({"size": "enormous"}, "model.size"), ({"dropout": 1.0}, "model.dropout"),
        ({"layer": 3}, "model.layer"),
    ):  # fmt: skip
        with pytest.raises(SettingError) as caught:
            validate(Recipe, {"model": {"name": "gpt", **settings}})
        assert caught.value.path == path


@pytest.mark.requirement("R042", "R043", "R044", "E6")
def test_fresh_matrices_have_the_standard_deviation_that_was_stated() -> None:
    gpt = kind("families").load("gpt")
    for std, wanted in ((0.03, lambda inputs: 0.03), (None, lambda inputs: inputs**-0.5)):
        m = gpt(size="tiny", init={"name": "normal", "std": std} if std else "fan_in").build(1000, seed=0)
        for name, weight in m.named_parameters():
            if weight.ndim == 2 and name.endswith(("qkv.weight", "gate_up.weight")):
                assert float(weight.detach().std()) == pytest.approx(wanted(weight.shape[1]), rel=0.03), name  # 3 %, some 200,000 draws
    zero = gpt(size="tiny").build(300, 0)
    scaled = gpt(size="tiny", init={"name": "normal", "std": 0.02}, init_outputs="scaled").build(300, 0)
    for name, weight in zero.named_parameters():
        if name.endswith("output.weight"):
            assert not weight.detach().any()
            assert float(scaled.get_parameter(name).detach().std()) == pytest.approx(0.02 / 8**0.5, rel=0.03)


@pytest.mark.requirement("R025")
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_one_table_or_two(tied: bool) -> None:
    m = family("gpt", tied=tied).build(VOCABULARY, 0)
    tables = [name for name, weight in m.named_parameters() if VOCABULARY in weight.shape]
    assert tables == (["embedding.weight"] if tied else ["embedding.weight", "output.weight"])
    assert m.hidden(ids(2, 5)).shape == (2, 5, 32)
    assert m(ids(2, 5)).shape == (2, 5, VOCABULARY)
    hidden = m.hidden(ids(2, 5))
    torch.testing.assert_close(m.head(hidden), hidden @ m.head_weight().T, atol=CLOSE, rtol=CLOSE)
