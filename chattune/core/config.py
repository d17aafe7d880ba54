"""Recipes: reading YAML, applying dotted overrides, and telling a mistake with its file, line and dotted path."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from chattune.core.errors import SettingError, UsageError

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the words of version 1.2: ``off`` and ``no`` are text, ``1e-3`` is a number."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?:[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def parse(text: str) -> Any:
    """The plain data that a YAML text means."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in a YAML file, and the line (from 1) of each dotted path in it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError("no such recipe.", path=str(path), value=str(path), hint="See `chattune list recipes`.") from None
    except (IsADirectoryError, UnicodeDecodeError, PermissionError) as error:
        raise UsageError(f"cannot be read as a recipe: {error}.", path=str(path), rule="a YAML file in UTF-8") from None
    try:
        lines = _lines(yaml.compose(text, Loader=_Loader), path)
        data = parse(text)
    except yaml.reader.ReaderError as error:
        raise UsageError(
            f"holds the character U+{ord(text[error.position]):04X}, which YAML does not allow.",
            path=f"{path}:{text.count(chr(10), 0, error.position) + 1}", rule="valid YAML", hint="Take it out.",
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        hint = "Indent with spaces, not with tabs." if "'\\t'" in problem else "Check the indentation."
        raise UsageError(f"is not valid YAML: {problem}.", path=place, rule="valid YAML", hint=hint) from None
    except RecursionError:
        raise UsageError("is nested too deeply.", path=str(path), rule="sections, parts and their settings") from None
    if data is None:
        return {}, {}
    if not isinstance(data, dict):
        raise UsageError(f"holds a {type(data).__name__}, not sections.", path=str(path), rule="a mapping of sections")
    return data, lines


def override(data: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """`data` with each ``dotted.path=value`` applied in order; values are read as YAML.

    A part named by a word becomes a mapping when one of its settings is addressed, and a list of parts is addressed by
    the part's name: ``train.regularizers.label_smoothing.strength=0.2``.
    """
    changed = copy.deepcopy(dict(data))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise UsageError(
                f"'{assignment}' is not an override.", value=assignment, rule="path=value",
                hint="Write it like train.optimizer.lr=0.001.",
            )
        try:
            value = parse(text)
        except yaml.YAMLError:
            value = text
        _assign(changed, keys, value, path.strip())
    return changed


def validate(
    model: type[Model], data: Any, *, file: Path | None = None, lines: Mapping[str, int] | None = None, prefix: str = ""
) -> Model:
    """`data` as a `model`, or a `SettingError` that names the dotted path, the value, the rule and the nearest name."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise explain(error, file=file, lines=lines, prefix=prefix) from None


def explain(
    error: ValidationError, *, file: Path | None = None, lines: Mapping[str, int] | None = None, prefix: str = ""
) -> SettingError:
    """The first mistake that pydantic found, in our words. With the prefix ``--`` settings are options: ``--max-tokens``."""
    details = error.errors(include_url=False)
    first: Any = details[0]
    keys: list[Any] = [*filter(None, prefix.split(".")), *first["loc"]]
    while first["type"] == "inside_part":
        context = first["ctx"]
        if keys and isinstance(keys[-1], int):
            keys[-1] = context["part"]  # a list of parts is addressed by name
        first = context["error"]
        keys += first["loc"]
    message, hint, value = first["msg"], "", first.get("input")
    context = first.get("ctx") or {}
    if first["type"] == "unknown_setting":
        keys.append(context["key"])
        message, hint = f"no setting is called '{context['key']}'.", context["hint"]
        value = context["key"]
    elif first["type"] == "missing":
        message, value = "must be given.", None
    else:
        shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
        message = message.removeprefix("Value error, ")
        message = f"{message[0].lower()}{message[1:]}".rstrip(".?!") + (message[-1] if message[-1] in "?!" else ".")
        message = message if isinstance(value, Mapping) else f"{shown}: {message}"
    path = ".".join(str(key) for key in keys)
    if prefix == "--":
        path = f"--{path.removeprefix('--.').replace('_', '-')}"
    line = _nearest_line(lines or {}, path)
    more = f" ({len(details) - 1} more mistakes)" if len(details) > 1 else ""
    place = f"{file}:{line}: {path}" if file and line else path
    return SettingError(message + more, path=place or None, value=value, rule=first["msg"], hint=hint or None)


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as ``{dotted.path: value}``; lists of parts are keyed by the part's name."""
    if isinstance(data, Mapping):
        items: dict[str, Any] = {} if data else {prefix: {}}
        for key, value in data.items():
            items |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
        return items
    if isinstance(data, list) and data and all(isinstance(item, Mapping) and "name" in item for item in data):
        flat: dict[str, Any] = {}
        for item in data:
            flat |= flatten({k: v for k, v in item.items() if k != "name"} or "on", f"{prefix}.{item['name']}")
        return flat
    return {prefix: data}


def _assign(node: dict[str, Any], keys: list[str], value: Any, path: str) -> None:
    for position, key in enumerate(keys[:-1]):
        inner = node.get(key)
        if isinstance(inner, str):
            inner = {"name": inner}
        elif inner is None:
            inner = {}
        elif isinstance(inner, list):
            _assign_in_list(inner, keys[position + 1 :], value, path)
            return
        elif not isinstance(inner, dict):
            place = ".".join(keys[: position + 1])
            raise SettingError(f"'{place}' is a value and has no settings.", path=path, value=inner, rule="a section or a part")
        node[key] = inner
        node = inner
    node[keys[-1]] = value


def _assign_in_list(parts: list[Any], keys: list[str], value: Any, path: str) -> None:
    for index, item in enumerate(parts):
        name = item if isinstance(item, str) else item.get("name", next(iter(item))) if isinstance(item, dict) and item else None
        if name != keys[0]:
            continue
        written = item if isinstance(item, dict) else {}
        settings = written if "name" in written else {"name": name, **(written.get(name) or {})}
        parts[index] = settings
        if len(keys) > 1:
            _assign(settings, keys[1:], value, path)
        return
    part: dict[str, Any] = {"name": keys[0]}
    if len(keys) > 1:
        _assign(part, keys[1:], value, path)
    parts.append(part)


def _lines(root: yaml.Node | None, file: Path) -> dict[str, int]:
    """Dotted path → line. A key written twice is refused: YAML itself would drop the first in silence."""
    lines: dict[str, int] = {}
    seen: set[int] = set()  # an alias may stand in many places, or in itself

    def walk(node: yaml.Node | None, prefix: str) -> None:
        if node is None or id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys: dict[str, int] = {}
            for key, value in node.value:
                line, name = key.start_mark.line + 1, str(key.value)
                if name in keys:
                    raise UsageError(
                        f"'{name}' stands here and in line {keys[name]}.", path=f"{file}:{line}", value=name, rule="each key once",
                        hint="Remove one of them.",
                    )
                keys[name] = line
                path = f"{prefix}.{name}" if prefix else name
                lines.setdefault(path, line)
                walk(value, path)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                walk(item, prefix)

    walk(root, "")
    return lines


def _nearest_line(lines: Mapping[str, int], path: str) -> int | None:
    keys = path.split(".")
    while keys:
        if ".".join(keys) in lines:
            return lines[".".join(keys)]
        keys.pop()
    return None
