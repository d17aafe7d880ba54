"""The scheduler: order, fairness, chunks, shared beginnings and freed slots, played on a memory that notes what each slot holds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chattune.generate.scheduler import SHARED, Job, Scheduler, Step, common


class Memory:
    """What slots hold, as a runner would; `play` takes a step and lets every finished prompt write a token."""

    def __init__(self, scheduler: Scheduler, reply: int = 3) -> None:
        self.scheduler, self.reply = scheduler, reply
        self.slots: list[list[int]] = [[] for _ in scheduler.slots]
        self.ended: list[Job] = []
        self.prompts: dict[Job, int] = {}

    def add(self, ids: Sequence[int], owner: str = "") -> Job:
        job = Job(list(ids), owner)
        self.prompts[job] = len(ids)
        self.scheduler.add(job)
        return job

    def play(self) -> Step:
        step = self.scheduler.step()
        for copy in step.copies:
            assert len(self.slots[copy.source]) >= copy.tokens
            self.slots[copy.target] = self.slots[copy.source][: copy.tokens]
        for job, count in step.work:
            held = self.slots[job.slot]
            assert held[: job.held] == job.ids[: job.held], "a slot holds what its request goes on from"
            if not self.scheduler.shares:
                assert job.held in (0, len(held)), "what cannot rewind goes on from where it stands"
            self.slots[job.slot] = [*held[: job.held], *job.ids[job.held : job.held + count]]
        self.scheduler.computed(step)
        for job, _ in step.work:
            if job.pending == 0:
                job.ids.append(1000 + len(job.ids))
                if len(job.ids) - self.prompts[job] >= self.reply:
                    self.scheduler.remove(job)
                    self.ended.append(job)
        return step

    def finish(self) -> None:
        for _ in range(10_000):
            if not (self.scheduler.running or self.scheduler.waiting):
                return
            assert self.play().work, "something is always done"
        raise AssertionError("requests are left")


def test_it_needs_no_torch() -> None:
    program = "import sys; import chattune.generate.scheduler; print('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_requests_come_in_and_leave_in_the_order_of_their_arrival() -> None:
    memory = Memory(Scheduler(2, 100))
    jobs = [memory.add([number] * 5) for number in range(5)]
    memory.play()
    assert memory.scheduler.running == jobs[:2]
    assert (memory.scheduler.waiting, memory.scheduler.tokens_waiting) == (3, 15)
    memory.finish()
    assert memory.ended == jobs
    assert memory.scheduler.tokens_waiting == 0


def test_owners_take_turns_and_each_ones_requests_keep_their_order() -> None:
    memory = Memory(Scheduler(1, 100))
    many = [memory.add([number] * 4, "many") for number in range(6)]
    few = [memory.add([50 + number] * 4, "few") for number in range(2)]
    one = memory.add([90] * 4, "one")
    memory.finish()
    assert memory.ended == [many[0], few[0], one, many[1], few[1], *many[2:]]


def test_a_long_prompt_is_read_in_chunks_while_others_write() -> None:
    memory = Memory(Scheduler(3, 16), reply=8)
    writes = memory.add([1, 2, 3])
    memory.play()
    long, second = memory.add(range(100, 140)), memory.add(range(200, 210))
    counts = []
    for _ in range(4):
        counts.append({id(job): count for job, count in memory.play().work})
    assert [step[id(writes)] for step in counts] == [1, 1, 1, 1], "who writes is never left out"
    assert [step.get(id(long)) for step in counts] == [16, 16, 8, 1]
    assert [step.get(id(second)) for step in counts] == [None, None, 8, 2]
    assert max(sum(count for count in step.values() if count > 1) for step in counts) <= 16


def test_the_next_turn_goes_on_in_the_slot_of_the_last_one() -> None:
    memory = Memory(Scheduler(3, 100))
    first = memory.add(range(50))
    memory.add(range(200, 230))
    memory.finish()
    turn = memory.add([*first.ids[:-1], 7, 8, 9])
    step = memory.play()
    assert (turn.slot, turn.shared, step.copies) == (first.slot, len(first.ids) - 1, [])
    assert step.work == [(turn, 3)]


def test_the_same_prompt_again_computes_its_last_token_only() -> None:
    memory = Memory(Scheduler(1, 100))
    memory.add(range(50))
    memory.finish()
    again = memory.add(range(50))
    assert memory.play().work == [(again, 1)]
    assert again.shared == 49


def test_a_short_beginning_of_a_long_conversation_is_copied_and_the_conversation_kept() -> None:
    memory = Memory(Scheduler(2, 1000))
    long = memory.add(range(400))
    memory.finish()
    other = memory.add([*range(30), 7, 7, 7])
    (copy,) = memory.play().copies
    assert (copy.source, copy.tokens, copy.target) == (long.slot, 30, other.slot)
    assert other.slot != long.slot
    memory.finish()
    again = memory.add(range(400))
    assert memory.play().work == [(again, 1)], "the conversation is still there"


def test_requests_that_come_together_read_what_they_share_once() -> None:
    memory = Memory(Scheduler(4, 16), reply=30)
    system = list(range(40))
    jobs = [memory.add([*system, 100 + number]) for number in range(4)]
    total = sum(count for _ in range(8) for _, count in memory.play().work if count > 1)
    assert [job.shared for job in jobs] == [0, 40, 40, 40]
    assert total == 41, "the others copy the beginning, and have one token of their own left"


@pytest.mark.parametrize("keep", [True, False])
def test_one_that_waits_for_another_to_read_goes_on_when_that_one_leaves(keep: bool) -> None:
    memory = Memory(Scheduler(3, 8), reply=5)
    first, second = memory.add(range(64)), memory.add([*range(60), 9, 9])
    memory.play()
    memory.play()
    assert (first.held, second.held, second.leader) == (16, 0, first)
    memory.scheduler.remove(first, keep=keep)
    memory.play()
    assert second.leader is None
    assert second.held == (24 if keep else 8)
    memory.finish()
    assert memory.ended == [second]


def test_a_beginning_too_short_to_wait_for_is_read_by_each() -> None:
    memory = Memory(Scheduler(2, 1000))
    first, second = memory.add(range(40)), memory.add([*range(SHARED - 1), *range(500, 520)])
    assert memory.play().work == [(first, 40), (second, SHARED - 1 + 20)]


def test_the_slot_used_last_is_kept_longest() -> None:
    memory = Memory(Scheduler(3, 1000))
    for number in range(3):
        memory.add([number] * 30)
        memory.finish()
    memory.add([9] * 30)
    memory.finish()
    kept = {ids[0] for ids in memory.slots}
    assert kept == {1, 2, 9}, "the one that was free for longest made room"


@pytest.mark.requirement("S3")
def test_a_request_that_is_removed_frees_its_slot_for_the_next_step() -> None:
    memory = Memory(Scheduler(1, 8), reply=50)
    first, second, third = memory.add(range(30)), memory.add([5] * 4), memory.add([6] * 4)
    memory.play()
    memory.scheduler.remove(third)  # waiting
    memory.scheduler.remove(first)  # running
    assert memory.play().work == [(second, 4)]
    assert memory.scheduler.waiting == 0
    memory.scheduler.remove(first)  # again: nothing
    assert memory.scheduler.running == [second]


def test_recurrent_states_go_on_only_from_where_they_stand() -> None:
    memory = Memory(Scheduler(2, 100, shares=False))
    first = memory.add(range(40))
    memory.finish()
    fork = memory.add([*range(30), 7])
    turn = memory.add([*first.ids[:-1], 7, 8])
    memory.play()
    assert (fork.shared, turn.shared) == (0, len(first.ids) - 1)
    memory.finish()
    nothing = Memory(Scheduler(1, 100, shares=False, keeps=False))
    nothing.add(range(40))
    nothing.finish()
    again = nothing.add(range(60))
    nothing.play()
    assert again.shared == 0


def test_what_is_forgotten_is_read_again() -> None:
    memory = Memory(Scheduler(1, 100))
    memory.add(range(40))
    memory.finish()
    memory.scheduler.forget()
    again = memory.add(range(40))
    assert memory.play().work == [(again, 40)]


@given(st.data())
def test_whatever_comes_and_leaves_every_slot_holds_what_its_request_goes_on_from(data: st.DataObject) -> None:
    shares = data.draw(st.booleans())
    keeps = shares or data.draw(st.booleans())
    chunk = data.draw(st.integers(1, 40))
    memory = Memory(Scheduler(data.draw(st.integers(1, 4)), chunk, shares=shares, keeps=keeps), reply=data.draw(st.integers(1, 6)))
    added, cancelled = [], 0
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.integers(0, 5))
        if action <= 2:
            shared, own = data.draw(st.integers(0, 60)), data.draw(st.integers(1, 30))
            job = memory.add([*range(shared), *([300 + data.draw(st.integers(0, 2))] * own)], str(data.draw(st.integers(0, 2))))
            added.append(job)
        elif action == 3 and (alive := [*memory.scheduler.jobs()]):
            memory.scheduler.remove(data.draw(st.sampled_from(alive)), keep=data.draw(st.booleans()))
            cancelled += 1
        else:
            step = memory.play()
            assert sum(count for job, count in step.work if memory.prompts[job] >= job.held and count > 1) <= chunk
    running = memory.scheduler.running
    assert len({job.slot for job in running}) == len(running)
    memory.finish()
    assert len(memory.ended) == len(added) - cancelled
    assert all(slot.job is None for slot in memory.scheduler.slots)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_a_common_beginning_is_as_long_as_a_walk_finds_it(first: list[int], second: list[int]) -> None:
    walked = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        walked += 1
    assert common(first, second) == walked
