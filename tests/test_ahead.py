"""What keeps a GPU busy, proved on the processor: bad steps left out by the device, numbers read late, batches made ahead."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import made_order, made_split, made_training, surroundings
from torch import Tensor

from chattune.core.errors import DivergenceError, SettingError
from chattune.core.record import Record
from chattune.models.families.gpt import GPT
from chattune.models.families.rnn import RNN
from chattune.models.language_model import LanguageModel
from chattune.tokens.batch import Batch
from chattune.train import loop
from chattune.train.device import checkpoint_activations, compiled
from chattune.train.loop import Training
from chattune.train.objectives import LossView
from chattune.train.objectives.next_token import NextToken
from chattune.train.prefetch import Prefetched

OPTIMIZERS = [{"name": "adamw", "lr": 5e-3}, {"name": "muon"}]


class SpoiltObjective(NextToken):
    """Next token whose loss is no number in some of the updates."""

    updates: tuple[int, ...] = ()
    seen: list[int] = []  # each instance has a copy of its own

    def view(self, model: LanguageModel, batch: Batch, *, full: bool = False) -> LossView:
        view = super().view(model, batch, full=full)
        self.seen.append(1)
        if len(self.seen) in self.updates:
            view.loss = view.loss * math.nan
        return view


def made(updates: tuple[int, ...], optimizer: dict[str, Any], *, ahead: bool, **more: Any) -> Training:
    config = {"steps": 8, "clip": 0.0, "evaluations": 2, "optimizer": optimizer, "objective": SpoiltObjective(updates=updates), **more}
    training = made_training(config)
    training.ahead = ahead  # as on a GPU
    return training


def weights(training: Training) -> list[Tensor]:
    return [p.detach().clone() for p in training.parameters]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o["name"])
@pytest.mark.requirement("C4", "I31")
def test_a_step_left_out_by_the_device_is_the_step_left_out_by_the_program(optimizer: dict[str, Any]) -> None:
    ends = []
    for ahead in (False, True):
        training = made((3, 4, 6), optimizer, ahead=ahead)
        for _ in range(2):
            training.step()
        before = weights(training)
        assert training.step()["left_out"] == training.step()["left_out"] == 1.0
        assert all(torch.equal(was, now) for was, now in zip(before, weights(training), strict=True))
        rest = [training.step() for _ in range(4)]
        assert [numbers.get("left_out") for numbers in rest] == [None, 1.0, None, None]
        ends.append((weights(training), [numbers["loss"] for numbers in rest if "left_out" not in numbers]))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(ends[0][0], ends[1][0], strict=True))


def test_clipping_without_asking_is_clipping() -> None:
    ends = []
    for ahead in (False, True):
        training = made((), {"name": "adamw", "lr": 5e-3}, ahead=ahead, clip=0.05)
        norms = [training.step()["grad_norm"] for _ in range(6)]
        assert max(norms) > 0.05
        ends.append(weights(training))
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)  # the share is computed in float32 there, in float64 here


def test_numbers_that_arrive_late_are_recorded_all_and_in_order(tmp_path: Path) -> None:
    rows = []
    for ahead in (False, True):
        folder = tmp_path / str(ahead)
        folder.mkdir()
        training = made((2,), {"name": "adamw", "lr": 5e-3}, ahead=ahead, save_steps=3)
        loop.fit(training, surroundings(folder, lambda model: {"loss": 1.0}))
        found = [row for row in Record(folder / "metrics.jsonl").rows() if "event" not in row]
        rows.append([{key: value for key, value in row.items() if key != "seconds"} for row in found])
    assert [row["step"] for row in rows[0]] == [*range(1, 9)]
    assert rows[0] == rows[1]


def test_without_waiting_the_newest_update_stays_with_the_device() -> None:
    training = made((), {"name": "adamw", "lr": 5e-3}, ahead=True)
    training.advance()
    assert [*training.arrived()] == []
    training.advance()
    assert [update.step for update in training.arrived()] == [1]
    assert [update.step for update in training.arrived(wait=True)] == [2]


@pytest.mark.requirement("C4")
def test_three_bad_updates_in_a_row_end_the_run_also_where_they_are_told_late(tmp_path: Path) -> None:
    training = made((3, 4, 5, 6, 7, 8), {"name": "adamw", "lr": 5e-3}, ahead=True)
    with pytest.raises(DivergenceError, match="3 updates in a row, the last at step 5"):
        loop.fit(training, surroundings(tmp_path, lambda model: {"loss": 1.0}))
    assert training.state.step <= 6  # one more was computed, and left out by itself
    assert all(bool(p.isfinite().all()) for p in training.parameters)


@pytest.mark.requirement("C2", "R101")
def test_batches_made_ahead_are_those_of_the_order_and_its_state_is_the_readers() -> None:
    plain, order = made_order(made_split(30)), made_order(made_split(30))
    ahead = Prefetched(order, pin=False)
    for _ in range(2 * plain.batches_per_epoch + 1):
        assert ahead.state_dict() == plain.state_dict()
        assert torch.equal(ahead.next().inputs, plain.next().inputs)
    middle = {"epoch": 1, "index": 1}
    plain.load_state_dict(middle)
    ahead.load_state_dict(middle)
    for _ in range(plain.batches_per_epoch):
        assert torch.equal(ahead.next().targets, plain.next().targets)
    expected = [batch.inputs for batch in plain.epoch_of_batches()]
    assert all(torch.equal(ours.inputs, theirs) for ours, theirs in zip(ahead.epoch_of_batches(), expected, strict=True))
    assert torch.equal(ahead.next().targets, plain.next().targets)


def test_an_error_of_the_thread_reaches_the_reader() -> None:
    class Broken:
        def next(self) -> Batch:
            raise OSError("the disk is gone")

        def state_dict(self) -> dict[str, int]:
            return {"epoch": 0, "index": 0}

    with pytest.raises(OSError, match="the disk is gone"):
        Prefetched(Broken(), pin=False).next()  # type: ignore[arg-type]


def test_the_positions_that_count_travel_with_the_batch() -> None:
    batch = made_order(made_split(20)).next()
    assert torch.equal(batch.learned, (batch.weights.reshape(-1) > 0).nonzero()[:, 0])
    assert batch.to("meta").learned.shape == batch.learned.shape  # a device without numbers cannot have counted them


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_activations_computed_again_give_the_same_gradient_to_the_bit_for_less_memory(drop: float) -> None:
    family = GPT(layers=4, width=32, heads=4, kv_heads=2, hidden=64, context=32, dropout=drop)
    batch, found, kept = made_order(made_split(20)).next(), [], []
    for again in (False, True):
        model = family.build(61, 0).train()
        if again:
            checkpoint_activations(model)
        torch.manual_seed(3)
        held = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal held
            held += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = NextToken().view(model, batch).loss
        kept.append(held)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
    assert kept[1] < 0.5 * kept[0]


def test_a_model_without_blocks_cannot_compute_them_again() -> None:
    with pytest.raises(SettingError, match=r"train.checkpoint_activations: .* has no blocks"):
        checkpoint_activations(RNN(width=16, layers=1).resolved().build(61, 0))


def test_compiled_code_is_kept_in_the_users_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that what is set below is taken back
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compiled(GPT(layers=1, width=16, heads=2, hidden=16, context=16).build(61, 0))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "chattune" / "compiled")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o["name"])
def test_a_step_never_waits_for_the_gpu(optimizer: dict[str, Any]) -> None:
    from test_train import FAMILY, VOCABULARY

    from chattune.train.budget import Budget
    from chattune.train.config import TrainConfig
    from chattune.train.device import Worker

    config = TrainConfig.model_validate({"steps": 20, "optimizer": optimizer})
    order = Prefetched(made_order(made_split(40)), pin=True)
    training = Training(config, Worker(FAMILY.build(VOCABULARY, 0).cuda(), "float32"), order, Budget(steps=20), 0, device="cuda:0")
    training.worker.model.train()
    for _ in range(3):
        training.step()  # allocations and libraries wait the first time
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            training.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([*training.arrived(wait=True)]) == 5
