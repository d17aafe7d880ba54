"""The engine: many requests, one model. Requests come in at any time and leave when they end; every step computes all that run.

A reply follows from weights, prompt, sampling and number, whatever is decoded beside it: each draws from a stream of its own. The
engine works on the caller's thread (`run`, `stream`), or on its own between `start` and `close`; `submit` and `cancel` may be called
from any.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from chattune.core.errors import SettingError, UsageError
from chattune.generate.choice import Chances, Choice, Chooser, Chosen, Past, Row, Style
from chattune.generate.reply import Reply, ReplyEvent, Sampling
from chattune.generate.runner import Piece, Runner, TorchRunner
from chattune.generate.scheduler import Job, Scheduler, Step
from chattune.generate.text import ReplyText

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel
    from chattune.tokens.tokenizer import Tokenizer

LOG = logging.getLogger(__name__)
_Event = TypeVar("_Event")


@dataclass(frozen=True)
class Ask:
    """A prompt to continue. `number`: which of several replies to it, part of the random stream; `logprobs`: none, or of the chosen
    token and so many of the likeliest; `owner`: who asks: owners take turns."""

    prompt: tuple[int, ...]
    sampling: Sampling
    number: int = 0
    logprobs: int | None = None
    owner: str = ""


class Ticket:
    """A request in the engine. `ended`: its last event was given; `error`: what went wrong, where that had the reason ``"error"``;
    `shared`: prompt tokens that were not computed again, since a slot held them."""

    def __init__(self, request: _Request) -> None:
        self._request = request

    @property
    def ended(self) -> bool:
        return self._request.ended

    @property
    def error(self) -> Exception | None:
        return self._request.error

    @property
    def shared(self) -> int:
        return self._request.shared


@dataclass(eq=False, slots=True, kw_only=True)
class _Request(Job):
    """A job of the scheduler with all that its reply needs. `limit`: tokens of the reply at most."""

    ask: Ask
    deliver: Callable[[ReplyEvent], None]
    chooser: Chooser
    text: ReplyText
    limit: int
    error: Exception | None = None
    started: bool = False
    unwanted: bool = False
    ended: bool = False


@dataclass(frozen=True)
class EngineLoad:
    """How much there is to do, and how much was done; totals count from the engine's beginning.

    `tokens_waiting`: prompt tokens not read yet; `prompt_total`: prompt tokens taken in, `prefix_hits_total` of which a slot held.
    """

    waiting: int
    running: int
    slots: int
    tokens_waiting: int
    generated_total: int
    prompt_total: int
    prefix_hits_total: int
    cancelled_total: int
    failed_total: int
    steps_total: int


class Engine:
    """Continuous batching over a runner. `slots`: requests side by side; `length`: tokens of prompt and reply, at most and by default
    the model's context; `chunk`: prompt tokens read in a step, so that those who write are not held up by those who read."""

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, *, slots: int = 8, length: int | None = None, runner: Runner | None = None,
        chunk: int = 256,
    ) -> None:
        context = model.family.context_length()
        self.model, self.tokenizer = model, tokenizer
        self.runner: Runner = runner or TorchRunner(model, slots=slots, length=min(length or context, context))
        self.length = min(self.runner.length, context)
        never = np.array([*tokenizer.never, *range(tokenizer.vocabulary, model.vocabulary)], dtype=np.int64)
        self.choice, self._ends = Choice(never, np.array(tokenizer.ends, dtype=np.int64)), frozenset(tokenizer.ends)
        shares, keeps = self.runner.rewinds, self.runner.joins
        self.scheduler = Scheduler(self.runner.slots, chunk if keeps else self.runner.slots * self.length, shares=shares, keeps=keeps)
        self._lock, self._turn = threading.RLock(), threading.Lock()  # of the state; of the right to take a step
        self._wake = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._closing = False
        self._unwanted: list[_Request] = []
        self._styles: list[Style] = []
        self._totals = dict.fromkeys(("generated", "prompt", "prefix_hits", "cancelled", "failed", "steps"), 0)

    def submit(self, ask: Ask, deliver: Callable[[ReplyEvent], None]) -> Ticket:
        """Take a request in; its events come to `deliver`, which must return at once, and the last one has a reason.

        Refuses (`UsageError`) what can never fit, and settings that this model cannot follow.
        """
        request = self._request(ask, deliver)
        with self._lock:
            if self._closing:
                raise UsageError("the engine is closed.", path="prompt", rule="an engine that runs", hint="Start another one.")
            self.scheduler.add(request)
            self._wake.notify()
        return Ticket(request)

    def cancel(self, ticket: Ticket) -> None:
        """The reply is no longer wanted: at most one more token comes, then a last event with the reason ``"cancelled"``."""
        request = ticket._request
        with self._lock:
            if request.ended or request.unwanted:
                return
            request.unwanted = True
            self._unwanted.append(request)
            self._wake.notify()
        if self._turn.acquire(blocking=False):  # between two steps: the slot is free now
            try:
                self._drop_unwanted()
            finally:
                self._turn.release()

    def run(self, asks: Sequence[Ask]) -> list[Reply]:
        """The replies to all of `asks`, in their order. Raises what went wrong."""
        at_once = len(asks) if self.runner.joins else self.runner.slots
        replies: list[Reply] = []
        for start in range(0, len(asks), at_once or 1):
            replies += self._run(asks[start : start + at_once])
        return replies

    def stream(self, ask: Ask) -> Iterator[ReplyEvent]:
        """The events of one reply. Where the caller leaves, the reply is cancelled."""
        events: SimpleQueue[ReplyEvent] = SimpleQueue()
        ticket = self.submit(ask, events.put)
        try:
            while True:
                event = self._next(events)
                if ticket.error is not None and event.finish_reason == "error":
                    raise ticket.error
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            self.cancel(ticket)

    def start(self) -> None:
        """Work on a thread of the engine's own from now on."""
        with self._lock:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._work, name="chattune-engine", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End the engine's thread after the step that it is at. Requests that have not ended get the reason ``"cancelled"``."""
        with self._lock:
            self._closing = True
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._turn:
            with self._lock:
                left = [job for job in self.scheduler.jobs() if isinstance(job, _Request) and not job.unwanted]
                for request in left:
                    request.unwanted = True
                self._unwanted += left
            self._drop_unwanted()

    def load(self) -> EngineLoad:
        """How much there is to do, for admission and metrics."""
        with self._lock:
            scheduler = self.scheduler
            return EngineLoad(
                waiting=scheduler.waiting, running=len(scheduler.running), slots=len(scheduler.slots),
                tokens_waiting=scheduler.tokens_waiting, **{f"{name}_total": count for name, count in self._totals.items()},
            )  # fmt: skip

    def forget(self) -> None:
        """What free slots hold is computed anew when it is asked for again: the weights have changed."""
        with self._turn, self._lock:
            self.scheduler.forget()

    def _request(self, ask: Ask, deliver: Callable[[ReplyEvent], None]) -> _Request:
        prompt, sampling = list(ask.prompt), ask.sampling
        if not 0 < len(prompt) < self.length:
            raise UsageError(
                f"a prompt of {len(prompt)} tokens leaves no room for a reply: {self.length} tokens fit together.", path="prompt",
                value=len(prompt), rule=f"1 to {self.length - 1} tokens", hint="Shorten it, or load the model with more room.",
            )
        if min(prompt) < 0 or max(prompt) >= self.model.vocabulary:
            raise UsageError(
                f"no token has the id {min(prompt) if min(prompt) < 0 else max(prompt)}.", path="prompt",
                rule=f"ids from 0 to {self.model.vocabulary - 1}", hint="Ids belong to one tokenizer: take them from this model's.",
            )
        limit = min(sampling.max_tokens, self.length - len(prompt))
        if sampling.min_tokens > limit:
            raise SettingError(
                f"only {limit} tokens fit behind this prompt.", path="min_tokens", value=sampling.min_tokens,
                rule=f"at most {limit}", hint="Ask for fewer, or shorten the prompt.",
            )
        for rule in sampling.in_order():
            rule.check(self.model.vocabulary)
        matcher = None
        if sampling.grammar is not None:
            from chattune.generate.grammar import Grammar

            matcher = Grammar.compile(sampling.grammar, self.tokenizer).matcher()
        chances, past = Chances(sampling.seed, prompt, ask.number), Past(prompt, len(prompt))
        chooser = Chooser(self._style(sampling), chances, past, sampling.min_tokens, ask.logprobs, matcher)
        text = ReplyText(self.tokenizer.stream(), sampling.stop, sampling.min_tokens)
        return _Request(prompt, ask.owner, ask=ask, deliver=deliver, chooser=chooser, text=text, limit=limit)

    def _style(self, sampling: Sampling) -> Style:
        style = Style(sampling)
        with self._lock:
            known = next((other for other in self._styles if other.rules == style.rules), None)
            if known is None:
                self._styles = [*self._styles[-31:], style]
        return known or style

    def _run(self, asks: Sequence[Ask]) -> list[Reply]:
        texts: list[list[str]] = [[] for _ in asks]
        tokens: list[list[int]] = [[] for _ in asks]
        reasons: list[str] = [""] * len(asks)
        events: SimpleQueue[tuple[int, ReplyEvent]] = SimpleQueue()
        tickets: list[Ticket] = []
        try:
            for number, ask in enumerate(asks):
                tickets.append(self.submit(ask, lambda event, number=number: events.put((number, event))))  # type: ignore[misc]
            for _ in asks:
                while True:
                    number, event = self._next(events)
                    texts[number].append(event.text)
                    if event.token is not None:
                        tokens[number].append(event.token)
                    if event.finish_reason is not None:
                        break
                reasons[number] = event.finish_reason
                if (error := tickets[number].error) is not None:
                    raise error
        finally:
            for ticket in tickets:
                self.cancel(ticket)
        return [Reply("".join(text), tuple(ids), reason) for text, ids, reason in zip(texts, tokens, reasons, strict=True)]

    def _next(self, events: SimpleQueue[_Event]) -> _Event:
        """The next event of a queue, for which steps are taken where no thread takes them."""
        while self._thread is None:
            try:
                return events.get_nowait()
            except Empty:
                self._step()
        return events.get()

    def _work(self) -> None:
        """The engine's thread."""
        while True:
            with self._lock:
                while not (self._closing or self.scheduler.running or self.scheduler.waiting):
                    self._wake.wait()
                if self._closing:
                    return
            self._step()

    def _step(self) -> None:
        with self._turn:
            self._drop_unwanted()
            with self._lock:
                step = self.scheduler.step()
            if step.work:
                try:
                    self._compute(step)
                except Exception as error:
                    self._fail(step, error)
            self._drop_unwanted()

    def _compute(self, step: Step) -> None:
        """One pass, and a token for each request whose prompt is read."""
        for copy in step.copies:
            self.runner.copy(copy.source, copy.target, copy.tokens)
        pieces = [Piece(job.slot, job.held, job.ids[job.held : job.held + count]) for job, count in step.work]
        logits = self.runner.forward(pieces)
        with self._lock:
            self.scheduler.computed(step)
            self._count(step)
        ready = [number for number, (job, _) in enumerate(step.work) if job.pending == 0]
        if not ready:
            return
        rows = [Row(step.work[number][0]) for number in ready]  # type: ignore[arg-type]
        with torch.inference_mode():
            chosen = self.choice.tokens(logits if len(ready) == len(step.work) else logits[ready], rows)
        for row, choice in zip(rows, chosen, strict=True):
            assert isinstance(row.request, _Request)
            self._take(row.request, choice)

    def _take(self, request: _Request, chosen: Chosen) -> None:
        """A token was chosen: it goes out, and perhaps it is the last."""
        if chosen.token in self._ends:
            self._end(request, "stop")
            return
        if request.chooser.matcher is not None:
            request.chooser.matcher.advance(chosen.token)
        with self._lock:
            request.ids.append(chosen.token)
            self._totals["generated"] += 1
        text, stopped = request.text.push(chosen.token)
        self._tell(request, ReplyEvent(text, chosen.token, logprob=chosen.logprob, alternatives=chosen.alternatives))
        if stopped:
            self._end(request, "stop", flush=False)
        elif len(request.ids) - request.chooser.past.prompt >= request.limit:
            self._end(request, "length")

    def _end(self, request: _Request, reason: str, flush: bool = True, keep: bool = True) -> None:
        if request.ended:
            return
        text, stopped = request.text.finish() if flush else ("", False)
        with self._lock:
            request.ended = True
            self.scheduler.remove(request, keep=keep)
        self._tell(request, ReplyEvent(text, None, "stop" if stopped else reason))

    def _tell(self, request: _Request, event: ReplyEvent) -> None:
        try:
            request.deliver(event)
        except Exception as error:  # a receiver that is broken must not stop the others
            LOG.warning("a reply has lost its receiver: %r", error)
            if event.finish_reason is None:
                with self._lock:
                    request.unwanted = True
                    self._unwanted.append(request)

    def _drop_unwanted(self) -> None:
        """Between two steps, by whoever has the turn: what was cancelled leaves its slot."""
        with self._lock:
            unwanted, self._unwanted = self._unwanted, []
        for request in unwanted:
            if not request.ended:
                self._totals["cancelled"] += 1
                self._end(request, "cancelled", flush=False)

    def _fail(self, step: Step, error: Exception) -> None:
        LOG.error("a step of the engine failed: %r", error, exc_info=error)
        for job, _ in step.work:
            assert isinstance(job, _Request)
            if not job.ended:
                job.error = error
                self._totals["failed"] += 1
                self._end(job, "error", flush=False, keep=False)

    def _count(self, step: Step) -> None:
        self._totals["steps"] += 1
        for job, _ in step.work:
            assert isinstance(job, _Request)
            if not job.started:
                job.started = True
                self._totals["prompt"] += job.chooser.past.prompt
                self._totals["prefix_hits"] += job.shared
