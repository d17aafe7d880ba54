"""Slack workspaces: the folder or the zip archive of an export, or one day of a channel."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from chattune.core.errors import DataError
from chattune.core.part import setting
from chattune.dialogs.compressed import members
from chattune.dialogs.dialog import Drop
from chattune.dialogs.readers._chat import ChatLog
from chattune.dialogs.rows import kind_of
from chattune.dialogs.sessions import Aside, Event, Room, Said
from chattune.dialogs.text import json_records, reading, sample

_DAY = re.compile(r"\d{4}-\d\d-\d\d\.json(?:\.gz)?$")
_SPOKEN = (None, "thread_broadcast", "me_message", "file_share", "bot_message", "file_comment")  # subtypes; others are notices
_MARK = re.compile(r"<(?P<sign>[@#!]?)(?P<target>[^<>|]+)(?:\|(?P<label>[^<>]*))?>")


class Slack(ChatLog):
    """An export of Slack: ``<channel>/<day>.json`` and ``users.json``, as folder or zip; or a single file of a day.

    Helps when: the questions and answers of a team or a community stand in Slack.   Hurts when: nobody uses threads and several
    talk at once: say disentangle=true.
    Cost: the users and the open threads in memory, at most four times record_limit; everything is read twice.   Start with: the
    defaults.
    Source: Slack's export format. A thread is a conversation; what stands in none is cut by silence. Names stand for the marks
    of users, channels and links. Joins, files without words and bots are counted in the conversation's metadata.
    """

    bots: Literal["leave_out", "assistant", "like_people"] = setting(
        "leave_out", "what becomes of what apps wrote: left out and counted, the assistant's, or judged like what people wrote"
    )

    def events(self, path: Path) -> Iterator[Event]:
        days, users = self._parts(path)
        names = self._users(users)
        channel = ""
        for day in days:
            if day.parent.name != channel and day != path:
                channel = day.parent.name
                yield Room(0, channel)
            with reading(day, self.encoding) as file:
                for item in json_records(file, self.record_limit, str(path)):
                    if isinstance(item, Drop):
                        yield item
                        continue
                    event = self._event(item[1], item[0], names, path)
                    yield replace(event, within=f"{channel}/{day.name}") if channel and isinstance(event, Said) else event

    def score(self, path: Path, head: str) -> float:
        rows = [row for row, _ in sample(head)]
        fits = [isinstance(row, Mapping) and row.get("type") == "message" and _is_stamp(row.get("ts")) for row in rows]
        return round(sum(fits) / len(fits), 3) if fits else 0.0

    def by_threads(self) -> bool:
        return not self.disentangle

    def _parts(self, path: Path) -> tuple[list[Path], Path | None]:
        """The files of days, by channel and day, and the file of users."""
        inside = export_parts(path)
        if inside is None:
            near = (path.parent / "users.json", path.parent.parent / "users.json")
            return [path], next((file for file in near if file.is_file() and file != path), None)
        days = sorted((file for file in inside if _DAY.search(file.name)), key=lambda file: (file.parent.name, file.name))
        if not days:
            raise DataError(
                "holds no day of a channel.", path=str(path), rule="<channel>/<yyyy-mm-dd>.json, as Slack exports them",
                hint="Is it the folder that holds channels.json and users.json?",
            )
        return days, min((file for file in inside if file.name == "users.json"), key=lambda file: len(file.parts), default=None)

    def _users(self, path: Path | None) -> Mapping[str, tuple[str, bool]]:
        """Name of each user by its id, and whether it is an app."""
        found: dict[str, tuple[str, bool]] = {}
        if path is not None:
            with reading(path, self.encoding) as file:
                for item in json_records(file, self.record_limit, str(path)):
                    row = None if isinstance(item, Drop) else item[1]
                    if isinstance(row, Mapping) and isinstance(row.get("id"), str):
                        found[row["id"]] = (_name(row, row["id"]), row.get("is_bot") is True)
        return found

    def _event(self, row: Any, line: int, names: Mapping[str, tuple[str, bool]], path: Path) -> Event:
        if not isinstance(row, Mapping):
            return Drop("not_an_object", str(path), line, f"a message is {kind_of(row)}")
        subtype = row.get("subtype")
        if row.get("type") != "message" or subtype not in _SPOKEN:
            return Aside(line, "deleted" if subtype == "tombstone" else "system_line")
        text = row.get("text")
        if not isinstance(text, str):
            return Drop("wrong_type", str(path), line, f"the text of a message is {kind_of(text)}")
        user = row.get("user")
        own = row.get("user_profile")
        name, app = names.get(user, ("", False)) if isinstance(user, str) else ("", False)
        name = name or (_name(own, "") if isinstance(own, Mapping) else "")
        name = name or str(row.get("username") or user or row.get("bot_id") or "?")
        if subtype == "bot_message" or app or (row.get("bot_id") and self.bots != "like_people"):
            if self.bots == "leave_out":
                return Aside(line, "bot")
            role = "assistant" if self.bots == "assistant" else ""
        else:
            role = ""
        text = html.unescape(_MARK.sub(lambda mark: _plain(mark, names), text))
        if not text.strip():
            return Aside(line, "media")
        text = f"*{text}*" if subtype == "me_message" else text
        stamp, thread = row.get("ts"), row.get("thread_ts")
        time = float(stamp) if isinstance(stamp, str) and _is_stamp(stamp) else None
        return Said(line, name, text, time, str(stamp or ""), str(thread or ""), role)


def export_parts(path: Path) -> list[Path] | None:
    """The JSON files of a folder or an archive; none when `path` is a plain file. Links that lead elsewhere are passed over."""
    if path.is_dir():
        root = path.resolve()
        inside = (file for file in sorted(path.rglob("*.json*")) if file.is_file())
        return [file for file in inside if file.resolve().is_relative_to(root)]
    found = members(path)
    if found is None:
        return None
    return [path / member.name for member in found if member.refused is None and ".json" in Path(member.name).name]


def is_export(path: Path) -> bool:
    """Whether a folder or an archive is an export of Slack as a whole: users, and a channel's days in a folder."""
    if path.is_dir():
        return (path / "users.json").is_file() and any(_DAY.search(file.name) for file in path.glob("*/*.json"))
    found = members(path) if path.is_file() else None
    names = [member.name for member in found or ()]
    return any(Path(name).name == "users.json" for name in names) and any("/" in name and _DAY.search(name) for name in names)


def _is_stamp(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d{1,12}(?:\.\d{1,9})?", value) is not None


def _name(row: Mapping[str, Any], otherwise: str) -> str:
    profile = row.get("profile")
    inner = profile if isinstance(profile, Mapping) else {}
    shown, real = (inner.get("display_name"), row.get("display_name")), (inner.get("real_name"), row.get("real_name"))
    found = (*shown, *real, row.get("name"), otherwise)
    return next((name.strip() for name in found if isinstance(name, str) and name.strip()), "")


def _plain(mark: re.Match[str], names: Mapping[str, tuple[str, bool]]) -> str:
    """What one sees in place of a mark: ``@name``, ``#channel``, ``@here``, a link's label or address."""
    sign, target, label = mark["sign"], mark["target"], mark["label"] or ""
    if sign == "@":
        return f"@{label or names.get(target, (target, False))[0]}"
    if sign == "#":
        return f"#{label or target}"
    if sign == "!":
        word = target.partition("^")[0]
        return label or f"@{word}"
    return label if label and label in target else f"{label} ({target})" if label else target
