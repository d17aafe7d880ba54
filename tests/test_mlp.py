"""The feed-forward language model: its formula, its window, its depth. What every family promises is in the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from chattune.core.part import choose
from chattune.models.families import Family
from chattune.models.families._mlp import MLPModel
from chattune.models.init_report import look

PAPER = {"name": "mlp", "layers": 1, "activation": "tanh", "norm": None, "residual": False, "tied": False}


def build(**settings: Any) -> MLPModel:
    model = choose(Family, {**PAPER, "width": 6, "hidden": 10, "window": 3, **settings}).build(30, seed=0)
    assert isinstance(model, MLPModel)
    return model.eval()


def ids(rows: int, time: int) -> torch.Tensor:
    return torch.randint(30, (rows, time), generator=torch.Generator().manual_seed(0))


def test_the_network_of_the_paper_is_a_tanh_layer_over_embeddings_side_by_side() -> None:
    model, tokens = build(), ids(1, 7)
    with torch.no_grad():
        model.get_parameter("layers.0.linear.bias").normal_()
    weights = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    table = np.vstack([weights["embedding.weight"] * 6**0.5, np.zeros(6)])  # the last row stands for nothing
    found = []
    for at in range(7):
        seen = [int(tokens[0, at - back]) if at >= back else 30 for back in range(3)]
        hidden = np.tanh(weights["layers.0.linear.weight"] @ np.concatenate(table[seen]) + weights["layers.0.linear.bias"])
        found.append(weights["output.weight"] @ weights["projection.weight"] @ hidden)
    np.testing.assert_allclose(model(tokens)[0].detach().numpy(), found, atol=1e-6)  # float32, sums of 18 products below 1


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_prediction_sees_its_window_and_nothing_before(window: int) -> None:
    model, tokens = build(window=window), ids(1, 9)
    for at in range(9):
        changed = tokens.clone()
        changed[0, at] = (tokens[0, at] + 1) % 30
        differs = (model(changed) != model(tokens)).any(-1)[0]
        assert differs.tolist() == [at <= place < at + window for place in range(9)]


def test_nothing_before_a_window_is_not_the_first_token() -> None:
    model = build()
    alone, padded = model(torch.tensor([[0]]))[0, 0], model(torch.tensor([[0, 0]]))[0, 1]
    assert not torch.allclose(alone, padded)


@pytest.mark.requirement("R072")
def test_residual_branches_bring_the_gradient_through_thirty_layers() -> None:
    deep = {"layers": 30, "activation": "logistic", "init": "xavier_uniform", "biases": False, "hidden": 32}
    without, with_them = (look(build(**deep, residual=residual), ids(4, 17)) for residual in (False, True))
    assert without.gradient_ratio is not None and without.gradient_ratio < 1e-12
    assert with_them.gradient_ratio is not None and 0.1 < with_them.gradient_ratio < 100


def test_units_beside_an_activation_norm_and_settings_that_follow() -> None:
    family = choose(Family, {"name": "mlp", "size": "small", "norm": "batch_norm"}).resolved()
    assert (family.layers, family.width, family.hidden, family.biases) == (3, 384, 768, False)
    assert family.context_length() == 256
    assert family.recommended()["train.batch_tokens"] == 8192
