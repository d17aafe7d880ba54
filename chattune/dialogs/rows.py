"""Rows: what the readers of JSON records and tables share. Turns a row's fields into messages or says why that cannot be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.text import json_records, reading

ROLE_OF = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "customer": "user", "client": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant",
    "model": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip


class Unusable(ValueError):
    """A row that gives no dialog; holds the `Drop`'s reason and detail."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def dialogs_of_json(
    path: Path, encoding: str, limit: int, source: str, build: Callable[[Mapping[str, Any]], tuple[list[Message], dict[str, Any]]]
) -> Iterator[Dialog | Drop]:
    """Each record of a JSON file through `build`, which gives its messages and metadata or raises `Unusable`."""
    with reading(path, encoding) as file:
        for index, item in enumerate(json_records(file, limit, str(path))):
            if isinstance(item, Drop):
                yield item
                continue
            line, row, _ = item
            try:
                if not isinstance(row, Mapping):
                    raise Unusable("not_an_object", f"a {kind_of(row)}")
                messages, metadata = build(row)
                yield Dialog(
                    identity(row, path, index), tuple(messages), source, str(path), line, group_of(row), metadata,
                )  # fmt: skip
            except Unusable as unusable:
                yield Drop(unusable.reason, str(path), line, unusable.detail)


def identity(row: Mapping[str, Any], path: Path, index: int) -> str:
    """The row's own id, or file name and number of the record."""
    own = row.get("id")
    return str(own) if isinstance(own, (str, int)) and not isinstance(own, bool) and str(own).strip() else f"{path.name}#{index + 1}"


def group_of(row: Mapping[str, Any]) -> str | None:
    """What the row says must not be torn apart."""
    group = row.get("group")
    return str(group) if isinstance(group, (str, int)) and not isinstance(group, bool) else None


def role_of(value: Any) -> str:
    """Our role for a role's name in any of the usual vocabularies."""
    role = ROLE_OF.get(value.strip().lower()) if isinstance(value, str) else None
    if role is None:
        raise Unusable("unknown_role", f"role {value!r}"[:120])
    return role


def text_of(value: Any, what: str) -> str:
    """`value` when it is text; a list of text parts (the OpenAI form) is joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in value):
        return "".join(part["text"] for part in value)
    if isinstance(value, list) and any(isinstance(part, Mapping) and "type" in part for part in value):
        raise Unusable("not_text", f"{what} holds parts that are not text")
    raise Unusable("wrong_type", f"{what} is {kind_of(value)}, not text")


def weight_of(value: Any) -> float | None:
    """A message's loss weight: none, or a finite number from 0."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise Unusable("wrong_type", f"weight {value!r} is not a number from 0"[:120])
    return float(value)


def calls_as_text(calls: Any) -> str:
    """Calls of tools as the text that a model would write: one JSON object, or a list of them."""
    listed = calls if isinstance(calls, list) else [calls]
    functions = [call.get("function", call) if isinstance(call, Mapping) else call for call in listed]
    return json.dumps(functions[0] if len(functions) == 1 else functions, ensure_ascii=False)


def kind_of(value: Any) -> str:
    """A JSON value's type in JSON's words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
