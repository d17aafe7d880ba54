"""Bad input: bombs, links, endless tables, broken bytes and broken JSON give an error or a counted drop with its place, never more.

Every case checks the same four things: what is good is kept, what is not has file, line and reason, memory stays bounded, and the files
are afterwards what they were.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import json
import lzma
import os
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chattune.core.errors import DataError
from chattune.dialogs import compressed
from chattune.dialogs.artifact import Conversations
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.gathering import Account, Wanted, gathered
from chattune.dialogs.readers.chatterbot import Chatterbot
from chattune.dialogs.readers.openai_messages import OpenAIMessages
from chattune.dialogs.readers.prompt_completion import PromptCompletion
from chattune.dialogs.stage import CollectConfig, collect

FULL = os.environ.get("FULL") == "1"
MEMORY = 160 * 2**20  # bytes of Python's own that reading anything may take: a few times the longest record
pytestmark = [pytest.mark.requirement("R001")]


def row(number: int, **more: Any) -> str:
    messages = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"answer {number}"}]
    return json.dumps({"messages": messages, **more})


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    """Every plain file below `folder` with the digest of its bytes and its time."""
    files = (path for path in sorted(folder.rglob("*")) if stat.S_ISREG(path.lstat().st_mode))
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def gather(folder: Path, source: Path | str, **changes: Any) -> tuple[list[Dialog], list[Drop], DataError | None]:
    """What is collected before it ends or an error is raised; bounded memory and untouched files are checked here."""
    before = fingerprint(folder)
    account, items, error = Account(), list[Dialog | Drop](), None
    with measured():
        try:
            for item in gathered(Wanted((str(source),), **changes), account):
                items.append(item)
        except DataError as raised:
            error = raised
    if error is not None:
        assert error.path and error.rule and error.hint and "\n" not in str(error)
    assert fingerprint(folder) == before
    dialogs, drops = [i for i in items if isinstance(i, Dialog)], [i for i in items if isinstance(i, Drop)]
    assert account.read == len(items) and account.reasons == Counter(drop.reason for drop in drops)
    assert all(drop.file and drop.line >= 1 and drop.reason.isidentifier() and drop.detail for drop in drops)
    return dialogs, drops, error


@contextlib.contextmanager
def measured() -> Iterator[None]:
    """Python's own memory, which stays below `MEMORY`."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY, f"{peak / 2**20:.0f} MiB"


def kept(dialogs: list[Dialog]) -> list[int]:
    """The numbers of the rows that are kept, each as it was written."""
    numbers = [int(dialog.messages[0].content.rpartition(" ")[2]) for dialog in dialogs]
    assert [dialog.messages[1].content for dialog in dialogs] == [f"answer {number}" for number in numbers]
    return numbers


# -------------------------------------------------------------------------------------------------------------------- bombs


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit far below the real one, so that a bomb need not be large: a quarter of a MiB is free, above that 200 to 1."""
    monkeypatch.setattr(compressed, "FREE", 2**18)
    compressed._index.cache_clear()


ZEROS = b"\0" * (8 * 2**20)
BLANKS = b" " * (8 * 2**20)
LINES = (row(1, topic="x" * 40_000) + "\n").encode() * 150


def zstd(content: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard", reason="pip install chattune[tables]")
    return zstandard.ZstdCompressor().compress(content)  # type: ignore[no-any-return]


PACKERS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("content", [BLANKS, LINES], ids=["blanks", "rows"])
def test_a_packed_bomb_is_refused_on_the_way_and_beside_others_left_out(ending: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"chat.jsonl.{ending}"
    path.write_bytes(PACKERS[ending](content))
    assert path.stat().st_size * 200 < len(content)
    dialogs, _, error = gather(tmp_path, path, format=OpenAIMessages())
    assert error is not None and "unpacks to more than" in str(error) and error.rule and "200 bytes" in error.rule
    assert len(dialogs) <= 1  # the row that all repeat
    (tmp_path / "good.jsonl").write_text(row(7))
    dialogs, drops, error = gather(tmp_path, tmp_path, format=OpenAIMessages())
    assert error is None and 7 in kept(dialogs)
    assert {drop.reason for drop in drops} - {"duplicate"} == {"bomb"}


@pytest.mark.usefixtures("small_limits")
def test_archives_that_unpack_to_far_more_than_they_are_worth_are_refused_by_what_they_claim(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("chat.jsonl", ZEROS)
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(30):
            archive.writestr(f"{number}.jsonl", ZEROS[: 2**17])
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo("chat.jsonl")
        entry.size = len(ZEROS)
        tar.addfile(entry, io.BytesIO(ZEROS))
    for name in ("one.zip", "many.zip", "a.tar.gz"):
        dialogs, _, error = gather(tmp_path, tmp_path / name)
        assert not dialogs and error is not None and "unpacks to more than" in str(error), name
    (tmp_path / "good.jsonl").write_text(row(7))
    dialogs, drops, error = gather(tmp_path, tmp_path)
    assert error is None and kept(dialogs) == [7] and Counter(drop.reason for drop in drops) == {"bomb": 3}


@pytest.mark.usefixtures("small_limits")
def test_an_entry_that_lies_about_its_size_gives_no_more_than_it_claims(tmp_path: Path) -> None:
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packed.compress(ZEROS) + packed.flush()
    name = b"chat.jsonl"
    sizes = struct.pack("<III", zlib.crc32(ZEROS), len(data), 1000)  # it claims a thousand bytes
    local = b"PK\x03\x04" + struct.pack("<HHHHH", 20, 0, 8, 0, 0) + sizes + struct.pack("<HH", len(name), 0) + name
    central = (
        b"PK\x01\x02" + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 0) + sizes
        + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    )  # fmt: skip
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(data), 0)
    (tmp_path / "lie.zip").write_bytes(local + data + central + end)
    dialogs, _, error = gather(tmp_path, tmp_path / "lie.zip")
    assert not dialogs and error is not None and "damaged zip" in str(error)


def test_entries_that_lie_over_each_other_are_refused_by_what_they_claim_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed, "FREE", 2**20)
    content = (row(1) + "\n").encode() * 2000
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packed.compress(content) + packed.flush()
    sizes = struct.pack("<III", zlib.crc32(content), len(data), len(content))
    local = b"PK\x03\x04" + struct.pack("<HHHHH", 20, 0, 8, 0, 0) + sizes + struct.pack("<HH", 1, 0) + b"0"
    entries = b"".join(
        b"PK\x01\x02" + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 0) + sizes + struct.pack("<HHHHHII", 6, 0, 0, 0, 0, 0, 0)
        + f"{number:06}".encode() for number in range(500)
    )  # fmt: skip
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 500, 500, len(entries), len(local) + len(data), 0)
    (tmp_path / "over.zip").write_bytes(local + data + entries + end)
    _, _, error = gather(tmp_path, tmp_path / "over.zip")
    assert error is not None and "unpacks to more than" in str(error)


def test_archives_in_archives_are_not_opened_and_packed_files_in_them_are(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("chat.jsonl", row(1))
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("inner.zip", inner.getvalue())
        archive.writestr("packed.jsonl.gz", gzip.compress(row(2).encode()))
        archive.writestr("chat.jsonl", row(3))
    dialogs, drops, error = gather(tmp_path, tmp_path / "outer.zip")
    assert error is None and sorted(kept(dialogs)) == [2, 3] and [drop.reason for drop in drops] == ["nested_archive"]


def test_a_workbook_with_an_endless_part_or_entities_that_grow_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="pip install chattune[tables]")
    from chattune.dialogs import column_files

    book = openpyxl.Workbook()
    for cells in (("question", "answer"), ("question 1", "answer 1")):
        book.active.append(cells)
    book.save(tmp_path / "good.xlsx")

    def rewritten(name: str, part: str, content: bytes) -> Path:
        with zipfile.ZipFile(tmp_path / "good.xlsx") as old, zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                new.writestr(entry.filename, content if entry.filename == part else old.read(entry.filename))
        return tmp_path / name

    with zipfile.ZipFile(tmp_path / "good.xlsx") as archive:
        sheet = archive.read("xl/worksheets/sheet1.xml").decode()
    begin = sheet.index("<worksheet")
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    grown = f'{sheet[:begin]}<!DOCTYPE worksheet [<!ENTITY l0 "ha">{laughs}]>{sheet[begin:].replace("question 1", "&l9;")}'
    assert kept(gather(tmp_path, tmp_path / "good.xlsx")[0]) == [1] and grown.count("&l9;") == 1
    dialogs, _, error = gather(tmp_path, rewritten("laughs.xlsx", "xl/worksheets/sheet1.xml", grown.encode()))
    # Refused, or left unread, by the parser that is installed; never put in for what it stands for.
    assert error is not None or all(len(message.content) < 100 for dialog in dialogs for message in dialog.messages)
    monkeypatch.setattr(column_files, "_WHOLE", {"": 2**20})
    _, _, error = gather(tmp_path, rewritten("large.xlsx", "xl/styles.xml", b" " * 2**22))
    assert error is not None and "has a part xl/styles.xml" in str(error)


def test_aliases_of_yaml_that_grow_stay_as_small_as_they_are_written(tmp_path: Path) -> None:
    bomb = "conversations:\n- &a [q, a]\n" + "".join(
        f"- &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(12)
    ) + "- - question 1\n  - answer 1\n"  # fmt: skip
    (tmp_path / "ai.yml").write_text(bomb)
    dialogs, drops, error = gather(tmp_path, tmp_path / "ai.yml")
    assert error is None and len(dialogs) == 2 and Counter(drop.reason for drop in drops) == {"wrong_type": 12}
    (tmp_path / "deep.yml").write_text("conversations: " + "[" * 100_000)
    assert gather(tmp_path, tmp_path / "deep.yml", format=Chatterbot())[2] is not None


@pytest.mark.skipif(not FULL, reason="unpacks gigabytes: FULL=1")
@pytest.mark.parametrize("ending", PACKERS)
def test_bombs_of_two_gigabytes_are_refused_by_the_real_limits(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"chat.jsonl.{ending}"
    path.write_bytes(PACKERS[ending](BLANKS) * (2**31 // len(BLANKS) + 1))  # streams one behind the other
    _, _, error = gather(tmp_path, path, format=OpenAIMessages())
    assert error is not None and "unpacks to more than" in str(error)


# -------------------------------------------------------------------------------------------------------- links and names


def test_links_out_of_a_folder_are_not_followed_and_told(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "in"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "secret.jsonl").write_text(row(99))
    folder.mkdir()
    (folder / "good.jsonl").write_text(row(1))
    (folder / "other.jsonl").symlink_to(folder / "good.jsonl")  # leads to a file of the folder
    (folder / "file.jsonl").symlink_to(outside / "deep" / "secret.jsonl")
    (folder / "chain.jsonl").symlink_to(folder / "file.jsonl")
    (folder / "deep").symlink_to(outside / "deep")
    (folder / "loop").symlink_to(folder)
    (folder / "broken.jsonl").symlink_to(folder / "nowhere.jsonl")
    (folder / "itself.jsonl").symlink_to(folder / "itself.jsonl")
    os.mkfifo(folder / "pipe.jsonl")  # opening it would wait for ever
    dialogs, drops, error = gather(tmp_path, folder)
    assert error is None and kept(dialogs) == [1]
    assert {Path(drop.file).name: drop.reason for drop in drops} == {
        "file.jsonl": "link_outside", "chain.jsonl": "link_outside", "deep": "link", "loop": "link", "broken.jsonl": "not_a_file",
        "itself.jsonl": "not_a_file", "pipe.jsonl": "not_a_file",
    }  # fmt: skip
    for pattern in ("*.jsonl", "**/*.jsonl", "*/*.jsonl", "d*/secret.jsonl"):
        dialogs, drops, error = gather(tmp_path, f"{folder}/{pattern}")
        assert 99 not in kept(dialogs) and ("link_outside" in {drop.reason for drop in drops} or error is not None), pattern
    # What is named itself is what the user points at.
    assert kept(gather(tmp_path, folder / "file.jsonl")[0]) == [99]


def test_names_in_archives_lead_nowhere_and_links_and_devices_in_them_are_told(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text(row(99))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, name in enumerate(("../up.jsonl", "/abs.jsonl", "C:\\win.jsonl", "a/../../b.jsonl", "new\nline.jsonl"), 1):
            entry = tarfile.TarInfo(name)
            entry.size = len(row(number))
            archive.addfile(entry, io.BytesIO(row(number).encode()))
        for name, kind, target in (("link.jsonl", tarfile.SYMTYPE, str(secret)), ("hard.jsonl", tarfile.LNKTYPE, "/etc/passwd"),
                                   ("device.jsonl", tarfile.CHRTYPE, ""), ("pipe.jsonl", tarfile.FIFOTYPE, "")):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for number, name in enumerate(("../up.jsonl", "/abs.jsonl", "C:\\win.jsonl", "a/../../b.jsonl"), 1):
            packed.writestr(name, row(number))
        link = zipfile.ZipInfo("link.jsonl")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, str(secret))
    dialogs, drops, error = gather(tmp_path, tmp_path / "a.tar")
    assert error is None and sorted(kept(dialogs)) == [1, 2, 3, 4, 5]
    assert Counter(drop.reason for drop in drops) == {"link": 2, "not_a_file": 2}
    dialogs, drops, error = gather(tmp_path, tmp_path / "a.zip")
    assert error is None and sorted(kept(dialogs)) == [1, 2, 3, 4] and [drop.reason for drop in drops] == ["link"]
    assert all(".." not in dialog.file.removeprefix(str(tmp_path)) and "\n" not in dialog.file for dialog in dialogs)


@pytest.mark.parametrize("cut", [100, 600, 1500])
def test_a_damaged_archive_is_told(cut: int, tmp_path: Path) -> None:
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz")):
        with tarfile.open(tmp_path / name, mode) as archive:  # type: ignore[call-overload]
            for number in (1, 2):
                entry = tarfile.TarInfo(f"{number}.jsonl")
                entry.size = len(row(number))
                archive.addfile(entry, io.BytesIO(row(number).encode()))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("1.jsonl", row(1))
    for name in ("a.tar", "a.tar.gz", "a.tar.xz", "a.zip"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:cut] if cut < len(whole) else whole[: len(whole) // 2])
        dialogs, drops, error = gather(tmp_path, tmp_path / name)
        assert error is not None or {drop.reason for drop in drops} <= {"damaged"}
        assert set(kept(dialogs)) <= {1, 2} and (error is not None or drops)


# ------------------------------------------------------------------------------------------------------------ endless tables


def test_a_table_of_a_million_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text("question,answer," + ",".join(f"c{n}" for n in range(1_000_000)) + "\n" + "," * 1_000_001 + "\n")
    _, _, error = gather(tmp_path, path)
    assert error is not None and "has 1000002 columns" in str(error) and "at most 16384" in str(error.rule)
    path.write_text("," * 999_999 + "\n" + "," * 999_999 + "\n")
    _, _, error = gather(tmp_path, path)
    assert error is not None and "has 1000000 columns" in str(error)
    pa = pytest.importorskip("pyarrow", reason="pip install chattune[tables]")
    import pyarrow.parquet

    names = ["question", "answer", *(f"c{n}" for n in range(17_000))]
    pyarrow.parquet.write_table(pa.table({name: ["x"] for name in names}), tmp_path / "wide.parquet")
    _, _, error = gather(tmp_path, tmp_path / "wide.parquet")
    assert error is not None and "has 17002 columns" in str(error)


def test_a_row_of_a_million_fields_and_a_field_without_end_cost_themselves(tmp_path: Path) -> None:
    path = tmp_path / "faq.csv"
    good = "question 1,answer 1\n"
    path.write_text(f"question,answer\nx{',' * 1_000_000}\n{good}x,\"{'y' * 3_000_000}\nquestion 2,answer 2\n")
    dialogs, drops, error = gather(tmp_path, path, format=PromptCompletion(record_limit=2_000_000))
    assert error is None and kept(dialogs) == [1, 2]
    assert [(drop.line, drop.reason) for drop in drops] == [(2, "wrong_columns"), (4, "line_too_long")]


@pytest.mark.parametrize(("first", "reason"), [(b"question\0,answer", "nul"), (b"question,answ\xe9r", "0xe9"), (b"q" * 3000, "3,000")])
def test_a_header_that_cannot_be_read_is_told_since_no_row_can_be_read_without_it(first: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "faq.csv"
    path.write_bytes(first + b"\n" + b"".join(b"question %d,answer %d\n" % (n, n) for n in range(40)))
    dialogs, _, error = gather(tmp_path, path, format=PromptCompletion(record_limit=2000))
    assert not dialogs and error is not None and f"{path}:1" in str(error)


# ---------------------------------------------------------------------------------------------------- bytes that are no text


def test_lines_of_another_encoding_are_dropped_and_a_file_of_another_encoding_refused(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    lines = [row(n, topic="café").replace("\\u00e9", "é") for n in range(100)]
    content = [line.encode("latin-1" if n in (3, 50, 51) else "gb18030" if n == 70 else "utf-8") for n, line in enumerate(lines)]
    content[70] = row(70).replace("question", "你好").encode("gb18030")
    path.write_bytes(b"\n".join(content))
    dialogs, drops, error = gather(tmp_path, path)
    assert error is None and kept(dialogs) == [n for n in range(100) if n not in (3, 50, 51, 70)]
    assert [(drop.line, drop.reason) for drop in drops] == [(n + 1, "undecodable") for n in (3, 50, 51, 70)]
    assert drops[0].detail == "byte 0xe9 is not utf-8"
    path.write_bytes("\n".join(lines).encode("latin-1"))
    _, _, error = gather(tmp_path, path)
    assert error is not None and "is not utf-8" in str(error) and "collect.encoding=" in str(error.hint)
    assert kept(gather(tmp_path, path, encoding="latin-1")[0]) == list(range(100))


@pytest.mark.parametrize("layout", ["lines", "list"])
def test_halves_of_surrogates_are_dropped_in_what_is_said_and_kept_elsewhere(layout: str, tmp_path: Path) -> None:
    rows = [row(1), row(2).replace("question", "\\ud83d question"), row(3, topic="\\ude00").replace("\\\\", "\\"), row(4, id="\ud83d"),
            row(5).replace("question", "\\ud83d\\ude00 question")]  # fmt: skip
    content = ("\n".join(rows) if layout == "lines" else f"[{', '.join(rows)}]").encode()
    raw = row(6).replace("question", "X question").encode().replace(b"X", b"\xed\xa0\xbd")  # half of one, encoded as it must not be
    content = content + b"\n" + raw if layout == "lines" else content[:-1] + b", " + raw + b"]"
    path = tmp_path / "chat.jsonl"
    path.write_bytes(content)
    dialogs, drops, error = gather(tmp_path, path)
    assert error is None and kept(dialogs) == [1, 3, 4, 5]
    assert [drop.reason for drop in drops] == ["broken_character", "undecodable"]
    made = collect(config=CollectConfig(sources=(str(path),)), out=_folder(tmp_path / "out"))
    assert isinstance(made, Conversations)
    stored = list(made.read())
    assert [dialog.metadata.get("topic") for dialog in stored] == [None, "\ude00", None, None]
    assert stored[3].messages[0].content[0] == "😀"
    assert len((tmp_path / "out" / "dropped.jsonl").read_bytes().splitlines()) == 2


def test_bytes_of_value_zero_cost_their_line_and_a_file_of_them_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes("\n".join([row(1), "\0" * 4096, row(2).replace("question", "question\0"), row(3, topic="\0")]).encode())
    dialogs, drops, error = gather(tmp_path, path)
    assert error is None and kept(dialogs) == [1, 3]  # a zero that JSON writes as \u0000 is a character like others
    assert [(drop.line, drop.reason) for drop in drops] == [(2, "nul_bytes"), (3, "nul_bytes")]
    path.write_bytes(b"\0" * 100_000)
    _, _, error = gather(tmp_path, path)
    assert error is not None and "binary (not text)" in str(error)
    path.write_bytes((row(1) + "\n").encode("utf-16-le"))  # without its mark it is half zeros
    assert "binary" in str(gather(tmp_path, path)[2])
    assert kept(gather(tmp_path, path, encoding="utf-16-le")[0]) == [1]


# -------------------------------------------------------------------------------------------------------------- broken JSON


def many(*numbers: int, between: str = "\n") -> str:
    return between.join(row(number) for number in numbers)


# name → text, the rows that are kept, the drops' reasons
SHAPES: dict[str, tuple[str, list[int], list[str]]] = {
    "a row that breaks off": (f"{row(1)}\n{row(2)[:-30]}\n{row(3)}", [1, 3], ["broken_json"]),
    "a comma too many": (f"{row(1)}\n{row(2)[:-1]},}}\n{row(3)}", [1, 3], ["broken_json"]),
    "a comma behind each row": (many(1, 2, 3, between=",\n") + ",", [1, 2, 3], []),
    "single quotes": (f"{row(1)}\n{row(2).replace(chr(34), chr(39))}\n{row(3)}", [1, 3], ["broken_json"]),
    "names without quotes": (f"{row(1)}\n{{messages: []}}\n{row(3)}", [1, 3], ["broken_json"]),
    "comments": (f"// made by hand\n{row(1)}\n# more\n{row(2)}", [1, 2], ["broken_json", "broken_json"]),
    "a line end within a text": ("\n".join([row(1), row(2).replace(" 2", "\n2", 1), row(3)]), [1, 3], ["broken_json"] * 2),
    "a wrong escape": (f"{row(1)}\n{row(2).replace('question', 'que' + chr(92) + 'stion')}\n{row(3)}", [1, 3], ["broken_json"]),
    "rows without line ends": (many(1, 2, 3, between=""), [1, 2, 3], []),
    "two rows in a line": (f"{row(1)} {row(2)}\n{row(3)}", [1, 2, 3], []),
    "a list that breaks off": (f"[{many(1, 2, 3, between=', ')[:-20]}", [1, 2], ["broken_json"]),
    "a list without commas": (f"[{many(1, 2, 3, between=chr(10))}]", [1, 2, 3], []),
    "a list with a broken element": (f"[{row(1)},\n{row(2)[:-2]},\n{row(3)}]", [1, 3], ["broken_json"]),
    "a list with a comma too many": (f"[{row(1)}, {row(2)},]", [1, 2], []),
    "two lists": (f"[\n{row(1)}\n]\n[\n{row(2)}\n]", [1, 2], []),
    "text behind a list": (f"[{row(1)}, {row(2)}]\nthe end", [1, 2], ["broken_json"]),
    "an object of rows that breaks off": (f'{{"a": {row(1)},\n"b": {row(2)},\n"c": {row(3)[:-9]}', [1, 2], ["broken_json"]),
    "printed over many lines, one broken": (
        "\n".join([json.dumps(json.loads(row(1)), indent=2), json.dumps(json.loads(row(2)), indent=2).replace(":", " ", 2),
                   json.dumps(json.loads(row(3)), indent=2)]), [1, 3], ["broken_json"],
    ),
    "nested without end": (f"{row(1)}\n{'[' * 100_000}\n{row(3)}", [1, 3], ["broken_json"]),
    "a number without end": (f'{row(1)}\n{{"x": {"9" * 10_000}}}\n{row(3)}', [1, 3], ["broken_json"]),
    "other values": (f'{row(1)}\nnull\n"x"\n[1]\n{row(3)}', [1, 3], ["not_an_object"] * 3),
    "numbers that JSON lacks": (f'{row(1)}\n{row(2)[:-1]}, "score": NaN}}\n{row(3)}', [1, 2, 3], []),
    "a name twice": (f'{row(1)}\n{{"messages": 1, {row(2)[1:]}\n{row(3)}', [1, 2, 3], []),
    "a page around it": (f"<pre>\n{row(1)}\n{row(2)}\n</pre>", [1, 2], ["broken_json"] * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_of_broken_json_the_good_rows_are_kept_and_the_others_told(name: str, packed: bool, tmp_path: Path) -> None:
    text, numbers, reasons = SHAPES[name]
    path = tmp_path / ("chat.jsonl.gz" if packed else "chat.jsonl")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    dialogs, drops, error = gather(tmp_path, path, format=OpenAIMessages())
    assert error is None and kept(dialogs) == numbers
    assert [drop.reason for drop in drops] == reasons and all(str(path) == drop.file for drop in drops)
    assert [drop.line for drop in drops] == sorted(drop.line for drop in drops)


# --------------------------------------------------------------------------------------------------- what nobody can read


UNKNOWN = {
    "prose": "It was a dark night.\nNobody said a word: not one.\nAnd so it went on.\n",
    "settings": "[server]\nport = 80\nhost = x\n",
    "system log": "Jan  2 10:00:01 host kernel: [0.0] Linux\nJan  2 10:00:02 host cron: x\n",
    "web log": '10.0.0.1 - - [02/Jan/2024:10:00:00 +0000] "GET / HTTP/1.1" 200 12\n' * 5, "numbers": "1,2,3\n4,5,6\n",
    "xml": "<?xml version='1.0'?>\n<a><b>x</b></a>\n", "json": '{"a": 1}\n{"a": 2}\n', "names": "name,age\nAnna,5\nBen,7\n",
    "subtitles": "1\n00:00:01,000 --> 00:00:02,000\nHello there\n\n2\n00:00:03,000 --> 00:00:04,000\nHi\n",
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_file_whose_format_cannot_be_told_is_told_and_beside_others_left_out(name: str, tmp_path: Path) -> None:
    path = tmp_path / "some.log"
    path.write_text(UNKNOWN[name])
    _, _, error = gather(tmp_path, path)
    assert error is not None and "not recognised" in str(error) and "collect.format=" in str(error.hint)
    (tmp_path / "good.jsonl").write_text(row(1))
    dialogs, drops, error = gather(tmp_path, tmp_path)
    assert error is None and kept(dialogs) == [1] and [(drop.reason, drop.file) for drop in drops] == [("unrecognised", str(path))]


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.jsonl").write_text(row(1))
    (tmp_path / "in" / "office.jsonl").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600)
    (tmp_path / "in" / "page.jsonl").write_bytes(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + b"1 0 obj\n" * 60)
    dialogs, drops, error = gather(tmp_path, tmp_path / "in")
    assert error is None and kept(dialogs) == [1] and Counter(drop.reason for drop in drops) == {"binary": 2}
    assert "an old or encrypted Office file" in drops[0].detail and "a PDF file" in drops[1].detail
    for source in ("/dev/null", "/dev/zero", str(tmp_path / "in" / "good.jsonl" / "deeper"), "nowhere\0", "x" * 5000):
        _, _, error = gather(tmp_path, source)
        assert error is not None, source


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


