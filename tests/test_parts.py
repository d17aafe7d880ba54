"""Parts: every one of every kind loads, is described without torch, and travels through plain data; a new one is one file."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from chattune.core.errors import UnknownName
from chattune.core.part import ROOT, Part, choose, find, is_contract, iterate_parts, kind, kind_of, kinds, part_list

PARTS = [pytest.param(k.name, name, id=f"{k.name}/{name}") for k, name in iterate_parts()]
LEVERS = {"optimizers", "regularizers", "schedules", "stoppers", "batchers", "families", "rules", "objectives"}
NEEDS_TORCH: set[str] = set()  # parts whose file imports torch on being described; none should


@pytest.mark.parametrize(("kind_name", "name"), PARTS)
def test_a_part_has_a_card_and_described_settings(kind_name: str, name: str) -> None:
    part = kind(kind_name).load(name)
    card = inspect.getdoc(part) or ""
    assert card == inspect.cleandoc(part.__doc__ or ""), "the card is the part's own, not its contract's"
    first = card.split("\n", 1)[0]
    assert 10 <= len(first) <= 136, first
    assert kind(kind_name).summary(name) == first
    if kind_name in LEVERS:
        missing = [label for label in ("Helps when:", "Hurts when:", "Cost:", "Start with:", "Source:") if label not in card]
        assert not missing, f"the card of {kind_name}/{name} lacks {missing}"
    for row in part.describe():
        assert row["meaning"], f"{kind_name}/{name}: the setting {row['name']} has no meaning"
        if row["search"] is not None and row["limits"]:
            for value in row["search"]:
                part.model_validate({row["name"]: value})  # the default search range stays within the limits


@pytest.mark.parametrize(("kind_name", "name"), PARTS)
def test_a_part_travels_through_plain_data(kind_name: str, name: str) -> None:
    k = kind(kind_name)
    part = choose(k.contract(), name)
    assert part.name == name
    assert kind_of(type(part)).name == kind_name
    travelled = json.loads(json.dumps(part.dump()))
    assert choose(k.contract(), travelled) == part
    assert choose(k.contract(), yaml.safe_load(yaml.safe_dump(travelled))) == part
    assert choose(k.contract(), part) is part


def test_no_part_needs_torch_to_be_described() -> None:
    script = (
        "import sys, json; from chattune.core.part import iterate_parts\n"
        "guilty = []\n"
        "for k, name in iterate_parts():\n"
        "    k.load(name).describe(); k.summary(name)\n"
        "    if 'torch' in sys.modules: guilty.append(f'{k.name}/{name}'); break\n"
        "print(json.dumps([guilty, sorted(m for m in ('scipy', 'matplotlib', 'sacrebleu', 'transformers') if m in sys.modules)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    guilty, heavy = json.loads(done.stdout)
    assert set(guilty) == NEEDS_TORCH
    assert heavy == []


def test_kinds_are_folders_and_names_are_files() -> None:
    for k in kinds().values():
        assert k.names() == sorted({path.stem for path in k.path.glob("[a-z]*.py")})
        assert is_contract(k.contract())
        assert k.meaning()
    assert [(k.name, name) for k, name in find("cosine")] == [("schedules", "cosine")]
    with pytest.raises(UnknownName, match=r"no kind of part is called 'schedule'\. Did you mean 'schedules'\?"):
        kind("schedule")
    with pytest.raises(UnknownName, match=r"schedules has no part called 'cosin'\. Did you mean 'cosine'\?"):
        kind("schedules").load("cosin")


@pytest.mark.security
@pytest.mark.requirement("I07", "I24")
@pytest.mark.parametrize("name", ["../core/files", "__init__", "_curve", "os", "cosine/../linear", "", "cosine\x00"])
def test_a_part_name_reaches_only_parts(name: str) -> None:
    with pytest.raises(UnknownName):
        kind("schedules").load(name)


def test_a_part_outside_the_project_is_named_by_its_dotted_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_parts.py").write_text(
        "from chattune.train.schedules import Schedule\n"
        "class Half(Schedule):\n"
        '    """Half the peak, always."""\n'
        "    def factor(self, step: int, total: int) -> float:\n"
        "        return 0.5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    half = choose(kind("schedules").contract(), "my_parts.Half")
    assert half.factor(0, 10) == 0.5
    assert half.dump() == {"name": "my_parts.Half"}
    mistakes = {"my_parts.Hal": "Did you mean 'Half'", "no_such.Part": "no module called 'no_such'", "my_parts.Path": "has no Schedule"}
    for wrong, says in mistakes.items():
        with pytest.raises(UnknownName, match=says):
            kind("schedules").load(wrong)


def test_parts_in_a_list_may_be_words_mappings_or_one_mapping() -> None:
    expected = [{"name": "a"}, {"name": "b", "x": 1}]
    assert part_list({"a": None, "b": {"x": 1}}) == expected
    assert part_list([{"name": "a"}, {"b": {"x": 1}}]) == expected
    assert part_list("a") == ["a"]


def test_settings_are_frozen_and_changed_gives_a_new_part() -> None:
    cosine = choose(kind("schedules").contract(), "cosine")
    with pytest.raises(ValueError, match="frozen"):
        cosine.floor = 0.5
    assert cosine.changed(floor=0.5).floor == 0.5
    assert cosine.floor != 0.5
    with pytest.raises(ValueError, match="less than or equal to 1"):
        cosine.changed(floor=2)


SCHEDULE = '''"""A schedule for a test."""

from __future__ import annotations

from chattune.core.part import setting
from chattune.train.schedules import Schedule


class Stairs(Schedule):
    """Fall in equal steps, as a staircase does.

    Helps when: a test needs a part.   Hurts when: never used.   Cost: none.   Start with: 4 stairs.
    Source: this test.
    """

    stairs: int = setting(4, "number of levels", low=1, high=100, search=(2, 8))

    def factor(self, step: int, total: int) -> float:
        return 1.0 - (step * self.stairs // total) / self.stairs
'''
REGULARIZER = '''"""A regularizer for a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.train.regularizers import Regularizer

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.train.objectives import LossView


class LogitDecay(Regularizer):
    """Keep logits small: a penalty on their mean square.

    Helps when: a test needs a part.   Hurts when: strength is large.   Cost: one pass over the logits.   Start with: 1e-4.
    Source: this test.
    """

    strength: float = setting(1e-4, "factor of the mean square of the logits", low=0.0, high=1.0, search=(1e-6, 1e-2), log=True)

    def penalty(self, view: LossView) -> Tensor | float:
        squares = view.logits.float().square().mean(-1)  # (n,)
        return self.strength * (view.weights * squares).sum() / view.weights.sum() if self.strength else 0.0
'''


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with two new files in it, and no other edit."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT, project / "chattune", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT.parent / "docs", project / "docs")
    shutil.copytree(ROOT.parent / "tests", project / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT.parent / "pyproject.toml", project)
    (project / "chattune" / "train" / "schedules" / "stairs.py").write_text(SCHEDULE)
    (project / "chattune" / "train" / "regularizers" / "logit_decay.py").write_text(REGULARIZER)
    return project


def _in(project: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_file_is_listed_and_explained(extended: Path) -> None:
    assert "Keep logits small: a penalty" in _in(extended, "-m", "chattune.cli", "list", "regularizers")
    assert json.loads(_in(extended, "-m", "chattune.cli", "list", "schedules", "--json"))["parts"]["stairs"]
    explained = json.loads(_in(extended, "-m", "chattune.cli", "explain", "logit_decay", "--json"))["cards"]
    assert explained[0]["settings"][0]["name"] == "strength"


def test_a_new_file_is_usable_from_a_recipe_and_an_override(extended: Path) -> None:
    script = (
        f"import chattune, json; from chattune.story import Recipe; assert chattune.__file__.startswith({str(extended)!r})\n"
        "recipe = Recipe.read({'train': {'regularizers': ['logit_decay'], 'schedule': 'stairs'}},"
        " ['train.regularizers.logit_decay.strength=0.01', 'train.schedule.stairs=5'])\n"
        "print(json.dumps([recipe.dump()['train']['regularizers'], recipe.dump()['train']['schedule']]))\n"
    )
    assert json.loads(_in(extended, "-c", script)) == [[{"name": "logit_decay", "strength": 0.01}], {"name": "stairs", "stairs": 5}]
    answer = _in(extended, "-m", "chattune.cli", "explain", "train.regularizers.logit_decay.strength", "--json")
    explained = json.loads(answer)["cards"][0]
    assert (explained["default"], explained["search"], explained["log"]) == (1e-4, [1e-6, 1e-2], True)


def test_a_new_file_gets_its_page(extended: Path) -> None:
    _in(extended, "docs/generate.py")
    page = (extended / "docs" / "parts" / "regularizers" / "logit_decay.md").read_text()
    assert "Keep logits small" in page
    assert "| `strength` |" in page
    assert "(schedules/stairs.md)" in (extended / "docs" / "parts" / "README.md").read_text()


@pytest.mark.parametrize(("file", "part"), [("test_schedules.py", "stairs"), ("test_regularizers.py", "logit_decay")])
def test_a_new_file_is_held_by_the_contract_of_its_kind(extended: Path, file: str, part: str) -> None:
    said = _in(extended, "-m", "pytest", f"tests/contracts/{file}", "-vv", "-k", part, "-p", "no:cacheprovider")
    assert len([line for line in said.splitlines() if part in line and "PASSED" in line]) >= 2, said


def test_a_new_file_that_breaks_its_contract_is_caught(extended: Path) -> None:
    broken = extended / "chattune" / "train" / "schedules" / "broken.py"
    broken.write_text(SCHEDULE.replace("Stairs", "Broken").replace("return 1.0 - ", "return -1.0 - "))
    try:
        with pytest.raises(AssertionError, match="failed"):
            _in(extended, "-m", "pytest", "tests/contracts/test_schedules.py", "-k", "broken", "-p", "no:cacheprovider")
    finally:
        broken.unlink()


def test_contracts_are_parts_themselves() -> None:
    assert all(issubclass(k.contract(), Part) for k in kinds().values())
