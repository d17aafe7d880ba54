"""Dates as chat windows and exports write them, in which day, month and year stand in an order that only the file can tell."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from chattune.dialogs.readers._chat import clock

_HALVES = "上午|下午|凌晨|早上|清晨|中午|晚上|午前|午後|오전|오후"
_LATE = ("下午", "晚上", "午後", "오후", "中午")
_MONTHS = {name: number for number, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}  # noqa: SIM905
# A date and a time of day. Names of the groups: a, b, c in the order written; month only where it is a word.
STAMP = (
    r"(?P<a>\d{1,4})(?:[/.\-年]\s?|\s)(?P<b>\d{1,2}|[A-Za-z]{3})(?:[/.\-月]\s?|\s)(?P<c>\d{1,4})日?\.?,?\s(?:klo\s|à\s|at\s)?"
    rf"(?P<before>{_HALVES})?\s?(?P<hour>\d{{1,2}})[:.](?P<minute>\d\d)(?:[:.](?P<second>\d\d))?(?:\s?(?P<after>[AaPp]\.?\s?[Mm]\b\.?))?"
)
ORDERS = {"day/month/year": (2, 1, 0), "month/day/year": (2, 0, 1), "year/month/day": (0, 1, 2)}  # places of year, month, day


@dataclass(frozen=True)
class Order:
    """In which order dates are read, and why."""

    name: str
    why: str

    def time(self, match: re.Match[str]) -> float | None:
        """Seconds since 1970 of a `STAMP`; none when there is no such moment."""
        day = _day(self.name, *match.group("a", "b", "c"))
        if day is None:
            return None
        hour, half = int(match["hour"]), match["before"] or match["after"]
        if half and hour <= 12:
            late = half.lower().startswith("p") or half in _LATE
            hour = hour % 12 + (12 if late and not (half == "中午" and hour == 11) else 0)
        minute, second = int(match["minute"]), int(match["second"] or 0)
        return day + hour * 3600 + minute * 60 + second if hour < 24 and minute < 60 and second < 61 else None


def order_of(matches: Iterable[re.Match[str]]) -> Order:
    """The order in which all of a file's dates make sense, run forward and, failing that, look usual."""
    invalid = dict.fromkeys(ORDERS, 0)
    back = dict.fromkeys(ORDERS, 0)
    last: dict[str, tuple[int, int, int]] = {}
    count, points, halves = 0, 0, 0
    before = None
    for match in matches:
        if (written := match.group("a", "b", "c")) == before:
            continue
        before = written
        count += 1
        points += match.string[match.end("a")] == "."
        halves += match["after"] is not None
        for name, places in ORDERS.items():
            found = _date(written[0], written[1], written[2], places)
            # A year of two digits comes last, unless it can be nothing else.
            doubtful = places[0] == 0 and match["b"].isdigit() and len(match["a"]) < 3 and int(match["a"]) < 32
            if found is None or doubtful or clock(*found) is None:
                invalid[name] += 1
                continue
            back[name] += name in last and found < last[name]
            last[name] = found
    usual = ["day/month/year", "month/day/year", "year/month/day"]
    if halves * 2 > count and not points:
        usual = ["month/day/year", "day/month/year", "year/month/day"]
    best = min(usual, key=lambda name: (invalid[name], back[name], usual.index(name)))
    others = [name for name in usual if name != best]
    if all(invalid[name] > invalid[best] for name in others):
        return Order(best, "no other order makes dates of all of them" if not invalid[best] else "it makes dates of most of them")
    if all((invalid[name], back[name]) > (invalid[best], back[best]) for name in others):
        return Order(best, "so they run forward")
    return Order(best, "the file does not tell; set dates where that is wrong")


@functools.lru_cache(maxsize=4096)
def _day(order: str, a: str, b: str, c: str) -> float | None:
    """Seconds since 1970 of the beginning of a day as it is written."""
    found = _date(a, b, c, ORDERS[order])
    return None if found is None else clock(*found)


def _date(a: str, b: str, c: str, places: tuple[int, int, int]) -> tuple[int, int, int] | None:
    written = [a, b, c]
    if b.isalpha():  # 17-May-20
        month = _MONTHS.get(b.lower())
        day, year = (written[2], written[0]) if len(written[0]) == 4 else (written[0], written[2])
        return None if month is None else (_year(year), month, int(day))
    year, month_, day = (written[place] for place in places)
    if len(month_) > 2 or len(day) > 2 or len(year) == 3 or (len(year) == 1 and year != "0"):
        return None
    return _year(year), int(month_), int(day)


def _year(text: str) -> int:
    year = int(text)
    return year if len(text) > 2 else year + (2000 if year < 70 else 1900)
