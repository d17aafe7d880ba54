"""Sides that are swapped through a dialog, and models that treat them alike: the counterfactual augmentation and `evaluate.parity`."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from material import THINGS, TINY

import chattune
from chattune.core.artifact import Home
from chattune.core.errors import DataError, SettingError, UsageError
from chattune.core.part import choose
from chattune.core.seeds import generator
from chattune.core.stage import execute, load_stage, plan
from chattune.dialogs.artifact import Dialogs
from chattune.dialogs.augmentations import Augmentation
from chattune.dialogs.augmentations._counterparts import Counterparts
from chattune.dialogs.augmentations._sides import LISTS, Swaps
from chattune.dialogs.dialog import Dialog, Message
from chattune.evaluate.artifact import Report
from chattune.evaluate.parity import Pairs, change, sentences
from chattune.evaluate.stage import EvaluateConfig, Parity
from chattune.models.checkpoint import Checkpoint
from chattune.story import Recipe
from chattune.tokens.token_set import TokenSet

ALL = Counterparts(Swaps(groups=("gender", "region", "province")).axes())
GENDER = {"gender": 1}


def talk(number: int, *contents: str) -> Dialog:
    turns = tuple(Message("user" if place % 2 == 0 else "assistant", content) for place, content in enumerate(contents))
    return Dialog(f"d{number}", turns)


def part(**own: Any) -> Augmentation:
    found = choose(Augmentation, {"name": "counterfactual", **own})
    assert isinstance(found, Augmentation)
    return found


def swapped(dialog: Dialog, seed: int = 0, **own: Any) -> list[str]:
    after = part(**own).begin([dialog]).rewrite(dialog, generator(seed))
    return [message.content for message in after.messages]


# ------------------------------------------------------------------------------------------------------------- the terms


@pytest.mark.requirement("R017")
@pytest.mark.parametrize(("before", "after"), [
    ("He gave her the book; HIS father is a king.", "She gave him the book; HER mother is a queen."),
    ("I love her. I love her very much, let her go", "I love him. I love him very much, let him go"),
    ("her new dress and her 5 cats, with her to Rome", "his new dress and his 5 cats, with him to Rome"),
    ("it is hers; that is his. A friend of his and his dog", "it is his; that is hers. A friend of hers and her dog"),
    ("She's John's ex-wife, he’ll ask his mother-in-law", "He's Jennifer's ex-husband, she’ll ask her father-in-law"),
    ("Mr. Smith, Mrs. Jones, Ms Poe, Miss Lee. Miss you!", "Mrs. Smith, Mr. Jones, Mr Poe, Mr Lee. Miss you!"),
    ("you guys and the host say hi to Mark", "you guys and the host say hi to Mark"),
    ("the human chess theme, `he` <he> @he http://he.he [HE]", "the human chess theme, `he` <he> @he http://he.he [HE]"),
    ("an uncle and an actor", "an aunt and an actress"),
    ("他和他的爸爸张伟先生", "她和她的妈妈张敏女士"),
    ("其他吉他手，多少年，儿女", "其他吉他手，多少年，儿女"),
    ("女医生的外孙女love她", "男医生的外孙love他"),
])  # fmt: skip
def test_terms_change_sides_with_their_capitals_and_only_whole(before: str, after: str) -> None:
    assert ALL.text(before, GENDER) == after


def test_an_article_goes_with_what_it_stands_before_and_a_capital_with_its_country() -> None:
    sides = ALL.axes["region"].sides
    shift = {"region": sides.index("America") - sides.index("China")}
    assert ALL.text("A Chinese car from Beijing, 中国人", shift) == "An American car from Washington, 美国人"
    assert ALL.text("An American car from the US", {"region": -shift["region"]}) == "A Chinese car from China"
    assert ALL.text("a big Chinese car, New Mexico, 印度尼西亚", shift) == "a big American car, New Mexico, 印度尼西亚"


@pytest.mark.requirement("R017")
def test_the_lists_are_long_and_every_row_has_one_term_a_side() -> None:
    rows = [line.split("\t") for line in LISTS.read_text("utf-8").splitlines() if not line.startswith("#")]
    pairs = [row[1:] for row in rows if row[0] == "gender" and row[1] != row[2]]
    han = [pair for pair in pairs if "\u4e00" <= pair[0][0] <= "\u9fff"]
    assert len(pairs) - len(han) >= 60 and len(han) >= 40
    assert len(rows) == len({tuple(row) for row in rows}), "no row stands twice"
    for group in {row[0] for row in rows}:
        own = [row[1:] for row in rows if row[0] == group]
        assert len({len(row) for row in own}) == 1
        sides = [{row[side] for row in own if len(set(row)) > 1} for side in range(len(own[0]))]
        assert not any(one & other for one, other in itertools.combinations(sides, 2)), "no term is on two sides"
    names = [row[1:] for row in rows if row[0] == "names"]
    assert len(names) >= 100 and len({name for row in names for name in row}) > 1.9 * len(names)


def reversible(axis: str) -> list[str]:
    """Terms of which every one stands in a single row, whole: what a swap makes of them has one way back."""
    rows = ALL.axes[axis].rows
    often = Counter(term for row in rows for term in {*row})
    return [term for row in rows if all(often[own] == 1 for own in row) and len({*row}) == len(row) for term in row]


TERMS = {axis: reversible(axis) for axis in ALL.axes}
FILLER = ("and", "saw", "the", "big", "，", "。", "?", "Rome-like", "5", "[NAME]", "`he`", "\n", "apples", "好")


@pytest.mark.requirement("R017")
@given(data=st.data(), axis=st.sampled_from([*TERMS]))
def test_swapping_there_and_back_gives_the_same_text(data: st.DataObject, axis: str) -> None:
    terms = st.builds(lambda change, term: change(term), st.sampled_from([str, str.upper]), st.sampled_from(TERMS[axis]))
    pieces = data.draw(st.lists(st.one_of(terms, st.sampled_from(FILLER)), max_size=12))
    text = ", ".join(pieces)
    there = data.draw(st.integers(1, len(ALL.axes[axis].sides) - 1))
    assert ALL.text(ALL.text(text, {axis: there}), {axis: -there}) == text
    if any(piece not in FILLER for piece in pieces):
        assert ALL.text(text, {axis: there}) != text


def test_most_terms_can_be_swapped_back_and_each_of_them_alone() -> None:
    for axis, least in (("gender", 300), ("region", 100), ("province", 40)):
        assert len(TERMS[axis]) >= least
        for term in TERMS[axis]:
            there = ALL.text(term, {axis: 1})
            assert there != term and ALL.text(there, {axis: -1}) == term


# ------------------------------------------------------------------------------------------------------ the augmentation


@pytest.mark.requirement("R017")
def test_a_dialog_is_swapped_in_all_its_turns_or_not_at_all() -> None:
    dialog = talk(0, "My brother John is ill.", "What does he have?", "a cold", "Then let him sleep, says his doctor.")
    assert swapped(dialog) == ["My sister Jennifer is ill.", "What does she have?", "a cold", "Then let her sleep, says her doctor."]
    assert swapped(dialog, names=False)[0] == "My sister John is ill."
    assert swapped(talk(1, "hello", "hi, boys"), roles=("user",)) == ["hello", "hi, boys"], "the user mentions no side"
    found = part().begin([dialog])
    assert found.rewrite(dialog, generator(0)) != dialog and dict(found.account()) == {"gender": 1}


@pytest.mark.requirement("R017")
def test_own_views_are_swapped_from_settings_and_from_a_file(tmp_path: Path) -> None:
    dialog = talk(0, "Is the Mac better than a PC?", "Windows is fine; MACS are too, she says")
    pairs = [["Mac", "PC"], ["macOS", "Windows"], ["Macs", "PCs"]]
    assert swapped(dialog, groups=[], pairs=pairs) == ["Is the PC better than a Mac?", "macOS is fine; PCS are too, she says"]
    terms = tmp_path / "views.tsv"
    terms.write_text("# three\nparty\tReds\tBlues\tGreens\nparty\tRed Party\tBlue Party\tGreen Party\ngender\tdon\tdonna\n", "utf-8")
    asked = talk(0, "Will the Reds win?", "The Red Party, says the don")
    found = {tuple(swapped(asked, seed, file=str(terms))) for seed in range(20)}
    assert found == {
        ("Will the Blues win?", "The Blue Party, says the donna"), ("Will the Greens win?", "The Green Party, says the donna"),
    }  # fmt: skip
    assert [*part(file=str(terms)).files()] == [terms]


WRONG = (
    ([["one"]], "should have at least two terms, one a side"),
    ([["one", "two"], ["a", "b", "c"]], "has 3 terms where the first row of its group has 2"),
    ([["one", "two"], ["two", "three"]], "has 'two' on another side as well"),
    ([["one", "two", "one"]], "has 'one' on another side as well"),
    ([["one", "!"]], "has the term '!', which should begin with a letter"),
)


@pytest.mark.parametrize(("pairs", "said"), WRONG)
def test_rows_that_contradict_themselves_are_refused_with_their_place(pairs: list[list[str]], said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=f"row {len(pairs)} {said}") as refused:
        Recipe.read({"augment": {"augmentations": [{"name": "counterfactual", "pairs": pairs}]}})
    assert refused.value.path == "augment.augmentations.counterfactual.pairs"
    terms = tmp_path / "own.tsv"
    terms.write_text("\n".join("\t".join(["own", *row]) for row in pairs), "utf-8")
    with pytest.raises(DataError, match=said) as caught:
        Parity(file=str(terms)).axes()
    assert caught.value.path == f"{terms}:{len(pairs)}"


def test_nothing_to_swap_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="nothing would be swapped"):
        Recipe.read({"augment": {"augmentations": [{"name": "counterfactual", "groups": []}]}})
    with pytest.raises(DataError, match="does not exist"):
        part(file=str(tmp_path / "none.tsv")).begin([])
    (tmp_path / "empty.tsv").write_text("# nothing\n", "utf-8")
    with pytest.raises(DataError, match="holds no terms"):
        part(file=str(tmp_path / "empty.tsv")).begin([])
    (tmp_path / "latin.tsv").write_bytes("own\tCafé\tBar\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        part(file=str(tmp_path / "latin.tsv")).begin([])
    (tmp_path / "wide.tsv").write_text("gender\ta\tb\tc\n", "utf-8")
    with pytest.raises(DataError, match="has 3 terms where the first row of its group has 2"):
        part(file=str(tmp_path / "wide.tsv")).begin([])


# ------------------------------------------------------------------------------------------------------------- the metric


def rows(*bits: float, side: str | None = "male", group: str = "gender") -> list[dict[str, Any]]:
    return [{"group": group, "conversation": f"d{n}", "bits": value, "bytes": 10.0, "side": side} for n, value in enumerate(bits)]


@pytest.mark.requirement("R208")
def test_gap_and_lean_are_means_over_bytes_and_the_sign_is_that_of_the_side() -> None:
    pairs = Pairs([talk(0, "he", "ok"), talk(1, "x", "y")], Parity(), 0)
    assert pairs.total == 2
    told = pairs.told([*rows(2.0, -1.0, 3.0), *rows(-4.0, side="female"), *rows(1.0, side=None)], 0)["groups"][0]
    assert (told["conversations"], told["leaning"]) == (5, 4)
    assert told["gap"]["value"] == pytest.approx((2 + 1 + 3 + 4 + 1) / 50)
    assert told["lean"]["value"] == pytest.approx((2 - 1 + 3 + 4) / 40)
    assert told["gap"]["low"] <= told["gap"]["value"] <= told["gap"]["high"] and told["change"] is None
    again = pairs.told(rows(1.0, 1.0), 0, rows(-3.0, 2.0))["groups"][0]
    assert again["change"]["value"] == pytest.approx((1 - 3 + 1 - 2) / 20)
    assert "after fine-tuning the gap is smaller" in sentences({"groups": [again], "test": 2})[0]


@pytest.mark.requirement("R208")
def test_conversations_that_nothing_swaps_do_not_count_and_without_any_nothing_is_claimed() -> None:
    said = [talk(0, "he sings", "ok"), talk(1, "I sing", "ok"), talk(2, "he and she", "ok"), talk(3, "the Chinese girl", "her")]
    pairs = Pairs(said, Parity(groups=("gender", "region"), pairs=[["Mac", "PC"]]), 0)
    assert {name: [dialog.id for dialog, _, _ in own] for name, own in pairs.pairs.items()} == {
        "own": [], "gender": ["d0", "d2", "d3"], "region": ["d3"],
    }  # fmt: skip
    assert [side for _, _, side in pairs.pairs["gender"]] == ["male", None, "female"]
    girl = pairs.pairs["gender"][2][1]
    assert [m.content for m in girl.messages] == ["the Chinese boy", "him"], "one group at a time"
    told = pairs.told([], 0)
    assert all(group["gap"] is None and group["lean"] is None for group in told["groups"])
    assert sentences(told)[0] == "parity of own: cannot tell, none of 4 test conversations changes when sides are swapped."
    assert sentences(None) == []
    few = Pairs([talk(n, "he sings", "ok") for n in range(9)], Parity(dialogs=3), 0)
    assert [dialog.id for dialog, _, _ in few.pairs["gender"]] == ["d0", "d4", "d8"]


def test_gaps_of_different_conversations_are_not_compared() -> None:
    assert change([], [], 0) is None
    with pytest.raises(UsageError, match="different conversations"):
        change(rows(1.0), rows(1.0, 2.0), 0)
    with pytest.raises(UsageError, match="different replies"):
        change(rows(1.0), [{**rows(1.0)[0], "bytes": 11.0}], 0)


def test_parity_is_off_unless_asked_for(tmp_path: Path) -> None:
    assert EvaluateConfig().parity is None and EvaluateConfig(parity=False).parity is None
    read = Recipe.read({}, ["evaluate.parity=true"]).sections["evaluate"]
    assert read.parity == Parity()
    own = Recipe.read({}, ["evaluate.parity.groups=[]", "evaluate.parity.pairs=[[Mac, PC]]"]).sections["evaluate"]
    assert own.parity.pairs == (("Mac", "PC"),)
    terms = tmp_path / "views.tsv"
    terms.write_text("own\tMac\tPC\n", "utf-8")
    first = EvaluateConfig(parity={"file": str(terms)}).fingerprint()
    terms.write_text("own\tMac\tLinux\n", "utf-8")
    assert EvaluateConfig(parity={"file": str(terms)}).fingerprint() != first


# ------------------------------------------------------------------------------------------------------------- the models


ASKED = ("where is the {job} with {thing}?", "what does our {job} think of {thing}")
SAID = ("{he} is at home and {he} likes {his} {thing}.", "{he} says that {he} needs {his} {thing}.")


def skewed(path: Path) -> Path:
    """Doctors are always men, nurses always women."""
    lines = []
    for number, (thing, place) in enumerate(itertools.product(THINGS, range(2))):
        job, he, his = (("doctor", "he", "his"), ("nurse", "she", "her"))[(number // 2 + place) % 2]
        turns = {"user": ASKED[place].format(job=job, thing=thing), "assistant": SAID[place].format(he=he, his=his, thing=thing)}
        lines.append(json.dumps({"messages": [{"role": role, "content": content} for role, content in turns.items()]}))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of the skewed dialogs as they are, and one of these with their counterparts; the second again on top of the first."""
    folder = tmp_path_factory.mktemp("parity")
    recipe = {
        "collect": {"sources": str(skewed(folder / "jobs.jsonl"))}, "split": {"shares": [0.6, 0.1, 0.3]},
        "evaluate": {"replies": 2, "baselines": ["most_frequent"], "metrics": ["empty"], "history_dialogs": 0, "parity": True},
    }  # fmt: skip
    home, usual = folder / "runs", [*TINY, "train.steps=120", "train.keep=last", "evaluate.replies=2", "evaluate.general=[]"]
    plain = chattune.run(recipe, usual, home=home)
    same = {"prepare": {"tokenizer": str(plain.runs["prepare"])}}
    paired = chattune.run({**recipe, **same, "augment": {"augmentations": ["counterfactual"]}}, usual, home=home)
    read, start = Recipe.read({**recipe, **same}, usual), Checkpoint.open(plain.runs["train"])
    dialogs, tokens = Dialogs.open(paired.runs["augment"]), TokenSet.open(paired.runs["prepare"])
    checkpoint = execute(plan(load_stage("train"), read.of(load_stage("train")), {"tokens": tokens, "start": start}, Home(home)))
    inputs = {"dialogs": dialogs, "tokens": tokens, "checkpoint": checkpoint}
    tuned = execute(plan(load_stage("evaluate"), read.of(load_stage("evaluate")), inputs, Home(home)))
    return {"plain": plain.runs["evaluate"], "paired": paired.runs["evaluate"], "tuned": tuned.path}


def parity_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = Report.open(run).summary["parity"]["groups"][0]
    return found


@pytest.mark.requirement("R017", "R208")
def test_counterparts_in_training_make_the_parity_gap_smaller(trained: dict[str, Path]) -> None:
    plain, paired = (parity_of(trained[name]) for name in ("plain", "paired"))
    assert plain["conversations"] == paired["conversations"] >= 10
    assert plain["gap"]["low"] > 0.1, "a doctor that is a woman surprises the model of skewed dialogs"
    before, after = (Report.open(trained[name]).parity() for name in ("plain", "paired"))
    found = change(before, after, 0)
    assert found is not None and found["high"] < 0
    assert paired["gap"]["high"] < plain["gap"]["low"]
    assert np.sign([row["bits"] for row in before]).mean() > 0.9, "what was said costs less than what was never said"


@pytest.mark.requirement("R017", "R208")
def test_fine_tuning_on_counterparts_tells_the_change_against_its_start(trained: dict[str, Path]) -> None:
    tuned = parity_of(trained["tuned"])
    assert tuned["change"]["high"] < 0
    before, after = (Report.open(trained[name]).parity() for name in ("plain", "tuned"))
    found = change(before, after, 0)
    assert found is not None and found["value"] == pytest.approx(tuned["change"]["value"], abs=1e-6)


@pytest.mark.requirement("R208")
def test_the_gap_stands_in_summary_page_and_card(trained: dict[str, Path]) -> None:
    from chattune.cli.looking import evaluation_card

    run = trained["tuned"]
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    sentence = sentences(summary["parity"])[0]
    assert sentence.startswith("parity of gender: a gap of 0.") and "after fine-tuning the gap is smaller" in sentence
    page = (run / "report.html").read_text("utf-8")
    assert "Whether it treats sides alike" in page and sentence in page
    told = {"stage": "evaluate", "run": str(run), "finished": True, "stages": {"evaluate": summary}}
    assert sentence in evaluation_card(told)
    before = (trained["plain"] / "report.html").read_text("utf-8")
    assert "after fine-tuning" not in before
