"""Several models on the same test conversations: bits per byte beside one another, paired differences, and what each one cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chattune.core.errors import UsageError
from chattune.evaluate import bootstrap
from chattune.evaluate.loss import SplitLoss

PAGE = Path(__file__).with_name("compare.html")
EQUAL = 0.01  # share by which numbers of tokens may differ and still count as equal
Array = np.ndarray


@dataclass(frozen=True)
class Contender:
    """One model to compare: what it is called, its `family`, its loss on each test conversation, and its `costs`.

    `test`: a digest of the test conversations. `costs`, as far as they are known: ``parameters``, ``operations`` (of a token's forward
    pass), ``tokens`` (seen in training), ``tokens_per_second``, ``memory_bytes`` and ``train_seconds``.
    """

    name: str
    family: str
    test: str
    loss: SplitLoss
    costs: Mapping[str, float]


def compare(contenders: Sequence[Contender], seed: int = 0) -> dict[str, Any]:
    """``{"test", "runs", "capacity"}``: a row a model, in the order given; the first is what the others are compared with.

    Each row has ``bits_per_byte`` and ``difference`` (to the first; on the same conversations, so what makes one of them hard cancels
    out), both with 95 % intervals over conversations, and the `costs`. Raises `UsageError` unless all were judged on the same text.
    """
    first = contenders[0]
    for other in contenders[1:]:
        _refuse_another_test(first, other)
    rows = [
        {
            "name": each.name, "family": each.family, "bits_per_byte": _scored(each.loss.nll, each.loss.bytes, seed),
            "difference": None if each is first else _scored(each.loss.nll - first.loss.nll, first.loss.bytes, seed), **each.costs,
        }
        for each in contenders
    ]  # fmt: skip
    return {
        "test": {"digest": first.test, "conversations": len(first.loss.bytes), "bytes": int(first.loss.bytes.sum())},
        "runs": rows,
        "capacity": capacity(contenders, seed),
    }


def capacity(contenders: Sequence[Contender], seed: int = 0) -> dict[str, Any] | None:
    """Which size suits the tokens, where at least three models of one family, each of another size, saw equally many; else none.

    A parabola of bits per byte over the logarithm of the parameters, fitted to each resample of the conversations: ``best`` is its
    lowest point with a 95 % interval, held within the sizes that were measured; ``edge`` tells where it lies at their end, so that
    the best size may be beyond ("smaller", "larger"). Source: the IsoFLOP profiles of Hoffmann et al. 2022, arXiv:2203.15556.
    """
    sizes = {each.costs.get("parameters", 0) for each in contenders}
    seen = [each.costs.get("tokens", 0) for each in contenders]
    one_family, one_a_size = len({each.family for each in contenders}) == 1, len(sizes) == len(contenders) >= 3
    if not (one_family and one_a_size and min(seen) > 0 and max(seen) <= (1 + EQUAL) * min(seen)):
        return None
    places = np.log([each.costs["parameters"] for each in contenders])
    sums = np.stack([each.loss.nll / math.log(2) for each in contenders] + [contenders[0].loss.bytes.astype(np.float64)], axis=1)
    low, high = places.min(), places.max()

    def lowest(totals: Array) -> Array:
        bits = totals[:, :-1] / totals[:, -1:]
        bend, slope, _ = np.polyfit(places - low, bits.T, 2)
        ends = np.where(bits[:, places.argmin()] <= bits[:, places.argmax()], 0.0, high - low)
        with np.errstate(divide="ignore", invalid="ignore"):
            bottom = np.where(bend > 0, -slope / (2 * bend), ends)  # no lowest point within: the better end
        found: Array = low + np.clip(bottom, 0.0, high - low)
        return found

    value, least, most = (float(x) for x in bootstrap.interval(sums, lowest, seed))
    margin = 0.01 * (high - low)
    edge = "smaller" if value <= low + margin else "larger" if value >= high - margin else None
    return {
        "family": contenders[0].family, "tokens": float(np.mean(seen)), "edge": edge,
        "best": {"value": math.exp(value), "low": math.exp(least), "high": math.exp(most)},
    }  # fmt: skip


def advice(found: Mapping[str, Any] | None) -> str | None:
    """What `capacity` says, as a sentence."""
    if found is None:
        return None
    best, tokens = found["best"], f"{found['tokens']:,.0f} tokens"
    if found["edge"] == "larger":
        return f"With {tokens}, the largest of these sizes is the best: capacity is the limit here, a larger one may be better."
    if found["edge"] == "smaller":
        return f"With {tokens}, the smallest of these sizes is the best: more tokens, or a smaller model, rather than a larger one."
    return f"With {tokens}, about {_rounded(best['value'])} parameters are best [{_rounded(best['low'])}, {_rounded(best['high'])}]."


def page(compared: Mapping[str, Any]) -> str:
    """The comparison as a page of its own, which loads nothing; its table is one ``<section>``."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows = compared["runs"]
    scale = (min(row["bits_per_byte"]["low"] for row in rows), max(row["bits_per_byte"]["high"] for row in rows))
    width = scale[1] - scale[0] or 1.0
    environment.filters["place"] = lambda value: round(100 * (value - scale[0]) / width, 1)
    return environment.from_string(PAGE.read_text(encoding="utf-8")).render(
        compared=compared, advice=advice(compared["capacity"]), cost=shown
    )


def shown(row: Mapping[str, Any], cost: str) -> str:
    """One cost for people, with its unit; a dash where it is not known."""
    from chattune.core.files import size
    from chattune.core.progress import duration

    value = row.get(cost)
    if value is None:
        return "–"
    if cost == "memory_bytes":
        return size(int(value))
    return duration(value) if cost == "train_seconds" else _rounded(value) if cost == "operations" else f"{value:,.0f}"


def difference_in_words(row: Mapping[str, Any]) -> str:
    """``−0.021 [−0.030, −0.012] better``; level where the interval holds zero."""
    found = row["difference"]
    if found is None:
        return "–"
    said = "better" if found["high"] < 0 else "worse" if found["low"] > 0 else "level"
    return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}] {said}"


def _refuse_another_test(first: Contender, other: Contender) -> None:
    if first.test != other.test:
        raise UsageError(
            f"{other.name} was judged on other test conversations than {first.name}.", path=other.name, value=other.test,
            rule="one test split for all", hint="Train both from one collect run, or evaluate both on it.",
        )
    if not np.array_equal(first.loss.bytes, other.loss.bytes):
        raise UsageError(
            f"{other.name} predicts other turns of the test conversations than {first.name}.", path=other.name,
            value=int(other.loss.bytes.sum()), rule=f"the same {int(first.loss.bytes.sum()):,} bytes",
            hint="Prepare both with one prepare.targets.",
        )


def _scored(nll: Array, lengths: Array, seed: int) -> dict[str, float]:
    found = bootstrap.interval(np.stack((nll / math.log(2), lengths), axis=1), bootstrap.ratio, seed)
    return dict(zip(("value", "low", "high"), found, strict=True))


def _rounded(count: float) -> str:
    """``1.3M``: three digits at most."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"
