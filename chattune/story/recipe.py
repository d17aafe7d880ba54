"""The recipe: a section for each stage, typed and complete; what is left open follows from the one dial.

Defaults < recipe < overrides. Sections and names are checked here, before any work and before torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from chattune.core.config import explain, flatten, override, read_yaml
from chattune.core.errors import SettingError, UnknownName, did_you_mean
from chattune.core.part import ROOT, Part
from chattune.core.progress import talk
from chattune.core.stage import Stage, load_stage
from chattune.models.families import Family
from chattune.story.ancestry import DATA

STORY = ("import", *DATA, "prepare", "train", "evaluate")
PARAMETERS = "model.parameters"
RECIPES = ROOT / "recipes"


def stages() -> list[Stage]:
    """The stages of the story in order; imports their modules and no torch."""
    return [load_stage(name) for name in STORY]


def schema() -> dict[str, tuple[Stage, Any]]:
    """Section → the first stage that reads it, and the section's type."""
    found: dict[str, tuple[Stage, Any]] = {}
    for stage in stages():
        for section, hint in stage.sections.items():
            found.setdefault(section, (stage, hint))
    return found


@dataclass(frozen=True)
class Recipe:
    """Every section of the story, typed and complete.

    `sections`: name → settings; `derived`: dotted path → value that followed from the dial; `given`: dotted paths that the
    recipe or an override set; `source`: where it was read; `wanted`: the number of parameters that the model was to have, where the
    recipe says so (``model.parameters``), and the model's settings before they were turned to it.
    """

    sections: Mapping[str, Any]
    derived: Mapping[str, Any] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    source: str = ""
    wanted: tuple[int, Family] | None = None

    @classmethod
    def read(
        cls, reference: str | os.PathLike[str] | Mapping[str, Any], overrides: Iterable[str] = (), start: Path | None = None
    ) -> Recipe:
        """A recipe from a YAML file, the name of a shipped one, or a mapping; defaults < recipe < overrides.

        `start`: the checkpoint that training is to start from, if any; its model is then the recipe's.

        Raises `SettingError` with file, line and dotted path for a setting that does not exist or does not fit.
        """
        overrides = list(overrides)
        file, data, lines = _source(reference)
        changed = override(data, overrides)
        return cls._build(changed, file, _without(lines, [text.partition("=")[0].strip() for text in overrides]), start)

    @classmethod
    def _build(cls, data: Mapping[str, Any], file: Path | None, lines: Mapping[str, int], start: Path | None) -> Recipe:
        known = schema()
        for name in data:
            if name not in known:
                place = f"{file}:{lines[name]}: {name}" if file and name in lines else str(name)
                raise SettingError(
                    f"no section is called '{name}'.", path=place, value=name, rule=f"one of {', '.join(known)}",
                    hint=did_you_mean(str(name), known),
                )
        parameters, plain = _parameters_asked(data, file, lines)
        sections = {name: _section(name, *known[name], plain.get(name), file, lines) for name in known}
        start = start or _imported(sections)
        if start is not None:
            if parameters is not None:
                raise SettingError(
                    "the model to start from has the size that it has.", path=PARAMETERS, value=parameters,
                    rule="a size for fresh models only", hint=f"Leave {PARAMETERS} out.",
                )
            sections, derived = _derive_from(start, sections, data)
            return cls(sections, derived, frozenset(flatten(data)), str(file or ""))
        wanted = None if parameters is None else (parameters, sections["model"])
        sections, derived = _derive(sections, _sized(*wanted, sections["prepare"]) if wanted else None)
        return cls(sections, derived, frozenset(flatten(data)), str(file or ""), wanted)

    def dump(self) -> dict[str, Any]:
        """Plain data from which `read` builds the same recipe."""
        plain = {name: _plain(value) for name, value in self.sections.items()}
        return plain if self.wanted is None else {**plain, "model": {**self.wanted[1].dump(), "parameters": self.wanted[0]}}

    def knowing(self, vocabulary: int) -> Recipe:
        """The same recipe once the vocabulary is there: a model of so many parameters depends on it."""
        if self.wanted is None:
            return self
        parameters, family = self.wanted
        model = family.sized(parameters, vocabulary).resolved()
        if model != self.sections["model"]:
            changed = {k: v for k, v in flatten(model.dump(), "model").items() if flatten(family.dump(), "model").get(k) != v}
            told = "  ".join(f"{path}={value}" for path, value in changed.items())
            talk().print(f"derived  for {vocabulary} ids  {told}", markup=False)
        return replace(self, sections={**self.sections, "model": model})

    def stages(self, until: str | None = None) -> list[Stage]:
        """The stages that the recipe asks for, in order, up to `until`; those with nothing to do (no cleaner, say) are left out."""
        last = len(STORY) if until is None else STORY.index(until) + 1
        asked = [stage for stage in stages() if not getattr(self.sections[stage.name], "idle", bool)()]
        return [stage for stage in asked if stage.name in STORY[:last]]

    def of(self, stage: Stage) -> dict[str, Any]:
        """The sections that one stage reads."""
        return {name: self.sections[name] for name in stage.sections}


def recipe_file(reference: str | os.PathLike[str]) -> Path:
    """The file that a recipe's path or the name of a shipped recipe means."""
    path = Path(reference)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(RECIPES.glob("*.yaml"))}
    name = path.stem if path.parent.name in ("", "configs", "recipes") else ""
    if name in shipped and path.suffix in ("", ".yaml") and not path.is_dir():
        return shipped[name]
    raise UnknownName(
        "no such recipe.", path=str(path), value=str(path), rule="a YAML file, or the name of a shipped recipe",
        hint=did_you_mean(path.stem, shipped),
    )


def planned_vocabulary(recipe: Recipe) -> int:
    """The vocabulary that the recipe's tokenizer will have, or at most."""
    prepare = recipe.sections["prepare"]
    return prepare.vocabulary or prepare.vocabulary_at_most or 4096


def say_derived(recipe: Recipe) -> None:
    """Print where the settings come from, and the values that followed from the dial."""
    origin = recipe.source or "given in Python"
    talk().print(f"recipe  {origin}  (defaults < recipe < path=value; {len(recipe.given)} set)", markup=False)
    if recipe.derived:
        talk().print("derived  " + "  ".join(f"{path}={value}" for path, value in recipe.derived.items()), markup=False)
    for path, note in notes(recipe):
        talk().print(f"note  {path}: {note}", markup=False)


def notes(recipe: Recipe) -> list[tuple[str, str]]:
    """What is allowed but seldom meant: (section, sentence) for each remark that a part of the recipe has on itself."""
    return [(name, note) for name, section in recipe.sections.items() if isinstance(section, Part) for note in section.notes()]


def _source(reference: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[Path | None, Mapping[str, Any], Mapping[str, int]]:
    if isinstance(reference, Mapping):
        return None, reference, {}
    file = recipe_file(reference)
    return file, *read_yaml(file)


def _without(lines: Mapping[str, int], overridden: list[str]) -> dict[str, int]:
    """Lines of what the file still decides: a value given by an override has no line."""
    gone = {f"{'.'.join(path.split('.')[:count])}" for path in overridden for count in range(1, path.count(".") + 2)}
    return {path: line for path, line in lines.items() if path not in gone and not any(path.startswith(f"{o}.") for o in overridden)}


def _section(name: str, stage: Stage, hint: Any, value: Any, file: Path | None, lines: Mapping[str, int]) -> Any:
    default = stage.default(name)
    if value is None:
        return default
    if isinstance(default, Part) and isinstance(value, Mapping) and "name" not in value:
        value = {"name": default.name, **value}
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise explain(error, file=file, lines=lines, prefix=name) from None


def _parameters_asked(data: Mapping[str, Any], file: Path | None, lines: Mapping[str, int]) -> tuple[int | None, dict[str, Any]]:
    """``model.parameters``, a dial that every family has, and the recipe without it."""
    model = data.get("model")
    if not isinstance(model, Mapping) or model.get("parameters") is None:
        return None, dict(data)
    asked = model["parameters"]
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    try:
        number = float(asked[:-1]) * units[asked[-1]] if isinstance(asked, str) else float(asked)
        if isinstance(asked, bool) or not 1 <= number <= 1e13:
            raise ValueError
    except (ValueError, KeyError, TypeError, IndexError):
        place = f"{file}:{lines[PARAMETERS]}: {PARAMETERS}" if file and PARAMETERS in lines else PARAMETERS
        raise SettingError(
            f"{asked!r} is no number of parameters.", path=place, value=asked, rule="a number from 1 on, such as 1300000, 1.3e6 or 1.3M"
        ) from None
    return int(number), {**data, "model": {name: value for name, value in model.items() if name != "parameters"}}


def _sized(parameters: int, family: Family, prepare: Any) -> Family:
    """The family with so many parameters, for the vocabulary that the recipe asks for or that a model of that width recommends."""
    vocabulary = prepare.vocabulary or prepare.vocabulary_at_most
    if vocabulary:
        return family.sized(parameters, vocabulary)
    sized, vocabulary = family, 4096
    for _ in range(8):  # width and vocabulary follow one another; a few rounds settle them
        sized = family.sized(parameters, vocabulary)
        following = sized.recommended().get("prepare.vocabulary_at_most", vocabulary)
        if following == vocabulary:
            break
        vocabulary = following
    return sized


def _derive(sections: Mapping[str, Any], sized: Family | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Let the dial fill what was left open: first the model's own settings, then those that it recommends elsewhere.

    `sized`: the model turned to a number of parameters, where the recipe asks for one.
    """
    resolved, model = dict(sections), sections.get("model")
    if model is None:
        return resolved, {}
    resolved["model"] = (sized or model).resolved()
    before, after = flatten(model.dump(), "model"), flatten(resolved["model"].dump(), "model")
    settings, more = _recommended(resolved, resolved["model"].recommended())
    return settings, {path: value for path, value in after.items() if before.get(path) != value} | more


def _recommended(sections: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put values, by dotted path, where nothing was set; and those that were put."""
    known, resolved, derived = schema(), dict(sections), dict[str, Any]()
    for path, value in values.items():
        section, *keys = path.split(".")
        if section not in resolved:
            continue
        plain = _plain(resolved[section])
        node = plain
        for key in keys[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict) and keys[-1] in node and node[keys[-1]] is None:
            node[keys[-1]] = value
            resolved[section] = _section(section, *known[section], plain, None, {})
            derived[path] = value
    return resolved, derived


def _imported(sections: Mapping[str, Any]) -> Path | None:
    """The model that the recipe imports, where it lies."""
    if sections["import"].path is None:
        return None
    from chattune.models.sources import located

    return located(sections["import"].path).path


def _derive_from(start: Path, sections: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `_derive`, for a model that is started from: the model is the one that it is, and further training goes gently.

    What the recipe `data` says of the model must agree with it. AdamW (which most such models were made with), a tenth of the rate for
    fresh weights and small batches suit a model that already speaks; an adapter, whose weights are fresh, takes the whole rate.
    """
    from chattune.models.foreign import described

    family, vocabulary = described(start)
    model, given = family.resolved(), data.get("model")
    told = flatten({} if given is None else {"name": given} if isinstance(given, str) else given, "model")
    asked, found = flatten(sections["model"].dump(), "model"), flatten(model.dump(), "model")
    for path in told:
        if path in asked and asked[path] != found.get(path):
            raise SettingError(
                f"the model to start from has {found.get(path)!r}, not {asked[path]!r}.", path=path, value=asked[path],
                rule=f"{path}={found.get(path)}" if path in found else "a setting of the model to start from",
                hint="Leave the section model out: the model to start from is the model.",
            )
    usual = model.recommended()
    rate = usual.get("train.optimizer.lr")
    if rate is not None and getattr(sections["train"], "adapter", None) is None:
        rate = float(f"{rate / 10:.2g}")
    wanted = {"prepare.vocabulary_at_most": vocabulary, "train.batch_tokens": 4096, "train.optimizer.lr": rate}
    changed = {**sections, "model": model}
    first = {}
    if "optimizer" not in (data.get("train") or {}):
        first = {"train.optimizer.name": "adamw"}
        changed["train"] = _section("train", *schema()["train"], {**_plain(sections["train"]), "optimizer": "adamw"}, None, {})
    settings, derived = _recommended(changed, {path: value for path, value in wanted.items() if value is not None})
    return settings, first | derived


def _plain(value: Any) -> Any:
    return value.dump() if isinstance(value, Part) else value.model_dump(mode="json") if isinstance(value, BaseModel) else value
