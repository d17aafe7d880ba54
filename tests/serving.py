"""Material of the server's tests: a model that takes a known time a token, real small ones, and servers that listen on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx2
import torch

from chattune.generate.engine import Ask, Engine, EngineLoad
from chattune.generate.reply import ChatModel, ReplyEvent
from chattune.models.families.gpt import GPT
from chattune.serve.app import Server, application
from chattune.serve.limits import Limits
from chattune.serve.models import NativeModel, Shelf
from chattune.serve.process import Process, bind
from chattune.tokens.template import Template
from chattune.tokens.tokenizer import Tokenizer

ANSWER = "你好 👩‍👩‍👧 naïve ok\nend"
CONTEXT = 512


def chat_model(context: int = CONTEXT, seed: int = 0) -> ChatModel:
    """Random weights: replies of all kinds. Few merges, so that most characters are made of several tokens."""
    template = Template(Tokenizer.train_at_most(["hello there, who are you? "] * 3, 280))
    loud = {"init": {"name": "normal", "std": 0.15}, "init_outputs": "same"}
    family = GPT(layers=2, width=64, heads=4, kv_heads=2, context=context, **loud)
    return ChatModel(family.build(template.tokenizer.vocabulary, seed=seed), template)


def load(**counts: int) -> EngineLoad:
    """The load with these counts, and 0 for all others."""
    return EngineLoad(**{each.name: counts.get(each.name, 0) for each in fields(EngineLoad)})


@dataclass(eq=False)
class _Run:
    ask: Ask
    deliver: Callable[[ReplyEvent], None]
    text: Any
    said: int = 0
    cancelled_at: float | None = None


@dataclass
class StubEngine:
    """Says `ANSWER` again and again, a token of each running reply every `seconds`, whatever the machine; `slots` side by side."""

    tokenizer: Tokenizer
    slots: int = 4
    seconds: float = 0.005
    cancelled: int = 0
    generated: int = 0
    freed: list[float] = field(default_factory=list)  # seconds from a cancellation to the free slot

    def __post_init__(self) -> None:
        self._words = self.tokenizer.encode(ANSWER)
        self._lock = threading.Lock()
        self._waiting: list[_Run] = []
        self._running: list[_Run] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def submit(self, ask: Ask, deliver: Callable[[ReplyEvent], None]) -> Any:
        run = _Run(ask, deliver, self.tokenizer.stream())
        with self._lock:
            self._waiting.append(run)
        return run

    def cancel(self, ticket: Any) -> None:
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self.cancelled += 1
            elif ticket in self._running and ticket.cancelled_at is None:
                ticket.cancelled_at = time.monotonic()
                self.cancelled += 1

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="stub-engine", daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(10)

    def load(self) -> EngineLoad:
        with self._lock:
            waiting, running = len(self._waiting), len(self._running)
        return load(waiting=waiting, running=running, slots=self.slots, generated_total=self.generated, cancelled_total=self.cancelled)

    def _loop(self) -> None:
        due = time.monotonic()
        while not self._ended.is_set():
            due = max(due + self.seconds, time.monotonic())
            self._step()
            time.sleep(max(0.0, due - time.monotonic()))
        for run in [*self._running, *self._waiting]:
            run.deliver(ReplyEvent("", None, "cancelled"))

    def _step(self) -> None:
        now = time.monotonic()
        with self._lock:
            for run in [run for run in self._running if run.cancelled_at is not None]:
                self.freed.append(now - run.cancelled_at)
                self._running.remove(run)
            while self._waiting and len(self._running) < self.slots:
                self._running.append(self._waiting.pop(0))
            running = list(self._running)
        for run in running:
            if run.said >= run.ask.sampling.max_tokens:
                run.deliver(ReplyEvent(run.text.finish(), None, "length"))
                with self._lock:
                    if run in self._running:
                        self._running.remove(run)
                continue
            token = self._words[run.said % len(self._words)]
            run.said += 1
            self.generated += 1
            run.deliver(ReplyEvent(run.text.push(token), token, logprob=-0.5, alternatives=((token, -0.5),)))


class Says:
    """An engine that gives one text after the other, whatever is asked."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.given = texts, 0

    def submit(self, ask: Ask, deliver: Callable[[ReplyEvent], None]) -> Any:
        deliver(ReplyEvent(self.texts[self.given], 20))
        deliver(ReplyEvent("", None, "stop"))
        self.given += 1
        return self.given

    def cancel(self, ticket: Any) -> None:
        """There is nothing left to cancel."""

    def start(self) -> None:
        """It needs no thread."""

    def close(self) -> None:
        """Nor does it hold anything."""

    def load(self) -> EngineLoad:
        return load(slots=1, generated_total=self.given)


def stub(
    name: str = "stub", *, limits: Limits | None = None, slots: int = 4, seconds: float = 0.005, context: int = CONTEXT
) -> NativeModel:
    chat = chat_model(context)
    engine = StubEngine(chat.tokenizer, slots, seconds)
    return NativeModel(name, chat, engine, slots=slots, limits=limits or Limits())


def native(name: str = "tiny", *, limits: Limits | None = None, slots: int = 4, context: int = CONTEXT, seed: int = 0) -> NativeModel:
    """A real engine over random weights."""
    chat = chat_model(context, seed)
    return NativeModel(name, chat, Engine(chat.model, chat.tokenizer, slots=slots), slots=slots, limits=limits or Limits())


def learnt(name: str = "learnt", *, limits: Limits | None = None, slots: int = 4) -> NativeModel:
    """A model that knows one exchange by heart: to ``hello`` it says `ANSWER`, and ends."""
    template = Template(Tokenizer.train_at_most(["hello there, who are you? "] * 3, 280))
    model = GPT(layers=2, width=64, heads=4, kv_heads=2, context=128, init="fan_in", init_outputs="zero").build(
        template.tokenizer.vocabulary, seed=0
    )
    ids, weights = template.render([*user("hello"), {"role": "assistant", "content": ANSWER}])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nll = torch.nn.functional.cross_entropy(model(torch.tensor([ids[:-1]]))[0], torch.tensor(ids[1:]), reduction="none")
        (nll * torch.tensor(weights[1:])).mean().backward()
        optimizer.step()
    chat = ChatModel(model, template)
    return NativeModel(name, chat, Engine(chat.model, chat.tokenizer, slots=slots), slots=slots, limits=limits or Limits())


def server(*models: Any, limits: Limits | None = None, **more: Any) -> Server:
    """A server of these models, not yet listening."""
    shelf = Shelf(more.pop("bring", None))
    for model in models:
        shelf.put(model)
    return Server(shelf, limits or Limits(), **more)


@contextlib.contextmanager
def listening(served: Server, buffer: int | None = None) -> Iterator[str]:
    """The server in a thread, really listening; its address. `buffer`: bytes that the system holds for a client who does not read."""
    bound = bind("127.0.0.1", 0)
    if buffer is not None:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    process = Process(served, *bound.getsockname()[:2])
    thread = threading.Thread(target=lambda: asyncio.run(process.serve(sockets=[bound])), daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not process.started and time.monotonic() < end:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        process.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server ends"


async def in_process(
    application: Any, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body that an ASGI application answers with, without a socket."""
    sent: list[Any] = []
    waiting = [{"type": "http.request", "body": body, "more_body": False}]
    ended = asyncio.Event()

    async def receive() -> Any:
        if waiting:
            return waiting.pop()
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    named = {"host": "127.0.0.1", "content-type": "application/json"} | {k.lower(): v for k, v in (headers or {}).items()}
    plain, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": unquote(plain), "raw_path": plain.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in named.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    await application(scope, receive, send)
    ended.set()
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def client(url: str, **more: Any) -> httpx2.Client:
    return httpx2.Client(base_url=url, timeout=30, trust_env=False, **more)


class Other:
    """A process of its own, and what it holds."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child
        self.log: list[str] = []  # lines of its stderr
        self._place = Path("/proc", str(child.pid))

    @property
    def resident(self) -> int:
        """Bytes of memory."""
        return int((self._place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def files(self) -> int:
        return len(os.listdir(self._place / "fd"))

    @property
    def threads(self) -> int:
        return len(os.listdir(self._place / "task"))

    @property
    def waited(self) -> float:
        """Seconds that its main thread could have run in while other programs had the processors (Linux: sched-stats)."""
        return int((self._place / "schedstat").read_text().split()[1]) / 1e9

    def stop(self, number: int = signal.SIGTERM) -> Future[tuple[int, float, float]]:
        """Send a signal. What comes of it: exit code, seconds until the end, and how many of them it `waited`."""
        found = Future[tuple[int, float, float]]()

        def watch() -> None:
            os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT)  # it stays in /proc until it is asked for
            took, waited = time.monotonic() - began, self.waited - before
            found.set_result((self.child.wait(), took, waited))

        before, began = self.waited, time.monotonic()
        self.child.send_signal(number)
        threading.Thread(target=watch, daemon=True).start()
        return found


class Apart(Other):
    """A stub's application in a process of its own, asked through a pipe: what it holds is the server's alone."""

    def __init__(self, child: subprocess.Popen[str], line: Connection) -> None:
        super().__init__(child)
        self._line = line
        self._heard(120.0)  # it stands

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes, float]:
        """Status, headers and body of the answer, and the seconds that it took."""
        self._line.send((method, path, body, headers))
        return self._heard(30.0, method, path, body[:300])  # type: ignore[no-any-return]

    def _heard(self, seconds: float, *what: Any) -> Any:
        assert self._line.poll(seconds), f"it hangs: {what}"
        found = self._line.recv()
        if isinstance(found, Exception):
            raise AssertionError(f"it came through: {what}") from found
        return found


@contextlib.contextmanager
def apart() -> Iterator[Apart]:
    """An application around a stub that says a token a millisecond."""
    here, there = multiprocessing.Pipe()
    words = [sys.executable, __file__, "apart", str(there.fileno())]
    child = subprocess.Popen(words, pass_fds=[there.fileno()], text=True)
    there.close()
    try:
        yield Apart(child, here)
    finally:
        here.close()
        if child.wait(30):
            raise AssertionError(f"the process ended with {child.returncode}")


@contextlib.contextmanager
def command(
    home: Path, *words: str, limits: dict[str, float] | None = None, seconds: float | None = None, context: int = CONTEXT
) -> Iterator[tuple[Other, str]]:
    """``chattune serve first`` as a program; itself, and the address where it serves. What else it prints can be read from it.

    `seconds`: in place of the run ``first`` stands a stub that says a token every so many; without it nothing is changed. `words`:
    more of the command, as further runs. A program that still runs afterwards is killed.
    """
    program = ["-m", "chattune"] if seconds is None else [__file__, "serve", str(seconds), str(context)]
    limited = [word for name, value in (limits or {}).items() for word in ("--limit", f"{name}={value:g}")]
    own = [sys.executable, *program, "serve", "first", "--home", str(home), "--port", "0", "--json", *limited, *words]
    child = subprocess.Popen(
        own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert child.stdout and child.stderr
    said: list[str] = []
    log = threading.Thread(target=lambda: said.extend(child.stderr or ()), daemon=True)  # so that a full pipe never holds it up
    log.start()
    try:
        line = child.stdout.readline()
        assert line, (child.wait(30), said)
        other = Other(child)
        other.log = said
        yield other, json.loads(line)["url"]
    finally:
        if child.poll() is None:
            child.kill()
            child.wait(30)
        log.join(30)
        child.stdout.close()
        child.stderr.close()


def _answer_all(line: Connection) -> None:
    """What `Apart` asks, until it is closed."""
    model = stub(seconds=0.001, context=64, slots=8)
    app = application(server(model))
    model.engine.start()
    with asyncio.Runner() as runner:
        line.send(None)
        while True:
            try:
                method, path, body, headers = line.recv()
            except EOFError:
                return
            began = time.monotonic()
            try:
                found = runner.run(in_process(app, method, path, body, headers))
            except Exception as error:
                line.send(error)
            else:
                line.send((*found, time.monotonic() - began))


def _serve(seconds: float, context: int, words: list[str]) -> None:
    """``chattune`` as it is started from a shell, but for the model ``first``: a stub."""
    import chattune.cli

    as_it_is = chattune.cli.serving._Serving.model

    def model(how: Any, name: str, *runs: Any) -> NativeModel:
        if name != "first":
            return as_it_is(how, name, *runs)
        return stub(name, limits=how.limits, slots=how.slots, seconds=seconds, context=context)

    chattune.cli.serving._Serving.model = model  # type: ignore[method-assign]
    sys.argv = ["chattune", *words]
    raise SystemExit(chattune.cli.main())


if __name__ == "__main__":
    if sys.argv[1] == "apart":
        _answer_all(Connection(int(sys.argv[2])))
    else:
        _serve(float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
