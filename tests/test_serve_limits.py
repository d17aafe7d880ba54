"""Who waits, who goes first, who is told to come back: buckets, the fair queue, and keys in their file."""

from __future__ import annotations

import asyncio
import math
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from chattune.core.errors import CorruptError, SettingError, UnknownName, UsageError
from chattune.serve.keys import Key, KeyFile, authenticated, require
from chattune.serve.limits import Admission, Limits, TokenBucket
from chattune.serve.wire import WireError


def test_a_bucket_fills_evenly_and_never_overflows() -> None:
    now = [0.0]
    bucket = TokenBucket(60, clock=lambda: now[0])
    assert [bucket.take(1) for _ in range(60)] == [0.0] * 60, "a minute's worth at once"
    assert bucket.take(1) == pytest.approx(1.0), "then one a second"
    now[0] = 1.0
    assert bucket.take(1) == 0.0
    assert bucket.take(30) == pytest.approx(30.0)
    now[0] = 1000.0
    assert bucket.take(60) == 0.0 and bucket.take(1) > 0, "an hour of silence is a minute's worth, too"
    assert math.isinf(bucket.take(61)), "what is more than a minute's worth never comes"
    bucket.put_back(10)
    assert bucket.take(10) == 0.0 and bucket.take(1) > 0


async def _in_order(admission: Admission, arrivals: list[tuple[str, int]]) -> list[str]:
    """The owners in the order in which they get the one place, after somebody else gave it up."""
    order: list[str] = []
    first = await admission.enter("nobody", 1, 1)

    async def one(owner: str, tokens: int) -> None:
        place = await admission.enter(owner, 1, tokens)
        order.append(owner)
        await asyncio.sleep(0)
        admission.leave(place)

    waiting = []
    for owner, tokens in arrivals:
        waiting.append(asyncio.create_task(one(owner, tokens)))
        await asyncio.sleep(0)
    admission.leave(first)
    await asyncio.gather(*waiting)
    return order


@pytest.mark.requirement("S2")
def test_owners_take_turns_by_what_they_were_given_not_by_who_came_first() -> None:
    arrivals = [("greedy", 10)] * 6 + [("small", 10)] * 3
    order = asyncio.run(_in_order(Admission(1, Limits()), arrivals))
    assert order[:6].count("small") == 3, order
    heavy = asyncio.run(_in_order(Admission(1, Limits()), [("long", 100)] * 3 + [("short", 10)] * 3))
    assert heavy.index("long", heavy.index("long") + 1) > 3, "one long one weighs as much as ten short ones"


@pytest.mark.requirement("S2", "I19")
def test_the_queue_is_bounded_by_requests_tokens_and_time() -> None:
    async def main() -> None:
        limits = Limits(queue=2, queue_tokens=100, queue_seconds=0.05)
        admission = Admission(1, limits)
        place = await admission.enter("a", 1, 10)
        waiting = [asyncio.create_task(admission.enter("a", 1, 40)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(WireError, match="2 requests wait already") as caught:
            await admission.enter("a", 1, 10)
        assert caught.value.status == 429 and caught.value.retry_after is not None and caught.value.retry_after >= 1
        for task in waiting:
            with pytest.raises(WireError, match=r"within 0\.05 seconds"):
                await task
        assert admission.waiting == 0
        many = asyncio.create_task(admission.enter("a", 1, 90))
        await asyncio.sleep(0)
        with pytest.raises(WireError, match="90 tokens wait already"):
            await admission.enter("b", 1, 20)
        admission.leave(place)
        admission.leave(await many)
        assert admission.used == 0

    asyncio.run(main())


@pytest.mark.requirement("S2")
def test_who_waits_with_many_gives_way_to_who_waits_with_none() -> None:
    async def main() -> None:
        admission = Admission(1, Limits(queue=3))
        place = await admission.enter("greedy", 1, 1)
        waiting = [asyncio.create_task(admission.enter("greedy", 1, 1)) for _ in range(3)]
        await asyncio.sleep(0)
        small = asyncio.create_task(admission.enter("small", 1, 1))
        await asyncio.sleep(0)
        with pytest.raises(WireError, match="go first"):
            await waiting[2]
        admission.leave(place)
        for task in (small, *waiting[:2]):
            admission.leave(await task)
        assert admission.used == admission.waiting == 0

    asyncio.run(main())


@pytest.mark.requirement("S3")
def test_who_is_cancelled_while_waiting_takes_no_place_with_him() -> None:
    async def main() -> None:
        admission = Admission(1, Limits())
        for _ in range(50):
            place = await admission.enter("a", 1, 1)
            waiting = [asyncio.create_task(admission.enter("a", 1, 1)) for _ in range(3)]
            await asyncio.sleep(0)
            admission.leave(place)  # the first one is given the place,
            waiting[0].cancel()  # and cancelled before it knows
            waiting[1].cancel()
            admission.leave(await waiting[2])
            await asyncio.gather(*waiting, return_exceptions=True)
            assert admission.used == admission.waiting == 0

    asyncio.run(main())


def test_a_request_for_many_places_is_not_passed_by_forever() -> None:
    async def main() -> None:
        admission = Admission(2, Limits())
        places = [await admission.enter("a", 1, 1) for _ in range(2)]
        big = asyncio.create_task(admission.enter("b", 5, 5))  # more than there are: all of them
        await asyncio.sleep(0)
        small = asyncio.create_task(admission.enter("a", 1, 1))
        await asyncio.sleep(0)
        admission.leave(places[0])
        await asyncio.sleep(0)
        assert not big.done() and not small.done()
        admission.leave(places[1])
        place = await big
        assert admission.used == 2
        admission.leave(place)
        admission.leave(await small)

    asyncio.run(main())


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "deep" / "keys.json")


def bearer(value: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + value)]


@pytest.mark.security
def test_a_key_is_shown_once_and_its_file_holds_a_digest_for_its_owner_only(keys: KeyFile) -> None:
    secret = keys.create("anna", ("chat",), requests=5, tokens=100)
    assert secret.encode() not in keys.path.read_bytes()
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    (key,) = keys.all()
    assert (key.name, key.scopes, key.requests, key.tokens) == ("anna", ("chat",), 5, 100)
    assert authenticated(keys.all(), bearer(secret.encode())) == key
    require(key, "chat")
    with pytest.raises(WireError) as caught:
        require(key, "admin")
    assert caught.value.status == 403
    keys.path.chmod(0o644)
    os.utime(keys.path)
    with pytest.raises(UsageError, match="can be read by others"):
        keys.all()


@pytest.mark.security
@pytest.mark.requirement("I10")
def test_only_the_exact_bytes_of_a_key_open(keys: KeyFile) -> None:
    secret = keys.create("anna").encode()
    wrong: list[Any] = [
        [], bearer(b""), bearer(secret.swapcase()), bearer(secret[:-1]), bearer(secret + b"x"), bearer(b"\xff\xfe\x00"),
        bearer("ключ".encode()), bearer(b"a" * 65536), [(b"authorization", secret)], [(b"authorization", b"Basic " + secret)],
        [*bearer(secret), *bearer(secret)], [*bearer(b"x"), *bearer(secret)], bearer(b" ".join([secret, secret])),
    ]  # fmt: skip
    for headers in wrong:
        with pytest.raises(WireError) as caught:
            authenticated(keys.all(), headers)
        assert caught.value.status == 401, headers
    assert authenticated(keys.all(), [(b"Authorization", b"bearer " + secret + b" ")]).name == "anna"


def test_a_revoked_key_is_void_at_once_and_mistakes_are_told(keys: KeyFile) -> None:
    reader = KeyFile(keys.path)
    secret = keys.create("anna").encode()
    assert authenticated(reader.all(), bearer(secret)).name == "anna"
    keys.create("bo")
    with pytest.raises(UsageError, match="called 'anna' already"):
        keys.create("anna")
    with pytest.raises(UsageError, match="cannot name"):
        keys.create("../x")
    with pytest.raises(SettingError):
        keys.create("ci", requests=0)
    keys.revoke("anna")
    assert [key.name for key in reader.all()] == ["bo"]
    with pytest.raises(WireError, match="not known here"):
        authenticated(reader.all(), bearer(secret))
    with pytest.raises(UnknownName, match="Did you mean 'bo'"):
        keys.revoke("boo")
    keys.path.write_text("[]", "utf-8")
    with pytest.raises(CorruptError, match="holds no keys"):
        reader.all()


@pytest.mark.security
def test_the_time_of_a_refusal_tells_nothing_of_how_much_was_right(keys: KeyFile) -> None:
    """Digests are compared, so a longer right beginning is no nearer: the times of both kinds overlap wholly."""
    secret = keys.create("anna").encode()
    near, far = bearer(secret[:-1] + b"~"), bearer(b"~" + secret[1:])
    times: dict[bytes, list[int]] = {}
    known: tuple[Key, ...] = keys.all()
    for _ in range(400):
        for headers in (near, far):
            began = time.perf_counter_ns()
            with pytest.raises(WireError):
                authenticated(known, headers)
            times.setdefault(headers[0][1], []).append(time.perf_counter_ns() - began)
    lows, highs = zip(*((sorted(values)[40], sorted(values)[360]) for values in times.values()), strict=True)
    assert max(lows) < min(highs)
