"""Dialogs off the topic: planted ones are found by examples and, where they are strays, by being unlike the others."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chattune.core.errors import DataError
from chattune.dialogs.cleaners import Cleaning
from chattune.dialogs.cleaners.off_topic import OffTopic
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.features.company import Company, least_usual

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
has_data = pytest.mark.skipif(not DATA.exists(), reason="the data is not here")
Talk = list[str]


def films() -> list[Talk]:
    """People who look for a cinema, in English."""
    with gzip.open(DATA / "en_dialogue" / "taskmaster4_data_07.json.gz") as file:
        return [[turn["text"] for turn in talk["utterances"]] for talk in json.load(file)]


def small_talk() -> list[Talk]:
    with gzip.open(DATA / "en_dialogue" / "chitchat_part.json.gz") as file:
        return [[item["text"] for burst in talk["messages"] for item in burst] for talk in json.load(file).values()]


def sights() -> list[Talk]:
    """People who plan a visit to Beijing, in Chinese."""
    with zipfile.ZipFile(DATA / "zh_dialogue" / "crosswoz_val.json.zip") as archive:
        told = json.loads(archive.read(archive.namelist()[0]))
    return [[message["content"] for message in talk["messages"][:8]] for talk in told.values()]


def comments() -> list[Talk]:
    with gzip.open(DATA / "zh_dialogue" / "lccc_toy_train.txt.gz", "rt", encoding="utf-8") as file:
        return [row.strip().replace(" ", "").split("\t") for row in file]


def dialog(name: str, contents: Talk) -> Dialog:
    roles = ("user", "assistant")
    return Dialog(name, tuple(Message(roles[place % 2], content) for place, content in enumerate(contents)), "made", "f.txt", 3)


def planted(on: list[Talk], off: list[Talk], count: int, share: float) -> tuple[list[Dialog], list[Talk], list[Talk]]:
    """`count` dialogs on the topic and, as that share of all, others off it; and what is left of both."""
    for talks in (on, off):
        talks.sort()
        random.Random(0).shuffle(talks)
    strays = round(count * share / (1 - share))
    found = [dialog(f"on{place}", talk) for place, talk in enumerate(on[:count])]
    found += [dialog(f"off{place}", talk) for place, talk in enumerate(off[:strays])]
    random.Random(1).shuffle(found)
    return found, on[count:], off[strays:]


def table(path: Path, on: list[Talk], off: list[Talk]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Text", "Label"])
        rows.writerows([" ".join(talk), label] for talks, label in ((on, "on"), (off, "off")) for talk in talks)
    return str(path)


def measured(cleaning: Cleaning, dialogs: list[Dialog]) -> tuple[float, float]:
    """Precision and recall of what goes."""
    gone = [own.id for own in dialogs if isinstance(cleaning.clean(own), Drop)]
    right = sum(name.startswith("off") for name in gone)
    return right / max(1, len(gone)), right / sum(own.id.startswith("off") for own in dialogs)


@has_data
@pytest.mark.requirement("R004")
@pytest.mark.parametrize(("on", "off"), [(films, small_talk), (sights, comments)], ids=["en", "zh"])
def test_ninety_examples_tell_planted_dialogs_from_those_on_the_topic(
    on: Callable[[], list[Talk]], off: Callable[[], list[Talk]], tmp_path: Path
) -> None:
    dialogs, more, strays = planted(on(), off(), 80, 0.2)
    named = table(tmp_path / "examples.csv", more[:60], strays[:30])
    cleaning = OffTopic(examples=(named,)).begin(dialogs)
    precision, recall = measured(cleaning, dialogs)
    assert precision >= 0.9 and recall >= 0.9, (precision, recall)
    travelled = pickle.loads(pickle.dumps(cleaning))  # as it goes to other processes
    assert [travelled.clean(own) for own in dialogs] == [cleaning.clean(own) for own in dialogs]


@has_data
@pytest.mark.requirement("R004")
def test_planted_comments_are_unlike_dialogs_of_one_service() -> None:
    dialogs, *_ = planted(sights(), comments(), 120, 0.1)
    precision, recall = measured(OffTopic().begin(dialogs), dialogs)
    assert precision >= 0.9 and recall >= 0.9, (precision, recall)
    clean = [own for own in dialogs if own.id.startswith("on")]
    alone = OffTopic().begin(clean)
    assert sum(isinstance(alone.clean(own), Drop) for own in clean) <= 0.02 * len(clean)


PLACES = ["garden", "temple", "palace", "lake", "bridge", "tower", "museum", "market"]


def services(count: int) -> list[Dialog]:
    draw = random.Random(3)
    asked = ["When does the {} open, and what is the ticket?", "How do I get to the {} by bus?", "Is the {} worth a visit of an hour?"]
    answer = "The {0} opens at {1} and a ticket to the {0} is {2}; the bus stops in front of it."
    return [
        dialog(f"on{n}", [draw.choice(asked).format(place := draw.choice(PLACES)), answer.format(place, draw.randint(7, 10), n % 40)])
        for n in range(count)
    ]


def test_made_strays_go_and_a_listed_word_keeps_a_dialog(tmp_path: Path) -> None:
    strays = [
        dialog("off0", ["lol did u see that goal last nite", "omg yes messi again haha"]),
        dialog("off1", ["buy cheap pills now", "click here friend, 90% less"]),
    ]
    dialogs = [*services(150), *strays]
    found = OffTopic().begin(dialogs)
    assert measured(found, dialogs) == (1.0, 1.0)
    gone = found.clean(strays[0])
    assert isinstance(gone, Drop) and gone.reason == "off_topic" and "messi" not in gone.detail
    (tmp_path / "words.txt").write_text("Messi\n", "utf-8")
    kept = OffTopic(words=(str(tmp_path / "words.txt"),)).begin(dialogs)
    assert kept.clean(strays[0]) is strays[0] and isinstance(kept.clean(strays[1]), Drop)
    named = table(tmp_path / "examples.csv", [["when does the temple open"], ["bus to the lake"]], [["see that goal"], ["cheap pills"]])
    settings = {"examples": (named,), "words": (str(tmp_path / "words.txt"),)}
    assert OffTopic(**settings).begin(dialogs).clean(strays[0]) is strays[0]
    assert isinstance(OffTopic(examples=(named,)).begin(dialogs).clean(strays[0]), Drop)
    assert [path.name for path in OffTopic(**settings).files()] == ["examples.csv", "words.txt"]


def test_too_few_dialogs_and_examples_of_one_kind_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="19 dialogs are too few to tell what they are about"):
        OffTopic().begin(services(19))
    with pytest.raises(DataError, match="2 examples are on the topic and 0 off it"):
        OffTopic(examples=(table(tmp_path / "one.csv", [["a temple"], ["a lake"]], []),)).begin(services(30))


def test_nearness_is_the_mean_cosine_with_the_nearest_rows() -> None:
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(50, 8))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    cosines = rows.astype(np.float64) @ rows.T.astype(np.float64)
    company = Company(rows[:30], 7)
    assert company.nearness(rows) == pytest.approx(np.sort(cosines[:, :30])[:, -7:].mean(1), abs=1e-6)
    others = cosines[:30, :30][~np.eye(30, dtype=bool)].reshape(30, 29)
    assert company.own() == pytest.approx(np.sort(others)[:, -7:].mean(1), abs=1e-6)
    values = np.concatenate([draw.normal(5.0, 2.0, 9000), np.full(200, -100.0)])
    assert least_usual(values, 3.0) == pytest.approx(5.0 - 3 * 2.0, abs=0.4)  # wild values move it little
