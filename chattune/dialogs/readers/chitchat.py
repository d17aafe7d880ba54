"""chitchat-dataset: conversations of two strangers, as bursts of short messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import Unusable, kind_of
from chattune.dialogs.text import json_records, reading, sample


class Chitchat(Reader):
    """One JSON object ``{id: {"messages": [[{"text", "timestamp", "sender"} …] …]}}``; an inner list is one sender's burst.

    Helps when: data is the chitchat challenge or has its shape.   Hurts when: more than two people speak: all but the second are users.
    Cost: one conversation in memory.   Start with: the defaults.
    Source: PyPI chitchat-dataset. The first sender is the user, the second the assistant; a burst's lines are joined by newlines.
    Prompt, ratings and start are kept as metadata.
    """

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        with reading(path, self.encoding) as file:
            for item in json_records(file, self.record_limit, str(path)):
                if isinstance(item, Drop):
                    yield item
                    continue
                line, row, key = item
                try:
                    messages = _messages(row)
                    metadata = {k: v for k, v in row.items() if k != "messages"}
                    yield Dialog(key or f"{path.name}#{line}", tuple(messages), "chitchat", str(path), line, None, metadata)
                except Unusable as unusable:
                    yield Drop(unusable.reason, str(path), line, f"{unusable.detail} ({key})" if key else unusable.detail)

    def score(self, path: Path, head: str) -> float:
        rows = [row for row, _ in sample(head)]
        return sum(map(_fits, rows)) / len(rows) if rows else 0.0


def _fits(row: Any) -> bool:
    bursts = row.get("messages") if isinstance(row, Mapping) else None
    return isinstance(bursts, list) and bool(bursts) and isinstance(bursts[0], list)


def _messages(row: Any) -> list[Message]:
    bursts = row.get("messages") if isinstance(row, Mapping) else None
    if not isinstance(bursts, list) or not all(isinstance(burst, list) for burst in bursts):
        raise Unusable("no_messages", "'messages' is not a list of bursts")
    senders: dict[str, str] = {}
    messages: list[Message] = []
    for burst in bursts:
        for said in burst:
            if not isinstance(said, Mapping) or not isinstance(said.get("text"), str):
                raise Unusable("wrong_type", f"a message is {kind_of(said)} without a text")
            role = senders.setdefault(str(said.get("sender")), "assistant" if len(senders) == 1 else "user")
            messages.append(Message(role, said["text"]))
    return messages
