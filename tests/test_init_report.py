"""`init-report`: what fresh weights do, for every family, and what it says when they are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chattune.cli import main
from chattune.core.errors import UsageError
from chattune.core.part import choose, kind
from chattune.models.families import Family
from chattune.models.init_report import InitReport, batch, draw, look
from chattune.story import Result

FAMILIES = kind("families").names()
DEEP = {"name": "mlp", "layers": 30, "width": 32, "hidden": 64, "window": 4, "norm": None, "residual": False, "biases": False}


def ids(vocabulary: int = 60) -> Tensor:
    return batch(vocabulary, 40)[0][:4]


def report(**settings: Any) -> InitReport:
    return look(choose(Family, settings).build(60, seed=0), ids())


def names(found: InitReport) -> set[str]:
    return {advice.name for advice in found.warnings}


@pytest.mark.requirement("R050")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_looked_through_layer_by_layer_and_is_fresh_without_a_warning(name: str) -> None:
    model = choose(Family, {"name": name, "size": "micro"}).build(60, seed=0)
    before = {key: value.clone() for key, value in model.named_parameters()}
    found = look(model, ids())
    assert len(found.layers) >= 2
    assert all(layer.signal > 0 for layer in found.layers)
    assert sum(layer.gradient > 0 for layer in found.layers) >= 2, "what stands before matrices of zeros waits for the second update"
    assert found.loss == pytest.approx(found.even_loss, rel=0.2)
    assert names(found) == set()
    for key, value in model.named_parameters():
        assert torch.equal(value, before[key])
        assert value.grad is None


@pytest.mark.requirement("R036", "R041")
def test_saturation_is_the_share_of_net_inputs_beyond_two() -> None:
    family = choose(Family, {**DEEP, "layers": 1, "activation": "tanh", "init": {"name": "normal", "std": 0.2}})
    model = family.build(60, seed=0)
    seen: list[Tensor] = []
    model.layers[0].linear.register_forward_hook(lambda m, i, out: seen.append(out.detach()))
    found = look(model, ids())
    share = float((seen[0].abs() > 2).float().mean())
    assert 0.1 < share < 0.9
    assert found.layers[1].saturated == pytest.approx(share)


def test_signal_and_gradient_are_those_of_the_layers_outputs() -> None:
    model = choose(Family, {**DEEP, "layers": 2, "activation": "tanh"}).build(60, seed=0)
    found = look(model, ids())
    kept: list[Tensor] = []

    def keep(module: Any, given: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    model.layers[1].register_forward_hook(keep)
    logits = model(ids()[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids()[:, 1:].flatten()).backward()
    assert kept[0].grad is not None
    last = found.layers[-1]
    assert last.name == "layers.1"
    assert last.signal == pytest.approx(float(kept[0].detach().flatten(0, 1).var(0, correction=0).mean()), rel=1e-5)
    assert last.gradient == pytest.approx(float(kept[0].grad.norm()), rel=1e-5)
    assert found.gradient_ratio == pytest.approx(found.layers[1].gradient / last.gradient)


@pytest.mark.requirement("R038")
@pytest.mark.parametrize("init", ["zero", "constant"])
def test_equal_units_are_named_as_the_symmetry_problem(init: str) -> None:
    found = report(**{**DEEP, "layers": 2, "activation": "logistic", "init": init})
    (advice,) = [advice for advice in found.warnings if advice.name == "symmetry"]
    assert ".linear.weight" in advice.text and "fan_in" in advice.hint
    assert "symmetry" not in names(report(**{**DEEP, "layers": 2, "activation": "logistic"}))


@pytest.mark.requirement("R040")
def test_what_vanishes_explodes_saturates_or_dies_is_named() -> None:
    small = {"name": "uniform", "bound": 0.01}
    assert {"vanishing signal", "vanishing gradient"} <= names(report(**DEEP, activation="tanh", init=small))
    assert {"vanishing signal", "vanishing gradient"} <= names(report(**DEEP, activation="logistic", init="xavier_uniform"))
    large = {"name": "normal", "std": 1.0}
    assert {"exploding gradient", "saturation"} <= names(report(**DEEP, activation="tanh", init=large))
    assert "exploding signal" in names(report(**{**DEEP, "layers": 12}, activation="relu", init=large))
    assert "bad start" in names(report(**{**DEEP, "layers": 3}, activation="relu", init=large))
    assert "not finite" in names(report(**DEEP, activation="identity", init={"name": "normal", "std": 10.0}))
    assert names(report(**DEEP, activation="tanh", init="xavier_uniform")) == set()


def test_units_that_answer_to_no_token_are_dead() -> None:
    model = choose(Family, {**DEEP, "layers": 1, "biases": True, "activation": "relu"}).build(60, seed=0)
    with torch.no_grad():
        model.layers[0].linear.bias[:48] = -100.0
    found = look(model, ids())
    assert found.layers[1].dead == pytest.approx(0.75)
    assert "dead units" in names(found)


def test_numbers_that_are_none_are_no_numbers_in_json_either() -> None:
    data = report(**DEEP, activation="identity", init={"name": "normal", "std": 10.0}).as_json()
    json.dumps(data, allow_nan=False)
    assert data["loss"] is None


@pytest.mark.parametrize("ending", [".svg", ".png", ".html"])
def test_it_is_drawn_into_a_file(ending: str, tmp_path: Path) -> None:
    draw(report(**DEEP, init="zero"), tmp_path / f"plot{ending}")
    written = (tmp_path / f"plot{ending}").read_bytes()
    assert {".svg": b"<svg", ".png": b"\x89PNG", ".html": b"<!doctype"}[ending] in written
    assert b"<script" not in written


def test_a_file_that_cannot_be_drawn_into_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'\.doc'"):
        draw(report(**{**DEEP, "layers": 1}), tmp_path / "plot.doc")


def test_the_command_uses_prepared_tokens_or_says_that_they_are_random(
    told: Result, raw_logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(told.run.parent)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"collect:\n  sources: ['{raw_logs}']\nprepare:\n  vocabulary:\nmodel:\n  layers: 1\n  width: 32\n", "utf-8")
    prepared, not_prepared = ["model.heads=2", "model.context=64"], ["prepare.vocabulary=300"]
    for settings, what in ((prepared, "of the training split"), (not_prepared, "random ids")):
        assert main(["init-report", str(recipe), *settings, "--home", home, "--json", "--plot", str(tmp_path / "plot.svg")]) == 0
        data = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert what in data["batch"]
        assert data["layers"][-1]["name"] == "blocks.0"
        assert data["loss"] == pytest.approx(data["even_loss"], rel=0.1)
        assert Path(data["plot"]).exists()
    assert main(["init-report", str(recipe), "model.name=mlp", "model.init=zero", "--home", home]) == 0
    said = capsys.readouterr()
    assert "warning" in said.out and "symmetry" in said.out
    assert "note  model: init zero" in said.err


def test_a_batch_of_a_short_split_is_made_of_what_there_is(told: Result) -> None:
    from chattune.tokens.token_set import TokenSet

    split = TokenSet.open(told.runs["prepare"]).split("train")
    rows, what = batch(300, 64, split)
    assert rows.shape[1] == 65 and len(rows) <= 16
    assert rows.flatten().tolist() == split.ids[: rows.numel()].tolist()
    assert "training split" in what
