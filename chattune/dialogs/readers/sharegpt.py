"""ShareGPT: conversations of ``from`` and ``value``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import Unusable, dialogs_of_rows, first_rows, is_judged, role_of, share, text_of, weight_of


class ShareGPT(Reader):
    """Rows ``{"conversations": [{"from": "human", "value": …}]}``, as JSON or Parquet.

    Helps when: data comes from Vicuna, LLaMA-Factory or a browser export.   Hurts when: never.
    Cost: one row in memory.   Start with: the defaults.
    Source: the FastChat and LLaMA-Factory formats: human, gpt, system, function_call, observation; ``tools`` is kept as metadata.
    """

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        return dialogs_of_rows(path, self.encoding, self.record_limit, "sharegpt", _build)

    def score(self, path: Path, head: str) -> float:
        return share(first_rows(head), _fits)


def _fits(row: Mapping[str, Any]) -> bool:
    turns = row.get("conversations")
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping) and "from" in turns[0] and not is_judged(row)


def _build(row: Mapping[str, Any]) -> tuple[list[Message], dict[str, Any]]:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Unusable("no_messages", "'conversations' is not a list of turns")
    messages = [
        Message(role_of(turn.get("from")), text_of(turn.get("value"), "value"), weight_of(turn.get("weight"))) for turn in turns
    ]
    if isinstance(row.get("system"), str) and row["system"].strip() and not any(message.role == "system" for message in messages):
        messages.insert(0, Message("system", row["system"]))
    return messages, {k: v for k, v in row.items() if k not in ("conversations", "system", "id", "group")}
