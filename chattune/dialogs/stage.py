"""The `collect` stage: from files of conversations to three splits without leaks, with a count for everything left out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import field_validator

from chattune.core import files
from chattune.core.errors import DataError
from chattune.core.part import Settings, kind, setting
from chattune.core.progress import talk
from chattune.core.stage import keep_summary, stage
from chattune.dialogs.artifact import SPLITS, Dialogs
from chattune.dialogs.detect import detect
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.readers import Reader
from chattune.dialogs.shape import MessageCounts, Shaped, content_key, shaped
from chattune.dialogs.sources import SourceFile, source_files
from chattune.dialogs.text import known_encoding

_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class CollectConfig(Settings):
    """Where conversations come from and how they are divided."""

    sources: tuple[str, ...] = setting(
        ("chatterbot-english", "chitchat"),
        "files, folders, globs, or chatterbot-english, chatterbot-chinese, chitchat: data that comes with the installation",
    )
    format: Reader | None = setting(None, "reader for all files of your own; none: each file's format is detected and said")
    encoding: str = setting("utf-8", "encoding of the files; a byte order mark may stand or not, gzip is unpacked")
    splits: tuple[float, float, float] = setting((0.8, 0.1, 0.1), "shares of training, validation and test; their sum is 1")
    question_length: int = setting(
        1, "characters from which a later user message may not stand both in training and in test; the opening one never does", low=1
    )
    near_duplicate_threshold: float = setting(
        0.7, "questions are near-duplicates from this Jaccard similarity of character 5-grams on", low=0.3, high=1.0
    )

    @field_validator("sources", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("sources")
    @classmethod
    def _some_source(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(map(str.strip, value)):
            raise ValueError("should name at least one source")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        return known_encoding(value)

    @field_validator("splits")
    @classmethod
    def _whole(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("should be three shares above 0 with the sum 1, such as [0.8, 0.1, 0.1]")
        return value

    def fingerprint(self) -> dict[str, str]:
        """sha256 of each source file, by the name under which it is known in what we write."""
        return {file.shown: files.digest_of(file.path) for file in source_files(self.sources)}


@dataclass
class _Account:
    """What was read and what became of it."""

    read: int = 0
    dropped: list[Drop] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    copies: Counter[str] = field(default_factory=Counter)
    messages: MessageCounts = field(default_factory=MessageCounts)

    def counts(self, kept: int) -> dict[str, Any]:
        reasons = Counter(drop.reason for drop in self.dropped)
        if self.read != kept + sum(reasons.values()):
            raise AssertionError(f"{self.read} read, {kept} kept, {reasons} dropped: something was lost silently")
        return {"read": self.read, "kept": kept, "dropped": dict(sorted(reasons.items()))}


@stage
def collect(*, config: CollectConfig, seed: int = 0, out: Path) -> Dialogs:
    """Read every source, bring dialogs into their normal shape, leave duplicates out, and split by cluster."""
    import numpy as np

    from chattune.dialogs.split import Asked, Rules, measured, split

    account = _Account()
    dialogs = list(_gathered(config, account))
    copies = [account.copies[content_key(dialog)] for dialog in dialogs]
    if not dialogs:
        raise DataError(
            f"nothing usable among {account.read} conversations: {_told(Counter(drop.reason for drop in account.dropped))}.",
            path=", ".join(config.sources), rule="at least one conversation with a reply",
            hint="Is this the right format? Name it with collect.format=….",
        )
    rules = Rules(config.splits, config.near_duplicate_threshold, config.question_length, seed)
    asked = Asked(dialogs)
    divided = split(asked, rules)
    parts = {name: [dialogs[i] for i in np.flatnonzero(divided.part == index)] for index, name in enumerate(SPLITS)}
    for name, own in parts.items():
        _write(out / f"{name}.jsonl", (dialog.as_dict() for dialog in own))
    _write(out / "dropped.jsonl", (asdict(drop) for drop in account.dropped))
    summary = {
        "counts": account.counts(len(dialogs)),
        "split": {
            **{name: len(own) for name, own in parts.items()},
            **measured(asked, divided.part, rules, copies),
            "clusters": int(divided.cluster.max()) + 1,
            "largest_cluster": max(Counter(divided.cluster.tolist()).values()),
            "not_joined": {"questions": len(divided.refused), "examples": list(divided.refused[-5:])},
        },
        "messages": asdict(account.messages),
        "shapes": {name: _shape_of(own) for name, own in parts.items()},
        "sources": account.sources,
    }
    keep_summary(out, summary)
    _say(summary, config.splits)
    return Dialogs(out)


def read_sources(config: CollectConfig) -> Iterator[Dialog | Drop]:
    """Everything in the sources as it is read, before anything is shaped, left out or divided."""
    for file in source_files(config.sources):
        yield from _reader(file, config).read(file.path)


def _gathered(config: CollectConfig, account: _Account) -> Iterator[Dialog]:
    """Every dialog that is kept, shaped, with an id of its own; the rest is put to account."""
    said: dict[str, str] = {}
    ids: set[str] = set()
    for file in source_files(config.sources):
        reader = _reader(file, config)
        before, lost, kept = account.read, len(account.dropped), 0
        for item in reader.read(file.path):
            account.read += 1
            found = shaped(item) if isinstance(item, Dialog) else item
            if isinstance(found, Shaped):
                key, dialog = content_key(found.dialog), found.dialog
                account.copies[key] += 1
                if key not in said:
                    said[key] = _own_id(dialog.id, ids)
                    account.messages.add(dialog, found.empty, found.joined)
                    kept += 1
                    yield replace(dialog, id=said[key], source=file.source, file=file.shown)
                    continue
                found = Drop("duplicate", file.shown, dialog.line, f"{dialog.id} says the same as {said[key]}")
            if isinstance(item, Dialog):
                account.messages.drop(item)
            account.dropped.append(replace(found, file=file.shown))
        if account.read == before:
            raise DataError(f"holds no conversation that {reader.name} can read.", path=file.shown, rule="at least one conversation",
                            hint="Name its format with collect.format=…, or leave the file out.")  # fmt: skip
        read, dropped = account.read - before, len(account.dropped) - lost
        account.sources.append({"file": file.shown, "format": reader.name, "read": read, "dialogs": kept, "dropped": dropped})


def _own_id(wanted: str, taken: set[str]) -> str:
    """`wanted`, with a number behind it when another dialog has it."""
    own, number = wanted, 1
    while own in taken:
        number += 1
        own = f"{wanted}~{number}"
    taken.add(own)
    return own


def _reader(file: SourceFile, config: CollectConfig) -> Reader:
    if file.format is not None:
        reader: Reader = kind("readers").load(file.format)()  # type: ignore[assignment]
        return reader
    if config.format is None:
        return detect(file.path, config.encoding)
    return config.format if config.encoding == "utf-8" else config.format.changed(encoding=config.encoding)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    # Metadata and details may hold half of a surrogate pair, which only its escape can stand for.
    files.write_atomically(path, text.encode("utf-8", "backslashreplace"))


def _shape_of(dialogs: Sequence[Dialog]) -> dict[str, Any]:
    """What one looks at to see whether the splits are alike: sizes, and the share of Han among what is not white space."""
    messages = [message.content for dialog in dialogs for message in dialog.messages]
    characters = sum(map(len, messages))
    written = sum(len(word) for message in messages for word in message.split())
    return {
        "dialogs": len(dialogs), "messages": len(messages), "characters": characters,
        "messages_per_dialog": round(len(messages) / max(1, len(dialogs)), 2),
        "characters_per_message": round(characters / max(1, len(messages)), 1),
        "han_share": round(sum(len(_HAN.findall(message)) for message in messages) / max(1, written), 4),
    }  # fmt: skip


def _say(summary: Mapping[str, Any], shares: Sequence[float]) -> None:
    say = talk().print
    by_format: dict[str, Counter[str]] = {}
    for source in summary["sources"]:
        name = source["file"] if len(summary["sources"]) <= 8 else str(Path(source["file"]).parent)
        by_format.setdefault(f"{name}: {source['format']}", Counter()).update(
            files=1, read=source["read"], kept=source["dialogs"]
        )
    for name, count in by_format.items():
        many = f" in {count['files']} files" if count["files"] > 1 else ""
        say(f"collect  {name}{many}, {count['kept']} of {count['read']} dialogs kept", markup=False)
    counts, found = summary["counts"], summary["split"]
    say(f"collect  read {counts['read']}, kept {counts['kept']}, dropped {_told(counts['dropped'])}", markup=False)
    say(f"collect  train {found['train']}, validation {found['validation']}, test {found['test']} dialogs", markup=False)
    from chattune.dialogs.split import sizes

    wanted = sizes(counts["kept"], shares)
    if any(abs(found[name] - count) > 1 for name, count in zip(SPLITS, wanted, strict=True)):
        say(f"collect  warning: clusters are too large for the shares asked for, which are {wanted} dialogs", markup=False)
    if found["not_joined"]["questions"]:
        examples = ", ".join(repr(text[:40]) for text in found["not_joined"]["examples"])
        say(
            f"collect  warning: {found['not_joined']['questions']} questions are too common to keep apart, such as {examples}",
            markup=False,
        )
    say(
        f"collect  test questions in training: {found['exact_overlap']:.2%} exactly, {found['near_duplicate_share']:.2%} nearly; "
        f"with a row-random split: {found['row_random_exact_overlap']:.1%}, {found['row_random_near_duplicate_share']:.1%}",
        markup=False,
    )  # fmt: skip


def _told(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "nothing"
