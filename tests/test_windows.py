"""Windows, order and batches: nothing lost, nothing twice, nothing seen by a neighbour, and the same again after a resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chattune.core.errors import DataError, ResumeError, SettingError
from chattune.core.part import kind
from chattune.core.seeds import generator
from chattune.tokens.batch import Batch
from chattune.tokens.batchers.packed import Packed
from chattune.tokens.order import Order, collate
from chattune.tokens.token_set import TokenSplit
from chattune.tokens.windows import Windows, read, windows

CONTROL = {"pad": 0, "begin": 1, "end": 2, "system": 3, "user": 4, "assistant": 5, "tool": 6}
FIELDS = ("inputs", "targets", "weights", "positions", "segments")
Turns = list[tuple[str, int, float]]  # role, number of content ids, loss weight
TURN = st.tuples(st.sampled_from(["system", "user", "assistant"]), st.integers(0, 30), st.sampled_from([0.0, 0.5, 1.0]))
DIALOGS = st.lists(st.lists(TURN, max_size=7), max_size=5)


def split_of(dialogs: list[Turns]) -> TokenSplit:
    """Every content id is different, so that each can be followed."""
    rendered, number = [], 100
    for turns in dialogs:
        ids, weights = [CONTROL["begin"]], [0.0]
        for role, length, weight in turns:
            ids += [CONTROL[role], *range(number, number + length), CONTROL["end"]]
            weights += [0.0] + [weight] * (length + 1)
            number += length
        rendered.append((ids, weights))
    return TokenSplit.of(rendered, CONTROL)


def borne(split: TokenSplit, found: Windows) -> np.ndarray:
    """How many windows bear each id of the split as a target with weight; checks that they bear its own weight."""
    where, weight, _ = read(split, found, np.arange(len(found)))
    assert np.array_equal(weight[weight > 0], np.asarray(split.weights[where])[weight > 0])
    return np.bincount(where, weights=weight > 0, minlength=len(split.ids))


def ids_of(split: TokenSplit, found: Windows, window: int) -> list[int]:
    return np.asarray(split.ids)[read(split, found, np.array([window]))[0]].tolist()


@pytest.mark.requirement("R026")
@settings(deadline=None, max_examples=300)
@given(dialogs=DIALOGS, context=st.integers(2, 40), data=st.data())
def test_splitting_bears_every_target_exactly_once(dialogs: list[Turns], context: int, data: st.DataObject) -> None:
    split = split_of(dialogs)
    overlap = data.draw(st.integers(0, context - 1))
    found = windows(split, context, "split", overlap)
    assert np.array_equal(borne(split, found), np.asarray(split.weights) > 0)
    assert found.dropped["targets"] == found.dropped["tokens"] == 0
    assert (found.length <= context).all() and (found.length > 0).all() and (found.skip < found.length).all()
    assert not found.gap.any()


@settings(deadline=None, max_examples=300)
@given(dialogs=DIALOGS, context=st.integers(2, 40), strategy=st.sampled_from(["left", "right", "middle"]))
@pytest.mark.requirement("R026")
def test_truncation_gives_one_window_a_dialog_and_counts_what_it_drops(dialogs: list[Turns], context: int, strategy: str) -> None:
    split = split_of(dialogs)
    found = windows(split, context, strategy)
    count = borne(split, found)
    assert count.max(initial=0) <= 1
    assert len(np.unique(found.dialog)) == len(found)
    assert (found.length <= context).all()
    assert found.dropped["targets"] == np.count_nonzero(split.weights) - int(count.sum())
    long = np.diff(split.offsets) > context + 1
    assert (found.dropped["tokens"] > 0) == bool(long.any())
    for window in range(len(found)):
        dialog = int(found.dialog[window])
        whole = np.asarray(split.ids[split.offsets[dialog] : split.offsets[dialog + 1]]).tolist()
        kept = ids_of(split, found, window)
        if not long[dialog]:
            assert kept == whole
        elif strategy == "right":
            assert kept == whole[: len(kept)]
        else:
            assert kept[0] == CONTROL["begin"] and kept[-1] == whole[-1] == CONTROL["end"], "the end of the last turn is never cut"
            head = int(found.head[window])
            assert kept == whole[:head] + whole[len(whole) - (len(kept) - head) :]
            assert head == 1 or (strategy == "middle" and whole[head - 1] == CONTROL["end"] and head <= context // 2)


def test_a_split_cuts_at_a_turn_where_one_is_near_and_the_next_window_begins_with_its_header() -> None:
    split = split_of([[("user", 5, 1.0), ("assistant", 5, 1.0), ("user", 5, 1.0), ("assistant", 5, 1.0)]])
    found = windows(split, 16)
    assert ids_of(split, found, 0) == [1, 4, *range(100, 105), 2, 5, *range(105, 110), 2]
    assert ids_of(split, found, 1) == [4, *range(110, 115), 2, 5, *range(115, 120), 2]


def test_an_overlap_gives_context_without_weight() -> None:
    split = split_of([[("assistant", 30, 1.0)]])
    found = windows(split, 10, "split", overlap=4)
    assert found.skip.tolist()[:2] == [0, 4]
    batch = collate(split, found, [[1]], pad=0)
    assert batch.weights[0].tolist()[:5] == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert ids_of(split, found, 1)[:5] == ids_of(split, found, 0)[-5:]


def test_left_keeps_the_newest_turns_whole_and_middle_keeps_the_system_message_too() -> None:
    turns = [("system", 4, 0.0), *[("user", 3, 0.0), ("assistant", 3, 1.0)] * 4]
    split = split_of([turns])
    left = ids_of(split, windows(split, 16, "left"), 0)
    assert left == [1, 5, 119, 120, 121, 2, 4, 122, 123, 124, 2, 5, 125, 126, 127, 2]
    middle = ids_of(split, windows(split, 20, "middle"), 0)
    assert middle == [1, 3, 100, 101, 102, 103, 2, 4, 122, 123, 124, 2, 5, 125, 126, 127, 2]


def test_the_first_target_after_a_cut_out_middle_carries_no_weight() -> None:
    split = split_of([[("assistant", 40, 1.0)]])
    found = windows(split, 10, "left")
    batch = collate(split, found, [[0]], pad=0)
    assert batch.inputs[0, 0] == CONTROL["begin"]
    assert batch.weights[0].tolist() == [0.0] + [1.0] * 9
    assert batch.targets[0, -1] == CONTROL["end"]


def test_windows_that_could_teach_nothing_are_left_out_and_counted() -> None:
    split = split_of([[("user", 5, 0.0)], [("user", 5, 0.0), ("assistant", 1, 1.0)], []])
    found = windows(split, 16)
    assert found.dialog.tolist() == [1]
    assert found.dropped == {"tokens": 0, "targets": 0, "windows_without_targets": 1}
    with pytest.raises(DataError, match="anything to learn from"):
        Order(split_of([[("user", 5, 0.0)]]), windows(split_of([[("user", 5, 0.0)]]), 16), Packed(), 64, 16, seed=0)


@pytest.mark.parametrize(
    ("context", "strategy", "overlap", "says"),
    [
        (16, "lefft", 0, "Did you mean 'left'"),
        (1, "split", 0, "context of 1"),
        (16, "split", 16, "overlap of 16"),
        (16, "split", -1, "overlap of -1"),
    ],
)
def test_windows_that_cannot_be_cut_are_refused(context: int, strategy: str, overlap: int, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        windows(split_of([[("user", 5, 1.0)]]), context, strategy, overlap)


# Order


@pytest.fixture(scope="module")
def split() -> TokenSplit:
    random = generator(0, "turns")
    roles = ("user", "assistant")
    return split_of([[(roles[t % 2], int(random.integers(0, 12)), 1.0) for t in range(int(random.integers(1, 7)))] for _ in range(120)])


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


def order_of(split: TokenSplit, name: str, seed: int = 7) -> Order:
    return Order(split, windows(split, 32), kind("batchers").load(name)(), tokens=160, context=32, seed=seed)


@pytest.mark.parametrize("name", kind("batchers").names())
def test_a_resumed_order_gives_what_the_uninterrupted_one_gave(split: TokenSplit, name: str) -> None:
    whole = order_of(split, name)
    states, batches = [], []
    for _ in range(2 * whole.batches_per_epoch + 3):
        states.append(whole.state_dict())
        batches.append(whole.next())
    assert states[-1]["epoch"] >= 1
    for at in (0, 1, whole.batches_per_epoch - 1, whole.batches_per_epoch, len(batches) - 4):
        resumed = order_of(split, name)
        resumed.load_state_dict(states[at])
        assert all(same(resumed.next(), batch) for batch in batches[at : at + 4])
        assert resumed.state_dict() == (states[at + 4] if at + 4 < len(states) else whole.state_dict())


@pytest.mark.parametrize("name", kind("batchers").names())
def test_each_epoch_has_every_target_once_in_another_order(split: TokenSplit, name: str) -> None:
    order = order_of(split, name)
    seen: list[list[int]] = []
    for epoch in range(2):
        targets: list[int] = []
        while order.epoch == epoch:
            batch = order.next()
            targets += batch.targets[batch.weights > 0].tolist()
        seen.append(targets)
    expected = sorted(np.asarray(split.ids)[np.asarray(split.weights) > 0].tolist())
    assert sorted(seen[0]) == sorted(seen[1]) == expected
    assert seen[0] != seen[1]


def test_another_seed_gives_another_order(split: TokenSplit) -> None:
    assert not same(order_of(split, "packed", seed=1).next(), order_of(split, "packed", seed=2).next())


def test_a_state_that_does_not_fit_is_refused(split: TokenSplit) -> None:
    with pytest.raises(ResumeError, match="does not exist"):
        order_of(split, "packed").load_state_dict({"epoch": 0, "index": 10_000})


@given(rows=st.integers(0, 40), count=st.integers(1, 9), of=st.integers(1, 5))
def test_shares_lose_no_row_and_are_even(rows: int, count: int, of: int) -> None:
    number = torch.arange(rows)[:, None].expand(rows, 3)
    batch = Batch(number, number, number.float(), number, number.int())
    shares = [batch.shares(count, part, of) for part in range(of)]
    assert [row for part in shares for share in part for row in share.inputs[:, 0].tolist()] == list(range(rows))
    for part in shares:
        sizes = [len(share) for share in part]
        assert len(sizes) <= count and 0 not in sizes
        assert max(sizes, default=0) - min(sizes, default=0) <= 1
    totals = [sum(len(share) for share in part) for part in shares]
    assert max(totals) - min(totals) <= 1


def test_a_batch_moves_as_a_whole(split: TokenSplit) -> None:
    batch = order_of(split, "packed").next()
    assert same(batch.to("cpu"), batch)
    assert batch.inputs.dtype == batch.targets.dtype == batch.positions.dtype == torch.int64
    assert batch.weights.dtype == torch.float32 and batch.segments.dtype == torch.int32
    assert {tuple(getattr(batch, name).shape) for name in FIELDS} == {(len(batch), 32)}
