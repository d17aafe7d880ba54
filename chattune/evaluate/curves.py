"""The curves of a training run as one inline SVG whose colours are the page's own, in light and in dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 300  # of the training curve; more are averaged in blocks
# Colours that matplotlib writes, and what the page puts in their place.
INK, TRAIN, VALIDATION, BAR = "#010203", "#010204", "#010205", "#010206"
_PAGE = {INK: "currentColor", TRAIN: "var(--train)", VALIDATION: "var(--validation)", BAR: "var(--bar)"}


def curves(rows: Iterable[Mapping[str, Any]], ngram_loss: float | None) -> str | None:
    """Training and validation loss with the n-gram's level, and the learning rate below; none where nothing was recorded.

    `rows`: those of ``metrics.jsonl``; `ngram_loss`: nats per token of the n-gram model on the test split. Numbers that
    are not finite are left out of the curve.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = list(rows)
    looks = [row for row in rows if row.get("event") == "evaluation"]
    steps = [row for row in rows if "event" not in row]
    train, validation, rate = _line(steps, "loss"), _line(looks, "loss"), _line(steps, "lr")
    if not len(train) and not len(validation):
        return None
    with _style():
        figure = Figure(figsize=(8.2, 4.6), layout="constrained")
        FigureCanvasSVG(figure)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        _draw_losses(above, train, validation, ngram_loss)
        _draw_rate(below, rate)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return inline(written.getvalue(), "curves")


def described(rows: Iterable[Mapping[str, Any]]) -> str:
    """The same in words, for those who do not see the figure."""
    looks = _line([row for row in rows if row.get("event") == "evaluation"], "loss")
    if not len(looks):
        return "The loss on the validation split was not recorded."
    best = int(np.argmin(looks[:, 1]))
    return (
        f"The validation loss went from {looks[0, 1]:.3f} nats a token at step {looks[0, 0]:.0f} to {looks[-1, 1]:.3f} at step"
        f" {looks[-1, 0]:.0f}; the lowest was {looks[best, 1]:.3f} at step {looks[best, 0]:.0f}."
    )


def inline(svg: str, prefix: str) -> str:
    """An SVG file's text as an element of a page: no prologue, its own ids, the page's colours, as wide as its place."""
    svg = '<svg aria-hidden="true"' + svg[svg.index("<svg") + 4 :]  # the caption says it in words
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for colour, own in _PAGE.items():
        svg = svg.replace(colour, own)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1)


def _style() -> Any:
    import matplotlib as mpl

    return mpl.rc_context(
        {
            "svg.fonttype": "none", "svg.hashsalt": "chattune", "font.family": "sans-serif", "font.size": 10, "text.color": INK,
            "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.linewidth": 0.6,
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": INK, "grid.alpha": 0.12,
            "grid.linewidth": 0.6, "legend.frameon": False, "lines.solid_capstyle": "round",
        }
    )  # fmt: skip


def _draw_losses(axes: Axes, train: np.ndarray, validation: np.ndarray, ngram_loss: float | None) -> None:
    if len(train):
        axes.plot(*_averaged(train).T, color=TRAIN, linewidth=1.2, label="training batches")
    if len(validation):
        axes.plot(*validation.T, color=VALIDATION, linewidth=2, marker="o", markersize=4, label="validation split")
    if ngram_loss is not None:
        axes.axhline(ngram_loss, color=BAR, linewidth=1.5, linestyle="--", label="n-gram model, on the test split")
    axes.set_ylabel("loss (nats a token)")
    levels = [ngram_loss] if ngram_loss is not None else []
    # The first twentieth falls from the logarithm of the vocabulary and would flatten all that follows.
    last = max(line[-1, 0] for line in (train, validation) if len(line))
    late = [line[line[:, 0] >= last / 20, 1] for line in (train, validation) if len(line)]
    seen = np.concatenate([*late, np.array(levels)]) if any(len(line) for line in late) else np.array(levels)
    if len(seen) and float(seen.max()) > float(seen.min()):
        room = 0.06 * float(seen.max() - seen.min())
        axes.set_ylim(float(seen.min()) - room, float(seen.max()) + room)
    axes.legend(loc="upper right")


def _draw_rate(axes: Axes, rate: np.ndarray) -> None:
    if len(rate):
        axes.plot(*rate.T, color=INK, linewidth=1.2)
        axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate")
    axes.set_xlabel("step")


def _line(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """(points, 2) steps and finite values, in the order of the steps."""
    found = [
        (float(row["step"]), float(row[key]))
        for row in rows
        if isinstance(row.get(key), (int, float)) and isinstance(row.get("step"), int) and math.isfinite(row[key])
    ]
    return np.array(sorted(found)).reshape(-1, 2)


def _averaged(line: np.ndarray) -> np.ndarray:
    blocks = np.array_split(line, min(POINTS, len(line)))
    return np.array([block.mean(axis=0) for block in blocks])
