"""OpenAI messages: the chat format of most training services."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import (
    ROLE_OF,
    Unusable,
    calls_as_text,
    dialogs_of_rows,
    first_rows,
    is_judged,
    role_of,
    share,
    text_of,
    weight_of,
)


class OpenAIMessages(Reader):
    """Rows ``{"messages": [{"role", "content", "weight"?}]}``, as JSON or Parquet.

    Helps when: data comes from, or goes to, a training service.   Hurts when: content holds images: such rows are dropped.
    Cost: one row in memory.   Start with: the defaults.
    Source: OpenAI's fine-tuning format; ``tools`` and other keys of a row are kept as metadata.
    """

    key: str = setting("messages", "the key that holds a row's list of messages")

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        return dialogs_of_rows(path, self.encoding, self.record_limit, "openai_messages", self._build)

    def score(self, path: Path, head: str) -> float:
        return share(first_rows(head), self._fits)

    def _fits(self, row: Mapping[str, Any]) -> bool:
        messages = row.get(self.key)
        if not isinstance(messages, list) or not messages or not isinstance(messages[0], Mapping):
            return False
        return isinstance(role := messages[0].get("role"), str) and role.lower() in ROLE_OF and not is_judged(row)

    def _build(self, row: Mapping[str, Any]) -> tuple[list[Message], dict[str, Any]]:
        messages = row.get(self.key)
        if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
            raise Unusable("no_messages", f"'{self.key}' is not a list of messages")
        return [self._message(message) for message in messages], {k: v for k, v in row.items() if k not in (self.key, "id", "group")}

    def _message(self, message: Mapping[str, Any]) -> Message:
        content = message.get("content")
        if content is None and (message.get("tool_calls") or message.get("function_call")):
            content = calls_as_text(message.get("tool_calls") or message.get("function_call"))
        return Message(role_of(message.get("role")), text_of(content, "content"), weight_of(message.get("weight")))
