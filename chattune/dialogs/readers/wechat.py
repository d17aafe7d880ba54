"""WeChat chats, as the usual export tools write them."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from chattune.core.part import setting
from chattune.dialogs.dialog import Drop
from chattune.dialogs.readers._chat import ChatLog, moment
from chattune.dialogs.readers._dates import STAMP, Order
from chattune.dialogs.readers._html import Page, page_of, text_of
from chattune.dialogs.rows import first_rows, records
from chattune.dialogs.sessions import Aside, Event, Room, Said
from chattune.dialogs.text import lines, reading

_HEAD = 2**16
_ORDER = Order("year/month/day", "")
_NAME_LAST = re.compile(rf"{STAMP}\s+(?P<name>\S.{{0,99}})$")
_NAME_FIRST = re.compile(rf"(?P<name>\S.{{0,99}}?)\s+{STAMP}$")
_ONE_LINE = re.compile(rf"(?P<name>\S.{{0,99}}?)\s?\({STAMP}\)[:：](?P<text>.*)$")
_SYSTEM = re.compile(r"(?:系统消息|System)[:：]")
_TITLE = re.compile(r"(?P<name>.*) - (?:微信聊天记录|WeChat Chat History)$")
_PLACEHOLDER = re.compile(
    r"\[(?:图片|语音|视频|表情包?|动画表情|文件|位置|实时位置共享|红包|转账|链接|音乐分享|个人名片|视频号名片|视频/语音通话|Photo|Audio|Video|Emoji|"
    r"Sticker|File|Location|Real-time Location|Red Packet|Transfer|Link|Contact Card|Channel Card|Video/Audio Call)[^\[\]]*\]"
    r"(?:[:：].*)?$"
)
_QUOTED = re.compile(r"\s*「.*?」\n(?:- ){5,}-?\s*\n", re.DOTALL)
_QUOTE_BEHIND = re.compile(r"\n引用[:：].*\Z", re.DOTALL)
_RECALLED = re.compile(r".{0,80}(?:撤回了一条消息|recalled a message)")
_ENTRY = re.compile(
    r"\{\s*type:\s*(?P<type>\d+)\s*,\s*(?:sub_type:\s*(?P<sub>\d+)\s*,\s*)?text:\s*'(?P<text>(?:[^'\\]|\\.)*)'\s*,\s*is_send:\s*(?P<sent>\d)"
    r"(?P<rest>(?:[^{}']|'(?:[^'\\]|\\.)*')*)\}",
    re.DOTALL,
)
_FIELD = re.compile(r"(timestamp|displayname|sub_type):\s*(?:(\d+)|'((?:[^'\\]|\\.)*)')")
_WORDS = ("1", "文本", "text", "引用回复", "带有引用的文本消息", "49-57")  # types of message that hold what somebody wrote
_NOTICES = ("0", "10000", "10002", "系统通知", "系统消息", "拍一拍")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


class WeChat(ChatLog):
    """Text, HTML, CSV or JSON of WeChat from WeChatMsg, PyWxDump or WechatExporter, or a text like ``Name 2024/3/5 10:11:12``.

    Helps when: chats with customers or friends were exported from WeChat.   Hurts when: one file holds several chats in turns:
    each change cuts.
    Cost: one conversation in memory, the whole file for HTML; a file is read twice.   Start with: the defaults, which let the
    account that was exported be the assistant; owner=user turns that round.
    Source: the formats of these tools; QQ's text export has the first of them. Media, recalled messages and notices are counted
    in the conversation's metadata; a quotation before or behind an answer is left out of it.
    """

    owner: Literal["assistant", "user", "like_others"] = setting(
        "assistant", "the role of the account whose chats were exported, where the file marks it; like_others: by what it does"
    )

    def events(self, path: Path) -> Iterator[Event]:
        with reading(path, self.encoding) as file:
            head = file.read(_HEAD).lstrip("\ufeff")
        if head.lstrip().startswith("<"):
            yield from self._of_page(page_of(path, self.encoding, self.record_limit))
        elif any(map(_is_row, first_rows(head))):
            yield from self._of_rows(path)
        else:
            yield from self._of_text(path)

    def score(self, path: Path, head: str) -> float:
        head = head[:_HEAD]
        if head.lstrip("\ufeff \t\r\n").startswith("<"):
            listed = "is_send:" in head and "displayname:" in head
            return 0.99 if listed or re.search(r'class="msg [^"]*"[^<>]*\bmsgid=', head) else 0.0
        rows = first_rows(head)
        if rows and all(map(_is_row, rows)):
            return 1.0
        written = head.splitlines()[:400]
        if sum(_ONE_LINE.match(line) is not None for line in written) >= 2 or any(_TITLE.match(line) for line in written[:1]):
            return 0.98
        # A line of a name and a time stands before what was said, and an empty one behind that.
        headers = [place for place, line in enumerate(written) if _NAME_LAST.match(line) or _NAME_FIRST.match(line)]
        many = headers[:1] == [0] and len(headers) >= 2 and len(headers) * 8 >= len(written)
        return 0.95 if many and not all(written) else 0.0

    def _role(self, owner: bool) -> str:
        if self.owner == "like_others":
            return ""
        return self.owner if owner else {"assistant": "user", "user": "assistant"}[self.owner]

    def _of_rows(self, path: Path) -> Iterator[Event]:
        chat: Any = None
        for item in records(path, self.encoding, self.record_limit):
            if isinstance(item, Drop):
                yield item
                continue
            line, row, _ = item
            if not isinstance(row, Mapping) or not _is_row(row):
                yield Drop("wrong_type", str(path), line, "a row without a sender, a text and a time")
                continue
            room = row.get("room_name") or row.get("TalkerId") or ""
            if room != chat:
                chat = room
                yield Room(line, str(room) if row.get("room_name") else "")
            kind = str(_of(row, "Type", "type_name") or "1")
            kind = f"{kind}-{row.get('SubType')}" if kind == "49" else kind
            text = _said(_of(row, "StrContent", "content", "msg"))
            owner = str(_of(row, "IsSender", "is_sender")).strip().lower() in ("1", "true", "是")
            name = str(_of(row, "Remark", "NickName", "Sender", "talker") or ("我" if owner else "对方"))
            time = _time(_of(row, "StrTime", "CreateTime"))
            yield _event(line, kind, name, text, time, self._role(owner))

    def _of_page(self, page: Page) -> Iterator[Event]:
        nodes = page.all("div.msg[msgid]")
        if nodes:
            yield from self._of_elements(page, nodes)
            return
        # A list of entries that a script shows.
        for script in page.all("script"):
            source, passed = script.text or "", 0
            line = page.line(script)
            for entry in _ENTRY.finditer(source):
                line += source.count("\n", passed, entry.start())
                passed = entry.start()
                fields = {name: number or _unescaped(text) for name, number, text in _FIELD.findall(entry["rest"])}
                kind, owner = entry["type"], entry["sent"] == "1"
                kind = f"49-{entry['sub'] or fields.get('sub_type')}" if kind == "49" else kind
                name = fields.get("displayname") or ("我" if owner else "对方")
                yield _event(line, kind, name, _unescaped(entry["text"]), _time(fields.get("timestamp")), self._role(owner))

    def _of_elements(self, page: Page, nodes: list[Any]) -> Iterator[Event]:
        for node in nodes:
            line, classes = page.line(node), node.get("class", "")
            if "chat-notice" in classes:
                yield Aside(line, "system_line")
                continue
            name = page.first("span.name-left, span.name-right, span.dspname", node)
            text, box = page.first(".dont-break-out", node), page.first(".nt-box", node)
            if name is None or text is None:
                yield Aside(line, "media" if name is not None else "system_line")
                continue
            match = re.search(STAMP, text_of(box, [name])) if box is not None else None
            owner = "right" in classes or "right" in name.get("class", "")
            time = _ORDER.time(match) if match else None
            yield _event(line, "1", text_of(name).strip(), text_of(text), time, self._role(owner))

    def _of_text(self, path: Path) -> Iterator[Event]:
        header: re.Match[str] | None = None
        body: list[str] = []
        began = size = 0

        def ended() -> Iterator[Event]:
            if header is not None:
                text = "\n".join(body).strip("\n")
                yield _event(began, "1" if text.strip() else "0", header["name"], text, _ORDER.time(header), "")

        with reading(path, self.encoding) as file:
            for item in lines(file, self.record_limit, str(path)):
                if isinstance(item, Drop):
                    yield item
                    continue
                number, line = item
                if number == 1 and (title := _TITLE.match(line)):
                    yield Room(number, title["name"])
                elif _SYSTEM.match(line):
                    yield from ended()
                    header = None
                    yield Aside(number, "system_line")
                elif match := _ONE_LINE.match(line) or _NAME_LAST.match(line) or _NAME_FIRST.match(line):
                    yield from ended()
                    header, began, body = match, number, [match.groupdict().get("text") or ""]
                    size = len(line)
                elif header is None:
                    if line.strip():
                        yield Drop("no_speaker", str(path), number, "a line before the first that names a speaker and a time")
                elif size + len(line) > self.record_limit:
                    yield Drop("line_too_long", str(path), number, "the message goes on beyond the limit; this line is left out")
                else:
                    body.append(line)
                    size += len(line) + 1
        yield from ended()


def _is_row(row: Any) -> bool:
    if not isinstance(row, Mapping):
        return False
    keys = row.keys()
    return {"StrContent", "IsSender"} <= keys or ({"is_sender", "CreateTime"} <= keys and bool({"content", "msg"} & keys))


def _event(line: int, kind: str, name: str, text: str, time: float | None, role: str) -> Event:
    if kind in _NOTICES or _RECALLED.match(text):
        return Aside(line, "system_line")
    text = _QUOTE_BEHIND.sub("", _QUOTED.sub("", text, count=1))
    if kind not in _WORDS or not text.strip() or _PLACEHOLDER.match(text.strip()) or text.lstrip().startswith("<?xml"):
        return Aside(line, "media")
    return Said(line, name, text, time, role=role)


def _of(row: Mapping[str, Any], *keys: str) -> Any:
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)


def _said(value: Any) -> str:
    """The words in a cell: as they stand, or within JSON such as ``{"src": "", "msg": "…"}``."""
    if isinstance(value, str) and value[:1] in ("{", '"'):
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            return value
        value = inner if isinstance(inner, (str, Mapping)) else value
    if isinstance(value, Mapping):
        value = value.get("msg")
    return value if isinstance(value, str) else "" if value is None else str(value)


def _time(value: Any) -> float | None:
    """Seconds of what a time column holds: seconds, or a date in words."""
    if isinstance(value, str) and re.fullmatch(r"\d{9,11}(?:\.\d+)?", value.strip()):
        return moment(float(value))
    if isinstance(value, str) and (match := re.match(STAMP, value.strip())):
        return _ORDER.time(match)
    return moment(value)


def _unescaped(text: str) -> str:
    """What a string in a script means that was escaped for HTML first."""
    return html.unescape(re.sub(r"\\(.)", lambda mark: _ESCAPES.get(mark[1], mark[1]), text, flags=re.DOTALL))
