"""Conversations written by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from chattune.cli import main
from chattune.dialogs.dialog import Dialog
from chattune.dialogs.gathering import Wanted, read_sources


def typed(content: bytes, encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding, errors="surrogateescape")


@pytest.mark.requirement("R021")
def test_conversations_typed_turn_by_turn_are_what_collect_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.jsonl"
    monkeypatch.setattr("sys.stdin", typed("Hello?\nHi, how can I help?\n你好\n您好！\n\nalone\n\nAgain\nYes 🙂\n".encode()))
    assert main(["data", "new", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(path), "conversations": 2}
    monkeypatch.setattr("sys.stdin", typed(b"More\nCertainly\n\n\nnever read\n"))
    assert main(["data", "new", str(path)]) == 0
    found = [item for item in read_sources(Wanted([str(path)])) if isinstance(item, Dialog)]
    assert [[message.content for message in dialog.messages] for dialog in found] == [
        ["Hello?", "Hi, how can I help?", "你好", "您好！"], ["Again", "Yes 🙂"], ["More", "Certainly"],
    ]  # fmt: skip


def test_what_is_no_file_of_conversations_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    monkeypatch.setattr("sys.stdin", typed(b"a\nb\n"))
    assert main(["data", "new", str(path)]) == 1
    assert "notes.txt:1: is no file of conversations." in capsys.readouterr().err
    assert path.read_text() == "my notes\n"
    assert main(["data", "new", str(tmp_path / "no" / "x.jsonl")]) == 1


def test_bytes_that_are_no_utf8_are_told_in_the_file_and_in_what_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new.jsonl"
    monkeypatch.setattr("sys.stdin", typed("Grüße?\nHi!\n\nWas f".encode() + b"\xfcr\nJa\n", "ascii"))
    assert main(["data", "new", str(path)]) == 1
    assert "stdin: holds a byte that is not utf-8: 0xfc." in capsys.readouterr().err
    assert json.loads(path.read_text("utf-8"))["messages"][0]["content"] == "Grüße?"
    path.write_bytes(b"\xff\xfe\x00")
    monkeypatch.setattr("sys.stdin", typed(b"a\nb\n"))
    assert main(["data", "new", str(path)]) == 1
    err = capsys.readouterr().err
    assert err.endswith("new.jsonl: is not text in utf-8. Give a new file.\n") and err.count("\n") == 1
    assert path.read_bytes() == b"\xff\xfe\x00"
