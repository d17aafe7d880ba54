"""Balancing: the proportions that come out of the stage, what is told of them, and nothing else touched."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from material import TINY, write_raw_logs

import chattune
from chattune.core import files
from chattune.core.artifact import Home
from chattune.core.errors import DataError
from chattune.core.part import kind
from chattune.core.seeds import generator
from chattune.core.stage import execute, load_stage, plan
from chattune.dialogs.artifact import DROPPED, SPLITS, Dialogs, write_dialogs, writing_drops
from chattune.dialogs.balancers import Balancer
from chattune.dialogs.balancers.k_center import _farthest
from chattune.dialogs.balancing import shares, times, told
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.stage import BalanceConfig, balance

TALKS = {
    "cards": "my bank card {} has not come, where is the card", "rates": "what is the exchange rate for {} euros today",
    "weather": "will there be rain or sunny weather in week {}", "music": "play the song number {} by a jazz band",
}  # fmt: skip


def talk(number: int, text: str = "question {}", source: str = "a", **metadata: Any) -> Dialog:
    turns = (Message("user", text.format(number)), Message("assistant", f"answer {number}", 0.5))
    return Dialog(f"d{number}", turns, source, "made.jsonl", number + 1, None, metadata)


def artifact(folder: Path, train: list[Dialog]) -> Dialogs:
    """What a split leaves behind: with two dialogs on either side, and one that was dropped."""
    folder.mkdir()
    write_dialogs(folder / "train.jsonl", train)
    for place, name in enumerate(("validation", "test")):
        write_dialogs(folder / f"{name}.jsonl", [talk(10_000 + 2 * place), talk(10_001 + 2 * place)])
    with writing_drops(folder / DROPPED) as put:
        put(Drop("empty", "made.jsonl", 7, "nothing"))
    counts = {"read": len(train) + 5, "kept": len(train) + 4, "dropped": {"empty": 1}}
    files.write_json(folder / "summary.json", {"counts": counts, "split": {"train": len(train), "validation": 2, "test": 2}})
    return Dialogs(folder)


def balanced(folder: Path, train: list[Dialog], seed: int = 0, **config: Any) -> Dialogs:
    number = len(list(folder.iterdir()))
    (folder / f"out{number}").mkdir()
    made = balance(
        config=BalanceConfig(**config), seed=seed, dialogs=artifact(folder / f"in{number}", train), out=folder / f"out{number}"
    )
    assert isinstance(made, Dialogs)
    return made


def counted(made: Dialogs, of: Any) -> Counter[str]:
    return Counter(of(dialog) for dialog in made.read("train"))


@pytest.mark.requirement("R016")
@pytest.mark.parametrize("temperature", [1.0, 2.0, 1e6])
def test_sources_come_out_in_the_proportions_of_the_temperature(temperature: float, tmp_path: Path) -> None:
    sizes = {"a": 900, "b": 90, "c": 10}
    train = [talk(number, source="a" if number < 900 else "b" if number < 990 else "c") for number in range(1000)]
    made = balanced(tmp_path, train, balancer={"name": "source", "temperature": temperature})
    total = sum(n ** (1 / temperature) for n in sizes.values())
    found = counted(made, lambda dialog: dialog.source)
    assert sum(found.values()) == 1000
    for own, n in sizes.items():
        assert abs(found[own] - 1000 * n ** (1 / temperature) / total) <= 1, "within one dialog"
    account = made.summary["balance"]
    assert account["kinds"] == {own: {"before": sizes[own], "after": found[own]} for own in ("a", "b", "c")}
    assert account["imbalance"]["before"] == 90
    assert account["imbalance"]["after"] == max(found.values()) / min(found.values())
    if temperature > 2:
        assert account["imbalance"]["after"] == pytest.approx(1, abs=0.01)


@pytest.mark.requirement("R015", "R139")
def test_sources_get_the_shares_given_by_hand_and_the_others_share_the_rest(tmp_path: Path) -> None:
    train = [talk(number, source="abc"[number % 3]) for number in range(300)]
    made = balanced(tmp_path, train, balancer={"name": "source", "shares": {"c": 0.7}}, size=200)
    assert counted(made, lambda dialog: dialog.source) == {"a": 30, "b": 30, "c": 140}
    only = balanced(tmp_path, train, balancer={"name": "source", "shares": {"a": 0.25, "b": 0.75, "c": 0.0}}, size=100)
    assert counted(only, lambda dialog: dialog.source) == {"a": 25, "b": 75}
    assert only.summary["balance"]["imbalance"]["after"] is None
    with pytest.raises(DataError, match=r"nothing from 'bb'.*Did you mean"):
        balanced(tmp_path, [talk(n, source="bbb") for n in range(5)], balancer={"name": "source", "shares": {"bb": 0.5}})
    with pytest.raises(ValueError, match="whose sum is at most 1"):
        BalanceConfig(balancer={"name": "source", "shares": {"a": 0.8, "b": 0.4}})


@pytest.mark.requirement("R016")
def test_labels_languages_lengths_and_roles_are_balanced_each_by_its_own_measure(tmp_path: Path) -> None:
    labelled = [talk(number, mood="calm" if number % 10 else "angry") for number in range(200)]
    made = balanced(tmp_path, labelled, balancer={"name": "label", "key": "mood", "temperature": 1e6})
    assert counted(made, lambda dialog: dialog.metadata["mood"]) == {"calm": 100, "angry": 100}
    with pytest.raises(DataError, match=r"no training dialog has metadata called 'modo'.*Did you mean 'mood'"):
        balanced(tmp_path, labelled, balancer={"name": "label", "key": "modo"})

    english, german = "tell me where the next station of the train is please", "wo ist denn hier der nächste Bahnhof bitte"
    said = {0: ("你好吗，今天天气怎么样", {}), 1: (german, {}), 2: (english, {}), 3: ("ok", {}), 4: (english, {"language": "Scots"})}
    spoken = []
    for number in range(200):
        text, metadata = said[number % 5]
        spoken.append(Dialog(str(number), (Message("user", text), Message("assistant", text)), metadata=metadata))
    account = balanced(tmp_path, spoken, balancer={"name": "language", "temperature": 1e6}).summary["balance"]
    assert {own: n["before"] for own, n in account["kinds"].items()} == {"Scots": 40, "de": 40, "en": 80, "zh": 40}, "ok is with en"
    assert {own: n["after"] for own, n in account["kinds"].items()} == {"Scots": 50, "de": 50, "en": 50, "zh": 50}

    pair = (Message("user", "q"), Message("assistant", "a"))
    lengths = [Dialog(str(number), pair * (1 if number % 5 else 3)) for number in range(100)]
    account = balanced(tmp_path, lengths, balancer={"name": "length", "temperature": 1e6}).summary["balance"]
    assert account["kinds"] == {"2 messages": {"before": 80, "after": 50}, "5–8 messages": {"before": 20, "after": 50}}

    talky = [Dialog(str(n), (Message("user", "q" * 90), Message("assistant", "a" * (10 if n % 10 else 910)))) for n in range(100)]
    account = balanced(tmp_path, talky, balancer={"name": "role", "temperature": 1e6}).summary["balance"]
    counts = {own: (n["before"], n["after"]) for own, n in account["kinds"].items()}
    assert counts == {"assistant says 0–20 %": (90, 50), "assistant says 80–100 %": (10, 50)}


@pytest.mark.requirement("R016")
def test_topics_are_found_named_and_evened_out(tmp_path: Path) -> None:
    sizes = {"cards": 150, "rates": 30, "weather": 15, "music": 5}
    train = [talk(100 * place + n, TALKS[own], topic=own) for place, (own, count) in enumerate(sizes.items()) for n in range(count)]
    made = balanced(tmp_path, train, balancer={"name": "topic", "topics": 4, "temperature": 1e6})
    assert counted(made, lambda dialog: dialog.metadata["topic"]) == dict.fromkeys(sizes, 50)
    account = made.summary["balance"]
    assert any("card" in own for own in account["kinds"]) and any("rain" in own or "weather" in own for own in account["kinds"])
    assert account["imbalance"] == {"before": 30.0, "after": 1.0}


@pytest.mark.requirement("R019")
def test_representative_subsets_keep_topics_or_spread_and_a_random_one_is_the_control(tmp_path: Path) -> None:
    sizes = {"cards": 160, "rates": 20, "weather": 12, "music": 8}
    train = [talk(200 * place + n, TALKS[own], topic=own) for place, (own, count) in enumerate(sizes.items()) for n in range(count)]
    kept = {
        name: balanced(tmp_path, train, balancer={"name": name, "share": 0.25, **({"topics": 4} if name == "stratified" else {})})
        for name in ("stratified", "k_center", "random_subset")
    }
    for made in kept.values():
        ids = [dialog.id for dialog in made.read("train")]
        assert len(ids) == len(set(ids)) == 50
        assert made.summary["balance"]["left_out"] == 150 and made.summary["balance"]["repeated"] == 0
    assert counted(kept["stratified"], lambda dialog: dialog.metadata["topic"]) == {"cards": 40, "rates": 5, "weather": 3, "music": 2}
    assert len(counted(kept["k_center"], lambda dialog: dialog.metadata["topic"])) == 4


@pytest.mark.requirement("R019")
def test_k_centers_lie_within_twice_the_best_distance() -> None:
    random = np.random.default_rng(0)
    points = (10 * np.eye(5)[random.integers(0, 5, 200)] + random.random((200, 5))).astype(np.float32)
    chosen = _farthest(points, 5)
    distance = np.sqrt(((points[:, None] - points[chosen]) ** 2).sum(-1)).min(1).max()
    assert distance <= 2 * np.sqrt(5), "each point lies within √5 of the middle of its own cloud"
    assert sorted(_farthest(np.ones((6, 2), np.float32), 6)) == list(range(6)), "equal rows: each once"


@pytest.mark.requirement("R016")
def test_sizes_ask_for_fewer_or_more_dialogs_and_a_limit_holds(tmp_path: Path) -> None:
    train = [talk(number) for number in range(50)]
    more = balanced(tmp_path, train, size=120)
    often = Counter(dialog.id.partition("~")[0] for dialog in more.read("train"))
    assert set(often.values()) == {2, 3} and sum(often.values()) == 120
    ids = [dialog.id for dialog in more.read("train")]
    assert len(set(ids)) == 120, "each copy has an id of its own"
    fewer = balanced(tmp_path, train, size=20)
    assert len({dialog.id for dialog in fewer.read("train")}) == 20
    skewed = [talk(number, source="a" if number else "b") for number in range(50)]
    limited = balanced(tmp_path, skewed, balancer={"name": "source", "temperature": 1e6}, repeat=3)
    assert counted(limited, lambda dialog: dialog.source) == {"a": 47, "b": 3}
    with pytest.raises(DataError, match="50 training dialogs, each at most 2 times, cannot make 120"):
        balanced(tmp_path, train, size=120, repeat=2)


def test_validation_and_test_and_the_account_stay_as_they_are(tmp_path: Path) -> None:
    train = [talk(number, source="ab"[number % 5 == 0]) for number in range(60)]
    made = balanced(tmp_path, train, balancer="source", size=90)
    given_ = Dialogs(tmp_path / "in0")
    for name in ("validation.jsonl", "test.jsonl", DROPPED):
        assert (made.path / name).read_bytes() == (given_.path / name).read_bytes()
    assert made.summary["counts"] == given_.summary["counts"]
    assert made.summary["split"] == {"train": 90, "validation": 2, "test": 2}
    known = {dialog.id: dialog for dialog in train}
    for dialog in made.read("train"):
        original = known[dialog.id.partition("~")[0]]
        assert (dialog.messages, dialog.source, dialog.line) == (original.messages, original.source, original.line)


def test_the_same_seed_draws_the_same_dialogs_and_another_one_others(tmp_path: Path) -> None:
    train = [talk(number) for number in range(100)]
    drawn = [[dialog.id for dialog in balanced(tmp_path, train, seed=seed, size=30).read("train")] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from("abc")), min_size=1, max_size=40).filter(lambda own: any(w for w, _ in own)),
    st.integers(1, 100), st.one_of(st.none(), st.integers(1, 6)), st.integers(0, 3),
)  # fmt: skip
def test_counts_are_expectations_rounded_and_so_are_kinds(own: list[tuple[int, str]], size: int, most: int | None, seed: int) -> None:
    weights, kinds = np.array([float(w) for w, _ in own]), [k for _, k in own]
    if most is not None and most * int((weights > 0).sum()) < size:
        with pytest.raises(DataError):
            times(weights, size, most, generator(seed), kinds)
        return
    found = times(weights, size, most, generator(seed), kinds)
    assert found.sum() == size and found.min() >= 0 and (found[weights == 0] == 0).all()
    if most is None:
        expected = size * weights / weights.sum()
        assert (np.abs(found - expected) < 1 + 1e-9).all()
        for kind_ in set(kinds):
            mask = np.array([k == kind_ for k in kinds])
            assert abs(found[mask].sum() - expected[mask].sum()) < 1 + 1e-9
    else:
        assert found.max() <= most


def test_over_many_seeds_counts_are_their_expectations() -> None:
    weights = np.array([1.0, 2.0, 3.5, 0.5])
    mean = np.mean([times(weights, 5, None, generator(seed)) for seed in range(2000)], axis=0)
    np.testing.assert_allclose(mean, 5 * weights / weights.sum(), atol=4 * 0.5 / np.sqrt(2000))  # a count's deviation is at most ½


def test_few_words_are_made_of_many_kinds() -> None:
    account = told([f"kind {number}" for number in range(150)], np.ones(150, np.int64))
    assert len(account["kinds"]) == 100 and account["further_kinds"] == 50
    np.testing.assert_allclose(shares(["x", "x", "x", "x", "y"], 2.0), [0.5, 0.5, 0.5, 0.5, 1.0])


def test_a_stage_without_a_wish_is_left_out_and_one_with_a_part_is_planned_by_it(tmp_path: Path) -> None:
    assert BalanceConfig().idle() and not BalanceConfig(size=3).idle() and not BalanceConfig(balancer="topic").idle()
    logs = write_raw_logs(tmp_path / "window.txt")
    recipe = {"collect": {"sources": str(logs)}, "balance": {"balancer": {"name": "random_subset", "share": 0.5}}}
    result = chattune.run(recipe, TINY, home=tmp_path / "runs", until="balance")
    made = Dialogs.open(result.runs["balance"])
    split = Dialogs.open(result.runs["split"])
    assert len(made.read("train")) == round(len(split.read("train")) / 2)
    assert [len(made.read(name)) for name in SPLITS[1:]] == [len(split.read(name)) for name in SPLITS[1:]]
    stage = load_stage("balance")
    config = {"balance": BalanceConfig(balancer=kind("balancers").load("random_subset")(share=0.5)), "seed": 0}
    assert plan(stage, config, {"dialogs": split}, Home(tmp_path / "runs")) == result.runs["balance"]
    assert isinstance(execute(result.runs["balance"]), Dialogs)
    assert isinstance(config["balance"].balancer, Balancer)  # type: ignore[attr-defined]
