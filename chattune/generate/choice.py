"""From logits to tokens: masks, rules and draws of many requests at once. Rows with equal rules are adjusted together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from chattune.core.seeds import generator
from chattune.generate.reply import Sampling, drawn_at
from chattune.generate.rules import Rule
from chattune.generate.rules.temperature import Temperature

if TYPE_CHECKING:
    from chattune.generate.grammar import Matcher

_AT_ONCE = 64  # random numbers drawn together; a stream gives the same ones however it is cut


class Chances:
    """Uniform numbers from 0 to below 1, one for each token of a reply, from the stream that is the reply's own."""

    def __init__(self, seed: int, prompt: Sequence[int], number: int = 0, name: str = "reply") -> None:
        self._random = generator(seed, name if number == 0 else f"{name} {number}", *prompt)
        self._known: list[float] = []

    def __getitem__(self, place: int) -> float:
        while place >= len(self._known):
            self._known += self._random.random(_AT_ONCE).tolist()
        return self._known[place]


class Style:
    """Rules that some requests share. Where the likeliest token is asked for, rules that would keep it are not computed."""

    def __init__(self, sampling: Sampling) -> None:
        self.rules = sampling.in_order()
        self.greedy = Temperature(temperature=0.0) in self.rules and not sampling.rules
        self.computed = self.rules[: self.rules.index(Temperature(temperature=0.0))] if self.greedy else self.rules
        self.looks_back = any(rule.counts_prompt for rule in self.computed)
        self.looks_at_reply = any(not rule.counts_prompt for rule in self.computed)


@dataclass(eq=False, slots=True)
class Chooser:
    """What one request needs to choose its tokens. `prompt`: number of its tokens; `matcher`: where its reply follows a grammar."""

    style: Style
    chances: Chances
    prompt: int
    min_tokens: int = 0
    logprobs: int | None = None
    matcher: Matcher | None = None


class Asking(Protocol):
    """A request as it is seen here: prompt and reply so far."""

    ids: list[int]

    @property
    def chooser(self) -> Chooser: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One row of logits: of whom, and the drafts that come before it."""

    request: Asking
    ahead: tuple[int, ...] = ()

    @property
    def place(self) -> int:
        """Number of the token in its reply."""
        return len(self.request.ids) + len(self.ahead) - self.request.chooser.prompt


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token, and what was asked for about it."""

    token: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Choice:
    """Chooses. `never`: ids that no reply may hold; `ends`: those that end it."""

    never: Sequence[int]
    ends: Sequence[int]
    _index: dict[str, Tensor] = field(default_factory=dict)

    def tokens(self, logits: Tensor, rows: Sequence[Row]) -> list[Chosen]:
        """The next token of each row. `logits`: (rows, vocabulary) float32, which are changed."""
        plain = self._plain(logits, rows)
        adjusted = self.adjusted(logits, rows)
        tokens: list[int] = [0] * len(rows)
        for style, own in _by_style(rows):
            mine = adjusted if len(own) == len(rows) else adjusted[own]
            if style.greedy:
                found = mine.argmax(-1)
            else:
                chances = [rows[number].request.chooser.chances[rows[number].place] for number in own]
                found = drawn_at(mine, torch.tensor(chances, dtype=torch.float64, device=mine.device))
            for number, token in zip(own, found.tolist(), strict=True):
                tokens[number] = token
        return [self._told(token, row, plain.get(number)) for number, (token, row) in enumerate(zip(tokens, rows, strict=True))]

    def adjusted(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """The same after masks and rules; `logits` are changed."""
        if self.never:
            logits.index_fill_(1, self._ids("never", self.never, logits.device), -torch.inf)
        early = [number for number, row in enumerate(rows) if row.place < row.request.chooser.min_tokens]
        if early:
            logits[torch.tensor(early)[:, None], torch.tensor(self.ends)[None]] = -torch.inf
        for number, row in enumerate(rows):
            if (matcher := row.request.chooser.matcher) is not None:
                matcher.mask(logits[number])
        for style, own in _by_style(rows):
            if not style.computed:
                continue
            mine = logits if len(own) == len(rows) else logits[own]
            history = _history([rows[number] for number in own], mine.device) if style.looks_back else None
            said = _history([rows[number] for number in own], mine.device, reply=True) if style.looks_at_reply else None
            mine = _ruled(style.computed, mine, history, said)
            if len(own) == len(rows):
                return mine
            logits[own] = mine
        return logits

    def _plain(self, logits: Tensor, rows: Sequence[Row]) -> dict[int, Tensor]:
        """(vocabulary,) log-probabilities of the model's own distribution, for rows that are asked about."""
        asked = [number for number, row in enumerate(rows) if row.request.chooser.logprobs is not None]
        if not asked:
            return {}
        own = logits[asked]
        own[:, list(self.never)] = -torch.inf
        return dict(zip(asked, own.log_softmax(-1), strict=True))

    def _told(self, token: int, row: Row, plain: Tensor | None) -> Chosen:
        if plain is None:
            return Chosen(token)
        found = plain.topk(min(row.request.chooser.logprobs or 0, plain.shape[-1]))
        likeliest = tuple(zip(found.indices.tolist(), found.values.tolist(), strict=True))
        return Chosen(token, float(plain[token]), likeliest)

    def _ids(self, name: str, ids: Sequence[int], device: torch.device) -> Tensor:
        if name not in self._index:
            self._index[name] = torch.tensor(list(ids), device=device)
        return self._index[name]


def _ruled(rules: Sequence[Rule], logits: Tensor, history: Tensor | None, said: Tensor | None) -> Tensor:
    for rule in rules:
        past = history if rule.counts_prompt else said
        assert past is not None
        logits = rule.adjust(logits, past)
    return logits


def _by_style(rows: Sequence[Row]) -> list[tuple[Style, list[int]]]:
    """Numbers of the rows of each style."""
    found: dict[int, tuple[Style, list[int]]] = {}
    for number, row in enumerate(rows):
        style = row.request.chooser.style
        found.setdefault(id(style), (style, []))[1].append(number)
    return list(found.values())


def _history(rows: Sequence[Row], device: torch.device, reply: bool = False) -> Tensor:
    """(rows, time) prompt and reply, or the reply alone, padded with −1."""
    told = [[*row.request.ids[row.request.chooser.prompt if reply else 0 :], *row.ahead] for row in rows]
    history = np.full((len(rows), max(map(len, told))), -1, dtype=np.int64)
    for number, ids in enumerate(told):
        history[number, : len(ids)] = ids
    return torch.from_numpy(history).to(device)
