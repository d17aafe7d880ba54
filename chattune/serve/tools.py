"""Tools: what a model may call, told through its chat template, and calls found in what it said.

A call is written as ``<tool_call>{"name", "arguments"}</tool_call>`` (Qwen, Hermes) or as that JSON object, or a list of them, alone.
Where a call is required, a grammar sees to it that the reply is one.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from chattune.dialogs.rows import calls_as_text
from chattune.serve.wire import ChatRequest, ChosenTool, ToolCall

_MARKED = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_START = "<tool_call>"


def offered(request: ChatRequest) -> list[dict[str, Any]]:
    """The tools that the template is told of."""
    if not request.tools or request.tool_choice == "none":
        return []
    return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in request.tools]


def required(request: ChatRequest) -> dict[str, Any] | None:
    """The JSON schema of the one call that must come, or none where the model may choose."""
    choice = request.tool_choice
    if not request.tools or choice in (None, "auto", "none"):
        return None
    name = choice.function.name if isinstance(choice, ChosenTool) else None
    wanted = [tool.function for tool in request.tools if name in (None, tool.function.name)]
    calls = [
        {
            "type": "object", "required": ["name", "arguments"], "additionalProperties": False,
            "properties": {"name": {"const": function.name}, "arguments": function.parameters or {"type": "object"}},
        }
        for function in wanted
    ]  # fmt: skip
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def as_content(content: str | None, calls: Sequence[ToolCall], marked: bool) -> str:
    """What the assistant said when it called: the content, and the calls as the model writes them."""
    written = [{"name": call.function.name, "arguments": _data(call.function.arguments)} for call in calls]
    if marked:
        text = "\n".join(f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in written)
    else:
        text = calls_as_text(written)
    return f"{content}\n{text}" if content else text


def calls_in(text: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The calls that a whole reply makes, in OpenAI's form; none where it holds anything else than calls of these functions."""
    marked = _MARKED.findall(text)
    found = [_data(one) for one in marked] if marked else _data(text.strip())
    listed = found if isinstance(found, list) else [found]
    calls = [call for one in listed if (call := _call(one, names)) is not None]
    return calls if len(calls) == len(listed) else []


def before_calls(text: str) -> int:
    """Characters of a reply, which may go on, that are no part of a call, whatever comes."""
    if not text.lstrip() or text.lstrip()[0] in "{[":
        return 0
    place = text.find(_START)
    if place >= 0:
        return place
    return len(text) - next((held for held in range(min(len(_START) - 1, len(text)), 0, -1) if text.endswith(_START[:held])), 0)


def _call(found: Any, names: Sequence[str]) -> dict[str, Any] | None:
    if not isinstance(found, Mapping) or found.get("name") not in names:
        return None
    arguments = found.get("arguments", found.get("parameters", {}))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": {"name": found["name"], "arguments": text}}


def _data(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
