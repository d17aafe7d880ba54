"""Interleaved conversations: reply links and conversations found in channel logs, against what people annotated.

Every second of the annotated logs measures, the others are what the weights of chattune/dialogs/disentangle.py were fitted on;
`--fit` fits them again and prints them. Judged are the annotated messages (joins and notices are no messages). Links are scored
as in Kummerfeld et al. 2019: precision, recall and F1 over all links, where the opening of a conversation is a link to itself.
Conversations: one minus the variation of information over its greatest value; the share of messages in common under the best
one-to-one match; F1 of conversations of two and more messages that are found exactly; means over the files. The baselines link
each message to the one before, and to the last message of the speaker whom it mentions (else to the one before).

    .venv/bin/python benchmarks/disentangle.py [--json] [--fit] [--data ../shared/data/messy/irc]
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chattune.dialogs.disentangle import FEATURES, LINK_WEIGHTS, START_WEIGHTS, Linker, conversations
from chattune.dialogs.readers.irc import IRC
from chattune.dialogs.sessions import Said

RIDGE = 1.0  # strength of the penalty on the square of the weights
ROUNDS = 3  # times that the weights are fitted; features that look at conversations see those of the round before


@dataclass(frozen=True)
class Log:
    """A log and its annotation: the numbers of the messages that each annotated message answers (its own where it opens)."""

    name: str
    said: list[Said]
    gold: dict[int, set[int]]


def load(path: Path) -> Log:
    """The log at `path` (``….raw.txt``) with the annotation beside it, which counts lines from 0."""
    said = [event for event in IRC().events(path) if isinstance(event, Said)]
    number = {one.line - 1: place for place, one in enumerate(said)}
    gold: dict[int, set[int]] = {}
    for row in path.with_name(path.name.replace(".raw.", ".annotation.")).read_text("utf-8").splitlines():
        earlier, later = sorted(int(part) for part in row.split()[:2])
        if earlier in number and later in number:
            gold.setdefault(number[later], set()).add(number[earlier])
    for later, answered in gold.items():
        if len(answered) > 1:
            answered.discard(later)
    return Log(path.name.removesuffix(".raw.txt"), said, gold)


def halves(folder: Path) -> tuple[list[Log], list[Log]]:
    """The logs to fit on, and those that measure: every second one by name."""
    paths = sorted(folder.glob("*.raw.txt"))
    return [load(path) for path in paths[::2]], [load(path) for path in paths[1::2]]


def model(log: Log, weights: Mapping[str, float] | None = None) -> list[int]:
    """What chattune links each message to."""
    linker = Linker(weights=weights)
    return [linker.push(one.speaker, one.text, one.time) for one in log.said]


def previous(log: Log) -> list[int]:
    """Baseline: the message before."""
    return [max(0, number - 1) for number in range(len(log.said))]


def mentioned(log: Log) -> list[int]:
    """Baseline: the last message of the speaker who is named at the beginning (or else the first one named later); else the one
    before."""
    last: dict[str, int] = {}
    found = []
    for number, one in enumerate(log.said):
        words = [word.strip(".,:;!?()<>@'\"").casefold() for word in one.text.split()]
        names = [word for word in words if word in last and word != one.speaker.casefold() and len(word) > 2]
        found.append(last[names[0]] if names else max(0, number - 1))
        last[one.speaker.casefold()] = number
    return found


def link_scores(logs: Sequence[Log], found: Sequence[Sequence[int]]) -> dict[str, float]:
    """Precision, recall and F1 of the links of annotated messages, over all logs."""
    hits = sum(links[number] in answered for log, links in zip(logs, found, strict=True) for number, answered in log.gold.items())
    precision = hits / sum(len(log.gold) for log in logs)
    recall = hits / sum(len(answered) for log in logs for answered in log.gold.values())
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / max(1e-9, precision + recall)}


def parts(log: Log, links: Mapping[int, set[int]]) -> dict[int, int]:
    """For each annotated message a number of its conversation: messages that links of annotated messages join are in one."""
    above = list(range(len(log.said)))

    def top(number: int) -> int:
        while above[number] != number:
            above[number] = above[above[number]]
            number = above[number]
        return number

    for number, answered in links.items():
        for other in answered:
            above[top(number)] = top(other)
    return {number: top(number) for number in log.gold}


def conversation_scores(true: Mapping[int, int], found: Mapping[int, int]) -> dict[str, float]:
    """How alike two divisions of the same messages are, each from 0 to 1: by information, one to one, and exactly."""
    from scipy.optimize import linear_sum_assignment

    both = Counter((true[number], found[number]) for number in true)
    rows, columns = Counter(true.values()), Counter(found.values())
    total = len(true)
    distance = -sum(
        count / total * (math.log2(count / rows[a]) + math.log2(count / columns[b])) for (a, b), count in both.items()
    )
    table = np.zeros((len(rows), len(columns)))
    for (a, b), count in both.items():
        table[list(rows).index(a), list(columns).index(b)] = count
    matched = table[linear_sum_assignment(table, maximize=True)].sum()
    exact = sum(1 < count == rows[a] == columns[b] for (a, b), count in both.items())
    sizes = sum(count > 1 for count in rows.values()) + sum(count > 1 for count in columns.values())
    return {"information": 1 - distance / math.log2(total), "one_to_one": matched / total, "exact_f1": 2 * exact / max(1, sizes)}


def scores(logs: Sequence[Log], linked: Callable[[Log], list[int]]) -> dict[str, float]:
    """All figures of one way to link, on `logs`."""
    found = [linked(log) for log in logs]
    each = [
        conversation_scores(parts(log, log.gold), parts(log, {number: {links[number]} for number in log.gold}))
        for log, links in zip(logs, found, strict=True)
    ]
    return link_scores(logs, found) | {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def gathered(logs: Sequence[Log], weights: Mapping[str, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Features of every annotated message, (messages, candidates, features), and which candidates are right; padded with NaN.

    Without weights, links before the annotation go to the message before.
    """
    tables, right = [], []
    for log in logs:
        linker = Linker(weights=weights)
        for number, one in enumerate(log.said):
            read = linker.see(one.speaker, one.text, one.time)
            table = linker.features(read, one.text)
            low = number - (len(table) - 1)
            places = {len(table) - 1 if other == number else other - low for other in log.gold.get(number, ()) if other >= low}
            if places:
                tables.append(table)
                right.append(places)
            if weights is None:
                answers = max(log.gold.get(number, {max(0, number - 1)}))
            else:
                best = int(np.argmax(table @ np.array([weights[name] for name in FEATURES])))
                answers = number if best == len(table) - 1 else low + best
            linker.take(read, answers)
    size = max(map(len, tables))
    padded = np.full((len(tables), size, len(FEATURES)), np.nan)
    gold = np.zeros((len(tables), size))
    for row, (table, places) in enumerate(zip(tables, right, strict=True)):
        padded[row, : len(table)] = table
        gold[row, sorted(places)] = 1
    return padded, gold


def fitted(logs: Sequence[Log]) -> dict[str, float]:
    """Weights under which the right candidates are likeliest in a softmax over all, with a ridge penalty."""
    from scipy.optimize import minimize

    weights = None
    for _ in range(ROUNDS):
        padded, gold = gathered(logs, weights)
        absent = np.isnan(padded[..., 0])
        table = np.nan_to_num(padded).reshape(-1, len(FEATURES))

        def loss(own: Any, table: Any = table, absent: Any = absent, gold: Any = gold) -> tuple[float, Any]:
            score = np.where(absent, -1e9, (table @ own).reshape(absent.shape))
            chance = np.exp(score - score.max(1, keepdims=True))
            chance /= chance.sum(1, keepdims=True)
            right = np.maximum((chance * gold).sum(1, keepdims=True), 1e-300)
            gradient = table.T @ (chance - chance * gold / right).reshape(-1)
            return float(-np.log(right).sum() + RIDGE / 2 * own @ own), gradient + RIDGE * own

        own = minimize(loss, np.zeros(len(FEATURES)), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
        weights = {name: round(float(value), 3) for name, value in zip(FEATURES, own, strict=True)}
    return weights


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="one JSON object a line")
    options.add_argument("--fit", action="store_true", help="fit the weights on the other half of the logs and print them first")
    options.add_argument("--data", type=Path, default=Path("../shared/data/messy/irc"), help="the folder with the annotated logs")
    chosen = options.parse_args()
    learnt, measured = halves(chosen.data)
    weights = {**LINK_WEIGHTS, **START_WEIGHTS}
    if chosen.fit:
        weights = fitted(learnt)
        print("\n".join(f'    "{name}": {value},' for name, value in weights.items()))
    rows = [
        {"bench": "disentangle", "way": name, "logs": which, "messages": sum(len(log.gold) for log in logs), **scores(logs, way)}
        for which, logs in (("held out", measured), ("fitted on", learnt))
        for name, way in (("previous", previous), ("mentioned", mentioned), ("chattune", lambda log: model(log, weights)))
    ]
    for row in rows:
        if chosen.json:
            print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}))
        else:
            figures = "  ".join(f"{key} {value:.3f}" for key, value in row.items() if isinstance(value, float))
            print(f"{row['way']:10s} {row['logs']:9s} {row['messages']:5d} messages  {figures}")
    talks = [len({*conversations(model(log, weights))}) for log in measured]
    if not chosen.json:
        print(f"conversations in the held-out logs: {talks}")


if __name__ == "__main__":
    main()
