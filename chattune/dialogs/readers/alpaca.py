"""Alpaca: instruction, input and output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import Unusable, dialogs_of_rows, first_rows, is_judged, share, text_of

_ANSWERS, _INPUTS = ("output", "response"), ("input", "context")


class Alpaca(Reader):
    """Rows ``{"instruction", "input", "output", "history"?, "system"?}``, as JSON, CSV, Excel or Parquet.

    Helps when: data is instructions and answers.   Hurts when: instruction and input must stay apart: they become one user message.
    Cost: one row in memory.   Start with: the defaults.
    Source: Stanford Alpaca, and Dolly with its `context` and `response`; `history` (pairs of earlier question and answer) as in
    LLaMA-Factory. Instruction and input are joined by a blank line, without Alpaca's own English frame around them.
    """

    joint: str = setting("\n\n", "what stands between instruction and input in the user's message")

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        return dialogs_of_rows(path, self.encoding, self.record_limit, "alpaca", self._build)

    def score(self, path: Path, head: str) -> float:
        return share(first_rows(head), lambda row: "instruction" in row and bool(row.keys() & _ANSWERS) and not is_judged(row))

    def _build(self, row: Mapping[str, Any]) -> tuple[list[Message], dict[str, Any]]:
        instruction, output = text_of(row.get("instruction"), "instruction"), text_of(_first(row, _ANSWERS), "output")
        extra = text_of(_first(row, _INPUTS) or "", "input")
        history = row.get("history") or []
        if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
            raise Unusable("wrong_type", "history is not a list of pairs")
        messages = [Message("system", text_of(row["system"], "system"))] if row.get("system") else []
        for question, answer in history:
            messages += [Message("user", text_of(question, "history")), Message("assistant", text_of(answer, "history"))]
        messages += [Message("user", self.joint.join(filter(str.strip, (instruction, extra)))), Message("assistant", output)]
        known = ("instruction", *_INPUTS, *_ANSWERS, "history", "system", "id", "group")
        return messages, {k: v for k, v in row.items() if k not in known and v not in ("", None)}


def _first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((row[name] for name in names if name in row), None)
