"""What every batcher keeps: each window exactly once, rows that fit, batches within their budget, the same for the same seed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattune.core.part import kind
from chattune.core.seeds import generator
from chattune.tokens.batchers import Batcher
from chattune.tokens.order import collate
from chattune.tokens.token_set import TokenSplit
from chattune.tokens.windows import windows

CONTROL = {"pad": 0, "begin": 1, "end": 2, "system": 3, "user": 4, "assistant": 5, "tool": 6}


@pytest.fixture(params=kind("batchers").names())
def batcher(request: pytest.FixtureRequest) -> Batcher:
    part: Batcher = kind("batchers").load(request.param)()
    return part


def chat_lengths(count: int, context: int, seed: int = 0) -> np.ndarray:
    """Many short, few long, as chats are."""
    return np.clip(generator(seed, "lengths").gamma(1.2, context / 6, count).astype(np.int64), 1, context)


cases = st.integers(2, 48).flatmap(
    lambda context: st.tuples(st.just(context), st.integers(1, 400), st.lists(st.integers(1, context), max_size=60), st.integers(0, 9))
)


@settings(deadline=None, max_examples=150)
@given(case=cases)
@pytest.mark.parametrize("name", kind("batchers").names())
def test_every_window_comes_exactly_once_in_rows_that_fit(name: str, case: tuple[int, int, list[int], int]) -> None:
    context, tokens, lengths, seed = case
    batcher: Batcher = kind("batchers").load(name)()
    batches = batcher.batches(np.array(lengths, np.int64), tokens, context, generator(seed))
    assert sorted(window for batch in batches for row in batch for window in row) == list(range(len(lengths)))
    for batch in batches:
        filled = [sum(lengths[window] for window in row) for row in batch]
        width = batcher.time(context) or max(filled)
        assert batch and all(batch), "no empty batch and no empty row"
        assert max(filled) <= width <= context
        assert len(batch) * width <= max(tokens, width), "a batch keeps its budget, or is a single row"


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(batcher: Batcher) -> None:
    lengths = chat_lengths(300, 64)
    first, again, other = (batcher.batches(lengths, 512, 64, generator(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_lengths_are_left_as_they_were(batcher: Batcher) -> None:
    lengths = chat_lengths(50, 32)
    before = lengths.copy()
    batcher.batches(lengths, 128, 32, generator(0))
    assert np.array_equal(lengths, before)


def test_a_hundred_thousand_windows_take_less_than_a_second(batcher: Batcher) -> None:
    lengths = chat_lengths(100_000, 256)
    begun = time.process_time()
    batcher.batches(lengths, 8192, 256, generator(0))
    assert time.process_time() - begun < 1.0


def padding(name: str) -> float:
    """Share of positions that hold nothing, for chat-like lengths."""
    lengths = chat_lengths(5000, 256)
    batcher: Batcher = kind("batchers").load(name)()
    batches = batcher.batches(lengths, 8192, 256, generator(0))
    positions = sum(len(b) * (batcher.time(256) or max(sum(lengths[w] for w in row) for row in b)) for b in batches)
    return float(1 - lengths.sum() / positions)


@pytest.mark.requirement("R026")
def test_packing_and_buckets_waste_little_where_plain_padding_wastes_most() -> None:
    assert padding("packed") < 0.02
    assert padding("bucketed") < 0.12  # lengths in a batch may differ by a tenth
    assert padding("padded") > 0.7


def some_split(seed: int = 0, dialogs: int = 40) -> TokenSplit:
    """Dialogs of random ids above the control ids, one user and one assistant turn each."""
    random = generator(seed, "split")
    rendered = []
    for _ in range(dialogs):
        asked, said = (random.integers(7, 500, int(random.integers(0, 12))).tolist() for _ in range(2))
        ids = [CONTROL["begin"], CONTROL["user"], *asked, CONTROL["end"], CONTROL["assistant"], *said, CONTROL["end"]]
        rendered.append((ids, [0.0] * (len(asked) + 4) + [1.0] * (len(said) + 1)))
    return TokenSplit.of(rendered, CONTROL)


@pytest.mark.requirement("R026")
def test_each_window_starts_anew_in_its_row_and_shares_nothing_with_its_neighbours(batcher: Batcher) -> None:
    split = some_split()
    cut = windows(split, 24)
    for rows in batcher.batches(cut.length, 96, 24, generator(3)):
        batch = collate(split, cut, rows, pad=0, time=batcher.time(24))
        for row, members in enumerate(rows):
            segments = batch.segments[row]
            assert segments.unique().tolist() == [*([-1] if (segments < 0).any() else []), *range(len(members))]
            for number, window in enumerate(members):
                here = (segments == number).nonzero().flatten()
                assert here.tolist() == list(range(int(here[0]), int(here[0]) + len(here))), "a window stands in one piece"
                read = split.ids[cut.start[window] : cut.start[window] + cut.length[window] + 1]
                weights = split.weights[cut.start[window] : cut.start[window] + cut.length[window] + 1]
                assert batch.positions[row, here].tolist() == list(range(len(here)))
                assert batch.inputs[row, here].tolist() == read[:-1].tolist()
                assert batch.targets[row, here].tolist() == read[1:].tolist()
                assert batch.weights[row, here].tolist() == weights[1:].tolist()


@pytest.mark.requirement("R026")
def test_padding_bears_no_weight_and_no_segment_whatever_the_pad_token(batcher: Batcher) -> None:
    split = some_split()
    cut = windows(split, 24)
    rows = batcher.batches(cut.length, 96, 24, generator(3))[0]
    one, other = (collate(split, cut, rows, pad=pad, time=24) for pad in (0, 499))
    empty = one.segments < 0
    assert empty.any()
    assert not one.weights[empty].any()
    for name in ("inputs", "targets"):
        differ = getattr(one, name) != getattr(other, name)
        assert (differ == empty).all()
    for name in ("weights", "positions", "segments"):
        assert (getattr(one, name) == getattr(other, name)).all()
