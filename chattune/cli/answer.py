"""What every command gives back and takes: an `Answer` for people and machines, and the options that stand everywhere."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

EVERYWHERE = Group("Everywhere", sort_key=9)


@dataclass(frozen=True)
class Answer:
    """A command's result: `text` for people, `data` (plain, one JSON object) for machines."""

    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@Parameter(name="*", group=EVERYWHERE)
@dataclass(frozen=True)
class Common:
    """Options that every command takes."""

    home: Annotated[Path, Parameter(help="the folder that holds the runs")] = Path("runs")
    json: Annotated[bool, Parameter(negative="", help="print one JSON object on the last line of stdout")] = False
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative="", help="say nothing on stderr but errors")] = False
    debug: Annotated[bool, Parameter(negative="", help="show tracebacks")] = False


USUAL = Common()


def table(rows: Iterable[Sequence[Any]], head: Sequence[str] | None = None, *, right: Iterable[int] = ()) -> str:
    """Columns aligned by display width (a Chinese character takes two); the last one is never padded or cut."""
    from rich.cells import cell_len

    cells = [[str(cell) for cell in row] for row in ([head] if head else []) + [*rows]]
    if not cells:
        return ""
    widths = [max(cell_len(row[i]) for row in cells) for i in range(len(cells[0]))]
    right = set(right)
    lines = []
    for row in cells:
        padded = [
            " " * (width - cell_len(cell)) + cell if i in right else cell + " " * (width - cell_len(cell))
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    if head:
        lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def number(value: Any) -> str:
    """A number for people: four significant digits, thousands apart."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def interval(score: Mapping[str, Any] | None) -> str:
    """``1.664 [1.643, 1.684]``: a value and its 95 % interval."""
    if not score or score.get("value") is None:
        return "–"
    low, high = score.get("low"), score.get("high")
    return number(score["value"]) + (f" [{number(low)}, {number(high)}]" if low is not None and high is not None else "")


def plain(text: str) -> str:
    """`text` without control characters, so that a name or a reply cannot steer the terminal."""
    if all(c in "\n\t" or c.isprintable() for c in text):
        return text
    from chattune.generate.terminal import readable

    return readable(text)


def short(text: str, characters: int = 100) -> str:
    """The beginning of `text` on one line."""
    text = " ".join(text.split())
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def silence_broken_pipe() -> None:
    """The reader of stdout went away (``| head``): give the interpreter somewhere harmless to flush to."""
    import sys

    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, io.UnsupportedOperation):
        return
