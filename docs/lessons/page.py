"""What the lessons' scripts share: pictures that are the same bytes for the same numbers, and tables set into a page."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any


def figure(columns: int) -> tuple[Any, Any]:
    """A figure with panels side by side."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "chattune"
    sheet = Figure(figsize=(4.2 * columns + 2.2, 4.0), layout="constrained")
    panels = sheet.subplots(1, columns, squeeze=False)[0]
    for axes in panels:
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    return sheet, panels


def save(sheet: Any, path: Path) -> None:
    """Write an SVG with a white ground and without a date."""
    sheet.savefig(path, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")


def insert(page: Path, name: str, text: str) -> None:
    """Put `text` between the page's markers of that name."""
    begin, end = f"<!-- {name}: written by the script -->", f"<!-- end of {name} -->"
    old = page.read_text("utf-8")
    found = re.search(f"{re.escape(begin)}.*?{re.escape(end)}", old, re.DOTALL)
    assert found, f"{page.name} has no place for {name}"
    page.write_text(old.replace(found[0], f"{begin}\n{text}\n{end}"), "utf-8")


def inserted(page: Path, name: str) -> list[list[str]]:
    """The cells of the table between the markers, head and rule left out."""
    found = re.search(f"<!-- {re.escape(name)}:[^>]*-->\n(.*?)\n<!-- end", page.read_text("utf-8"), re.DOTALL)
    assert found, f"{page.name} holds no {name}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()[2:]]


def power(value: float) -> str:
    """A number over many sizes: ``0.016``, ``4·10⁻¹³``, ``0``."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if 0.001 <= abs(value) < 1000:
        return f"{value:.2g}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
