"""Mail: mbox files, threads by who answers whom."""

from __future__ import annotations

import email
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message as Mail
from email.utils import getaddresses, parsedate_to_datetime
from pathlib import Path

from chattune.core.errors import DataError
from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.readers._chat import dialog_of
from chattune.dialogs.readers._html import parsed, text_of
from chattune.dialogs.readers._roles import RolesByName
from chattune.dialogs.sessions import Conversation, Said, Survey
from chattune.dialogs.text import lines, reading

_FROM = re.compile(r"From (?:\S+|\S.*@\S*.*?) .*\d\d:\d\d(?::\d\d)?.*\d{4}\s*$|From \S+\s*$|From - ")
_ID = re.compile(r"<[^<>\s]{1,500}>")
_REPLY = re.compile(r"^\s*((re|aw|sv|antw|rif|res|fwd?|wg|回复|答复|转发|回覆|轉寄)\s*(\[\d+\])?\s*[:：]\s*)+", re.IGNORECASE)
_INTRODUCES = re.compile(
    r"(?:On|Am|Le|El|Il|Op|W dniu|在)\s.{4,200}(?:wrote|schrieb|a écrit|escribió|ha scritto|schreef|写道|寫道)"
    r"[^\n]{0,40}[:：]\s*$"
    r"|.{2,100}<[^<>@\s]+@[^<>\s]+>\s*(?:wrote|schrieb|写道|於.{4,40}寫道)\s*[:：]\s*$|.{2,60}(?:wrote|写道)[:：]\s*$",
    re.DOTALL,
)
_FORWARDED = re.compile(
    r"-{2,}\s*(?:Original Message|Forwarded message|Ursprüngliche Nachricht|Message d'origine|原始邮件|原始郵件|转发邮件)"
    r"\s*-{2,}\s*$|_{20,}\s*$",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"(?:From|Von|De|发件人|寄件者|Sent|Gesendet|Envoyé|发送时间|To|An|收件人|Subject|Betreff|主题)\s*[:：]\s*\S"
)
_HELPDESK = re.compile(
    r"(?:support|help|helpdesk|service|customer[._-]?(?:care|service)|kundenservice|info|kefu)(?:[._+-].*)?$", re.IGNORECASE
)
_FIELDS = re.compile(r"^(?:From|To|Subject|Date|Message-ID|MIME-Version|Received|Return-Path):", re.MULTILINE | re.IGNORECASE)


@dataclass(slots=True)
class _Header:
    """What threads are made of."""

    id: str
    answers: tuple[str, ...]
    subject: str
    reply: bool
    speaker: str
    address: str
    role: str


@dataclass(slots=True)
class _Thread:
    """A thread while its messages are read: how many are still to come, and what is there of it."""

    left: int
    said: list[Said] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    subject: str = ""
    size: int = 0


class Mbox(RolesByName):
    """An mbox file (or one message, as .eml): each thread is a conversation, its messages without what they quote.

    Helps when: a mailing list, a support mailbox or a mail program's folder is the data.   Hurts when: answers stand between
    quoted lines: what they answer is then not seen.
    Cost: headers of all messages and the threads that are not complete yet in memory; the file is read twice.   Start with: the
    defaults; name addresses or names of those who answer in assistant=….
    Source: RFC 4155 and RFC 5322, threads by In-Reply-To and References (RFC 5256) and, where both are missing, by a subject
    that begins with Re:. Senders such as support@… are the assistant; else those who answer many and open few threads, else who
    did not open it.
    """

    quotes: bool = setting(False, "whether quoted text stays in a message")
    signatures: bool = setting(False, "whether a signature (what follows a line of --) stays in a message")
    subject: bool = setting(False, "whether the subject is put before the first message of a thread")

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        headers = [self._header(mail) for _, mail in self._mails(path) if not isinstance(mail, Drop)]
        if not headers:
            raise DataError("holds no message.", path=str(path), rule="an mbox file, whose messages begin with a line 'From …'",
                            hint="Name another format: collect.format=….")  # fmt: skip
        shown: dict[str, str] = {}
        for header in headers:  # one address is one speaker, whatever name it shows
            header.speaker = shown.setdefault(header.address or header.speaker, header.speaker)
        roots = _roots(headers)
        survey = Survey(self.names())
        for header, root in zip(headers, roots, strict=True):
            opener = headers[root].speaker
            survey.note(header.speaker, None if headers[root] is header else opener, header.role)
        plan = survey.settled()
        threads = {root: _Thread(count) for root, count in Counter(roots).items()}
        number = count = 0
        for line, mail in self._mails(path):
            if isinstance(mail, Drop):
                yield mail
                continue
            root = roots[number]
            thread, header = threads[root], headers[number]
            number += 1
            thread.left -= 1
            found = self._said(mail, header, line, path, thread)
            if isinstance(found, Drop):
                yield found
            elif thread.size + len(found.text) > self.record_limit:
                yield Drop("line_too_long", str(path), line, "the thread goes on beyond the limit; this message is left out")
            else:
                thread.said.append(found)
                thread.size += len(found.text)
            if thread.left == 0:
                del threads[root]
                if thread.said:
                    count += 1
                    thread.said.sort(key=lambda said: (said.time is None, said.time or 0.0))
                    metadata = {"subject": thread.subject} if thread.subject else {}
                    own = Conversation(thread.said, thread.left_out)
                    yield dialog_of(own, plan, path, count, self.name, **metadata)

    def score(self, path: Path, head: str) -> float:
        head = head[: 2**16].lstrip("\ufeff")
        fields = len(_FIELDS.findall(head))
        if _FROM.match(head.partition("\n")[0]) and fields >= 2:
            return 1.0
        alone = re.match(r"(?:[A-Za-z][\w-]{1,60}:[^\n]*\n(?:[ \t][^\n]*\n)*){3,}\n", head)
        return 0.98 if alone and fields >= 3 else 0.0

    def _mails(self, path: Path) -> Iterator[tuple[int, Mail | Drop]]:
        """The messages of the file with the lines on which they begin."""
        # Mail is bytes: latin-1 gives each of them as one character. Only an encoding that is no superset of ASCII is decoded.
        plain = "From ".encode(self.encoding, "replace") == b"From "
        body: list[str] = []
        began = size = 0
        blank = True
        with reading(path, "latin-1" if plain else self.encoding) as file:
            for item in lines(file, self.record_limit, str(path)):
                if isinstance(item, Drop):
                    yield item.line, item
                    continue
                number, line = item
                line = line.removeprefix("\xef\xbb\xbf") if number == 1 else line
                if blank and line.startswith("From ") and _FROM.match(line):
                    if began and size <= self.record_limit:
                        yield began, _parsed(body, plain)
                    began, body, size = number, [], 0
                elif not began:
                    if not re.match(r"[A-Za-z][\w-]{1,60}:", line):
                        if not line.strip():
                            continue
                        return
                    began, body, size = number, [line], len(line)  # a message of its own, without a line before it
                else:
                    size += len(line) + 1
                    if size <= self.record_limit:
                        body.append(line)
                    elif size - len(line) - 1 <= self.record_limit:
                        yield began, Drop("line_too_long", str(path), began, "the message is longer than the limit")
                blank = not line.strip()
        if began and not any(not line.strip() for line in body):
            yield began, Drop("no_text", str(path), began, "the file ends within the head of this message")
        elif began and size <= self.record_limit:
            yield began, _parsed(body, plain)

    def _header(self, mail: Mail) -> _Header:
        subject = _decoded(mail.get("Subject"))
        own = _ID.search(str(mail.get("Message-ID") or ""))
        before = _ID.findall(str(mail.get("In-Reply-To") or ""))[:1] + _ID.findall(str(mail.get("References") or ""))[::-1]
        speaker, address = _sender(mail)
        role = self.names().role(address) or ("assistant" if _HELPDESK.match(address.partition("@")[0]) else "")
        topic, reply = _REPLY.sub("", subject).strip().casefold(), bool(_REPLY.match(subject))
        return _Header(own[0] if own else "", tuple(before[:50]), topic, reply, speaker, address.casefold(), role)

    def _said(self, mail: Mail, header: _Header, line: int, path: Path, thread: _Thread) -> Said | Drop:
        text = self._body(mail, path)
        if text is None:
            return Drop("no_text", str(path), line, f"a message of {str(mail.get_content_type())[:60]} holds no text")
        written, quoted, signed = separated(text)
        for reason, cut, kept in (("quoted_lines", quoted, self.quotes), ("signature_lines", signed, self.signatures)):
            if cut and not kept:
                thread.left_out[reason] += cut.count("\n") + 1
        parts = [written, signed if self.signatures else "", quoted if self.quotes else ""]
        text = "\n\n".join(part for part in parts if part)
        subject = _decoded(mail.get("Subject"))
        if not thread.said:
            thread.subject = _REPLY.sub("", subject).strip()
            if self.subject and thread.subject:
                text = f"{thread.subject}\n\n{text}"
        return Said(line, header.speaker, text, _date(mail))

    def _body(self, mail: Mail, path: Path) -> str | None:
        """The text of a message: its plain parts, or its HTML part as text; nothing where there is neither."""
        plain: list[str] = []
        pages: list[str] = []
        for part in mail.walk():
            kind = part.get_content_type()
            attached = "attachment" in str(part.get("Content-Disposition") or "").lower()
            if part.is_multipart() or attached or kind not in ("text/plain", "text/html"):
                continue
            try:
                data = part.get_payload(decode=True)
                charset = part.get_content_charset()
            except (ValueError, LookupError, UnicodeError):
                continue
            if isinstance(data, bytes):
                (plain if kind == "text/plain" else pages).append(_in(data, charset, self.encoding))
        if any(text.strip() for text in plain):
            return "\n".join(plain)
        for page in pages:
            try:
                found = parsed(page, path)
            except DataError:
                continue
            quotes = found.all("blockquote, .gmail_quote")
            quoted = "".join(f"\n> {row}" for quote in quotes[:1] for row in text_of(quote).split("\n"))
            return text_of(found.root, quotes) + quoted
        return "\n".join(plain) if plain else None


def separated(text: str) -> tuple[str, str, str]:
    """What somebody wrote in a message, what is quoted in it, and the signature."""
    rows = text.replace("\r\n", "\n").split("\n")
    written: list[str] = []
    quoted: list[str] = []
    signed: list[str] = []
    place = 0
    while place < len(rows):
        row = rows[place]
        heading = bool(_HEADING.match(row)) and sum(bool(_HEADING.match(other)) for other in rows[place : place + 5]) >= 3
        if heading or (_FORWARDED.match(row.strip()) and any(_HEADING.match(other) for other in rows[place + 1 : place + 4])):
            quoted += rows[place:]
            break
        if row in ("-- ", "--", "——"):
            signed += rows[place + 1 :]
            break
        if row.lstrip().startswith(">"):
            quoted.append(row)
        elif length := _introduction(rows, place):
            quoted += rows[place : place + length]
            place += length - 1
        else:
            written.append(row)
        place += 1
    mine = re.sub(r"\n{3,}", "\n\n", "\n".join(written)).strip("\n")
    return mine, "\n".join(quoted).strip("\n"), "\n".join(signed).strip("\n")


def _introduction(rows: list[str], place: int) -> int:
    """How many lines from `place` on say only who wrote what is quoted behind them: 0, 1 or 2."""
    for length in (1, 2):
        following = next((row for row in rows[place + length :] if row.strip()), "")
        if following.lstrip().startswith(">") and _INTRODUCES.match("\n".join(rows[place : place + length]).strip()):
            return length
    return 0


def _parsed(body: list[str], plain: bool) -> Mail:
    # A line ">From" stands for "From" where that would begin a message.
    text = "\n".join(line[1:] if line.startswith((">From ", ">>From ")) else line for line in body)
    return email.message_from_bytes(text.encode("latin-1" if plain else "utf-8", "replace"))


def _roots(headers: list[_Header]) -> list[int]:
    """For each message the number of the one that opens its thread."""
    above = list(range(len(headers)))
    places = {header.id: place for place, header in reversed(list(enumerate(headers))) if header.id}
    missing: dict[str, int] = {}  # an id that is answered but not there → the first that answers it
    subjects: dict[str, int] = {}

    def top(place: int) -> int:
        while above[place] != place:
            above[place] = above[above[place]]
            place = above[place]
        return place

    for place, header in enumerate(headers):
        others = [places[own] for own in header.answers if own in places]
        others += [missing.setdefault(own, place) for own in header.answers if own not in places]
        if not header.answers and header.reply and header.subject in subjects:
            others.append(subjects[header.subject])
        for other in others:
            first, second = sorted((top(place), top(other)))
            above[second] = first
        if header.subject:
            subjects.setdefault(header.subject, place)
    return [top(place) for place in range(len(headers))]


def _sender(mail: Mail) -> tuple[str, str]:
    """The name shown for who wrote a message, and the address."""
    try:
        name, address = getaddresses([_decoded(mail.get("From"))])[0]
    except (IndexError, ValueError):
        name, address = "", ""
    return (name or address or "?").strip()[:200], address.strip()[:320]


def _decoded(value: object) -> str:
    """A header's words, whatever they are encoded in."""
    text = re.sub(r"\s*[\r\n]+\s*", " ", "" if value is None else str(value))
    try:
        parts = decode_header(text)
    except (HeaderParseError, ValueError):
        return text
    return "".join(_in(part, charset) if isinstance(part, bytes) else part for part, charset in parts).strip()


def _in(data: bytes, charset: str | None, otherwise: str = "utf-8") -> str:
    """Bytes as text: in the encoding that is named, or else in the first of some that can be read."""
    for name in (charset, otherwise, "utf-8", "gb18030", "latin-1"):
        try:
            return data.decode(name or "utf-8")
        except (LookupError, UnicodeDecodeError, ValueError):
            continue
    return data.decode("ascii", "replace")


def _date(mail: Mail) -> float | None:
    try:
        return parsedate_to_datetime(str(mail.get("Date"))).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
