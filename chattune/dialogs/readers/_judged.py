"""What the readers of preferences share: a prompt and a reply in the shapes that the usual sets have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from chattune.dialogs.dialog import Message
from chattune.dialogs.rows import Unusable, calls_as_text, kind_of, role_of, text_of, weight_of

LISTS = ("messages", "conversations")
ASKED = ("prompt", "instruction", "question", "query", "input")
_MARK = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant|System):[ ]?")
_ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}


def said(value: Any, what: str) -> list[Message]:
    """The messages that a field holds: one reply as text, a text of Anthropic's with its marks, one message, or a list of them."""
    if isinstance(value, str):
        return marked(value) or [Message("assistant", value)]
    if isinstance(value, Mapping):
        return [_message(value, what)]
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return [_message(item, what) for item in value]
    raise Unusable("wrong_type", f"{what} is {kind_of(value)}, not a reply")


def marked(text: str) -> list[Message]:
    """The turns of a text with ``\\n\\nHuman:`` and ``\\n\\nAssistant:`` before them; none when it does not begin with one."""
    parts = _MARK.split(text)
    if len(parts) < 3 or parts[0].strip():
        return []
    return [Message(_ROLES[role], content) for role, content in zip(parts[1::2], parts[2::2], strict=True)]


def prompt_of(row: Mapping[str, Any]) -> list[Message]:
    """What was said before the reply; empty where the row has nothing of the kind."""
    begin = [Message("system", text_of(row["system"], "system"))] if row.get("system") else []
    for question, answer in _pairs(row.get("history")):
        begin += [Message("user", text_of(question, "history")), Message("assistant", text_of(answer, "history"))]
    for listed in LISTS:
        if row.get(listed):
            return begin + said(row[listed], listed)
    asked = row.get("input")
    if isinstance(asked, Mapping) and asked.get("messages"):
        return begin + said(asked["messages"], "input")
    name = next((name for name in ASKED if row.get(name)), None)
    if name is None:
        return begin
    value = row[name]
    if not isinstance(value, str):
        return begin + said(value, name)
    if turns := marked(value):
        return begin + (turns[:-1] if turns[-1].role == "assistant" and not turns[-1].content.strip() else turns)
    extra = row.get("input") if name == "instruction" else None
    texts = [value, *([text_of(extra, "input")] if extra else [])]
    return [*begin, Message("user", "\n\n".join(filter(str.strip, texts)))]


def joined(prompt: list[Message], reply: list[Message]) -> list[Message]:
    """A whole conversation: `reply` behind `prompt`, or `reply` alone where it holds what was asked itself."""
    return reply if any(message.role == "user" for message in reply) else prompt + reply


def rest(row: Mapping[str, Any], used: tuple[str, ...]) -> dict[str, Any]:
    """What of a row is kept as metadata."""
    known = (*LISTS, *ASKED, "system", "history", "id", "group", *used)
    return {key: value for key, value in row.items() if key not in known and value not in ("", None)}


def _message(message: Mapping[str, Any], what: str) -> Message:
    role = next((message[name] for name in ("role", "from") if name in message), "assistant")
    content = next((message[name] for name in ("content", "value", "text") if message.get(name) is not None), None)
    if content is None and (calls := message.get("tool_calls") or message.get("function_call")):
        content = calls_as_text(calls)
    return Message(role_of(role), text_of(content, what), weight_of(message.get("weight")))


def _pairs(history: Any) -> list[Any]:
    if not history:
        return []
    if isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        return history
    raise Unusable("wrong_type", "history is not a list of pairs")
