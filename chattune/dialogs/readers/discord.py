"""Discord channels, exported by DiscordChatExporter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from chattune.core.part import setting
from chattune.dialogs.dialog import Drop
from chattune.dialogs.json_stream import ENTERED
from chattune.dialogs.readers._chat import ChatLog, moment
from chattune.dialogs.readers._dates import STAMP, Order, order_of
from chattune.dialogs.readers._json import walk
from chattune.dialogs.rows import kind_of
from chattune.dialogs.sessions import Aside, Event, Note, Room, Said
from chattune.dialogs.text import lines, reading

_HEAD = 2**16
_SPOKEN = ("Default", "Reply", "ThreadStarterMessage", "ChatInputCommand", "ContextMenuCommand", "20", "23")  # others are notices
_HEADER = re.compile(rf"\[(?:{STAMP})\] (?P<name>.{{1,100}}?)(?P<pinned> \(pinned\))?$")
_BLOCK = re.compile(r"\{(?:Attachments|Embed|Stickers|Reactions|Inline Emoji)\}$")
_RULE = "=" * 62
_NOTICE = re.compile(
    r"(?:Joined the server\.|Pinned a message(?: to this channel)?\.|Started a call.*|Boosted the server.*"
    r"|(?:Added|Removed) .{1,100} (?:to|from) the group\.|Left the group\.|Changed the channel (?:name|icon).*|Created a thread.*)$"
)


class Discord(ChatLog):
    """JSON or plain text of a channel, a thread or a direct chat from DiscordChatExporter.

    Helps when: a community's or a support channel is the data.   Hurts when: the channel is for pictures: what has no words is
    left out.
    Cost: one window of messages and the open conversations in memory; the file is read twice.   Start with: the defaults; for a
    channel in which a bot answers, bots=assistant.
    Source: the formats of DiscordChatExporter. Conversations that run through one another are separated by the replies in the
    file and by dialogs/disentangle.py. Text exports hold no replies and do not mark bots and most notices.
    """

    disentangle: bool = setting(True, "whether conversations that run through one another are separated by who answers whom")
    bots: Literal["leave_out", "assistant", "like_people"] = setting(
        "leave_out", "what becomes of what bots wrote: left out and counted, the assistant's, or judged like what people wrote"
    )

    def events(self, path: Path) -> Iterator[Event]:
        with reading(path, self.encoding) as file:
            begin = file.read(1024).lstrip("\ufeff \t\r\n")
        yield from self._of_json(path) if begin.startswith("{") else self._of_text(path)

    def score(self, path: Path, head: str) -> float:
        head = head[:_HEAD].lstrip("\ufeff \t\r\n")
        if head.startswith("{"):
            own = re.match(r'\{\s*"guild"\s*:\s*\{', head) and re.search(r'"channel"\s*:\s*\{', head)
            return 1.0 if own else 0.0
        if head.startswith(_RULE) and re.search(r"^Guild: .*\nChannel: ", head, re.MULTILINE):
            return 1.0
        return 0.0

    def _of_json(self, path: Path) -> Iterator[Event]:
        with reading(path, self.encoding) as file:
            for item in walk(file, self.record_limit, str(path), {"messages"}):
                if isinstance(item, Drop):
                    yield item
                    continue
                place, line, value = item
                if place == "channel" and isinstance(value, Mapping) and value.get("name"):
                    yield Room(line, str(value["name"]))
                elif place == "messages[]" and value is not ENTERED:
                    yield self._event(value, line, path)

    def _event(self, row: Any, line: int, path: Path) -> Event:
        author = row.get("author") if isinstance(row, Mapping) else None
        if not isinstance(row, Mapping) or not isinstance(author, Mapping):
            return Drop("not_an_object", str(path), line, f"a message is {kind_of(row)}, or has no author")
        text = row.get("content")
        if not isinstance(text, str):
            return Drop("wrong_type", str(path), line, f"the content of a message is {kind_of(text)}")
        if str(row.get("type", "Default")) not in _SPOKEN:
            return Aside(line, "system_line")
        bot = author.get("isBot") is True
        if bot and self.bots == "leave_out":
            return Aside(line, "bot")
        text = text if text.strip() else _embedded(row.get("embeds"))
        if not text.strip():
            return Aside(line, "media")
        speaker = str(author.get("nickname") or author.get("name") or author.get("id") or "?")
        reference = row.get("reference")
        answers = str(reference.get("messageId") or "") if isinstance(reference, Mapping) else ""
        role = "assistant" if bot and self.bots == "assistant" else ""
        return Said(line, speaker, text, moment(row.get("timestamp")), str(row.get("id", "")), answers, role)

    def _of_text(self, path: Path) -> Iterator[Event]:
        order = order_of(self._headers(path))
        yield Note(f"dates are {order.name}: {order.why}")
        message: _Message | None = None
        preamble = False
        for item in self._lines(path):
            if isinstance(item, Drop):
                yield item
                continue
            number, line = item
            header = _HEADER.match(line)
            if header is not None:
                if message is not None:
                    yield message.event(order)
                message, preamble = _Message(number, header), False
            elif line == _RULE:
                preamble = not preamble
                if message is not None:
                    yield message.event(order)
                    message = None
            elif preamble or (message is None and not line.strip()):
                if line.startswith("Channel: "):
                    yield Room(number, line.removeprefix("Channel: ").strip())
            elif message is None:
                yield Drop("no_speaker", str(path), number, "a line before the first that names a time and a speaker")
            elif not message.take(line, self.record_limit):
                yield Drop("line_too_long", str(path), number, "the message goes on beyond the limit; this line is left out")
        if message is not None:
            yield message.event(order)

    def _lines(self, path: Path) -> Iterator[tuple[int, str] | Drop]:
        with reading(path, self.encoding) as file:
            yield from lines(file, self.record_limit, str(path))

    def _headers(self, path: Path) -> Iterator[re.Match[str]]:
        for item in self._lines(path):
            if not isinstance(item, Drop) and (match := _HEADER.match(item[1])):
                yield match


class _Message:
    """A message of a text export while its lines are read; blocks of attachments and reactions are no text."""

    def __init__(self, number: int, header: re.Match[str]) -> None:
        self._number, self._header = number, header
        self._lines: list[str] = []
        self._size, self._block = 0, False

    def take(self, line: str, limit: int) -> bool:
        self._block = self._block or _BLOCK.match(line) is not None
        self._size += len(line) + 1
        if self._size > limit and not self._block:
            return False
        if not self._block:
            self._lines.append(line)
        return True

    def event(self, order: Order) -> Said | Aside:
        text = "\n".join(self._lines).strip("\n")
        if not text.strip():
            return Aside(self._number, "media")
        if _NOTICE.match(text):
            return Aside(self._number, "system_line")
        return Said(self._number, self._header["name"], text, order.time(self._header))


def _embedded(embeds: Any) -> str:
    """The words of cards, with which bots answer."""
    parts: list[str] = []
    for card in embeds if isinstance(embeds, list) else []:
        if isinstance(card, Mapping):
            fields = card.get("fields")
            said = [card.get("title"), card.get("description")]
            for field in fields if isinstance(fields, list) else []:
                said += [field.get("name"), field.get("value")] if isinstance(field, Mapping) else []
            parts += [text for text in said if isinstance(text, str) and text.strip()]
    return "\n".join(parts)
