"""The data report: counts that add up, diversity and balance that show, a planted shift, a page that cannot be broken out of."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import chattune
from chattune import story
from chattune.cli import main
from chattune.core.artifact import Home
from chattune.core.stage import execute, load_stage, plan
from chattune.dialogs.description import Tally, formality, script
from chattune.dialogs.dialog import Dialog, Message
from chattune.evaluate.artifact import DataReport
from chattune.evaluate.stage import SurveyConfig

PAYLOAD = "<script>alert(1)</script>"


def row(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def logs(path: Path, count: int, seed: int, subject: str = "parcel order delivery address refund invoice") -> Path:
    draw = random.Random(seed)
    words = f"the is my where when please can you today again number with about from {subject}".split()

    def said(length: int) -> str:
        return " ".join(draw.choices(words, k=length))

    def one(number: int) -> dict[str, Any]:
        return row(f"{said(8)} {draw.randint(10**6, 10**7)}?", said(draw.randint(4, 20)), topic=("shop", "home")[number % 2])

    rows = [one(number) for number in range(count)]
    path.write_text("".join(json.dumps(own) + "\n" for own in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Path]:
    folder = tmp_path_factory.mktemp("survey")
    source = logs(folder / "chat.jsonl", 600, 0)
    with source.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row(f"{PAYLOAD} 问题", f"{PAYLOAD} 回答")) + "\n" + '{"messages": 3}\n{"broken\n')
    told = chattune.run({"collect": {"sources": str(source)}}, home=folder / "runs", name="data", until="split")
    return Home(folder / "runs"), told.runs["split"]


def surveyed(home: Home, run: Path, **settings: Any) -> DataReport:
    stage = load_stage("survey")
    inputs = story.inputs_from(stage, story.chain_up([run]))
    report = execute(plan(stage, {"survey": SurveyConfig(**settings), "seed": 0}, inputs, home))
    assert isinstance(report, DataReport)
    return report


@pytest.mark.requirement("R002", "R012", "R014")
def test_the_report_counts_everything_and_says_where_what_was_left_out_stands(made: tuple[Home, Path]) -> None:
    report = surveyed(*made)
    found = report.summary
    counts = found["counts"]
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values()) == 603
    assert {reason: [place["line"] for place in places] for reason, places in found["dropped"].items()} == {
        "broken_json": [603], "no_messages": [602],
    }  # fmt: skip
    assert sum(own["dialogs"] for own in found["splits"].values()) == counts["kept"]
    train = found["splits"]["train"]
    assert sum(train["messages_a_dialog"].values()) == sum(train["style"].values()) == train["dialogs"]
    assert set(train["labels"]["topic"]) == {"shop", "home"} and sum(found["topics"]["sizes"].values()) == found["sampled"]
    page = (report.path / "data_report.html").read_text("utf-8")
    assert PAYLOAD not in page and "script" not in page.replace("&lt;script&gt;", "").replace("&lt;/script&gt;", "")
    assert "no_messages" in page and "broken_json" in page


@pytest.mark.requirement("R037")
def test_new_logs_about_something_else_are_told_and_more_of_the_same_are_not(made: tuple[Home, Path], tmp_path: Path) -> None:
    other = logs(tmp_path / "other.jsonl", 200, 1, "goal match team player score league")
    same = logs(tmp_path / "same.jsonl", 200, 2)
    name = "Training and the new logs"
    shifted, alike = (surveyed(*made, against=str(path)).summary for path in (other, same))
    assert shifted["shift"][name]["shifted"] and any(name in caution for caution in shifted["cautions"])
    assert not alike["shift"][name]["shifted"] and not any(name in caution for caution in alike["cautions"])


@pytest.mark.requirement("R002")
def test_diversity_falls_where_replies_repeat_themselves() -> None:
    def diversity(replies: list[str]) -> dict[str, float]:
        tally = Tally()
        for number, reply in enumerate(replies):
            tally.see(Dialog(f"{number}", (Message("user", "?"), Message("assistant", reply))))
        told: dict[str, float] = tally.told()["diversity"]
        return told

    draw = random.Random(0)
    words = [f"word{number}" for number in range(500)]
    various, dull = diversity([" ".join(draw.choices(words, k=8)) for _ in range(200)]), diversity(["I do not know that, sorry."] * 200)
    for name in ("distinct_1", "distinct_2", "entropy_bits"):
        assert dull[name] < 0.5 * various[name]


@pytest.mark.requirement("R012")
def test_formal_and_informal_talk_are_told_apart_in_both_languages() -> None:
    formal = ["Dear customer, we apologise and kindly ask you to confirm.", "您好，请问您的订单号是多少？感谢您的来信。"]
    informal = ["hey lol dunno, gonna check!!", "哈哈，啥呀，我也不知道嘛"]
    assert all(formality(text) > 0.3 for text in formal) and all(formality(text) < -0.3 for text in informal)
    assert formality("the box is red") == 0 and [script(c) for c in "aé你яア한1"] == [
        "Latin", "Latin", "Han", "Cyrillic", "Japanese", "Korean", None,
    ]  # fmt: skip


def test_a_model_run_shows_a_dialog_with_what_is_learned(made: tuple[Home, Path]) -> None:
    home, run = made
    tokens = chattune.run(
        {"collect": {"sources": str(run.parent.parent / "chat.jsonl")}, "prepare": {"vocabulary": 400, "targets": "assistant"}},
        home=home.path, until="prepare",
    )  # fmt: skip
    pieces = surveyed(home, tokens.runs["prepare"]).summary["sample"]
    learned = [piece for piece in pieces if piece["learned"]]
    assert [piece["control"] for piece in learned] == [False, True]  # the reply and its end, nothing else
    assert "".join(piece["text"] for piece in pieces).startswith("<|begin|><|user|>")


def test_the_command_answers_in_words_and_in_json(made: tuple[Home, Path], capsys: pytest.CaptureFixture[str]) -> None:
    home, _ = made
    assert main(["data", "report", "data", "--home", str(home.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Path(told["report"]).exists() and told["counts"]["read"] == 603
    assert main(["data", "report", "data", "--home", str(home.path)]) == 0
    assert "bits a word" in capsys.readouterr().out
    assert main(["data", "report", "nothing", "--home", str(home.path)]) != 0
