"""Settings and parts: what a user can set, list, explain and exchange.

A *part* is one exchangeable method: one file, one frozen settings class, one verb. A *kind* is a folder of parts; its
contract is the class in the folder's ``__init__.py``. The folder is the registry and the file name is the name: nothing
is imported until it is named, and adding a part is adding one file.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from chattune.core.errors import UnknownName, UsageError, did_you_mean

ROOT = Path(__file__).resolve().parent.parent


def setting(
    default: Any = ...,
    meaning: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    log: bool = False,
    search: tuple[float, float] | list[Any] | None = None,
) -> Any:
    """A field of a settings class: its default, what it means (with its unit), its limits and its search range.

    `low` and `high` are inclusive, `above` and `below` exclusive. `search` is a narrower range (or a list of choices) that
    a study tries by default; `log` says that it is searched on a logarithmic scale.
    """
    extra: dict[str, Any] = {name: value for name, value in (("log", log or None), ("search", search)) if value is not None}
    return Field(default, description=meaning, ge=low, le=high, gt=above, lt=below, json_schema_extra=extra or None)


class Settings(BaseModel):
    """A frozen, typed group of settings. Unknown keys are refused with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        filled = dict(data)
        for key, value in data.items():
            if key not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown_setting",
                    "no setting is called '{key}'. {hint}",
                    {"key": str(key), "hint": did_you_mean(str(key), cls.model_fields)},
                )
            default = cls.model_fields[key].default
            if isinstance(default, Part) and isinstance(value, Mapping) and "name" not in value:
                filled[key] = {"name": default.name, **value}  # `train.optimizer.lr=…` means the default optimizer's rate
        return filled

    @classmethod
    def describe(cls) -> list[dict[str, Any]]:
        """One row a setting: name, type, default, limits, search range, meaning."""
        rows = []
        for name, field in cls.model_fields.items():
            limits = {
                key: getattr(item, key) for item in field.metadata for key in ("ge", "le", "gt", "lt") if hasattr(item, key)
            }
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            default = field.default.name if isinstance(field.default, Part) else field.default
            rows.append(
                {
                    "name": name,
                    "type": _type_name(field.annotation),
                    "default": "(required)" if field.is_required() else default,
                    "limits": limits,
                    "search": extra.get("search"),
                    "log": bool(extra.get("log")),
                    "meaning": field.description or "",
                }
            )
        return rows


class Part(Settings):
    """One exchangeable method. Subclass a kind's contract in a file of that kind's folder and it exists.

    The class docstring is the card: what it does; ``Helps when``, ``Hurts when``, ``Cost``, ``Start with``, ``Source``.
    """

    @property
    def name(self) -> str:
        """The name a recipe calls this part by: its file, or the dotted path of a part outside the project."""
        return part_name(type(self))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if cls.__module__ == __name__ or not is_contract(cls):
            return handler(source)
        # A field annotated with a kind's contract takes a name, a mapping with a name, or an instance.
        return core_schema.no_info_plain_validator_function(
            functools.partial(_choose, cls),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda part: part.dump(), when_used="always"),
            json_schema_input_schema=core_schema.any_schema(),
        )

    def notes(self) -> list[str]:
        """What is allowed but seldom meant in these settings, a sentence each; printed before a run."""
        return []

    def dump(self) -> dict[str, Any]:
        """Name and settings as plain data, from which `choose` builds an equal part."""
        return {"name": self.name, **self.model_dump(mode="json")}

    def changed(self, **settings: Any) -> Self:
        """The same part with some settings replaced, validated again."""
        return type(self).model_validate({**self.model_dump(), **settings})


@dataclass(frozen=True)
class Kind:
    """A folder of parts that share a verb."""

    name: str
    package: str
    path: Path

    def names(self) -> list[str]:
        """File names of the parts, sorted; imports nothing."""
        return sorted(
            file.name.removesuffix(".py")
            for file in os.scandir(self.path)
            if file.name.endswith(".py") and not file.name.startswith(("_", "."))
        )

    def contract(self) -> type[Part]:
        """The class that every part of this kind derives from."""
        module = importlib.import_module(self.package)
        contract: type[Part] = next(value for value in vars(module).values() if _is_own_part(value, module.__name__))
        return contract

    def load(self, name: str) -> type[Part]:
        """The part of that name; only now is its file imported.

        A dotted path such as ``mine.package.MyPart`` names a part outside the project.
        """
        if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
            return _load_outside(name, self.contract())
        if name not in self.names():
            raise UnknownName(
                f"{self.name} has no part called '{name}'.", value=name, rule=f"one of {self.names()}",
                hint=did_you_mean(name, self.names()) or f"See `chattune list {self.name}`.",
            )
        module = importlib.import_module(f"{self.package}.{name}")
        parts = [value for value in vars(module).values() if _is_own_part(value, module.__name__)]
        if len(parts) != 1:
            raise UsageError(
                f"{self.name}/{name}.py defines {len(parts)} parts.", rule="one file holds exactly one public part",
                hint="Give helper classes a leading underscore.",
            )
        part: type[Part] = parts[0]
        return part

    def summary(self, name: str) -> str:
        """First line of the part's docstring, read from its syntax tree without importing it."""
        return _first_line(self.path / f"{name}.py")

    def meaning(self) -> str:
        """First line of the kind's own module docstring."""
        tree = ast.parse((self.path / "__init__.py").read_text(encoding="utf-8"))
        return (ast.get_docstring(tree) or "").split("\n", 1)[0]


@functools.cache
def kinds() -> Mapping[str, Kind]:
    """Every kind of part: the folders, two levels down, whose ``__init__.py`` derives a class from `Part`. Imports nothing."""
    found = {}
    for path in sorted(ROOT.glob("*/*/__init__.py")):
        if any(isinstance(node, ast.ClassDef) and _names_part(node) for node in ast.parse(path.read_text("utf-8")).body):
            folder = path.parent
            found[folder.name] = Kind(folder.name, ".".join((ROOT.name, folder.parent.name, folder.name)), folder)
    return found


def kind(name: str) -> Kind:
    """The kind of that name (``"regularizers"``)."""
    if name not in kinds():
        raise UnknownName(
            f"no kind of part is called '{name}'.", value=name, rule=f"one of {sorted(kinds())}", hint=did_you_mean(name, kinds())
        )
    return kinds()[name]


def kind_of(part: type[Part]) -> Kind:
    """The kind that a part class belongs to."""
    for base in part.__mro__:
        if issubclass(base, Part) and is_contract(base):
            return kinds()[base.__module__.rsplit(".", 1)[-1]]
    raise TypeError(f"{part.__name__} derives from no kind's contract")


def find(name: str) -> list[tuple[Kind, str]]:
    """All parts of that name, over all kinds."""
    return [(k, name) for k in kinds().values() if name in k.names()]


def is_contract(cls: type) -> bool:
    """True for the class that a kind's folder defines in its ``__init__.py``."""
    module = cls.__module__.split(".")
    return len(module) == 3 and module[0] == ROOT.name and module[-1] in kinds() and kinds()[module[-1]].package == cls.__module__


def part_name(cls: type[Part]) -> str:
    package, _, name = cls.__module__.rpartition(".")
    return name if any(k.package == package for k in kinds().values()) else f"{cls.__module__}.{cls.__qualname__}"


def choose(contract: type[Part], value: Any) -> Any:
    """The part that `value` means: a name, ``{"name": …, settings}``, ``{name: {settings}}`` or an instance."""
    return _choose(contract, value)


def part_list(value: Any) -> Any:
    """Normalise a list of parts: names, mappings, or one mapping ``{name: {settings}}``, kept in the order written."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [{"name": name, **_settings_of(name, settings)} for name, settings in value.items()]
    if isinstance(value, (list, tuple)):
        return [part_list(item)[0] if isinstance(item, Mapping) and "name" not in item and len(item) == 1 else item for item in value]
    return value


def _settings_of(name: str, settings: Any) -> Mapping[str, Any]:
    if settings is None or settings is True:
        return {}
    if not isinstance(settings, Mapping):
        raise PydanticCustomError("part_settings", "the settings of '{name}' must be a mapping", {"name": str(name)})
    return settings


def _choose(contract: type[Part], value: Any) -> Part:
    if isinstance(value, contract):
        return value
    k = kinds()[contract.__module__.rsplit(".", 1)[-1]]
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise PydanticCustomError(
            "part", "name one of the {kind}: {names}", {"kind": k.name, "names": ", ".join(k.names())}
        )
    settings = {key: item for key, item in value.items() if key != "name"}
    try:
        part = k.load(value["name"])
    except UnknownName as error:
        raise PydanticCustomError("part", "{text}", {"text": f"{error.message} {error.hint or ''}".strip()}) from None
    try:
        return part.model_validate(settings)
    except ValidationError as error:
        # Pydantic would flatten this to text; keep the inner place so that the whole dotted path can be told.
        first = error.errors(include_url=False)[0]
        raise PydanticCustomError("inside_part", "{msg}", {"part": value["name"], "error": first, "msg": first["msg"]}) from None


def _load_outside(path: str, contract: type[Part]) -> type[Part]:
    module_name, _, class_name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UnknownName(
            f"no module called '{error.name}' can be imported.", value=path, rule="an importable package.module.Class",
            hint="Is its folder on PYTHONPATH?",
        ) from None
    part = getattr(module, class_name, None)
    if not (inspect.isclass(part) and issubclass(part, contract)):
        raise UnknownName(
            f"{module_name} has no {contract.__name__} called '{class_name}'.", value=path,
            hint=did_you_mean(class_name, [n for n, v in vars(module).items() if inspect.isclass(v) and issubclass(v, contract)]),
        )
    return part


def _is_own_part(value: Any, module: str) -> bool:
    return inspect.isclass(value) and issubclass(value, Part) and value.__module__ == module and not value.__name__.startswith("_")


def _names_part(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "Part" for base in node.bases)


def _first_line(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    return next((text.split("\n", 1)[0] for node in classes if (text := ast.get_docstring(node))), "")


def _type_name(annotation: Any) -> str:
    if annotation is None or annotation is type(None):
        return "none"
    origin = get_origin(annotation)
    if origin is None:
        return annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    inner = [a for a in get_args(annotation) if a is not ...]
    if str(origin).endswith("Literal"):
        return " | ".join(map(repr, inner))
    if origin.__name__ in ("UnionType", "Union"):
        return " | ".join(_type_name(a) for a in inner)
    return f"{origin.__name__}[{', '.join(_type_name(a) for a in inner)}]"


def iterate_parts() -> Iterator[tuple[Kind, str]]:
    """Every part of every kind, by kind and name."""
    for k in kinds().values():
        for name in k.names():
            yield k, name
