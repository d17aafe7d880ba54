"""IRC logs, as the usual clients and bouncers write them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from chattune.core.part import setting
from chattune.dialogs.dialog import Drop
from chattune.dialogs.readers._chat import ChatLog, clock
from chattune.dialogs.sessions import DAY, Aside, Event, Said
from chattune.dialogs.text import lines, reading

_MONTHS = {name: number for number, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}  # noqa: SIM905
_STAMP = re.compile(
    r"[\[(]?(?:(?P<year>\d{4})[-/.](?P<month>\d\d?)[-/.](?P<day>\d\d?)[ T]|(?P<name>[A-Z][a-z]{2}) {1,2}(?P<of>\d\d?) )?"
    r"(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.\d+)?)?(?: ?(?P<half>[AaPp])\.?[Mm]\.?)?(?:Z|[+-]\d\d:?\d\d)?"
    r"[\])]?(?P<tab>\s)\s*"
)
_MESSAGE = re.compile(r"<\s?[@+%&~!]?(?P<nick>[^<>\t\"=/]{1,64})>(?:\s(?P<text>.*))?$")
_COLUMNS = re.compile(r"[@+%&~]?(?P<nick>[^\s\t]{1,64})\t(?P<text>.*)$")
_ACTION = re.compile(r"(?:\*|•|===)\s+(?P<nick>[^\s/#:<>]{1,64})\s+(?P<text>.+)$")
_NOTICE = re.compile(r"(?:\*{2,}|===|-!-|-->|<--|---?|\*|•|-[^\s-]\S{0,63}-|Session (?:Start|Ident|Close|Time))(?:\s|:|$)")
_HAPPENS = re.compile(  # what clients write of joins, parts, modes and topics, after the nick
    r"(?:[\[(]\S*[\])]\s+)?(?:(?:has )?(?:joined|left|quit|parted)\b(?:\s*$|\s+(?:[#&+(\[\"]|IRC\b|the (?:channel|room|chat)\b))"
    r"|quits\b|(?:sets?|removes?|changes?|changed|has (?:set|changed)) (?:mode|(?:the )?topic)|is now known as"
    r"|(?:has been|was) kicked|kicked \S+ from|(?:gives|removes) (?:channel|voice))"
)
_DATE = re.compile(
    r"(?P<name>[A-Z][a-z]{2})[a-z]* +(?P<day>\d{1,2})(?:,| +\d\d:\d\d(?::\d\d)?(?: [A-Z]{2,5})?)? +(?P<year>\d{4})\b"
)
_ISO = re.compile(r"(?<!\d)(?P<year>(?:19|20)\d\d)[-_.]?(?P<month>\d\d)[-_.]?(?P<day>\d\d)(?!\d)")


class IRC(ChatLog):
    """Channel logs: ``[12:30] <nick> text``, ``* nick waves``, ``=== nick has joined`` and the like, with or without times.

    Helps when: a channel was logged by irssi, WeeChat, HexChat, mIRC, ZNC or a bot.   Hurts when: replies name nobody and
    several people speak at once: about four links in ten are then wrong (see RESULTS.md), and disentangle=false keeps
    everything in one conversation.
    Cost: one window of messages and the open conversations in memory; the file is read twice.   Start with: the defaults.
    Source: the log formats of these clients; conversations that run through one another are separated by
    dialogs/disentangle.py. Who opens a conversation asks in it; names that answer many and ask little are the assistant
    everywhere. Joins, modes and notices are counted in the conversation's metadata.
    """

    disentangle: bool = setting(True, "whether conversations that run through one another are separated by who answers whom")

    def events(self, path: Path) -> Iterator[Event]:
        clock_ = _Clock(path.name)
        with reading(path, self.encoding) as file:
            for item in lines(file, self.record_limit, str(path)):
                if isinstance(item, Drop):
                    yield item
                elif item[1].strip():
                    yield _event(item[1], item[0], clock_) or Drop("unknown_line", str(path), item[0], "no line of a channel log")

    def score(self, path: Path, head: str) -> float:
        if re.match(r"\s*<(?:!|\?|html\b)", head, re.IGNORECASE):
            return 0.0
        written = [line for line in head.splitlines()[:400] if line.strip()]
        found = [_event(line, 1, _Clock("")) for line in written]
        messages = sum(isinstance(event, Said) for event in found)
        # Columns of a client look like any table of times and words; its marks of who came and went tell them apart.
        marked = any(re.match(r"\S+ \S+\t(?:-->|<--|--)\t", line) for line in written)
        if messages < 2 or not (marked or any(_STAMP.sub("", line.strip(), count=1).startswith("<") for line in written)):
            return 0.0
        return round(0.98 * sum(event is not None for event in found) / len(written), 3)


def _event(line: str, number: int, clock_: _Clock) -> Event | None:
    """What a line says, or nothing when it is no line of such a log."""
    line = line.strip("\r\n ")
    match = _STAMP.match(line)
    rest = line[match.end() :] if match else line
    time = clock_.at(match) if match else clock_.now
    if said := _MESSAGE.match(rest):
        return Said(number, said["nick"].strip(), said["text"] or "", time)
    if action := _ACTION.match(rest):
        if _HAPPENS.match(action["text"]):
            return Aside(number, "system_line")
        return Said(number, action["nick"], f"*{action['text'].strip()}*", time)
    if _NOTICE.match(rest):
        clock_.marked(line)
        return Aside(number, "system_line")
    if match and match["tab"] == "\t" and (said := _COLUMNS.match(rest)):
        return Said(number, said["nick"], said["text"], time)
    return None


class _Clock:
    """Time of a log whose lines may hold no date: a mark of a new day, the file's name, or the time of day that begins anew,
    tells it."""

    def __init__(self, name: str) -> None:
        self.now: float | None = None
        self._year: int | None = None
        self._day = 0.0
        self._start(_ISO.search(name))

    def at(self, match: re.Match[str]) -> float | None:
        """Seconds on the log's clock of a line with this stamp."""
        hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"] or 0)
        if match["half"]:
            hour = hour % 12 + (12 if match["half"].lower() == "p" else 0)
        if hour > 23 or minute > 59 or second > 60:
            return self.now
        if match["year"] or match["name"]:
            month = int(match["month"]) if match["month"] else _MONTHS.get(match["name"].lower(), 0)
            day = clock(int(match["year"] or self._year or 1970), month, int(match["day"] or match["of"]))
            self._day = self._day if day is None else day
        found = self._day + hour * 3600 + minute * 60 + second
        if self.now is not None and not (match["year"] or match["name"]) and found < self.now - DAY / 2:
            self._day += DAY
            found += DAY
        self.now = found
        return found

    def marked(self, line: str) -> None:
        """A line that may tell the date: ``--- Day changed Tue Feb 08 2005``, ``Session Start: …``."""
        if match := _DATE.search(line):
            month = _MONTHS.get(match["name"].lower(), 0)
            self._set(clock(int(match["year"]), month, int(match["day"])), int(match["year"]))
        else:
            self._start(_ISO.search(line))

    def _start(self, match: re.Match[str] | None) -> None:
        if match:
            self._set(clock(int(match["year"]), int(match["month"]), int(match["day"])), int(match["year"]))

    def _set(self, day: float | None, year: int) -> None:
        if day is not None:
            self._day, self._year = day, year
            self.now = None if self.now is None or day > self.now else self.now
