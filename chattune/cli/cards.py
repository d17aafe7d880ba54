"""Cards: what a part, a kind, a section or one setting is, as plain data and as text. Shared by `explain`, `list` and the docs."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from chattune.cli.answer import table
from chattune.core.errors import UnknownName, did_you_mean
from chattune.core.part import Kind, Part, Settings, find, is_contract, kind, kind_of, kinds, setting

# Settings of commands, which stand in no recipe.
OPTIONS = {"speculation": "chattune.generate.reply.Speculation", "limits": "chattune.serve.limits.Limits"}


def part_card(k: Kind, name: str) -> dict[str, Any]:
    """Everything there is to say about one part: ``{"kind", "name", "card", "settings", "recipe"}``."""
    part = k.load(name)
    return {"kind": k.name, "name": name, "card": inspect.getdoc(part) or "", "settings": part.describe(), "module": part.__module__}


def meaning(k: Kind) -> str:
    """First line of the kind's module without the kind's own name in front: "how a gradient becomes a step."."""
    head, colon, rest = k.meaning().partition(": ")
    return rest if colon and head.replace(" ", "_").lower().endswith(k.name) else k.meaning()


def kind_card(k: Kind) -> dict[str, Any]:
    """A kind: its meaning, its contract's verbs, its parts."""
    return {
        "kind": k.name, "meaning": meaning(k), "card": inspect.getdoc(k.contract()) or "",
        "verbs": [f"{name}{inspect.signature(verb)}".replace("'", "") for name, verb in _verbs(k.contract())],
        "parts": {name: k.summary(name) for name in k.names()},
    }  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a dotted path leads: the settings class, and the field in it (none: the class itself)."""

    path: str
    owner: type[Settings]
    field: str | None
    choices: Kind | None


def locate(path: str) -> Place:
    """The setting or section at a dotted path such as ``train.optimizer.lr``, or `UnknownName` with the nearest name."""
    from chattune.story import schema

    sections = schema()
    head, *keys = path.split(".")
    if head not in sections:
        raise UnknownName(f"nothing is called '{head}'.", path=path, value=head, hint=did_you_mean(head, sections))
    stage, hint = sections[head]
    default = stage.default(head)
    if not isinstance(default, Settings):
        if keys:
            raise UnknownName(
                f"'{head}' is a value and has no settings.", path=path, value=keys[0], hint=f"See `chattune explain {head}`."
            )
        return Place(path, _value_section(head, hint, default), head, None)
    owner: type[Settings] | None = type(default)
    choices, field = _kind_in(hint), None
    for key in keys:
        fields = owner.model_fields if owner else {}
        if owner is not None and key in fields:
            choices, field, last = _kind_in(fields[key].annotation), key, owner
            inner = fields[key].default
            owner = type(inner) if isinstance(inner, Settings) else _settings_in(fields[key].annotation)
        elif choices is not None and key in choices.names():
            owner, field = choices.load(key), None
        else:
            known = [*fields, *(choices.names() if choices else ())]
            raise UnknownName(
                f"no setting is called '{key}'.", path=path, value=key, rule=f"one of {known}", hint=did_you_mean(key, known) or None
            )
    if field is not None:
        return Place(path, last, field, choices)
    assert owner is not None
    return Place(path, owner, None, choices)


def place_card(place: Place) -> dict[str, Any]:
    """The card of a setting or a section."""
    rows = {row["name"]: row for row in place.owner.describe()}
    card: dict[str, Any] = {"path": place.path}
    if place.field is not None:
        card |= rows[place.field]
        card["name"] = place.field
    else:
        card |= {"card": inspect.getdoc(place.owner) or "", "settings": [*rows.values()]}
    if place.choices is not None:
        card["meaning"] = card.get("meaning") or meaning(place.choices)
        card["choices"] = {name: place.choices.summary(name) for name in place.choices.names()}
    return card


def explain(name: str) -> list[dict[str, Any]]:
    """Cards for a part, a kind, ``kind/part`` or a dotted path; a name that several kinds bear gives several cards."""
    if "/" in name:
        folder, _, part = name.partition("/")
        return [part_card(kind(folder), part)]
    if name in kinds():
        return [kind_card(kind(name))]
    parts = find(name)
    if parts:
        return [part_card(k, part) for k, part in parts]
    from chattune.story import schema

    head, _, field = name.partition(".")
    if head in schema():
        return [place_card(locate(name))]
    if head in OPTIONS:
        module, _, owner = OPTIONS[head].rpartition(".")
        settings: type[Settings] = getattr(importlib.import_module(module), owner)
        if not field or field in settings.model_fields:
            return [place_card(Place(name, settings, field or None, None))]
        raise UnknownName(
            f"no setting is called '{field}'.", path=name, value=field, rule=f"one of {[*settings.model_fields]}",
            hint=did_you_mean(field, settings.model_fields) or None,
        )
    known = [*kinds(), *schema(), *OPTIONS, *(part for k in kinds().values() for part in k.names())]
    raise UnknownName(
        f"nothing is called '{name}'.", value=name, rule="a part, a kind or a dotted setting",
        hint=did_you_mean(name, known) or "See `chattune list`.",
    )


def card_text(card: Mapping[str, Any]) -> str:
    """A card for people."""
    lines = []
    if "path" in card and "meaning" in card:
        lines += [f"{card['path']}  {card['type']}, default {card['default']}{limits_text(card)}", f"  {card['meaning']}"]
    elif "path" in card:
        lines += [card["path"], card["card"]]
    elif "parts" in card:
        lines += [f"{card['kind']}: {card['meaning']}", "", *(f"  {verb}" for verb in card["verbs"])]
    else:
        lines += [f"{card['name']}  ({card['kind']})", "", card["card"]]
    if card.get("settings"):
        lines += ["", settings_text(card["settings"])]
    choices = card.get("choices") or card.get("parts")
    if choices:
        lines += ["", table(choices.items())]
    return "\n".join(lines)


def settings_text(rows: list[dict[str, Any]]) -> str:
    return table(
        ((row["name"], row["type"], row["default"], limits_text(row).removeprefix(", "), row["meaning"]) for row in rows),
        ("setting", "type", "default", "limits", "meaning"),
    )


def limits_text(row: Mapping[str, Any]) -> str:
    """``, 0 ≤ x < 1`` and the range that a study would try."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    text = "".join(f", {signs[key]} {limit:g}" for key, limit in row["limits"].items())
    search = f", search {row['search']}" if row["search"] is not None else ""
    return text + search + (", logarithmic" if row["log"] else "")


def _value_section(name: str, hint: Any, default: Any) -> type[Settings]:
    from pydantic import create_model

    fields: dict[str, Any] = {name: (hint, setting(default, "from it and a path of names follows every random stream of the run"))}
    return create_model("Value", __base__=Settings, **fields)


def _kind_in(annotation: Any) -> Kind | None:
    """The kind whose contract stands somewhere in an annotation."""
    for candidate in _inside(annotation):
        if inspect.isclass(candidate) and issubclass(candidate, Part) and candidate is not Part and is_contract(candidate):
            return kind_of(candidate)
    return None


def _settings_in(annotation: Any) -> type[Settings] | None:
    for candidate in _inside(annotation):
        if inspect.isclass(candidate) and issubclass(candidate, Settings) and not is_contract(candidate):
            return candidate
    return None


def _inside(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in typing.get_args(annotation):
        yield from _inside(inner)


def _verbs(contract: type[Part]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(contract).items() if inspect.isfunction(value) and not name.startswith("_")]
