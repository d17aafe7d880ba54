"""Examples that a user labelled: texts with their labels from tables, for the cleaners that learn from them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from chattune.core.errors import DataError
from chattune.dialogs.text import reading


def labelled(name: str, text_column: str, label_column: str) -> Iterator[tuple[str, str]]:
    """Each text of a table (CSV, TSV or JSON Lines, with a header) and its label; the columns in any letter case.

    `DataError`, with the line, for a row without them and for what is no table.
    """
    with reading(Path(name)) as file:
        table = not file.read(1).startswith("{")
        file.seek(0)
        first = file.readline()
        file.seek(0)
        delimiter = "\t" if first.count("\t") > first.count(",") else ","
        rows: Iterator[object] = csv.DictReader(file, delimiter=delimiter) if table else map(json.loads, filter(str.strip, file))
        place = 1
        try:
            for place, row in enumerate(rows, 2 if table else 1):
                found = row.items() if isinstance(row, dict) else ()
                known = {str(key).strip().lower(): value for key, value in found if key is not None}
                text, label = known.get(text_column.lower()), known.get(label_column.lower())
                if not isinstance(text, str) or label is None:
                    raise DataError(
                        f"has no text and label in the columns {text_column} and {label_column}.", path=f"{name}:{place}",
                        value=", ".join(known)[:120], rule="a column of texts and one of labels",
                        hint="Name them: text_column=… label_column=….",
                    )
                yield text, str(label)
        except (ValueError, csv.Error, RecursionError) as error:
            raise DataError(f"cannot be read: {error}.", path=f"{name}:{place}", rule="a table of labelled texts") from None
