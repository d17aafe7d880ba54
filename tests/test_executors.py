"""Executors: results in the order of the pieces wherever they are made, and the same bytes from a cluster as without one."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import chattune
from chattune.core.artifact import Home
from chattune.core.errors import ChattuneError, DataError, SettingError
from chattune.core.executors import Executor

CLUSTER = Path(__file__).parent / "ray_cluster.py"
without_ray = importlib.util.find_spec("ray") is None


def slow_where_early(number: int) -> tuple[int, int]:
    time.sleep(0.02 if number < 2 else 0.0)
    return number, os.getpid()


def failing(number: int) -> int:
    if number == 3:
        raise DataError("cannot be used.", path="f.txt:3", rule="something that can")
    return number


def ending(number: int) -> int:
    os._exit(3)


@pytest.mark.parametrize("executor", [Executor(), Executor("processes", 1), Executor("processes", 2)])
def test_results_come_in_the_order_of_the_pieces(executor: Executor) -> None:
    found = list(executor.map(slow_where_early, range(24)))
    assert [number for number, _ in found] == list(range(24))
    assert ({process for _, process in found} == {os.getpid()}) == (executor.count != 2)
    assert list(executor.map(slow_where_early, [])) == []
    with pytest.raises(DataError, match=r"f\.txt:3: cannot be used"):
        list(executor.map(failing, range(8)))


def test_a_worker_that_ends_too_early_is_told() -> None:
    with pytest.raises(ChattuneError, match=r"clean\.processes: a process that worked ended before its work did") as caught:
        list(Executor("processes", 2, "clean").map(ending, range(4)))
    assert "clean.processes=1" in str(caught.value)


def write(path: Path, count: int) -> Path:
    """Conversations of which some are changed, some dropped, and some near-duplicates."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlucmfwyp", k=draw.randint(3, 9))) for _ in range(3000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked, reply = (" ".join(draw.choices(words, k=12)) for _ in range(2))
            if number % 5 == 0:
                reply += f" â€” write to agent{number % 7}@example.org, please. 请稍等 Ａ"
            if number % 50 == 49:
                reply = f"Many words that say nearly the same every time, as canned talk does in every shop, friend {number}."
                asked = "Tell me the long text of the terms and conditions of this shop, the whole of it, from the beginning"
            if number % 211 == 210:
                reply = "#"
            file.write(json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]}) + "\n")
    return path


def recipe(source: Path, **clean: Any) -> dict[str, Any]:
    cleaners = ["text_repair", "unicode_forms", "personal_data", {"name": "quality", "least": 0.3}, "near_duplicates"]
    return {"collect": {"sources": str(source)}, "clean": {"cleaners": cleaners, **clean}}


@pytest.mark.long
@pytest.mark.requirement("R027")
@pytest.mark.skipif(without_ray, reason="Ray is not installed: pip install 'chattune[cluster]'")
def test_two_nodes_of_a_ray_cluster_give_the_same_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "talks.jsonl", 1500)
    alone = chattune.run(recipe(source, processes=1), home=tmp_path / "alone", until="split")
    command = [sys.executable, str(CLUSTER), json.dumps(recipe(source, executor="ray", processes=2)), str(tmp_path / "together")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=450, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["numbers"] == list(range(64)) and found["nodes"] == 2 and found["processes"] == 2
    assert found["error"] == ["cannot be used.", "f.txt:3"] and not found["left"]
    assert "data-usage-metrics-poller" not in found["threads"], "asking a cluster that is shut down it would end the process"
    for stage in ("clean", "split"):
        mine, theirs = alone.runs[stage], Path(found[stage])
        names = sorted(json.loads((mine / "manifest.json").read_text())["outputs"])
        assert names == sorted(json.loads((theirs / "manifest.json").read_text())["outputs"]) and len(names) >= 4
        for name in names:
            assert (mine / name).read_bytes() == (theirs / name).read_bytes(), (stage, name)
    counts = alone.summary["counts"]
    assert counts["dropped"]["near_duplicate"] > 10 and counts["dropped"]["low_quality"] > 3


def test_a_cluster_without_ray_installed_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else found(name, *rest))
    with pytest.raises(SettingError, match=r"clean\.executor: the package ray is not installed.*chattune\[cluster\]"):
        chattune.run(recipe(write(tmp_path / "talks.jsonl", 60), executor="ray"), home=tmp_path / "runs", until="split")
    assert [run.name.partition("-")[0] for run in Home(tmp_path / "runs").runs()] == ["collect"]


def test_a_home_that_a_worker_does_not_see_is_told(tmp_path: Path) -> None:
    from chattune.dialogs.artifact import Stretch
    from chattune.dialogs.cleaning import Pass

    with pytest.raises(DataError, match=r"gone\.jsonl: is not there for the worker.*--home"):
        Pass((), ())(Stretch(tmp_path / "gone.jsonl", 0, 10))
