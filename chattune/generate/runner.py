"""Runners: what computes logits for the engine. A runner has slots, each of which holds the tokens of one request.

`TorchRunner` takes any family through `LanguageModel.hidden` and its cache: it is the fallback of every faster runner, and the oracle
in their tests. Work is grouped so that a step takes few passes over the weights and computes little padding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from chattune.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.models.language_model import Cache, LanguageModel

NUMBERS = ("float32", "bfloat16", "int8", "int4")  # that weights can be kept in
_PASS = 8  # tokens whose computing costs about as much as one more pass over the weights
_FITTING = 0.7  # pieces go through together with those of at least this share of the longest one's length
_THINNED = 0.75  # of rows that began together so many are left before the others are cut off: copying costs


@dataclass(frozen=True, slots=True)
class Piece:
    """Work for one slot: `ids` continue what the slot holds from `start` on (what stood there beyond is forgotten).

    `every`: logits after each of `ids`, not only after the last (to verify drafts).
    """

    slot: int
    start: int
    ids: Sequence[int]
    every: bool = False


class Runner(Protocol):
    """Computes logits. Used from one thread at a time.

    `slots`: requests side by side; `length`: tokens that a slot can hold; `rewinds`: a slot may go on from any earlier place
    (attention); where not (recurrence) it goes on from where it stands, or from 0. `joins`: slots of any age are computed together;
    where not, those that began together are, so that requests had better come in waves, and a slot begins every request at 0.
    `why`: a sentence that says which runner it is and why not a faster one.
    """

    slots: int
    length: int
    vocabulary: int
    rewinds: bool
    joins: bool
    why: str

    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        """(n, vocabulary) float32, for each piece in order 1 row, or where `every` is set one for each of its ids."""
        ...

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Let slot `target` hold the first `tokens` of slot `source`; only where the runner rewinds."""
        ...


def runner_for(
    model: LanguageModel, *, slots: int, length: int, weights: str = "auto", native: bool | Literal["auto"] = "auto"
) -> Runner:
    """The fastest runner for this model on this machine.

    `weights`: the numbers that matrices are kept in; ``"own"``: the model's own, by PyTorch; ``"auto"``: int8 where the compiled step
    can run the model (it costs less than 0.005 nats a token; int4 is faster and costs less than 0.03), else bfloat16 where that was
    measured to be faster here, else float32. Where only PyTorch can run it, weights are rounded as asked, and stored so only in
    bfloat16 on a processor that multiplies it fast. `native`: whether the compiled step is taken: where it can be, always
    (`UsageError` where it cannot), or never.
    """
    check_weights(model, weights)
    reason: str | None = "native=False was asked for"
    if weights == "own":
        reason = "the model's own numbers were asked for"
    elif native:
        from chattune.generate.native.runner import native_reason, native_runner

        reason = native_reason(model)
        if reason is None or native is True:
            chosen = "int8" if weights == "auto" else weights
            runner: Runner = native_runner(model, slots=slots, length=length, weights=chosen)  # type: ignore[arg-type]
            runner.why = f"the compiled step, with weights in {chosen}"
            return runner
    from chattune.generate.layouts import laid_out

    if weights != "own":
        model, weights = _rounded(model, weights)
    laid, head = laid_out(model)
    runner = TorchRunner(laid, slots=slots, length=length, head=head)
    stored = str(model.dtype).removeprefix("torch.")
    rounded = f" rounded to {weights}" if weights not in ("own", stored) else ""
    runner.why = f"PyTorch, with weights in {stored}{rounded}: {reason}"
    return runner


def check_weights(model: LanguageModel, weights: str) -> None:
    """Refuse (`UsageError`) numbers that nothing is kept in, and those that this model's weights are not."""
    if weights not in ("auto", "own", *NUMBERS):
        raise UsageError(
            f"weights cannot be kept in '{weights}'.", path="weights", value=weights, rule=f"auto, own, {', '.join(NUMBERS)}",
            hint=did_you_mean(weights, NUMBERS),
        )  # fmt: skip
    if weights in ("int8", "int4"):
        from chattune.models.families._gpt import GPTModel

        if not isinstance(model, GPTModel):
            raise UsageError(
                f"the {model.family.name} family has no weights in {weights}.", path="weights", value=weights,
                rule="float32 or bfloat16, and int8 or int4 for the gpt family", hint="Leave weights open.",
            )  # fmt: skip


def _rounded(model: LanguageModel, weights: str) -> tuple[LanguageModel, str]:
    """The model with matrices rounded to what `weights` can hold, and what that is; a copy, where they are not its own."""
    import torch

    from chattune.generate.layouts import bfloat16_is_faster

    processor = model.device.type == "cpu"
    if weights == "auto":
        weights = str(model.dtype).removeprefix("torch.")
        if processor and weights == "float32" and bfloat16_is_faster():
            weights = "bfloat16"
    if weights == "bfloat16" and processor and not bfloat16_is_faster():
        short = model if model.dtype == torch.bfloat16 else copy.deepcopy(model).to(torch.bfloat16)
        return copy.deepcopy(short).float(), weights  # the same weights, and products in numbers that this processor multiplies fast
    if weights not in ("int8", "int4"):
        dtype = getattr(torch, weights)
        return model if model.dtype == dtype else copy.deepcopy(model).to(dtype), weights
    from chattune.generate.native.packing import dequantised

    return dequantised(model, weights), weights  # type: ignore[arg-type]


class TorchRunner:
    """Any family, by PyTorch, in the numbers that the model has. `head`: instead of the model's own."""

    why = "PyTorch"

    def __init__(
        self, model: LanguageModel, *, slots: int, length: int, head: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        import torch

        self.model, self.slots, self.length, self.vocabulary = model.eval(), slots, length, model.vocabulary
        self._head = head or model.head
        with torch.inference_mode():
            cache = model.new_cache(1, length)
            self.rewinds, self.joins = cache.rewinds, cache.joins
            self._memory: _Block | _Cohorts = _Block(model, model.new_cache(slots, length)) if self.joins else _Cohorts(model, length)

    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        import torch

        with torch.inference_mode():
            found: list[Tensor] = [torch.empty(0)] * len(pieces)
            for group in self._memory.groups(pieces):
                hidden = self._memory.hidden([pieces[number] for number in group])
                if len(group) == len(pieces) and hidden.shape[1] == 1:
                    found = [hidden[:, 0]] if group == sorted(group) else [hidden[row] for row in _inverse(group)]
                    break
                for row, number in enumerate(group):
                    length = len(pieces[number].ids)
                    found[number] = hidden[row, 0 if pieces[number].every else length - 1 : length]
            return self._head(found[0] if len(found) == 1 else torch.cat(found)).float()

    def copy(self, source: int, target: int, tokens: int) -> None:
        import torch

        assert isinstance(self._memory, _Block)
        with torch.inference_mode():
            self._memory.cache.copy_row(source, target, tokens)


class _Block:
    """All slots as the rows of one cache."""

    def __init__(self, model: LanguageModel, cache: Cache) -> None:
        self.model, self.cache = model, cache

    def groups(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Numbers of pieces to compute together, in the order of their slots: the fewer a pass has, the more passes there are."""
        order = sorted(range(len(pieces)), key=lambda number: -len(pieces[number].ids))
        groups: list[list[int]] = []
        longest = latest = 0
        for number in order:
            length, start = len(pieces[number].ids), pieces[number].start
            fits = bool(groups) and (longest - length <= _PASS or length >= _FITTING * longest)
            if fits and max(latest, start) + longest <= self.cache.length:
                latest = max(latest, start)
                groups[-1].append(number)
            else:
                longest, latest = length, start
                groups.append([number])
        return [sorted(group, key=lambda number: pieces[number].slot) for group in groups]

    def hidden(self, pieces: list[Piece]) -> Tensor:
        """(rows, time, width) after each id, padded on the right."""
        slots = [piece.slot for piece in pieces]
        part = self.cache.at(slots, [piece.start for piece in pieces])
        hidden = _through(self.model, pieces, part)
        self.cache.put(slots, part)
        return hidden


class _Cohorts:
    """A cache for each set of requests that began together; for caches whose rows cannot be taken apart."""

    def __init__(self, model: LanguageModel, length: int) -> None:
        self.model, self.length = model, length
        self.cohorts: list[tuple[list[int], Cache]] = []  # slots, in the order of the cache's rows

    def groups(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Numbers of pieces by cohort; those that begin are a new one."""
        begin = [number for number, piece in enumerate(pieces) if piece.start == 0]
        again = {pieces[number].slot for number in begin}
        place = {piece.slot: number for number, piece in enumerate(pieces)}
        found = [[place[slot] for slot in slots if slot in place and slot not in again] for slots, _ in self.cohorts]
        self.cohorts = [cohort for cohort, group in zip(self.cohorts, found, strict=True) if group]
        if begin:
            slots = [pieces[number].slot for number in begin]
            self.cohorts.append((slots, self.model.new_cache(len(slots), self.length)))
        return [*(group for group in found if group), *([begin] if begin else [])]

    def hidden(self, pieces: list[Piece]) -> Tensor:
        """(rows, time, width) after each id, padded on the right. Rows of the cohort that are not among the pieces have ended."""
        import torch

        own = {piece.slot for piece in pieces}
        number = next(n for n, (slots, _) in reversed([*enumerate(self.cohorts)]) if own <= {*slots})
        slots, cache = self.cohorts[number]
        ended = len(pieces) < len(slots)
        if ended and (len(pieces) <= _THINNED * len(slots) or not cache.pads):
            kept = [row for row, slot in enumerate(slots) if slot in own]
            cache.select(torch.tensor(kept, device=self.model.device))
            slots, ended = [slots[row] for row in kept], False
            self.cohorts[number] = (slots, cache)
        if not ended:
            return _through(self.model, pieces, cache)
        by_slot = {piece.slot: piece for piece in pieces}
        hidden = _through(self.model, [by_slot.get(slot, Piece(slot, 0, ())) for slot in slots], cache)
        return hidden[[row for row, slot in enumerate(slots) if slot in own]]


def _through(model: LanguageModel, pieces: list[Piece], cache: Cache) -> Tensor:
    import torch

    lengths = [len(piece.ids) for piece in pieces]
    longest = max(lengths)
    padded = [[*piece.ids, *[0] * (longest - len(piece.ids))] for piece in pieces]
    segments = None
    if min(lengths) < longest:
        real = torch.arange(longest) < torch.tensor(lengths)[:, None]
        segments = (real.long() - 1).to(model.device)
    return model.hidden(torch.tensor(padded, device=model.device), segments=segments, cache=cache)


def _inverse(order: list[int]) -> list[int]:
    places = [0] * len(order)
    for place, number in enumerate(order):
        places[number] = place
    return places
