"""WhatsApp chats, exported as text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from chattune.core.part import setting
from chattune.dialogs.dialog import Drop
from chattune.dialogs.readers._chat import ChatLog
from chattune.dialogs.readers._dates import ORDERS, STAMP, Order, order_of
from chattune.dialogs.sessions import Aside, Event, Note, Said
from chattune.dialogs.text import lines, reading

_MARKS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # directions of writing; iOS puts one before what it wrote
_LINE = re.compile(rf"(?P<bracket>\[)?{STAMP}(?(bracket)\]|\s[-–])\s(?P<rest>.*)$")
_SPEAKER = re.compile(r"(?P<name>[^:：\"“”「]{1,80})(?:：|:(?=\s|$))\s?(?P<text>.*)$")
_MEDIA = re.compile(
    r"<[^<>]{3,80}>$|.*\((?:file attached|文件附件|附件|archivo adjunto|Datei angehängt|fichier joint|arquivo anexado)\)$"
    r"|(?:image|video|audio|sticker|GIF|document|contact card|video note) omitted$|.{1,60}(?:已忽略|已省略|被忽略)$|略過.{1,20}$"
    r"|(?:location|位置|live location shared)[:：]? https?://\S+$"
)
_DELETED = re.compile(
    r"(?:this message was deleted|you deleted this message|this message was deleted by admin.*|waiting for this message.*"
    r"|此消息已(?:被)?删除|您已删除此消息|你已删除此消息|您删除了此消息|此訊息已刪除|您已刪除此訊息|.{0,20}(?:消息|訊息)已(?:被)?(?:删除|刪除))[.。]?$",
    re.IGNORECASE,
)
_NEWS = re.compile(  # lines that the app writes itself and in which a colon may stand
    r".{0,60}(?:created group|changed the (?:subject|group|description)|changed this group|changed their phone|added|removed|"
    r"joined using|left|end-to-end encrypted|security code|创建了(?:此)?群|建立了群|更改了|變更了|加入了|添加了|新增了|移除了|"
    r"退出了|端到端加密|端對端加密)",
    re.IGNORECASE,
)
_EDITED = re.compile(r"\s*<(?:This message was edited|这条消息已经过编辑|此消息已编辑|此訊息已編輯)>$", re.IGNORECASE)


class WhatsApp(ChatLog):
    """``_chat.txt`` of an iPhone (``[5/3/24, 10:11:12] Name: text``) or an Android phone (``5/3/24, 10:11 - Name: text``).

    Helps when: a chat was exported by "Export chat", in English, Chinese or another language.   Hurts when: the phone's
    language writes what was left out in words that are not known here: such lines stay messages.
    Cost: one conversation in memory; the file is read three times.   Start with: the defaults; name yourself in assistant=… if
    you answered.
    Source: the exports of WhatsApp. A message may have several lines; media, deleted messages and the app's own notices are
    counted in the conversation's metadata. Whether 5/3 is May or March is inferred from all dates of the file and said.
    """

    dates: Literal["infer", "day/month/year", "month/day/year", "year/month/day"] = setting(
        "infer", "the order in which the dates are written; infer: what makes sense of all dates in the file"
    )

    def events(self, path: Path) -> Iterator[Event]:
        order = Order(self.dates, "as set") if self.dates in ORDERS else order_of(self._stamps(path))
        yield Note(f"dates are {order.name}: {order.why}")
        message = _Lines(self.record_limit)
        before = False
        for item in self._lines(path):
            if isinstance(item, Drop):
                yield item
                continue
            number, line = item
            bare = line if line.isascii() else _MARKS.sub("", line)
            match = _LINE.match(bare)
            if match is not None:
                yield from message.ended()
                found = _event(number, match, line, order)
                if isinstance(found, Said):
                    message.begin(found)
                else:
                    yield found
                before = True
            elif not before:
                if line.strip():
                    yield Drop("no_speaker", str(path), number, "the file begins with a line that names no time and speaker")
            elif not message.goes_on(bare):
                yield Drop("line_too_long", str(path), number, "the message goes on beyond the limit; this line is left out")
        yield from message.ended()

    def score(self, path: Path, head: str) -> float:
        written = [_MARKS.sub("", line) for line in head.splitlines()[:400] if line.strip()]
        found = [match for line in written if (match := _LINE.match(line))]
        spoken = sum(_SPEAKER.match(match["rest"]) is not None for match in found)
        if spoken < 2:
            return 0.0
        # Lines without a time belong to the message before; many of them are unusual, and none before the first is.
        first = _LINE.match(written[0]) is not None
        return round((0.98 if first else 0.6) * min(1.0, 0.6 + 0.4 * len(found) / len(written) * 1.5), 3)

    def _lines(self, path: Path) -> Iterator[tuple[int, str] | Drop]:
        with reading(path, self.encoding) as file:
            yield from lines(file, self.record_limit, str(path))

    def _stamps(self, path: Path) -> Iterator[re.Match[str]]:
        for item in self._lines(path):
            if not isinstance(item, Drop) and (match := _LINE.match(_MARKS.sub("", item[1]))):
                yield match


def _event(number: int, match: re.Match[str], line: str, order: Order) -> Said | Aside:
    spoken = _SPEAKER.match(match["rest"])
    if spoken is None or _NEWS.match(spoken["name"]):
        return Aside(number, "system_line")
    name, text = spoken["name"].strip().lstrip("~").strip(), spoken["text"] or ""
    if _DELETED.match(text):
        return Aside(number, "deleted")
    if _MEDIA.match(text):
        return Aside(number, "media")
    typed = re.search(rf"{re.escape(spoken['name'])}[:：]\s?(.*)", line)
    if typed and typed[1].startswith("\u200e"):  # iOS marks what the app wrote in a person's name
        return Aside(number, "system_line")
    return Said(number, name or "?", text, order.time(match))


class _Lines:
    """A message of several lines while it is read."""

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._said: Said | None = None
        self._parts: list[str] = []

    def begin(self, said: Said) -> None:
        self._said, self._parts, self._size = said, [said.text], len(said.text)

    def goes_on(self, line: str) -> bool:
        """Take a further line; false when there is no room for it. Those behind a notice belong to the notice."""
        self._size += len(line) + 1
        if self._said is not None and self._size > self._limit:
            return False
        self._parts.append(line)
        return True

    def ended(self) -> Iterator[Said]:
        """The message, if there is one."""
        if self._said is not None:
            yield Said(self._said.line, self._said.speaker, _EDITED.sub("", "\n".join(self._parts)), self._said.time)
        self._said, self._parts, self._size = None, [], 0
