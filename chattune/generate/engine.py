"""The engine: many requests, one model. Requests come in at any time and leave when they end; every step computes all that run.

A reply follows from weights, prompt, sampling and number, whatever is decoded beside it: each draws from a stream of its own. The
engine works on the caller's thread (`run`, `stream`), or on its own between `start` and `close`; `submit` and `cancel` may be called
from any.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch

from chattune.core.errors import SettingError, UsageError
from chattune.generate.choice import Chances, Choice, Chooser, Chosen, Past, Row, Style, told
from chattune.generate.reply import Reply, ReplyEvent, Sampling
from chattune.generate.runner import Piece, Runner, TorchRunner
from chattune.generate.scheduler import Job, Scheduler, Step
from chattune.generate.speculation import Drafter, Proposal, Speculation, Trust, accepted, looked_up
from chattune.generate.text import ReplyText

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel
    from chattune.tokens.tokenizer import Tokenizer

LOG = logging.getLogger(__name__)
_TOTALS = ("generated", "prompt", "prefix_hits", "cancelled", "failed", "steps", "proposed", "accepted")
_MOMENT = 0.005  # seconds between two looks at one's own events while another thread computes them
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
    drafting: Chances
    accepting: Chances
    trust: Trust = field(default_factory=Trust)
    error: Exception | None = None
    started: bool = False
    unwanted: bool = False
    ended: bool = False


@dataclass(frozen=True)
class EngineLoad:
    """How much there is to do, and how much was done; totals count from the engine's beginning.

    `tokens_waiting`: prompt tokens not read yet; `prompt_total`: prompt tokens taken in, `prefix_hits_total` of which a slot held;
    `proposed_total`: tokens proposed by speculation, `accepted_total` of which were taken.
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
    proposed_total: int
    accepted_total: int


class Engine:
    """Continuous batching over a runner. `slots`: requests side by side; `length`: tokens of prompt and reply, at most and by default
    the model's context; `chunk`: prompt tokens read in a step, so that those who write are not held up by those who read.
    `speculation`: tokens are proposed and looked at together, where the runner can go back; `draft`: a runner of a smaller model
    with the same tokenizer, which proposes (`speculation` by default where it is given) as far as its slots reach."""

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, *, slots: int = 8, length: int | None = None, runner: Runner | None = None,
        chunk: int = 256, speculation: Speculation | None = None, draft: Runner | None = None,
    ) -> None:
        context = model.family.context_length()
        self.model, self.tokenizer = model, tokenizer
        self.runner: Runner = runner or TorchRunner(model, slots=slots, length=min(length or context, context))
        self.length = min(self.runner.length, context)
        never = np.array([*tokenizer.never, *range(tokenizer.vocabulary, model.vocabulary)], dtype=np.int64)
        self.choice, self._ends = Choice(never, np.array(tokenizer.ends, dtype=np.int64)), frozenset(tokenizer.ends)
        shares, keeps = self.runner.rewinds, self.runner.joins
        self.scheduler = Scheduler(self.runner.slots, chunk if keeps else self.runner.slots * self.length, shares=shares, keeps=keeps)
        self.speculation = (speculation or (Speculation() if draft is not None else None)) if self.runner.rewinds else None
        self.drafter = self._drafter(draft, chunk) if draft is not None and self.speculation is not None else None
        self._lock, self._turn = threading.RLock(), threading.Lock()  # of the state; of the right to take a step
        self._wake = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._closing = False
        self._unwanted: list[_Request] = []
        self._styles: list[tuple[Sampling, Style]] = []
        self._totals = dict.fromkeys(_TOTALS, 0)

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
        style = self._style(sampling)
        for rule in style.rules:
            rule.check(self.model.vocabulary)
        matcher = None
        if sampling.grammar is not None:
            from chattune.generate.grammar import Grammar

            matcher = Grammar.compile(sampling.grammar, self.tokenizer).matcher()
        chances, past = Chances(sampling.seed, prompt, ask.number), Past(prompt, len(prompt))
        chooser = Chooser(style, chances, past, sampling.min_tokens, ask.logprobs, matcher)
        text = ReplyText(self.tokenizer.stream(), sampling.stop, sampling.min_tokens)
        drafting, accepting = (
            Chances(sampling.seed, prompt, ask.number, name) if self.drafter is not None else chances for name in ("draft", "accept")
        )
        return _Request(
            prompt, ask.owner, ask=ask, deliver=deliver, chooser=chooser, text=text, limit=limit, drafting=drafting, accepting=accepting
        )

    def _drafter(self, draft: Runner, chunk: int) -> Drafter:
        known = (self.runner.vocabulary, self.runner.slots)
        if draft.vocabulary != known[0] or draft.slots < known[1] or not draft.rewinds:
            raise UsageError(
                f"a draft model with {draft.vocabulary} tokens and {draft.slots} slots cannot propose here.", path="draft",
                value=draft.vocabulary, rule=f"the model's {known[0]} tokens, {known[1]} slots or more, and a runner that rewinds",
                hint="Take a model with the same tokenizer that was built with attention.",
            )  # fmt: skip
        return Drafter(draft, self.choice, chunk)

    def _style(self, sampling: Sampling) -> Style:
        """The rules of these settings, as one object for all requests that have the same."""
        if (last := self._styles[-1:]) and last[0][0] is sampling:
            return last[0][1]
        style = Style(sampling)
        with self._lock:
            style = next((known for _, known in self._styles if known.rules == style.rules), style)
            self._styles = [*self._styles[-31:], (sampling, style)]
        return style

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
                self._step(_MOMENT)
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

    def _step(self, patience: float = -1) -> None:
        """One step, or none where another thread did not end its own within `patience` seconds (−1: it always does)."""
        if not self._turn.acquire(timeout=patience):
            return
        try:
            self._drop_unwanted()
            with self._lock:
                step = self.scheduler.step()
            if step.work:
                try:
                    self._compute(step)
                except Exception as error:
                    self._fail(step, error)
            self._drop_unwanted()
        finally:
            self._turn.release()

    def _compute(self, step: Step) -> None:
        """One pass, and at least one token for each request whose prompt is read."""
        for copy in step.copies:
            self.runner.copy(copy.source, copy.target, copy.tokens)
        proposals = self._proposals(step) if self.speculation is not None else {}
        pieces: list[Piece] = []
        rows: list[Row] = []
        spans: list[tuple[_Request, int, Proposal | None]] = []  # with the first of its rows, and what was proposed
        places: list[int] = []  # of the rows among the logits
        place = 0
        for job, count in step.work:
            request = cast(_Request, job)
            ids, proposal = job.ids[job.held : job.held + count], proposals.get(job)
            drafts = proposal.tokens if proposal is not None else []
            pieces.append(Piece(job.slot, job.held, [*ids, *drafts], bool(drafts)))
            if count == job.pending:
                spans.append((request, len(rows), proposal))
                rows += [Row(request, tuple(drafts[:ahead])) for ahead in range(len(drafts) + 1)]
                places += range(place, place + len(drafts) + 1)
            place += 1 + len(drafts)
        logits = self.runner.forward(pieces)
        with self._lock:
            self.scheduler.computed(step)
            self._count(step)
        if not rows:
            return
        with torch.inference_mode():
            found = self._chosen(logits if len(places) == place else logits[places], rows, spans)
        for (request, _, proposal), chosen in zip(spans, found, strict=True):
            for choice in chosen:
                if not request.ended:
                    self._take(request, choice)
            if proposal is not None and proposal.tokens:
                request.trust.learn(len(chosen) - 1)
                with self._lock:
                    self._totals["proposed"] += len(proposal.tokens)
                    self._totals["accepted"] += len(chosen) - 1
                    request.held += 0 if request.ended else len(chosen) - 1  # what was taken stands in the slot already

    def _proposals(self, step: Step) -> dict[Job, Proposal]:
        """For requests that write: tokens that may come next."""
        assert self.speculation is not None
        found: dict[Job, Proposal] = {}
        others, most = [], []
        for job, count in step.work:
            request = cast(_Request, job)
            if job.pending != 1 or count != 1 or request.chooser.matcher is not None or not request.trust.asks():
                continue
            room = min(request.limit + request.chooser.past.prompt - 1, self.runner.length) - len(job.ids)
            tokens = looked_up(request.chooser.past.all(), self.speculation.match, min(self.speculation.lookup, room))
            if tokens:
                found[job] = Proposal(tokens)
            elif self.drafter is not None and (room := min(room, self.drafter.runner.length - len(job.ids))) > 0:
                others.append(request)
                most.append(min(self.speculation.draft, room))
        if others and self.drafter is not None:
            with torch.inference_mode():
                found.update(zip(others, self.drafter.proposals(others, most), strict=True))
        return found

    def _chosen(
        self, logits: torch.Tensor, rows: list[Row], spans: list[tuple[_Request, int, Proposal | None]]
    ) -> list[list[Chosen]]:
        """For each request (with its first row and what was proposed to it) the tokens that come."""
        drawn = [
            number for _, first, proposal in spans if proposal is not None and proposal.shares is not None
            for number in range(first, first + len(proposal.tokens) + 1)
        ]  # fmt: skip
        plain = sorted({*range(len(rows))}.difference(drawn))
        tokens = dict(zip(plain, self.choice.tokens(logits[plain] if drawn else logits, [rows[n] for n in plain]), strict=True))
        whole, asked = self.choice.shares(logits[drawn], [rows[n] for n in drawn]) if drawn else (logits, {})
        shares = whole.cpu().numpy()
        found: list[list[Chosen]] = []
        for request, first, proposal in spans:
            count = 1 if proposal is None else len(proposal.tokens) + 1
            if proposal is None or proposal.shares is None:
                chosen = [tokens[first]]
                for ahead in range(1, count):
                    if chosen[-1].token != rows[first + count - 1].ahead[ahead - 1]:
                        break
                    chosen.append(tokens[first + ahead])
            else:
                start, place = drawn.index(first), rows[first].place
                accepting = [request.accepting[place + ahead] for ahead in range(count)]
                chances = [request.chooser.chances[place + ahead] for ahead in range(count)]
                given = accepted(shares[start : start + count], proposal, accepting, chances)
                chosen = [told(token, rows[first + ahead], asked.get(start + ahead)) for ahead, token in enumerate(given)]
            found.append(chosen)
        return found

    def _take(self, request: _Request, chosen: Chosen) -> None:
        """A token was chosen: it goes out, and perhaps it is the last."""
        if chosen.error is not None:
            self._break_off(request, chosen.error)
            return
        if chosen.token in self._ends:
            self._end(request, "stop")
            return
        matcher = request.chooser.matcher
        if matcher is not None:
            try:
                matcher.advance(chosen.token)
            except UsageError as error:
                self._break_off(request, error)
                return
        with self._lock:
            request.ids.append(chosen.token)
            self._totals["generated"] += 1
        text, stopped = request.text.push(chosen.token)
        self._tell(request, ReplyEvent(text, chosen.token, logprob=chosen.logprob, alternatives=chosen.alternatives))
        if stopped:
            self._end(request, "stop", flush=False)
        elif matcher is not None and matcher.finished:
            self._end(request, "stop")
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
            self._break_off(cast(_Request, job), error)

    def _break_off(self, request: _Request, error: Exception) -> None:
        if not request.ended:
            request.error = error
            self._totals["failed"] += 1
            self._end(request, "error", flush=False, keep=False)

    def _count(self, step: Step) -> None:
        self._totals["steps"] += 1
        for job, _ in step.work:
            request = cast(_Request, job)
            if not request.started:
                request.started = True
                self._totals["prompt"] += request.chooser.past.prompt
                self._totals["prefix_hits"] += request.shared
