"""Tables of messages: one message a row, with columns of conversation, speaker, text and time."""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from chattune.core.errors import DataError
from chattune.core.part import setting
from chattune.core.progress import talk
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.readers._chat import dialog_of, moment
from chattune.dialogs.readers._column_names import NAMES, TRUE_IS, WORDS, plain
from chattune.dialogs.readers._dates import STAMP, Order, order_of
from chattune.dialogs.readers._roles import RolesByName
from chattune.dialogs.rows import ROLE_OF, first_rows, kind_of, records
from chattune.dialogs.sessions import Conversation, Plan, Said, Survey, conversations

_TRUE, _FALSE = ("true", "1", "yes", "y", "是", "t"), ("false", "0", "no", "n", "否", "f")
_LOOKED_AT = 200  # rows from which columns are guessed
_ODD = 0.2  # share of a column's values that may be lists and objects: broken rows
_MEMORY = 2**16  # KiB of rows that are held; the others wait in a temporary file
_BATCH = 1000


class MessageTable(RolesByName):
    """CSV, TSV, JSON, Excel or Parquet with one message a row: conversation, speaker, text and time.

    Helps when: chats were exported from a database or a help desk.   Hurts when: a row is a whole conversation, or a question with its
    answer: other readers know those.
    Cost: rows wait in a temporary file, of which 64 MiB are in memory; one conversation at a time beside that.   Start with: the
    defaults, which guess the columns by their names and by what stands in them, and say so; name them where the guess is wrong.
    Source: the columns of usual exports, in some twenty languages. Rows of one conversation need not stand together. They are put in
    the order of their times, where all of them can be read; without a column of conversations silences part them.
    """

    conversation: str | None = setting(None, "the column that tells conversations apart; none: guessed, or silences tell")
    speaker: str | None = setting(None, "the column of who speaks; none: guessed")
    role: str | None = setting(None, "the column of the speaker's role or of the direction; none: guessed")
    text: str | None = setting(None, "the column of what is said; none: guessed")
    time: str | None = setting(None, "the column of times; none: guessed")
    gap: float | None = setting(
        None, "minutes of silence that end a conversation where no column tells; none: where short and long silences part", above=0
    )

    @model_validator(mode="after")
    def _columns_apart(self) -> Self:
        named = Counter(name for what in NAMES if (name := getattr(self, what)) is not None)
        if named and (most := named.most_common(1)[0])[1] > 1:
            whats = " and ".join(what for what in NAMES if getattr(self, what) == most[0])
            raise ValueError(f"{whats} are the same column, '{most[0]}': each should be one of its own")
        return self

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        rows = records(path, self.encoding, self.record_limit)
        begin = list(itertools.islice(rows, _LOOKED_AT))
        looked_at = [item[1] for item in begin if not isinstance(item, Drop) and isinstance(item[1], Mapping)]
        if not looked_at:
            yield from (item if isinstance(item, Drop) else Drop("not_an_object", str(path), item[0], f"a {kind_of(item[1])}")
                        for item in itertools.chain(begin, rows))  # fmt: skip
            return
        columns = self._columns(looked_at)
        if columns is None:
            names = ", ".join(map(str, looked_at[0]))
            raise DataError(
                f"no columns of speaker and text among: {names[:160]}.", path=f"{path}:1", value=names[:80],
                rule="columns such as conversation_id,speaker,text,time",
                hint="Name them: collect.format.name=message_table collect.format.speaker=… collect.format.text=….",
            )
        talk().print(f"read     {path.name}: {columns.told()}", markup=False)
        with closing(sqlite3.connect("")) as store:  # no name: a temporary file that is gone with the connection
            yield from self._store(path, itertools.chain(begin, rows), columns, store)
            order = _order(store)
            survey = Survey(self.names())
            for _, said in _stored(store, order):
                survey.see(said)
            plan = survey.settled(None if self.gap is None else self.gap * 60)
            if columns.conversation is not None:
                yield from self._grouped(path, plan, store, order)
                return
            number = 0
            for found in conversations((said for _, said in _stored(store, order)), plan, limit=self.record_limit):
                number += isinstance(found, Conversation)
                yield found if isinstance(found, Drop) else dialog_of(found, plan, path, number, "message_table")

    def score(self, path: Path, head: str) -> float:
        rows = [row for row in first_rows(head) if isinstance(row, Mapping)]
        columns = self._columns(rows) if len(rows) > 1 else None
        if columns is None:
            return 0.0
        speakers = Counter(columns.said_by(row) for row in rows)
        texts = [_text(row.get(columns.text)) for row in rows]
        # A few speak again and again and say something else each time; those who review something, and lists of names, do not.
        few = max(3, len(rows) * (0.3 if columns.conversation is None else 0.7))
        roles = sum(columns.role_in(row, self) != "" for row in rows) >= 0.8 * len(rows)
        if texts.count(None) > _ODD * len(rows) or (len(speakers) > few and not roles) or len({*texts}) < min(len(speakers), 3):
            return 0.0
        return 0.85 if columns.conversation is not None else 0.7

    def _columns(self, rows: Sequence[Mapping[str, Any]]) -> _Columns | None:
        """The columns by settings, names and contents; none when nobody says anything."""
        names = list(dict.fromkeys(str(name) for row in rows for name in row))
        found = {what: getattr(self, what) for what in NAMES}
        if any(name is not None and name not in names for name in found.values()):
            return None
        free = [name for name in names if name not in found.values()]
        for what in ("text", "conversation", "role", "time", "speaker"):
            if found[what] is None:
                fits = sorted((rank, place, name) for place, name in enumerate(free) if (rank := _rank(what, name, rows)) is not None)
                if fits:
                    found[what] = fits[0][2]
                    free.remove(fits[0][2])
        if found["role"] is None:
            found["role"] = next((name for name in free if plain(name) in TRUE_IS and _all(rows, name, (*_TRUE, *_FALSE))), None)
            found["role"] = found["role"] or next((name for name in free if _speaks_of_roles(rows, name, self)), None)
        if found["text"] is None or (found["speaker"] is None and found["role"] is None):
            return None
        return _Columns(**found)

    def _store(self, path: Path, rows: Iterable[Any], columns: _Columns, store: sqlite3.Connection) -> Iterator[Drop]:
        store.execute(f"PRAGMA cache_size = -{_MEMORY}")
        store.execute("CREATE TABLE message (place INTEGER PRIMARY KEY, line, conversation, speaker, role, text, time)")
        rows = iter(rows)
        while some := list(itertools.islice(rows, _BATCH)):
            kept = []
            for item in some:
                found = item if isinstance(item, Drop) else self._message(path, item[0], item[1], columns)
                if isinstance(found, Drop):
                    yield found
                else:
                    kept.append(found)
            store.executemany("INSERT INTO message (line, conversation, speaker, role, text, time) VALUES (?, ?, ?, ?, ?, ?)", kept)
        if columns.conversation is not None:
            store.execute("CREATE TABLE first AS SELECT conversation, MIN(place) AS place FROM message GROUP BY conversation")
            store.execute("CREATE UNIQUE INDEX conversations ON first (conversation)")

    def _message(self, path: Path, line: int, row: Any, columns: _Columns) -> tuple[Any, ...] | Drop:
        if not isinstance(row, Mapping):
            return Drop("not_an_object", str(path), line, f"a {kind_of(row)}")
        text, speaker = _text(row.get(columns.text)), columns.said_by(row)
        conversation = _text(row.get(columns.conversation)) if columns.conversation is not None else ""
        if text is None:
            return Drop("wrong_type", str(path), line, f"{columns.text} is {kind_of(row.get(columns.text))}, not text")
        if not speaker:
            return Drop("no_speaker", str(path), line, "nobody is named")
        if conversation is None or (columns.conversation is not None and not conversation.strip()):
            return Drop("no_conversation", str(path), line, f"{columns.conversation} is empty")
        time = _text(row.get(columns.time)) if columns.time is not None else None
        return line, _bytes(conversation), _bytes(speaker), columns.role_in(row, self), _bytes(text), _bytes(time or "")

    def _grouped(self, path: Path, plan: Plan, store: sqlite3.Connection, order: Order | None) -> Iterator[Dialog | Drop]:
        groups = itertools.groupby(_stored(store, order), key=lambda item: item[0])
        for number, (key, group) in enumerate(groups, 1):
            found = Conversation()
            for _, said in group:
                if found.said and found.size + len(said.text) > self.record_limit:
                    yield Drop("line_too_long", str(path), said.line, "the conversation goes on beyond the limit; this row is left out")
                else:
                    found.add(said)
            line = min(said.line for said in found.said)
            found.said = _in_time(found.said)
            yield replace(dialog_of(found, plan, path, number, "message_table"), id=key or f"{path.name}#{number}", line=line)


@dataclass(frozen=True)
class _Columns:
    """Which column is which."""

    text: str
    speaker: str | None = None
    role: str | None = None
    conversation: str | None = None
    time: str | None = None

    def said_by(self, row: Mapping[str, Any]) -> str:
        """Who speaks: the name, or the role where there are no names."""
        named = (_text(row.get(name)) for name in (self.speaker, self.role) if name is not None)
        return next(filter(None, named), "").strip()

    def role_in(self, row: Mapping[str, Any], reader: RolesByName) -> str:
        """The role that a row names; empty where it names none."""
        if self.role is None:
            return ""
        value = (_text(row.get(self.role)) or "").strip().lower()
        if (true_is := TRUE_IS.get(plain(self.role))) and value in (*_TRUE, *_FALSE):
            return true_is if value in _TRUE else {"user": "assistant", "assistant": "user"}[true_is]
        return _role(value, reader) or ""

    def told(self) -> str:
        """The guess, in one line."""
        named = {name: getattr(self, name) for name in ("conversation", "speaker", "role", "text", "time")}
        return "; ".join(f"{what}: column '{name}'" for what, name in named.items() if name is not None)


def _rank(what: str, name: str, rows: Sequence[Mapping[str, Any]]) -> int | None:
    """How well a column fits by its name, the lower the better; none where it does not, or holds something else."""
    own, values = plain(name), [value for row in rows if (value := row.get(name)) not in (None, "")]
    if not values or sum(isinstance(value, (list, Mapping)) for value in values) > _ODD * len(values):
        return None
    if what == "role" and own in TRUE_IS:
        return 0 if _all(rows, name, (*_TRUE, *_FALSE)) else None
    known = NAMES[what]
    rank = known.get(own)
    if rank is None and what in ("conversation", "time", "text"):
        words = [plain(word) for word in re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name))]
        end = {"conversation": ("id", "number", "no", "key", "uuid", "编号"), "time": ("at", "utc"), "text": ()}[what]
        rest = [word for word in words if word not in end]
        rank = 1000 + known[rest[-1]] if rest and rest[-1] in known and len(words) > 1 else None
    if rank is None:
        return None
    if what == "time" and not any(any(map(str.isdigit, str(value))) for value in values):
        return None
    return rank


def _speaks_of_roles(rows: Sequence[Mapping[str, Any]], name: str, reader: RolesByName) -> bool:
    """Whether nearly every row of a column names a role, and more than one is named."""
    roles = [_role((_text(row.get(name)) or "").strip().lower(), reader) for row in rows]
    return sum(role is not None for role in roles) >= 0.9 * len(rows) and {"user", "assistant"} <= {*roles}


def _role(value: str, reader: RolesByName) -> str | None:
    return reader.names().role(value) or ROLE_OF.get(value) or WORDS.get(value)


def _all(rows: Sequence[Mapping[str, Any]], name: str, allowed: Sequence[str]) -> bool:
    return all((_text(row.get(name)) or "").strip().lower() in allowed for row in rows)


def _text(value: Any) -> str | None:
    """A cell as text; none for what is no cell of a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value) if isinstance(value, (int, float)) else None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# ------------------------------------------------------------------------------------------------------------ order and time


def _order(store: sqlite3.Connection) -> Order | None:
    """In which order day, month and year stand in the times that no standard knows; none where there are no such times."""
    times = (str(value[0], "utf-8", "surrogatepass") for value in store.execute("SELECT time FROM message ORDER BY place"))
    matches = (match for text in times if text and _standard(text) is None and (match := re.match(STAMP, text)))
    first = next(matches, None)
    return None if first is None else order_of(itertools.chain([first], matches))


def _standard(text: str) -> float | None:
    """Seconds since 1970 of a time in ISO 8601, or of seconds, milli-, micro- or nanoseconds since then."""
    if re.fullmatch(r"\d{9,19}(?:\.\d+)?", text):
        value = float(text)
        return next((value / unit for unit in (1, 1e3, 1e6, 1e9) if value / unit < 1e11), None)
    return moment(text)


def _stored(store: sqlite3.Connection, order: Order | None) -> Iterator[tuple[str, Said]]:
    """Every message with its conversation: the conversations in the order in which they begin, in each the rows in their order."""
    grouped = store.execute("SELECT 1 FROM sqlite_master WHERE name = 'first'").fetchone() is not None
    joined = "JOIN first USING (conversation) ORDER BY first.place, message.place" if grouped else "ORDER BY message.place"
    found = store.execute(f"SELECT line, message.conversation, speaker, role, text, time FROM message {joined}")
    for line, conversation, speaker, role, text, time in found:
        key, name, said, at = (str(value, "utf-8", "surrogatepass") for value in (conversation, speaker, text, time))
        seconds = _standard(at) if at else None
        if seconds is None and order is not None and (match := re.match(STAMP, at)):
            seconds = order.time(match)
        yield key, Said(line, name, said, seconds, role=role)


def _in_time(said: list[Said]) -> list[Said]:
    """A conversation in the order of its times, where all of them are known; rows of one time keep the way in which the table runs."""
    times = [one.time for one in said if one.time is not None]
    if len(times) < len(said):
        return said
    back = sum(b < a for a, b in itertools.pairwise(times)) > sum(b > a for a, b in itertools.pairwise(times))
    return sorted(reversed(said) if back else said, key=lambda one: one.time or 0.0)
