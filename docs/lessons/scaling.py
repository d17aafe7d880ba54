"""The experiments of the lesson on scaling: how many steps gradient descent takes, and what scaling costs.

    python docs/lessons/scaling.py        a minute; writes the tables in scaling.md
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from page import insert

from chattune.core.part import kind
from chattune.core.seeds import generator
from chattune.features.scalers import Scaler

RATIOS = (1, 10, 100)
WAYS = (None, "min_max", "z_score", "whitening")
WIDTHS = (16, 64, 256, 1024)
ROWS, MOST = 200, 2_000_000


def scaled(way: str | None, x: np.ndarray) -> np.ndarray:
    """`x` through the scaler of that name; none: as it is."""
    return x if way is None else scaler(way).fit(x).transform(x)


def scaler(way: str) -> Scaler:
    return kind("scalers").load(way)()  # type: ignore[return-value]


def features(ratio: float, correlation: float = 0.6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(200, 2) correlated features, the second in units `ratio` times as fine, and (200,) what is to be predicted from them."""
    random = generator(seed, "lesson", "scaling")
    first, other = random.standard_normal((2, ROWS))
    second = correlation * first + np.sqrt(1 - correlation**2) * other
    return np.stack([first, ratio * second], axis=1), first - second + 0.1 * random.standard_normal(ROWS)


def iterations(x: np.ndarray, y: np.ndarray) -> int:
    """Steps of gradient descent on the mean squared error of a linear model, until the gradient is a millionth of what it was.

    The rate is the largest that is always safe: 1 over the largest curvature.
    """
    x, y = x - x.mean(0), y - y.mean()
    hessian = x.T @ x / len(x)
    wanted, rate = x.T @ y / len(x), 1 / float(np.linalg.eigvalsh(hessian)[-1])
    w, first = np.zeros(x.shape[1]), float(np.sqrt((wanted**2).sum()))
    for step in range(MOST):
        gradient = hessian @ w - wanted
        if float(np.sqrt((gradient**2).sum())) <= 1e-6 * first:
            return step
        w -= rate * gradient
    return MOST


def steps_table() -> str:
    """Iterations by scaler and ratio of units, as Markdown."""
    lines = ["| units | " + " | ".join(way or "as they are" for way in WAYS) + " |", "|---|" + "---:|" * len(WAYS)]
    for ratio in RATIOS:
        x, y = features(ratio)
        lines.append(f"| {ratio}:1 | " + " | ".join(f"{iterations(scaled(way, x), y)}" for way in WAYS) + " |")
    return "\n".join(lines)


def operations(width: int, rows: int) -> tuple[float, float]:
    """Multiplications and additions of a z-score and of whitening, fitted on `rows` rows of `width` features and applied to them.

    z-score: mean, variance, subtraction, division. Whitening: mean, covariance (rows · width²), its eigenvectors (about 9 · width³,
    Golub & Van Loan 2013, section 8.3), one product (2 · rows · width²).
    """
    return 6.0 * rows * width, 2.0 * rows * width + rows * width**2 + 9.0 * width**3 + 2.0 * rows * width**2


def cost_table(widths: Iterable[int] = WIDTHS, rows: int = 4096) -> str:
    """Operations and milliseconds, as Markdown."""
    lines = ["| features | z-score, operations | whitening, operations | ratio | z-score, ms | whitening, ms |", "|---:" * 6 + "|"]
    for width in widths:
        x = generator(0, "lesson", "cost").standard_normal((rows, width))
        few, many = operations(width, rows)
        quick, slow = (1000 * seconds(way, x) for way in ("z_score", "whitening"))
        lines.append(f"| {width} | {few / 1e6:.1f} M | {many / 1e6:.0f} M | {many / few:.0f} | {quick:.1f} | {slow:.0f} |")
    return "\n".join(lines)


def seconds(way: str, x: np.ndarray, rounds: int = 3) -> float:
    """Of fitting and applying, the least of some rounds."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        scaled(way, x)
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    """Write both tables."""
    page = Path(__file__).with_name("scaling.md")
    insert(page, "steps", steps_table())
    insert(page, "cost", cost_table())


if __name__ == "__main__":
    main()
