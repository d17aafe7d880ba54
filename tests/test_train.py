"""Training: the loss is what it says, the gradient does not depend on how work is divided, the budget is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from chattune.core.errors import DivergenceError
from chattune.core.progress import Progress
from chattune.core.record import Record
from chattune.models.families.gpt import GPT
from chattune.models.language_model import LanguageModel
from chattune.tokens.batch import Batch
from chattune.tokens.batchers import Batcher
from chattune.tokens.batchers.bucketed import Bucketed
from chattune.tokens.batchers.packed import Packed
from chattune.tokens.batchers.padded import Padded
from chattune.tokens.order import Order, collate
from chattune.tokens.token_set import TokenSplit
from chattune.tokens.windows import windows
from chattune.train import loop
from chattune.train.budget import Budget
from chattune.train.config import TrainConfig
from chattune.train.device import Worker, choose_precision
from chattune.train.estimate import estimate
from chattune.train.interrupt import Interrupt
from chattune.train.loop import Training
from chattune.train.objectives import LossView
from chattune.train.objectives._cross_entropy import linear_cross_entropy
from chattune.train.objectives.next_token import NextToken
from chattune.train.schedules.warmup_stable_decay import WarmupStableDecay
from chattune.train.state import Snapshots

CONTROL = {"begin": 0, "end": 1, "system": 2, "user": 3, "assistant": 4, "tool": 5, "pad": 6}
VOCABULARY, CONTEXT = 61, 32
FAMILY = GPT(layers=2, width=32, heads=4, kv_heads=2, hidden=48, context=CONTEXT)


def made_split(dialogs: int, seed: int = 0) -> TokenSplit:
    """Dialogs of 4 to 90 ids with a pattern that can be learned: each id is the one before plus one."""
    random = np.random.default_rng(seed)
    rendered = []
    for _ in range(dialogs):
        length = int(random.integers(2, 88))
        start = int(random.integers(54))
        text = [7 + number % 54 for number in range(start, start + length)]
        ids = [0, 4, *text, 1]
        rendered.append((ids, [0.0, 0.0, *[1.0] * (length + 1)]))
    return TokenSplit.of(rendered, CONTROL)


def made_order(split: TokenSplit, batch_tokens: int = 8 * CONTEXT, batcher: Batcher | None = None) -> Order:
    return Order(split, windows(split, CONTEXT), batcher or Packed(), batch_tokens, CONTEXT, seed=0)


def made_training(config: dict[str, object], seed: int = 0, precision: str = "float32") -> Training:
    chosen = TrainConfig.model_validate({"steps": 60, **config})
    master = FAMILY.build(VOCABULARY, seed)
    for method in chosen.regularizers:
        method.edit(master)
    worker = Worker(master, precision)  # type: ignore[arg-type]
    worker.model.train()
    return Training(chosen, worker, made_order(made_split(40)), Budget(steps=chosen.steps), seed)


@pytest.mark.requirement("R150")
def test_linear_cross_entropy_is_the_negative_log_likelihood() -> None:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(150, 8, generator=random, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(40_000, 8, generator=random, dtype=torch.float64, requires_grad=True)  # several pieces
    targets = torch.randint(40_000, (150,), generator=random)
    weights = torch.rand(150, generator=random).clamp(min=0.1)
    loss, nll = linear_cross_entropy(hidden, matrix, targets, weights)
    gradients = torch.autograd.grad(loss * 3.0, [hidden, matrix])
    plain = torch.nn.functional.cross_entropy(hidden @ matrix.t(), targets, reduction="none")
    reference = (plain * weights.double()).sum() / weights.double().sum()
    torch.testing.assert_close(nll, plain.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, reference, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients, torch.autograd.grad(reference * 3.0, [hidden, matrix]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)  # sums in another order


def test_the_short_way_and_the_full_way_give_one_loss_and_one_gradient() -> None:
    model, order = FAMILY.build(VOCABULARY, 1), made_order(made_split(20))
    batch = order.next()
    found = []
    for full in (False, True):
        model.zero_grad()
        view = NextToken().view(model, batch, full=full)
        view.loss.backward()
        found.append((view.loss.detach(), view.logits.detach(), view.nll, [p.grad.clone() for p in model.parameters()]))
    for ours, theirs in zip(found[0][3], found[1][3], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)  # float32 sums in another order
    for ours, theirs in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.requirement("R026")
def test_packed_bucketed_and_padded_batches_give_the_same_loss_per_token() -> None:
    split, model = made_split(24), FAMILY.build(VOCABULARY, 2).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    losses = []
    for batcher in (Packed(), Bucketed(), Padded()):
        order = made_order(split, 4 * CONTEXT, batcher=batcher)
        total = weight = 0.0
        for _ in range(order.batches_per_epoch):
            batch = order.next()
            total += float(NextToken().view(model, batch).loss.detach()) * float(batch.weights.sum())
            weight += float(batch.weights.sum())
        losses.append((total / weight, weight))
    assert losses[0][1] == losses[1][1] == losses[2][1] == np.count_nonzero(split.weights)
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)
    assert losses[2][0] == pytest.approx(losses[0][0], rel=1e-5)


@pytest.mark.requirement("R026")
def test_neither_pad_tokens_nor_neighbours_change_a_loss() -> None:
    split, model = made_split(12), FAMILY.build(VOCABULARY, 3).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    cut = windows(split, CONTEXT)
    short = [int(w) for w in np.argsort(cut.length)[:3]]
    view = NextToken().view(model, collate(split, cut, [short], pad=6, time=96))
    own = int(np.count_nonzero(split.weights[cut.start[short[0]] : cut.start[short[0]] + cut.length[short[0]] + 1]))
    other_pad = NextToken().view(model, collate(split, cut, [short], pad=9, time=96))
    assert torch.equal(view.nll, other_pad.nll)
    other = NextToken().view(model, collate(split, cut, [[short[0], *[int(w) for w in np.argsort(cut.length)[3:5]]]], pad=6, time=96))
    torch.testing.assert_close(view.nll[:own], other.nll[:own], rtol=1e-5, atol=1e-6)


@pytest.mark.requirement("C8", "I30", "R080")
@pytest.mark.parametrize("accumulate", [4, 32])
def test_the_gradient_does_not_depend_on_the_number_of_micro_batches(accumulate: int) -> None:
    def gradient(parts: int) -> list[torch.Tensor]:
        training = made_training({"accumulate": parts, "clip": 0.0, "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.0}})
        training.order = made_order(made_split(200), 32 * CONTEXT)  # 32 rows of ragged windows
        before = [p.detach().clone() for p in training.parameters]
        training.step()
        return [was - p.detach() for was, p in zip(before, training.parameters, strict=True)]

    scale = max(float(g.abs().max()) for g in gradient(1))
    for whole, divided in zip(gradient(1), gradient(accumulate), strict=True):
        assert float((whole - divided).abs().max()) <= 1e-6 * max(scale, 1.0)  # float32 sums in another order


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_learns_what_can_be_learned(optimizer: str) -> None:
    training = made_training({"steps": 60, "optimizer": {"name": optimizer, "lr": 0.02 if optimizer == "muon" else 5e-3}})
    losses = [training.step()["loss"] for _ in range(60)]
    assert losses[0] == pytest.approx(math.log(VOCABULARY), rel=0.05)  # fresh weights know nothing (D21)
    assert losses[-1] < 0.35 * losses[0]


@pytest.mark.requirement("R192")
def test_bfloat16_beside_float32_masters_follows_float32() -> None:
    curves = []
    for precision in ("float32", "bfloat16"):
        training = made_training({"steps": 60, "optimizer": {"name": "adamw", "lr": 5e-3}}, precision=precision)
        assert all(p.dtype == torch.float32 for p in training.parameters)
        curves.append([training.step()["loss"] for _ in range(60)])
    # bfloat16 keeps 8 bits: each loss is off by about 2⁻⁸, and the curves must not drift apart
    assert np.abs(np.subtract(*curves))[:10].max() < 0.02
    assert abs(np.mean(curves[0][-10:]) - np.mean(curves[1][-10:])) < 0.03


def test_a_tiny_rate_is_not_lost_in_bfloat16() -> None:
    adamw = {"name": "adamw", "lr": 1e-5, "weight_decay": 0.0}
    training = made_training({"optimizer": adamw, "schedule": "constant"}, precision="bfloat16")
    before = training.parameters[0].detach().clone()
    training.step()
    moved = (training.parameters[0].detach() - before).abs()
    assert 0 < float(moved.max()) <= 1.01e-5  # the copy could not hold such a step; the master does


def test_precision_is_measured_and_the_choice_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chattune.train.device.bfloat16_gain", lambda: 1.0)  # a processor where only passes can tell
    model, batch = FAMILY.build(VOCABULARY, 0), made_order(made_split(20)).next()

    def step(each: object) -> None:
        NextToken().view(each, batch).loss.backward()  # type: ignore[arg-type]

    chosen, why = choose_precision(model, step, "auto")
    assert chosen in ("float32", "bfloat16") and "ms in float32" in why and "ms in bfloat16" in why
    assert choose_precision(model, step, "bfloat16") == ("bfloat16", "bfloat16 as set")
    assert all(p.grad is None for p in model.parameters())  # measured on copies


@pytest.mark.requirement("R104", "R103")
def test_clipping_bounds_the_norm_of_the_whole_gradient() -> None:
    training = made_training({"clip": 0.01, "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.0}, "schedule": "constant"})
    before = torch.cat([p.detach().flatten() for p in training.parameters])
    numbers = training.step()
    moved = torch.cat([p.detach().flatten() for p in training.parameters]) - before
    assert numbers["grad_norm"] > 0.01
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)  # lr 1: the step is the clipped gradient


def test_a_budget_in_minutes_follows_the_clock() -> None:
    budget, schedule = Budget(seconds=100.0), WarmupStableDecay(warmup=0.1, decay=0.5)
    assert [budget.progress(step, seconds) for step, seconds in ((0, 0.0), (7, 50.0), (9, 130.0))] == [0.0, 0.5, 1.0]
    factors = [budget.factor(schedule, 0, seconds) for seconds in range(100)]
    assert 0 < factors[0] < 0.01 and factors[30] == 1.0 and factors[99] < 0.03
    assert budget.total(10, 20.0) == 50
    assert Budget(steps=7).total(3, 9.0) == 7


@pytest.mark.requirement("R101", "R106")
def test_an_epoch_is_every_window_once() -> None:
    split = made_split(30)
    order = made_order(split, 4 * CONTEXT)
    seen = sum(float(order.next().weights.sum()) for _ in range(order.batches_per_epoch))
    assert seen == np.count_nonzero(split.weights)
    assert order.state_dict() == {"epoch": 1, "index": 0}


class NeverANumber(NextToken):
    """A loss that overflowed."""

    def view(self, model: LanguageModel, batch: Batch, *, full: bool = False) -> LossView:
        view = super().view(model, batch, full=full)
        view.loss = view.loss * math.nan
        return view


def surroundings(folder: Path, look: Callable[[LanguageModel], dict[str, float]]) -> loop.Surroundings:
    """What `fit` reports to, in a folder of its own."""
    record, snapshots = Record(folder / "metrics.jsonl"), Snapshots(folder, on_save_error="warn")
    return loop.Surroundings(record, snapshots, Interrupt(), Progress("train", 4), "run", look, lambda: None)


@pytest.mark.requirement("C4")
def test_a_validation_loss_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    losses = iter([math.nan, 3.0, math.nan, 4.0, math.nan])
    training = made_training({"steps": 4, "evaluations": 4})
    loop.fit(training, surroundings(tmp_path, lambda model: {"loss": next(losses)}))
    assert training.state.best == {"step": 1, "loss": 3.0}


@pytest.mark.requirement("C4")
def test_giving_up_is_recorded_with_its_reason(tmp_path: Path) -> None:
    training = made_training({"steps": 9, "evaluations": 1, "objective": NeverANumber()})
    with pytest.raises(DivergenceError, match="3 updates in a row"):
        loop.fit(training, surroundings(tmp_path, lambda model: {"loss": 1.0}))
    rows = Record(tmp_path / "metrics.jsonl").rows()
    assert rows[-1]["event"] == "given up" and "epoch 0" in rows[-1]["error"]
    assert [row["left_out"] for row in rows if "left_out" in row] == [1.0, 1.0]


@pytest.mark.requirement("C3")
def test_a_checkpoint_that_could_not_be_written_is_not_called_saved(tmp_path: Path) -> None:
    training = made_training({"steps": 4})
    (tmp_path / "gone").mkdir()
    snapshots = Snapshots(tmp_path / "gone", on_save_error="warn")
    training.step()
    training.save(snapshots)
    assert training.state.saved == 1
    (tmp_path / "gone" / "step-00000001").rename(tmp_path / "kept")
    (tmp_path / "gone").rmdir()
    (tmp_path / "gone").write_text("a file where the folder was")
    training.step()
    training.save(snapshots)
    assert training.state.saved == 1


def test_contradicting_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="steps and minutes contradict"):
        TrainConfig(steps=3, minutes=1.0)


@pytest.mark.requirement("R076")
def test_the_estimate_counts_parameters_steps_and_tokens_exactly() -> None:
    config = TrainConfig.model_validate({"epochs": 2.0, "batch_tokens": 256, "optimizer": {"name": "adamw", "lr": 1e-3}})
    found = estimate({"model": FAMILY.resolved(), "train": config, "seed": 0}, tokens=25_600)
    assert found["parameters"] == sum(p.numel() for p in FAMILY.build(4096, 0).parameters())
    assert (found["steps"], found["tokens"]) == (200, 200 * 256)
    assert found["seconds"] > 0 and found["memory_bytes"] > 0 and found["disk_bytes"] > 0


def test_a_batch_divides_without_losing_a_row() -> None:
    batch: Batch = made_order(made_split(60), 10 * CONTEXT).next()
    shares = [share for part in range(2) for share in batch.shares(3, part, 2)]
    assert sum(len(share) for share in shares) == len(batch)
    assert torch.equal(torch.cat([share.targets for share in shares]), batch.targets)
