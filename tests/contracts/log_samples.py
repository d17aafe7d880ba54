"""A sample of each format of logs, chat exports and threads: file name, text, and what must come out of it as (role, content) pairs."""

from __future__ import annotations

import html
import json
import quopri

Sample = tuple[str, str, list[list[tuple[str, str]]]]


def log_samples(question: str, answer: str, second: str, other: str) -> dict[str, Sample]:
    """By the name of a reader a sample that says these two pairs of question and answer, a day apart, by Kim and Ben."""
    pairs = ((question, answer), (second, other))
    said = [[("user", asked), ("assistant", answered)] for asked, answered in pairs]
    spoken = [(place, number, text) for place, pair in enumerate(pairs) for number, text in enumerate(pair)]  # day, minute, text
    names, chinese = ("Kim", "Ben"), ("客人", "小李")
    titled = [[("user", f"{title}\n\n{talk[0][1]}"), talk[1]] for title, talk in zip(("One", "Two"), said, strict=True)]
    return {
        "irc": (
            "channel.log",
            "=== Max [m@h] has joined #c\n"
            + "".join(f"[1{3 * day}:0{minute}] <{names[minute]}> {text}\n" for day, minute, text in spoken),
            said,
        ),
        "whatsapp": (
            "_chat.txt", "".join(f"0{day + 5}/13/24, 10:1{minute} - {names[minute]}: {text}\n" for day, minute, text in spoken), said,
        ),
        "telegram": (
            "result.json",
            json.dumps(
                {"name": "Help", "type": "private_group", "id": 1, "messages": [
                    {"id": 2 * day + minute, "type": "message", "date": f"2024-01-0{day + 1}T10:0{minute}:00", "from": names[minute],
                     "text": text} for day, minute, text in spoken]}, ensure_ascii=False, indent=1,
            ),
            said,
        ),
        "discord": (
            "help.json",
            json.dumps(
                {"guild": {"id": "1", "name": "G"}, "channel": {"id": "2", "name": "help"}, "messages": [
                    {"id": str(10 * day + minute), "type": "Default", "timestamp": f"2024-01-0{day + 1}T10:0{minute}:00+00:00",
                     "content": text, "author": {"id": names[minute], "name": names[minute], "isBot": False}}
                    for day, minute, text in spoken]}, ensure_ascii=False, indent=2,
            ),
            said,
        ),
        "slack": (
            "2024-01-01.json",
            json.dumps(
                [{"type": "message", "user": f"U{minute}", "text": html.escape(text, quote=False),
                  "ts": f"1704103{day}{minute}0.000100", "thread_ts": f"1704103{day}00.000100"} for day, minute, text in spoken],
                ensure_ascii=False, indent=1,
            ),
            said,
        ),
        "wechat": (
            "chat.txt",
            "\n".join(f"2023-05-0{day + 6} 10:1{minute}:12 {chinese[minute]}\n{text}\n" for day, minute, text in spoken),
            said,
        ),
        "mbox": (
            "list.mbox",
            "\n".join(
                f"From MAILER Mon Jan  {day + 1} 10:0{minute}:00 2024\nFrom: {names[minute]} <{names[minute].lower()}@x.org>\n"
                f"To: list@x.org\nSubject: {'Re: ' * minute}thread {day}\nDate: Mon, 0{day + 1} Jan 2024 10:0{minute}:00 +0000\n"
                f"Message-ID: <{day}.{minute}@x.org>\n" + f"In-Reply-To: <{day}.0@x.org>\n" * minute +
                "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n"
                f"{quopri.encodestring(text.encode()).decode()}\n" for day, minute, text in spoken
            ),
            said,
        ),
        "tickets": (
            "tickets.jsonl",
            "".join(
                json.dumps(
                    {"id": number, "subject": "Broken", "requester_id": 1, "comments": [
                        {"id": 1, "author_id": 1, "body": asked, "public": True, "created_at": "2024-01-01T10:00:00Z"},
                        {"id": 2, "author_id": 2, "body": answered, "public": True, "created_at": "2024-01-01T11:00:00Z"}]},
                    ensure_ascii=False,
                ) + "\n" for number, (asked, answered) in enumerate(pairs, 7)
            ),
            said,
        ),
        "forum_html": (
            "thread.html",
            "<html><body><h1>One</h1>\n" + "\n".join(
                f"<article class='message' data-author='{names[minute]}'><h4 class='message-name'>{names[minute]}</h4>"
                f"<div class='bbWrapper'>{html.escape(text)}</div></article>" for day, minute, text in spoken if day == 0
            ) + "\n</body></html>\n",
            titled[:1],
        ),
        "forum_markdown": (
            "threads.md",
            "\n".join(
                ("" if minute else f"# {('One', 'Two')[day]}\n\n") + f"## {names[minute]} (2024-01-0{day + 1} 10:0{minute})\n\n{text}\n"
                for day, minute, text in spoken
            ),
            titled,
        ),
    }  # fmt: skip
