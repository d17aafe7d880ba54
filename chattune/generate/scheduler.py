"""Which requests are computed in the next step, in which slot, and how many of their tokens. No torch: it decides in microseconds.

Every running request takes part in every step. One whose prompt is not read yet reads a chunk of it, so that a long prompt does not
make the others wait. A new prompt goes on from the longest beginning that any slot holds, or is about to hold.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

SHARED = 16  # tokens that two prompts must have in common before one waits for the other to read them


@dataclass(eq=False, slots=True)
class Job:
    """A request as the scheduler sees it. `ids`: prompt and reply so far; `slot`: −1 before it has one; `held`: ids in its slot."""

    ids: list[int]
    owner: str = ""
    slot: int = -1
    held: int = 0
    shared: int = 0  # tokens that did not have to be read
    leader: Job | None = None  # reads the beginning that this one waits for

    @property
    def pending(self) -> int:
        """Tokens that the slot does not hold yet; 1 while a reply is written."""
        return len(self.ids) - self.held


@dataclass(slots=True)
class Slot:
    """What a slot holds, of whom (None: free), and when it became free."""

    number: int
    ids: list[int] = field(default_factory=list)
    job: Job | None = None
    since: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """The first `tokens` of slot `source` are to be copied to slot `target`."""

    source: int
    target: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step: copies first, then for each job the number of its next tokens to compute."""

    copies: list[Copy]
    work: list[tuple[Job, int]]


class Scheduler:
    """Queues, slots and shares. `chunk`: prompt tokens in a step, over all requests; `shares`: prefixes may be copied and cut
    (`Runner.rewinds`); `keeps`: a slot may go on after its request ended (`Runner.joins`)."""

    def __init__(self, slots: int, chunk: int, *, shares: bool = True, keeps: bool = True) -> None:
        self.slots = [Slot(number) for number in range(slots)]
        self.chunk, self.shares, self.keeps = chunk, shares, keeps
        self.running: list[Job] = []  # in the order in which they came in
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # the owner whose turn it is stands first
        self._clock = 0

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def tokens_waiting(self) -> int:
        """Prompt tokens that are not read yet, of waiting and of running requests."""
        return sum(len(job.ids) for queue in self._waiting.values() for job in queue) + sum(job.pending - 1 for job in self.running)

    def add(self, job: Job) -> None:
        """Let a request wait, behind those of its owner."""
        self._waiting.setdefault(job.owner, deque()).append(job)

    def remove(self, job: Job, *, keep: bool = True) -> None:
        """A request has ended, or is no longer wanted: its slot is free. `keep`: what the slot holds is right and may be shared."""
        if job in self.running:
            self.running.remove(job)
            slot = self.slots[job.slot]
            self._clock += 1
            slot.ids = job.ids[: job.held] if keep and self.keeps else []
            slot.job, slot.since = None, self._clock
        elif job in (queue := self._waiting.get(job.owner, deque())):
            queue.remove(job)
            if not queue:
                del self._waiting[job.owner]
        for other in self.running:
            if other.leader is job:
                other.shared = min(other.shared, job.held) if keep else 0
                other.leader = job if other.shared else None  # copied at once, before the slot has another request

    def forget(self) -> None:
        """What free slots hold is not right any more (the weights have changed)."""
        for slot in self.slots:
            slot.ids = []

    def jobs(self) -> Iterator[Job]:
        """All requests, the running ones first."""
        yield from self.running
        for queue in self._waiting.values():
            yield from queue

    def step(self) -> Step:
        """What comes next. Requests that wait get free slots first; what is computed must be told by `computed`."""
        copies = [*self._followed(), *self._admitted(), *self._followed()]
        work, room = [], self.chunk
        for job in self.running:
            if job.leader is not None:
                continue
            count = job.pending
            if count > 1:
                count = min(count, room)
                room -= count
            if count > 0:
                work.append((job, count))
        return Step(copies, sorted(work, key=_by_slot))

    def computed(self, step: Step) -> None:
        """The step was computed: its tokens are held now."""
        for job, count in step.work:
            job.held += count

    def _admitted(self) -> Iterator[Copy]:
        free = [slot for slot in self.slots if slot.job is None]
        while free and self._waiting:
            owner, queue = next(iter(self._waiting.items()))
            job = queue.popleft()
            del self._waiting[owner]
            if queue:
                self._waiting[owner] = queue  # behind the other owners
            slot, copy = self._place(job, free)
            free.remove(slot)
            slot.job, job.slot = job, slot.number
            slot.ids = []
            self.running.append(job)
            if copy is not None:
                yield copy

    def _place(self, job: Job, free: list[Slot]) -> tuple[Slot, Copy | None]:
        """The slot for a request that comes in, and what is copied into it."""
        most = len(job.ids) - 1  # the last token is computed anew: what comes after it is asked for
        own, same = max(((slot, self._usable(job, slot.ids, most)) for slot in free), key=lambda found: (found[1], -found[0].since))
        oldest = min(free, key=lambda slot: (bool(slot.ids), slot.since, slot.number))
        job.held = 0
        busy = [(other, min(common(job.ids, other.ids), most)) for other in self.running] if self.shares else []
        leader, coming = max(busy, key=lambda found: found[1], default=(None, 0))
        if leader is not None and coming >= same + SHARED:
            job.leader, job.shared = leader, coming
            return oldest, None
        # A slot whose content is mostly another's is left to it: the beginning is copied.
        if same and self.shares and 2 * same < len(own.ids) and oldest is not own:
            job.held = job.shared = same
            return oldest, Copy(own.number, oldest.number, same)
        job.held = job.shared = same
        return (own if same else oldest), None

    def _usable(self, job: Job, held: Sequence[int], most: int) -> int:
        """Tokens of a free slot that a request can go on from."""
        same = common(job.ids, held)
        return min(same, most) if self.shares else same if same == len(held) <= most else 0

    def _followed(self) -> Iterator[Copy]:
        """Copies for those whose leader has read what they share."""
        for job in self.running:
            leader = job.leader
            if leader is not None and leader.held >= job.shared:
                job.held, job.leader = job.shared, None
                yield Copy(leader.slot, job.slot, job.shared)


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many elements two sequences of the same kind begin with in common."""
    low, high = 0, min(len(first), len(second))
    while low < high:  # whole stretches are compared at once
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _by_slot(work: tuple[Job, int]) -> int:
    return work[0].slot
