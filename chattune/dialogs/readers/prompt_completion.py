"""Prompt and completion: tables (CSV, TSV) and JSON rows of one question and one answer."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from chattune.core.errors import DataError
from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import Unusable, dialogs_of_rows, first_rows, is_json, is_judged, share, text_of
from chattune.dialogs.tables import delimiter_of
from chattune.dialogs.text import HEAD, reading

PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "output"), ("instruction", "response"),
    ("input", "output"), ("query", "response"), ("user", "assistant"), ("user", "bot"), ("q", "a"), ("问题", "回答"), ("问题", "答案"),
    ("问", "答"),
)  # fmt: skip


class PromptCompletion(Reader):
    """Tables with a header such as ``prompt,completion``, ``question,answer``, ``input,output`` or ``user,assistant``; JSON rows too.

    Helps when: data comes out of a spreadsheet or an FAQ.   Hurts when: conversations have several turns.
    Cost: one row in memory.   Start with: the defaults; name the columns when they have other names.
    Source: RFC 4180 for CSV; comma, semicolon, tab or bar as in the header. Other columns are kept as metadata.
    """

    prompt: str | None = setting(None, "the question's column; none: found by its usual names, whatever their case")
    completion: str | None = setting(None, "the answer's column; none: found by its usual names, whatever their case")

    @model_validator(mode="after")
    def _two_columns(self) -> Self:
        if self.prompt is not None and self.completion is not None and self.prompt.lower() == self.completion.lower():
            raise ValueError(f"prompt and completion are both '{self.prompt}': should be two columns")
        return self

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        with reading(path, self.encoding) as file:
            head = file.read(HEAD)
        if not is_json(head) and self._header(head) is None and head.strip():
            header = _first_line(head)
            raise DataError(
                f"no columns of questions and answers among: {', '.join(_names(header))[:160]}.", path=f"{path}:1",
                value=header.strip()[:80], rule="a header such as prompt,completion or question,answer",
                hint="Name them: collect.format.name=prompt_completion collect.format.prompt=… collect.format.completion=….",
            )
        yield from dialogs_of_rows(path, self.encoding, self.record_limit, "prompt_completion", self._build)

    def score(self, path: Path, head: str) -> float:
        rows = first_rows(head)
        if is_json(head):
            return share(rows, self._fits)
        table = any(end in (".csv", ".tsv") for end in path.suffixes[-2:])
        return 0.0 if self._header(head) is None or not all(map(self._fits, rows)) else 1.0 if table else 0.9

    def _fits(self, row: Mapping[str, Any]) -> bool:
        # Rows with an `instruction` are left to the reader of Alpaca, which also knows `input`.
        return self._columns(row) is not None and not {"instruction", "messages"} & row.keys() and not is_judged(row)

    def _header(self, head: str) -> tuple[str, str] | None:
        return self._columns(_names(_first_line(head)))

    def _columns(self, names: Iterable[str]) -> tuple[str, str] | None:
        """The names of the question's and the answer's column among `names`."""
        found = {str(name).strip().lower(): str(name) for name in names}
        pairs = PAIRS if self.prompt is None and self.completion is None else [
            (self.prompt or pair[0], self.completion or pair[1]) for pair in PAIRS
        ]  # fmt: skip
        return next(((found[a.lower()], found[b.lower()]) for a, b in pairs if a.lower() in found and b.lower() in found), None)

    def _build(self, row: Mapping[str, Any]) -> tuple[list[Message], dict[str, Any]]:
        columns = self._columns(row)
        if columns is None:
            raise Unusable("no_messages", f"no question and answer among {', '.join(map(str, row))}"[:160])
        messages = [Message("user", text_of(row[columns[0]], columns[0])), Message("assistant", text_of(row[columns[1]], columns[1]))]
        return messages, {k: v for k, v in row.items() if k not in (*columns, "id", "group") and v not in ("", None)}


def _first_line(head: str) -> str:
    return next((line for line in head.splitlines() if line.strip() and not line.lower().startswith("sep=")), "")


def _names(header: str) -> list[str]:
    return next(csv.reader([header], delimiter=delimiter_of(header)), [])
