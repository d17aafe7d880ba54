"""The normal shape of a dialog: no empty messages, no two messages of one role in a row, at least one reply.

What raw logs have is kept: an assistant that opens, a user who has the last word. Content is not changed but for white space
at the ends of a message; runs of one role are joined by a newline.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from chattune.dialogs.dialog import Dialog, Drop, Message

TEXT = "text"  # ``metadata["kind"]`` of running text, which is one message of the assistant that nobody asked for
_BROKEN = re.compile("[\ud800-\udfff]")


@dataclass
class MessageCounts:
    """What became of the messages: ``read = kept + empty + joined + dropped`` (dropped: in dialogs that were left out)."""

    read: int = 0
    kept: int = 0
    empty: int = 0
    joined: int = 0
    dropped: int = 0

    def add(self, kept: Dialog, empty: int, joined: int) -> None:
        """Count a dialog that is kept."""
        self.kept += len(kept.messages)
        self.empty += empty
        self.joined += joined
        self.read += len(kept.messages) + empty + joined

    def drop(self, dialog: Dialog) -> None:
        """Count a dialog, as it was read, that is left out."""
        self.dropped += len(dialog.messages)
        self.read += len(dialog.messages)


@dataclass(frozen=True)
class Shaped:
    """A dialog in its normal shape, and how many messages were empty or joined to the one before."""

    dialog: Dialog
    empty: int
    joined: int


def shaped(dialog: Dialog) -> Shaped | Drop:
    """`dialog` in its normal shape, or a `Drop`.

    ``empty``: nothing is said; ``no_reply``: nobody answers; ``no_user``: nobody asks, and it is no running text (`TEXT`);
    ``broken_character``: half of a surrogate pair, which JSON can hold and no encoding of text can.
    """
    messages: list[Message] = []
    empty = joined = 0
    for message in dialog.messages:
        content = message.content.strip()
        if not content:
            empty += 1
        elif messages and messages[-1].role == message.role:
            joined += 1
            messages[-1] = _joined(messages[-1], content, message.weight)
        else:
            messages.append(message if content == message.content else replace(message, content=content))
    roles = {message.role for message in messages}
    asked = "user" in roles or (roles == {"assistant"} and dialog.metadata.get("kind") == TEXT)
    reason = "empty" if not messages else "no_reply" if "assistant" not in roles else None if asked else "no_user"
    if any(_BROKEN.search(message.content) for message in messages):
        reason = "broken_character"
    if reason:
        who = ", ".join(sorted(roles)) or "nobody"
        return Drop(reason, dialog.file, dialog.line, f"{dialog.id}: {len(messages)} messages by {who}")
    # Made anew field by field: `replace` takes several times as long, and this is done for every dialog that is read.
    whole = Dialog(dialog.id, tuple(messages), dialog.source, dialog.file, dialog.line, dialog.group, dialog.metadata)
    return Shaped(whole, empty, joined)


def content_key(dialog: Dialog) -> str:
    """sha256 of roles and contents: equal for dialogs that say the same."""
    said = "\x1e".join(f"{message.role}\x1f{message.content}" for message in dialog.messages)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def questions(dialog: Dialog) -> Iterator[str]:
    """Each user message that a reply follows, in order."""
    for message, following in zip(dialog.messages, dialog.messages[1:], strict=False):
        if message.role == "user" and following.role in ("assistant", "tool"):
            yield message.content


def _joined(before: Message, content: str, weight: float | None) -> Message:
    # Of two weights the smaller stands (none counts as 1): what was marked to be left out is never learned.
    weights = None if before.weight is None and weight is None else min(1.0 if w is None else w for w in (before.weight, weight))
    return Message(before.role, f"{before.content}\n{content}", weights)
