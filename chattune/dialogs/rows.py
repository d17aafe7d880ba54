"""Rows: what the readers of JSON records and tables share. Turns a row's fields into messages or says why that cannot be."""

from __future__ import annotations

import functools
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chattune.dialogs.compressed import Unreadable
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.tables import table_rows
from chattune.dialogs.text import json_records, reading, sample

ROLE_OF = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "customer": "user", "client": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant",
    "model": "assistant", "agent": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "api": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip


CHOSEN = ("chosen", "preferred_output", "chosen_response", "response_j")
REJECTED = ("rejected", "non_preferred_output", "rejected_response", "response_k")
LABELS = ("label", "kto_tag")


class Unusable(ValueError):
    """A row that gives no dialog; holds the `Drop`'s reason and detail."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


_ROW = re.compile(r'^\s*\{\s*"[^"]', re.MULTILINE)
Built = tuple[list[Message], dict[str, Any]]  # the messages of a dialog and its metadata


def records(path: Path, encoding: str, limit: int) -> Iterator[tuple[int, Any, str] | Drop]:
    """Every row of a file with its line and, in an object of conversations by their ids, its key: of JSON in any of its layouts, of a
    table of text with a header (an object of texts by columns), or of a Parquet, Arrow or Excel file."""
    with reading(path, encoding) as file:
        head = file.read(4096)
        file.seek(0)
        if is_json(head) or _ROW.search(head):  # rows may stand behind a comment or a line that is broken
            yield from json_records(file, limit, str(path))
        else:
            yield from (item if isinstance(item, Drop) else (*item, "") for item in table_rows(file, limit, str(path)))


def first_rows(head: str) -> list[Any]:
    """The first whole rows of a file that begins with `head`, as `records` would give them; none when it holds no rows."""
    return [row for row, _ in sample(head)] if is_json(head) else list(_table_sample(head))


def is_json(head: str) -> bool:
    """Whether text that begins so is to be read as JSON."""
    return head.lstrip(" \t\r\n\ufeff")[:1] in ("{", "[")


@functools.lru_cache(maxsize=4)  # every reader asks for the same
def _table_sample(head: str) -> tuple[dict[str, str], ...]:
    whole = head[: head.rfind("\n") + 1] or head  # the last line may be cut
    try:
        found = list(itertools.islice(table_rows(io.StringIO(whole), len(whole) + 1, ""), 40))
    except Unreadable:
        return ()
    return tuple(item[1] for item in found if not isinstance(item, Drop) and len(item[1]) > 1)[:20]


def share(rows: Sequence[Any], fits: Callable[[Any], bool]) -> float:
    """The share of rows that are objects and fit; 0 where there are none."""
    return sum(isinstance(row, Mapping) and fits(row) for row in rows) / len(rows) if rows else 0.0


def dialogs_of_rows(
    path: Path, encoding: str, limit: int, source: str, build: Callable[[Mapping[str, Any]], Built], *, id_key: str = "id"
) -> Iterator[Dialog | Drop]:
    """Each row of a file through `build`, which gives its messages and metadata or raises `Unusable`: one dialog a row."""
    return many_of_rows(path, encoding, limit, source, lambda row: [("", *build(row))], id_key=id_key)


def many_of_rows(
    path: Path, encoding: str, limit: int, source: str, build: Callable[[Mapping[str, Any]], Iterable[tuple[str, *tuple[Any, ...]]]],
    *, id_key: str = "id",
) -> Iterator[Dialog | Drop]:
    """Each row through `build`, which gives any number of dialogs: what tells them apart (behind the row's id), messages, metadata.

    Several dialogs of one row are a group, so that a split does not tear them apart.
    """
    for index, item in enumerate(records(path, encoding, limit)):
        if isinstance(item, Drop):
            yield item
            continue
        line, row, key = item
        try:
            if not isinstance(row, Mapping):
                raise Unusable("not_an_object", f"a {kind_of(row)}")
            own = identity(row, path, index, id_key, key)
            for suffix, messages, metadata in build(row):
                group = group_of(row) or (own if suffix else None)
                yield Dialog(f"{own}{suffix}", tuple(messages), source, str(path), line, group, metadata)
        except Unusable as unusable:
            yield Drop(unusable.reason, str(path), line, unusable.detail)


def identity(row: Mapping[str, Any], path: Path, index: int, id_key: str = "id", key: str = "") -> str:
    """The row's own id, the key under which it stands, or file name and number of the record."""
    own = row.get(id_key)
    known = isinstance(own, (str, int)) and not isinstance(own, bool) and str(own).strip()
    return str(own) if known else key or f"{path.name}#{index + 1}"


def group_of(row: Mapping[str, Any]) -> str | None:
    """What the row says must not be torn apart."""
    group = row.get("group")
    return str(group) if isinstance(group, (str, int)) and not isinstance(group, bool) else None


def is_pair(row: Mapping[str, Any]) -> bool:
    """Whether a row holds two replies of which one is preferred."""
    keys = row.keys()
    choices = any(name in keys for name in CHOSEN) and any(name in keys for name in REJECTED)
    listed = "instruction" in keys and isinstance(row.get("output"), list) and len(row["output"]) == 2
    return choices or listed or {"response_0", "response_1", "better_response_id"} <= keys


def label_of(row: Mapping[str, Any]) -> bool | None:
    """What a row says of its own reply: true where it is wanted, false where it is not; none where it says nothing."""
    value = next((row[name] for name in LABELS if name in row), None)
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def is_judged(row: Mapping[str, Any]) -> bool:
    """Whether a row says how good its replies are, so that it is more than a conversation."""
    return is_pair(row) or label_of(row) is not None


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
