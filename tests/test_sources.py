"""Sources: packed files, archives, folders and globs of mixed ones, tables that are not text, and datasets of Hugging Face."""

from __future__ import annotations

import bz2
import datetime
import decimal
import gzip
import hashlib
import importlib.util
import io
import json
import lzma
import sys
import tarfile
import types
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chattune.core.artifact import Home
from chattune.core.config import validate
from chattune.core.errors import ChattuneError, DataError, SettingError
from chattune.core.part import kind
from chattune.core.stage import execute, load_stage, plan
from chattune.dialogs.artifact import Conversations
from chattune.dialogs.detect import detect
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.gathering import Account, Wanted, gathered
from chattune.dialogs.readers.message_table import MessageTable
from chattune.dialogs.readers.prompt_completion import PromptCompletion
from chattune.dialogs.readers.slack import Slack
from chattune.dialogs.readers.transcript import Transcript
from chattune.dialogs.sources import source_files
from chattune.dialogs.stage import CollectConfig

pa = pytest.importorskip("pyarrow", reason="pip install chattune[tables]")
openpyxl = pytest.importorskip("openpyxl", reason="pip install chattune[tables]")
zstandard = pytest.importorskip("zstandard", reason="pip install chattune[tables]")

PAIRS = [("Wie geht's, \"Anna\"?", "Gut; danke"), ("你好吗 🙂", "很好！\nzweite Zeile"), ("a, b\t| c", "=1+1")]
CHATS = [[("user", question), ("assistant", answer)] for question, answer in PAIRS]


def gather(*sources: Path | str, **changes: Any) -> tuple[list[Dialog], list[Drop], Account]:
    """What is collected from `sources`, with the account of it, which adds up."""
    account = Account()
    items = list(gathered(Wanted(tuple(map(str, sources)), **changes), account))
    dialogs = [item for item in items if isinstance(item, Dialog)]
    drops = [item for item in items if isinstance(item, Drop)]
    assert account.read == len(dialogs) + len(drops) and Counter(drop.reason for drop in drops) == account.reasons
    assert sum(source["read"] for source in account.sources) + len(account.left_out) == account.read
    return dialogs, drops, account


def said(dialogs: list[Dialog]) -> list[list[tuple[str, str]]]:
    return [[(message.role, message.content) for message in dialog.messages] for dialog in dialogs]


def refused(*sources: Path | str, **changes: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        gather(*sources, **changes)
    error = caught.value
    assert error.path and error.rule and error.hint and "\n" not in str(error)
    return error


def chat(*pairs: tuple[str, str]) -> bytes:
    """OpenAI rows."""
    rows = ({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs or PAIRS)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)  # type: ignore[no-any-return]


PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


# ------------------------------------------------------------------------------------------------------------------- tables

SEPARATED = {"comma.csv": ",", "semicolon.csv": ";", "tab.tsv": "\t", "bar.csv": "|", "text.txt": ","}


def table(path: Path, names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Path:
    """A table of one of the formats that the name says."""
    if path.name in SEPARATED:
        import csv

        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=SEPARATED[path.name]).writerows([names, *rows])
    elif path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        for row in (names, *rows):
            # "=1+1" is a text, not a formula.
            book.active.append([openpyxl.cell.WriteOnlyCell(book.active, value) for value in row])
        for cells in book.active.iter_rows():
            for cell in cells:
                if isinstance(cell.value, str):
                    cell.data_type = "s"
        book.save(path)
    else:
        made = pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
        if path.suffix == ".parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(made, path)
        elif path.suffix == ".feather":
            import pyarrow.feather

            pyarrow.feather.write_feather(made, path)
        else:
            make = pa.ipc.new_stream if path.name.startswith("stream") else pa.ipc.new_file
            with make(str(path), made.schema) as writer:
                writer.write_table(made)
    return path


TABLES = [*SEPARATED, "book.xlsx", "rows.parquet", "rows.feather", "stream.arrow", "file.arrow"]


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_questions_and_answers_comes_back_whatever_its_format(name: str, tmp_path: Path) -> None:
    path = table(tmp_path / name, ("Id", "Question", "Answer"), [(number, *pair) for number, pair in enumerate(PAIRS, 1)])
    dialogs, drops, account = gather(path)
    assert said(dialogs) == CHATS and not drops and account.sources[0]["format"] == "prompt_completion"
    assert [str(dialog.metadata["Id"]) for dialog in dialogs] == ["1", "2", "3"]
    lines = {"parquet": [1, 2, 3], "arrow": [1, 2, 3], "feather": [1, 2, 3], "xlsx": [2, 3, 4]}.get(name.rpartition(".")[2], [2, 3, 5])
    assert [dialog.line for dialog in dialogs] == lines


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("name", TABLES)
def test_the_columns_of_a_table_of_messages_are_guessed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        (number, who, f"2024-01-02 10:0{place}", text)
        for number, own in enumerate(PAIRS) for place, (who, text) in enumerate(zip(("Anna", "Ben"), own, strict=True))
    ]
    path = table(tmp_path / name, ("Ticket", "Author", "Created At", "Message"), rows)
    dialogs, drops, account = gather(path)
    assert said(dialogs) == CHATS and not drops and account.sources[0]["format"] == "message_table"
    assert "conversation: column 'Ticket'; speaker: column 'Author'; text: column 'Message'; time:" in capsys.readouterr().err


GUESSED = {
    "英": ("对话ID,发送者,角色,时间,内容", ["7,王,客户,2024-01-02 10:00,你好", "7,李,客服,2024-01-02 10:01,您好"]),
    "german": ("Vorgang;Absender;Zeitpunkt;Nachricht", ["7;Anna;02.01.2024 10:00;hallo", "7;Ben;02.01.2024 10:01;guten Tag"]),
    "direction": ("conversation_id,direction,body", ["7,inbound,hi", "7,outbound,hello"]),
    "flag": ("chat,is_agent,text", ["7,false,hi", "7,true,hello"]),
    "role": ("session,role,content", ["7,user,hi", "7,assistant,hello"]),
    "unnamed role": ("thread,x,text", ["7,customer,hi", "7,agent,hello"]),
    "camel": ("conversationId,senderType,messageText,createdAt", ["7,USER,hi,1704103200", "7,AGENT,hello,1704103260"]),
    "no conversation": ("name,message,time", ["Anna,hi,2024-01-02T10:00:00Z", "Ben,hello,2024-01-02T10:01:00Z"]),
}


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("name", GUESSED)
def test_columns_are_guessed_in_several_languages_and_by_what_stands_in_them(name: str, tmp_path: Path) -> None:
    header, rows = GUESSED[name]
    path = tmp_path / "export.csv"
    path.write_text("\n".join([header, *rows, ""]), "utf-8")
    dialogs, drops, account = gather(path)
    assert account.sources[0]["format"] == "message_table" and not drops
    assert [[role for role, _ in own] for own in said(dialogs)] == [["user", "assistant"]]


def test_columns_can_be_named_and_a_wrong_name_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b,c\n1,q,r\n2,s,t\n", "utf-8")
    error = refused(path)
    assert "not recognised" in str(error)
    assert said(gather(path, format=PromptCompletion(prompt="b", completion="C"))[0])[0] == [("user", "q"), ("assistant", "r")]
    assert "a, b, c" in str(refused(path, format=PromptCompletion(prompt="b", completion="d")))
    assert "a, b, c" in str(refused(path, format=MessageTable(speaker="a", text="nowhere")))
    dialogs, _, _ = gather(path, format=MessageTable(speaker="a", text="b"))
    assert said(dialogs) == [[("user", "q"), ("assistant", "s")]]


def test_messages_of_a_table_are_put_in_the_order_of_their_times_and_conversations_need_not_stand_together(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text(
        "chat,sender,time,text\n1,Ben,2024-01-02 10:02,b\n2,Kim,2024-01-02 11:00,c\n1,Anna,2024-01-02 10:01,a?\n"
        "2,Ben,2024-01-02 11:05,d\n1,Anna,2024-01-02 10:03,e\n", "utf-8",
    )  # fmt: skip
    dialogs, _, _ = gather(path)
    assert [[text for _, text in own] for own in said(dialogs)] == [["a?", "b", "e"], ["c", "d"]]
    assert [(dialog.id, dialog.line) for dialog in dialogs] == [("1", 2), ("2", 3)]


def test_cells_keep_what_people_see_and_values_that_json_lacks_become_text(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["Report of chats"])
    book.active.append([])
    book.active.append(["question", "answer", "when", "score", None])
    book.active.append(["q", 42.0, datetime.datetime(2024, 1, 2, 10, 0), 0.5, None])
    book.active.append([None, None, None, None])
    book.active.append(["only a question", None, None, None])
    book.create_sheet("empty")
    book.save(tmp_path / "book.xlsx")
    dialogs, drops, _ = gather(tmp_path / "book.xlsx")
    assert said(dialogs) == [[("user", "q"), ("assistant", "42")]]
    assert dialogs[0].metadata == {"when": "2024-01-02 10:00:00", "score": "0.5"}
    assert dialogs[0].line == 4 and [(drop.line, drop.reason) for drop in drops] == [(6, "no_messages")]
    import pyarrow.parquet

    columns = {
        "prompt": ["q"], "completion": ["a"], "when": [datetime.datetime(2024, 1, 2, 10, 0, 0, 5)], "price": [decimal.Decimal("1.10")],
        "blob": [b"\xff\xfe"], "tags": [["x", None]], "nothing": [None], "nan": [float("nan")],
    }  # fmt: skip
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "odd.parquet")
    dialogs, _, _ = gather(tmp_path / "odd.parquet")
    assert dialogs[0].metadata["when"] == "2024-01-02 10:00:00.000005" and dialogs[0].metadata["price"] == "1.10"
    assert dialogs[0].metadata["blob"] == "<2 bytes>" and dialogs[0].metadata["tags"] == ["x", None]


def test_each_sheet_of_a_workbook_is_a_table(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title = "FAQ"
    second = book.create_sheet("Chats 2024")
    for sheet, rows in ((book.active, [("question", "answer"), PAIRS[0]]), (second, [("prompt", "completion"), PAIRS[1]])):
        for row in rows:
            sheet.append(row)
    book.save(tmp_path / "book.xlsx")
    dialogs, drops, account = gather(tmp_path / "book.xlsx")
    assert said(dialogs) == CHATS[:2] and not drops
    assert [Path(source["file"]).name for source in account.sources] == ["FAQ", "Chats 2024"]
    assert said(gather(tmp_path / "book.xlsx" / "FAQ")[0]) == CHATS[:1]
    packed = zipped(tmp_path / "packed.zip", {"in/book.xlsx": (tmp_path / "book.xlsx").read_bytes()})
    assert "a workbook of 2 sheets, not one" in str(refused(packed)) and "FAQ, Chats 2024" in str(refused(packed))


def test_nested_rows_of_parquet_are_read_like_json(tmp_path: Path) -> None:
    import pyarrow.parquet

    rows = [json.loads(line) for line in chat().decode().splitlines()]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "chat.parquet")
    dialogs, drops, account = gather(tmp_path / "chat.parquet")
    assert said(dialogs) == CHATS and not drops and account.sources[0]["format"] == "openai_messages"


@pytest.mark.parametrize("package", ["pyarrow", "openpyxl", "zstandard"])
def test_a_package_that_is_missing_is_told_with_the_command_that_installs_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package == "zstandard":
        path = tmp_path / "chat.jsonl.zst"
        path.write_bytes(zstd(chat()))
    else:
        path = table(tmp_path / ("rows.parquet" if package == "pyarrow" else "book.xlsx"), ("question", "answer"), list(PAIRS))
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.parquet", None)
    with pytest.raises(ChattuneError, match=f"pip install {package}"):
        gather(path)


# ------------------------------------------------------------------------------------------------------- packed files, archives


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("name", ["chat.jsonl", "faq.csv", "book.xlsx", "rows.parquet", "stream.arrow"])
def test_packed_files_are_read_like_plain_ones(ending: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "chat.jsonl":
        path.write_bytes(chat())
    elif name == "faq.csv":
        path.write_text("question,answer\nq,a\nq2,a2\n", "utf-8")
    else:
        table(path, ("question", "answer"), list(PAIRS))
    plain, _, _ = gather(path)
    packed = tmp_path / f"{name}{ending}"
    packed.write_bytes(PACKERS[ending](path.read_bytes()))
    dialogs, drops, _ = gather(packed)
    assert said(dialogs) == said(plain) != [] and [dialog.line for dialog in dialogs] == [dialog.line for dialog in plain] and not drops
    # Two streams, one behind the other, are one file.
    if name == "chat.jsonl":
        packed.write_bytes(PACKERS[ending](chat(PAIRS[0])) + PACKERS[ending](chat(PAIRS[1])))
        assert said(gather(packed)[0]) == CHATS[:2]


ARCHIVES: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "a.zip": zipped, "stored.zip": lambda path, files: zipped(path, files, zipfile.ZIP_STORED),
    "bz2.zip": lambda path, files: zipped(path, files, zipfile.ZIP_BZIP2), "a.tar": tarred,
    "a.tar.gz": lambda path, files: tarred(path, files, "w:gz"), "a.tgz": lambda path, files: tarred(path, files, "w:gz"),
    "a.tar.bz2": lambda path, files: tarred(path, files, "w:bz2"), "a.txz": lambda path, files: tarred(path, files, "w:xz"),
}  # fmt: skip


def mixed(folder: Path) -> dict[str, bytes]:
    """Files of many formats with one conversation each, by name, and some that hold none."""
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"prompt": ["parquet?"], "completion": ["yes"]}), folder / "made.parquet")
    parquet = (folder / "made.parquet").read_bytes()
    (folder / "made.parquet").unlink()
    return {
        "a.jsonl": chat(("jsonl?", "yes")), "b/faq.csv": b"question,answer\ncsv?,yes\n", "b/c/window.txt": b"Anna: text?\nBot: yes\n",
        "b/c/ai.yml": b"conversations:\n- - yaml?\n  - yes\n", "packed.jsonl.gz": gzip.compress(chat(("gz?", "yes"))),
        "rows.parquet": parquet,
        "share.json": b'[{"conversations": [{"from": "human", "value": "json?"}, {"from": "gpt", "value": "yes"}]}]',
        "tabs.tsv": "问题\t回答\ntsv?\tyes\n".encode(), "notes.txt": b"nothing that anybody said\n", "empty.jsonl": b"",
        "picture.png": b"\x89PNG\r\n\x1a\n", "code.py": b"print()\n", ".hidden.jsonl": b"{", "__MACOSX/a.jsonl": b"{",
    }  # fmt: skip


ASKED = {"jsonl?", "csv?", "text?", "yaml?", "gz?", "parquet?", "json?", "tsv?"}


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("name", ["folder", "glob", *ARCHIVES])
def test_a_folder_a_glob_and_an_archive_of_mixed_files_give_every_conversation_and_tell_the_rest(name: str, tmp_path: Path) -> None:
    files = mixed(tmp_path)
    source: Path | str = tmp_path / name
    if name in ARCHIVES:
        ARCHIVES[name](tmp_path / name, {f"top/{file}": content for file, content in files.items()})
    else:
        for file, content in files.items():
            path = tmp_path / "folder" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        source = f"{tmp_path}/folder/**/*" if name == "glob" else source
    dialogs, drops, account = gather(source)
    assert {dialog.messages[0].content for dialog in dialogs} == ASKED
    reasons = Counter(drop.reason for drop in drops)
    told = {Path(drop.file).name: drop.reason for drop in drops}
    assert told["notes.txt"] == "unrecognised" and told["empty.jsonl"] == "empty_file"
    if name == "glob":  # every file that a glob fits was asked for
        assert reasons == {"unrecognised": 3, "empty_file": 1, "binary": 1} and told["picture.png"] == "binary"
    else:
        (others,) = (drop for drop in drops if drop.reason == "other_endings")
        assert "2 files of other endings" in others.detail and ".png 1" in others.detail
        assert reasons == {"unrecognised": 1, "empty_file": 1, "other_endings": 1}
    assert {source["format"] for source in account.sources} == {
        "openai_messages", "prompt_completion", "transcript", "chatterbot", "sharegpt"
    }
    if name in ARCHIVES:
        inner = tmp_path / name / "top" / "b"
        assert {dialog.messages[0].content for dialog in gather(inner)[0]} == {"csv?", "text?", "yaml?"}
        assert said(gather(inner / "faq.csv")[0]) == [[("user", "csv?"), ("assistant", "yes")]]
        assert f"{tmp_path / name}/top/a.jsonl" in {dialog.file for dialog in dialogs}
        assert "does not exist in" in str(refused(tmp_path / name / "top" / "b" / "nothing.csv"))


def test_one_file_that_two_sources_mean_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "chat.jsonl").write_bytes(chat())
    (tmp_path / "in" / "link.jsonl").symlink_to(tmp_path / "in" / "chat.jsonl")
    dialogs, drops, _ = gather(tmp_path / "in", tmp_path / "in" / "*.jsonl", tmp_path / "in" / "chat.jsonl")
    assert said(dialogs) == CHATS and not drops


def test_an_archive_of_one_file_is_that_file_whatever_its_ending(tmp_path: Path) -> None:
    path = zipped(tmp_path / "chat.json.zip", {"data": chat()})
    assert said(gather(path)[0]) == CHATS
    assert detect(path).name == "openai_messages"


def test_a_slack_export_is_one_source_in_a_folder_and_in_an_archive(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "export"
    days = {"2024-01-01": ("how?", "1704103200.000100", "U1"), "2024-01-02": ("so", "1704189600.000100", "U2")}
    for name, rows in {
        "users.json": [{"id": "U1", "name": "ann"}, {"id": "U2", "name": "bob"}], "channels.json": [],
        **{f"general/{day}.json": [{"type": "message", "user": user, "text": text, "ts": ts, "thread_ts": "1704103200.000100"}]
           for day, (text, ts, user) in days.items()},
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(rows), "utf-8")
    (tmp_path / "in" / "chat.jsonl").write_bytes(chat())
    inside = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.json")}
    packed = zipped(tmp_path / "export.zip", inside)
    thread = [("user", "how?"), ("assistant", "so")]
    assert said(gather(folder)[0]) == said(gather(packed)[0]) == [thread]
    dialogs, drops, account = gather(tmp_path / "in")
    assert said(dialogs) == [*CHATS, thread] and not drops and account.sources[1]["format"] == "slack"
    assert dialogs[-1].metadata["speakers"] == {"ann": "user", "bob": "assistant"}
    assert said(gather(folder, format=Slack(bots="assistant"))[0]) == [thread]
    assert "export of slack" in str(refused(folder, format=Transcript()))
    first = {file.shown: file.digest() for file in source_files([str(folder)])}
    (folder / "general" / "2024-01-02.json").write_text("[]")
    assert {file.shown: file.digest() for file in source_files([str(folder)])} != first


# ----------------------------------------------------------------------------------------------------------- Hugging Face


def saved_dataset(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    """A folder as `datasets` writes it by ``save_to_disk``."""
    folder.mkdir(parents=True)
    table(folder / "stream.arrow", ("prompt", "completion"), list(pairs)).rename(folder / "data-00000-of-00001.arrow")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.mark.requirement("R001")
def test_a_dataset_saved_to_disk_is_read_with_its_splits(tmp_path: Path) -> None:
    both = tmp_path / "both"
    saved_dataset(both / "train", PAIRS[:2])
    saved_dataset(both / "test", PAIRS[2:])
    (both / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert said(gather(both)[0]) == said(gather(f"hf:{both}")[0]) == CHATS
    assert said(gather(f"hf:{both}?split=test")[0]) == CHATS[2:]
    assert said(gather(f"hf:{both / 'train'}")[0]) == CHATS[:2]
    error = refused(f"hf:{both}?split=tset")
    assert "test" in str(error.hint) and "one of train, test" in str(error.rule)
    assert "only split, config, revision" in str(refused(f"hf:{both}?spilt=test").rule)
    assert "names no dataset" in str(refused("hf:"))


def test_a_local_copy_of_a_repository_is_read_by_split_and_config_and_its_links_to_the_cache_are_followed(tmp_path: Path) -> None:
    cache = tmp_path / "datasets--me--chats"
    home, blobs = cache / "snapshots" / "abc", cache / "blobs"
    (home / "en").mkdir(parents=True)
    blobs.mkdir()
    for name, own in (("train-00000.jsonl", PAIRS[0]), ("test-00000.jsonl", PAIRS[1])):
        (blobs / name.encode().hex()).write_bytes(chat(own))
        (home / "en" / name).symlink_to(Path("../../../blobs") / name.encode().hex())
    assert sorted(said(gather(home)[0])) == sorted(CHATS[:2])
    assert said(gather(f"hf:{home}?config=en&split=test")[0]) == CHATS[1:2]
    (home / ".cache").mkdir()
    (home / ".cache" / "test-00000.jsonl.metadata").write_text("x")
    (home / "test_results.png").write_bytes(b"\x89PNG")
    (tmp_path / "secret.jsonl").write_bytes(chat(PAIRS[2]))
    (home / "test-secret.jsonl").symlink_to(tmp_path / "secret.jsonl")
    dialogs, drops, _ = gather(f"hf:{home}?split=test")
    assert said(dialogs) == CHATS[1:2] and {drop.reason for drop in drops} == {"link_outside", "other_endings"}
    assert "no folder 'fr'" in str(refused(f"hf:{home}?config=fr"))
    assert "no file of a split" in str(refused(f"hf:{home}?split=validation"))


class _Table:
    """What `load_dataset` gives for one split."""

    def __init__(self, path: Path, split: str) -> None:
        self.cache_files, self.split = [{"filename": str(path)}], split


def fake_datasets(monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any], version: str = "5.2.0") -> None:
    module = types.ModuleType("datasets")
    module.__version__ = version  # type: ignore[attr-defined]
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


@pytest.mark.requirement("R001")
def test_a_dataset_is_loaded_by_its_name_and_nothing_of_its_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ("prompt", "completion")
    paths = {name: table(tmp_path / f"stream-{name}.arrow", columns, [own]) for name, own in zip("ab", PAIRS, strict=False)}
    calls = []

    def load(name: str, config: str | None, **choices: Any) -> Any:
        assert set(choices) == {"split", "revision"}, "neither trust_remote_code nor files of the machine's own are passed on"
        calls.append((name, config, choices["split"], choices["revision"]))
        return {split: _Table(path, split) for split, path in paths.items()} if choices["split"] is None else _Table(paths["b"], "b")

    fake_datasets(monkeypatch, load)
    dialogs, _, _ = gather("hf:me/chats?config=en&revision=main")
    assert said(dialogs) == CHATS[:2]
    assert [dialog.file for dialog in dialogs] == ["hf:me/chats?split=a&config=en", "hf:me/chats?split=b&config=en"]
    assert said(gather("hf:me/chats?split=b")[0]) == CHATS[1:2]
    assert calls == [("me/chats", "en", None, "main"), ("me/chats", None, "b", None)]
    fake_datasets(monkeypatch, load, "3.6.0")
    with pytest.raises(ChattuneError, match="may run code"):
        gather("hf:me/chats")


def test_without_network_or_package_a_dataset_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach 'me/chats' on the Hub\n(LocalEntryNotFoundError)")

    fake_datasets(monkeypatch, load)
    error = refused("hf:me/chats")
    assert "cannot be loaded: ConnectionError: Couldn't reach" in str(error) and "network" in str(error.hint)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ChattuneError, match="pip install datasets"):
        gather("hf:me/chats")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="pip install chattune[hub]")
def test_the_real_package_gives_its_cached_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    made = datasets.Dataset.from_dict({"prompt": [q for q, _ in PAIRS], "completion": [a for _, a in PAIRS]})
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(tmp_path / "two")
    assert said(gather(f"hf:{tmp_path / 'one'}")[0]) == CHATS
    assert said(gather(f"hf:{tmp_path / 'two'}?split=test")[0]) == CHATS[:1]
    assert "cannot be loaded" in str(refused("hf:nobody/nothing-of-this-name"))


# ------------------------------------------------------------------------------------------------------- preference and labels

DPO = {
    "texts": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "messages": {"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "good"}],
                 "rejected": [{"role": "assistant", "content": "bad"}]},
    "whole": {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
              "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}]},
    "openai": {"input": {"messages": [{"role": "user", "content": "q"}]},
               "preferred_output": [{"role": "assistant", "content": "good"}],
               "non_preferred_output": [{"role": "assistant", "content": "bad"}]},
    "llama_factory": {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "good"},
                      "rejected": {"from": "gpt", "value": "bad"}},
    "alpaca": {"instruction": "q", "input": "", "output": ["good", "bad"]},
    "saferlhf": {"prompt": "q", "response_0": "bad", "response_1": "good", "better_response_id": 1},
    "stack_exchange": {"question": "q", "response_j": "good", "response_k": "bad"},
    "anthropic": {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
}  # fmt: skip


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("name", DPO)
@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_preference_pairs_in_the_shapes_of_the_usual_sets(name: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"pairs{ending}"
    if ending == ".jsonl":
        path.write_text(json.dumps(DPO[name]) + "\n", "utf-8")
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist([DPO[name]]), path)
    dialogs, drops, account = gather(path)
    assert said(dialogs) == [[("user", "q"), ("assistant", "good")]] and dialogs[0].metadata["rejected"] == "bad" and not drops
    assert account.sources[0]["format"] == "preference"


def test_a_rejected_conversation_that_differs_before_its_end_is_kept_whole(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    row = {"chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: good",
           "rejected": "\n\nHuman: q\n\nAssistant: b\n\nHuman: s\n\nAssistant: bad"}  # fmt: skip
    path.write_text(json.dumps(row) + "\n", "utf-8")
    (dialog,), _, _ = gather(path)
    assert [message["content"] for message in dialog.metadata["rejected"]] == ["q", "b", "s", "bad"]


KTO = {
    "trl": {"prompt": "q", "completion": "a"},
    "messages": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    "lists": {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
}  # fmt: skip


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("name", KTO)
@pytest.mark.parametrize(("label", "weight"), [(True, None), (False, 0.0)])
@pytest.mark.parametrize("key", ["label", "kto_tag"])
def test_a_reply_with_a_bad_label_is_context_and_never_learned(
    name: str, label: bool, weight: float | None, key: str, tmp_path: Path
) -> None:
    path = tmp_path / "judged.jsonl"
    path.write_text(json.dumps({**KTO[name], key: label}) + "\n", "utf-8")
    (dialog,), drops, account = gather(path)
    assert said([dialog]) == [[("user", "q"), ("assistant", "a")]] and not drops
    assert dialog.messages[1].weight == weight and dialog.messages[0].weight is None and dialog.metadata["label"] is label
    assert account.sources[0]["format"] == "kto"


# ------------------------------------------------------------------------------------------------------------- the stage's run


def test_a_file_in_an_archive_is_part_of_the_runs_address_and_the_sources_stay_as_they_are(tmp_path: Path) -> None:
    path = zipped(tmp_path / "in.zip", {"a.jsonl": chat(), "b.csv": b"question,answer\nx,y\n"})
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    home, stage = Home(tmp_path / "runs"), load_stage("collect")
    run = plan(stage, {"collect": CollectConfig(sources=(str(path),))}, {}, home)
    made = execute(run)
    assert isinstance(made, Conversations) and made.summary["counts"]["kept"] == 4
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    zipped(path, {"a.jsonl": chat(), "b.csv": b"question,answer\nx,z\n"})
    assert plan(stage, {"collect": CollectConfig(sources=(str(path),))}, {}, home) != run


CONTRADICTIONS = [
    ({"encoding": "latin-1", "format": {"name": "transcript", "encoding": "gb18030"}}, "collect.encoding says latin-1"),
    ({"format": {"name": "prompt_completion", "prompt": "q", "completion": "Q"}}, "should be two columns"),
    ({"format": {"name": "message_table", "speaker": "x", "text": "x"}}, "text and speaker are the same column, 'x'"),
    ({"format": {"name": "transcript", "assistant": ["Ann"], "user": ["ann"]}}, "named as user and as assistant"),
]


@pytest.mark.parametrize(("settings", "message"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        validate(CollectConfig, {"sources": ["x"], **settings}, prefix="collect")


def test_a_name_that_is_set_stands_over_a_default(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("bot: hi\nme: hello\n", "utf-8")
    turned = Transcript(assistant=("me",), user=("bot",))
    assert said(gather(tmp_path / "t.txt", format=turned)[0]) == [[("user", "hi"), ("assistant", "hello")]]
    assert said(gather(tmp_path / "t.txt", format=Transcript(user=("bot",)))[0]) == [[("user", "hi"), ("assistant", "hello")]]
    assert Transcript.model_validate(turned.model_dump(mode="json")) == turned


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("whatsapp", "WhatsApp Chat.txt", "[01.02.24, 10:00:00] {0}: hi\n[01.02.24, 10:00:10] {1}: hello\n" * 3),
        ("message_table", "t.csv", "conversation_id,sender,text\n1,{0},hi\n1,{1},hello\n2,{0},hi you\n2,{1},hello again\n"),
        ("irc", "t.log", "[10:00:00] <{0}> hi\n[10:00:10] <{1}> hello\n" * 3),
    ],
)
@pytest.mark.parametrize("asked", [{"assistant": ("ME",)}, {"user": ("Bot",)}, {"assistant": ("me",), "user": ("bot",)}])
def test_a_name_that_is_set_stands_over_a_default_in_every_log(
    name: str, file: str, text: str, asked: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    (tmp_path / file).write_text(text.format("Bot", "Me"), "utf-8")
    reader = kind("readers").load(name)
    usual, turned = (said(gather(tmp_path / file, format=reader(**some))[0])[0][:2] for some in ({}, asked))
    assert turned == [("user", "hi"), ("assistant", "hello")]
    assert usual[0] == ("assistant", "hi")


def test_a_name_that_is_set_stands_over_what_a_column_of_roles_usually_says(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("conversation_id,role,text\n1,Bot,hi\n1,Human,hello\n2,Bot,hi you\n2,Human,hello again\n", "utf-8")
    turned = MessageTable(assistant=("human",), user=("bot",))
    assert said(gather(tmp_path / "t.csv", format=turned)[0])[0] == [("user", "hi"), ("assistant", "hello")]
    assert said(gather(tmp_path / "t.csv", format=MessageTable())[0])[0][0] == ("assistant", "hi")


@pytest.mark.parametrize("name", ["whatsapp", "message_table", "tickets", "mbox", "forum_html"])
def test_one_name_set_for_two_roles_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match="'kim' is named as user and as assistant"):
        validate(CollectConfig, {"sources": ["x"], "format": {"name": name, "assistant": ["Kim"], "user": ["kim"]}}, prefix="collect")


