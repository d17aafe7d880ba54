"""Reads mutated weight files, one after another, in a process that may take little more memory than it has.

``reading.py KIND FOLDER COUNT``: KIND is ``safetensors`` or ``gguf``; FOLDER holds a good model of that kind, and is written to.
Prints how the cases went, as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from chattune.core.errors import ChattuneError
from chattune.models.foreign import read_foreign

ROOM = 64 << 20  # bytes over what the process has when it has read the good file once
WEIGHTS = {"safetensors": "model.safetensors", "gguf": "model.gguf"}
HOSTILE: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, 10**30, 1.5, "", "x", "../../x", "/etc/x", [], {}, [[]], [None], [-1, 4], [0, 2**63],
    [2**40, 2**40], ["x"], {"a": 1},
]  # fmt: skip
NOT_FINITE = [struct.pack("<f", value) for value in (float("nan"), float("inf"), float("-inf"))]
WORDS = [b"\0", b"\xff", b"\x7f", b"\xff" * 8, struct.pack("<Q", 2**63), struct.pack("<Q", 2**32), struct.pack("<q", -1)]

Case = tuple[bytes, bool]  # a file, and whether it must be refused


def parts(whole: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the numbers of a safetensors file."""
    length = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def joined(header: str, data: bytes) -> bytes:
    text = header.encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data


def safetensors_cases(whole: bytes) -> st.SearchStrategy[Case]:
    header, data = parts(whole)
    names = sorted(name for name in header if name != "__metadata__")
    name, keys, value = st.sampled_from(names), st.sampled_from(["dtype", "shape", "data_offsets", None]), st.sampled_from(HOSTILE)

    def entry(of: str, key: str | None, now: Any) -> Case:
        changed = {**header, of: now if key is None else {**header[of], key: now}}
        return joined(json.dumps(changed), data), True

    def doubled(of: str, other: str) -> Case:
        again = f', {json.dumps(of)}: {json.dumps(header[other])}}}'
        return joined(json.dumps(header)[:-1] + again, data), True

    def swapped(of: str, other: str) -> Case:
        return joined(json.dumps({**header, of: header[other], other: header[of]}), data), header[of]["shape"] != header[other]["shape"]

    def moved(of: str, by: int) -> Case:
        begin, end = header[of]["data_offsets"]
        changed = {**header, of: {**header[of], "data_offsets": [max(0, begin + by), max(0, end + by)]}}
        return joined(json.dumps(changed), data), by != 0

    return st.one_of(
        st.integers(0, len(whole) - 1).map(lambda cut: (whole[:cut], True)),
        st.binary(min_size=1, max_size=9).map(lambda more: (whole + more, True)),
        st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1]).map(lambda length: (length.to_bytes(8, "little") + whole[8:], True)),
        st.builds(entry, name, keys, value),
        st.builds(doubled, name, name),
        st.builds(swapped, name, name),
        st.builds(moved, name, st.sampled_from([-64, -4, 4, 64])),
        st.builds(
            lambda place, bad: (whole[: len(whole) - len(data)] + data[: place * 4] + bad + data[place * 4 + 4 :], True),
            st.integers(0, len(data) // 4 - 1), st.sampled_from(NOT_FINITE),
        ),
        st.sampled_from(["[" * 100_000, '{"a":' * 50_000, json.dumps(header) + " " * (5 << 20)]).map(lambda t: (joined(t, data), True)),
        scratched(whole, len(whole) - len(data)),
    )  # fmt: skip


def gguf_cases(whole: bytes, header: int) -> st.SearchStrategy[Case]:
    return st.one_of(
        st.integers(0, len(whole) - 1).map(lambda cut: (whole[:cut], True)),
        st.binary(min_size=32, max_size=40).map(lambda more: (whole + more, True)),
        st.builds(
            lambda place, bad: (whole[: header + place * 4] + bad + whole[header + place * 4 + 4 :], True),
            st.integers(0, (len(whole) - header) // 4 - 1), st.sampled_from(NOT_FINITE),
        ),
        scratched(whole, header), scratched(whole, 1 << 11),
    )  # fmt: skip


def scratched(whole: bytes, before: int) -> st.SearchStrategy[Case]:
    """Some bytes of the header written over. What comes out may happen to be a sound file."""

    def scratch(marks: list[tuple[int, bytes]]) -> Case:
        now = bytearray(whole)
        for place, word in marks:
            now[place : place + len(word)] = word
        return bytes(now[: len(whole)]), False

    word = st.sampled_from(WORDS) | st.binary(min_size=1, max_size=1)
    return st.lists(st.tuples(st.integers(0, before - 1), word), min_size=1, max_size=3).map(scratch)


def run(kind: str, folder: Path, count: int) -> dict[str, int]:
    """Read `count` cases; anything but a model or one of our errors ends it."""
    path = folder / WEIGHTS[kind]
    place = path if kind == "gguf" else folder
    whole = path.read_bytes()
    read_foreign(place)
    if kind == "gguf":
        from chattune.core.gguf import read_gguf

        cases = gguf_cases(whole, min(tensor.start for tensor in read_gguf(path).tensors.values()))
    else:
        cases = safetensors_cases(whole)
    went = {"cases": 0, "read": 0, "refused": 0}

    quietly = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}

    @settings(max_examples=count, phases=[Phase.generate], **quietly)  # type: ignore[arg-type]
    @given(cases)
    def attempt(case: Case) -> None:
        content, must = case
        path.write_bytes(content)
        went["cases"] += 1
        try:
            read_foreign(place)
        except ChattuneError:
            went["refused"] += 1
        else:
            went["read"] += 1
            assert not must, "was read, and had to be refused"

    attempt()  # the generator of cases takes its memory, too
    before, used = dict(went), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with limited(len(whole) + ROOM):
        attempt()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used
    return {**{key: went[key] - before[key] for key in went}, "peak_kib": peak}


class limited:  # noqa: N801 - used as a word
    """No more address space than there is now, and `more` bytes."""

    def __init__(self, more: int) -> None:
        self.more = more

    def __enter__(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        self.before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + self.more, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self.before)


def trusting(path: Path, out: Path) -> Any:
    """The positive control: a reader of safetensors that believes what it is told, and unpacks each tensor to a file of its name."""
    import numpy as np

    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        found = {}
        for name, entry in header.items():
            if name != "__metadata__":
                found[name] = np.empty(entry["shape"], dtype="<f4")
                begin, end = entry["data_offsets"]
                data = file.read(end - begin)
                found[name].reshape(-1)[: len(data) // 4] = np.frombuffer(data[: len(data) // 4 * 4], dtype="<f4")
                (out / name).write_bytes(data)
    return found


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))), flush=True)
    os._exit(0)  # native libraries that once met the limit may wait for ever when the interpreter takes itself apart
