"""A folder of what people really have, damaged files of many formats: what can be learned is kept, the rest has place and reason."""

from __future__ import annotations

import email.message
import gzip
import io
import json
import mailbox
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chattune.core import files
from chattune.dialogs.artifact import Conversations
from chattune.dialogs.dialog import Dialog
from chattune.dialogs.stage import CollectConfig, collect

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
THINGS = (
    ("printer", "打印机"), ("kettle", "水壶"), ("router", "路由器"), ("lamp", "台灯"), ("heater", "暖气"),
    ("camera", "相机"), ("bicycle", "自行车"), ("washing machine", "洗衣机"), ("telephone", "电话"), ("fridge", "冰箱"),
    ("radio", "收音机"), ("drill", "电钻"), ("scanner", "扫描仪"), ("mower", "割草机"), ("toaster", "烤面包机"),
    ("monitor", "显示器"), ("watch", "手表"), ("door bell", "门铃"), ("oven", "烤箱"), ("scale", "体重秤"),
)  # fmt: skip
DAY0 = 1_704_103_200  # 2024-01-01 10:00:00 UTC; a conversation a day
NAMES = ("ann", "ben", "cat", "dan", "eve", "fay", "gus", "hal", "ida", "jon")
Talk = list[tuple[str, str]]


def talks(shape: str) -> list[Talk]:
    """Twenty conversations in English and Chinese, no two alike, nor like those of another shape."""
    found: list[Talk] = []
    for number, (thing, name) in enumerate(THINGS):
        if number % 3 == 2:
            own = [("user", f"请问{name}坏了怎么办？{shape}"), ("assistant", f"先把{name}关掉，等{number + 2}分钟再打开。{shape}")]
        else:
            own = [
                ("user", f"How do I repair my {thing}? ({shape})"),
                ("assistant", f"Switch the {thing} off for {number + 2} minutes. ({shape})"),
            ]
        if number % 4 == 0:
            own += [
                ("user", f"What if that does not help with the {thing}?"),
                ("assistant", f"Then send us the {thing}: part {number}, {shape}."),
            ]
        found.append(own)
    return found


@dataclass(frozen=True)
class Shape:
    """One messy file: its name, its bytes, every assistant turn that one could learn from, what must be told as (line, reason), and
    those of the turns that are damaged beyond use."""

    file: str
    content: bytes
    usable: tuple[str, ...]
    told: tuple[tuple[int, str], ...]
    lost: tuple[str, ...] = ()


def usable(own: list[Talk]) -> tuple[str, ...]:
    return tuple(text for talk in own for role, text in talk if role == "assistant")


def dump(value: Any, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **more)


def iso(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def said_at(own: list[Talk]) -> list[tuple[int, int, str, str]]:
    """Each message with the number of its conversation, its time, its role and its text."""
    return [
        (number, DAY0 + 86_400 * number + 60 * place, role, text)
        for number, talk in enumerate(own) for place, (role, text) in enumerate(talk)
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ hand-made shapes


def jsonl_cut_and_broken() -> Shape:
    """JSON Lines with a byte order mark and CRLF, a row that breaks off, empty rows, null, a list, a reply that is only spaces."""
    own = talks("jsonl")
    rows = [dump({"messages": [{"role": role, "content": text} for role, text in talk]}) for talk in own]
    rows[4] = rows[4][: len(rows[4]) // 2]
    silent = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "  "}]}
    rows[10:10] = ["", "null", "[1, 2]", dump(silent)]
    text = "\ufeff" + "\r\n".join(rows) + "\r\n"
    told = ((5, "broken_json"), (12, "not_an_object"), (13, "not_an_object"), (14, "no_reply"))
    return Shape("chat.jsonl", text.encode(), usable(own), told, usable(own[4:5]))


def list_with_a_broken_element() -> Shape:
    """One pretty-printed JSON list in which an editor's slip broke one conversation, and one has no answer."""
    own = talks("sharegpt")
    rows = [{"conversations": [{"from": "human" if role == "user" else "gpt", "value": text} for role, text in talk]} for talk in own]
    parts = [dump(row, indent=1) for row in rows]
    parts[7] = parts[7].replace('"from": "gpt"', '"from" "gpt"')
    parts.insert(3, dump({"conversations": [{"from": "human", "value": "Is anybody there?"}]}, indent=1))
    text = "[\n" + ",\n".join(parts) + "\n]\n"
    lines = [1 + text[: text.index(part)].count("\n") for part in (parts[3], parts[8])]
    return Shape("share.json", text.encode(), usable(own), ((lines[0], "no_reply"), (lines[1], "broken_json")), usable(own[7:8]))


def packed_instructions() -> Shape:
    """Alpaca rows, packed, two of them twice, one without output."""
    own = talks("alpaca")
    pairs = [(talk[0][1], talk[1][1]) for talk in own]
    rows = [dump({"instruction": asked, "input": "", "output": answered}) for asked, answered in pairs]
    rows[5:5] = [rows[1], rows[2], dump({"instruction": "Say something.", "input": "", "output": ""})]
    told = ((6, "duplicate"), (7, "duplicate"), (8, "no_reply"))
    return Shape("alpaca.jsonl.gz", gzip.compress("\n".join(rows).encode()), tuple(answer for _, answer in pairs), told)


def sheet_with_quotes() -> Shape:
    """A table with semicolons, lines within cells, doubled quotes, an empty answer, and a row that lost its answer."""
    own = talks("sheet")
    pairs = [(talk[0][1] + '\n"really"; yes', talk[1][1] + "\nsecond line") for talk in own]
    cell = '"{}"'.format
    rows = [";".join(("x", cell(a.replace('"', '""')), cell(b))) for a, b in pairs]
    rows[2:2] = ['x;"Nobody knows?";""', "x;Lost"]
    return Shape(
        "faq.csv", ("id;Question;Answer\n" + "\n".join(rows) + "\n").encode(), tuple(b for _, b in pairs),
        ((8, "no_reply"), (9, "wrong_columns")),
    )  # fmt: skip


def copied_window() -> Shape:
    """A chat copied out of a window: times, full-width colons, rules, a line before the first speaker, bytes of another encoding."""
    own = talks("window")
    parts = []
    for number, talk in enumerate(own):
        colon = "：" if number % 2 else ": "
        names = ("Kim", "Support")
        parts.append("\n".join(f"[1{number % 10}:30] {names[role == 'assistant']}{colon}{text}" for role, text in talk))
    text = "(copied on Monday)\n" + "\n\n".join(parts[:10]) + "\n---\n" + "\n\n".join(parts[10:]) + "\n"
    line = 2 + "\n\n".join(parts[:10]).count("\n") + 2
    before, after = text.encode().split(b"---\n")
    broken = "Kim: 你好吗\n".encode("gb18030")
    return Shape("window.txt", before + b"---\n" + broken + b"\n" + after, usable(own), ((1, "no_speaker"), (line, "undecodable")))


def crashed_transcript() -> Shape:
    """A transcript whose writer crashed: NUL bytes in place of one line, and the end of the file missing within a character."""
    own = talks("crash")
    parts = ["\n".join(f"{'Kunde' if role == 'user' else 'Agent'}: {text}" for role, text in talk) for talk in own]
    lines = "\n\n".join(parts).split("\n")
    place = next(number for number, line in enumerate(lines) if own[6][1][1] in line)
    lines[place] = "\0" * 40
    content = "\n".join(lines).encode() + "\n\nKunde: 你好".encode()[:-1]
    told = ((1 + "\n\n".join(parts[:6]).count("\n") + 2, "no_reply"), (place + 1, "nul_bytes"), (len(lines) + 2, "no_reply"))
    return Shape("crash.txt", content, usable(own), told, usable(own[6:7]))


def whatsapp() -> Shape:
    """A phone's export: notices, media, deleted messages, marks of direction, messages of several lines."""
    own = talks("whatsapp")
    lines = ["[01/01/24, 09:00:00] Shop: \u200eMessages and calls are end-to-end encrypted."]
    for number, seconds, role, text in said_at(own):
        stamp = f"[{iso(seconds)[8:10]}/{iso(seconds)[5:7]}/24, {iso(seconds)[11:]}]"
        who = "Anna" if role == "user" else "~\u202fBen"
        lines.append(f"{stamp} {who}: {text}\nand one line more {number}")
        if number % 5 == 0:
            lines += [f"\u200e{stamp} Anna: \u200eimage omitted", f"{stamp} Anna: \u200eThis message was deleted."]
    return Shape("_chat.txt", ("\r\n".join(lines) + "\r\n").encode(), usable(own), ())


def telegram() -> Shape:
    """A group of Telegram: service messages, pictures, styled text, a message that is a number, and somebody whom nobody answers."""
    own = talks("telegram")
    rows: list[Any] = [{"id": 1, "type": "service", "date": iso(DAY0 - 9000), "actor": "zoe", "action": "create_group"}]
    for number, seconds, role, text in said_at(own):
        who = "zoe" if role == "assistant" else NAMES[number % 10]
        styled = ["", {"type": "bold", "text": text}]
        rows.append({"id": len(rows) + 1, "type": "message", "date": iso(seconds), "from": who, "text": styled})
        if number == 3:
            rows.append({"id": len(rows) + 1, "type": "message", "date": iso(seconds), "from": who, "text": "", "photo": "x.jpg"})
    broken = {"id": 900, "type": "message", "date": iso(DAY0), "from": "ann", "text": 7}
    alone = {"id": 901, "type": "message", "date": iso(DAY0 + 86_400 * 50), "from": "ann", "text": "Happy new year everybody"}
    rows[5:5] = [broken]
    rows.append(alone)
    text = dump({"name": "Repairs", "type": "private_group", "id": 1, "messages": rows}, indent=1)
    lines = [1 + text[: text.index(f'"id": {number},')].count("\n") - 1 for number in (900, 901)]
    return Shape("result.json", text.encode(), usable(own), ((lines[0], "wrong_type"), (lines[1], "no_reply")))


def discord() -> Shape:
    """A channel of Discord with joins, a bot and attachments between; people answer by replying."""
    own = talks("discord")
    rows: list[Any] = []
    first = ""
    for number, seconds, role, text in said_at(own):
        who = "zoe" if role == "assistant" else NAMES[number % 10]
        author = {"id": who, "name": who, "nickname": who.title(), "isBot": False}
        row = {"id": str(100 + len(rows)), "type": "Default", "timestamp": f"{iso(seconds)}.123+00:00", "content": text}
        row["author"] = author
        if role == "assistant":
            row |= {"type": "Reply", "reference": {"messageId": first}}
        first = row["id"]
        rows.append(row)
        if number % 6 == 0:
            rows.append({**row, "id": str(100 + len(rows)), "type": "GuildMemberJoin", "content": "Joined the server."})
            rows.append({**row, "id": str(100 + len(rows)), "type": "Default", "content": "beep", "author": {**author, "isBot": True}})
    text = dump({"guild": {"id": "1", "name": "G"}, "channel": {"id": "2", "name": "help"}, "messages": [*rows, None]}, indent=2)
    return Shape("help.json", text.encode(), usable(own), ((text[: text.index("    null\n")].count("\n") + 1, "not_an_object"),))


def slack() -> Shape:
    """A day of a Slack channel: threads that run through one another, marks, joins, apps."""
    own = talks("slack")
    joined = {"type": "message", "subtype": "channel_join", "user": "U1", "text": "<@U1> has joined", "ts": "1704103100.000000"}
    rows: list[Any] = [joined]
    for place in range(4):
        for number, talk in enumerate(own):
            if place < len(talk):
                role, text = talk[place]
                user = "U99" if role == "assistant" else f"U{number % 10}"
                stamp, thread = f"{DAY0 + 100 * place + number}.000100", f"{DAY0 + number}.000100"
                rows.append({"type": "message", "user": user, "text": text, "ts": stamp, "thread_ts": thread})
    rows.insert(9, {"type": "message", "subtype": "bot_message", "text": "build failed", "ts": f"{DAY0}.000200", "bot_id": "B1"})
    rows.append({"type": "message", "user": "U1", "text": None, "ts": f"{DAY0 + 900}.000100"})
    text = dump(rows, indent=1)
    return Shape("2024-01-01.json", text.encode(), usable(own), ((text[: text.rindex(' {\n')].count("\n") + 1, "wrong_type"),))


def wechat() -> Shape:
    """WeChat as text: voice messages, quotations, messages taken back."""
    own = talks("wechat")
    blocks = []
    for number, seconds, role, text in said_at(own):
        stamp = iso(seconds).replace("T", " ")
        blocks.append(f"{stamp} {'客人' if role == 'user' else '小李'}\n{text}\n")
        if number % 5 == 0:
            blocks += [f"{stamp} 小李\n[语音]\n", f'{stamp} "客人"撤回了一条消息\n']
    return Shape("微信.txt", "\n".join(blocks).encode(), usable(own), ())


def mail(folder: Path) -> Shape:
    """A mailbox: threads that run through one another, quotations, signatures, HTML, and a letter that nobody answers."""
    own = talks("mail")
    box = mailbox.mbox(folder / "list.mbox")
    for place in range(4):
        for number, talk in enumerate(own):
            if place < len(talk):
                role, text = talk[place]
                letter = email.message.EmailMessage()
                letter["From"] = "Desk <support@x.org>" if role == "assistant" else f"{NAMES[number % 10]} <{NAMES[number % 10]}@x.org>"
                letter["To"], letter["Subject"] = "list@x.org", "Re: " * (place > 0) + f"Repair {number}"
                letter["Date"] = f"Mon, {place + 1:02d} Jan 2024 10:{number:02d}:00 +0000"
                letter["Message-ID"] = f"<{number}.{place}@x.org>"
                if place:
                    letter["In-Reply-To"] = f"<{number}.{place - 1}@x.org>"
                    quoted = "".join(f"> {line}\n" for line in talk[place - 1][1].splitlines())
                    text = f"{text}\n\nOn Mon, 1 Jan 2024, somebody <a@x.org> wrote:\n{quoted}"
                if number % 7 == 3:
                    first = text.partition("\n")[0]
                    page = f"<html><body><p>{first}</p><blockquote>old</blockquote></body></html>"
                    letter.set_content(page, subtype="html")
                else:
                    letter.set_content(f"{text}\n-- \nThe sender\nTel. 12345\n")
                box.add(letter)
    lonely = email.message.EmailMessage()
    lonely["From"], lonely["Subject"], lonely["Message-ID"] = "a@x.org", "Hm", "<z@x.org>"
    lonely["Date"] = "Fri, 05 Jan 2024 10:00:00 +0000"
    lonely.set_content("Is this list alive?\n")
    box.add(lonely)
    box.close()
    content = (folder / "list.mbox").read_bytes()
    (folder / "list.mbox").unlink()
    line = content[: content.rindex(b"\nFrom ")].count(b"\n") + 2
    return Shape("list.mbox", content, usable(own), ((line, "no_reply"),))


def tickets() -> Shape:
    """Tickets of a help desk: HTML, notes that the customer does not see, comments in any order, one that nobody answered."""
    own = talks("tickets")
    rows: list[Any] = []
    for number, talk in enumerate(own):
        comments = [
            {"id": place, "author_id": 1 if role == "user" else 2, "html_body": f"<p>{text}</p>", "public": True,
             "created_at": iso(DAY0 + 86_400 * number + place) + "Z"} for place, (role, text) in enumerate(talk)
        ]  # fmt: skip
        note = {"id": 9, "author_id": 2, "plain_body": "not again", "public": False, "created_at": iso(DAY0) + "Z"}
        rows.append({"id": number, "subject": f"Repair {number}", "requester_id": 1, "comments": [*reversed(comments), note]})
    rows[3:3] = [{"id": 77, "subject": "Q", "description": "Just this", "requester_id": 1, "comments": []}]
    rows.append({"id": 78, "subject": "Q", "requester_id": 1, "comments": [{"author_id": 2, "body": "psst", "public": False}]})
    text = "\n".join(map(dump, rows)) + "\n"
    return Shape("tickets.jsonl", text.encode(), usable(own), ((4, "no_reply"), (22, "no_message")))


def forum_page() -> Shape:
    """A page of questions and answers with quotations, code and menus; each answer is a conversation."""
    own = talks("forum")
    posts = "".join(
        f"<article class='message' data-author='helper{number}'><h4 class='message-name'>helper{number}</h4><div class='bbWrapper'>"
        f"<blockquote class='bbCodeBlock'>someone said</blockquote>{talk[1][1]}<pre>  a = {number}</pre></div></article>"
        for number, talk in enumerate(own)
    )
    page = (
        "<html><body><nav>Home | Login</nav><h1>How are things repaired?</h1><article class='message' data-author='ann'>"
        "<h4 class='message-name'>ann</h4><div class='bbWrapper'>How does one repair all that?</div></article>"
        f"{posts}<footer>Imprint</footer></body></html>"
    )
    return Shape("thread.html", page.encode(), tuple(talk[1][1] for talk in own), ())


def forum_markdown() -> Shape:
    """Threads as Markdown with quotations, code that looks like headings, and one that nobody answered."""
    own = talks("markdown")
    parts = ["# Lonely\n\n## ann (2024-01-01 10:00)\n\nNobody here?\n"]
    parts += [
        f"# Thread {number}\n\n" + "\n".join(
            f"## {NAMES[number % 10] if role == 'user' else 'zoe'} (2024-01-02 10:0{place})\n\n> quoted\n\n{text}\n\n"
            "```\n## no heading\n```\n"
            for place, (role, text) in enumerate(talk)
        ) for number, talk in enumerate(own)
    ]  # fmt: skip
    return Shape("threads.md", "\n".join(parts).encode(), usable(own), ((3, "no_reply"),))


def archive() -> Shape:
    """A zip archive with a corpus in YAML, what a Mac puts beside it, and a picture."""
    own = talks("yaml")
    rows = "".join("- " + "  ".join(f"- {dump(text)}\n" for _, text in talk) for talk in own)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr("corpus/repairs.yml", f"categories:\n- repairs\nconversations:\n{rows}- - Only a question?\n")
        packed.writestr("__MACOSX/corpus/._repairs.yml", b"\0\5\x16\7" * 20)
        packed.writestr("corpus/photo.jpg", b"\xff\xd8\xff\xe0" * 50)
    line = 4 + rows.count("\n")
    return Shape("corpus.zip", content.getvalue(), usable(own), ((line, "no_reply"), (1, "other_endings")))


def exported_table() -> Shape:
    """A table of messages in which conversations are mixed, with an empty cell and a cell of several lines."""
    own = talks("table")
    rows = ["chat_id\tSender\tRole\tSent at\tBody"]
    for number, seconds, role, text in said_at(own):
        who = ("agent", "Ben") if role == "assistant" else ("customer", f"Client {number}")
        rows.append(f'{number}\t{who[1]}\t{who[0]}\t{iso(seconds)}\t"{text}\nthanks {number}"')
    rows.append(f"99\tKim\tcustomer\t{iso(DAY0)}\t")
    return Shape("export.tsv", ("\n".join(rows) + "\n").encode(), usable(own), ((2 * len(rows) - 2, "empty"),))


HAND_MADE: tuple[Callable[[], Shape], ...] = (
    jsonl_cut_and_broken, list_with_a_broken_element, packed_instructions, sheet_with_quotes, copied_window, crashed_transcript,
    whatsapp, telegram, discord, slack, wechat, tickets, forum_page, forum_markdown, archive, exported_table,
)  # fmt: skip


# -------------------------------------------------------------------------------------------------- made from the stored data


def _json(name: str) -> Any:
    path = DATA / name
    return json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())


def real_chitchat() -> Shape:
    """Web chats of two strangers, some of whom nobody answered; one row lost its messages."""
    whole = dict(list(_json("en_dialogue/chitchat_part.json.gz").items())[:150])
    found: list[str] = []
    told = []
    rows = []
    for key, row in whole.items():
        rows.append(f"{dump(key)}: {dump(row)}")
        messages = [(said["sender"], said["text"]) for burst in row["messages"] for said in burst if said["text"].strip()]
        senders = list(dict.fromkeys(sender for sender, _ in messages))
        if len(senders) > 1:
            found += [text for sender, text in messages if sender == senders[1]]
        else:
            told.append((len(rows) + 1, "no_reply" if senders else "empty"))
    rows.append('"broken": {"messages": "lost"}')
    told.append((len(rows) + 1, "no_messages"))
    return Shape("chitchat.json", ("{\n" + ",\n".join(rows) + "\n}\n").encode(), tuple(found), tuple(told))


def real_sgd() -> Shape:
    """Schema-guided dialogues with a turn of a speaker who does not exist, and a dialogue without turns."""
    rows = _json("en_dialogue/sgd_dev_dialogues_007.json.gz")
    good = [turn["utterance"] for row in rows for turn in row["turns"] if turn["speaker"] == "SYSTEM"]
    strange = {"dialogue_id": "x", "services": [], "turns": [{"speaker": "GHOST", "utterance": "boo", "frames": []}]}
    text = "[\n" + ",\n".join(map(dump, [*rows, strange, {"dialogue_id": "y"}])) + "\n]"
    return Shape("dialogues_007.json", text.encode(), tuple(good), ((len(rows) + 2, "unknown_role"), (len(rows) + 3, "no_messages")))


def real_kdconv() -> Shape:
    """KdConv, packed, cut off in the middle of its last conversation."""
    rows = _json("zh_dialogue/kdconv_film_test.json.gz")
    text = "[\n" + ",\n".join(map(dump, rows))
    text = text[: -len(dump(rows[-1])) // 2]
    good = [turn["message"] for row in rows for turn in row["messages"][1::2]]
    lost = tuple(turn["message"] for turn in rows[-1]["messages"][1::2])
    return Shape("film.json.gz", gzip.compress(text.encode()), tuple(good), ((len(rows) + 1, "broken_json"),), lost)


def real_lccc() -> Shape:
    """LCCC's first thousand lines, with one that nobody answers, one of NUL bytes and one in another encoding."""
    lines = gzip.decompress((DATA / "zh_dialogue" / "lccc_toy_train.txt.gz").read_bytes()).decode().splitlines()[:1000]
    good = [turn.replace(" ", "") for line in lines for turn in line.split("\t")[1::2] if turn.strip()]
    content = [line.encode() for line in lines]
    content[100:100] = ["有 人 吗 ？".encode(), b"\0" * 99, "不 是 吧\t是 的".encode("gb18030")]
    return Shape("lccc.txt", b"\n".join(content) + b"\n", tuple(good), ((101, "no_reply"), (102, "nul_bytes"), (103, "undecodable")))


REAL: tuple[Callable[[], Shape], ...] = (real_chitchat, real_sgd, real_kdconv, real_lccc)


# --------------------------------------------------------------------------------------------------------------------- tests


@dataclass
class Outcome:
    """What `collect` makes of a folder of shapes."""

    shapes: Mapping[str, Shape]
    dialogs: dict[str, list[Dialog]]
    drops: dict[str, list[tuple[int, str]]]
    summary: Mapping[str, Any]

    def missing(self, file: str) -> list[str]:
        """Usable assistant turns of a file that stand in no reply of a dialog that is kept; spaces do not count."""
        there = Counter(
            "".join(line.split()) for dialog in self.dialogs.get(file, ()) for message in dialog.messages if message.role == "assistant"
            for line in message.content.splitlines()
        )  # fmt: skip
        lost = []
        for turn in self.shapes[file].usable:
            own = Counter("".join(line.split()) for line in turn.splitlines())
            if own <= there:
                there -= own
            else:
                lost.append(turn)
        return lost


def collected(folder: Path, shapes: list[Shape]) -> Outcome:
    sources, out = folder / "messy", folder / "out"
    sources.mkdir()
    out.mkdir()
    for shape in shapes:
        (sources / shape.file).write_bytes(shape.content)
    before = {path: files.digest_of(path) for path in sources.iterdir()}
    found = collect(config=CollectConfig(sources=(str(sources),)), out=out)
    assert isinstance(found, Conversations)
    assert {path: files.digest_of(path) for path in sources.iterdir()} == before  # the originals are untouched
    dialogs: dict[str, list[Dialog]] = {}
    drops: dict[str, list[tuple[int, str]]] = {}

    def own(file: str) -> str:
        return Path(file).relative_to(sources).parts[0] if Path(file) != sources else "messy"

    for dialog in found.read():
        dialogs.setdefault(own(dialog.file), []).append(dialog)
    for drop in found.drops():
        drops.setdefault(own(drop.file), []).append((drop.line, drop.reason))
    return Outcome({shape.file: shape for shape in shapes}, dialogs, drops, found.summary)


def check_account(outcome: Outcome) -> None:
    """Everything read is kept or has its reason, in the whole and file by file."""
    summary, counts, messages = outcome.summary, outcome.summary["counts"], outcome.summary["messages"]
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())
    assert counts["dropped"] == dict(Counter(reason for own in outcome.drops.values() for _, reason in own))
    assert counts["kept"] == sum(map(len, outcome.dialogs.values()))
    assert all(source["read"] == source["dialogs"] + source["dropped"] for source in summary["sources"])
    assert messages["read"] == messages["kept"] + messages["empty"] + messages["joined"] + messages["dropped"]
    assert messages["kept"] == sum(len(dialog.messages) for own in outcome.dialogs.values() for dialog in own)


def check_kept(outcome: Outcome) -> None:
    """Of the usable assistant turns only those are lost that are damaged beyond use, at most 5 %; everything that is not kept is
    told by file, line and reason, and nothing else is."""
    total = lost = 0
    for file, shape in outcome.shapes.items():
        missing = outcome.missing(file)
        assert sorted(outcome.drops.get(file, ())) == sorted(shape.told), file
        assert sorted(missing) == sorted(shape.lost), file
        assert not missing or shape.told
        total, lost = total + len(shape.usable), lost + len(missing)
    assert lost <= 0.05 * total, (lost, total)
    print(f"{total - lost} of {total} usable replies kept of {len(outcome.shapes)} files")


@pytest.mark.requirement("R001", "must-1")
def test_of_hand_made_messy_files_the_usable_replies_are_kept_and_the_rest_is_told(tmp_path: Path) -> None:
    shapes = [*(make() for make in HAND_MADE), mail(tmp_path)]
    assert len(shapes) >= 12 and len({shape.file for shape in shapes}) == len(shapes)
    outcome = collected(tmp_path, shapes)
    check_account(outcome)
    check_kept(outcome)
    assert not outcome.drops.keys() - outcome.shapes.keys()


@pytest.mark.requirement("R001", "must-1")
def test_of_messy_files_made_from_real_conversations_the_usable_replies_are_kept_and_the_rest_is_told(tmp_path: Path) -> None:
    if not (DATA / "zh_dialogue").is_dir():
        pytest.skip("the conversations are not here")
    outcome = collected(tmp_path, [make() for make in REAL])
    check_account(outcome)
    check_kept(outcome)


@pytest.mark.requirement("R001", "must-1")
def test_of_real_channel_logs_replies_that_people_marked_as_such_are_kept(tmp_path: Path) -> None:
    """Usable is what the annotation says answers another speaker; judged by the texts that a log holds once."""
    paths = sorted((DATA / "messy" / "irc").glob("*.raw.txt"))[:2]
    if not paths:
        pytest.skip("the annotated logs are not here")
    shapes = []
    for path in paths:
        lines = path.read_text("utf-8").splitlines()
        said = {number: line.partition("> ") for number, line in enumerate(lines) if line.startswith("[")}
        often = Counter(text for _, _, text in said.values())
        rows = path.with_name(path.name.replace(".raw.", ".annotation.")).read_text("utf-8").splitlines()
        links = [sorted(map(int, row.split()[:2])) for row in rows]
        replies = {b for a, b in links if a in said and b in said and said[a][0].split("<")[1] != said[b][0].split("<")[1]}
        shapes.append(Shape(path.name, path.read_bytes(), tuple(said[b][2] for b in sorted(replies) if often[said[b][2]] == 1), ()))
    outcome = collected(tmp_path, shapes)
    check_account(outcome)
    everywhere = {"".join(line.split()) for own in outcome.dialogs.values() for dialog in own for m in dialog.messages
                  for line in m.content.splitlines()}  # fmt: skip
    total = sum(len(shape.usable) for shape in shapes)
    kept = sum("".join(turn.split()) in everywhere for shape in shapes for turn in shape.usable)
    assert total > 300 and kept >= 0.95 * total, (kept, total)
    print(f"{kept} of {total} annotated replies kept of {len(shapes)} logs")
    for shape in shapes:  # what nobody answers, as far as it could be seen, is told with its line
        told = outcome.drops[shape.file]
        assert {reason for _, reason in told} <= {"no_reply", "duplicate"}
        assert all(1 <= line <= shape.content.count(b"\n") for line, _ in told)


@pytest.mark.requirement("R001", "must-1")
def test_files_that_are_no_conversations_are_told_and_cost_nothing_else(tmp_path: Path) -> None:
    own = talks("beside")
    rows = "\n".join(dump({"messages": [{"role": role, "content": text} for role, text in talk]}) for talk in own)
    noise = {
        "notes.txt": b"Milk, bread and tea.\n\nThe weather was fine today and so we went out.\n" * 5, "empty.json": b"  \n",
        "cut.jsonl.gz": gzip.compress(rows.encode())[:100], "log.csv": b"date,level\n2024-01-01,3\n",
    }  # fmt: skip
    shapes = [Shape("chat.jsonl", rows.encode(), usable(own), ()), *(Shape(file, content, (), ()) for file, content in noise.items())]
    outcome = collected(tmp_path, shapes)
    check_account(outcome)
    assert not outcome.missing("chat.jsonl") and "chat.jsonl" not in outcome.drops
    reasons = {file: [reason for _, reason in outcome.drops[file]] for file in noise}
    assert reasons == {
        "notes.txt": ["unrecognised"], "empty.json": ["empty_file"], "cut.jsonl.gz": ["damaged"], "log.csv": ["unrecognised"],
    }  # fmt: skip
