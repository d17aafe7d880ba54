"""What the cleaners that learn can tell: offensive text beside a word list alone, swapped replies, dialogs off the topic.

Offensive text: COLD's development set in Chinese (learnt on one half, judged on the other, and the other way round) and XSTest in
English (five folds), precision, recall and the share of harmless texts that are blocked; compared by F1. Wrong answers: a fifth of
all replies is swapped with another one; AUROC of the loss by which they are ranked. The bar (0.85) is for talk in which replies belong
to their questions, CrossWOZ and KdConv; the others show where the ranking ends. Off-topic dialogs: a tenth, or a quarter, of all
dialogs is planted from another set; precision and recall of what `off_topic` leaves out with 60 examples of the one and 30 of the
other, beside what it leaves out without any. The data is read from ``--data`` (not part of the project).

    .venv/bin/python benchmarks/data_quality.py [--json] [--data ../shared/data] [--only offensive|replies|topic]
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from _common import Line, say

from chattune.dialogs._offensive import Words, _told, learn
from chattune.dialogs.cleaners.off_topic import OffTopic
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.gathering import Wanted, read_sources
from chattune.dialogs.shape import Shaped, shaped
from chattune.features.matching import mismatch

RANKED, FOUND = 0.85, 0.9  # AUROC of label errors, and F1 of dialogs off the topic, that are asked for
Row = tuple[Line, dict[str, Any]]


def scores(predicted: Sequence[bool], true: Sequence[bool]) -> dict[str, float]:
    """Precision, recall, and the share of harmless texts that are blocked."""
    both = sum(p and t for p, t in zip(predicted, true, strict=True))
    blocked = (sum(predicted) - both) / (len(true) - sum(true))
    return {"precision": both / max(1, sum(predicted)), "recall": both / sum(true), "over_blocking": blocked}


def f1(found: dict[str, float]) -> float:
    """The harmonic mean of precision and recall."""
    return 2 * found["precision"] * found["recall"] / max(1e-12, found["precision"] + found["recall"])


def line(bench: str, peer: str, ours: float, theirs: float, bar: float | None, unit: str) -> Line:
    """A comparison of two figures between 0 and 1; a peer that finds nothing counts as one of a thousandth."""
    return Line(bench, peer, ours / max(1e-3, theirs), bar, None, ours, theirs, unit)


def offensive(name: str, rows: list[tuple[str, bool]], words: Words, folds: int) -> Row:
    """The list alone, and learnt with it, on folds that were not learnt from."""
    random.Random(0).shuffle(rows)
    true = [label for _, label in rows]
    predicted = [False] * len(rows)
    for fold in range(folds):
        others = [row for place, row in enumerate(rows) if place % folds != fold]
        fitted = learn([text for text, _ in others], ["offensive" if label else "clear" for _, label in others], words)
        places = range(fold, len(rows), folds)
        found = fitted.probabilities([_told(rows[place][0], words.count(rows[place][0])) for place in places])
        for place, chance in zip(places, found[:, fitted.labels.index("offensive")].tolist(), strict=True):
            predicted[place] = chance >= 0.5
    listed, learnt = scores([words.count(text) > 0 for text, _ in rows], true), scores(predicted, true)
    return line(f"offensive, {name}", "word list alone", f1(learnt), f1(listed), 1.0, "F1"), {"listed": listed, "learnt": learnt}


def swapped(name: str, talks: Iterable[Sequence[str]], bar: float | None) -> Row:
    """AUROC with which swapped replies are ranked before right ones."""
    pairs = list(dict.fromkeys((talk[place - 1], talk[place]) for talk in talks for place in range(1, len(talk), 2)))
    wrong = random.Random(0).sample(range(len(pairs)), len(pairs) // 5)
    replies = [reply for _, reply in pairs]
    for a, b in zip(wrong, wrong[1:] + wrong[:1], strict=True):
        replies[a] = pairs[b][1]
    area = auroc(mismatch([question for question, _ in pairs], replies), wrong)
    return line(f"label_errors, {name}", "AUROC asked for", area, RANKED, bar, "AUROC"), {"replies": len(pairs)}


def auroc(score: np.ndarray, positive: Sequence[int]) -> float:
    """The probability that one of `positive` (places) has a higher score than another one."""
    rank = np.argsort(np.argsort(score))
    count = len(positive)
    return float((rank[positive].sum() - count * (count - 1) / 2) / (count * (len(score) - count)))


def planted(name: str, on: list[list[str]], off: list[list[str]], share: float) -> Row:
    """What `off_topic` finds of dialogs from `off` among those from `on`, with labelled examples and without."""
    for talks in (on, off):
        talks.sort()
        random.Random(0).shuffle(talks)
    few, strays = on[:60], off[:30]
    kept = [as_dialog(f"on{place}", talk) for place, talk in enumerate(on[60:460])]
    wrong = [as_dialog(f"off{place}", talk) for place, talk in enumerate(off[30 : 30 + round(len(kept) * share / (1 - share))])]
    dialogs = [*kept, *wrong]
    random.Random(1).shuffle(dialogs)
    true = [dialog.id.startswith("off") for dialog in dialogs]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "examples.jsonl"
        rows = [*((talk, "on") for talk in few), *((talk, "off") for talk in strays)]
        table.write_text("".join(json.dumps({"text": " ".join(talk), "label": label}) + "\n" for talk, label in rows), "utf-8")
        for mode, cleaner in (("examples", OffTopic(examples=(str(table),))), ("alone", OffTopic())):
            cleaning = cleaner.begin(dialogs)
            gone = [isinstance(cleaning.clean(dialog), Drop) for dialog in dialogs]
            precision, recall, blocked = scores(gone, true).values()
            found[mode] = {"precision": precision, "recall": recall, "wrongly_dropped": blocked}
    more = {"dialogs": len(dialogs), "planted": len(wrong), **found}
    return line(f"off_topic, {name}, {share:.0%}", "F1 asked for", f1(found["examples"]), FOUND, 1.0, "F1"), more


def as_dialog(name: str, talk: Sequence[str]) -> Dialog:
    return Dialog(name, tuple(Message(("user", "assistant")[place % 2], text) for place, text in enumerate(talk)))


def conversations(source: str) -> Iterable[list[str]]:
    for item in read_sources(Wanted([source])):
        if isinstance(item, Dialog) and isinstance(found := shaped(item), Shaped):
            yield [message.content for message in found.dialog.messages]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="one JSON object a line")
    options.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder with the sets")
    options.add_argument("--only", choices=["offensive", "replies", "topic"], help="one of the questions")
    chosen = options.parse_args()
    if not chosen.data.is_dir():
        print(f"{chosen.data} is no folder: nothing is measured. Name the one with the sets: --data DIR", file=sys.stderr)
        return
    rows: list[Row] = []
    safety, chinese, english = chosen.data / "safety", chosen.data / "zh_dialogue", chosen.data / "en_dialogue"
    if chosen.only in (None, "offensive"):
        with gzip.open(safety / "cold_dev.csv.gz", "rt", encoding="utf-8-sig") as file:
            cold = [(row["TEXT"], row["label"] == "1") for row in csv.DictReader(file)]
        with (safety / "xstest_prompts.csv").open(encoding="utf-8") as file:
            xstest = [(row["prompt"], row["label"] == "unsafe") for row in csv.DictReader(file)]
        rows.append(offensive("COLD", cold, Words([str(safety / "ldnoobw_zh.txt")]), 2))
        rows.append(offensive("XSTest", xstest, Words([str(safety / "ldnoobw_en.txt")]), 5))
    if chosen.only in (None, "replies"):
        with zipfile.ZipFile(chinese / "crosswoz_val.json.zip") as archive:
            told = json.loads(archive.read(archive.namelist()[0]))
        rows.append(swapped("CrossWOZ", [[message["content"] for message in talk["messages"]] for talk in told.values()], 1.0))
        tours = []
        for part in ("dev", "test"):
            with gzip.open(chinese / f"kdconv_travel_{part}.json.gz", "rt", encoding="utf-8") as file:
                tours += [[message["message"] for message in talk["messages"]] for talk in json.load(file)]
        rows.append(swapped("KdConv, travel", tours, 1.0))
        with gzip.open(english / "sgd_dev_dialogues_007.json.gz", "rt", encoding="utf-8") as file:
            rows.append(swapped("Schema-guided", [[turn["utterance"] for turn in talk["turns"]] for talk in json.load(file)], None))
        rows.append(swapped("chitchat", islice(conversations("chitchat"), 600), None))
    if chosen.only in (None, "topic"):
        with zipfile.ZipFile(chinese / "crosswoz_val.json.zip") as archive:
            told = json.loads(archive.read(archive.namelist()[0]))
        sights = [[message["content"] for message in talk["messages"]] for talk in told.values()]
        with gzip.open(chinese / "lccc_toy_train.txt.gz", "rt", encoding="utf-8") as file:
            comments = [row.strip().replace(" ", "").split("\t") for row in file]
        with gzip.open(english / "taskmaster4_data_07.json.gz", "rt", encoding="utf-8") as file:
            films = [[turn["text"] for turn in talk["utterances"]] for talk in json.load(file)]
        small = [*islice(conversations("chitchat"), 600)]
        travel, watching = list[list[str]](), list[list[str]]()
        for path in sorted(chinese.glob("kdconv_*.json.gz")):
            if "_kb_" not in path.name:
                with gzip.open(path, "rt", encoding="utf-8") as file:
                    own = [[message["message"] for message in talk["messages"]] for talk in json.load(file)]
                (travel if "travel" in path.name else watching).extend(own)
        for share in (0.1, 0.25):
            rows.append(planted("sights (zh), comments", sights, comments, share))
            rows.append(planted("films (en), small talk", films, small, share))
            rows.append(planted("travel (zh), films", travel, watching, share))
    for found, more in rows:
        say(found, chosen.json, more)
        if not chosen.json:
            print("    " + "  ".join(f"{name} {_rounded(value)}" for name, value in more.items()))


def _rounded(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_rounded(own)}" for name, own in value.items()) + ")"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
