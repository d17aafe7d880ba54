"""The contract of every norm, over whatever stands in the folder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chattune.core.part import choose, kind
from chattune.models.families import Family
from chattune.models.norms import Norm

NAMES = kind("norms").names()
WIDTH = 12


def norm(name: str, **settings: Any) -> Norm:
    part: Norm = choose(Norm, {"name": name, **settings})
    return part


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 1


class _Unit(nn.Module):
    """A linear map as a family uses it with a norm."""

    def __init__(self, name: str) -> None:
        super().__init__()
        linear = nn.Linear(5, WIDTH).double()
        with torch.no_grad():
            linear.weight.copy_(numbers(WIDTH, 5, seed=7))
            linear.bias.copy_(numbers(WIDTH, seed=8))
        self.linear, self.norm = norm(name).wrap(linear), norm(name).build(WIDTH).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


@pytest.mark.parametrize("shape", [(WIDTH,), (7, WIDTH), (2, 3, WIDTH)])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_stay_and_parameters_are_as_many_as_said(name: str, shape: tuple[int, ...]) -> None:
    module = norm(name).build(WIDTH).double().eval()
    assert module(numbers(*shape)).shape == shape
    assert sum(p.numel() for p in module.parameters()) == norm(name).parameters(WIDTH)
    plain, wrapped = nn.Linear(5, WIDTH), norm(name).wrap(nn.Linear(5, WIDTH))
    more = sum(p.numel() for p in wrapped.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == norm(name).wrapped_parameters(WIDTH)


@pytest.mark.requirement("R056", "E12")
@pytest.mark.parametrize("name", NAMES)
def test_a_norm_mixes_tokens_in_training_only_if_it_says_so(name: str) -> None:
    module, x = norm(name).build(WIDTH).double().train(), numbers(2, 6, WIDTH)
    other = x.clone()
    other[1, 3:] = numbers(3, WIDTH, seed=4)
    alone = torch.equal(module(x)[0], module(other)[0])
    assert alone == norm(name).per_token
    module.eval()
    assert torch.equal(module(x)[0], module(other)[0]), "in use no norm mixes tokens"


@pytest.mark.requirement("R051")
@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences_in_training_mode(name: str) -> None:
    unit = _Unit(name).train()
    torch.autograd.gradcheck(lambda x: unit(x), numbers(6, 5).requires_grad_(), atol=1e-6, rtol=1e-4)
    names = [n for n, p in unit.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in unit.parameters()]
    x = numbers(6, 5, seed=1)

    def run(*values: Tensor) -> Tensor:
        return torch.func.functional_call(unit, dict(zip(names, values, strict=True)), (x,))

    torch.autograd.gradcheck(run, weights, atol=1e-6, rtol=1e-4)


@pytest.mark.requirement("R050", "R063")
@pytest.mark.parametrize("name", NAMES)
def test_one_word_in_a_recipe_chooses_the_norm_of_a_model_that_learns_and_decodes(name: str) -> None:
    from chattune.story import Recipe

    family = Recipe.read({"model": {"name": "mlp", "layers": 2, "width": 16, "window": 3}}, [f"model.norm={name}"]).sections["model"]
    assert family.norm == norm(name)
    model = family.build(40, seed=0)
    assert family.parameters(40) == sum(p.numel() for p in model.parameters())
    ids = torch.randint(40, (4, 12), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    model.eval()
    cache = model.new_cache(4, 12)
    found = torch.cat([model(piece, cache=cache) for piece in ids.split([5, 1, 6], 1)], 1)
    torch.testing.assert_close(found, model(ids), atol=1e-5, rtol=1e-5)  # sums of 48 products in float32, in another order


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_follows_float32(name: str) -> None:
    model = choose(Family, {"name": "mlp", "layers": 2, "width": 32, "norm": name}).build(40, 0).train()
    ids = torch.randint(40, (4, 16), generator=torch.Generator().manual_seed(0))
    exact = model(ids).detach()
    short = model.to(torch.bfloat16)(ids).detach()
    assert short.dtype == torch.bfloat16
    torch.testing.assert_close(short.float(), exact, atol=0.05, rtol=0.05)  # 8 bits of mantissa through four matrices


def test_norms_that_do_not_know_later_tokens_fit_every_place_that_asks() -> None:
    assert {name for name in NAMES if not norm(name).per_token} == {"batch_norm"}
    assert {name for name in NAMES if norm(name).place == "activation"} == {"local_response_norm"}
