"""Synonyms from files that people have: MyThes thesauri, WordNet's database, lines of words that can stand for one another.

Only what the training split can use is kept. Single words only: a phrase in a word's place seldom fits the sentence.
"""

from __future__ import annotations

import contextlib
import gzip
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from chattune.core.errors import DataError

SAMPLE = Path(__file__).with_name("_synonyms.tsv")
_PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
_RELATED = re.compile(r"\((?:generic|related|similar|antonym)[^)]*\)\s*$")
_COUNT = re.compile(r"[^|]+\|\d+\s*$")

Senses = dict[str, list[tuple[str, ...]]]  # word → for each of its meanings the other words for it


def files_of(path: Path) -> list[Path]:
    """The files that make up the thesaurus at `path`, or a `DataError`."""
    if path.is_dir():
        found = [path / f"{kind}.{part}" for part in _PARTS_OF_SPEECH for kind in ("index", "data")]
        found = [file for file in found if file.is_file()]
        if not any(file.name.startswith("data.") for file in found):
            raise DataError("holds no WordNet database.", path=str(path), rule="files index.noun, data.noun and the like")
        return found
    if not path.is_file():
        hint = "Name a MyThes file, a folder of WordNet or a file of lines of words."
        raise DataError("does not exist.", path=str(path), rule="a thesaurus", hint=hint)
    return [path]


def senses(path: Path, wanted: Collection[str]) -> Senses:
    """The meanings of the words `wanted` (in lower case), each by its synonyms, in the order of the thesaurus."""
    files_of(path)
    if path.is_dir():
        return _of_wordnet(path, wanted)
    with _opened(path) as lines:
        first = next(lines, b"").strip()
        second = next(lines, b"").strip()
    try:
        encoding = first.decode("ascii") if _COUNT.match(second.decode("latin-1")) else ""
        return _of_mythes(path, encoding, wanted) if encoding else _of_lines(path, wanted)
    except (UnicodeDecodeError, LookupError) as error:
        rule = "a thesaurus, in UTF-8 or in the encoding that its first line names"
        raise DataError(f"cannot be read: {error}.", path=str(path), rule=rule) from None


def _of_mythes(path: Path, encoding: str, wanted: Collection[str]) -> Senses:
    found: Senses = {}
    with _opened(path) as raw:
        lines = (line.decode(encoding).rstrip("\r\n") for line in raw)
        next(lines)
        for line in lines:
            word, _, count = line.rpartition("|")
            if not count.isdigit():
                rule = "word|number of meanings"
                raise DataError("is no thesaurus: an entry has no count.", path=str(path), value=line[:60], rule=rule)
            meanings = [next(lines, "") for _ in range(int(count))]
            if word.lower() in wanted:
                for meaning in meanings:
                    others = [other for other in meaning.split("|")[1:] if not _RELATED.search(other)]
                    found.setdefault(word.lower(), []).append(_single(others, word))
    return found


def _of_wordnet(path: Path, wanted: Collection[str]) -> Senses:
    """Lines of ``index.*``: lemma, part, synsets, …, offsets. Of ``data.*`` at an offset: …, count (hex), word, number, word, …"""
    found: Senses = {}
    for part in _PARTS_OF_SPEECH:
        index, data = path / f"index.{part}", path / f"data.{part}"
        if not (index.is_file() and data.is_file()):
            continue
        with index.open(encoding="utf-8") as lines, data.open("rb") as synsets:
            for line in lines:
                fields = line.split()
                if line.startswith(" ") or not fields or fields[0] not in wanted:
                    continue
                for offset in fields[-int(fields[2]) :]:
                    synsets.seek(int(offset))
                    row = synsets.readline().decode("utf-8").split()
                    if not row or row[0] != offset:
                        raise DataError("does not fit its index.", path=str(data), value=offset, rule="index and data of one WordNet")
                    names = [re.sub(r"\(\w+\)$", "", name) for name in row[4 : 4 + 2 * int(row[3], 16) : 2]]
                    found.setdefault(fields[0], []).append(_single(names, fields[0]))
    return found


def _of_lines(path: Path, wanted: Collection[str]) -> Senses:
    found: Senses = {}
    with _opened(path) as raw:
        for line in raw:
            group = [word.strip() for word in line.decode("utf-8-sig").rstrip("\r\n").split("\t") if word.strip()]
            if group and not group[0].startswith("#"):
                for word in group:
                    if word.lower() in wanted:
                        found.setdefault(word.lower(), []).append(_single(group, word))
    return found


def _single(others: Iterable[str], word: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(o for o in others if o.lower() != word.lower() and re.fullmatch(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", o)))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Iterator[bytes]]:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            yield iter(gzip.GzipFile(fileobj=raw) if packed else raw)
        except (EOFError, gzip.BadGzipFile) as error:
            raise DataError(f"is a damaged gzip file: {error}.", path=str(path), rule="a whole gzip file") from None
