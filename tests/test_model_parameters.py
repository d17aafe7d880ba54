"""`model.parameters`: one dial that every family has, beside `model.size`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from material import TINY

from chattune.cli import main
from chattune.core.errors import SettingError
from chattune.core.part import kind
from chattune.story import Recipe, Result

SETTINGS = [setting for setting in TINY if setting.startswith("train.")]


@pytest.mark.requirement("R071", "R074")
@pytest.mark.parametrize("name", [name for name in kind("families").names() if kind("families").load(name).dials])
def test_a_recipe_may_say_how_many_parameters_whatever_the_family(name: str) -> None:
    recipe = Recipe.read({}, [f"model.name={name}", "model.parameters=1.3M", "prepare.vocabulary=2048"])
    assert recipe.sections["model"].parameters(2048) == pytest.approx(1.3e6, rel=0.02)
    dial = recipe.sections["model"].dials[0][0]
    assert recipe.derived[f"model.{dial}"] == getattr(recipe.sections["model"], dial), "what was derived is said"
    again = Recipe.read(recipe.dump())
    assert again.sections == recipe.sections
    assert again.wanted == recipe.wanted


def test_without_a_vocabulary_both_settle_together() -> None:
    recipe = Recipe.read({}, ["model.parameters=2e6"])
    model, prepare = recipe.sections["model"], recipe.sections["prepare"]
    assert model.parameters(prepare.vocabulary_at_most) == pytest.approx(2e6, rel=0.05)


@pytest.mark.parametrize("asked", ["many", "0", "-5", "1.3X", "true", "''", "[1]", "1e99"])
def test_what_is_no_number_is_refused(asked: str) -> None:
    with pytest.raises(SettingError) as caught:
        Recipe.read({}, [f"model.parameters={asked}"])
    assert caught.value.path == "model.parameters"


def test_a_width_beside_it_contradicts() -> None:
    with pytest.raises(SettingError, match="contradict") as caught:
        Recipe.read({}, ["model.parameters=1e6", "model.width=64"])
    assert caught.value.path == "model.width"


def test_a_training_has_the_parameters_asked_for_its_own_vocabulary(
    told: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "runs"
    shutil.copytree(told.run.parent, home, symlinks=True)
    tokens = next(path.name for path in home.glob("prepare-*"))
    words = ["train", tokens, *SETTINGS, "model.layers=1", "model.parameters=60k", "model.context=64", "--home", str(home), "--json"]
    assert main([*words, "--dry-run"]) == 0
    forecast = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main(words) == 0
    trained = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert trained["parameters"] == forecast["parameters"] == pytest.approx(60_000, rel=0.1)
