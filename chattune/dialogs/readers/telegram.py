"""Telegram chats, exported by Telegram Desktop."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chattune.dialogs.dialog import Drop
from chattune.dialogs.json_stream import ENTERED
from chattune.dialogs.readers._chat import ChatLog, clock, moment
from chattune.dialogs.readers._html import Page, page_of, text_of
from chattune.dialogs.readers._json import walk
from chattune.dialogs.rows import kind_of
from chattune.dialogs.sessions import Aside, Event, Room, Said
from chattune.dialogs.text import reading

_HEAD = 2**16
_LIST = "chats.list"
_INTO = {"messages", "chats", _LIST, f"{_LIST}[]", f"{_LIST}[].messages", "left_chats", "left_chats.list", "left_chats.list[]",
         "left_chats.list[].messages"}  # fmt: skip
_TITLE = re.compile(r"(\d\d)\.(\d\d)\.(\d{4}) (\d\d):(\d\d):(\d\d)")


class Telegram(ChatLog):
    """``result.json`` of one chat or of a whole account, or ``messages.html``, from "Export chat history".

    Helps when: chats or groups of Telegram are the data.   Hurts when: one exported the account with channels that nobody
    answers in: they give no reply and are dropped.
    Cost: one conversation in memory for JSON, the whole file for HTML; a file is read twice.   Start with: the defaults; for a
    busy group disentangle=true separates by reply links and by who answers whom.
    Source: Telegram Desktop's export formats. In a chat with a bot the bot is the assistant. Service messages and media without
    words are counted in the conversation's metadata.
    """

    def events(self, path: Path) -> Iterator[Event]:
        with reading(path, self.encoding) as file:
            begin = file.read(1024).lstrip("\ufeff \t\r\n")
        if begin.startswith("<"):
            yield from _of_page(page_of(path, self.encoding, self.record_limit), path)
        else:
            yield from self._of_json(path)

    def score(self, path: Path, head: str) -> float:
        head = head[:_HEAD]
        if head.lstrip("\ufeff \t\r\n").startswith("{"):
            messages = re.search(r'"messages"\s*:\s*\[', head) is not None
            kinds = r'"type"\s*:\s*"(?:personal_chat|bot_chat|saved_messages|(?:private|public)_(?:group|supergroup|channel))"'
            own = re.search(kinds, head) is not None or ('"from_id"' in head and '"date_unixtime"' in head)
            return 1.0 if messages and own else 0.9 if re.search(r'"chats"\s*:\s*\{\s*"about"', head) else 0.0
        return 0.99 if re.search(r'<div class="message (?:default|service)[ "]', head) else 0.0

    def _of_json(self, path: Path) -> Iterator[Event]:
        name = kind = ""
        with reading(path, self.encoding) as file:
            for item in walk(file, self.record_limit, str(path), _INTO):
                if isinstance(item, Drop):
                    yield item
                    continue
                place, line, value = item
                last = place.rpartition(".")[2]
                if value is ENTERED:
                    if last == "messages":
                        yield Room(line, name)
                    elif last == "list[]":
                        name = kind = ""
                elif last in ("name", "type") and isinstance(value, str):
                    name, kind = (value, kind) if last == "name" else (name, value)
                elif last == "messages[]":
                    yield _event(value, line, name if kind == "bot_chat" else "", path)


def _event(row: Any, line: int, bot: str, path: Path) -> Event:
    if not isinstance(row, Mapping):
        return Drop("not_an_object", str(path), line, f"a message is {kind_of(row)}")
    if row.get("type") == "service":
        return Aside(line, "system_line")
    text = _text(row.get("text"))
    if text is None:
        return Drop("wrong_type", str(path), line, f"the text of a message is {kind_of(row.get('text'))}")
    if not text.strip():
        return Aside(line, "media")
    speaker = row.get("from") or row.get("from_id") or "Deleted Account"
    time = moment(row.get("date"))
    answers = row.get("reply_to_message_id")
    role = "assistant" if bot and speaker == bot else ""
    return Said(line, str(speaker), text, time, str(row.get("id", "")), "" if answers is None else str(answers), role)


def _text(value: Any) -> str | None:
    """The words of a message: text, or a list of text and of pieces with a style."""
    if isinstance(value, str) or value is None:
        return value or ""
    if not isinstance(value, list):
        return None
    parts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in value]
    return "".join(parts) if all(isinstance(part, str) for part in parts) else None


def _of_page(page: Page, path: Path) -> Iterator[Event]:
    title = page.first("div.page_header div.text")
    yield Room(1, text_of(title).strip() if title is not None else "")
    speaker = ""
    for node in page.all("div.message"):
        line = page.line(node)
        classes = node.get("class", "").split()
        if "service" in classes:
            yield Aside(line, "system_line")
            continue
        name = page.first("div.from_name", node)
        # A message that is joined to the one before has its speaker.
        speaker = (text_of(name).strip() if name is not None else speaker) or "Deleted Account"
        text = page.first("div.text", node)
        if text is None or not text_of(text).strip():
            yield Aside(line, "media")
            continue
        date = page.first("div.date", node)
        match = _TITLE.search(date.get("title", "")) if date is not None else None
        time = clock(int(match[3]), int(match[2]), int(match[1]), *map(int, match.groups()[3:])) if match else None
        reply = page.first("div.reply_to a", node)
        answers = reply.get("href", "").rpartition("go_to_")[2] if reply is not None else ""
        yield Said(line, speaker, text_of(text).strip(), time, node.get("id", ""), answers)
