"""Cornell Movie-Dialogs: exchanges of film characters, in a file of conversations and a file of lines."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from chattune.core.errors import DataError
from chattune.core.part import setting
from chattune.dialogs.compressed import Unreadable
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.text import lines, reading

_MARK = " +++$+++ "
_IDS = re.compile(r"L\d+")
_CONVERSATION = re.compile(r"u\d+ \+\+\+\$\+\+\+ u\d+ \+\+\+\$\+\+\+ m\d+ \+\+\+\$\+\+\+ \['L\d+'")
_MEMORY = 2**14  # KiB of lines in memory; the others wait in a temporary file


class CornellMovieDialogs(Reader):
    """``movie_conversations.txt``: ``u0 +++$+++ u2 +++$+++ m0 +++$+++ ['L194', 'L195']``, with ``movie_lines.txt`` beside it.

    Helps when: small talk of film characters is wanted.   Hurts when: replies must be helpful or true.
    Cost: lines lie in a temporary file; one conversation in memory.   Start with: collect.encoding=latin-1, which the corpus is in.
    Source: Danescu-Niculescu-Mizil and Lee 2011. Who opens is the user, the other the assistant; film and names are kept as metadata.
    Its newer form of ``utterances.jsonl`` is read by the reader of tables of messages.
    """

    lines: str = setting("movie_lines.txt", "the name of the file of lines, in the same folder or archive")

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        count = 0
        with closing(sqlite3.connect("")) as store:  # no name: a temporary file that is gone with the connection
            failed = self._keep_lines(path, store)
            with reading(path, self.encoding) as file:
                for item in lines(file, self.record_limit, str(path)):
                    if isinstance(item, Drop):
                        yield item
                    elif item[1].strip():
                        count += 1
                        yield self._dialog(path, count, item, store, failed)

    def score(self, path: Path, head: str) -> float:
        written = [line for line in head.splitlines()[:50] if line.strip()]
        return sum(_CONVERSATION.match(line) is not None for line in written) / len(written) if written else 0.0

    def _keep_lines(self, path: Path, store: sqlite3.Connection) -> int:
        """Put every line of the films into `store`; how many could not be read."""
        store.execute(f"PRAGMA cache_size = -{_MEMORY}")
        store.execute("CREATE TABLE line (id TEXT PRIMARY KEY, speaker TEXT, name TEXT, text TEXT) WITHOUT ROWID")
        failed = 0
        beside = path.parent / self.lines
        try:
            with reading(beside, self.encoding) as file:
                for item in lines(file, self.record_limit, str(beside)):
                    fields = [] if isinstance(item, Drop) else item[1].split(_MARK)
                    if len(fields) == 4 and fields[-1].endswith(_MARK.rstrip()):  # nothing is said
                        fields = [*fields[:-1], fields[-1].removesuffix(_MARK.rstrip()), ""]
                    if len(fields) != 5:
                        failed += isinstance(item, Drop) or bool(item[1].strip())
                        continue
                    store.execute("INSERT OR REPLACE INTO line VALUES (?, ?, ?, ?)", (fields[0], fields[1], fields[3], fields[4]))
        except Unreadable as error:
            if error.reason != "unreadable":
                raise
            raise DataError(
                f"needs {self.lines} beside it: that {error.message.rstrip('.')}.", path=str(path), value=self.lines,
                rule="a file of conversations and a file of lines", hint="Put it there, or name it: collect.format.lines=….",
            ) from None
        return failed

    def _dialog(self, path: Path, number: int, item: tuple[int, str], store: sqlite3.Connection, failed: int) -> Dialog | Drop:
        line, text = item
        fields = text.split(_MARK)
        ids = _IDS.findall(fields[-1]) if len(fields) == 4 else []
        if not ids:
            return Drop("no_messages", str(path), line, f"{len(fields)} fields, and no list of lines in the fourth")
        found = [store.execute("SELECT speaker, name, text FROM line WHERE id = ?", (own,)).fetchone() for own in ids]
        if None in found:
            told = f", of which {failed} lines cannot be read" if failed else ""
            return Drop("missing_line", str(path), line, f"{ids[found.index(None)]} is not in {self.lines}{told}")
        opens = found[0][0]
        messages = tuple(Message("user" if speaker == opens else "assistant", said) for speaker, _, said in found)
        names = {("user" if speaker == opens else "assistant"): name for speaker, name, _ in found}
        metadata = {"movie": fields[2], "speakers": names}
        return Dialog(f"{path.name}#{number}", messages, "cornell_movie_dialogs", str(path), line, None, metadata)
