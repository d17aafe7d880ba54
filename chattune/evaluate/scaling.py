"""Scaling laws: what more data, or a larger model, would give; fitted to measured losses and checked where nothing was fitted.

L(n) = E + B/n^b for one size, L(N, n) = E + A/N^a + B/n^b for a grid of sizes and data. Others train and judge the cells; here
are the fit, its intervals, a check on the largest cell, and what follows: elasticities, equivalent data, the size that suits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chattune.core.errors import DataError
from chattune.core.seeds import generator
from chattune.evaluate.bootstrap import LEVEL

Array = np.ndarray

HUBER = 1e-2  # residual of ln L from which it counts linearly; why not the 1e-3 of Hoffmann et al. is said in `fit`
TRUSTED = 0.03  # relative error at the largest cell, left out of the fit, up to which a verdict is given
REPEATS = 15.387756  # R* of Muennighoff et al. 2023, appendix A: repetitions after which text has lost 1 − 1/e of its worth
RESAMPLES = 400
LEVELS = 3  # different amounts of data, and sizes, that a curve needs
_STEEPEST = 4.0  # exponents above this are a cliff and no power law
_STARTS = tuple((share, exponent) for share in (0.3, 0.8) for exponent in (0.2, 0.8))  # E as a share of the least loss; a and b


@dataclass(frozen=True)
class Cells:
    """What was measured: one entry a training.

    `data`: (cells,) different training tokens; `losses`: (cells,) nats a token on one test split, of the best checkpoint by
    validation; `parameters`: (cells,) of the model, or none where all have one size. Several seeds are several entries.
    Raises `DataError` where an entry is not finite and positive, or the shapes differ.
    """

    data: Array
    losses: Array
    parameters: Array | None = None

    def __post_init__(self) -> None:
        for name in ("data", "losses", "parameters"):
            if getattr(self, name) is None:
                continue
            values = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, values)
            if values.ndim != 1 or values.shape != self.data.shape:
                raise DataError(
                    f"{name} has the shape {values.shape}, data {self.data.shape}.", path=name, value=list(values.shape),
                    rule="one number for each training", hint="Give as many of each.",
                )  # fmt: skip
            for place in np.flatnonzero(~(np.isfinite(values) & (values > 0)))[:1]:
                raise DataError(
                    f"is {values[place]:g}.", path=f"{name}[{place}]", value=float(values[place]), rule="a finite number above 0",
                    hint="Leave a training out that diverged, or repeat it.",
                )

    def __len__(self) -> int:
        return len(self.data)

    @property
    def unknowns(self) -> int:
        """Numbers that a law of these cells has: 3 for one size, 5 for a grid."""
        return 3 if self.parameters is None else 5

    def only(self, chosen: Array) -> Cells:
        """Those of the mask `chosen`, (cells,) bool."""
        return Cells(self.data[chosen], self.losses[chosen], None if self.parameters is None else self.parameters[chosen])

    def largest(self) -> Array:
        """(cells,) bool: the entries with the most data, in a grid with the largest product of data and parameters."""
        extent = self.data if self.parameters is None else self.data * self.parameters
        place = int(extent.argmax())
        same: Array = self.data == self.data[place]
        if self.parameters is not None:
            same = same & (self.parameters == self.parameters[place])
        return same


@dataclass(frozen=True)
class Law:
    """L = E + A/N^a + B/n^b in nats a token; n: different training tokens, N: parameters. For one size A = a = 0.

    `floor` E, `data_factor` B, `data_exponent` b, `size_factor` A, `size_exponent` a; each a number, or (draws,) for a bootstrap.
    Source: Kaplan et al. 2020, arXiv:2001.08361; in this additive form Hoffmann et al. 2022, arXiv:2203.15556, equation 2.
    """

    floor: Any
    data_factor: Any
    data_exponent: Any
    size_factor: Any = 0.0
    size_exponent: Any = 0.0

    def loss(self, data: Any, parameters: Any = None) -> Any:
        """Nats a token after training on `data` tokens."""
        return self.floor + self._of_size(parameters) + self.data_factor * np.power(data, -self.data_exponent)

    def data_elasticity(self, data: Any) -> Any:
        """−∂L/∂ln n: nats that e times the data would save, at the slope there."""
        return self.data_exponent * self.data_factor * np.power(data, -self.data_exponent)

    def size_elasticity(self, parameters: Any) -> Any:
        """−∂L/∂ln N: nats that e times the parameters would save, at the slope there."""
        return self.size_exponent * self._of_size(parameters)

    def data_for(self, loss: float, parameters: Any = None) -> Any:
        """The tokens at which the law reaches `loss`; infinite where no amount does, 0 where none is needed."""
        left = np.asarray(loss - self.floor - self._of_size(parameters), dtype=np.float64)
        with np.errstate(divide="ignore", over="ignore"):
            reached = np.power(self.data_factor / np.where(left > 0, left, 1.0), 1 / np.asarray(self.data_exponent, np.float64))
        return np.where(left > 0, reached, np.inf)[()]

    def size_for(self, data: float) -> Any:
        """The parameters at which e times the parameters and e times the data would save as much.

        For an amount of computing that grows with N·n this is the best division (Hoffmann et al. 2022, section 3.3).
        """
        wanted = np.asarray(self.data_elasticity(data), np.float64)
        exponent, factor = np.asarray(self.size_exponent, np.float64), np.asarray(self.size_factor, np.float64)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return np.nan_to_num(np.power(exponent * factor / wanted, 1 / exponent), nan=0.0, posinf=np.inf)[()]

    def _of_size(self, parameters: Any) -> Any:
        return 0.0 if parameters is None else self.size_factor * np.power(parameters, -self.size_exponent)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; `outside`: it lies ``"below"`` or ``"above"`` what was measured, so is extrapolated."""

    value: float
    low: float
    high: float
    outside: str | None = None

    def __str__(self) -> str:
        beyond = f", {self.outside} the measured range" if self.outside else ""
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]{beyond}"


@dataclass(frozen=True)
class HeldOut:
    """The largest cell, left out of a fit to all others: its loss as `measured` and as `predicted`, means over its entries.

    `unchanged`: the loss of the largest cell that was left, which somebody would guess who expects nothing of more data.
    """

    data: float
    parameters: float | None
    measured: float
    predicted: float
    unchanged: float

    @property
    def error(self) -> float:
        """(predicted − measured) / measured."""
        return self.predicted / self.measured - 1

    @property
    def unchanged_error(self) -> float:
        """The same for the guess that nothing changes."""
        return self.unchanged / self.measured - 1

    @property
    def trusted(self) -> bool:
        """Whether the error is within 3 %: beyond it no verdict should rest on the law."""
        return abs(self.error) <= TRUSTED


@dataclass(frozen=True)
class Scaling:
    """A law, the laws of its bootstrap (`draws`: its fields are arrays), the cells, and the check."""

    law: Law
    draws: Law
    cells: Cells
    held_out: HeldOut

    def estimate(self, statistic: Callable[[Law], Any]) -> Estimate:
        """Any number that follows from the law, with its 95 % interval over the draws; an interval may end at infinity.

        Percentiles as far out as Student's quantile for so few cells, not the normal one (expanded percentile interval: Hesterberg
        2015, The American Statistician 69:371).
        """
        from scipy.special import ndtr, stdtrit

        value, drawn = float(statistic(self.law)), np.broadcast_to(statistic(self.draws), np.shape(self.draws.floor))
        tail = float(ndtr(stdtrit(len(self.cells) - self.cells.unknowns, (1 - LEVEL) / 2)))
        low, high = np.quantile(drawn, (tail, 1 - tail), method="inverted_cdf")
        return Estimate(value, min(float(low), value), max(float(high), value))

    def equivalent_data(self, loss: float, parameters: float | None = None) -> Estimate:
        """The tokens at which the base reaches `loss`, which a lever reached with fewer: what the lever is worth in data.

        Divided by the tokens that the lever had this is its factor on data. `outside` where no measured cell has so much or so
        little: then it is the law's word alone. `loss` in nats a token on the same test split; needed with a grid: `parameters`.
        """
        _refuse_loss(loss)
        return self._placed(self.estimate(lambda law: law.data_for(loss, parameters)), self.cells.data)

    def recommended_size(self, data: float) -> Estimate:
        """The parameters that suit `data` tokens (see `Law.size_for`). Raises `DataError` for a curve of one size."""
        sizes = self._sizes()
        return self._placed(self.estimate(lambda law: law.size_for(data)), sizes)

    def limit(self, data: float, parameters: float) -> str | None:
        """``"data"`` or ``"size"``: e times as much of it would save more nats than of the other, and the 95 % interval of the
        difference leaves out zero; ``"both"`` where it does not; none where the check failed, so that no verdict is given.
        Raises `DataError` for a curve of one size."""
        self._sizes()
        if not self.held_out.trusted:
            return None
        more = self.estimate(lambda law: law.data_elasticity(data) - law.size_elasticity(parameters))
        return "data" if more.low > 0 else "size" if more.high < 0 else "both"

    def advice(self, data: float, parameters: float) -> str:
        """`limit` and `recommended_size` as a sentence, or why there is none."""
        limit, error = self.limit(data, parameters), self.held_out.error
        if limit is None:
            return (
                f"No verdict: without the largest cell the law misses it by {error:+.1%}, more than {TRUSTED:.0%}. "
                "Measure more cells, or larger ones."
            )
        suits = f"about {self.recommended_size(data)} parameters suit {data:,.0f} tokens"
        word = {
            "data": "data is the limit: more or more varied conversations, or regularisation, before a larger model",
            "size": "capacity is the limit: a larger model before more data", "both": "data and capacity limit alike",
        }[limit]  # fmt: skip
        return f"At {parameters:,.0f} parameters and {data:,.0f} tokens {word}; {suits} (checked within {abs(error):.1%})."

    def _sizes(self) -> Array:
        if self.cells.parameters is None:
            raise DataError(
                "all cells have one size, which says nothing about others.", path="parameters", rule=f"at least {LEVELS} sizes",
                hint="Measure a grid of sizes and data.",
            )
        return self.cells.parameters

    @staticmethod
    def _placed(found: Estimate, measured: Array) -> Estimate:
        outside = "below" if found.value < measured.min() else "above" if found.value > measured.max() else None
        return replace(found, outside=outside)


def fit(cells: Cells, *, huber: float = HUBER) -> Law:
    """The law with the least Huber loss of ln(law / measured), the best of 4 starts.

    `huber`: the residual from which it counts linearly, so that one bad training bends the law little. Hoffmann et al. took 1e-3;
    beside noise of 0.3 to 1 %, as small trainings have, that is nearly the sum of absolute errors. All factors are positive,
    exponents lie within 0 and 4, E below the least measured loss.
    Raises `DataError` with fewer than 3 different amounts of data (in a grid: or sizes) or fewer cells than unknowns (3, 5), and
    where the loss does not fall with more data.
    Source: Hoffmann et al. 2022, arXiv:2203.15556, section 3.3 (there L-BFGS; here a trust region, as an early end of L-BFGS was
    what Besiroglu et al. 2024, arXiv:2404.10102, found amiss).
    """
    _refuse_unfit(cells)
    problem = _Problem.of(cells, huber)
    rough = [problem.lowest(start, "linear")[0] for start in problem.starts()]
    return problem.law(min((problem.lowest(start, "huber") for start in rough), key=lambda found: found[1])[0])


def scaling(
    cells: Cells,
    *,
    last: Array | None = None,
    conversations: Array | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    huber: float = HUBER,
) -> Scaling:
    """Fit, check on the largest cell (`last`: see `held_out`), and bootstrap; the same seed gives the same numbers.

    The bootstrap leaves the amounts of data where they are and draws the residuals of the cells with replacement, centred and
    widened by √(cells / (cells − unknowns)), as the fit has taken part of them up (Efron & Tibshirani 1993, chapter 9).
    `conversations`: (conversations, cells + 1) nats of each test conversation in each cell, and its tokens: they are drawn with
    replacement at the same time, so that intervals also hold what the choice of test conversations leaves open.
    Raises `DataError` as `fit` does; one more cell is needed, at another place, as the largest is left out once.
    """
    law = fit(cells, huber=huber)
    checked = held_out(cells, last, huber=huber)
    random = generator(seed, "scaling")
    fitted = law.loss(cells.data, cells.parameters)
    residuals = np.log(cells.losses / fitted)
    residuals = (residuals - residuals.mean()) * math.sqrt(len(cells) / (len(cells) - cells.unknowns))
    shifts = np.zeros((resamples, len(cells))) if conversations is None else _shifts(conversations, cells, random, resamples)
    drawn = fitted * np.exp(residuals[random.integers(0, len(cells), (resamples, len(cells)))] + shifts)
    start = _Problem.of(cells, huber).place(law)
    found = []
    for losses in drawn:
        problem = _Problem.of(replace(cells, losses=losses), huber)
        found.append(problem.law(problem.lowest(start, "huber")[0]))
    names = ("floor", "data_factor", "data_exponent", "size_factor", "size_exponent")
    draws = Law(*(np.array([getattr(each, name) for each in found]) for name in names))
    return Scaling(law, draws, cells, checked)


def held_out(cells: Cells, last: Array | None = None, *, huber: float = HUBER) -> HeldOut:
    """Fit all but the largest cell, and predict it. Raises `DataError` as `fit` does for the cells that are left.

    `last`: (cells,) bool, the entries that make up the largest cell where their amounts of data differ a little, as those of several
    seeds do; none: `Cells.largest`.
    """
    last = cells.largest() if last is None else np.asarray(last, dtype=bool)
    left, gone = cells.only(~last), cells.only(last)
    predicted = fit(left, huber=huber).loss(gone.data, gone.parameters)
    size = None if gone.parameters is None else float(gone.parameters.mean())
    unchanged = float(left.losses[left.largest()].mean())
    return HeldOut(float(gone.data.mean()), size, float(gone.losses.mean()), float(predicted.mean()), unchanged)


def effective_data(different: Any, seen: Any, *, repeats: float = REPEATS) -> Any:
    """D' = U + U·R*·(1 − e^(−R/R*)): fresh tokens that are worth as much as `different` tokens U read in several passes.

    `seen`: tokens that training read in all, repetitions included, so R = seen/U − 1; where fewer were read than there are, each
    was fresh. `repeats`: R*, 15.4 as the source fitted it on web text with up to 9 billion parameters; it depends on the data.
    Works on numbers and arrays; raises `DataError` for values that are not finite and positive.
    Source: Muennighoff et al. 2023, arXiv:2305.16264, section 3.1.
    """
    for name, value in (("different", different), ("seen", seen), ("repeats", repeats)):
        if not (np.isfinite(value).all() and (np.asarray(value) > 0).all()):
            raise DataError("is not a number of tokens.", path=name, value=value, rule="finite and above 0")
    fresh = np.minimum(different, seen)
    return fresh + fresh * repeats * -np.expm1(-(np.asarray(seen, np.float64) / fresh - 1) / repeats)


@dataclass(frozen=True)
class _Problem:
    """Least squares over (ln E, ln B, b) or (ln E, ln B, b, ln A, a); data and sizes as multiples of their geometric means, which
    keeps a factor and its exponent from trading places. `logs`: (cells,) or (2, cells), `target`: (cells,) ln of the losses."""

    logs: Array
    centres: Array
    target: Array
    huber: float

    @classmethod
    def of(cls, cells: Cells, huber: float) -> _Problem:
        logs = np.log(np.stack([cells.data] if cells.parameters is None else [cells.data, cells.parameters]))
        centres = logs.mean(axis=1)
        return cls(logs - centres[:, None], centres, np.log(cells.losses), huber)

    def starts(self) -> list[Array]:
        """What is above E divided evenly among data and size, from a low and a high E with flat and steep powers."""
        least, middle = self.target.min(), float(self.target.mean())
        found = []
        for share, exponent in _STARTS:
            above = math.log(max(math.exp(middle) - share * math.exp(least), 1e-3 * math.exp(least)) / len(self.logs))
            found.append(np.array([math.log(share) + least, *([above, exponent] * len(self.logs))]))
        return found

    def lowest(self, start: Array, loss: str) -> tuple[Array, float]:
        """The unknowns at the lowest point that is found from there, and its cost."""
        from scipy.optimize import least_squares

        least, most = self.target.min(), self.target.max()
        low = np.array([least - 12.0, *([least - 12.0, 0.0] * len(self.logs))])
        high = np.array([least, *([most + 6.0, _STEEPEST] * len(self.logs))])
        inside = np.clip(start, low + 1e-9, high - 1e-9)
        found = least_squares(self.residuals, inside, self.slopes, (low, high), "dogbox", loss=loss, f_scale=self.huber)
        return found.x, float(found.cost)

    def residuals(self, unknowns: Array) -> Array:
        """(cells,) ln of law over measured."""
        return np.asarray(np.logaddexp.reduce(self._terms(unknowns), axis=0) - self.target)

    def slopes(self, unknowns: Array) -> Array:
        """(cells, unknowns) derivatives of `residuals`."""
        terms = self._terms(unknowns)
        shares = np.exp(terms - np.logaddexp.reduce(terms, axis=0))
        columns = [shares[0]]
        for log, share in zip(self.logs, shares[1:], strict=True):
            columns += [share, -log * share]
        return np.stack(columns, axis=1)

    def law(self, unknowns: Array) -> Law:
        floor, *pairs = unknowns.tolist()
        found: list[float] = []
        for number, centre in enumerate(self.centres.tolist()):
            factor, exponent = pairs[2 * number], pairs[2 * number + 1]
            found += [math.exp(factor + exponent * centre), exponent]
        return Law(math.exp(floor), *found)

    def place(self, law: Law) -> Array:
        """The unknowns of a law: `law` the other way."""
        pairs = ((law.data_factor, law.data_exponent), (law.size_factor, law.size_exponent))
        own = [
            number for (factor, exponent), centre in zip(pairs, self.centres, strict=False)
            for number in (math.log(factor) - exponent * centre, exponent)
        ]  # fmt: skip
        return np.array([math.log(law.floor), *own])

    def _terms(self, unknowns: Array) -> Array:
        pairs = zip(unknowns[1::2], unknowns[2::2], self.logs, strict=True)
        powers = [factor - exponent * log for factor, exponent, log in pairs]
        return np.stack([np.full(self.target.shape, unknowns[0]), *powers])


def _shifts(conversations: Array, cells: Cells, random: np.random.Generator, resamples: int) -> Array:
    """(resamples, cells): by how much ln L of each cell moves when other test conversations are drawn, the same for all cells."""
    sums = np.asarray(conversations, dtype=np.float64)
    if sums.ndim != 2 or sums.shape[1] != len(cells) + 1 or not np.isfinite(sums).all() or sums[:, -1].sum() <= 0:
        raise DataError(
            f"conversations has the shape {sums.shape}.", path="conversations", value=list(sums.shape),
            rule=f"(conversations, {len(cells) + 1}) finite numbers: nats in each cell, then tokens",
        )
    whole = sums.sum(axis=0)
    if not np.allclose(whole[:-1] / whole[-1], cells.losses, rtol=1e-4):
        raise DataError(
            "are not the conversations whose losses the cells hold.", path="conversations",
            rule="nats over tokens are the cells' losses", hint="Give the nats of all test conversations, with the tokens last.",
        )
    drawn = np.stack([sums[random.integers(0, len(sums), len(sums))].sum(axis=0) for _ in range(resamples)])
    shifts: Array = np.log(drawn[:, :-1] / drawn[:, -1:] / (whole[:-1] / whole[-1]))
    return shifts


def _refuse_loss(loss: float) -> None:
    if not (math.isfinite(loss) and loss > 0):
        raise DataError(f"is {loss:g}.", path="loss", value=loss, rule="a finite number above 0", hint="Judge the lever again.")


def _refuse_unfit(cells: Cells) -> None:
    """Too few cells or levels, or a loss that more data does not lower."""
    levels = [("amounts of data", "data", cells.data)]
    if cells.parameters is not None:
        levels.append(("sizes", "parameters", cells.parameters))
    for word, path, values in levels:
        if (count := len(np.unique(values))) < LEVELS:
            raise DataError(
                f"{count} different {word} cannot be told from a straight line.", path=path, value=count,
                rule=f"at least {LEVELS}, and one more where the largest is left out", hint="Measure further cells.",
            )
    if len(cells) < cells.unknowns:
        raise DataError(
            f"{len(cells)} cells cannot tell {cells.unknowns} unknowns.", path="losses", value=len(cells),
            rule=f"at least {cells.unknowns}, and one more for intervals", hint="Measure further cells.",
        )
    least, most = _ends(cells)
    if most >= least:
        raise DataError(
            f"the loss does not fall with more data: {least:.4f} with the least, {most:.4f} with the most.", path="losses", value=most,
            rule=f"below {least:.4f}", hint="Train until the validation loss rises; or more data is of no use here.",
        )  # fmt: skip


def _ends(cells: Cells) -> tuple[float, float]:
    """The losses with the least and the most data of each size, means over sizes: a grid may lack corners."""
    sizes = np.ones(len(cells)) if cells.parameters is None else cells.parameters
    found = []
    for size in np.unique(sizes):
        data, losses = cells.data[sizes == size], cells.losses[sizes == size]
        if data.min() < data.max():
            found.append((losses[data == data.min()].mean(), losses[data == data.max()].mean()))
    least, most = np.mean(found, axis=0) if found else (0.0, 0.0)
    return float(least), float(most)
