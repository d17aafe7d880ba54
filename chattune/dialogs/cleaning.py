"""Cleaning: cleaners one after the other over all dialogs, spread over cores; what changed is counted, with examples.

Cleaners that look at one dialog only are applied together in one pass; one that must know all dialogs first starts a new pass over
what those before it left. A worker gets a stretch of the file, and gives back the lines that are to be written: nothing is held in
memory but a few hundred dialogs for each worker and what a cleaner itself keeps.
"""

from __future__ import annotations

import difflib
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chattune.core import files
from chattune.core.errors import DataError
from chattune.core.executors import INLINE, Executor
from chattune.dialogs.artifact import Stored, Stretch, line_of
from chattune.dialogs.cleaners import Cleaner, Cleaning
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.shape import Shaped, shaped

EXAMPLES = 20  # kept for each cleaner, spread over what it changed
_TOGETHER = 256  # dialogs that go to a worker at once
_PIECE = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+|\s+|.", re.S)  # what a logged change is made of: words, Chinese characters
_ALIGNED = 2000  # pieces of a message whose changes are told one by one; of a longer one, from the first to the last change


@dataclass
class Tally:
    """What one cleaner did: dialogs seen, changed and dropped by reason, messages changed; some of what it changed."""

    name: str
    seen: int = 0
    changed: int = 0
    messages: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Put a later tally of the same cleaner to this one; of the examples the first are kept."""
        self.seen += other.seen
        self.changed += other.changed
        self.messages += other.messages
        self.dropped += other.dropped
        self.examples = [*self.examples, *other.examples][:EXAMPLES]

    def as_dict(self) -> dict[str, Any]:
        return {
            "cleaner": self.name, "seen": self.seen, "changed": self.changed, "messages_changed": self.messages,
            "dropped": dict(sorted(self.dropped.items())), "examples": self.examples,
        }  # fmt: skip


@dataclass
class Cleaned:
    """What came of it: a tally for each cleaner in order, and messages that are no more in the dialogs that are kept."""

    tallies: list[Tally]
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    emptied: int = 0
    joined: int = 0
    messages_dropped: int = 0


def cleaned(
    dialogs: Stored,
    cleaners: Sequence[Cleaner],
    out: Path,
    put: Callable[[Drop], None],
    executor: Executor = INLINE,
    log: Callable[[dict[str, Any]], None] = lambda change: None,
) -> Cleaned:
    """Write what the cleaners leave of `dialogs` to `out`; what they leave out goes to `put`, in order.

    `log` gets a row for each message that a cleaner with `logs_changes` changed. The result does not depend on the `executor`; a worker
    of another machine must see `out` and `dialogs` in the same place.
    """
    found = Cleaned([Tally(cleaner.name) for cleaner in cleaners])
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".cleaning-") as folder:
        source = dialogs
        for number, some in enumerate(passes(cleaners)):
            target = out if some[-1] == len(cleaners) - 1 else Path(folder) / f"{number}.jsonl"
            working = [cleaners[place].begin(source) for place in some]
            work = Pass(tuple(cleaners[place] for place in some), tuple(working))
            results = executor.map(work, source.stretches(_TOGETHER))
            found.kept = 0
            with files.replacing(target) as file:
                for outcome in results:
                    found.kept += outcome.kept
                    file.write(outcome.lines)
                    _count(outcome, [found.tallies[place] for place in some], found, put, log)
            source = Stored(target)
    return found


def passes(cleaners: Sequence[Cleaner]) -> list[list[int]]:
    """Places of the cleaners that go together: one that looks at all dialogs is the first of its pass."""
    found: list[list[int]] = []
    for place, cleaner in enumerate(cleaners):
        if not found or cleaner.looks_at_all:
            found.append([])
        found[-1].append(place)
    return found


@dataclass(frozen=True)
class Pass:
    """Cleaners at work, applied one after the other to each dialog."""

    cleaners: tuple[Cleaner, ...]
    working: tuple[Cleaning, ...]

    def __call__(self, stretch: Stretch) -> Outcome:
        """What becomes of the dialogs of a stretch."""
        outcome = Outcome([Tally(cleaner.name) for cleaner in self.cleaners])
        lines: list[bytes] = []
        for line, dialog in _seen(stretch):
            result = self._one(dialog, outcome)
            if isinstance(result, Drop):
                outcome.drops.append(result)
            else:
                lines.append(line if result is dialog and line.endswith(b"\n") else line_of(result))
        outcome.kept, outcome.lines = len(lines), b"".join(lines)
        return outcome

    def _one(self, dialog: Dialog, outcome: Outcome) -> Dialog | Drop:
        for cleaner, working, tally in zip(self.cleaners, self.working, outcome.tallies, strict=True):
            result = working.clean(dialog)
            tally.seen += 1
            if isinstance(result, Dialog) and result is not dialog:
                different = [pair for pair in zip(dialog.messages, result.messages, strict=True) if pair[0] != pair[1]]
                if cleaner.logs_changes:
                    outcome.changes += _logged(cleaner.name, dialog, result)
                if different:
                    tally.changed += 1
                    tally.messages += len(different)
                    if len(tally.examples) < EXAMPLES:
                        tally.examples.append(_example(result, *different[0], private=cleaner.private))
                    whole = shaped(result)
                    if isinstance(whole, Shaped):
                        outcome.emptied += whole.empty
                        outcome.joined += whole.joined
                        result = whole.dialog
                    else:
                        result = whole
            if isinstance(result, Drop):
                tally.dropped[result.reason] += 1
                outcome.messages_dropped += len(dialog.messages)
                return result
            dialog = result
        return dialog


@dataclass
class Outcome:
    """What a pass made of some dialogs: how many are kept and the lines that hold them, and what is dropped, in their order."""

    tallies: list[Tally]
    kept: int = 0
    lines: bytes = b""
    drops: list[Drop] = field(default_factory=list)
    emptied: int = 0
    joined: int = 0
    messages_dropped: int = 0
    changes: list[dict[str, Any]] = field(default_factory=list)  # for the log


def _count(
    outcome: Outcome, tallies: list[Tally], found: Cleaned, put: Callable[[Drop], None], log: Callable[[dict[str, Any]], None]
) -> None:
    for tally, more in zip(tallies, outcome.tallies, strict=True):
        tally.add(more)
    found.emptied += outcome.emptied
    found.joined += outcome.joined
    found.messages_dropped += outcome.messages_dropped
    for change in outcome.changes:
        log(change)
    for drop in outcome.drops:
        found.reasons[drop.reason] += 1
        put(drop)


def _seen(stretch: Stretch) -> Iterator[tuple[bytes, Dialog]]:
    try:
        yield from stretch
    except FileNotFoundError:
        raise DataError(
            "is not there for the worker that is to clean it.", path=str(stretch.path),
            rule="a home that all machines see in one place",
            hint="Put the runs on a disk that the machines share (--home), or set clean.executor=processes.",
        ) from None


def _example(dialog: Dialog, before: Any, after: Any, *, private: bool) -> dict[str, Any]:
    """The place of a change and a stretch of the text around it, before (unless that is private) and after."""
    first = next((i for i, (a, b) in enumerate(zip(before.content, after.content, strict=False)) if a != b), 0)
    begin = max(0, first - 30)
    shown = {"after": after.content[begin : begin + 120]} | ({} if private else {"before": before.content[begin : begin + 120]})
    return {"id": dialog.id, "file": dialog.file, "line": dialog.line, "role": after.role, **shown}


def _logged(name: str, before: Dialog, after: Dialog) -> Iterator[dict[str, Any]]:
    """A row for each message whose content changed; `message` counts from 0, as the messages stood before."""
    for number, (old, new) in enumerate(zip(before.messages, after.messages, strict=True)):
        if old.content != new.content:
            place = {"cleaner": name, "id": before.id, "file": before.file, "line": before.line, "message": number, "role": old.role}
            yield {**place, "changes": differences(old.content, new.content)}


def differences(before: str, after: str) -> list[dict[str, Any]]:
    """What has to be replaced in `before` to get `after`: ``{"at": first character, "before": …, "after": …}``, in order.

    Words, Chinese characters and stretches of white space are compared as a whole.
    """
    old, new = _PIECE.findall(before), _PIECE.findall(after)
    begin = next((place for place, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    rest = min(len(old), len(new)) - begin
    end = next((count for count in range(rest) if old[-1 - count] != new[-1 - count]), rest)
    middle, other = old[begin : len(old) - end], new[begin : len(new) - end]
    spans = [(0, len(middle), 0, len(other))]
    if max(len(middle), len(other)) <= _ALIGNED:
        matcher = difflib.SequenceMatcher(None, middle, other, autojunk=False)
        spans = [(a, b, c, d) for what, a, b, c, d in matcher.get_opcodes() if what != "equal"]
    starts = [sum(map(len, old[:begin]))]
    for piece in middle:
        starts.append(starts[-1] + len(piece))
    return [{"at": starts[a], "before": "".join(middle[a:b]), "after": "".join(other[c:d])} for a, b, c, d in spans]
