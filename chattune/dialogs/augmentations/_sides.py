"""Sides: which terms stand for one another (he and she, one party and the other), from lists of chattune and from one's own.

An axis is a list of rows, each with one term a side. Quick to import: recipes are read with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import field_validator, model_validator

from chattune.core.errors import DataError
from chattune.core.part import Settings, setting

LISTS = Path(__file__).with_name("_sides.tsv")
OWN, GENDER, NAMES = "own", "gender", "names"


@dataclass(frozen=True)
class Axis:
    """Rows of one term a side. A row of one term throughout says that it stays: it only looks like another (其他 is no 他)."""

    name: str
    rows: tuple[tuple[str, ...], ...]

    @property
    def sides(self) -> tuple[str, ...]:
        """What the sides are called: the terms of the first row."""
        return self.rows[0]


class Swaps(Settings):
    """Which terms are swapped: lists that come with chattune, and one's own."""

    groups: tuple[Literal["gender", "region", "province"], ...] = setting(
        (GENDER,), "lists of chattune: gender (English, Chinese), region (countries, their people and capitals), province (of China)"
    )
    names: bool = setting(True, "whether given names change with gender: John and Mary, 张伟 and 张敏")
    pairs: tuple[tuple[str, ...], ...] = setting(
        (), "own terms, one a side in each row: [[Mac, PC], [macOS, Windows]]; the first row names the sides"
    )
    file: str | None = setting(None, "a file of lines group, tab, term, tab, term (… one a side); a group of a list above extends it")

    @field_validator("pairs")
    @classmethod
    def _sided(cls, value: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        rows = tuple(tuple(term.strip() for term in row) for row in value)
        for number in range(len(rows)):
            if wrong := _wrong(rows[: number + 1]):
                raise ValueError(f"row {number + 1} {wrong}")
        return rows

    @model_validator(mode="after")
    def _some_group(self) -> Self:
        if not (self.groups or self.pairs or self.file):
            raise ValueError("nothing would be swapped: should have groups, pairs or a file")
        return self

    def files(self) -> Iterable[Path]:
        """The file of own terms; `DataError` where it is not there."""
        if self.file is None:
            return ()
        path = Path(self.file).expanduser()
        if not path.is_file():
            raise DataError("does not exist.", path=str(path), rule="a file of lines group, tab, term, tab, term")
        return (path,)

    def axes(self) -> tuple[Axis, ...]:
        """The axes asked for, one's own first: a term that stands on several is taken for the first of them."""
        given = _by_group(LISTS)
        own: dict[str, list[tuple[str, ...]]] = {OWN: [*self.pairs]} if self.pairs else {}
        for path in self.files():
            for group, rows in _by_group(path, known={**{name: given[name] for name in self.groups}, **own}).items():
                own.setdefault(group, []).extend(rows)
        found = {group: rows for group, rows in own.items() if group not in self.groups}
        for group in dict.fromkeys(self.groups):
            first, *rest = given[group]
            found[group] = [first, *own.get(group, []), *rest, *(given[NAMES] if group == GENDER and self.names else [])]
        return tuple(Axis(group, tuple(rows)) for group, rows in found.items())


def _wrong(rows: Sequence[tuple[str, ...]]) -> str | None:
    """What is wrong with the last row of a group, beside those before it."""
    row = rows[-1]
    if len(row) < 2:
        return "should have at least two terms, one a side"
    if len(row) != len(rows[0]):
        return f"has {len(row)} terms where the first row of its group has {len(rows[0])}"
    if bad := [term for term in row if not term[:1].isalnum()]:
        return f"has the term '{bad[0]}', which should begin with a letter or a digit"
    sides = {term: side for other in rows[:-1] if len(set(other)) > 1 for side, term in enumerate(other)}
    moved = [term for side, term in enumerate(row) if sides.get(term, side) != side] if len(set(row)) > 1 else []
    if len(set(row)) > 1 and (moved or len(set(row)) < len(row)):
        return f"has '{(moved or [term for term in row if row.count(term) > 1])[0]}' on another side as well"
    return None


def _by_group(path: Path, known: Mapping[str, Sequence[tuple[str, ...]]] | None = None) -> dict[str, list[tuple[str, ...]]]:
    """The rows of a file by group, in its order; checked where `known`, the rows that its groups extend, is given."""
    found: dict[str, list[tuple[str, ...]]] = {}
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: {error.reason}.", path=str(path), rule="a file of terms in UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        group, *terms = (cell.strip() for cell in line.rstrip().split("\t"))
        rows = found.setdefault(group, [])
        rows.append(tuple(terms))
        if known is not None and (wrong := _wrong([*known.get(group, ()), *rows]) if group else "has no group"):
            rule = "group, tab, and one term a side, with tabs between"
            raise DataError(f"{wrong}.", path=f"{path}:{number}", value=line[:60], rule=rule)
    if known is not None and not found:
        raise DataError("holds no terms.", path=str(path), rule="at least one line group, tab, term, tab, term")
    return found
