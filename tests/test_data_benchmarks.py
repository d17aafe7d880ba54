"""The benchmarks of data, in miniature: each ends with comparisons in one form, of figures that can be recomputed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
FORM = {"bench", "peer", "ratio", "bar", "moonshot", "ours", "theirs", "unit"}
Said = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """What a benchmark prints with ``--json`` and further arguments, a row a line."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def run(name: str, *arguments: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / f"{name}.py"), "--json", *arguments])
        __import__(name).main()
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for row in rows:
            assert row.keys() >= FORM and isinstance(row["ours"], float) and isinstance(row["theirs"], float)
            assert row["bar"] is None or row["bar"] > 0
        return rows

    return run


def test_personal_data_is_compared_with_what_is_asked_for(said: Said) -> None:
    rows = {(row["bench"], row["unit"]): row for row in said("personal_data", "--lines", "400")}
    for kind, unit, asked in (("all", "recall", 0.95), ("all", "precision", 0.9), ("checksums", "recall", 0.99)):
        row = rows[f"personal_data, {kind}", unit]
        assert row["theirs"] == asked and row["bar"] == 1.0 and row["ratio"] == pytest.approx(row["ours"] / asked)
        counted = row["recalled"] / row["values"] if unit == "recall" else row["right"] / row["found"]
        assert row["ours"] == pytest.approx(counted) and row["lines"] == 400
    assert rows["personal_data, email", "recall"]["bar"] is None


def test_data_at_size_is_bound_in_memory_and_redoes_only_what_changed(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / "data_scale.py"), "--json", "--dialogs", "400", "--folder", str(tmp_path)]
    # A program of its own: what this one holds already is not to be measured.
    (row,) = map(json.loads, subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines())
    assert row.keys() >= FORM
    assert row["theirs"] == 1.5 and row["ratio"] == pytest.approx(1.5 / row["ours"]) and 0.02 < row["ours"] < 1.5
    assert row["reused"] == ["collect"] and set(row["seconds"]) == {"collect", "split"} and row["dialogs_per_second"] > 1
    assert row["bytes"] == (tmp_path / "talks-400.jsonl").stat().st_size


def test_near_duplicates_are_counted_against_the_planted_pairs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import near_duplicates

    for peer, least in ((near_duplicates.ours, 0.99), (near_duplicates.datasketch, 0.4)):  # whose bands miss many at the threshold
        found = near_duplicates.run(peer, 1500, 0.8)
        told = json.loads(capsys.readouterr().err.splitlines()[-1].removeprefix("# "))
        assert found.work == [1500.0] and told["planted"] > 50 and told["recall"] >= least


def test_the_ablation_says_each_difference_with_its_interval(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import augmentation

    values = {"plain": [2.0, 2.1, 1.9, 2.3, 2.2], "typos": [1.95, 2.04, 1.86, 2.22, 2.13]}
    augmentation.say(augmentation.compared("typos", "plain", values), True)
    row = json.loads(capsys.readouterr().out)
    assert row.keys() >= FORM and row["peer"] == "plain" and row["unit"] == "bits per byte" and row["seeds"] == 5
    assert row["low"] < row["difference"] < row["high"] < 0 and row["verdict"] == "better" and row["ratio"] > 1
    augmentation.say(augmentation.compared("typos", "plain", {name: own[:1] for name, own in values.items()}), True)
    alone = json.loads(capsys.readouterr().out)
    assert alone["low"] is None and alone["verdict"] == "no difference shown"


@pytest.mark.skipif(not DATA.exists(), reason="the data is not here")
def test_planted_dialogs_are_scored_with_examples_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import data_quality

    on = [[f"when does the museum number {number} open", f"it opens at {number % 12}"] for number in range(200)]
    off = [[f"lol that goal {number}", f"haha yes messi scored {number}"] for number in range(60)]
    line, more = data_quality.planted("made", on, off, 0.1)
    assert line.bar == 1.0 and line.ours == pytest.approx(data_quality.f1(more["examples"])) and line.ours > 0.9
    assert more["planted"] == round(140 * 0.1 / 0.9) and more["examples"]["recall"] > 0.9


@pytest.mark.requirement("R022")
def test_data_scaling_predicts_the_largest_cell_and_compares_narrow_data(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from chattune.core.progress import talk

    monkeypatch.setattr(talk(), "quiet", True)  # the benchmark's own setting, taken back at the end
    threads = torch.get_num_threads()
    try:
        curve, gain, varied = said("data_scaling", "--smoke", "collect.sources=chatterbot-english")
    finally:
        torch.set_num_threads(threads)
    cells = curve["cells"]
    assert [cell["tokens"] for cell in cells] == sorted({cell["tokens"] for cell in cells}) and len(cells) == 4
    assert curve["unit"] == "relative error" and curve["theirs"] == 0.03 and curve["measured"] == pytest.approx(cells[-1]["loss"])
    assert curve["error"] == pytest.approx(curve["predicted"] / curve["measured"] - 1)
    assert curve["ours"] == pytest.approx(abs(curve["error"])) and curve["ratio"] == pytest.approx(0.03 / curve["ours"])
    assert curve["trusted"] == (curve["ours"] <= 0.03)
    assert gain["ours"] == cells[-1]["loss"] < cells[0]["loss"] == gain["theirs"]
    ((ours, narrow),) = varied["pairs"]
    assert varied["difference"] == pytest.approx(ours["loss"] - narrow["loss"]) and varied["low"] is None
    assert ours["tokens"] == pytest.approx(narrow["tokens"], rel=0.1) and ours["name"] == "all topics"
