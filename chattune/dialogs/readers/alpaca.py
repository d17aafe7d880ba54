"""Alpaca: instruction, input and output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import Unusable, dialogs_of_json, text_of
from chattune.dialogs.text import sample


class Alpaca(Reader):
    """Rows ``{"instruction", "input", "output", "history"?, "system"?}``, as JSON Lines or one JSON list.

    Helps when: data is instructions and answers.   Hurts when: instruction and input must stay apart: they become one user message.
    Cost: one row in memory.   Start with: the defaults.
    Source: Stanford Alpaca; `history` (pairs of earlier question and answer) as in LLaMA-Factory. Joined by a blank line, without
    Alpaca's own English frame around them.
    """

    joint: str = setting("\n\n", "what stands between instruction and input in the user's message")

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        return dialogs_of_json(path, self.encoding, self.record_limit, "alpaca", self._build)

    def score(self, path: Path, head: str) -> float:
        rows = [row for row, _ in sample(head)]
        return sum(isinstance(row, Mapping) and {"instruction", "output"} <= row.keys() for row in rows) / len(rows) if rows else 0.0

    def _build(self, row: Mapping[str, Any]) -> tuple[list[Message], dict[str, Any]]:
        instruction, output = text_of(row.get("instruction"), "instruction"), text_of(row.get("output"), "output")
        extra = text_of(row.get("input") or "", "input")
        history = row.get("history") or []
        if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
            raise Unusable("wrong_type", "history is not a list of pairs")
        messages = [Message("system", text_of(row["system"], "system"))] if row.get("system") else []
        for question, answer in history:
            messages += [Message("user", text_of(question, "history")), Message("assistant", text_of(answer, "history"))]
        messages += [Message("user", self.joint.join(filter(str.strip, (instruction, extra)))), Message("assistant", output)]
        known = ("instruction", "input", "output", "history", "system", "id", "group")
        return messages, {k: v for k, v in row.items() if k not in known}
