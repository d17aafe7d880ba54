"""Tickets of a help desk: Zendesk and exports of its kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.json_stream import ENTERED
from chattune.dialogs.readers._chat import dialog_of, moment
from chattune.dialogs.readers._html import parsed, text_of
from chattune.dialogs.readers._json import walk
from chattune.dialogs.readers._roles import RolesByName
from chattune.dialogs.rows import Unusable, first_rows, kind_of
from chattune.dialogs.sessions import Conversation, Plan, Said
from chattune.dialogs.text import json_records, reading

_LISTS = ("comments", "conversations", "conversation_parts", "threads", "messages", "notes")  # what help desks call it
_AGENTS = ("agent", "admin", "assistant", "staff", "operator", "bot", "team", "teammate", "support", "light_agent")
_CUSTOMERS = ("end-user", "end_user", "enduser", "user", "customer", "contact", "lead", "requester", "visitor", "client")
_TEXTS = ("plain_body", "body_text", "text", "body", "html_body", "content", "message", "description_text", "description")
_HEAD = 2**16
_Users = Mapping[str, tuple[str, str]]  # by their ids: names and roles


class Tickets(RolesByName):
    """Tickets with their comments as JSON: one list, JSON Lines, or ``{"tickets": […], "users": […]}``.

    Helps when: the data are the requests and answers of a help desk such as Zendesk, Freshdesk or Intercom.   Hurts when: users
    stand in a file of their own: then only the requester is known, and everybody else answers.
    Cost: one ticket and the users of the file in memory.   Start with: the defaults.
    Source: Zendesk's JSON export (comments with author_id, public, body; users with role) and the like of Freshdesk
    (conversations with incoming, private) and Intercom (conversation_parts with author.type, part_type). Private notes are left
    out and counted.
    """

    private: bool = setting(False, "whether notes that the customer does not see stay")
    subject: bool = setting(False, "whether the subject is put before the first message, where that does not begin with it")

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        users = self._users(path)
        for index, item in enumerate(self._tickets(path)):
            if isinstance(item, Drop):
                yield item
                continue
            line, row = item
            try:
                yield self._dialog(row, line, users, path, index)
            except Unusable as unusable:
                yield Drop(unusable.reason, str(path), line, unusable.detail)

    def score(self, path: Path, head: str) -> float:
        rows = [row for row in first_rows(head) if isinstance(row, Mapping)]
        if len(rows) == 1 and isinstance(rows[0].get("tickets"), list):
            rows = [row for row in rows[0]["tickets"] if isinstance(row, Mapping)]
        if rows:
            return round(sum(_fits(row) for row in rows) / len(rows), 3)
        own = '"tickets"' in head[:4096] and any(f'"{name}"' in head for name in ("requester_id", "comments", "author_id"))
        return 0.9 if own else 0.0

    def _users(self, path: Path) -> dict[str, tuple[str, str]]:
        """Name and role of each user that the file itself lists, by id."""
        found: dict[str, tuple[str, str]] = {}
        if _is_wrapped(path, self.encoding):
            with reading(path, self.encoding) as file:
                for item in walk(file, self.record_limit, str(path), ("tickets", "users")):
                    if not isinstance(item, Drop) and item[0] == "users[]" and isinstance(item[2], Mapping):
                        row = item[2]
                        name = row.get("name") or row.get("email") or row.get("id")
                        found[str(row.get("id"))] = (str(name), _role(row.get("role")))
        return found

    def _tickets(self, path: Path) -> Iterator[tuple[int, Any] | Drop]:
        wrapped = _is_wrapped(path, self.encoding)
        with reading(path, self.encoding) as file:
            if not wrapped:
                for item in json_records(file, self.record_limit, str(path)):
                    yield item if isinstance(item, Drop) else (item[0], item[1])
                return
            for entry in walk(file, self.record_limit, str(path), ("tickets", "users")):
                if isinstance(entry, Drop):
                    yield entry
                elif entry[0] == "tickets[]" and entry[2] is not ENTERED:
                    yield entry[1], entry[2]

    def _dialog(self, row: Any, line: int, users: _Users, path: Path, index: int) -> Dialog:
        if not isinstance(row, Mapping):
            raise Unusable("not_an_object", f"a ticket is {kind_of(row)}")
        inner = row.get("ticket")
        ticket = {**(inner if isinstance(inner, Mapping) else {}), **row}
        comments = _comments(ticket)
        requester = ticket.get("requester_id") or _of(ticket.get("requester"), "id")
        known = {**users, **_listed(ticket.get("users"))}
        left_out: Counter[str] = Counter()
        said: list[Said] = []
        for comment in comments:
            if not isinstance(comment, Mapping):
                raise Unusable("wrong_type", f"a comment is {kind_of(comment)}")
            text = _text(comment, path)
            if not self.private and _is_private(comment):
                left_out["private"] += 1
            elif not text.strip():
                left_out["no_text"] += 1
            else:
                speaker, role = self._author(comment, requester, known)
                said.append(Said(line, speaker, text, moment(comment.get("created_at")), role=role))
        if all(one.time is not None for one in said):
            said.sort(key=lambda one: one.time or 0.0)
        self._opened(ticket, said, requester, known, line, path)
        if not said:
            raise Unusable("no_message", f"{len(comments)} comments, none with a text that the customer sees")
        metadata = {key: ticket[key] for key in ("subject", "status", "priority", "tags", "type") if ticket.get(key)}
        roles: dict[str, str] = {}
        for place, one in enumerate(said):  # two persons of one name and two roles are told apart
            if roles.setdefault(one.speaker, one.role) != one.role:
                said[place] = replace(one, speaker=f"{one.speaker} ({one.role})")
                roles[said[place].speaker] = one.role
        plan = Plan(0.0, "", roles)
        own = ticket.get("id")
        dialog = dialog_of(Conversation(said, left_out), plan, path, index + 1, self.name, **metadata)
        named = isinstance(own, (str, int)) and not isinstance(own, bool) and str(own).strip()
        return replace(dialog, id=f"ticket-{own}" if named else dialog.id)

    def _opened(
        self, ticket: Mapping[str, Any], said: list[Said], requester: Any, users: _Users, line: int, path: Path
    ) -> None:
        """Put the ticket's own description first, where no comment repeats it, and the subject, where that is wanted."""
        source = ticket.get("source")
        opening = source if isinstance(source, Mapping) and source.get("body") else {
            key: ticket[key] for key in ("description_text", "description") if isinstance(ticket.get(key), str)
        }
        text = _text(opening, path)
        if text.strip() and not any(one.text.strip() == text.strip() for one in said[:2]):
            speaker = self._author({"author_id": requester, **opening}, requester, users)[0]
            said.insert(0, Said(line, speaker, text, moment(ticket.get("created_at")), role="user"))
        subject = ticket.get("subject")
        if self.subject and said and isinstance(subject, str) and not said[0].text.startswith(subject.strip()):
            first = said[0]
            said[0] = replace(first, text=f"{subject.strip()}\n\n{first.text}")

    def _author(self, comment: Mapping[str, Any], requester: Any, users: _Users) -> tuple[str, str]:
        """Who wrote a comment, and in which role: as the comment says, the users' list, the setting, or else who asked."""
        author = comment.get("author") or comment.get("from")
        inner = author if isinstance(author, Mapping) else {}
        keys = ("author_id", "user_id", "sender_id")
        own = next((comment[key] for key in keys if comment.get(key) is not None), inner.get("id"))
        name, role = users.get(str(own), ("", ""))
        name = name or str(inner.get("name") or inner.get("email") or (author if isinstance(author, str) else "") or own or "?")
        said = (inner.get("role"), inner.get("type"), comment.get("author_role"), comment.get("role"), comment.get("author_type"))
        told = next((role for value in said if (role := _role(value))), "")
        if isinstance(comment.get("incoming"), bool):
            told = told or ("user" if comment["incoming"] else "assistant")
        asks = requester is not None and own is not None and str(own) == str(requester)
        return name, self.names().role(name) or told or role or ("user" if asks else "assistant")


def _is_wrapped(path: Path, encoding: str) -> bool:
    """Whether the file is one object with a list of tickets."""
    with reading(path, encoding) as file:
        head = file.read(_HEAD).lstrip("\ufeff \t\r\n")
    return head.startswith("{") and re.search(r'"tickets"\s*:\s*\[', head) is not None


def _fits(row: Mapping[str, Any]) -> bool:
    inner = row.get("ticket")
    ticket = {**inner, **row} if isinstance(inner, Mapping) else row
    keys = ("requester_id", "requester", "assignee_id", "ticket_id", "ticket", "conversation_parts", "subject")
    desk = any(key in ticket for key in keys)
    comments = next((ticket[name] for name in _LISTS if isinstance(ticket.get(name), (list, Mapping))), None)
    return desk and comments is not None and "messages" not in ticket


def _comments(ticket: Mapping[str, Any]) -> list[Any]:
    for name in _LISTS:
        found = ticket.get(name)
        if isinstance(found, Mapping):
            found = found.get(name)
        if isinstance(found, list):
            return found
    return []


def _listed(value: Any) -> dict[str, tuple[str, str]]:
    rows = value if isinstance(value, list) else []
    return {
        str(row.get("id")): (str(row.get("name") or row.get("email") or row.get("id")), _role(row.get("role")))
        for row in rows if isinstance(row, Mapping)
    }  # fmt: skip


def _role(value: Any) -> str:
    word = value.strip().lower() if isinstance(value, str) else ""
    return "assistant" if word in _AGENTS else "user" if word in _CUSTOMERS else ""


def _is_private(comment: Mapping[str, Any]) -> bool:
    return comment.get("public") is False or comment.get("private") is True or comment.get("part_type") == "note"


def _text(comment: Mapping[str, Any], path: Path) -> str:
    """The words of a comment, HTML as text."""
    for key in _TEXTS:
        value = comment.get(key)
        if isinstance(value, str) and value.strip():
            marked = key == "html_body" or (value.lstrip().startswith("<") and value.rstrip().endswith(">"))
            return text_of(parsed(value, path).root) if marked else value
    return ""


def _of(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None
