"""Files of ours: atomic, torn-tolerant, telling about the disk; and the append-only record on top of them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chattune.core import files
from chattune.core.errors import ArtifactError, CorruptError, SpaceError
from chattune.core.record import Record


def test_a_failed_write_leaves_the_old_bytes_and_no_leftover(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_atomically(path, "old")
    with pytest.raises(TypeError):
        files.write_atomically(path, 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, float("nan"))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.requirement("C3")
def test_a_full_disk_is_told_with_path_and_room_and_keeps_the_old_bytes(tmp_path: Path) -> None:
    # A limit on file size fails the write in the kernel as a full disk does; only a process of its own may set it.
    script = (
        "import resource, signal, sys; from pathlib import Path; from chattune.core import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "path = Path(sys.argv[1]); files.write_atomically(path, b'old')\n"
        "try: files.write_atomically(path, b'x' * 100_000)\n"
        "except files.SpaceError as error: print(error)\n"
    )
    path = tmp_path / "weights"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert f"{path}: could not be written: File too large (" in done.stdout
    assert "free)" in done.stdout
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_trouble_of_the_disk_becomes_a_space_error_and_others_pass(tmp_path: Path, number: int) -> None:
    with pytest.raises(SpaceError, match=r"free\)"), files.telling_space(tmp_path / "not" / "there"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(PermissionError), files.telling_space(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_too_little_room_is_refused_before_writing(tmp_path: Path) -> None:
    files.require_space(tmp_path / "x", 1)
    with pytest.raises(SpaceError, match=r"needs .* and .* are free"):
        files.require_space(tmp_path / "x" / "y", 1 << 60)


def test_a_new_directory_is_wholly_there_or_not_at_all(tmp_path: Path) -> None:
    def fail_inside() -> None:
        with files.new_directory(tmp_path / "step") as inside:
            (inside / "a").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert os.listdir(tmp_path) == []
    with files.new_directory(tmp_path / "step") as inside:
        (inside / "sub").mkdir()
        (inside / "sub" / "a").write_text("1")
        assert not (tmp_path / "step").exists()
    assert (tmp_path / "step" / "sub" / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["step"]


def test_damaged_or_missing_json_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is missing"):
        files.read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b'{"a": \xff')
    with pytest.raises(CorruptError, match="cannot be read"):
        files.read_json(tmp_path / "bad.json")


def test_digests_follow_content_and_not_the_order_of_keys() -> None:
    assert files.digest_of_data({"a": 1, "b": "é"}) == files.digest_of_data({"b": "é", "a": 1})
    assert files.digest_of_data({"a": 1}) != files.digest_of_data({"a": 1.5})


@pytest.mark.security
@pytest.mark.requirement("I26", "D3")
def test_a_record_cut_at_any_byte_opens_loses_only_the_torn_row_and_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    record = Record(whole)
    for step in range(4):
        record.append(step=step, loss=1.5 / (step + 1), text="héllo 你好 🙂\n")
    content = whole.read_bytes()
    for cut in range(len(content) + 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(content[:cut])
        acknowledged = content[:cut].count(b"\n")
        assert [row["step"] for row in files.read_lines_of_json(path)][:acknowledged] == list(range(acknowledged))
        again = Record(path)
        again.append(step=99)
        assert [row["step"] for row in again.rows()] == [*range(acknowledged), 99]


def test_damage_in_the_middle_of_a_record_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\x00\n{"step": 3}\n')
    with pytest.raises(CorruptError, match="not JSON"):
        list(files.read_lines_of_json(path))


def test_a_record_rewinds_to_a_step_and_keeps_what_json_cannot_say(tmp_path: Path) -> None:
    record = Record(tmp_path / "m.jsonl")
    record.append(event="begin")
    for step in range(1, 6):
        record.append(step=step, loss=float("nan") if step == 3 else float(step))
    record.rewind(3)
    assert [row.get("step") for row in record.rows()] == [None, 1, 2, 3]
    assert record.rows()[-1]["loss"] == "nan"
    for line in record.path.read_text().splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(constant))


def test_sizes_are_said_for_people() -> None:
    assert [files.size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 40)] == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 TiB"]
