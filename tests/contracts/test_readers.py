"""Every reader gives back what was written, whatever the bytes around it, and tells what it cannot use."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chattune.core.errors import ChattuneError, DataError
from chattune.core.part import kind
from chattune.dialogs.detect import detect, scores
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.readers import Reader

NAMES = kind("readers").names()
Q, A, Q2, A2 = "Wie geht's, \"Anna\"? 你好吗 🙂", "Gut, danke; 很好!", "And: you?", "  Fine – thanks."

# name → file name, text, and what must come out of it as (role, content) pairs
SAMPLES: dict[str, tuple[str, str, list[list[tuple[str, str]]]]] = {
    "openai_messages": (
        "chat.jsonl",
        "\n".join(
            json.dumps({"messages": [{"role": r, "content": c} for r, c in own], "topic": "x"}, ensure_ascii=False)
            for own in ([("system", "Be kind."), ("user", Q), ("assistant", A)], [("user", Q2), ("assistant", A2)])
        ) + "\n",
        [[("system", "Be kind."), ("user", Q), ("assistant", A)], [("user", Q2), ("assistant", A2)]],
    ),
    "sharegpt": (
        "share.json",
        json.dumps(
            [
                {"id": "a", "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}], "tools": "[]"},
                {"conversations": [{"from": "human", "value": Q2}, {"from": "function_call", "value": "{}"},
                                   {"from": "observation", "value": "7"}, {"from": "gpt", "value": A2}]},
            ], ensure_ascii=False, indent=2,
        ),
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", "{}"), ("tool", "7"), ("assistant", A2)]],
    ),
    "alpaca": (
        "alpaca.json",
        json.dumps(
            [
                {"instruction": "Translate.", "input": Q, "output": A},
                {"instruction": Q2, "input": "", "output": A2, "history": [["one", "two"]], "system": "Short."},
            ], ensure_ascii=False,
        ),
        [
            [("user", f"Translate.\n\n{Q}"), ("assistant", A)],
            [("system", "Short."), ("user", "one"), ("assistant", "two"), ("user", Q2), ("assistant", A2)],
        ],
    ),
    "prompt_completion": (
        "faq.csv",
        'Id,Question,ANSWER,topic\n1,"Wie geht\'s, ""Anna""? 你好吗 🙂",Gut; danke,x\n2,"two\nlines",ok,\n',
        [[("user", Q), ("assistant", "Gut; danke")], [("user", "two\nlines"), ("assistant", "ok")]],
    ),
    "transcript": (
        "window.txt",
        f"Anna: {Q}\nBot: {A}\n\nAnna: first line\nsecond line\n[12:30] Ben：{Q2}\n---\nSupport: Hello?\nKim: hi\n",
        [
            [("user", Q), ("assistant", A)],
            [("user", "first line\nsecond line"), ("assistant", Q2)],
            [("assistant", "Hello?"), ("user", "hi")],
        ],
    ),
    "chatterbot": (
        "ai.yml",
        'categories:\n- AI\nconversations:\n- - "Wie geht\'s, \\"Anna\\"? 你好吗 🙂"\n  - Yes\n'
        "- - What is: this\n  - 22\n  - 1:30\n  - ok\n",
        [
            [("user", Q), ("assistant", "Yes")],
            [("user", "What is: this"), ("assistant", "22"), ("user", "1:30"), ("assistant", "ok")],
        ],
    ),
    "chitchat": (
        "part.json",
        json.dumps(
            {
                "one": {"messages": [[{"text": Q, "timestamp": "t", "sender": "s1"}, {"text": "hm", "timestamp": "t", "sender": "s1"}],
                                     [{"text": A, "timestamp": "t", "sender": "s2"}]], "ratings": {"x": 1}},
                "two": {"messages": [[{"text": Q2, "timestamp": "t", "sender": "s9"}],
                                     [{"text": "third", "timestamp": "t", "sender": "s8"}],
                                     [{"text": A2, "timestamp": "t", "sender": "s7"}]]},
            }, ensure_ascii=False,
        ),
        [[("user", Q), ("user", "hm"), ("assistant", A)], [("user", Q2), ("assistant", "third"), ("user", A2)]],
    ),
}  # fmt: skip
TEXT = "\n".join(text for _, text, _ in SAMPLES.values())
NOISE = [*TEXT.split("\n"), "{", "[", "]", "}", '{"messages": 3}', "- - x", ",", '"', "null", "a,b", ": ", "\x00"]
NOT_TEXT = [b"\x7fELF\x02\x01\x01\0\0\0" * 40, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 9, "x: 你好\n".encode("gb18030")]


def reader_of(name: str, **changes: object) -> Reader:
    part = kind("readers").load(name).model_validate(changes)
    assert isinstance(part, Reader)
    return part


def written(folder: Path, name: str, content: bytes | None = None) -> Path:
    file, text, _ = SAMPLES.get(name, ("some.txt", TEXT, []))
    path = folder / file
    path.write_bytes(text.encode() if content is None else content)
    return path


def said(items: list[Dialog | Drop]) -> list[list[tuple[str, str]]]:
    return [[(message.role, message.content) for message in item.messages] for item in items if isinstance(item, Dialog)]


def attempted(reader: Reader, path: Path) -> tuple[list[Dialog | Drop], ChattuneError | None]:
    """What the reader gives before it ends or raises an error of ours, and that error."""
    items: list[Dialog | Drop] = []
    try:
        items.extend(reader.read(path))
    except ChattuneError as error:
        return items, error
    return items, None


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("name", SAMPLES)
def test_what_was_written_comes_back(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    items = list(reader_of(name).read(path))
    assert said(items) == SAMPLES[name][2]
    assert all(isinstance(item, Dialog) and item.file == str(path) and item.line >= 1 and item.source for item in items)
    assert [item.line for item in items] == sorted(item.line for item in items)
    assert len({item.id for item in items if isinstance(item, Dialog)}) == len(items)


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("name", SAMPLES)
def test_its_own_format_is_detected(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    assert detect(path).name == name, scores(path)
    zipped = path.with_name(path.name + ".gz")
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert detect(zipped).name == name


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("disguise", ["bom", "crlf", "gzip", "all", "utf-16", "gb18030"])
def test_bytes_around_the_text_change_nothing(name: str, disguise: str, tmp_path: Path) -> None:
    text = SAMPLES[name][1]
    encoding = disguise if disguise in ("utf-16", "gb18030") else "utf-8"
    content = (text.replace("\n", "\r\n") if disguise in ("crlf", "all") else text).encode(encoding)
    content = b"\xef\xbb\xbf" + content if disguise in ("bom", "all") else content
    content = gzip.compress(content) if disguise in ("gzip", "all") else content
    reader = reader_of(name, encoding=encoding)
    plain = list(reader_of(name).read(written(tmp_path, name)))
    assert list(reader.read(written(tmp_path, name, content))) == plain
    assert detect(written(tmp_path, name, content), encoding).name == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("disguise", ["plain", "gzip"])
def test_a_file_that_breaks_off_anywhere_is_told_and_what_stands_before_is_kept(name: str, disguise: str, tmp_path: Path) -> None:
    whole = written(tmp_path, name).read_bytes()
    expected = said(list(reader_of(name).read(written(tmp_path, name))))
    for cut in range(0, len(whole), 3):
        path = written(tmp_path, name, gzip.compress(whole[:cut]) if disguise == "gzip" else whole[:cut])
        items, error = attempted(reader_of(name), path)
        if error is not None:
            assert isinstance(error, DataError) and str(path) in str(error.path) and error.hint
            continue
        assert all(isinstance(item, (Dialog, Drop)) and item.file == str(path) and item.line >= 1 for item in items)
        # Everything but the conversation that was cut stands as it was written.
        assert said(items)[:-1] == expected[: max(0, len(said(items)) - 1)]


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_gzip_file_is_told(name: str, tmp_path: Path) -> None:
    whole = gzip.compress((SAMPLES.get(name, ("", TEXT, []))[1] * 50).encode())
    for damaged in (whole[: len(whole) // 2], whole[:40] + bytes([whole[40] ^ 255]) + whole[41:]):
        path = written(tmp_path, name, damaged)
        with pytest.raises(DataError) as caught:
            list(reader_of(name).read(path))
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", NOT_TEXT, ids=["elf", "png", "gb18030"])
def test_bytes_that_are_no_text_are_refused_with_their_place(name: str, content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, name, content)
    for attempt in (lambda: list(reader_of(name).read(path)), lambda: detect(path)):
        with pytest.raises(DataError) as caught:
            attempt()
        assert str(path) in (caught.value.path or "") and caught.value.hint


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [b"", b"\n\n  \r\n", b"\xef\xbb\xbf"])
def test_an_empty_file_gives_no_conversation(name: str, content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, name, content)
    items, error = attempted(reader_of(name), path)
    assert items == []
    assert error is None or (isinstance(error, DataError) and str(path) in str(error.path))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        list(reader_of(name).read(tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_longer_than_the_limit_is_read(name: str, tmp_path: Path) -> None:
    file, text, _ = SAMPLES.get(name, ("some.txt", TEXT, []))
    path = tmp_path / file
    path.write_text(text.replace("Anna", "A" * 5000), "utf-8")
    items, error = attempted(reader_of(name, record_limit=1024), path)
    if error is not None:
        assert isinstance(error, DataError) and str(path) in str(error.path) and error.hint
        return
    assert any(isinstance(item, Drop) for item in items)
    assert all(len(content) <= 1024 for own in said(items) for _, content in own)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.lists(st.sampled_from(NOISE)))
def test_any_text_gives_dialogs_drops_or_an_error_of_ours(name: str, noise: list[str], tmp_path: Path) -> None:
    path = tmp_path / "noise.txt"
    path.write_text("\n".join(noise), "utf-8")
    items, error = attempted(reader_of(name), path)
    assert error is None or str(path) in str(error.path)
    for item in items:
        assert 1 <= item.line <= len(noise) + 1
        assert isinstance(item, Dialog) or (item.reason.isidentifier() and len(item.detail) < 400)
    head = path.read_text("utf-8")
    assert 0.0 <= reader_of(name).score(path, head) <= 1.0


@pytest.mark.parametrize("name", NAMES)
def test_foreign_formats_score_below_the_right_one(name: str, tmp_path: Path) -> None:
    for other, (file, text, _) in SAMPLES.items():
        if other != name:
            path = tmp_path / file
            path.write_text(text, "utf-8")
            assert reader_of(name).score(path, text) < reader_of(other).score(path, text) - 0.05
