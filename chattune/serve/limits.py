"""Limits: what one request, one key and the whole server may take; who waits, who goes first, and who is told to come back later.

A model has so many places. Who finds none waits, and the next to go is of the owner who has been given least so far (start-time fair
queueing, Goyal et al. 1996), so that one key with a thousand requests does not keep another one waiting. The queue is bounded by
requests, by tokens and by time; beyond that the answer is 429 with the seconds after which to try again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from chattune.core.part import Settings, setting
from chattune.serve.wire import WireError


class Limits(Settings):
    """What the server takes on. Times in seconds, sizes in bytes."""

    body: int = setting(2 << 20, "the largest body of a request", low=1024, high=1 << 30)
    queue: int = setting(64, "requests that may wait for a place, of each model", low=0, high=100_000)
    queue_tokens: int = setting(1 << 20, "tokens, of prompts and replies to come, that may wait, of each model", low=1)
    queue_seconds: float = setting(30.0, "the longest time that a request waits for a place", above=0.0, high=3600.0)
    request_seconds: float = setting(600.0, "the longest time that a request may take once it has its place", above=0.0, high=86400.0)
    stall_seconds: float = setting(30.0, "a client that takes nothing of its stream for so long is left", above=0.0, high=3600.0)
    arrival_seconds: float = setting(15.0, "the head of a request, and then its body, may take so long to come", above=0.0, high=3600.0)
    drain_seconds: float = setting(30.0, "what runs when the server is asked to end may take so long", low=0.0, high=3600.0)
    connections: int = setting(2048, "connections side by side", low=1, high=100_000)


class TokenBucket:
    """So much a minute, on average and at once: it fills evenly and holds the amount of a minute at most."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._left, self._at = float(per_minute), clock()

    def take(self, amount: float) -> float:
        """Take `amount` and give 0; where it is not there, take nothing and give the seconds until it will be (∞: never)."""
        now = self._clock()
        self._left = min(float(self.per_minute), self._left + (now - self._at) * self.per_minute / 60)
        self._at = now
        if amount > self.per_minute:
            return math.inf
        if amount > self._left + 1e-9:
            return (amount - self._left) * 60 / self.per_minute
        self._left -= amount
        return 0.0

    def put_back(self, amount: float) -> None:
        """What was taken and not used."""
        self._left = min(float(self.per_minute), self._left + amount)


@dataclass(eq=False)
class Place:
    """What a request holds while it is answered, or waits for: `places` side by side, at most `tokens` in all."""

    owner: str
    places: int
    tokens: int
    came: float
    ready: asyncio.Future[None]
    began: float = 0.0
    start: float = field(default=0.0)  # virtual time


class Admission:
    """The door of one model: `capacity` places, and a fair queue before them. Used from one event loop."""

    def __init__(self, capacity: int, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity, self.limits, self._clock = capacity, limits, clock
        self.running: set[Place] = set()
        self._waiting: dict[str, deque[Place]] = {}
        self._spent: dict[str, float] = {}  # owner → virtual time at which what it was given ends
        self._now = 0.0
        self._lasted = 1.0  # seconds that a place is held, a moving average

    @property
    def used(self) -> int:
        return sum(place.places for place in self.running)

    @property
    def waiting(self) -> int:
        return sum(len(places) for places in self._waiting.values())

    @property
    def waiting_tokens(self) -> int:
        return sum(place.tokens for places in self._waiting.values() for place in places)

    async def enter(self, owner: str, places: int, tokens: int) -> Place:
        """A place, at once or after waiting; a `WireError` of status 429 when the queue is full or the wait too long.

        Whoever entered must `leave`; who is cancelled while waiting has left already.
        """
        place = Place(owner, min(places, self.capacity), tokens, self._clock(), asyncio.get_running_loop().create_future())
        if not self._waiting and self.used + place.places <= self.capacity:
            self._spent[owner] = max(self._spent.get(owner, 0.0), self._now)
            self._give(place)
            return place
        self._queue(place)
        try:
            async with asyncio.timeout(self.limits.queue_seconds):
                await place.ready
        except TimeoutError:
            self._forget(place)
            raise self._busy(f"No place became free within {self.limits.queue_seconds:g} seconds.") from None
        except BaseException:  # cancelled, perhaps after the place was given; or driven out
            self._forget(place)
            raise
        return place

    def leave(self, place: Place) -> None:
        """Give the place to whoever is next."""
        if place in self.running:
            self.running.discard(place)
            self._lasted += 0.1 * (self._clock() - place.began - self._lasted)
            self._next()

    def retry_after(self) -> int:
        """Whole seconds after which a place may be free, by how long places were held so far."""
        rounds = (self.waiting + 1) / max(self.capacity, 1)
        return max(1, min(60, math.ceil(rounds * self._lasted)))

    def _queue(self, place: Place) -> None:
        if self.waiting >= self.limits.queue:
            greedy = max(self._waiting.values(), key=len, default=None)
            mine = len(self._waiting.get(place.owner, ()))
            if greedy is None or len(greedy) <= mine + 1:
                raise self._busy(f"{self.waiting} requests wait already.")
            last = greedy.pop()  # who waits with most gives way to who waits with fewer
            if not last.ready.done():
                last.ready.set_exception(self._busy("Requests of others, who wait with fewer, go first."))
            self._tidy(last.owner)
        if self._waiting and self.waiting_tokens + place.tokens > self.limits.queue_tokens:
            raise self._busy(f"{self.waiting_tokens:,} tokens wait already.")
        self._waiting.setdefault(place.owner, deque()).append(place)
        if len(self._waiting[place.owner]) == 1:
            self._spent[place.owner] = max(self._spent.get(place.owner, 0.0), self._now)

    def _next(self) -> None:
        while self._waiting:
            owner = min(self._waiting, key=lambda name: self._spent[name])
            place = self._waiting[owner][0]
            if self.used + place.places > self.capacity:
                return  # it is its turn: nobody passes by
            self._waiting[owner].popleft()
            self._tidy(owner)
            if place.ready.done():
                continue  # it was cancelled, and has not run since
            self._give(place)
            place.ready.set_result(None)

    def _give(self, place: Place) -> None:
        self._now = max(self._now, self._spent[place.owner])
        self._spent[place.owner] += place.tokens
        place.began = self._clock()
        self.running.add(place)

    def _forget(self, place: Place) -> None:
        if place in self._waiting.get(place.owner, ()):
            self._waiting[place.owner].remove(place)
            self._tidy(place.owner)
            self._next()
        self.leave(place)

    def _tidy(self, owner: str) -> None:
        if not self._waiting[owner]:
            del self._waiting[owner]

    def _busy(self, message: str) -> WireError:
        return WireError(429, f"{message} Try again later.", code="overloaded", retry_after=self.retry_after())
