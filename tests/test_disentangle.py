"""Interleaved conversations are told apart better than by the usual baselines; sessions and roles lose nothing and are said."""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattune.core.config import override, validate
from chattune.dialogs.artifact import Conversations
from chattune.dialogs.dialog import Drop
from chattune.dialogs.disentangle import FEATURES, LINK_WEIGHTS, START_WEIGHTS, Linker, conversations
from chattune.dialogs.sessions import Aside, Conversation, Names, Plan, Said, Survey, valley
from chattune.dialogs.sessions import conversations as cut
from chattune.dialogs.stage import CollectConfig, collect

LOGS = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "messy" / "irc"
NOBODY = Names.of((), (), ())


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import disentangle

    return disentangle


def said(line: int, speaker: str, text: str, time: float | None = None, **more: str) -> Said:
    return Said(line, speaker, text, time, **more)


# ------------------------------------------------------------------------------------------------------------------ the gold


@pytest.mark.requirement("R001", "must-4")
def test_links_and_conversations_are_better_than_both_baselines_on_logs_that_were_not_fitted_on(bench: Any) -> None:
    if not LOGS.is_dir():
        pytest.skip("the annotated logs are not here")
    names = sorted(path.name for path in LOGS.glob("*.raw.txt"))
    held_out = [bench.load(LOGS / name) for name in names[1::2][:2]]
    ours = bench.scores(held_out, bench.model)
    for baseline in (bench.previous, bench.mentioned):
        theirs = bench.scores(held_out, baseline)
        assert ours["f1"] > theirs["f1"] + 0.1, (ours, theirs)
        for name in ("precision", "recall", "information", "one_to_one", "exact_f1"):
            assert ours[name] > theirs[name], (name, ours, theirs)
    assert ours["f1"] > 0.55 and ours["information"] > 0.74 and ours["one_to_one"] > 0.52


@pytest.mark.skipif(not os.environ.get("FULL"), reason="fits the weights again: FULL=1")
def test_the_weights_are_those_that_the_command_fits(bench: Any) -> None:
    if not LOGS.is_dir():
        pytest.skip("the annotated logs are not here")
    found = bench.fitted(bench.halves(LOGS)[0])
    assert found == pytest.approx({**LINK_WEIGHTS, **START_WEIGHTS}, abs=0.02)


def test_the_halves_share_no_log(bench: Any) -> None:
    if not LOGS.is_dir():
        pytest.skip("the annotated logs are not here")
    names = sorted(path.name.removesuffix(".raw.txt") for path in LOGS.glob("*.raw.txt"))
    assert len(names) == 8 and not set(names[::2]) & set(names[1::2])
    log = bench.load(LOGS / f"{names[5]}.raw.txt")
    # Every line of the annotation that is a message counts, and openings are links to themselves.
    annotated = {max(map(int, row.split()[:2])) for row in (LOGS / f"{names[5]}.annotation.txt").read_text().splitlines()}
    assert {log.said[number].line - 1 for number in log.gold} == annotated & {one.line - 1 for one in log.said}
    assert any(answered == {number} for number, answered in log.gold.items())


def test_scores_of_known_divisions(bench: Any) -> None:
    true = {0: 0, 1: 0, 2: 1, 3: 1}
    def of(found: dict[int, int]) -> tuple[float, ...]:
        return tuple(bench.conversation_scores(true, found)[name] for name in ("information", "one_to_one", "exact_f1"))

    assert of({0: 9, 1: 9, 2: 7, 3: 7}) == (1.0, 1.0, 1.0)
    # All in one: H(true | one) = 1 bit of at most log2(4) = 2; half of the messages match; none is exact of two and one.
    assert of(dict.fromkeys(range(4), 0)) == (0.5, 0.5, 0.0)
    # All apart: again one bit, one of two in each match; singletons are not counted as conversations.
    assert of({n: n for n in range(4)}) == (0.5, 0.5, 0.0)
    log = bench.Log("x", [said(n + 1, "a", "b") for n in range(4)], {1: {0}, 2: {2}, 3: {1, 2}})
    assert bench.link_scores([log], [[0, 0, 2, 0]]) == pytest.approx({"precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7})
    assert bench.previous(log) == [0, 0, 1, 2]


# ------------------------------------------------------------------------------------------------------------------- linking


def linked(*rows: tuple[str, str]) -> list[int]:
    linker = Linker()
    return [linker.push(speaker, text, 60.0 * number) for number, (speaker, text) in enumerate(rows)]


def test_who_is_addressed_tells_what_is_answered() -> None:
    links = linked(
        ("ann", "how do I mount a disk?"), ("bob", "does anybody know a good mail program?"), ("cat", "ann: with mount, as root"),
        ("dan", "bob: try mutt"), ("ann", "cat: thanks, that worked"), ("bob", "dan: what about the address book?"),
    )  # fmt: skip
    assert links == [0, 1, 0, 1, 2, 3]
    assert conversations(links) == [0, 1, 0, 1, 0, 1]


def test_names_of_several_words_and_chinese_names_are_addressed_too() -> None:
    links = linked(
        ("Anna Müller", "which train goes to Ulm?"), ("张三", "请问怎么退款？"), ("Kim", "@Anna Müller the one at nine"),
        ("李四", "@张三 在订单里点退款"), ("张三", "李四：谢谢"),
    )  # fmt: skip
    assert links == [0, 1, 0, 1, 3]


def test_a_reply_that_the_log_holds_is_certain_and_the_window_ends_what_can_be_answered() -> None:
    linker = Linker(window=5)
    for number in range(20):
        linker.push(f"speaker {number}", "ann: hello", float(number))
    assert linker.push("ann", "yes", 20.0, answers=17) == 17
    assert linker.push("zoe", "speaker 18: and?", 21.0) in range(16, 22)


def test_what_a_linker_remembers_does_not_grow_with_the_log() -> None:
    linker = Linker(window=20)
    draw = random.Random(0)
    for number in range(800):
        text = " ".join(f"nick{draw.randrange(9)}" for _ in range(5))
        linker.push(f"nick{draw.randrange(9)}", f"{text} w{number}", float(number))
        assert sum(map(len, linker._places.values())) <= 20 * 6 and sum(map(len, linker._naming.values())) <= 20 * 5
        assert len(linker._kept) <= 20 and len(linker._times) == 40


def test_every_feature_has_a_weight_and_a_table_its_rows() -> None:
    assert len(FEATURES) == len(LINK_WEIGHTS) + len(START_WEIGHTS)
    linker = Linker(window=3)
    for number in range(7):
        read = linker.see("a" if number % 2 else "b", "text", None)
        assert linker.features(read, "text").shape == (min(number, 3) + 1, len(FEATURES))
        linker.take(read, number)


# ------------------------------------------------------------------------------------------------------------------ sessions


def plan(gap: float = 3600.0, **more: Any) -> Plan:
    return Plan(gap, "given", {}, **more)


def of(events: list[Any], own: Plan, **more: Any) -> list[list[int]]:
    return [[one.line for one in item.said] for item in cut(events, own, **more) if isinstance(item, Conversation)]


def test_silence_days_and_length_end_a_conversation() -> None:
    day = 86400.0
    events = [said(1, "a", "x", day), said(2, "b", "y", day + 10), said(3, "a", "z", day + 4000), said(4, "b", "w", 2 * day + 1)]
    assert of(events, plan()) == [[1, 2], [3], [4]]
    assert of(events, plan(1e9)) == [[1, 2, 3, 4]]
    assert of(events, plan(1e9), days=True) == [[1, 2, 3], [4]]
    assert of(events, plan(1e9), limit=2) == [[1, 2], [3, 4]]
    assert of([said(1, "a", "x"), said(2, "b", "y")], plan()) == [[1, 2]]  # without times nothing is cut


def test_threads_are_conversations_of_their_own_however_late_they_are_answered() -> None:
    events = [
        said(1, "a", "root", 0.0, answers="t"), said(2, "b", "x", 5.0), said(3, "c", "y", 6.0),
        said(4, "b", "late", 1e6, answers="t"),
    ]  # fmt: skip
    assert sorted(of(events, plan(), threads=True)) == [[1, 4], [2, 3]]
    # Without room, the thread that was silent longest ends; what follows has the same name, so that a split keeps both together.
    many = [said(n, "a", "12345", float(n), answers=f"t{n % 3}") for n in range(9)]
    found = [item for item in cut(many, plan(), threads=True, limit=5) if isinstance(item, Conversation)]
    assert sorted(one.line for item in found for one in item.said) == list(range(9))
    assert all(len({one.answers for one in item.said}) == 1 and item.thread == item.said[0].answers for item in found)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abcd"), st.sampled_from(["hi", "a: yes", "why?", ""]), st.sampled_from([0, 1, 5000])),
            st.sampled_from(["media", "system_line"]), st.just(Drop("x", "f", 1)),
        ), max_size=60,
    ),
    st.sampled_from(["order", "threads", "linker"]), st.sampled_from([4, 1000]),
)  # fmt: skip
def test_every_message_is_in_one_conversation_and_every_line_left_out_is_counted(rows: list[Any], way: str, limit: int) -> None:
    events: list[Any] = []
    time = 0.0
    for line, row in enumerate(rows, 1):
        if isinstance(row, tuple):
            time += row[2]
            events.append(said(line, row[0], row[1], time, answers="t" if way == "threads" and row[1] == "hi" else ""))
        else:
            events.append(row if isinstance(row, Drop) else Aside(line, row))
    found = list(cut(events, plan(), threads=way == "threads", linker=Linker(5) if way == "linker" else None, limit=limit))
    talks = [item for item in found if isinstance(item, Conversation)]
    drops = [item for item in found if isinstance(item, Drop)]
    lines = [one.line for talk in talks for one in talk.said]
    assert sorted(lines) == [event.line for event in events if isinstance(event, Said)]
    assert all([one.line for one in talk.said] == sorted(one.line for one in talk.said) for talk in talks)
    left_out = sum((talk.left_out for talk in talks), Counter[str]())
    wanted = Counter(event.reason for event in events if isinstance(event, Aside))
    assert left_out == (wanted if talks else Counter())
    assert len(drops) == sum(isinstance(event, Drop) for event in events) + bool(wanted and not talks)


def test_the_silence_that_ends_a_conversation_is_found_between_short_and_long_ones() -> None:
    draw = random.Random(1)

    def silences(count: int, middle: float) -> Counter[int]:
        return Counter(int(2 * math.log2(max(1.0, draw.lognormvariate(math.log(middle), 1.0)))) for _ in range(count))

    both = valley(silences(800, 40.0) + silences(200, 8 * 3600.0))
    assert both is not None and 600 <= both <= 2 * 3600
    assert valley(silences(1000, 40.0)) is None  # they do not part
    assert valley(silences(30, 40.0) + silences(30, 8 * 3600.0)) is None  # too few to tell
    survey = Survey(NOBODY)
    time = 0.0
    for number in range(600):
        time += 9 * 3600 if number % 6 == 0 else draw.uniform(5, 90)
        survey.see(said(number + 1, "ab"[number % 2], "text", time))
    found = survey.settled(None)
    assert found.gap_from == "inferred" and 600 <= found.gap < 9 * 3600 and "inferred" in found.told()
    assert survey.settled(60.0).gap == 60.0 and survey.settled(60.0).gap_from == "given"


# --------------------------------------------------------------------------------------------------------------------- roles


def surveyed(*rows: tuple[str, str], names: Names = NOBODY) -> Plan:
    survey = Survey(names)
    for number, (speaker, text) in enumerate(rows):
        survey.see(said(number + 1, speaker, text, 10.0 * number))
    return survey.settled(None)


def roles(found: Plan, *speakers: str) -> tuple[dict[str, str], str]:
    return found.roles([said(1, speaker, "x") for speaker in speakers])


def test_a_name_says_the_role() -> None:
    found = surveyed(("Helpdesk", "hello"), ("Kim", "hi"), names=Names.of(("helpdesk",), (), ()))
    assert roles(found, "Helpdesk", "Kim") == ({"Helpdesk": "assistant", "Kim": "user"}, "named")
    assert "Helpdesk is by name the assistant" in found.told()
    found = surveyed(("Kim", "hello"), ("Lee", "hi"), names=Names.of((), ("kim",), ()))
    assert roles(found, "Lee", "Kim") == ({"Lee": "assistant", "Kim": "user"}, "named")


def test_who_answers_many_and_asks_little_is_the_assistant() -> None:
    names = ("ann", "ben", "cat", "dan", "eve", "fay")
    found = surveyed(*[row for name in names for row in ((name, "how does it work?"), ("zoe", "you press the button"))])
    assert found.agents == {"zoe"} and "zoe is by what they do" in found.told()
    assert roles(found, "zoe", "ann") == ({"zoe": "assistant", "ann": "user"}, "behaviour")
    assert roles(found, "ann", "ben", "cat") == ({"ann": "user", "ben": "assistant", "cat": "assistant"}, "opener")


def test_of_two_the_one_who_answers_keeps_the_role_in_every_conversation() -> None:
    found = surveyed(*[("Kim", "and how?") if n % 2 else ("Lee", "like this") for n in range(30)])
    assert found.pair == "Lee" and found.pair_from == "behaviour"  # although Lee spoke first
    assert roles(found, "Lee", "Kim")[0] == {"Lee": "assistant", "Kim": "user"}
    few = surveyed(("Kim", "hi"), ("Lee", "hi"))
    assert few.pair == "Lee" and roles(few, "Lee", "Kim") == ({"Lee": "assistant", "Kim": "user"}, "second")


@pytest.mark.requirement("R001", "must-4")
@pytest.mark.parametrize("disentangle", [True, False])
def test_a_recipe_says_whether_conversations_are_separated_and_collect_says_what_it_did(
    disentangle: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "c.log"
    log.write_text(
        "[10:00] <ann> how do I mount a disk?\n[10:00] <bob> does anybody know a good mail program?\n"
        "[10:01] <cat> ann: with mount, as root\n[10:01] <dan> bob: try mutt\n"
    )
    settings = ["collect.format.name=irc", f"collect.format.disentangle={str(disentangle).lower()}", "collect.format.gap=30"]
    config = validate(CollectConfig, {**override({}, settings)["collect"], "sources": [str(log)]})
    (tmp_path / "out").mkdir()
    found = collect(config=config, out=tmp_path / "out")
    assert isinstance(found, Conversations)
    told = [(len(dialog.messages), dialog.metadata["roles_by"], dialog.metadata["speakers"]) for dialog in found.read()]
    apart = [(2, "opener", {"ann": "user", "cat": "assistant"}), (2, "opener", {"bob": "user", "dan": "assistant"})]
    # Together, the one who opens asks and all others answer.
    together = [(2, "opener", {"ann": "user", "bob": "assistant", "cat": "assistant", "dan": "assistant"})]
    assert told == (apart if disentangle else together)
    said = " ".join(capsys.readouterr().err.split())
    assert "a conversation ends after 30 minutes of silence (as set)" in said
    assert "whoever opens a conversation asks in it, the others answer" in said
    assert ("2 conversations that ran through one another, separated by who answers whom" in said) is disentangle


def test_benchmark_prints_its_table(bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    if not LOGS.is_dir():
        pytest.skip("the annotated logs are not here")
    shortest = bench.load(min(LOGS.glob("*.raw.txt"), key=os.path.getsize))
    monkeypatch.setattr(bench, "halves", lambda _: ([shortest], [shortest]))
    monkeypatch.setattr("sys.argv", ["disentangle.py", "--json", "--data", str(LOGS)])
    bench.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["way"] for row in rows] == ["previous", "mentioned", "chattune"] * 2
    figures = ("precision", "recall", "f1", "information", "one_to_one", "exact_f1")
    assert all(0 <= row[name] <= 1 for row in rows for name in figures)
