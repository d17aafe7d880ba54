"""Cleaning as a stage: order, counts, examples, cores; and the cleaners that look at all dialogs before they clean one."""

from __future__ import annotations

import csv
import gzip
import json
import random
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import chattune
from chattune.core.artifact import Home
from chattune.core.errors import DataError, SettingError
from chattune.core.executors import Executor
from chattune.core.part import kind
from chattune.dialogs._offensive import Words, judge, learn
from chattune.dialogs.artifact import Conversations, Stored, write_dialogs
from chattune.dialogs.cleaners import Cleaner, Cleaning, dropped, rewritten
from chattune.dialogs.cleaners.contradiction import Contradiction
from chattune.dialogs.cleaners.label_errors import LabelErrors, exchanges
from chattune.dialogs.cleaners.near_duplicates import NearDuplicates
from chattune.dialogs.cleaners.offensive_text import OffensiveText
from chattune.dialogs.cleaners.quality import Quality
from chattune.dialogs.cleaning import EXAMPLES, cleaned, passes
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.quality import Usual, quality
from chattune.features.matching import mismatch

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
has_data = pytest.mark.skipif(not DATA.exists(), reason="the data is not here")


def talk(name: str, *contents: str) -> Dialog:
    roles = ("user", "assistant")
    return Dialog(name, tuple(Message(roles[place % 2], content) for place, content in enumerate(contents)), "made", "f.txt", 7)


class Upper(Cleaner):
    """Upper case."""

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        return rewritten(dialog, str.upper)


class Forget(Cleaner):
    """Empty what a stranger says, drop what is secret."""

    private: ClassVar[bool] = True

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        if "DROP" in dialog.messages[0].content:
            return dropped(dialog, "secret", "4 letters")
        return rewritten(dialog, lambda text: "" if "EMPTY" in text else text.replace("KEY", "…"))


class Rare(Cleaner):
    """Drop dialogs whose first message stands in no other."""

    looks_at_all: ClassVar[bool] = True

    def begin(self, dialogs: Sequence[Dialog]) -> Cleaning:  # type: ignore[override]
        first = [dialog.messages[0].content for dialog in dialogs]
        return _Rare(frozenset(text for text in first if first.count(text) > 1))


class _Rare:
    def __init__(self, common: frozenset[str]) -> None:
        self.common = common

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        return dialog if dialog.messages[0].content in self.common else dropped(dialog, "rare")


# ------------------------------------------------------------------------------------------------------------------ the stage


def stored(path: Path, dialogs: Sequence[Dialog]) -> Stored:
    write_dialogs(path, dialogs)
    return Stored(path)


@pytest.mark.parametrize("cores", [1, 2])
def test_cleaners_apply_in_order_and_every_change_and_drop_is_counted(tmp_path: Path, cores: int) -> None:
    dialogs = [talk(f"d{i}", f"hello {i % 7}", f"key {i}") for i in range(600)]
    dialogs[3] = talk("d3", "drop", "me")
    dialogs[5] = talk("d5", "hello 5", "empty")
    drops: list[Drop] = []
    cleaners, executor = [Upper(), Forget(), Rare()], Executor("processes", cores)
    found = cleaned(stored(tmp_path / "in", dialogs), cleaners, tmp_path / "out", drops.append, executor)
    left = list(Stored(tmp_path / "out"))
    assert found.kept == len(left) == 598 and found.reasons == {"secret": 1, "no_reply": 1}
    assert [dialog.id for dialog in left] == [f"d{i}" for i in range(600) if i not in (3, 5)]
    assert left[0].messages[1].content == "… 0"
    assert [(drop.reason, drop.file, drop.line) for drop in drops] == [("secret", "f.txt", 7), ("no_reply", "f.txt", 7)]
    upper, forget, rare = found.tallies
    assert (upper.seen, upper.changed, upper.messages) == (600, 600, 1200)
    assert (forget.seen, forget.changed, forget.dropped) == (600, 599, {"secret": 1, "no_reply": 1})
    assert (rare.seen, rare.changed, rare.dropped) == (598, 0, {})
    assert found.messages_dropped == 4
    assert len(upper.examples) == EXAMPLES and upper.examples[0]["before"] == "hello 0" and upper.examples[0]["after"] == "HELLO 0"
    assert all("before" not in example for example in forget.examples)  # what a private cleaner took away is shown to nobody


def test_a_cleaner_that_looks_at_all_begins_a_pass_over_what_those_before_it_left(tmp_path: Path) -> None:
    assert passes([Upper(), Forget(), Rare(), Upper(), Rare()]) == [[0, 1], [2, 3], [4]]
    dialogs = [talk("a", "Same", "x"), talk("b", "same", "y"), talk("c", "other", "z")]
    drops: list[Drop] = []
    found = cleaned(stored(tmp_path / "in", dialogs), [Upper(), Rare()], tmp_path / "out", drops.append)
    assert [drop.reason for drop in drops] == ["rare"] and found.kept == 2


def test_the_stage_keeps_the_account_and_is_found_again(tmp_path: Path) -> None:
    rows = [{"messages": [m.as_dict() for m in talk("x", f"Question number {i * 7907}?", f"Answer {i}").messages]} for i in range(60)]
    rows += [{"messages": [{"role": "user", "content": "Question number 0"}, {"role": "assistant", "content": "Answer 0!"}]}, {"no": 1}]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"collect": {"sources": str(tmp_path / "chat.jsonl")}, "clean": {"cleaners": ["near_duplicates"]}}
    told = chattune.run(recipe, home=tmp_path / "runs", until="split")
    assert [*told.runs] == ["collect", "clean", "split"]
    assert told.summary["counts"] == {"read": 62, "kept": 60, "dropped": {"near_duplicate": 1, "no_messages": 1}}
    made = Conversations.open(told.runs["clean"])
    assert [drop.reason for drop in made.drops()] == ["no_messages", "near_duplicate"]
    counted = made.summary["messages"]
    assert counted["read"] == counted["kept"] + counted["empty"] + counted["joined"] + counted["dropped"] == 122
    changed = chattune.run({**recipe, "split": {"shares": [0.6, 0.2, 0.2]}}, home=tmp_path / "runs", until="split")
    assert changed.runs["clean"] == told.runs["clean"] and changed.runs["split"] != told.runs["split"]
    assert len(Home(tmp_path / "runs").runs()) == 4


def test_a_log_of_changes_before_personal_data_is_taken_away_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = [talk("x", f"Number {number}?", "I recieve mail at ann@example.org").messages for number in range(20)]
    rows = [{"messages": [message.as_dict() for message in own]} for own in said]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"collect": {"sources": str(tmp_path / "chat.jsonl")}}
    for names, warned in ((["spelling", "personal_data", "secrets"], True), (["personal_data", "spelling"], False)):
        chattune.run({**asked, "clean": {"cleaners": names}}, home=tmp_path / "runs", until="clean")
        told = " ".join(capsys.readouterr().err.split())
        assert ("warning: spelling writes down what it changes" in told) == warned
        assert ("Name personal_data before spelling." in told) == warned


def test_cleaners_that_leave_nothing_are_told_and_no_run_is_left(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "#"}]} for i in range(20)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"collect": {"sources": str(tmp_path / "chat.jsonl")}, "clean": {"cleaners": {"quality": {"least": 0.9}}}}
    with pytest.raises(DataError, match=r"leave nothing of 20 conversations: 20 low_quality\. Leave out quality"):
        chattune.run(recipe, home=tmp_path / "runs", until="split")
    assert [run.name.partition("-")[0] for run in Home(tmp_path / "runs").runs()] == ["collect"]


# ------------------------------------------------------------------------------------------------ cleaners that look at all


@pytest.mark.requirement("R003")
def test_of_near_duplicates_the_longest_is_kept() -> None:
    base = "The parcel left our warehouse on Monday and will be with you within three working days, we promise that."
    asked = "Where is my parcel?"
    dialogs = [talk("a", asked, base), talk("b", asked, base + " Sorry!"), talk("c", "Hi", "Hello there")]
    found = [NearDuplicates().begin(dialogs).clean(dialog) for dialog in dialogs]
    assert isinstance(found[0], Drop) and "b" in found[0].detail and found[1:] == dialogs[1:]
    twice = [*dialogs[2:], replace(dialogs[2], id="d")]
    assert [isinstance(NearDuplicates().begin(twice).clean(dialog), Drop) for dialog in twice] == [False, True]


@pytest.mark.requirement("R008", "R013", "R004")
@pytest.mark.parametrize("language", ["en", "zh"])
def test_planted_rubbish_scores_low_and_good_talk_does_not(language: str) -> None:
    draw = random.Random(0)
    words = {
        "en": "the a parcel order will arrive on monday please send me your number we are sorry for that thank you very much",
        "zh": "您 好 请 问 订单 什么 时候 到 我们 会 尽快 发货 谢谢 您的 耐心 等待 有 问题 可以 联系 客服",
    }[language].split()
    glue = " " if language == "en" else ""
    good = [talk(f"g{i}", "?", glue.join(draw.choices(words, k=draw.randint(5, 30))) + ".") for i in range(300)]
    rubbish = [
        "".join(draw.choices("qxzjkvwþŋʒ", k=60)), "ha" * 300, "| 1 | 2 | 3 | --- | --- | == || 4 | 5 || 6 ||", "@@@@ #### $$$$ %%%%",
        "".join(chr(draw.randint(0x1200, 0x1280)) for _ in range(50)),
    ]  # fmt: skip
    bad = [talk(f"b{i}", "?", text) for i, text in enumerate(rubbish)]
    judged = Quality().begin([*good, *bad])
    assert sum(isinstance(judged.clean(dialog), Drop) for dialog in good) <= 3
    assert all(isinstance(judged.clean(dialog), Drop) for dialog in bad)


def test_the_quality_is_that_of_the_worst_part() -> None:
    found = quality(talk("a", "?", "no no " * 200))
    assert found.worst in ("variety", "repetition") and found.score == min(found.parts.values()) < 0.1
    usual = Usual(["a plain sentence of words"] * 50)
    assert quality(talk("a", "?", "a plain sentence of words"), usual).parts["likelihood"] == 1.0


CONTRADICTING = [
    ("hi", "I have a dog.", "Nice", "I don't have a dog."), ("name?", "My name is Ann", "really?", "No, my name is Bob."),
    ("age", "I am 30 years old", "and?", "I'm 41 years old"), ("你好", "我叫小明", "真的？", "我叫小红"),
    ("宠物", "我有一只狗。", "真的？", "我没有狗。"), ("like?", "I love pizza", "hm", "I hate pizza"),
    ("are you a bot?", "yes", "Are you a bot?", "No, I am not"), ("where", "I live in Paris and work", "oh", "I live in London."),
    ("喜欢", "我喜欢跑步", "啊", "我不喜欢跑步"),
]  # fmt: skip
AGREEING = [
    ("hi", "I have a dog.", "Nice", "I don't have a cat"), ("name?", "My name is Ann", "ok", "my name is ann!"),
    ("x", "I live in Paris and work", "oh", "Yes, I live in Paris"), ("haha", "yes", "haha", "no"),
    ("喜欢", "我喜欢跑步", "啊", "我不喜欢游泳"),
]  # fmt: skip


@pytest.mark.requirement("R009", "R013")
def test_a_dialog_that_contradicts_itself_is_left_out() -> None:
    assert all(isinstance(Contradiction().clean(talk("x", *own)), Drop) for own in CONTRADICTING)
    assert all(isinstance(Contradiction().clean(talk("x", *own)), Dialog) for own in AGREEING)
    swapped = [Message("user" if m.role == "assistant" else "assistant", m.content) for m in talk("x", *CONTRADICTING[0]).messages]
    assert isinstance(Contradiction().clean(Dialog("x", tuple(swapped))), Dialog)  # what users say of themselves is not judged


def area_under_curve(score: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive one scores higher than another (ties do not occur)."""
    rank = np.argsort(np.argsort(score))
    count = int(positive.sum())
    return float((rank[positive].sum() - count * (count - 1) / 2) / (count * (len(score) - count)))


@has_data
@pytest.mark.requirement("R009")
def test_planted_wrong_answers_are_ranked_first() -> None:
    with zipfile.ZipFile(DATA / "zh_dialogue" / "crosswoz_val.json.zip") as archive:
        told = json.loads(archive.read(archive.namelist()[0]))
    dialogs = [talk(name, *(message["content"] for message in own["messages"])) for name, own in told.items()]
    pairs = [(question, reply) for dialog in dialogs for _, question, reply in exchanges(dialog)][:2400]
    swapped = random.Random(0).sample(range(len(pairs)), len(pairs) // 5)
    replies = [reply for _, reply in pairs]
    for a, b in zip(swapped, swapped[1:] + swapped[:1], strict=True):
        replies[a] = pairs[b][1]
    wrong = np.zeros(len(pairs), bool)
    wrong[swapped] = True
    loss = mismatch([question for question, _ in pairs], replies, rounds=1)
    assert area_under_curve(loss, wrong) >= 0.85
    again = mismatch([question for question, _ in pairs[:100]], replies[:100], rounds=1)
    assert np.array_equal(again, mismatch([question for question, _ in pairs[:100]], replies[:100], rounds=1))


@pytest.mark.long
def test_what_is_taken_for_an_error_is_left_out_or_not_learned() -> None:
    dialogs = [talk(f"d{i}", f"what is {word} like", f"{word} is nice") for i, word in enumerate(["tea", "milk", "wine", "beer"] * 20)]
    dialogs[7] = talk("d7", "what is beer like", "tea is nice")
    found = [LabelErrors(share=0.0125).begin(dialogs).clean(dialog) for dialog in dialogs]
    assert [dialog.id for dialog, own in zip(dialogs, found, strict=True) if isinstance(own, Drop)] == ["d7"]
    kept = LabelErrors(share=0.0125, action="unlearn").begin(dialogs).clean(dialogs[7])
    assert isinstance(kept, Dialog) and [message.weight for message in kept.messages] == [None, 0.0]
    with pytest.raises(DataError, match="too few to learn which belong together"):
        LabelErrors().begin(dialogs[:10])


# --------------------------------------------------------------------------------------------------------------- offensive text


def scores(predicted: Sequence[bool], true: Sequence[bool]) -> tuple[float, float, float]:
    """Precision, recall, and the share of harmless texts that are blocked."""
    both = sum(p and t for p, t in zip(predicted, true, strict=True))
    return both / max(1, sum(predicted)), both / sum(true), (sum(predicted) - both) / (len(true) - sum(true))


@has_data
@pytest.mark.requirement("R007")
def test_examples_judge_chinese_texts_better_than_the_word_list_alone(tmp_path: Path) -> None:
    with gzip.open(DATA / "safety" / "cold_dev.csv.gz", "rt", encoding="utf-8-sig") as file:
        rows = [(row["TEXT"], row["label"] == "1") for row in csv.DictReader(file)]
    random.Random(0).shuffle(rows)
    half = len(rows) // 2
    with (tmp_path / "examples.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Text", "Label"])
        table.writerows([text, "offensive" if label else "fine"] for text, label in rows[:half])
    listed, true = (str(DATA / "safety" / "ldnoobw_zh.txt"),), [label for _, label in rows[half:]]
    texts = [text for text, _ in rows[half:]]
    alone = scores([score >= 0.5 for score in judge(OffensiveText(words=listed)).scores(texts)], true)
    both = OffensiveText(words=listed, examples=(str(tmp_path / "examples.csv"),))
    learnt = scores([score >= 0.5 for score in judge(both).scores(texts)], true)
    assert learnt[0] > alone[0] and learnt[1] > 3 * alone[1]  # precision and recall
    assert learnt[0] >= 0.74 and learnt[1] >= 0.85


@has_data
@pytest.mark.requirement("R007")
def test_harmless_prompts_that_look_harmful() -> None:
    with (DATA / "safety" / "xstest_prompts.csv").open(encoding="utf-8") as file:
        rows = [(row["prompt"], row["label"] == "unsafe") for row in csv.DictReader(file)]
    random.Random(0).shuffle(rows)
    words = Words([str(DATA / "safety" / "ldnoobw_en.txt")])
    predicted: list[bool] = []
    for fold in range(5):
        others = [row for place, row in enumerate(rows) if place % 5 != fold]
        learnt = learn([text for text, _ in others], ["offensive" if label else "clear" for _, label in others], words)
        found = learnt.probabilities([text for text, _ in rows[fold::5]])[:, learnt.labels.index("offensive")]
        predicted += [bool(value) for value in found >= 0.5]
    true = [label for fold in range(5) for _, label in rows[fold::5]]
    precision, recall, blocked = scores(predicted, true)
    listed = scores([words.count(text) > 0 for text, _ in rows], [label for _, label in rows])
    assert recall > 10 * listed[1] and precision > listed[0]  # the list hardly sees what the prompts ask for
    assert blocked < recall  # it does tell the two apart, though most words are the same on purpose


def test_words_are_whole_words_and_examples_need_columns(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("damn\nbloody hell\n笨蛋\n", "utf-8")
    words = Words([str(tmp_path / "words.txt")])
    assert [words.count(text) for text in ("Damn it", "Amsterdamned", "BLOODY  hell!", "你是笨蛋吗", "nice")] == [1, 0, 1, 1, 0]
    dialogs = [talk("a", "damn", "no"), talk("b", "hi", "damn")]
    found = [OffensiveText(words=(str(tmp_path / "words.txt"),)).begin(()).clean(dialog) for dialog in dialogs]
    assert found[0] == dialogs[0] and isinstance(found[1], Drop) and "damn" not in found[1].detail.replace("b:", "")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n", "utf-8")
    with pytest.raises(DataError, match=r"table\.csv:2: has no text and label in the columns"):
        OffensiveText(examples=(str(tmp_path / "table.csv"),)).begin(())
    with pytest.raises(SettingError, match="neither words nor examples"):
        OffensiveText().begin(())


def test_every_cleaner_that_looks_at_all_says_so() -> None:
    for name in kind("cleaners").names():
        part = kind("cleaners").load(name)
        assert issubclass(part, Cleaner)
        assert not part.looks_at_all or "begin" in vars(part), name  # that no other one looks: tests/contracts/test_cleaners.py
