"""What the cleaners that learn can tell: offensive text beside a word list alone, and swapped replies among right ones.

Offensive text: COLD's development set in Chinese (learnt on one half, judged on the other, and the other way round) and XSTest in
English (five folds), precision, recall and the share of harmless texts that are blocked. Wrong answers: a fifth of all replies is
swapped with another one; AUROC of the loss by which they are ranked. The data is read from ``--data`` (not part of the project).

    .venv/bin/python benchmarks/data_quality.py [--json] [--data ../shared/data] [--only offensive|replies]
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import sys
import zipfile
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from chattune.dialogs._offensive import Words, _told, learn
from chattune.dialogs.dialog import Dialog
from chattune.dialogs.gathering import Wanted, read_sources
from chattune.dialogs.shape import Shaped, shaped
from chattune.features.matching import mismatch


def scores(predicted: Sequence[bool], true: Sequence[bool]) -> dict[str, float]:
    """Precision, recall, and the share of harmless texts that are blocked."""
    both = sum(p and t for p, t in zip(predicted, true, strict=True))
    blocked = (sum(predicted) - both) / (len(true) - sum(true))
    return {"precision": both / max(1, sum(predicted)), "recall": both / sum(true), "over_blocking": blocked}


def offensive(name: str, rows: list[tuple[str, bool]], words: Words, folds: int) -> list[dict[str, object]]:
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
    return [
        {"bench": "offensive", "set": name, "judge": "word list alone", **scores([words.count(text) > 0 for text, _ in rows], true)},
        {"bench": "offensive", "set": name, "judge": "examples and word list", **scores(predicted, true)},
    ]


def swapped(name: str, talks: Iterable[Sequence[str]]) -> dict[str, object]:
    """AUROC with which swapped replies are ranked before right ones."""
    pairs = list(dict.fromkeys((talk[place - 1], talk[place]) for talk in talks for place in range(1, len(talk), 2)))
    wrong = random.Random(0).sample(range(len(pairs)), len(pairs) // 5)
    replies = [reply for _, reply in pairs]
    for a, b in zip(wrong, wrong[1:] + wrong[:1], strict=True):
        replies[a] = pairs[b][1]
    rank = np.argsort(np.argsort(mismatch([question for question, _ in pairs], replies)))
    area = (rank[wrong].sum() - len(wrong) * (len(wrong) - 1) / 2) / (len(wrong) * (len(pairs) - len(wrong)))
    return {"bench": "label_errors", "set": name, "replies": len(pairs), "auroc": float(area)}


def conversations(source: str) -> Iterable[list[str]]:
    for item in read_sources(Wanted([source])):
        if isinstance(item, Dialog) and isinstance(found := shaped(item), Shaped):
            yield [message.content for message in found.dialog.messages]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="one JSON object a line")
    options.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder with the sets")
    options.add_argument("--only", choices=["offensive", "replies"], help="one of the two questions")
    chosen = options.parse_args()
    if not chosen.data.is_dir():
        print(f"{chosen.data} is no folder: nothing is measured. Name the one with the sets: --data DIR", file=sys.stderr)
        return
    rows: list[dict[str, object]] = []
    safety, chinese, english = chosen.data / "safety", chosen.data / "zh_dialogue", chosen.data / "en_dialogue"
    if chosen.only != "replies":
        with gzip.open(safety / "cold_dev.csv.gz", "rt", encoding="utf-8-sig") as file:
            cold = [(row["TEXT"], row["label"] == "1") for row in csv.DictReader(file)]
        with (safety / "xstest_prompts.csv").open(encoding="utf-8") as file:
            xstest = [(row["prompt"], row["label"] == "unsafe") for row in csv.DictReader(file)]
        rows += offensive("COLD", cold, Words([str(safety / "ldnoobw_zh.txt")]), 2)
        rows += offensive("XSTest", xstest, Words([str(safety / "ldnoobw_en.txt")]), 5)
    if chosen.only != "offensive":
        with zipfile.ZipFile(chinese / "crosswoz_val.json.zip") as archive:
            told = json.loads(archive.read(archive.namelist()[0]))
        rows.append(swapped("CrossWOZ", [[message["content"] for message in talk["messages"]] for talk in told.values()]))
        travel = []
        for part in ("dev", "test"):
            with gzip.open(chinese / f"kdconv_travel_{part}.json.gz", "rt", encoding="utf-8") as file:
                travel += [[message["message"] for message in talk["messages"]] for talk in json.load(file)]
        rows.append(swapped("KdConv, travel", travel))
        with gzip.open(english / "sgd_dev_dialogues_007.json.gz", "rt", encoding="utf-8") as file:
            rows.append(swapped("Schema-guided", [[turn["utterance"] for turn in talk["turns"]] for talk in json.load(file)]))
        rows.append(swapped("chitchat", islice(conversations("chitchat"), 600)))
    for row in rows:
        if chosen.json:
            print(json.dumps(row), flush=True)
        else:
            print("  ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))


if __name__ == "__main__":
    main()
