"""What a training would cost, told before it starts, beside what it then takes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from material import TINY
from torch.utils.flop_counter import FlopCounterMode

from chattune.cli import main
from chattune.core.errors import SettingError
from chattune.core.part import kind
from chattune.story import Result
from chattune.tokens.batch import Batch
from chattune.train.config import TrainConfig
from chattune.train.estimate import BACKWARD, advice, refuse_over_limits, suited
from chattune.train.objectives.next_token import NextToken

FOUND = {
    "parameters": 1_000_000, "memory_bytes": 2 * 2**30, "seconds": 600.0, "disk_bytes": 3 * 2**30, "reply_tokens_per_second": 50.0,
    "tokens": 4_000_000, "training_tokens": 500_000, "suited_parameters": 200_000,
}  # fmt: skip
SETTINGS = [setting for setting in TINY if setting.startswith(("train.", "model."))]


def program(*arguments: str) -> tuple[dict[str, Any], int]:
    """What the program prints as JSON, and the largest memory that its process held, in bytes, as Linux counts it for this program."""
    code = (
        "import sys; from pathlib import Path; from chattune.cli import main; code = main(); "
        "print(Path('/proc/self/status').read_text(), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments, "--json"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    peak = re.search(r"^VmHWM:\s+(\d+) kB", done.stderr, re.MULTILINE)
    assert peak is not None
    return json.loads(done.stdout.splitlines()[-1]), int(peak[1]) * 1024


@pytest.fixture(scope="module")
def home(told: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("estimate") / "runs"
    shutil.copytree(told.run.parent, home, symlinks=True)
    return home


def tokens_of(home: Path) -> str:
    return next(path.name for path in home.glob("prepare-*"))


@pytest.mark.requirement("U4", "R074", "R076")
def test_memory_and_parameters_are_within_five_percent_of_the_training_that_follows(home: Path) -> None:
    settings = [*SETTINGS, "model.width=128", "model.layers=2", "train.steps=8", "train.batch_tokens=2048", "train.evaluations=1"]
    told, _ = program("train", tokens_of(home), *settings, "--dry-run", "--home", str(home))
    found, memory = program("train", tokens_of(home), *settings, "--home", str(home))
    trained = found["stages"]["train"]
    assert told["training_tokens_are"] == "counted"
    assert told["parameters"] == trained["parameters"]
    assert told["steps"] == trained["steps"] == 8
    assert told["memory_bytes"] == pytest.approx(memory, rel=0.05)


def test_the_updates_of_an_epoch_are_counted_on_the_tokens_that_are_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", tokens_of(home), *SETTINGS, "train.steps=", "train.epochs=3", "--home", str(home), "--json"]
    assert main([*words, "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["stages"]["train"]["steps"] == told["steps"]


@pytest.mark.requirement("R074", "R076")
@pytest.mark.parametrize("name", ["gpt", "encoder_decoder", "memory_network"])
def test_the_operations_of_an_update_are_within_five_percent_of_those_that_torch_counts(name: str) -> None:
    vocabulary, time = 1000, 64
    family = kind("families").load(name)(size="micro", context=time)
    model = family.build(vocabulary, 0).train()
    ids = torch.randint(7, vocabulary, (8, time + 1), generator=torch.Generator().manual_seed(0))
    place = torch.arange(time).repeat(8, 1)
    one_window = torch.zeros(8, time, dtype=torch.int32)
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.ones(8, time), place, one_window)
    with FlopCounterMode(display=False) as counted:
        # With all logits: the counter does not know the in-place product by which the loss in pieces sums the head's gradient.
        NextToken().view(model, batch, full=True).loss.backward()  # type: ignore[no-untyped-call]
    assert BACKWARD * family.operations(vocabulary, time) * 8 * time == pytest.approx(counted.get_total_flops(), rel=0.05)


@pytest.mark.requirement("R076")
@pytest.mark.parametrize(
    ("limit", "least", "enough"), [("memory", 1.9, 2.1), ("minutes", 9.0, 11.0), ("disk", 2.9, 3.1), ("reply_speed", 60.0, 40.0)]
)
def test_what_would_take_more_than_a_limit_is_refused_by_its_path(limit: str, least: float, enough: float) -> None:
    refuse_over_limits(FOUND, TrainConfig())
    refuse_over_limits(FOUND, TrainConfig.model_validate({"limits": {limit: enough}}))
    with pytest.raises(SettingError) as caught:
        refuse_over_limits(FOUND, TrainConfig.model_validate({"limits": {limit: least}}))
    assert caught.value.path == f"train.limits.{limit}"
    assert caught.value.hint


@pytest.mark.requirement("R076")
def test_a_training_over_its_limits_does_not_begin(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in home.iterdir())
    for more in ([], ["--dry-run"]):
        assert main(["train", tokens_of(home), *SETTINGS, "seed=5", "train.limits.memory=0.01", "--home", str(home), *more]) == 2
        error = capsys.readouterr().err
        assert "train.limits.memory: training would take" in error
        assert "Take a smaller model.size" in error
    assert sorted(path.name for path in home.iterdir()) == before, "nothing is left behind"


@pytest.mark.requirement("R075", "E26")
def test_advice_names_the_rule_and_says_when_text_repeats_too_often() -> None:
    assert suited(4_000_000) == 200_000
    size, repeats = advice(FOUND)
    assert "4 tokens seen a parameter" in size
    assert "200,000 parameters" in size
    assert "8 passes" in repeats
    assert len(advice({**FOUND, "training_tokens": 2_000_000})) == 1
    assert len(advice({**FOUND, "training_tokens": None})) == 1


def test_a_recipe_that_cannot_be_trained_says_why(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", tokens_of(home), *SETTINGS, "train.freeze=[no_such_weight]", "--dry-run", "--home", str(home)]
    assert main(words) != 0
    assert "no_such_weight" in capsys.readouterr().err
