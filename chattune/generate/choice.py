"""From logits to tokens: masks, rules and draws of many requests at once.

Rows with equal rules are adjusted together. The usual settings on the processor go a shorter way, row by row in NumPy and over
likely tokens only, which gives the same tokens: at 400 µs a step of a small model the rules would take longer than the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from chattune.core.errors import DivergenceError, UsageError
from chattune.core.seeds import generator
from chattune.generate.reply import Sampling, drawn_at
from chattune.generate.rules import Rule
from chattune.generate.rules.temperature import Temperature

if TYPE_CHECKING:
    from chattune.generate.grammar import Matcher

_AT_ONCE = 64  # random numbers drawn together; a stream gives the same ones however it is cut
_UNLIKELY = -14.0  # logits that lie further below the largest are looked at only where the others do not suffice
# Settings that the short way knows; with others, rules are applied one after the other.
_KNOWN = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"}


class Chances:
    """Uniform numbers from 0 to below 1, one for each token of a reply, from the stream that is the reply's own."""

    def __init__(self, seed: int, prompt: Sequence[int], number: int = 0, name: str = "reply") -> None:
        self._random = generator(seed, name if number == 0 else f"{name} {number}", *prompt)
        self._known: list[float] = []

    def __getitem__(self, place: int) -> float:
        while place >= len(self._known):
            self._known += self._random.random(_AT_ONCE).tolist()
        return self._known[place]


class Past:
    """The ids of a request as an array, which grows with it, and the different ones among them."""

    def __init__(self, ids: list[int], prompt: int) -> None:
        self.prompt = prompt
        self._ids, self._array, self._count = ids, np.empty(2 * len(ids) + 64, dtype=np.int64), 0
        self._different, self._known, self._seen = np.empty(0, dtype=np.int64), 0, set[int]()

    def all(self) -> np.ndarray:
        """(n,) prompt and reply so far."""
        ids = self._ids
        if len(ids) > len(self._array):
            self._array = np.concatenate([self._array, np.empty(len(ids), dtype=np.int64)])
        if self._count < len(ids):
            self._array[self._count : len(ids)] = ids[self._count :]
            self._count = len(ids)
        return self._array[: self._count]

    def different(self) -> np.ndarray:
        """Each id of prompt and reply once."""
        fresh = set(self._ids[self._known :]) - self._seen
        if fresh:
            self._seen |= fresh
            self._different = np.concatenate([self._different, np.fromiter(fresh, np.int64, len(fresh))])
        self._known = len(self._ids)
        return self._different


@dataclass(frozen=True)
class Short:
    """The short way: repetition penalty, temperature, top-k, top-p and min-p of one row, and the draw."""

    penalty: float
    temperature: float
    k: int
    p: float
    least: float

    @classmethod
    def of(cls, sampling: Sampling, rules: Sequence[Rule]) -> Short | None:
        """None where other rules take part."""
        if any(rule.name not in _KNOWN for rule in rules) or sampling.rules:
            return None
        return cls(sampling.repetition_penalty, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)

    def token(self, row: np.ndarray, said: np.ndarray, chance: float) -> int:
        """The token that `chance` draws; `row`: (vocabulary,) float32 logits, which are changed; `said`: ids that are penalised."""
        if self.penalty != 1.0:
            before = row[said]
            row[said] = np.where(before > 0, before / self.penalty, before * self.penalty)
        if self.temperature == 0.0:
            return int(row.argmax())
        row -= row.max()
        row /= self.temperature
        ids, shares = self._candidates(row)
        running = shares.cumsum()
        place = running.searchsorted(min(chance, 1 - 1e-12) * running[-1], side="right")
        return int(place if ids is None else ids[place])

    def _candidates(self, row: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Ids that can be drawn, none standing for all, and their probabilities times some number. The largest of `row` is 0."""
        if self.k == 0 and self.p == 1.0:
            if self.least == 0.0:
                return None, np.exp(row, dtype=np.float64)
            ids = np.flatnonzero(row >= math.log(self.least))
            return ids, np.exp(row[ids], dtype=np.float64)
        ids = np.flatnonzero(row > _UNLIKELY)
        if 0 < self.k < len(row):
            if len(ids) < self.k:
                ids = np.arange(len(row))
            near = row[ids]
            ids = ids[near >= np.partition(near, len(near) - self.k)[len(near) - self.k]]
            shares = np.exp(row[ids], dtype=np.float64)
            whole = float(shares.sum())
        else:
            shares = np.exp(row[ids], dtype=np.float64)
            whole = float(np.exp(row).sum(dtype=np.float64))
            if shares.sum() < self.p * whole:
                ids, shares = np.arange(len(row)), np.exp(row, dtype=np.float64)
        if self.p < 1.0:
            ordered = np.sort(shares)[::-1]
            # As many as are needed for the share: those before which the others do not suffice.
            count = int((ordered.cumsum() - ordered).searchsorted(self.p * whole))
            kept = shares >= ordered[max(count, 1) - 1]
            ids, shares = ids[kept], shares[kept]
        if self.least > 0.0:
            kept = row[ids] >= math.log(self.least)
            ids, shares = ids[kept], shares[kept]
        return ids, shares


class Style:
    """Rules that some requests share. Where the likeliest token is asked for, rules that would keep it are not computed."""

    def __init__(self, sampling: Sampling) -> None:
        self.rules = sampling.in_order()
        greedy = Temperature(temperature=0.0)
        self.greedy = greedy in self.rules and not sampling.rules
        self.computed = self.rules[: self.rules.index(greedy)] if self.greedy else self.rules
        self.looks_back = any(rule.counts_prompt for rule in self.computed)
        self.looks_at_reply = any(not rule.counts_prompt for rule in self.computed)
        self.short = Short.of(sampling, self.computed)


@dataclass(eq=False, slots=True)
class Chooser:
    """What one request needs to choose its tokens. `matcher`: where its reply follows a grammar."""

    style: Style
    chances: Chances
    past: Past
    min_tokens: int = 0
    logprobs: int | None = None
    matcher: Matcher | None = None


class Asking(Protocol):
    """A request as it is seen here: prompt and reply so far."""

    ids: list[int]
    chooser: Chooser


@dataclass(slots=True)
class Row:
    """One row of logits: of whom, the drafts that come before it, and what is wrong with it."""

    request: Asking
    ahead: tuple[int, ...] = ()
    error: Exception | None = None

    @property
    def place(self) -> int:
        """Number of the token in its reply."""
        return len(self.request.ids) + len(self.ahead) - self.request.chooser.past.prompt


@dataclass(slots=True)
class Chosen:
    """A token, and what was asked for about it; or why there is none."""

    token: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    error: Exception | None = None


@dataclass(frozen=True)
class Choice:
    """Chooses. `never`: ids that no reply may hold; `ends`: those that end it."""

    never: np.ndarray
    ends: np.ndarray
    _there: dict[torch.device, Tensor] = field(default_factory=dict)

    def tokens(self, logits: Tensor, rows: Sequence[Row]) -> list[Chosen]:
        """The next token of each row. `logits`: (rows, vocabulary) float32, which are changed."""
        self._masked(logits, rows)
        plain = _plain(logits, rows)
        self._held_open(logits, rows)
        found, left = [0] * len(rows), []
        values = logits.numpy() if logits.device.type == "cpu" else None
        for number, row in enumerate(rows):
            chooser = row.request.chooser
            if values is None or (short := chooser.style.short) is None:
                left.append(number)
                continue
            said = chooser.past.different() if short.penalty != 1.0 else _NOTHING
            if row.ahead and short.penalty != 1.0:
                said = np.concatenate([said, np.array(row.ahead)])
            chance = 0.0 if short.temperature == 0.0 else chooser.chances[row.place]
            found[number] = short.token(values[number], said, chance)
        if left:
            mine = logits if len(left) == len(rows) else logits[left]
            for number, token in zip(left, _by_rules(mine, [rows[number] for number in left]), strict=True):
                found[number] = token
        return [told(token, row, plain.get(number)) for number, (token, row) in enumerate(zip(found, rows, strict=True))]

    def shares(self, logits: Tensor, rows: Sequence[Row]) -> tuple[Tensor, dict[int, Tensor]]:
        """(rows, vocabulary) float64: with what probability each token would be drawn; and log-probabilities for rows that are asked
        about, as `told` takes them. `logits` are changed."""
        self._masked(logits, rows)
        plain = _plain(logits, rows)
        self._held_open(logits, rows)
        return _ruled(logits, rows).double().softmax(-1), plain

    def _masked(self, logits: Tensor, rows: Sequence[Row]) -> None:
        """Leave out what no reply may hold. A row that is no distribution is told of, and does not stop the others."""
        if logits.device.type == "cpu":
            logits.numpy()[:, self.never] = -np.inf
        else:
            if logits.device not in self._there:
                self._there[logits.device] = torch.from_numpy(self.never).to(logits.device)
            logits.index_fill_(1, self._there[logits.device], -torch.inf)
        for number, top in enumerate(logits.amax(-1).tolist()):
            if not math.isfinite(top):
                logits[number] = 0.0
                rows[number].error = DivergenceError(
                    "the model's logits are not finite.", value=top, rule="finite numbers", hint="Are its weights damaged?"
                )

    def _held_open(self, logits: Tensor, rows: Sequence[Row]) -> None:
        """Leave out ends before the least number of tokens, and what the grammar does not allow."""
        for number, row in enumerate(rows):
            chooser = row.request.chooser
            if row.place < chooser.min_tokens:
                logits[number, torch.from_numpy(self.ends)] = -torch.inf
            if chooser.matcher is not None:
                try:
                    chooser.matcher.mask(logits[number])
                except UsageError as error:
                    row.error = error  # of this request alone


_NOTHING = np.empty(0, dtype=np.int64)


def _plain(logits: Tensor, rows: Sequence[Row]) -> dict[int, Tensor]:
    """(vocabulary,) log-probabilities of the model's own distribution, for rows that are asked about."""
    asked = [number for number, row in enumerate(rows) if row.request.chooser.logprobs is not None]
    return dict(zip(asked, logits[asked].log_softmax(-1), strict=True)) if asked else {}


def told(token: int, row: Row, plain: Tensor | None) -> Chosen:
    """The token with what its row was asked about; `plain`: (vocabulary,) log-probabilities."""
    if plain is None:
        return Chosen(token, error=row.error)
    found = plain.topk(min(row.request.chooser.logprobs or 0, plain.shape[-1]))
    likeliest = tuple(zip(found.indices.tolist(), found.values.tolist(), strict=True))
    return Chosen(token, float(plain[token]), likeliest, row.error)


def _by_rules(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """The next token of each row, by its rules one after the other."""
    adjusted = _ruled(logits, rows)
    likeliest = adjusted.argmax(-1)
    chances = [0.0 if row.request.chooser.style.greedy else row.request.chooser.chances[row.place] for row in rows]
    drawn = drawn_at(adjusted, torch.tensor(chances, dtype=torch.float64, device=logits.device))
    greedy = torch.tensor([row.request.chooser.style.greedy for row in rows], device=logits.device)
    return torch.where(greedy, likeliest, drawn).tolist()


def _ruled(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """(rows, vocabulary): each style's rules applied to its rows together."""
    styles: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        styles.setdefault(id(row.request.chooser.style), []).append(number)
    for own in styles.values():
        style = rows[own[0]].request.chooser.style
        some, all_of_them = [rows[number] for number in own], len(own) == len(rows)
        mine = logits if all_of_them else logits[own]
        history = _history(some, logits.device) if style.looks_back else None
        said = _history(some, logits.device, reply=True) if style.looks_at_reply else None
        for rule in style.computed:
            past = history if rule.counts_prompt else said
            assert past is not None
            mine = rule.adjust(mine, past)
        if all_of_them:
            return mine
        logits[own] = mine
    return logits


def _history(rows: Sequence[Row], device: torch.device, reply: bool = False) -> Tensor:
    """(rows, time) prompt and reply, or the reply alone, padded with −1."""
    told = [row.request.chooser.past.all()[row.request.chooser.past.prompt if reply else 0 :] for row in rows]
    history = np.full((len(rows), max(len(ids) + len(row.ahead) for ids, row in zip(told, rows, strict=True))), -1, dtype=np.int64)
    for number, (ids, row) in enumerate(zip(told, rows, strict=True)):
        history[number, : len(ids)] = ids
        history[number, len(ids) : len(ids) + len(row.ahead)] = row.ahead
    return torch.from_numpy(history).to(device)
