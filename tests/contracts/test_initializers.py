"""The contract of every initializer, over whatever stands in the folder."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from chattune.core.part import choose, kind
from chattune.models.fresh import fill
from chattune.models.initializers import Initializer, Place

NAMES = kind("initializers").names()
FLAT = ("zero", "constant")  # that draw nothing
SEEN = 0.03  # relative error of a variance of 40,000 draws or more: 4 standard errors of √(2/n)


def fresh(name: str, outputs: int = 300, inputs: int = 200, role: str = "matrix", seed: int = 0, **settings: Any) -> Tensor:
    weight = torch.full((outputs, inputs), math.nan)
    place = Place("layer.weight", inputs, outputs, role, branches=8)  # type: ignore[arg-type]
    part: Initializer = choose(Initializer, {"name": name, **settings})
    part.fill(weight, place, torch.Generator().manual_seed(seed))
    return weight


@pytest.mark.parametrize("role", ["matrix", "embedding", "head", "branch_output"])
@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_overwritten_and_finite(name: str, role: str) -> None:
    assert fresh(name, role=role).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_draw_follows_the_generator_it_is_given_and_no_other(name: str) -> None:
    before = torch.random.get_rng_state()
    first, same, other = fresh(name), fresh(name), fresh(name, seed=1)
    assert torch.equal(first, same)
    assert torch.equal(first, other) == (name in FLAT)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_filled_in_place_and_stay_leaves(name: str) -> None:
    weight = torch.nn.Parameter(torch.full((6, 4), math.nan))
    part: Initializer = choose(Initializer, name)
    part.fill(weight, Place("w", 4, 6), torch.Generator().manual_seed(0))
    assert weight.is_leaf and weight.requires_grad and weight.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_what_is_drawn_is_zero(name: str) -> None:
    if name in FLAT:
        pytest.skip("draws nothing")
    weight = fresh(name)
    assert abs(float(weight.mean())) < 4 * float(weight.std()) / weight.numel() ** 0.5  # four standard errors


@pytest.mark.requirement("R044")
@pytest.mark.parametrize("name", ["fan_in", "he", "xavier_uniform", "xavier_normal", "orthogonal"])
def test_more_inputs_mean_smaller_weights(name: str) -> None:
    sizes = [float(fresh(name, outputs=64, inputs=inputs).std()) for inputs in (64, 256, 1024)]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("name", NAMES)
def test_token_tables_do_not_follow_fans(name: str) -> None:
    for role in ("embedding", "head"):
        small, large = (float(fresh(name, 3000, width, role=role).std()) for width in (16, 256))
        assert small == pytest.approx(large, rel=SEEN), "48,000 draws and more"


def test_all_zero_and_constant_weights_remark_on_the_symmetry_problem() -> None:
    for name in NAMES:
        part: Initializer = choose(Initializer, name)
        assert any("symmetry" in note for note in part.notes()) == (name in FLAT)


@pytest.mark.requirement("R050")
@pytest.mark.parametrize("name", NAMES)
def test_one_word_in_a_recipe_chooses_the_fresh_weights_of_a_model(name: str) -> None:
    from chattune.story import Recipe

    recipe = Recipe.read({"model": {"name": "mlp", "layers": 1, "width": 16}}, [f"model.init={name}"])
    model = recipe.sections["model"].build(50, seed=0)
    weight = model.get_parameter("projection.weight").detach()
    expected = torch.empty_like(weight)
    recipe.sections["model"].init.fill(expected, Place("projection.weight", 32, 16), _stream("projection.weight"))
    assert torch.equal(weight, expected)


def test_fused_matrices_are_filled_one_by_one_where_their_outputs_count() -> None:
    model = choose(kind("families").contract(), {"name": "gpt", "layers": 1, "width": 64, "heads": 4, "kv_heads": 2}).build(50, 0)
    name = "blocks.0.attention.qkv.weight"
    parts = model.splits(name)
    assert len(parts) == 3 and parts[1] < parts[0]
    fill(model, choose(Initializer, "orthogonal"), 0)
    for matrix in model.get_parameter(name).detach().split(parts):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5, rtol=0)  # float32, sums of 64 products
    fill(model, choose(Initializer, "xavier_uniform"), 0)
    for matrix in model.get_parameter(name).detach().split(parts):
        bound = (6 / (64 + len(matrix))) ** 0.5
        assert 0.95 * bound < float(matrix.abs().max()) <= bound


def test_branch_outputs_begin_as_asked() -> None:
    model = choose(kind("families").contract(), {"name": "gpt", "layers": 2, "width": 64}).build(50, 0)
    name, std = "blocks.1.feed_forward.output.weight", {}
    for outputs in ("zero", "scaled", "same"):
        fill(model, choose(Initializer, {"name": "normal", "std": 0.1}), 0, outputs=outputs, branches=4)
        std[outputs] = float(model.get_parameter(name).detach().std())
    assert std["zero"] == 0.0
    assert std["same"] == pytest.approx(0.1, rel=SEEN)
    assert std["scaled"] == pytest.approx(std["same"] / 2, rel=1e-6)
    fill(model, choose(Initializer, "gpt2_scaled"), 0, branches=4)
    assert float(model.get_parameter(name).detach().std()) == pytest.approx(0.01, rel=SEEN)
    assert float(model.get_parameter("blocks.1.feed_forward.gate_up.weight").detach().std()) == pytest.approx(0.02, rel=SEEN)


def _stream(name: str) -> torch.Generator:
    from chattune.core.seeds import derived

    return torch.Generator().manual_seed(derived(0, "init", name))
