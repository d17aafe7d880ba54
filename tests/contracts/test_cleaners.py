"""Every cleaner: twice is once, places and ids stay, nothing crashes it, and what it leaves out has a reason that quotes nobody."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chattune.core.part import kind
from chattune.dialogs.cleaners import Cleaner, Cleaning
from chattune.dialogs.dialog import Dialog, Drop, Message

NAMES = kind("cleaners").names()
ALONE = [name for name in NAMES if not kind("cleaners").load(name).looks_at_all]  # type: ignore[attr-defined]
TEXTS = {
    "empty": "", "space": " \t\n ", "word": "hello", "nul": "a\x00b\x07c", "ansi": "\x1b[1;31mred\x1b[0m \x1b]0;title\x07",
    "cut ansi": "\x1b[",
    "emoji": "👩‍👩‍👧‍👦 ok 👍🏽 🏴\U000e0067\U000e0062\U000e007f ☺️", "chinese": "你好，我叫王小明。电话是１３８１２３４５６７８！",
    "kana": "ありがとうございます", "arabic": "مرحبا می\u200cخواهم", "combining": "e\u0301 Ａ\u0300 ﬁ", "bidi": "a\u202eb\u202c",
    "html": "<p>a &amp; b<br>c</p>", "cut html": "<a href='x", "code": "```\na < b && c\n```",
    "mail": "Sure.\n\nOn 3 May 2020, Ann wrote:\n> hi\n\n-- \nBob",
    "private": "I am at ann@example.org, 192.168.0.7 or (415) 555-2671",
    "secret": "password: hunter2 ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "digits": "1" * 1500, "long": "ab " * 1500, "line": "x" * 4000, "marks": "!?<>&@#`" * 250, "noncharacter": "\ufdd0\uffff",
    "control tokens": "<|user|> <|end|>", "mojibake": "donâ€™t 浣犲ソ鍚�", "repeated": "no no no no no no sooooooo hahahahahaha",
    "new lines": "\n" * 1500, "spaces": "a" + " " * 4000 + "b",
}  # fmt: skip


ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from([*TEXTS.values()])
PIECES = ["a", "1", "1 ", "1-", " ", "<", "<a ", "a@", "路1号", "区", "Mr. Aa ", "\x1b[", "(", "`", "> a\n", "a="]
PIECES += ["-----BEGIN PRIVATE KEY-----", "我叫王", "http://a:"]


@functools.cache
def cleaner(name: str) -> Cleaner:
    """One with its defaults, and with files where it does nothing without."""
    part = kind("cleaners").load(name)
    wanted: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="cleaners-"))
    if name == "offensive_text":  # without lists or examples it has nothing to go by
        (folder / "words.txt").write_text("sooooooo\n", "utf-8")
        wanted = {"words": [str(folder / "words.txt")]}
    if name == "spelling":
        (folder / "confusions.txt").write_text("因\t应\t音\n", "utf-8")
        wanted = {"confusions": [str(folder / "confusions.txt")]}
    made = part.model_validate(wanted)
    assert isinstance(made, Cleaner)
    return made


def dialog(name: str, *contents: str) -> Dialog:
    roles = ("system", "user", "assistant", "tool", "user", "assistant")
    messages = tuple(Message(roles[place % 6], content, 0.5 if place == 2 else None) for place, content in enumerate(contents))
    return Dialog(name, messages, "made", "f.jsonl", 3, "g", {"topic": "mail bob@example.org"})


def plain(number: int) -> Dialog:
    asked = ["tea", "milk", "wine", "beer", "rain"][number % 5]
    return dialog(f"p{number}", "Be kind.", f"What is {asked} like, number {number}?", f"I think {asked} is nice, {number} times.")


DIALOGS = [dialog(f"d {name}", "Be kind.", f"{text} question", text or "an answer") for name, text in TEXTS.items()]
DIALOGS += [dialog(f"e {name}", "", text, text, "", text, f"I say {text} twice") for name, text in TEXTS.items()]
DIALOGS += [plain(number) for number in range(30)]


@functools.cache
def begun(name: str) -> Cleaning:
    return cleaner(name).begin(DIALOGS)


@pytest.mark.parametrize("name", NAMES)
def test_ids_places_roles_weights_and_the_number_of_messages_stay(name: str) -> None:
    for own in DIALOGS:
        cleaned = begun(name).clean(own)
        if isinstance(cleaned, Drop):
            continue
        emptied = replace(cleaned, messages=tuple(replace(message, content="") for message in cleaned.messages))
        if name == "label_errors":
            emptied = replace(emptied, messages=own.messages)  # it may weigh a reply, and changes nothing else
        assert replace(emptied, messages=()) == replace(own, messages=()) and len(cleaned.messages) == len(own.messages)
        assert [message.role for message in cleaned.messages] == [message.role for message in own.messages]
        if name != "label_errors":
            assert [message.weight for message in cleaned.messages] == [message.weight for message in own.messages]
        assert cleaned.messages != own.messages or cleaned is own, "what does not change is given back as it is"


@pytest.mark.requirement("R027")
@pytest.mark.parametrize("name", NAMES)
def test_cleaning_twice_is_cleaning_once(name: str) -> None:
    for own in DIALOGS:
        once = begun(name).clean(own)
        if isinstance(once, Dialog):
            assert begun(name).clean(once) is once, own.id


@pytest.mark.parametrize("name", NAMES)
def test_a_drop_has_a_word_for_its_reason_and_quotes_nobody(name: str) -> None:
    for own in DIALOGS:
        found = begun(name).clean(own)
        if isinstance(found, Drop):
            assert found.reason.isidentifier() and found.reason == found.reason.lower()
            assert (found.file, found.line) == (own.file, own.line) and found.detail.startswith(own.id) and len(found.detail) < 200
            said = found.detail.removeprefix(own.id)
            for message in own.messages:
                for word in message.content.split():
                    assert len(word) < 6 or word not in said, (name, found.detail)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_deterministic_and_the_same_in_another_process(name: str) -> None:
    travelled = pickle.loads(pickle.dumps(begun(name)))
    assert [begun(name).clean(own) for own in DIALOGS] == [travelled.clean(own) for own in DIALOGS]
    assert pickle.loads(pickle.dumps(cleaner(name))) == cleaner(name)


class _Unread(list[Dialog]):
    """Dialogs at which nobody may look."""

    def __iter__(self) -> Any:
        raise AssertionError("it looks at all dialogs, and does not say so")

    __getitem__ = __iter__


@pytest.mark.parametrize("name", ALONE)
def test_one_that_does_not_say_so_looks_at_no_other_dialog(name: str) -> None:
    alone = cleaner(name).begin(_Unread(DIALOGS))
    assert [alone.clean(own) for own in DIALOGS[:9]] == [begun(name).clean(own) for own in DIALOGS[:9]]
    assert [cleaner(name).clean(own) for own in DIALOGS[:9]] == [begun(name).clean(own) for own in DIALOGS[:9]]


@pytest.mark.parametrize("name", ALONE)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(ANY, min_size=2, max_size=4))
def test_any_text_is_cleaned_once_and_for_all(name: str, texts: list[str]) -> None:
    own = dialog("any", *texts)
    once = begun(name).clean(own)
    if isinstance(once, Dialog):
        assert len(once.messages) == len(texts)
        assert begun(name).clean(once) is once


@pytest.mark.parametrize("name", ALONE)
def test_a_huge_text_takes_time_in_proportion(name: str) -> None:
    for piece in PIECES:
        size = 1 << 12
        spent = []
        for length in (size, 4 * size):
            own = dialog("huge", "s", "u", piece * (length // len(piece)))
            began = time.process_time()
            begun(name).clean(own)
            spent.append(time.process_time() - began)
        # Quadratic would be 16 times; what takes less than a fifth of a second is not worth a clock's unrest.
        assert spent[1] < 0.2 or spent[1] < 10 * spent[0], (name, piece, spent)


def test_importing_and_describing_the_cleaners_needs_no_heavy_library() -> None:
    script = (
        "import sys; from chattune.core.part import kind\n"
        "for name in kind('cleaners').names(): kind('cleaners').load(name).describe()\n"
        "heavy = 'torch scipy ftfy phonenumbers symspellpy cryptography rjieba spacy py3langid'\n"
        "print(sorted(set(heavy.split()) & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
