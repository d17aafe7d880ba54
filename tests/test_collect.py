"""From files of conversations to three splits: nothing lost silently, nothing of the test in training, every mistake told."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattune.core.artifact import Home
from chattune.core.config import override, validate
from chattune.core.errors import DataError, ResumeError, SettingError
from chattune.core.stage import execute, load_stage, plan
from chattune.dialogs.artifact import SPLITS, Conversations, Dialogs
from chattune.dialogs.detect import detect
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.near_duplicates import SAME_WORDS, clusters, normalised, similar_pairs, spaced
from chattune.dialogs.readers.openai_messages import OpenAIMessages
from chattune.dialogs.readers.transcript import Transcript
from chattune.dialogs.shape import Shaped, content_key, questions, shaped
from chattune.dialogs.split import TEST, TRAIN, VALIDATION, Asked, Rules, clusters_of, divide, measured, sizes
from chattune.dialogs.stage import CollectConfig, SplitConfig, collect, split
from chattune.story.recipe import Recipe

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def talk_of(*contents: str, first: str = "user", group: str | None = None) -> Dialog:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    messages = tuple(Message(roles[place % 2], content) for place, content in enumerate(contents))
    return Dialog(str(contents), messages, "made", "made", 1, group)


def rows(count: int, seed: int = 0) -> list[dict[str, object]]:
    """OpenAI rows of `count` chats, no two alike."""
    letters = random.Random(seed)
    word = lambda: "".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=9))  # noqa: E731
    said = lambda: " ".join(word() for _ in range(6))  # noqa: E731
    return [{"messages": [{"role": "user", "content": said()}, {"role": "assistant", "content": said()}]} for _ in range(count)]


def written(path: Path, found: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), "utf-8")
    return path


def collected(folder: Path, sources: Path | str, seed: int = 0, **settings: object) -> Dialogs:
    raw, out = folder / "raw", folder / "out"
    raw.mkdir(exist_ok=True)
    out.mkdir(exist_ok=True)
    own = {name: settings.pop(name) for name in [*settings] if name in SplitConfig.model_fields}
    read = collect(config=CollectConfig(sources=(str(sources),), **settings), out=raw)
    made = split(config=SplitConfig(**own), seed=seed, conversations=read, out=out)
    assert isinstance(read, Conversations) and isinstance(made, Dialogs)
    return made


def recounted(made: Dialogs) -> tuple[float, float]:
    """Exact overlap of all test questions and near-duplicate share of 300 of them, counted here by plain sets of 5-grams."""
    def asked(name: str) -> list[str]:
        return [" ".join(m.content.lower().split()) for d in made.read(name)
                for m, n in zip(d.messages, d.messages[1:], strict=False) if m.role == "user" and n.role == "assistant"]  # fmt: skip

    def grams(text: str) -> frozenset[str]:
        return frozenset(text[i : i + 5] for i in range(max(1, len(text) - 4)))

    exact, test = set(asked("train")), asked("test")
    known = sorted(exact)
    sets = [grams(text) for text in known]
    frequency = Counter(gram for own in sets for gram in own)
    sample = [grams(text) for text in random.Random(0).sample(test, min(300, len(test)))]
    # A set with a Jaccard of 0.8 shares one of any fifth of the members (and one more): the rarest are looked up.
    rare = [sorted(own, key=frequency.__getitem__)[: len(own) // 5 + 1] for own in sample]
    index: dict[str, list[frozenset[str]]] = {gram: [] for own in rare for gram in own}
    for own in sets:
        for gram in own & index.keys():
            index[gram].append(own)
    near = sum(
        any(len(own & other) >= 0.8 * len(own | other) for gram in looked for other in index[gram])
        for own, looked in zip(sample, rare, strict=True)
    )
    return len([text for text in test if text in exact]) / len(test), near / len(sample)


# ---------------------------------------------------------------------------------------------------------------- the split


@pytest.mark.requirement("R003", "R010", "must-4")
@pytest.mark.parametrize(
    "source", ["chatterbot-english", "chatterbot-chinese", "yaml_corpus/english", "en_dialogue/chitchat_part.json.gz"]
)
def test_no_test_question_stands_in_training_on_real_data(source: str, tmp_path: Path) -> None:
    if "/" in source and not (DATA / source).exists():
        pytest.skip("the data is not here")
    made = collected(tmp_path, DATA / source if "/" in source else source)
    found, counts = made.summary["split"], made.summary["counts"]
    kept = counts["kept"]
    assert counts["read"] == kept + sum(counts["dropped"].values())
    assert [found[name] for name in SPLITS] == list(sizes(kept, (0.8, 0.1, 0.1))) and abs(found["test"] - 0.1 * kept) <= 1
    assert found["exact_overlap"] == 0 and found["near_duplicate_share"] <= 0.005 and found["validation_exact_overlap"] == 0
    exact, near = recounted(made)
    assert exact == 0 and near <= 0.005
    # What a row-random split leaves, in the field's own measurement: 69.5 % in English and 25.7 % in Chinese (of first questions).
    expected = {"chatterbot-chinese": (0.20, 0.31), "en_dialogue/chitchat_part.json.gz": (0.05, 0.20)}.get(source, (0.6, 0.75))
    assert expected[0] < found["row_random_exact_overlap"] < expected[1]


@pytest.mark.requirement("R010")
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["yes", "hi", "a joke", "你好", *map(str, range(40))]), min_size=2, max_size=6), max_size=40),
    st.integers(0, 3),
)
def test_parts_are_a_partition_of_clusters_and_as_large_as_asked(contents: list[list[str]], seed: int) -> None:
    # Ten talks that share nothing are enough for validation and test of at most fifty.
    dialogs = [talk_of(*own) for own in contents] + [talk_of(f"alone {'abcdefghij'[i] * 9}", "reply") for i in range(10)]
    rules, asked = Rules(seed=seed), Asked(dialogs)
    divided = divide(asked, rules)
    wanted = sizes(len(dialogs), rules.shares)
    assert [int((divided.part == part).sum()) for part in range(3)] == list(wanted)
    for number in set(divided.cluster.tolist()):
        assert len(set(divided.part[divided.cluster == number].tolist())) == 1
    if not divided.refused:
        assert measured(asked, divided.part, rules, [1] * len(dialogs))["near_duplicate_share"] == 0


@pytest.mark.requirement("R010")
def test_the_split_follows_from_seed_and_content_not_from_the_order_of_the_input() -> None:
    dialogs = [talk_of(f"question {i * 7919} {i % 5}", f"answer {i}", "ok", "bye") for i in range(200)]
    one = divide(Asked(dialogs), Rules(seed=3))
    part = {content_key(dialog): int(own) for dialog, own in zip(dialogs, one.part, strict=True)}
    mixed = list(dialogs)
    random.Random(1).shuffle(mixed)
    again = divide(Asked(mixed), Rules(seed=3))
    assert {content_key(dialog): int(own) for dialog, own in zip(mixed, again.part, strict=True)} == part
    assert not np.array_equal(divide(Asked(dialogs), Rules(seed=4)).part, one.part)


@pytest.mark.requirement("R010")
def test_a_group_is_never_torn_apart() -> None:
    dialogs = [talk_of(f"{i} {i * i} {'xyz'[i % 3] * (i % 17)}", "reply", group=f"customer {i // 3}") for i in range(150)]
    part = divide(Asked(dialogs), Rules()).part
    for start in range(0, 150, 3):
        assert len(set(part[start : start + 3].tolist())) == 1
    assert abs(int((part == TEST).sum()) - 15) <= 1


@pytest.mark.requirement("R010")
def test_large_groups_come_as_near_to_the_shares_as_they_can() -> None:
    groups = [[talk_of(f"{group} {i * 7907}", "reply", group=str(group)) for i in range(11 if group else 1)] for group in range(10)]
    part = divide(Asked([dialog for own in groups for dialog in own]), Rules()).part
    assert sorted(int((part == p).sum()) for p in (VALIDATION, TEST)) == [11, 12]


@pytest.mark.requirement("R010")
def test_what_everybody_says_does_not_make_one_cluster_and_is_reported() -> None:
    dialogs = [talk_of(f"{'abcdefghijklmnop'[i % 16] * 5} opens {i * 7907}", "reply", "yes", "bye") for i in range(100)]
    asked, rules = Asked(dialogs), Rules()
    divided = divide(asked, rules)
    found = measured(asked, divided.part, rules, [1] * 100)
    assert divided.refused == ("yes",)
    assert [int((divided.part == part).sum()) for part in (TRAIN, VALIDATION, TEST)] == [80, 10, 10]
    assert found["openings"]["exact_overlap"] == found["prompts"]["exact_overlap"] == 0
    assert found["exact_overlap"] == 0.5  # every second question of the test is "yes", and it says so


@pytest.mark.requirement("R010")
def test_question_length_lets_short_questions_stand_on_both_sides_but_no_opening_one() -> None:
    dialogs = [talk_of(f"{i * 7907} opens", "reply", "yes" if i < 60 else f"{i * 7919}", "bye") for i in range(100)]
    strict, loose = (clusters_of(Asked(dialogs), Rules(question_length=length))[0] for length in (1, 4))
    assert max(Counter(strict.tolist()).values()) == 60
    assert max(Counter(loose.tolist()).values()) == 1
    greetings = [talk_of("hi" if i < 20 else f"{i * 7907} opens", str(i)) for i in range(100)]
    opened = clusters_of(Asked(greetings), Rules(question_length=1000))[0]
    assert set(opened[:20].tolist()) == {0} and len(set(opened.tolist())) == 81


# ------------------------------------------------------------------------------------------------------------ near-duplicates


@pytest.mark.requirement("R003")
@pytest.mark.parametrize("language", ["en", "zh"])
def test_planted_near_duplicates_are_found_and_nothing_else_is_joined(language: str) -> None:
    letters = random.Random(7)
    if language == "en":
        vocabulary = ["".join(letters.choices("etaoinshrdlucm", k=letters.randint(2, 9))) for _ in range(3000)]
        texts = [" ".join(letters.choices(vocabulary, k=18)) for _ in range(3000)]
    else:
        texts = ["".join(chr(letters.randint(0x4E00, 0x5200)) for _ in range(40)) for _ in range(3000)]
    planted, truth = [], []
    for number in letters.sample(range(3000), 600):
        place = letters.randint(5, len(texts[number]) - 5)
        changed = texts[number][:place] + letters.choice("xyz") + texts[number][place + 1 :]
        a, b = ({*own} for own in _grams(texts[number], changed))
        if len(a & b) / len(a | b) >= 0.8:
            truth.append((number, len(texts) + len(planted)))
            planted.append(changed)
    assert len(truth) > 500
    found = clusters(texts + planted, 0.8)
    recall = np.mean([found[a] == found[b] for a, b in truth])
    assert recall >= 0.99  # R003 asks for 0.95, performance.md for 0.99
    joined = Counter(found.tolist())
    false = sum(count > 1 for count in joined.values()) - sum(int(found[a] == found[b]) for a, b in truth)
    assert false == 0


def _grams(*texts: str) -> list[list[str]]:
    return [[own[i : i + 5] for i in range(len(own) - 4)] for own in (f" {spaced(text).ljust(3)} " for text in texts)]


@pytest.mark.requirement("R003")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="ab c你好吗!", max_size=14), min_size=1, max_size=25), st.sampled_from([0.5, 0.7, 0.9]))
def test_a_pair_is_what_a_plain_comparison_of_sets_says(texts: list[str], threshold: float) -> None:
    unique = sorted({normalised(text) for text in texts})
    grams = [frozenset(own) for own in _grams(*unique)]
    bags = [frozenset(spaced(text).split()) for text in unique]
    found = {*map(tuple, similar_pairs(unique, threshold).tolist())}
    for right in range(len(unique)):
        for left in range(right):
            by_grams, by_words = _jaccard(grams[left], grams[right]), _jaccard(bags[left], bags[right])
            if (left, right) in found:
                assert by_grams >= threshold - 1e-9 or by_words >= SAME_WORDS - 1e-9
            else:
                # Signatures of equal sets are equal and cannot be missed; nearer the threshold one in 200 may be.
                assert max(by_grams, by_words) < 1


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def test_normal_form_unifies_case_width_punctuation_and_keeps_what_is_only_punctuation() -> None:
    assert normalised("  What's UP,  doc?? ") == "whats up doc"
    assert normalised("ＡＩ是什么？") == "ai是什么"
    assert normalised("?!") == "?!" and normalised("🙂") == "🙂"
    assert spaced("你好 ok") == "你 好 ok"


# -------------------------------------------------------------------------------------------------------------- normal shapes


def shape_of(*messages: tuple[str, str] | tuple[str, str, float | None]) -> Shaped | Drop:
    return shaped(Dialog("d", tuple(Message(*message) for message in messages), "made", "f.txt", 3))


def test_runs_of_one_role_are_joined_and_empty_messages_counted() -> None:
    said = [("user", " hi "), ("user", "there"), ("assistant", "  "), ("user", "you"), ("assistant", "yes\n\n- a"), ("tool", "7")]
    found = shape_of(*said)
    assert isinstance(found, Shaped)
    left = [(message.role, message.content) for message in found.dialog.messages]
    assert left == [("user", "hi\nthere\nyou"), ("assistant", "yes\n\n- a"), ("tool", "7")]
    assert (found.empty, found.joined) == (1, 2)


def test_an_assistant_that_opens_and_a_user_who_ends_are_kept() -> None:
    found = shape_of(("assistant", "Welcome!"), ("user", "hi"), ("assistant", "Yes?"), ("user", "bye"))
    assert isinstance(found, Shaped) and [m.role for m in found.dialog.messages] == ["assistant", "user", "assistant", "user"]


@pytest.mark.parametrize(("messages", "reason"), [
    ([("user", "hello?")], "no_reply"), ([("user", "hello?"), ("assistant", " \n")], "no_reply"), ([("user", " ")], "empty"),
    ([], "empty"), ([("system", "x"), ("assistant", "y")], "no_user"),
])  # fmt: skip
def test_a_dialog_without_both_sides_is_dropped_with_its_place(messages: list[tuple[str, str]], reason: str) -> None:
    found = shape_of(*messages)
    assert isinstance(found, Drop) and (found.reason, found.file, found.line) == (reason, "f.txt", 3)


def test_of_two_joined_weights_the_smaller_stands() -> None:
    def weight(*weights: float | None) -> float | None:
        found = shape_of(("user", "q"), *(("assistant", "a", w) for w in weights))
        assert isinstance(found, Shaped)
        return found.dialog.messages[1].weight

    assert weight(None, None) is None
    assert weight(0.0, None) == 0.0 and weight(1.0, 0.5) == 0.5 and weight(2.0, None) == 1.0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(alphabet="ab \n\t你", max_size=6)), max_size=8))
def test_shaping_twice_is_shaping_once_and_no_letter_is_lost(messages: list[tuple[str, str]]) -> None:
    found = shape_of(*messages)
    if isinstance(found, Shaped):
        assert shaped(found.dialog) == Shaped(found.dialog, 0, 0)
        kept, given_ = ("".join("".join(own).split()) for own in ((m.content for m in found.dialog.messages), (c for _, c in messages)))
        assert kept == given_
        assert all(a.role != b.role for a, b in zip(found.dialog.messages, found.dialog.messages[1:], strict=False))
        assert len(messages) == len(found.dialog.messages) + found.empty + found.joined


def test_questions_are_user_messages_that_a_reply_follows() -> None:
    assert list(questions(talk_of("Welcome", "one", "reply", "two", first="assistant"))) == ["one"]


# ------------------------------------------------------------------------------------------------------------------ the stage


def test_counts_add_up_and_every_drop_is_written_with_its_place(tmp_path: Path) -> None:
    good = rows(30)
    one = [{"role": "wizard", "content": "x"}, {"role": "user", "content": 7}, {"role": "user", "content": "alone"},
           {"role": "user", "content": "a", "weight": -1}]  # fmt: skip
    bad = [good[3], {"messages": "no"}, *({"messages": [message]} for message in one), {"other": 1}]
    path = written(tmp_path / "chat.jsonl", good + bad)
    with path.open("a", encoding="utf-8") as file:
        file.write('[1]\n{"messages": [{"role": "user", "con')
    made = collected(tmp_path, path)
    counts = made.summary["counts"]
    assert counts == {
        "read": 39, "kept": 30,
        "dropped": {
            "broken_json": 1, "duplicate": 1, "no_messages": 2, "no_reply": 1, "not_an_object": 1, "unknown_role": 1, "wrong_type": 2,
        },
    }  # fmt: skip
    drops = [json.loads(line) for line in (made.path / "dropped.jsonl").read_text("utf-8").splitlines()]
    assert [(drop["line"], drop["reason"]) for drop in drops] == [
        (31, "duplicate"), (32, "no_messages"), (33, "unknown_role"), (34, "wrong_type"), (35, "no_reply"), (36, "wrong_type"),
        (37, "no_messages"), (38, "not_an_object"), (39, "broken_json"),
    ]  # fmt: skip
    assert all(drop["file"] == str(path) for drop in drops)
    messages = made.summary["messages"]
    assert messages["read"] == messages["kept"] + messages["empty"] + messages["joined"] + messages["dropped"]
    stored = [dialog for name in SPLITS for dialog in made.read(name)]
    assert len({dialog.id for dialog in stored}) == len(stored) == 30
    assert sum(len(dialog.messages) for dialog in stored) == messages["kept"]
    assert made.summary["sources"] == [{"file": str(path), "format": "openai_messages", "read": 39, "dialogs": 30, "dropped": 9}]


def test_content_is_kept_to_the_letter(tmp_path: Path) -> None:
    hostile = "<|end|>\u2028 zero\u200bwidth \x07 tab\t\r\nline 👩\u200d👩\u200d👧 é e\u0301 ＡＢＣ"
    some = rows(20)
    some[0]["messages"][0]["content"] = hostile  # type: ignore[index]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in some), "ascii")
    made = collected(tmp_path, path)
    found = [d for name in SPLITS for d in made.read(name) if d.line == 1]
    assert found[0].messages[0].content == hostile


def test_half_a_surrogate_pair_is_dropped_in_a_message_and_kept_in_metadata(tmp_path: Path) -> None:
    some = rows(20)
    some[0]["messages"][0]["content"] = "half \ud83d"  # type: ignore[index]
    some[1]["topic"] = "\ude00"
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in some), "ascii")
    made = collected(tmp_path, path)
    assert made.summary["counts"]["dropped"] == {"broken_character": 1}
    assert [d.metadata["topic"] for name in SPLITS for d in made.read(name) if d.line == 2] == ["\ude00"]


def test_the_bytes_of_the_sources_are_part_of_the_address(tmp_path: Path) -> None:
    path = written(tmp_path / "chat.jsonl", rows(30))
    home, stage = Home(tmp_path / "runs"), load_stage("collect")
    config = CollectConfig(sources=(str(path),))
    run = plan(stage, {"collect": config}, {}, home)
    made = execute(run)
    assert isinstance(made, Conversations) and made.manifest["metrics"]["counts"]["kept"] == 30
    assert plan(stage, {"collect": config}, {}, home) == run
    dividing, split_config = load_stage("split"), SplitConfig()
    seeds = [plan(dividing, {"split": split_config, "seed": seed}, {"conversations": made}, home) for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]
    written(path, rows(31))
    other = plan(stage, {"collect": config}, {}, home)
    assert other != run
    written(path, rows(32))
    with pytest.raises(ResumeError, match=r"chat\.jsonl"):
        execute(other)


def test_a_format_and_its_settings_can_be_named_in_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "window.txt"
    chats = (f"Ann: I sell {'abcdefghijklmnopqrst'[i] * 8}\nBob: how much is {i * 7919}" for i in range(20))
    path.write_text("\n\n".join(chats), "utf-8")
    recipe = override({}, [f"collect.sources=[{path}]", "collect.format.name=transcript", "collect.format.assistant=[Ann]"])
    config = validate(CollectConfig, recipe["collect"], prefix="collect")
    assert config.format == Transcript(assistant=("Ann",))
    assert CollectConfig.model_validate(config.model_dump(mode="json")) == config
    out = tmp_path / "out"
    out.mkdir()
    made = collect(config=config, out=out)
    assert isinstance(made, Conversations) and {d.messages[0].role for d in made.read()} == {"assistant"}
    with pytest.raises(SettingError, match="transcript"):
        validate(CollectConfig, {"format": "transcrip"}, prefix="collect")


@pytest.mark.parametrize(("section", "setting", "value"), [
    ("split", "shares", [0.8, 0.1, 0.2]), ("split", "shares", [1.0, 0.0, 0.0]), ("collect", "sources", []),
    ("collect", "encoding", "klingon"), ("split", "near_duplicate_threshold", 1.5), ("split", "question_length", 0),
    ("clean", "processes", 0), ("clean", "cleaners", ["no_such_cleaner"]), ("balance", "repeat", 0), ("augment", "variants", 0),
])  # fmt: skip
def test_a_setting_outside_its_limits_is_told_with_its_path(section: str, setting: str, value: object) -> None:
    with pytest.raises(SettingError) as caught:
        Recipe.read({section: {setting: value}})
    assert (caught.value.path or "").startswith(f"{section}.{setting}")


def test_the_format_and_the_counts_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from chattune.core.progress import talk

    talk.cache_clear()
    path = written(tmp_path / "chat.jsonl", rows(30))
    collected(tmp_path, path)
    told = capsys.readouterr()
    talk.cache_clear()
    assert told.out == ""
    assert f"{path}: openai_messages, 30 of 30 dialogs kept" in told.err and "row-random" in told.err


# ------------------------------------------------------------------------------------------------------------------ bad input


def told(tmp_path: Path, source: Path | str, **settings: object) -> DataError:
    with pytest.raises(DataError) as caught:
        collected(tmp_path, source, **settings)
    error = caught.value
    assert error.exit_code == 1 and error.path and error.rule and error.hint and "\n" not in str(error)
    return error


def test_a_missing_source_names_the_nearest_file(tmp_path: Path) -> None:
    written(tmp_path / "chats.jsonl", rows(20))
    assert str(tmp_path / "chats.jsonl") in (told(tmp_path, tmp_path / "chast.jsonl").hint or "")
    assert "chatterbot-english" in (told(tmp_path, "chatterbot-englisch").hint or "")
    assert "matches no file" in str(told(tmp_path, tmp_path / "*.csv"))
    with pytest.raises(DataError):
        CollectConfig(sources=(str(tmp_path / "nowhere"),)).fingerprint()


@pytest.mark.parametrize(("content", "message"), [
    (b"", "no text"), (b"\x7fELF\0\0\0\1", "binary"), ("a: 你好".encode("utf-16"), "UTF-16"),
    (gzip.compress(b"a: b\n" * 999, mtime=0)[:30], "damaged gzip"), (b"just prose. no names here.\nand on it goes\n", "not recognised"),
    (b'{"a": 1}\n', "not recognised"),
])  # fmt: skip
def test_an_unusable_file_is_told_with_its_place(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(content)
    error = told(tmp_path, path)
    assert message in str(error) and str(path) in str(error.path)


def test_a_wrong_encoding_is_told_with_its_line_and_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "window.txt"
    lines = [f"Anna: question {i * 7919}\nBot: {'你好' if i > 50 else 'hello'} {i}\n" for i in range(60)]
    path.write_bytes("\n".join(lines).encode("gb18030"))
    error = told(tmp_path, path)
    assert error.path == f"{path}:{51 * 3 + 2}" and "collect.encoding" in (error.hint or "")
    assert collected(tmp_path, path, encoding="gb18030").summary["counts"]["kept"] == 60


@pytest.mark.parametrize("opening", [b'{"messages": [{"content": "', b'[{"messages": [{"content": "', b"Anna: "])
def test_a_line_of_100_megabytes_is_dropped_in_bounded_memory(opening: bytes, tmp_path: Path) -> None:
    path = tmp_path / "long.gz"
    good = b"".join(json.dumps(row).encode() + b"\n" for row in rows(3))
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(good if opening.startswith(b"{") else b"")
        file.write(opening)
        for _ in range(100):
            file.write(b"x" * 2**20)
        file.write(b"\n" + good)
    reader = Transcript(record_limit=2**20) if opening.startswith(b"A") else OpenAIMessages(record_limit=2**20)
    tracemalloc.start()
    items = list(reader.read(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20
    drops = [item for item in items if isinstance(item, Drop)]
    assert drops[0].reason == "line_too_long" and drops[0].line == (4 if opening.startswith(b"{") else 1)
    if opening.startswith(b"{"):
        assert sum(isinstance(item, Dialog) for item in items) == 6


def test_a_cut_list_keeps_what_stands_before_the_cut(tmp_path: Path) -> None:
    text = json.dumps(rows(40), indent=1)
    path = tmp_path / "chat.json"
    path.write_text(text[: len(text) * 3 // 4], "utf-8")
    counts = collected(tmp_path, path).summary["counts"]
    assert counts["dropped"] == {"broken_json": 1} and 28 <= counts["kept"] <= 30


def test_json_printed_over_several_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text("\n".join(json.dumps(row, indent=2) for row in rows(12)), "utf-8")
    assert collected(tmp_path, path).summary["counts"] == {"read": 12, "kept": 12, "dropped": {}}


def test_an_unclosed_quote_in_a_table_costs_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "faq.csv"
    good = [f"question {i * 7919},answer {i}\n" for i in range(40)]
    path.write_text("question,answer\n" + "".join(good[:20]) + 'what,"never closed\n' + "".join(good[20:]), "utf-8")
    made = collected(tmp_path, path)
    assert made.summary["counts"] == {"read": 41, "kept": 40, "dropped": {"broken_csv": 1}}
    assert "line 22 is left out" in (made.path / "dropped.jsonl").read_text("utf-8")


def test_too_little_to_split_says_what_is_needed(tmp_path: Path) -> None:
    error = told(tmp_path, written(tmp_path / "chat.jsonl", rows(9)))
    assert error.value == 9 and "10 clusters" in (error.rule or "")
    same = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": str(i)}]} for i in range(50)]
    assert told(tmp_path, written(tmp_path / "chat.jsonl", same)).value == 1


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    alone = [{"messages": [{"role": "user", "content": f"hello {i}"}]} for i in range(20)]
    assert "20 no_reply" in str(told(tmp_path, written(tmp_path / "chat.jsonl", alone)))


def test_a_file_of_two_formats_asks_which(tmp_path: Path) -> None:
    both = [{**row, "conversations": [{"from": "human", "value": "a"}]} for row in rows(20)]
    path = written(tmp_path / "both.jsonl", both)
    error = told(tmp_path, path)
    assert "openai_messages 1.00" in str(error) and "sharegpt 1.00" in str(error) and "collect.format=" in (error.hint or "")
    assert collected(tmp_path, path, format="openai_messages").summary["counts"]["kept"] == 20


def test_a_folder_is_read_whole_and_an_empty_one_told(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    assert "no file" in str(told(tmp_path, folder))
    written(folder / "a.jsonl", rows(15, seed=1))
    (folder / "deep" / "b.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows(15, seed=2)).encode()))
    (folder / ".hidden.jsonl").write_bytes(b"\0")
    (folder / "README.md").write_text("About this data.")
    made = collected(tmp_path, folder)
    assert [source["dialogs"] for source in made.summary["sources"]] == [15, 15]
    assert collected(tmp_path, folder / "**" / "*.jsonl*").summary["counts"]["kept"] == 30


@pytest.mark.parametrize(("text", "roles"), [
    ("Zed: hi\nAmy: hello\n", ["user", "assistant"]), ("Support: Hi, how can I help?\nZed: hi\n", ["assistant", "user"]),
    ("Zed: hi\nCustomer: hm\n", ["assistant", "user"]), ("客户：你好\n客服：您好\n", ["user", "assistant"]),
    ("System: be short\nUser: hi\nAI: hello\n", ["system", "user", "assistant"]),
    ("A: one\nB: two\nC: three\n", ["user", "assistant", "user"]),
    ("[12:30] Zed: hi\n2024-01-02 10:11:12 Amy: see http://x.y/z: ok\n", ["user", "assistant"]),
])  # fmt: skip
def test_speakers_of_a_transcript_get_their_roles(text: str, roles: list[str], tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text, "utf-8")
    (dialog,) = Transcript().read(path)
    assert isinstance(dialog, Dialog) and [message.role for message in dialog.messages] == roles
    assert detect(path).name == "transcript"


def test_five_hundred_dialogs_that_ask_six_things_are_too_few(tmp_path: Path) -> None:
    path = DATA / "instruct" / "fastchat_dummy_conversation.json"
    if not path.exists():
        pytest.skip("the data is not here")
    assert str(told(tmp_path, path)).startswith("collect.sources: 500 dialogs with 6 different questions")


@pytest.mark.parametrize("place", ["instruct/glaive_toolcall_zh_demo.json.gz", "yaml_corpus/chinese"])
def test_real_files_are_detected_and_read_without_loss(place: str, tmp_path: Path) -> None:
    if not (DATA / place).exists():
        pytest.skip("the data is not here")
    made = collected(tmp_path, DATA / place)
    counts = made.summary["counts"]
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values()) and counts["kept"] >= 200
    assert set(counts["dropped"]) <= {"duplicate"}
    assert recounted(made)[0] == 0
