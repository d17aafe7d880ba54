"""Recipes: reading, overriding, and telling a mistake with file, line and dotted path."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BeforeValidator

from chattune.core.config import flatten, override, read_yaml, validate
from chattune.core.errors import SettingError, UsageError, did_you_mean
from chattune.core.part import Settings, part_list, setting
from chattune.train.optimizers import Optimizer
from chattune.train.optimizers.adamw import AdamW
from chattune.train.schedules import Schedule
from chattune.train.schedules.cosine import Cosine


class _Loop(Settings):
    steps: int = setting(10, "updates", low=1)
    optimizer: Optimizer = setting(AdamW(), "rule")
    schedules: Annotated[tuple[Schedule, ...], BeforeValidator(part_list)] = setting((Cosine(),), "curves")


class _Whole(Settings):
    train: _Loop = _Loop()


def _recipe(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _mistake(folder: Path, text: str) -> SettingError:
    data, lines = read_yaml(_recipe(folder, text))
    with pytest.raises(SettingError) as caught:
        validate(_Whole, data, file=Path("recipe.yaml"), lines=lines)
    return caught.value


def test_unknown_setting_names_file_line_path_and_the_nearest_name(tmp_path: Path) -> None:
    error = _mistake(tmp_path, "train:\n  steps: 3\n  optimizer:\n    name: adamw\n    lrr: 0.1\n")
    assert str(error) == "recipe.yaml:5: train.optimizer.lrr: no setting is called 'lrr'. Did you mean 'lr'?"
    assert error.as_json() == {
        "error": {
            "path": "recipe.yaml:5: train.optimizer.lrr", "value": "lrr", "rule": error.rule, "hint": "Did you mean 'lr'?",
        }
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("train:\n  steps: 0\n", "recipe.yaml:2: train.steps", "0: input should be greater than or equal to 1."),
        ("train:\n  stepz: 5\n", "recipe.yaml:2: train.stepz", "no setting is called 'stepz'."),
        ("train:\n  optimizer: adamv\n", "recipe.yaml:2: train.optimizer", "'adamv': optimizers has no part called 'adamv'. Did you mean 'adamw'?"),  # noqa: E501
        ("train:\n  optimizer:\n    beta1: 2\n", "recipe.yaml:3: train.optimizer.beta1", "2: input should be less than 1."),
        ("train:\n  schedules:\n  - cosine: {flor: 0}\n", "recipe.yaml:3: train.schedules.cosine.flor", "no setting is called 'flor'."),
        ("train:\n  steps: .nan\n", "recipe.yaml:2: train.steps", "nan: input should be a finite number."),
        ("train: 5\n", "recipe.yaml:1: train", "5: input should be a valid dictionary or instance of _Loop."),
    ],
)
def test_each_mistake_is_told_in_one_line_at_its_place(tmp_path: Path, text: str, place: str, says: str) -> None:
    error = _mistake(tmp_path, text)
    assert (error.path, error.message) == (place, says)
    assert "\n" not in str(error)
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"train:\n  steps: [1\n", "is not valid YAML"),
        (b"a: 1\nb: {c: 1}\na: 2\n", "'a' stands here and in line 1."),
        (b"\xff\xfe\x00", "cannot be read as a recipe"),
        (b"train: \x00\n", "recipe.yaml:1: holds the character U+0000, which YAML does not allow."),
        (b"- a\n- b\n", "holds a list, not sections."),
        (b"x: " + b"[" * 1200, "nested too deeply"),
        (b"x: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_yaml(_recipe(tmp_path, content))
    assert says in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    data, lines = read_yaml(_recipe(tmp_path, b"\xef\xbb\xbftrain:\r\n  steps: 4\r\n"))
    assert data == {"train": {"steps": 4}}
    assert lines["train.steps"] == 2


def test_an_alias_that_multiplies_costs_nothing(tmp_path: Path) -> None:
    levels = "\n".join(f"l{i}: &l{i} {{a: *l{i - 1}, b: *l{i - 1}}}" for i in range(1, 60))
    data, lines = read_yaml(_recipe(tmp_path, f"l0: &l0 {{x: 1}}\n{levels}\n"))  # 2⁵⁹ leaves, were it walked leaf by leaf
    assert len(data) == 60
    assert len(lines) < 1000


def test_overrides_reach_into_parts_named_by_a_word_and_into_lists() -> None:
    data = {"train": {"optimizer": "adamw", "schedules": ["cosine"]}}
    curves = ["train.schedules.cosine.floor=0.2", "train.schedules.linear.floor=0.3"]
    changed = override(data, ["train.optimizer.lr=1e-3", *curves, "train.steps="])
    assert changed["train"]["optimizer"] == {"name": "adamw", "lr": 1e-3}
    assert changed["train"]["schedules"] == [{"name": "cosine", "floor": 0.2}, {"name": "linear", "floor": 0.3}]
    assert changed["train"]["steps"] is None
    assert data == {"train": {"optimizer": "adamw", "schedules": ["cosine"]}}
    loop = validate(_Loop, {k: v for k, v in changed["train"].items() if v is not None})
    assert loop.optimizer.lr == 1e-3
    assert [schedule.name for schedule in loop.schedules] == ["cosine", "linear"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"), ("no", "no"), ("1e-3", 1e-3), ("1E5", 1e5), ("-.5", -0.5), ("3.", 3.0), ("12", 12), ("0", 0), ("-7", -7),
        ("1_000", 1000), ("010", "010"), ("1e", "1e"), ("1.2.3", "1.2.3"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"),
        ("true", True), ("True", True), ("trueish", "trueish"), ("", None), ("null", None), ("~", None),
        ("[a, 1]", ["a", 1]), ("{a: 1}", {"a": 1}), ("'1'", "1"), ("你好", "你好"), ("[1", "[1"),
    ],
)  # fmt: skip
def test_values_are_read_as_yaml_1_2_reads_them(text: str, value: object) -> None:
    assert override({}, [f"a={text}"]) == {"a": value}


def test_a_setting_of_the_default_part_needs_no_name() -> None:
    assert validate(_Loop, override({}, ["optimizer.beta2=0.99"])).optimizer == AdamW(beta2=0.99)


@pytest.mark.parametrize("text", ["lr", "=3", "train..lr=1", ".x=1", ""])
def test_what_is_not_an_override_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not an override\. Write it like train\.optimizer\.lr=0\.001\."):
        override({}, [text])


def test_a_value_has_no_settings_to_override() -> None:
    with pytest.raises(SettingError, match=r"'train\.steps' is a value and has no settings"):
        override({"train": {"steps": 3}}, ["train.steps.more=1"])


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(SettingError) as caught:
        validate(_Loop, {"steps": "x" * 10_000})
    assert len(str(caught.value)) < 300


def test_flatten_keys_parts_by_name() -> None:
    assert flatten({"a": [{"name": "cosine", "floor": 1}], "b": {}, "c": [1, 2]}) == {"a.cosine.floor": 1, "b": {}, "c": [1, 2]}


def test_did_you_mean_says_the_nearest_or_the_few_there_are() -> None:
    assert did_you_mean("tran", ["train", "collect"]) == "Did you mean 'train'?"
    assert did_you_mean("zzz", ["b", "a"]) == "There are: a, b."
    assert did_you_mean("zzz", [f"n{i}" for i in range(30)]) == ""
