"""Prompt and completion: tables (CSV, TSV) and JSON rows of one question and one answer."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from chattune.core.errors import DataError
from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import Unusable, dialogs_of_json, identity, text_of
from chattune.dialogs.text import lines, reading, sample

PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "output"), ("instruction", "response"),
    ("input", "output"), ("query", "response"), ("user", "assistant"), ("user", "bot"), ("q", "a"), ("问题", "回答"), ("问题", "答案"),
    ("问", "答"),
)  # fmt: skip


class PromptCompletion(Reader):
    """Tables with a header such as ``prompt,completion``, ``question,answer``, ``input,output`` or ``user,assistant``; JSON rows too.

    Helps when: data comes out of a spreadsheet or an FAQ.   Hurts when: conversations have several turns.
    Cost: one row in memory.   Start with: the defaults; name the columns when they have other names.
    Source: RFC 4180 for CSV; comma, semicolon or tab as in the header. Other columns are kept as metadata.
    """

    prompt: str | None = setting(None, "the question's column; none: found by its usual names, whatever their case")
    completion: str | None = setting(None, "the answer's column; none: found by its usual names, whatever their case")

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        with reading(path, self.encoding) as file:
            begin = file.read(4096).lstrip()
            if not begin.startswith(("{", "[")):
                file.seek(0)
                yield from self._table(path, file)
                return
        yield from dialogs_of_json(path, self.encoding, self.record_limit, "prompt_completion", self._build)

    def score(self, path: Path, head: str) -> float:
        if head.lstrip().startswith(("{", "[")):
            rows = [row for row, _ in sample(head)]
            return sum(map(self._fits, rows)) / len(rows) if rows else 0.0
        header = next((line for line in head.splitlines() if line.strip()), "")
        columns = self._columns(next(csv.reader([header], delimiter=_delimiter(header)), []))
        table = any(end in (".csv", ".tsv") for end in path.suffixes[-2:])
        return 0.0 if columns is None else 1.0 if table else 0.9

    def _fits(self, row: Any) -> bool:
        # Rows with an `instruction` are left to the reader of Alpaca, which also knows `input`.
        return isinstance(row, Mapping) and self._columns(row) is not None and not {"instruction", "messages"} & row.keys()

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
        return messages, {k: v for k, v in row.items() if k not in (*columns, "id", "group")}

    def _table(self, path: Path, file: TextIO) -> Iterator[Dialog | Drop]:
        shown, starts, dropped = str(path), [0], list[Drop]()

        def texts() -> Iterator[str]:
            for item in lines(file, self.record_limit, shown):
                if isinstance(item, Drop):
                    dropped.append(item)
                else:
                    starts[0] = item[0]
                    yield item[1] + "\n"

        source = texts()
        header = next((text for text in source if text.strip()), "")
        names = next(csv.reader([header], delimiter=_delimiter(header)), [])
        columns = self._columns(names)
        if columns is None:
            raise DataError(
                f"no columns of questions and answers among: {', '.join(names)[:160]}.", path=f"{shown}:1", value=header.strip()[:80],
                rule="a header such as prompt,completion or question,answer",
                hint="Name them: collect.format.name=prompt_completion collect.format.prompt=… collect.format.completion=….",
            )
        places = [names.index(column) for column in columns]
        rows = csv.reader(source, delimiter=_delimiter(header), strict=True)
        index = 0
        while True:
            line = starts[0] + 1
            try:
                row = self._next(rows)
            except csv.Error as error:
                yield Drop("broken_csv", shown, line, f"{error}; lines {line} to {max(line, starts[0])} are left out")
                continue
            yield from dropped
            dropped.clear()
            if row is None:
                return
            if not row or not any(map(str.strip, row)):
                continue
            index += 1
            if len(row) != len(names):
                yield Drop("wrong_columns", shown, line, f"{len(row)} fields, the header has {len(names)}")
                continue
            messages = (Message("user", row[places[0]]), Message("assistant", row[places[1]]))
            rest = {name: row[place] for place, name in enumerate(names) if place not in places and name.strip() and row[place]}
            metadata = {name: value for name, value in rest.items() if name not in ("id", "group")}
            yield Dialog(identity(rest, path, index - 1), messages, "prompt_completion", shown, line, rest.get("group"), metadata)


    def _next(self, rows: Iterator[list[str]]) -> list[str] | None:
        usual = csv.field_size_limit(self.record_limit)  # the csv module keeps it for the whole process
        try:
            return next(rows, None)
        finally:
            csv.field_size_limit(usual)


def _delimiter(header: str) -> str:
    return max(",\t;", key=header.count)
