"""Several processes train as one: the gradient, the curve, the weights, resuming on the same and on another number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes as two
from safetensors.torch import load_file
from torch import Tensor

from chattune.train.state import Snapshots
from chattune.train.world import World

ALONE = World()


@pytest.fixture(autouse=True, scope="module")
def _one_deterministic_thread() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


class Answers:
    """What two processes answered, and what one process says to the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.alone: dict[str, tuple[list[list[float]], dict[str, Tensor]]] = {}
        for name, recipe in two.RECIPES.items():
            training = two.made(recipe, None, ALONE)
            first = two.curve(training, two.STEPS // 2)
            training.keep_best(1.0, training.chosen())
            training.save(Snapshots(folder / f"{name}-alone"))
            self.alone[name] = (first + two.curve(training, two.STEPS - two.STEPS // 2), two.end(training))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(two.__file__).parent), str(Path(two.__file__).parents[1])])
        processes = [
            subprocess.Popen(
                [sys.executable, two.__file__, str(folder)], env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE, text=True,
            )
            for rank in range(2)
        ]  # fmt: skip
        said = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
        self.numbers: dict[str, Any] = json.loads((folder / "numbers.json").read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(tmp_path_factory.mktemp("two"))


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest absolute difference of a number, over the largest number (at least 1)."""
    assert ours.keys() == theirs.keys()
    scale = max(1.0, *(float(t.abs().max()) for t in theirs.values()))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) / scale


@pytest.mark.parametrize("way", two.WAYS)
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.requirement("R195", "P25", "C8", "I30")
def test_two_processes_give_the_gradient_of_one(answers: Answers, way: str, accumulate: int) -> None:
    whole = two.gradients({"batcher": "padded"}, None, ALONE, rows=32)
    found = difference(answers.tensors(f"gradient-{way}-{accumulate}"), whole)
    print(f"P25: {way}, {accumulate} micro-batches on each of two processes: largest difference {found:.1e}")
    assert found < 1e-6  # float32 sums in another order


@pytest.mark.parametrize("way", two.WAYS)
@pytest.mark.requirement("R195")
def test_fewer_rows_than_micro_batches_neither_hang_nor_change_the_gradient(answers: Answers, way: str) -> None:
    assert difference(answers.tensors(f"few-rows-{way}"), two.gradients({}, None, ALONE, rows=3)) < 1e-6


@pytest.mark.parametrize("way", two.WAYS)
@pytest.mark.requirement("R195")
def test_in_bfloat16_two_processes_follow_one(answers: Answers, way: str) -> None:
    whole = two.gradients({}, None, ALONE)
    found, scale = answers.tensors(f"bfloat16-{way}"), max(float(t.abs().max()) for t in whole.values())
    assert max(float((found[n] - whole[n]).abs().max()) for n in whole) < 0.05 * scale  # bfloat16 keeps 8 bits, over some ten layers


@pytest.mark.parametrize("way", two.WAYS)
@pytest.mark.parametrize(("name", "family"), list(two.small_families()), ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.requirement("R195")
def test_every_family_trains_on_two_processes(answers: Answers, way: str, name: str, family: two.Family) -> None:
    whole = two.gradients({}, None, ALONE, family=family)
    assert difference(answers.tensors(f"family-{name}-{way}"), whole) < 1e-6


@pytest.mark.parametrize("way", two.WAYS)
@pytest.mark.parametrize("recipe", two.RECIPES)
@pytest.mark.requirement("R195", "C2")
def test_the_whole_course_of_two_processes_is_that_of_one(answers: Answers, way: str, recipe: str) -> None:
    curve, end = answers.alone[recipe]
    torch.testing.assert_close(torch.tensor(answers.numbers[f"{recipe}-{way}"]), torch.tensor(curve), rtol=2e-5, atol=1e-6)
    # A rounding of 1e-7 in a gradient near zero is a whole step of AdamW's sign-like update: weights agree to its share of a step.
    assert difference(answers.tensors(f"end-{recipe}-{way}"), end) < 2e-4


@pytest.mark.parametrize("way", two.WAYS)
@pytest.mark.parametrize("recipe", two.RECIPES)
@pytest.mark.requirement("C2")
def test_two_processes_resume_to_the_bit(answers: Answers, way: str, recipe: str) -> None:
    assert answers.numbers[f"resumed-{recipe}-{way}"] == answers.numbers[f"{recipe}-{way}"][two.STEPS // 2 :]
    whole, resumed = answers.tensors(f"end-{recipe}-{way}"), answers.tensors(f"resumed-{recipe}-{way}")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("way", two.WAYS)
@pytest.mark.parametrize("recipe", two.RECIPES)
@pytest.mark.requirement("C2", "C10")
def test_another_number_of_processes_continues(answers: Answers, way: str, recipe: str) -> None:
    curve, _ = answers.alone[recipe]
    rest = torch.tensor(curve[two.STEPS // 2 :])
    torch.testing.assert_close(torch.tensor(answers.numbers[f"elastic-{recipe}-{way}"]), rest, rtol=2e-5, atol=1e-6)  # from one to two
    training = two.made(two.RECIPES[recipe], None, ALONE)
    training.restore(Snapshots(answers.folder / f"{recipe}-{way}").at(two.STEPS // 2))  # from two to one
    torch.testing.assert_close(torch.tensor(two.curve(training, two.STEPS - two.STEPS // 2)), rest, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("way", two.WAYS)
@pytest.mark.parametrize("recipe", two.RECIPES)
def test_the_first_process_holds_the_weights_to_keep_and_can_answer(answers: Answers, way: str, recipe: str) -> None:
    training = two.made(two.RECIPES[recipe], None, ALONE)
    training.restore(Snapshots(answers.folder / f"{recipe}-alone").at(two.STEPS // 2))
    kept = answers.tensors(f"kept-{recipe}-{way}")
    assert training.best_weights
    assert all(torch.equal(kept[name], training.best_weights[name]) for name in training.best_weights)
    assert answers.numbers[f"shown-{recipe}-{way}"] is True
    two.curve(training, two.STEPS - two.STEPS // 2)
    with training.wearing(training.chosen()) as model, torch.no_grad():
        logits = model(torch.tensor([[0, 4, 9]]))
    torch.testing.assert_close(answers.tensors(f"worn-{recipe}-{way}")["logits"], logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", two.WAYS)
@pytest.mark.requirement("C4", "I31")
def test_a_loss_that_is_no_number_on_one_process_is_left_out_on_all(answers: Answers, way: str) -> None:
    left_out, moved, stayed, finite_after = answers.numbers[f"left-out-{way}"]
    assert left_out == 1.0
    assert moved
    assert stayed
    assert finite_after


def test_processes_agree_on_numbers(answers: Answers) -> None:
    assert answers.numbers["agreed"] == [1.0, 5.0, 7.0, 2.0, 1.0]
