"""Writing conversations by hand: asked for turn by turn, kept one a line as OpenAI messages, which `collect` reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from chattune.core import files
from chattune.core.errors import DataError

TURNS = ("user", "assistant")


def written(path: Path, ask: Callable[[str], str]) -> int:
    """Append conversations to the file at `path`, each as soon as it is whole; how many were.

    `ask` is called with whose turn it is and gives a line; an empty one ends the conversation, `EOFError` all of them. A conversation
    without a reply is not kept: what would be left out later is not written first. What the file holds already is checked before
    anything is asked.
    """
    before = _held(path)
    count = 0
    messages: list[dict[str, str]] = []
    going = True
    while going:
        try:
            line = ask(TURNS[len(messages) % 2]).strip()
        except EOFError:
            going, line = False, ""
        if line:
            messages.append({"role": TURNS[len(messages) % 2], "content": line})
            continue
        if len(messages) >= 2:
            before += json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
            files.write_atomically(path, before)
            count += 1
        elif not messages and going:
            going = False  # an empty first line: nothing more to say
        messages = []
    return count


def _held(path: Path) -> str:
    if not path.exists():
        if not path.parent.is_dir():
            raise DataError("has no folder to be in.", path=str(path), rule="an existing folder", hint=f"Make {path.parent} first.")
        return ""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise DataError(
            "is not text in utf-8.", path=str(path), rule='{"messages": […]} on each line', hint="Give a new file."
        ) from None
    for number, line in enumerate(text.splitlines(), 1):
        try:
            usable = isinstance(json.loads(line).get("messages"), list) if line.strip() else True
        except (ValueError, AttributeError):
            usable = False
        if not usable:
            raise DataError(
                "is no file of conversations.", path=f"{path}:{number}", value=line[:60], rule='{"messages": […]} on each line',
                hint="Give a new file.",
            )
    return text if not text or text.endswith("\n") else text + "\n"
