"""OASST: trees of prompts and ranked replies, written and judged by volunteers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import Unusable, first_rows, identity, kind_of, records, role_of, share, text_of


class OASST(Reader):
    """Trees ``{"message_tree_id", "prompt": {"text", "role", "replies": […]}}``, or one message a row with ``parent_id``.

    Helps when: data is Open Assistant's.   Hurts when: never.
    Cost: one tree in memory.   Start with: ``paths: best``, one conversation a tree.
    Source: Köpf et al. 2023, arXiv:2304.07327. ``best`` follows at each turn the reply of the lowest rank (those without a rank come
    last, in their order), ``all`` gives every path from the root to a leaf; the paths of one tree are a group. Messages that were
    deleted are left out with what answers them, and counted in the metadata.
    """

    paths: Literal["best", "all"] = setting("best", "which paths through a tree become conversations")

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        waiting: list[tuple[int, Mapping[str, Any]]] = []  # the rows of one tree, where each message has its own
        length = 0
        for index, item in enumerate(records(path, self.encoding, self.record_limit)):
            if isinstance(item, Drop):
                yield item
                continue
            line, row, key = item
            flat = isinstance(row, Mapping) and "parent_id" in row and "prompt" not in row
            if waiting and (not flat or row.get("message_tree_id") != waiting[0][1].get("message_tree_id")):
                yield from self._of_messages(path, waiting)
                waiting, length = [], 0
            if flat:
                length += len(str(row.get("text")))
                if length > self.record_limit:
                    yield Drop("line_too_long", str(path), line, "its tree goes on beyond the limit; this message is left out")
                else:
                    waiting.append((line, row))
                continue
            try:
                if not isinstance(row, Mapping):
                    raise Unusable("not_an_object", f"a {kind_of(row)}")
                root = row.get("prompt")
                if not isinstance(root, Mapping):
                    raise Unusable("no_messages", f"prompt is {kind_of(root)}, not a message with its replies")
                own = identity(row, path, index, "message_tree_id", key)
                metadata = {name: value for name, value in row.items() if name not in ("message_tree_id", "prompt", "id", "group")}
                yield from self._dialogs(path, line, own, _tree(root), metadata)
            except Unusable as unusable:
                yield Drop(unusable.reason, str(path), line, unusable.detail)
        if waiting:
            yield from self._of_messages(path, waiting)

    def score(self, path: Path, head: str) -> float:
        return share(first_rows(head), _fits)

    def _of_messages(self, path: Path, rows: list[tuple[int, Mapping[str, Any]]]) -> Iterator[Dialog | Drop]:
        """The dialogs of a tree whose messages are rows of their own."""
        line = rows[0][0]
        nodes: dict[str, _Node] = {}
        roots: list[_Node] = []
        lost = 0
        try:
            for _, row in rows:
                nodes[str(row.get("message_id"))] = _node(row)
            for _, row in rows:
                parent = row.get("parent_id")
                siblings = roots if parent in (None, "") else nodes[str(parent)].replies if str(parent) in nodes else None
                lost += siblings is None
                if siblings is not None:
                    siblings.append(nodes[str(row.get("message_id"))])
            if not roots:
                raise Unusable("no_parent", f"{len(rows)} messages whose tree has no root here")
            metadata = {"without_parent": lost} if lost else {}
            for root in roots:
                yield from self._dialogs(path, line, str(rows[0][1].get("message_tree_id") or root.id), root, metadata)
        except Unusable as unusable:
            yield Drop(unusable.reason, str(path), line, unusable.detail)

    def _dialogs(self, path: Path, line: int, own: str, root: _Node, metadata: Mapping[str, Any]) -> Iterator[Dialog]:
        deleted = _prune(root)
        if root.deleted:
            raise Unusable("deleted", "the prompt was deleted")
        told = {**metadata, **({"lang": root.lang} if root.lang else {}), **({"deleted": deleted} if deleted else {})}
        if self.paths == "best":
            yield Dialog(own, tuple(node.message for node in _best(root)), "oasst", str(path), line, None, told)
            return
        for number, nodes in enumerate(_paths(root), 1):
            messages = tuple(node.message for node in nodes)
            yield Dialog(f"{own}/{nodes[-1].id or number}", messages, "oasst", str(path), line, own, told)


@dataclass
class _Node:
    """A message of a tree and what answers it."""

    id: str
    message: Message
    rank: float
    deleted: bool
    lang: str
    replies: list[_Node] = field(default_factory=list)


def _fits(row: Mapping[str, Any]) -> bool:
    root = row.get("prompt")
    if isinstance(root, Mapping):
        return isinstance(root.get("replies"), list) and "text" in root
    return {"parent_id", "message_tree_id", "text", "role"} <= row.keys()


def _node(row: Mapping[str, Any]) -> _Node:
    rank = row.get("rank")
    place = float(rank) if isinstance(rank, (int, float)) and rank == rank else float("inf")
    message = Message(role_of(row.get("role")), text_of(row.get("text"), "text"))
    return _Node(str(row.get("message_id") or ""), message, place, row.get("deleted") is True, str(row.get("lang") or ""))


def _tree(row: Mapping[str, Any]) -> _Node:
    """The tree of a message with its replies; walked without recursion, since conversations can be long."""
    root = _node(row)
    waiting = [(root, row)]
    while waiting:
        node, own = waiting.pop()
        replies = own.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
            raise Unusable("wrong_type", f"replies is {kind_of(replies)}, not a list of messages")
        node.replies = [_node(reply) for reply in replies]
        waiting += zip(node.replies, replies, strict=True)
    return root


def _prune(root: _Node) -> int:
    """Take out what was deleted, with what answers it; how many messages that are."""
    deleted, waiting, seen = 0, [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            raise Unusable("no_parent", "a message answers itself")
        seen.add(id(node))
        gone = [reply for reply in node.replies if reply.deleted]
        node.replies = [reply for reply in node.replies if not reply.deleted]
        waiting += node.replies
        while gone:
            deleted += 1
            gone += gone.pop().replies
    return deleted


def _best(root: _Node) -> list[_Node]:
    path = [root]
    while path[-1].replies:
        path.append(min(path[-1].replies, key=lambda node: node.rank))
    return path


def _paths(root: _Node) -> Iterator[list[_Node]]:
    """Every path from the root to a leaf, in the order of the replies."""
    waiting = [[root]]
    while waiting:
        path = waiting.pop()
        if not path[-1].replies:
            yield path
        waiting += [[*path, reply] for reply in reversed(path[-1].replies)]
