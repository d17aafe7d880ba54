"""Logs and chat exports as clients and tools write them: every message comes back, what is no message is counted, nothing crashes."""

from __future__ import annotations

import email.message
import json
import mailbox
import random
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chattune.core.config import validate
from chattune.core.errors import ChattuneError, DataError, SettingError
from chattune.core.part import kind
from chattune.dialogs.detect import detect
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.readers._html import parsed, text_of
from chattune.dialogs.readers.mbox import separated
from chattune.dialogs.readers.slack import is_export
from chattune.dialogs.sessions import Aside, Said
from chattune.dialogs.shape import Shaped, shaped

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def reader(name: str, **changes: object) -> Any:
    part = kind("readers").load(name).model_validate(changes)
    assert isinstance(part, Reader)
    return part


def read(name: str, path: Path, content: str | None = None, /, **changes: object) -> tuple[list[Dialog], list[Drop]]:
    if content is not None:
        path.write_text(content, "utf-8")
    items = list(reader(name, **changes).read(path))
    return [item for item in items if isinstance(item, Dialog)], [item for item in items if isinstance(item, Drop)]


def attempted(own: Reader, path: Path) -> tuple[list[Dialog | Drop], ChattuneError | None]:
    """What a reader gives before it ends or raises an error of ours, and that error."""
    items: list[Dialog | Drop] = []
    try:
        items.extend(own.read(path))
    except ChattuneError as error:
        return items, error
    return items, None


def said(dialog: Dialog) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in dialog.messages]


def left_out(dialogs: list[Dialog]) -> Counter[str]:
    return sum((Counter(dialog.metadata.get("left_out", {})) for dialog in dialogs), Counter[str]())


# ----------------------------------------------------------------------------------------------------------------------- IRC

CLIENTS = {
    "ubuntu": "[09:56] <ann> how do I mount it?\n=== bob [~b@h]  has joined #ubuntu\n[09:57] <bob> with mount\n=== ann smiles\n",
    "irssi": "--- Log opened Tue Feb 08 09:56:00 2005\n09:56 <@ann> how do I mount it?\n09:56 -!- bob [b@h] has joined #c\n"
    "09:57 < bob> with mount\n09:57  * ann smiles\n--- Day changed Wed Feb 09 2005\n",
    "weechat": "2005-02-08 09:56:00\t-->\tbob (b@h) has joined #c\n2005-02-08 09:56:01\t@ann\thow do I mount it?\n"
    "2005-02-08 09:57:01\tbob\twith mount\n2005-02-08 09:57:02\t *\tann smiles\n",
    "hexchat": "**** BEGIN LOGGING AT Tue Feb  8 09:56:00 2005\n\nFeb 08 09:56:01 <ann>\thow do I mount it?\n"
    "Feb 08 09:56:30 *\tbob (b@h) has joined\nFeb 08 09:57:01 <bob>\twith mount\nFeb 08 09:57:02 *\tann smiles\n",
    "znc": "[09:56:00] *** Joins: bob (b@h)\n[09:56:01] <ann> how do I mount it?\n[09:57:01] <bob> with mount\n"
    "[09:57:02] * ann smiles\n",
    "mirc": "Session Start: Tue Feb 08 09:56:00 2005\nSession Ident: #c\n[09:56] <ann> how do I mount it?\n"
    "[09:56] * bob (b@h) has joined #c\n[09:57] <bob> with mount\n[09:57] * ann smiles\n",
    "supybot": "2005-02-08T09:56:00  *** bob joined\n2005-02-08T09:56:01  <ann> how do I mount it?\n"
    "2005-02-08T09:57:01  <bob> with mount\n2005-02-08T09:57:02  * ann smiles\n",
    "no times": "*** bob has joined #c\n<ann> how do I mount it?\n<bob> with mount\n* ann smiles\n",
}


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("client", CLIENTS)
def test_irc_logs_of_the_usual_clients(client: str, tmp_path: Path) -> None:
    text = CLIENTS[client]
    dialogs, drops = read("irc", tmp_path / "c.log", text)
    assert [said(dialog) for dialog in dialogs] == [
        [("user", "how do I mount it?"), ("assistant", "with mount"), ("user", "*smiles*")]
    ] and not drops
    assert left_out(dialogs)["system_line"] + 3 == sum(bool(line.strip()) for line in text.splitlines())
    assert detect(tmp_path / "c.log").name == "irc"
    if client not in ("ubuntu", "znc", "no times"):
        assert dialogs[0].metadata["began"].startswith("2005-02-08T09:56")


def test_irc_days_come_from_marks_from_the_name_and_from_the_clock_that_begins_anew(tmp_path: Path) -> None:
    text = "[23:58] <ann> late?\n[23:59] <bob> yes\n[00:01] <ann> bob: good night\n[12:00] <ann> noon?\n[12:01] <bob> indeed\n"
    dialogs, _ = read("irc", tmp_path / "2005-02-08.log", text)
    assert [(dialog.line, dialog.metadata["began"]) for dialog in dialogs] == [(1, "2005-02-08T23:58:00"), (4, "2005-02-09T12:00:00")]
    assert [len(dialog.messages) for dialog in read("irc", tmp_path / "2005-02-08.log", text, days=True)[0]] == [2, 1, 2]
    assert [len(dialog.messages) for dialog in read("irc", tmp_path / "2005-02-08.log", text, gap=1.5)[0]] == [2, 1, 2]


@pytest.mark.requirement("R001")
def test_irc_conversations_that_run_through_one_another_are_separated_and_can_be_left_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        "[10:00] <ann> how do I mount a disk?", "[10:00] <bob> does anybody know a good mail program?",
        "[10:01] <cat> ann: with mount, as root", "[10:01] <dan> bob: try mutt", "=== eve [e@h] has joined #c",
        "[10:02] <ann> cat: thanks, that worked", "[10:02] <bob> dan: and for the address book?",
    ]  # fmt: skip
    dialogs, _ = read("irc", tmp_path / "c.log", "\n".join(rows))
    assert [[content for _, content in said(dialog)] for dialog in dialogs] == [
        ["how do I mount a disk?", "ann: with mount, as root", "cat: thanks, that worked"],
        ["does anybody know a good mail program?", "bob: try mutt", "dan: and for the address book?"],
    ]
    assert dialogs[0].metadata["speakers"] == {"ann": "user", "cat": "assistant"}
    assert left_out(dialogs) == {"system_line": 1}
    assert "2 conversations that ran through one another, separated by who answers whom" in " ".join(capsys.readouterr().err.split())
    together, _ = read("irc", tmp_path / "c.log", disentangle=False)
    assert [len(dialog.messages) for dialog in together] == [6] and "separated" not in capsys.readouterr().err


def test_every_line_of_real_irc_logs_is_a_message_or_counted(tmp_path: Path) -> None:
    paths = sorted((DATA / "messy" / "irc").glob("*.raw.txt"))
    if not paths:
        pytest.skip("the logs are not here")
    dialogs, drops = read("irc", paths[2])
    lines = [line for line in paths[2].read_text("utf-8").splitlines() if line.strip()]
    messages = sum(len(dialog.messages) for dialog in dialogs)
    assert messages + sum(left_out(dialogs).values()) + len(drops) == len(lines) and not drops
    happens = (" has joined ", " has left ", " has quit ", "is now known", "netjoined")
    acts = [line for line in lines if line.startswith("=== ") and not any(word in line for word in happens)]
    assert messages == sum(line.startswith("[") for line in lines) + len(acts)
    assert len(dialogs) > 50 and detect(paths[2]).name == "irc"


# ------------------------------------------------------------------------------------------------------------------ WhatsApp

IPHONE = (
    "[05/03/24, 10:11:12] Shop: \u200eMessages and calls are end-to-end encrypted. No one outside of this chat can read them.\n"
    "[05/03/24, 10:11:12] Anna Müller: Hi, does it work?\nsecond line: yes\n\n\u200e[05/03/24, 10:12:00] Ben: \u200eimage omitted\n"
    "[05/03/24, 10:12:09] Ben: it does: see https://a.b\n[25/03/24, 22:12:09] Ben: later \u200e<This message was edited>\n"
    "[25/03/24, 22:13:09] ~\u202fBen: \u200eThis message was deleted.\n[25/03/24, 22:14:00] ~\u202fAnna Müller: ok\n"
)
ANDROID = (
    "3/5/24, 10:11 PM - Messages and calls are end-to-end encrypted. Tap to learn more.\n"
    '3/5/24, 10:11 PM - Anna created group "Foo: bar"\n3/5/24, 10:12\u202fPM - Anna: hello?\n'
    "3/15/24, 10:11 AM - +49 170 1234: hi\n3/15/24, 10:12 AM - Anna: <Media omitted>\n"
)
CHINESE = (
    "2024/3/5 上午10:11 - 消息和通话已进行端到端加密。\n2024/3/5 上午10:11 - 张三: 你好吗？\n"
    "2024/3/5 上午10:11 - 李四: <省略多媒体文件>\n2024/3/5 上午10:12 - 李四: 很好\n谢谢\n"
    "2024/3/5 下午1:12 - 王五 加入了\n2024/3/5 下午12:30 - 张三: 好\n"
)


@pytest.mark.requirement("R001")
def test_whatsapp_of_an_iphone(tmp_path: Path) -> None:
    dialogs, drops = read("whatsapp", tmp_path / "_chat.txt", IPHONE)
    assert [said(dialog) for dialog in dialogs] == [
        [("user", "Hi, does it work?\nsecond line: yes\n"), ("assistant", "it does: see https://a.b")],
        [("assistant", "later"), ("user", "ok")],
    ] and not drops
    assert [dialog.metadata["began"] for dialog in dialogs] == ["2024-03-05T10:11:12", "2024-03-25T22:12:09"]
    assert left_out(dialogs) == {"system_line": 1, "media": 1, "deleted": 1}
    assert dialogs[0].metadata["speakers"] == {"Anna Müller": "user", "Ben": "assistant"}


@pytest.mark.requirement("R001")
def test_whatsapp_of_android_in_english_and_chinese(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dialogs, _ = read("whatsapp", tmp_path / "chat.txt", ANDROID)
    assert [(dialog.metadata["began"], said(dialog)) for dialog in dialogs] == [
        ("2024-03-05T22:12:00", [("user", "hello?")]), ("2024-03-15T10:11:00", [("assistant", "hi")])
    ]
    assert left_out(dialogs) == {"system_line": 2, "media": 1}
    assert "month/day/year: no other order makes dates of all of them" in capsys.readouterr().err
    dialogs, _ = read("whatsapp", tmp_path / "chat.txt", CHINESE)
    assert [said(dialog) for dialog in dialogs] == [[("user", "你好吗？"), ("assistant", "很好\n谢谢")], [("user", "好")]]
    assert [dialog.metadata["began"] for dialog in dialogs] == ["2024-03-05T10:11:00", "2024-03-05T12:30:00"]
    assert left_out(dialogs) == {"system_line": 2, "media": 1}


@pytest.mark.parametrize(
    ("first", "second", "order", "why"),
    [
        ("05/03/24", "13/03/24", "day/month/year", "no other order"), ("03/05/24", "03/13/24", "month/day/year", "no other order"),
        ("01/02/24", "01/03/24", "day/month/year", "does not tell"), ("12/01/24", "01/02/24", "day/month/year", "run forward"),
        ("01/12/24", "02/01/24", "month/day/year", "run forward"), ("2024-03-05", "2024-03-06", "year/month/day", "no other order"),
        ("05.03.24", "06.03.24", "day/month/year", "does not tell"),
    ],
)  # fmt: skip
def test_the_order_of_day_and_month_is_inferred_from_all_dates_and_said(
    first: str, second: str, order: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"{first}, 22:11 - A: hello?\n{second}, 22:12 - B: hi\n"
    read("whatsapp", tmp_path / "chat.txt", text)
    told = capsys.readouterr().err
    assert f"dates are {order}:" in told and why in told
    set_, _ = read("whatsapp", tmp_path / "chat.txt", text, dates="year/month/day" if first[2] != "-" else "day/month/year")
    assert "as set" in capsys.readouterr().err and set_


# -------------------------------------------------------------------------------------------------------- Telegram, Discord

TELEGRAM = {
    "name": "Help", "type": "private_group", "id": 1,
    "messages": [
        {"id": 1, "type": "service", "date": "2024-01-01T10:00:00", "actor": "Ann", "action": "create_group"},
        {"id": 2, "type": "message", "date": "2024-01-01T10:00:01", "from": "Ann", "from_id": "user1",
         "text": ["how do I ", {"type": "bold", "text": "mount"}, " it?"]},
        {"id": 3, "type": "message", "date": "2024-01-01T10:00:30", "from": "Bob", "from_id": "user2", "text": "", "photo": "x.jpg"},
        {"id": 4, "type": "message", "date": "2024-01-01T10:01:00", "from": "Bob", "from_id": "user2", "text": "with mount",
         "reply_to_message_id": 2},
        {"id": 5, "type": "message", "date": "2024-01-02T10:01:00", "from": None, "from_id": "user3", "text": "hello?"},
    ],
}  # fmt: skip
PAGE = """<!DOCTYPE html><html><head><meta charset="utf-8"/></head><body><div class="page_wrap">
<div class="page_header"><div class="content"><div class="text bold">
Help 🚀
</div></div></div><div class="history">
<div class="message service" id="message-1"><div class="body details">2 March 2024</div></div>
<div class="message default clearfix" id="message10"><div class="body">
<div class="pull_right date details" title="02.03.2024 13:10:36 UTC+01:00">13:10</div><div class="from_name">
Neo
</div><div class="text">
one &amp; two<br>three <pre>  x = 1
    y</pre></div></div></div>
<div class="message default clearfix joined" id="message11"><div class="body"><div class="text">and <a href="https://x.y">this</a>
</div></div></div>
<div class="message default clearfix" id="message12"><div class="body"><div class="from_name">Eva</div>
<div class="reply_to details">In reply to <a href="#go_to_message10">this</a></div><div class="media_wrap"></div>
<div class="text">yes</div></div></div>
<div class="message default clearfix" id="message13"><div class="body"><div class="from_name">Eva</div><div class="media_wrap">
</div></div></div></div></div></body></html>"""
DISCORD = {
    "guild": {"id": "1", "name": "G"}, "channel": {"id": "2", "type": "GuildTextChat", "name": "help"}, "exportedAt": "2024-01-03",
    "messages": [
        {"id": "10", "type": "Default", "timestamp": "2024-01-01T10:00:00.123+00:00", "content": "how do I mount it?",
         "author": {"id": "5", "name": "ann", "nickname": "Ann", "isBot": False}},
        {"id": "11", "type": "GuildMemberJoin", "timestamp": "2024-01-01T10:00:10+00:00", "content": "Joined the server.",
         "author": {"id": "6", "name": "bob", "isBot": False}},
        {"id": "12", "type": "Reply", "timestamp": "2024-01-01T10:00:20+00:00", "content": "with mount",
         "author": {"id": "6", "name": "bob", "nickname": "Bob", "isBot": False}, "reference": {"messageId": "10"}},
        {"id": "13", "type": "Default", "timestamp": "2024-01-01T10:00:30+00:00", "content": "", "attachments": [{"id": "1"}],
         "author": {"id": "6", "name": "bob", "isBot": False}},
        {"id": "14", "type": "Default", "timestamp": "2024-01-01T10:00:40+00:00", "content": "",
         "author": {"id": "7", "name": "Helper", "isBot": True}, "reference": {"messageId": "10"},
         "embeds": [{"title": "Mounting", "description": "as root", "fields": [{"name": "see", "value": "man mount"}]}]},
    ],
    "messageCount": 5,
}  # fmt: skip
RULE = "=" * 62
DISCORD_TEXT = (
    f"{RULE}\nGuild: G\nChannel: text / help\nTopic: x: y\n{RULE}\n\n[5/17/2020 10:11 PM] Ann\nhow do I mount it?\nquickly\n\n\n"
    "[5/17/2020 10:12 PM] Bob#1234 (pinned)\nwith mount\n\n{Attachments}\nhttps://x/y.png\n\n\n"
    "[5/17/2020 10:13 PM] Ann\n\n{Reactions}\n👍\n\n"
    f"[5/17/2020 10:13 PM] Cat\nJoined the server.\n\n\n{RULE}\nExported 4 message(s)\n{RULE}\n"
)


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("layout", ["one chat", "account"])
def test_telegram_json(layout: str, tmp_path: Path) -> None:
    bot = {**TELEGRAM, "name": "Bob", "type": "bot_chat"}
    account = {"about": "x", "contacts": {"list": []}, "chats": {"about": "y", "list": [TELEGRAM, bot]}}
    data = TELEGRAM if layout == "one chat" else account
    dialogs, drops = read("telegram", tmp_path / "result.json", json.dumps(data, indent=1))
    one = [[("user", "how do I mount it?"), ("assistant", "with mount")], [("user", "hello?")]]
    assert [said(dialog) for dialog in dialogs] == one * (1 if layout == "one chat" else 2) and not drops
    assert left_out(dialogs[:2]) == {"system_line": 1, "media": 1}
    assert dialogs[0].metadata["chat"] == "Help" and dialogs[0].line > 10 and dialogs[0].metadata["began"] == "2024-01-01T10:00:01"
    if layout == "account":
        assert dialogs[2].metadata["chat"] == "Bob" and dialogs[2].metadata["roles_by"] == "named"  # the bot of a chat with a bot
    assert detect(tmp_path / "result.json").name == "telegram"


@pytest.mark.requirement("R001")
def test_telegram_pages(tmp_path: Path) -> None:
    dialogs, _ = read("telegram", tmp_path / "messages.html", PAGE)
    assert [said(dialog) for dialog in dialogs] == [
        [("user", "one & two\nthree\n\n  x = 1\n    y"), ("user", "and this"), ("assistant", "yes")]
    ]
    assert dialogs[0].metadata["began"] == "2024-03-02T13:10:36" and dialogs[0].metadata["chat"] == "Help 🚀" and dialogs[0].line == 6
    assert left_out(dialogs) == {"system_line": 1, "media": 1} and detect(tmp_path / "messages.html").name == "telegram"


@pytest.mark.requirement("R001")
def test_discord_json_and_what_becomes_of_bots(tmp_path: Path) -> None:
    path = tmp_path / "help.json"
    dialogs, drops = read("discord", path, json.dumps(DISCORD, indent=2))
    assert [said(dialog) for dialog in dialogs] == [[("user", "how do I mount it?"), ("assistant", "with mount")]] and not drops
    assert left_out(dialogs) == {"system_line": 1, "media": 1, "bot": 1} and dialogs[0].metadata["chat"] == "help"
    dialogs, _ = read("discord", path, bots="assistant")
    # The reply in the file is certain, although two others spoke meanwhile; the bot is the assistant, so people are users.
    assert [said(dialog) for dialog in dialogs] == [
        [("user", "how do I mount it?"), ("user", "with mount"), ("assistant", "Mounting\nas root\nsee\nman mount")]
    ]
    assert detect(path).name == "discord"


@pytest.mark.requirement("R001")
def test_discord_text(tmp_path: Path) -> None:
    dialogs, drops = read("discord", tmp_path / "help.txt", DISCORD_TEXT)
    assert [said(dialog) for dialog in dialogs] == [[("user", "how do I mount it?\nquickly"), ("assistant", "with mount")]]
    assert left_out(dialogs) == {"system_line": 1, "media": 1} and not drops and detect(tmp_path / "help.txt").name == "discord"
    assert dialogs[0].metadata["began"] == "2020-05-17T22:11:00" and dialogs[0].metadata["chat"] == "text / help"


# --------------------------------------------------------------------------------------------------------------------- Slack


def slack(folder: Path) -> Path:
    """An export of two channels, in which a thread is answered on another day."""
    days: dict[str, Any] = {
        "users.json": [
            {"id": "U1", "name": "ann", "profile": {"display_name": "Ann", "real_name": "Ann A"}},
            {"id": "U2", "name": "bob", "real_name": "Bob B"}, {"id": "U3", "name": "ci", "is_bot": True},
        ],
        "channels.json": [],
        "general/2024-01-01.json": [
            {"type": "message", "user": "U1", "ts": "1704103200.000100",
             "text": "hi <@U2>, see <https://a.b/c|docs> &amp; <#C1|random>?",
             "thread_ts": "1704103200.000100", "reply_count": 1},
            {"type": "message", "subtype": "channel_join", "user": "U1", "text": "<@U1> has joined", "ts": "1704103201.000000"},
            {"type": "message", "user": "U1", "text": "anybody there?", "ts": "1704103202.000000"},
            {"type": "message", "user": "U3", "text": "build failed", "ts": "1704103203.000000", "bot_id": "B1"},
            {"type": "message", "user": "U2", "text": "yes", "ts": "1704103204.000000"},
            {"type": "message", "user": "U2", "text": "", "files": [{"id": "F1"}], "ts": "1704103205.000000"},
        ],
        "general/2024-01-02.json": [
            {"type": "message", "user": "U2", "text": "sure", "ts": "1704189600.000100", "thread_ts": "1704103200.000100"},
        ],
        "random/2024-01-01.json": [
            {"type": "message", "user": "U9", "user_profile": {"real_name": "Zoe"}, "text": "tea?", "ts": "1704103200.000200"},
            {"type": "message", "user": "U1", "text": "please", "ts": "1704103230.000000"}, 7,
        ],
    }  # fmt: skip
    for name, rows in days.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(rows, indent=1), "utf-8")
    return folder


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_slack_exports(form: str, tmp_path: Path) -> None:
    path = slack(tmp_path / "export")
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
            for file in path.rglob("*.json"):
                archive.write(file, file.relative_to(path))
        path = tmp_path / "export.zip"
    dialogs, drops = read("slack", path)
    assert [(dialog.metadata["chat"], said(dialog)) for dialog in dialogs] == [
        ("general", [("user", "hi @Bob B, see docs (https://a.b/c) & #random?"), ("assistant", "sure")]),
        ("general", [("user", "anybody there?"), ("assistant", "yes")]),
        ("random", [("user", "tea?"), ("assistant", "please")]),
    ]
    assert left_out(dialogs) == {"system_line": 1, "bot": 1, "media": 1} and [drop.reason for drop in drops] == ["not_an_object"]
    assert dialogs[0].group and dialogs[1].group is None and dialogs[0].metadata["file"] == "general/2024-01-01.json"
    assert is_export(path) and not is_export(tmp_path / "nothing")
    assert dialogs[2].metadata["speakers"] == {"Zoe": "user", "Ann": "assistant"}
    with_bots, _ = read("slack", path, bots="assistant")
    assert ("assistant", "build failed") in said(with_bots[1]) and left_out(with_bots)["bot"] == 0


def test_slack_reads_one_day_and_finds_the_users_beside_the_channel_and_no_file_outside_the_folder(tmp_path: Path) -> None:
    path = slack(tmp_path / "export")
    dialogs, _ = read("slack", path / "general" / "2024-01-02.json")
    assert dialogs[0].metadata["speakers"] == {"Bob B": "user"} and detect(path / "general" / "2024-01-01.json").name == "slack"
    outside = tmp_path / "secret" / "2024-01-05.json"
    outside.parent.mkdir()
    outside.write_text(json.dumps([{"type": "message", "user": "U1", "text": "secret", "ts": "1704103200.000100"}]))
    (path / "general" / "2024-01-05.json").symlink_to(outside)
    assert not any("secret" in content for dialog in read("slack", path)[0] for _, content in said(dialog))
    with pytest.raises(DataError, match="holds no day of a channel"):
        read("slack", outside.parent.parent / "empty" if (tmp_path / "empty").mkdir() else tmp_path / "empty")


# -------------------------------------------------------------------------------------------------------------------- WeChat

WECHAT = {
    "a.txt": "2023-05-06 10:11:12 客人\n你好\n在吗\n\n2023-05-06 10:11:30 小李\n[图片]\n\n"
    "2023-05-06 10:11:40 小李\n在的\n引用:客人:你好\n\n"
    '2023-05-06 10:11:50 "客人"撤回了一条消息\n\n',
    "b.txt": "小李 - 微信聊天记录\n\n客人 (2023-05-06 10:11:12):你好\n在吗\n小李 (2023-05-06 10:11:13):[图片]\n"
    "小李 (2023-05-06 10:11:15):「客人：你好」\n- - - - - - - - - - - - - - -\n在的\n\n系统消息：以上是打招呼的内容\n",
    "c.txt": "客人 2023/5/6 10:11:12\n你好\n在吗\n\n小李 2023/5/6 上午10:11:13\n[语音]\n\n小李 2023/5/6 上午10:12:00\n在的\n\n"
    "系统消息：x\n",
    "d.csv": "localId,TalkerId,Type,SubType,IsSender,CreateTime,Status,StrContent,StrTime,Remark,NickName,Sender\n"
    '1,2,1,0,0,1683367872,2,"你好\n在吗",2023-05-06 10:11:12,客人,kr,wx1\n'
    "2,2,3,0,1,1683367872,2,<?xml,2023-05-06 10:11:12,小李,kr,wx2\n"
    "3,2,49,57,1,1683367880,2,在的,2023-05-06 10:11:20,小李,me,wx2\n4,2,10000,0,1,1683367880,2,撤回,2023-05-06 10:11:20,,,\n",
    "e.csv": "id,MsgSvrID,type_name,is_sender,talker,room_name,content,CreateTime\n"
    '1,9,文本,0,客人,客人,"{""src"": """", ""msg"": ""你好\\n在吗""}",2023-05-06 10:11:12\n'
    '2,9,文本,1,小李,客人,"{""msg"": ""在的""}",2023-05-06 10:12:12\n3,9,图片,1,小李,客人,"{""msg"": ""图""}",2023-05-06 10:12:13\n'
    "4,9,系统通知,0,客人,客人,拍了拍,2023-05-06 10:12:14\n",
    "f.html": "<html><head><title>x</title></head><body><script>\nconst chatMessages = [\n"
    "{ type:0, text: '2023-05-06 10:11:12',is_send:0,avatar_path:'',timestamp:1683367872},"
    "{ type:1, text: '你好\\n在吗',is_send:0,avatar_path:'./a.png',timestamp:1683367872,is_chatroom:0,displayname:'客人'},\n"
    "{ type:3, text: './image/x.png',is_send:1,avatar_path:'a',timestamp:1683367875,is_chatroom:0,displayname:'小李'},\n"
    "{ type:49, text: '在的',is_send:1,sub_type:57,refer_text: '客人：x',avatar_path:'a',timestamp:1683367880,displayname:'小李'},\n"
    "]</script></body></html>",
    "g.html": '<html><body>\n<div class="msg chat-left" msgid="1" msgtype="1"><div class="nt-box"><span class="name-left">客人</span> '
    '2023-05-06 10:11:12</div>\n<div class="content-box msg"><span class="dont-break-out">你好<br/>在吗</span></div></div>\n'
    '<div class="msg chat-notice" msgid="2"><span class="dont-break-out">系统消息：x</span></div>\n'
    '<div class="msg media right" msgid="4"><div class="nt-box"><span class="dspname right">小李</span> 2023-05-06 10:12:12</div>'
    '<div class="content-box"><img src="x"/></div></div>\n<div class="msg chat-right" msgid="3"><div class="nt-box">'
    '<span class="name-right">小李</span> 2023-05-06 10:12:12</div><div class="content-box msg"><span class="dont-break-out">在的'
    "</span></div></div></body></html>",
}


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("name", WECHAT)
def test_wechat_exports_of_the_usual_tools(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    dialogs, drops = read("wechat", path, WECHAT[name])
    assert [said(dialog) for dialog in dialogs] == [[("user", "你好\n在吗"), ("assistant", "在的")]] and not drops
    assert left_out(dialogs) == {"system_line": 1, "media": 1}
    assert dialogs[0].metadata["speakers"] == {"客人": "user", "小李": "assistant"}
    # f.html holds seconds of a clock with a time zone, the others what the clock on the wall said.
    assert dialogs[0].metadata["began"] == "2023-05-06T10:11:12"
    assert detect(path).name == "wechat"
    if name >= "d":
        turned, _ = read("wechat", path, owner="user")
        assert [role for role, _ in said(turned[0])] == ["assistant", "user"]


# ---------------------------------------------------------------------------------------------------------------------- mail


def mail(folder: Path, *letters: dict[str, str]) -> Path:
    path = folder / "list.mbox"
    box = mailbox.mbox(path)
    for number, letter in enumerate(letters):
        own = email.message.EmailMessage()
        own["From"], own["To"], own["Subject"] = letter["from"], "list@example.org", letter["subject"]
        own["Date"] = letter.get("date", f"Mon, 01 Jan 2024 1{number}:00:00 +0000")
        if "id" in letter:
            own["Message-ID"] = f"<{letter['id']}@x>"
        if "answers" in letter:
            own["In-Reply-To"] = f"<{letter['answers']}@x>"
        own.set_content(letter["text"], subtype=letter.get("kind", "plain"))
        box.add(own)
    box.close()
    return path


@pytest.mark.requirement("R001")
def test_mail_threads_without_what_they_quote(tmp_path: Path) -> None:
    path = mail(
        tmp_path,
        {"from": "Jörg Müller <j@x.de>", "subject": "Frage: 你好", "id": "1",
         "text": "Does it work?\n\nFrom here it is ok.\n-- \nJörg\nTel 1\n"},
        {"from": "Kim <kim@y.z>", "subject": "lonely", "id": "9", "text": "anybody?"},
        {"from": "Team <support@y.z>", "subject": "Re: Frage: 你好", "id": "2", "answers": "1",
         "text": "Yes.\n\nOn Mon, 1 Jan 2024, Jörg Müller\n<j@x.de> wrote:\n> Does it work?\n> more\n\nregards\n"},
        {"from": "j@x.de", "subject": "AW: Frage: 你好", "id": "3", "answers": "2", "kind": "html",
         "text": "<html><body><p>Thanks &amp; <b>bye</b></p><blockquote>Yes.</blockquote></body></html>"},
        {"from": "Kim <kim@y.z>", "subject": "Re: lonely", "text": "still nobody?"},
        {"from": "Lee <lee@y.z>", "subject": "other", "answers": "missing", "text": "one"},
        {"from": "Max <max@y.z>", "subject": "Re: other", "answers": "missing", "text": "two"},
    )  # fmt: skip
    dialogs, drops = read("mbox", path)
    assert sorted(said(dialog) for dialog in dialogs) == sorted([
        [("user", "Does it work?\n\nFrom here it is ok."), ("assistant", "Yes.\n\nregards"), ("user", "Thanks & bye")],
        [("user", "anybody?"), ("user", "still nobody?")], [("user", "one"), ("assistant", "two")],
    ]) and not drops  # fmt: skip
    thread = next(dialog for dialog in dialogs if len(dialog.messages) == 3)
    assert thread.metadata["subject"] == "Frage: 你好" and thread.metadata["left_out"] == {"quoted_lines": 5, "signature_lines": 2}
    assert thread.metadata["speakers"] == {"Jörg Müller": "user", "Team": "assistant"} and thread.line == 1
    whole, _ = read("mbox", path, quotes=True, signatures=True, subject=True)
    first = next(dialog for dialog in whole if len(dialog.messages) == 3)
    assert first.messages[0].content == "Frage: 你好\n\nDoes it work?\n\nFrom here it is ok.\n\nJörg\nTel 1"
    assert "> Does it work?" in first.messages[1].content and "left_out" not in first.metadata
    assert detect(path).name == "mbox"


def test_a_letter_alone_and_one_in_another_encoding_are_read(tmp_path: Path) -> None:
    letter = (
        b"From: =?gb2312?B?1cXI/Q==?= <z@x.cn>\nTo: a@b\nSubject: =?utf-8?q?caf=C3=A9?=\nDate: Mon, 1 Jan 2024 10:00:00 +0800\n"
        b'Content-Type: text/plain; charset="gb2312"\nContent-Transfer-Encoding: 8bit\n\n\xc4\xe3\xba\xc3\n'
    )
    (tmp_path / "one.eml").write_bytes(letter)
    dialogs, _ = read("mbox", tmp_path / "one.eml")
    assert said(dialogs[0]) == [("user", "你好")] and dialogs[0].metadata["subject"] == "café"
    assert dialogs[0].metadata["speakers"] == {"张三": "user"} and detect(tmp_path / "one.eml").name == "mbox"


ORIGINAL = "-----Original Message-----\nFrom: a\nSent: b\nTo: c\n\nold"


@pytest.mark.parametrize(
    ("text", "written", "quoted", "signed"),
    [
        ("a\n> b\nc", "a\nc", "> b", ""), ("a\n-- \nname", "a", "", "name"), ("wrote: me\nno quote", "wrote: me\nno quote", "", ""),
        ("在 2024年1月1日，张三写道：\n> 你好\n好", "好", "在 2024年1月1日，张三写道：\n> 你好", ""),
        (f"ok\n{ORIGINAL}", "ok", ORIGINAL, ""),
        ("ok\n发件人: a\n发送时间: b\n收件人: c\n\nold", "ok", "发件人: a\n发送时间: b\n收件人: c\n\nold", ""), ("", "", "", ""),
    ],
)  # fmt: skip
def test_quotations_and_signatures_are_told_from_what_was_written(text: str, written: str, quoted: str, signed: str) -> None:
    assert separated(text) == (written, quoted, signed)


# ------------------------------------------------------------------------------------------------------------------- tickets

ZENDESK: list[dict[str, Any]] = [
    {"id": 7, "subject": "Broken", "description": "It is broken", "requester_id": 1, "assignee_id": 2, "status": "solved",
     "tags": ["a"],
     "comments": [
         {"id": 3, "author_id": 2, "html_body": "<p>Try<br>again &amp; again</p>", "public": True,
          "created_at": "2024-01-01T10:20:00Z"},
         {"id": 1, "author_id": 1, "body": "It is broken", "public": True, "created_at": "2024-01-01T10:00:00Z"},
         {"id": 2, "author_id": 2, "plain_body": "he again", "public": False, "created_at": "2024-01-01T10:10:00Z"}]},
    {"id": 8, "subject": "Q", "description": "Just this", "requester_id": 1, "comments": []},
    {"id": 9, "subject": "Q", "requester_id": 1, "comments": [{"author_id": 2, "body": "psst", "public": False}]},
]  # fmt: skip
SOLVED = [("user", "It is broken"), ("assistant", "Try\nagain & again")]


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("layout", ["list", "lines", "wrapped", "one"])
def test_zendesk_tickets(layout: str, tmp_path: Path) -> None:
    users = [{"id": 1, "name": "Ann", "role": "end-user"}, {"id": 2, "name": "Bo", "role": "agent"}]
    texts = {
        "list": json.dumps(ZENDESK, indent=1), "lines": "\n".join(map(json.dumps, ZENDESK)),
        "wrapped": json.dumps({"tickets": ZENDESK, "users": users, "count": 3}),
        "one": json.dumps({"ticket": {k: v for k, v in ZENDESK[0].items() if k != "comments"}, "comments": ZENDESK[0]["comments"]}),
    }  # fmt: skip
    dialogs, drops = read("tickets", tmp_path / "tickets.json", texts[layout])
    assert said(dialogs[0]) == SOLVED and dialogs[0].id == "ticket-7" and dialogs[0].metadata["left_out"] == {"private": 1}
    if layout != "one":
        assert said(dialogs[1]) == [("user", "Just this")] and [drop.reason for drop in drops] == ["no_message"]
    ann, bo = ("Ann", "Bo") if layout == "wrapped" else ("1", "2")
    assert dialogs[0].metadata["speakers"] == {ann: "user", bo: "assistant"}
    private, _ = read("tickets", tmp_path / "tickets.json", private=True, subject=True)
    assert [content for _, content in said(private[0])] == ["Broken\n\nIt is broken", "he again", "Try\nagain & again"]
    assert detect(tmp_path / "tickets.json").name == "tickets"


@pytest.mark.requirement("R001")
def test_tickets_of_other_help_desks(tmp_path: Path) -> None:
    fresh = {"id": 5, "subject": "F", "description_text": "Where?", "requester_id": 11, "conversations": [
        {"body_text": "Here", "incoming": False, "private": False, "user_id": 12, "created_at": "2024-01-01T11:00:00Z"},
        {"body_text": "Thx", "incoming": True, "private": False, "user_id": 11, "created_at": "2024-01-01T12:00:00Z"}]}  # fmt: skip
    inter = {"id": "99", "source": {"body": "<p>Hi?</p>", "author": {"type": "user", "id": "u", "name": "Al"}}, "conversation_parts": {
        "conversation_parts": [{"part_type": "comment", "body": "<p>Yo</p>", "author": {"type": "admin", "name": "Al"}},
                               {"part_type": "note", "body": "<p>psst</p>", "author": {"type": "admin", "name": "Bo"}},
                               {"part_type": "assignment", "body": None, "author": {"type": "admin"}}]}}  # fmt: skip
    dialogs, _ = read("tickets", tmp_path / "f.jsonl", f"{json.dumps(fresh)}\n{json.dumps(inter)}\n")
    assert said(dialogs[0]) == [("user", "Where?"), ("assistant", "Here"), ("user", "Thx")]
    assert said(dialogs[1]) == [("user", "Hi?"), ("assistant", "Yo")]  # two persons called Al
    assert left_out(dialogs) == {"private": 1, "no_text": 1}


# -------------------------------------------------------------------------------------------------------------------- forums

PHPBB = """<!DOCTYPE html><html><head><title>T - Forum</title></head><body><h2 class="topic-title"><a href="#">Broken thing</a></h2>
<div id="p1" class="post bg2"><div class="inner"><dl class="postprofile"><dt><a class="username">ann</a></dt></dl><div class="postbody">
<p class="author">by <strong><a class="username">ann</a></strong> » <time datetime="2024-01-01T10:00:00+00:00">x</time></p>
<div class="content">It is <b>broken</b>.<br>Help?</div></div></div></div>
<div id="p2" class="post bg1"><div class="inner"><dl class="postprofile"><dt><a class="username-coloured">bob</a></dt></dl>
<div class="postbody"><div class="content"><blockquote><div><cite>ann wrote:</cite>It is broken.</div></blockquote>Try <code>x</code>
<pre><code>  a = 1
  b</code></pre><ul><li>one</li><li>two</li></ul></div></div></div></div></body></html>"""
STACK = """<!DOCTYPE html><html><body><div id="question-header"><h1><a>How to x?</a></h1></div>
<div class="question" id="question" data-questionid="1"><div class="s-prose js-post-body"><p>I want x.</p></div>
<div class="post-signature"><div class="user-details"><a>ann</a></div></div></div>
<div id="answer-2" class="answer" data-answerid="2"><div class="s-prose js-post-body"><p>Do y.</p></div><div>
<div class="post-signature"><div class="user-details"><a>editor</a></div></div>
<div class="post-signature"><div class="user-details"><a>bob</a></div></div></div></div>
<div id="answer-3" class="answer" data-answerid="3"><div class="s-prose js-post-body"><p>Do z.</p></div>
<div class="post-signature"><div class="user-details"><a>ann</a></div></div></div></body></html>"""
FORUMS = {
    "phpBB": PHPBB,
    "Discourse": "<html><body><h1><a>Broken thing</a></h1><div id='post_1' itemprop='text' class='topic-body crawler-post'>"
    "<span class='creator' itemprop='author'><a><span itemprop='name'>ann</span></a></span>"
    "<time datetime='2024-01-01T10:00:00Z'>x</time>"
    "<div class='post' itemprop='text'><p>It is broken.<br/>Help?</p></div></div><div id='post_2' itemprop='comment' "
    "class='topic-body crawler-post'><span class='creator'><span itemprop='name'>bob</span></span><div class='post' itemprop='text'>"
    "<aside class='quote'>It is</aside><p>Try x</p><pre>  a = 1\n  b</pre><ul><li>one</li><li>two</li></ul></div></div></body></html>",
    "XenForo": "<html><body><h1>Broken thing</h1><article class='message' data-author='ann'><h4 class='message-name'>ann</h4>"
    "<time datetime='2024-01-01T10:00:00+0000'>x</time><div class='bbWrapper'>It is broken.<br/>Help?</div></article>"
    "<article class='message'><h4 class='message-name'>bob</h4><div class='bbWrapper'><blockquote class='bbCodeBlock'>ann said"
    "</blockquote>Try x<pre>  a = 1\n  b</pre><ul><li>one</li><li>two</li></ul></div></article></body></html>",
    "vBulletin": "<html><body><h1>Broken thing</h1><li class='postcontainer' id='post_1'><a class='username'>ann</a>"
    "<time datetime='2024-01-01T10:00:00+00:00'>x</time><blockquote class='postcontent'>It is broken.<br/>Help?</blockquote></li>"
    "<li class='postcontainer' id='post_2'><a class='username'>bob</a><blockquote class='postcontent'><div class='bbcode_quote'>ann"
    "</div>Try x<pre>  a = 1\n  b</pre><ul><li>one</li><li>two</li></ul></blockquote></li></body></html>",
    "Discuz": "<html><body><h1>Broken thing</h1><div id='post_1'><div class='authi'><a class='xw1'>ann</a></div><time "
    "datetime='2024-01-01T10:00:00+00:00'>x</time><table><tr><td class='t_f' id='postmessage_1'>It is broken.<br/>Help?</td></tr>"
    "</table></div>"
    "<div id='post_2'><div class='authi'><a class='xw1'>bob</a></div><table><tr><td class='t_f'><div class='quote'>ann</div>Try x"
    "<pre>  a = 1\n  b</pre><ul><li>one</li><li>two</li></ul></td></tr></table></div></body></html>",
}


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("name", FORUMS)
def test_threads_of_forums_as_pages(name: str, tmp_path: Path) -> None:
    path = tmp_path / "thread.html"
    dialogs, _ = read("forum_html", path, FORUMS[name])
    assert [said(dialog) for dialog in dialogs] == [
        [("user", "Broken thing\n\nIt is broken.\nHelp?"), ("assistant", "Try x\n\n  a = 1\n  b\n\n- one\n- two")]
    ]
    told = dialogs[0].metadata
    assert told["layout"] == name and told["title"] == "Broken thing" and left_out(dialogs) == {"quote": 1}
    assert told["speakers"] == {"ann": "user", "bob": "assistant"} and told["began"] == "2024-01-01T10:00:00"
    assert detect(path).name == "forum_html"
    kept, _ = read("forum_html", path, quotes=True, title=False)
    assert said(kept[0])[0][1] == "It is broken.\nHelp?" and left_out(kept) == {}


@pytest.mark.requirement("R001")
def test_each_answer_to_a_question_is_a_conversation_and_they_stay_together(tmp_path: Path) -> None:
    dialogs, _ = read("forum_html", tmp_path / "q.html", STACK)
    asked = ("user", "How to x?\n\nI want x.")
    assert [said(dialog) for dialog in dialogs] == [[asked, ("assistant", "Do y.")], [asked, ("assistant", "Do z.")]]
    assert dialogs[0].group == dialogs[1].group is not None
    assert dialogs[0].metadata["speakers"] == {"ann": "user", "bob": "assistant"}  # not who edited the answer
    assert all(isinstance(shaped(dialog), Shaped) for dialog in dialogs)


def test_selectors_can_be_named_and_a_page_without_posts_is_told(tmp_path: Path) -> None:
    own = (
        "<html><body><div class=m><i>ann</i><p>one</p></div>"
        "<div class=m><i>bob</i><b class=badge>staff</b><p>two</p></div></body></html>"
    )
    dialogs, _ = read("forum_html", tmp_path / "own.html", own, post="div.m", author="i", text="p", staff=".badge")
    assert said(dialogs[0]) == [("user", "one"), ("assistant", "two")] and dialogs[0].metadata["roles_by"] == "named"
    whole, _ = read("forum_html", tmp_path / "own.html", own, post="div.m", author="i")
    assert [content for _, content in said(whole[0])] == ["one", "staff\n\ntwo"]
    assert detect(tmp_path / "own.html").name == "forum_html"  # nothing else reads pages, and its error says what to name
    with pytest.raises(DataError, match="holds no posts") as caught:
        read("forum_html", tmp_path / "own.html")
    assert "collect.format.post" in str(caught.value.hint)
    with pytest.raises(SettingError, match="CSS selector"):
        validate(kind("readers").load("forum_html"), {"post": "div[["})


MARKDOWN = {
    "raw": "ann | 2024-01-01 10:00:00 UTC | #1\n\nIt is broken\n\n-------------------------\n\nbob | 2024-01-02 10:00:00 UTC | #2\n\n"
    "> It is\n\nTry x\n\n```\n> code\n```\n\n-------------------------\n",
    "headings": "## ann (2024-01-01 10:00)\n\nIt is broken\n\n### @bob - 2024-01-02\n\n> It is\n\nTry x\n\n```\n> code\n```\n",
    "posts": "## Post 1 by ann, 2024-01-01T10:00:00Z\nIt is broken\n\n## Reply by bob\n> It is\n\nTry x\n\n```\n> code\n```\n",
    "bold": "**ann** (2024-01-01 10:00):\nIt is broken\n\n**bob:** Try x\n> It is\n\n```\n> code\n```\n",
}


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("form", MARKDOWN)
def test_threads_of_forums_as_markdown(form: str, tmp_path: Path) -> None:
    dialogs, drops = read("forum_markdown", tmp_path / "t.md", MARKDOWN[form])
    assert [[(role, content.strip()) for role, content in said(dialog)] for dialog in dialogs] == [
        [("user", "It is broken"), ("assistant", "Try x\n\n```\n> code\n```")]
    ] and not drops
    assert left_out(dialogs) == {"quoted_lines": 1} and dialogs[0].metadata["speakers"] == {"ann": "user", "bob": "assistant"}
    assert dialogs[0].metadata["began"] == "2024-01-01T10:00:00" and detect(tmp_path / "t.md").name == "forum_markdown"


def test_markdown_titles_begin_threads_and_answers_are_conversations(tmp_path: Path) -> None:
    text = (
        '---\ntitle: "How to x?"\ntags: [a]\n---\n\n## Question by ann (2024-01-01)\n\nI want x\n\n```\n## no heading\n```\n\n'
        "## Answer 1 by bob\n\nDo y\n\n### Accepted answer by cat - 2024-01-03\n\nDo z\n\n# Other\n\n**ann**: hello?\n\n**bob:** yes\n"
    )
    dialogs, _ = read("forum_markdown", tmp_path / "t.md", text)
    assert [[content for _, content in said(dialog)][-1] for dialog in dialogs] == ["Do y", "Do z", "yes"]
    assert said(dialogs[0])[0][1] == "How to x?\n\nI want x\n\n```\n## no heading\n```" == said(dialogs[1])[0][1]
    assert said(dialogs[2])[0][1] == "Other\n\nhello?" and dialogs[0].group == dialogs[1].group != dialogs[2].group
    own, _ = read("forum_markdown", tmp_path / "t.md", "@@ ann\none\n@@ bob\ntwo\n", post=r"@@ (?P<author>\w+)")
    assert said(own[0]) == [("user", "one"), ("assistant", "two")]
    for wrong in ("(", "no group"):
        with pytest.raises(SettingError):
            validate(kind("readers").load("forum_markdown"), {"post": wrong})


# ---------------------------------------------------------------------------------------------------------------- plain text


@pytest.mark.requirement("R001")
def test_plain_text_is_read_when_it_is_named_and_passes_as_it_is(tmp_path: Path) -> None:
    text = "One para.\nstill.\n\nTwo para.\n%\nthree\n"
    path = tmp_path / "p.txt"
    dialogs, _ = read("plain_text", path, text)
    assert [said(dialog) for dialog in dialogs] == [[("assistant", text.rstrip("\n"))]] and dialogs[0].metadata == {"kind": "text"}
    kept = shaped(dialogs[0])
    assert isinstance(kept, Shaped) and kept.dialog.messages == (Message("assistant", text.rstrip("\n")),)
    assert [(d.line, d.messages[0].content) for d in read("plain_text", path, separator="%")[0]] == [
        (1, "One para.\nstill.\n\nTwo para."), (6, "three")
    ]
    paragraphs = [d.messages[0].content for d in read("plain_text", path, piece="paragraph")[0]]
    assert paragraphs == ["One para.\nstill.", "Two para.\n%\nthree"]
    assert [d.line for d in read("plain_text", path, piece="line")[0]] == [1, 2, 4, 5, 6]
    with pytest.raises(DataError, match="not recognised"):
        detect(path)
    # An assistant that nobody asked is no text, whatever else is said of it.
    assert isinstance(shaped(Dialog("x", (Message("assistant", "hi"),))), Drop)
    assert isinstance(shaped(Dialog("x", (Message("system", "s"), Message("assistant", "hi")), metadata={"kind": "text"})), Drop)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_long_text_lose_nothing_and_end_where_something_ends(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    words = ["word"] * 8 + ["end. ", "gone!\n", "so\n\n", "长句。", "x" * 40]
    text = "".join(draw.choice(words) + draw.choice(["", " "]) for _ in range(2000))
    dialogs, drops = read("plain_text", tmp_path / "long.txt", text, length=500)
    pieces = [dialog.messages[0].content for dialog in dialogs]
    assert not drops and max(map(len, pieces)) <= 500 and min(map(len, pieces[:-1])) >= 200
    assert "".join("".join(piece.split()) for piece in pieces) == "".join(text.split())


def test_rows_with_a_text_are_plain_text_too(tmp_path: Path) -> None:
    rows = '{"text":"hello\\n\\nworld","url":"x"}\n{"text":3}\n{"text":" "}\n'
    dialogs, drops = read("plain_text", tmp_path / "c.jsonl", rows)
    assert [d.messages[0].content for d in dialogs] == ["hello\n\nworld"] and [d.reason for d in drops] == ["wrong_type", "empty"]
    pages = DATA / "messy" / "c4_demo.jsonl.gz"
    if pages.exists():
        dialogs, drops = read("plain_text", pages, length=10**6)
        assert len(dialogs) == 300 and not drops


# ----------------------------------------------------------------------------------------------------------------- robustness


def samples(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """A sample of each format: reader, file name, bytes."""
    for client in ("ubuntu", "irssi", "weechat"):
        yield "irc", "c.log", CLIENTS[client].encode()
    for text in (IPHONE, ANDROID, CHINESE):
        yield "whatsapp", "_chat.txt", text.encode()
    yield "telegram", "result.json", json.dumps({"chats": {"list": [TELEGRAM]}}, indent=1).encode()
    yield "telegram", "messages.html", PAGE.encode()
    yield "discord", "help.json", json.dumps(DISCORD, indent=2).encode()
    yield "discord", "help.txt", DISCORD_TEXT.encode()
    yield "slack", "2024-01-01.json", (slack(folder / "export") / "general" / "2024-01-01.json").read_bytes()
    for name, text in WECHAT.items():
        yield "wechat", name, text.encode()
    letters = [{"from": "a@b", "subject": "s", "id": str(n), "text": f"letter {n}\n> quote\n-- \nme"} for n in range(3)]
    yield "mbox", "list.mbox", mail(folder, *letters).read_bytes()
    yield "tickets", "t.json", json.dumps({"tickets": ZENDESK, "users": [{"id": 1, "name": "Ann", "role": "end-user"}]}).encode()
    yield "forum_html", "t.html", PHPBB.encode()
    yield "forum_html", "q.html", STACK.encode()
    yield "forum_markdown", "t.md", "\n".join(MARKDOWN.values()).encode()
    yield "plain_text", "p.txt", b"some text.\n\nmore of it\n" * 9


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, bytes]]:
    return list(samples(tmp_path_factory.mktemp("samples")))


PIECES = (
    b"\x00", b"\xff\xfe", b"\r", b"\n", b"{", b"}", b"[", b"]", b'"', b"\\", b"<", b">", b"&#0;", b"\xf0\x9f", b"null", b"1e999", b":",
    b"", b"99/99/9999", b"\xe2\x80\x8e", b"\\ud800", b"'", b"-- \n", b"From x\n", b"(?P", b"\t",
)  # fmt: skip


@settings(max_examples=350, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_files_give_dialogs_drops_or_an_error_of_ours(
    material: list[tuple[str, str, bytes]], tmp_path: Path, data: st.DataObject
) -> None:
    name, file, content = material[data.draw(st.integers(0, len(material) - 1))]
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed)))
        changed[place : place + data.draw(st.integers(0, 30))] = data.draw(st.sampled_from(PIECES)) * data.draw(st.integers(1, 3))
    path = tmp_path / file
    path.write_bytes(bytes(changed))
    items, error = attempted(reader(name), path)
    assert error is None or (str(path) in str(error.path) and error.hint and "\n" not in error.message)
    for item in items:
        assert item.file == str(path) and 1 <= item.line <= bytes(changed).count(b"\n") + bytes(changed).count(b"\r") + 1
        if isinstance(item, Dialog):
            assert item.messages and json.loads(item.to_json().encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
        else:
            assert item.reason.isidentifier() and len(item.detail) < 400 and "\n" not in item.detail


def test_entries_are_messages_left_out_or_dropped_whatever_is_broken(material: list[tuple[str, str, bytes]], tmp_path: Path) -> None:
    """For readers of events: the account of a file adds up, also when values of any kind stand where messages should."""
    draw = random.Random(7)
    odd = [
        None, 3, "text", [], {}, {"type": "message"}, {"author": {}}, {"author": {"name": "x"}, "content": 4}, {"text": 5, "from": "a"},
    ]  # fmt: skip
    for name, file, whole in (("telegram", "r.json", TELEGRAM), ("discord", "d.json", DISCORD)):
        for _ in range(20):
            rows = list(whole["messages"])  # type: ignore[arg-type]
            for _ in range(draw.randint(1, 6)):
                rows.insert(draw.randrange(len(rows) + 1), draw.choice(odd))
            (tmp_path / file).write_text(json.dumps({**whole, "messages": rows}, indent=1), "utf-8")
            dialogs, drops = read(name, tmp_path / file)
            messages = sum(len(dialog.messages) for dialog in dialogs)
            assert messages + sum(left_out(dialogs).values()) + len(drops) == len(rows), rows


def test_events_of_a_log_are_the_same_each_time_they_are_read(material: list[tuple[str, str, bytes]], tmp_path: Path) -> None:
    for name, file, content in material:
        own = reader(name)
        if hasattr(own, "events"):
            (tmp_path / file).write_bytes(content)
            first, second = list(own.events(tmp_path / file)), list(own.events(tmp_path / file))
            assert first == second and any(isinstance(event, (Said, Aside)) for event in first)


def test_a_log_in_which_nobody_speaks_is_told(tmp_path: Path) -> None:
    dialogs, drops = read("irc", tmp_path / "c.log", "=== a [b@c] has joined #d\n=== a [b@c] has left #d []\n")
    assert not dialogs and [(drop.reason, drop.line) for drop in drops] == [("no_message", 1)] and "2 system_line" in drops[0].detail


def test_a_page_that_is_nested_deeply_is_read_or_told(tmp_path: Path) -> None:
    path = tmp_path / "deep.html"
    path.write_text("<html><body>" + "<div>" * 20_000 + "x" + "</div>" * 20_000, "utf-8")
    with pytest.raises(DataError):
        read("forum_html", path)
    assert text_of(parsed("<p>a <b>b</b>\n c</p><table><tr><td>1</td><td>2</td></tr></table>", path).root) == "a b c\n\n1\t2"
