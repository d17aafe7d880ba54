"""Models side by side: the same conversations, paired differences, honest costs, and which size suits the tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from material import TINY, write_raw_logs

from chattune.cli import main
from chattune.core.errors import UsageError
from chattune.evaluate.artifact import LOSSES
from chattune.evaluate.compare import Contender, advice, capacity, compare, page
from chattune.evaluate.loss import SplitLoss
from chattune.story import Result

CONVERSATIONS = 60


def contender(name: str, nats_a_byte: float, *, noise: int = 0, test: str = "t", family: str = "gpt", **costs: float) -> Contender:
    """A model whose loss on conversation i is its own mean times what makes the conversation hard, the same for all models."""
    random = np.random.default_rng(0)
    lengths = random.integers(20, 200, CONVERSATIONS).astype(np.float64)
    hardness = random.uniform(0.5, 1.5, CONVERSATIONS)
    own = 1 + 0.02 * np.random.default_rng(noise).standard_normal(CONVERSATIONS)
    return Contender(name, family, test, SplitLoss(nats_a_byte * hardness * own * lengths, lengths / 3, lengths), costs)


def test_a_paired_difference_sees_what_intervals_side_by_side_hide() -> None:
    rows = compare([contender("a", 1.0, noise=1), contender("b", 0.97, noise=2)])["runs"]
    a, b = rows
    assert b["bits_per_byte"]["high"] > a["bits_per_byte"]["low"], "the intervals overlap"
    assert b["difference"]["high"] < 0, "and yet b is better on the same conversations"
    assert b["difference"]["value"] == pytest.approx(b["bits_per_byte"]["value"] - a["bits_per_byte"]["value"])
    assert a["difference"] is None


def test_a_model_beside_itself_is_level() -> None:
    row = compare([contender("a", 1.0), contender("again", 1.0)])["runs"][1]
    assert row["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_other_conversations_or_other_turns_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="b was judged on other test conversations than a"):
        compare([contender("a", 1.0), contender("b", 1.0, test="other")])
    other = contender("b", 1.0)
    half = Contender("b", "gpt", "t", SplitLoss(other.loss.nll, other.loss.tokens, other.loss.bytes // 2), {})
    with pytest.raises(UsageError, match="b predicts other turns"):
        compare([contender("a", 1.0), half])


def sweep(lowest: float, tokens: float = 1e6) -> list[Contender]:
    """Sizes from 0.1M to 10M whose bits are a parabola of log parameters with its lowest point at `lowest`."""
    sizes = (1e5, 3e5, 1e6, 3e6, 1e7)
    return [
        contender(f"{size:g}", 1.0 + 0.02 * np.log(size / lowest) ** 2, noise=place, parameters=size, tokens=tokens)
        for place, size in enumerate(sizes)
    ]


@pytest.mark.requirement("R073", "R074", "R075", "E26")
def test_the_best_size_is_found_with_an_interval_and_its_edges_are_told() -> None:
    found = capacity(sweep(7e5))
    assert found is not None
    assert found["edge"] is None
    assert found["best"]["low"] < 7e5 < found["best"]["high"]
    assert found["best"]["high"] < 2 * found["best"]["low"], "the interval says something"
    assert "parameters are best [" in str(advice(found))
    for lowest, edge, words in ((1e8, "larger", "capacity is the limit"), (1e3, "smaller", "rather than a larger one")):
        found = capacity(sweep(lowest))
        assert found is not None
        assert found["edge"] == edge
        assert words in str(advice(found))


def test_sizes_are_only_compared_at_equal_tokens_and_within_a_family() -> None:
    models = sweep(7e5)
    assert capacity(models[:2]) is None
    assert capacity([*models, *models]) is None, "two models of one size differ in something else"
    assert capacity([*models[:4], contender("x", 1.0, parameters=1e7, tokens=2e6)]) is None
    assert capacity([*models[:4], contender("x", 1.0, family="lstm", parameters=1e7, tokens=1e6)]) is None


def test_the_page_escapes_names_and_loads_nothing() -> None:
    shown = page(compare([contender("<script>alert(1)</script>", 1.0), contender("b", 0.9)]))
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "http" not in shown.replace("http-equiv", "")
    assert "better" in shown


@pytest.fixture(scope="module")
def home(told: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished story, and a second model on the same tokens that was not evaluated."""
    home = tmp_path_factory.mktemp("compare") / "runs"
    shutil.copytree(told.run.parent, home, symlinks=True)
    settings = [setting for setting in TINY if setting.startswith(("train.", "model."))]
    assert main(["train", "first", *settings, "seed=1", "--name", "second", "--home", str(home)]) == 0
    return home


@pytest.mark.requirement("R071", "R070")
def test_two_runs_are_compared_in_the_terminal_as_json_and_as_a_page(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home.parent / "compared.html"
    assert main(["compare", "first", "second", "--html", str(out), "--json", "--home", str(home)]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    first, second = data["runs"]
    assert [first["name"], second["name"]] == ["first", "second"]
    for row in (first, second):
        assert row["parameters"] > 0 and row["operations"] > 0 and row["tokens"] > 0 and row["memory_bytes"] > 1e7
    assert second["difference"]["low"] <= second["difference"]["value"] <= second["difference"]["high"]
    assert out.read_text().count("<tr>") == 3
    assert main(["compare", "first", "second", "--home", str(home)]) == 0
    assert "difference to the first" in capsys.readouterr().out


def test_a_stored_loss_and_one_computed_now_are_equal(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = next(path.parent for path in home.glob(f"evaluate-*/{LOSSES}"))
    found = []
    for _ in range(2):
        assert main(["compare", "first", "second", "--json", "--home", str(home)]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1])["runs"][0]["bits_per_byte"])
        (report / LOSSES).unlink(missing_ok=True)  # as reports were before they kept it
    assert found[0]["value"] == pytest.approx(found[1]["value"], rel=1e-9)


def test_one_run_or_another_test_split_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "first", "--home", str(home)]) == 2
    assert "two runs or more" in capsys.readouterr().err
    other = write_raw_logs(tmp_path / "other.txt", 40)
    settings = [setting for setting in TINY if setting.startswith(("train.", "model."))]
    assert main(["collect", str(other), "--name", "other", "--home", str(home)]) == 0
    assert main(["prepare", "other", "--name", "other", "--home", str(home)]) == 0
    assert main(["train", "other", *settings, "--name", "other", "--home", str(home)]) == 0
    capsys.readouterr()
    assert main(["compare", "first", "other", "--home", str(home)]) == 2
    assert "other was judged on other test conversations than first" in capsys.readouterr().err
