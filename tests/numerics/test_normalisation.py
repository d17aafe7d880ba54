"""What is claimed of each norm: its formula against a plain restatement, its statistics, and what small batches do to it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from material import TINY, write_raw_logs
from torch import Tensor, nn

from chattune.core.errors import SettingError
from chattune.core.part import choose
from chattune.models.families import Family
from chattune.models.norms import Norm
from chattune.models.norms._batch_norm import Normalise, take_whole_statistics
from chattune.tokens.batch import Batch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs" / "lessons"))
import normalisation as lesson

EXACT = 1e-12  # float64: a few rounding errors of numbers of order 1


def build(name: str, width: int, **settings: Any) -> nn.Module:
    part: Norm = choose(Norm, {"name": name, **settings})
    return part.build(width).double()


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1.0, 3.0, shape)


def scaled(module: nn.Module, gamma: np.ndarray, beta: np.ndarray) -> nn.Module:
    with torch.no_grad():
        module.get_parameter("weight").copy_(torch.from_numpy(gamma))
        module.get_parameter("bias").copy_(torch.from_numpy(beta))
    return module


@pytest.mark.requirement("R051")
def test_batch_norm_equals_its_formula_forwards_and_backwards_through_mean_and_variance() -> None:
    z, gamma, beta, g = numbers(20, 6), numbers(6, seed=1), numbers(6, seed=2), numbers(20, 6, seed=3)
    module = scaled(build("batch_norm", 6), gamma, beta).train()
    x = torch.from_numpy(z).requires_grad_()
    out = module(x)
    out.backward(torch.from_numpy(g))
    mean, variance = z.mean(0), z.var(0)
    hat = (z - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(out.detach().numpy(), hat * gamma + beta, atol=EXACT)
    # dz = γ/√(σ² + ε) · (g − mean(g) − ẑ · mean(g·ẑ)): the last two terms are what flows through μ and σ
    wanted = gamma / np.sqrt(variance + 1e-5) * (g - g.mean(0) - hat * (g * hat).mean(0))
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), wanted, atol=1e-11)
    np.testing.assert_allclose(module.get_parameter("weight").grad.numpy(), (g * hat).sum(0), atol=1e-11)
    np.testing.assert_allclose(module.get_parameter("bias").grad.numpy(), g.sum(0), atol=1e-11)
    single = scaled(build("batch_norm", 6), gamma, beta).float().train()(torch.from_numpy(z).float())
    np.testing.assert_allclose(single.detach().numpy(), hat * gamma + beta, atol=1e-5)  # float32: 1e-6 of values up to 10


@pytest.mark.requirement("R052")
def test_a_bias_before_batch_norm_has_no_effect_and_is_remarked_on() -> None:
    module, z = build("batch_norm", 6).train(), torch.from_numpy(numbers(20, 6))
    bias = torch.from_numpy(numbers(6, seed=5)).requires_grad_()
    torch.testing.assert_close(module(z + bias), module(z), atol=EXACT, rtol=0)
    (module(z + bias) * torch.from_numpy(numbers(20, 6, seed=6))).sum().backward()
    assert bias.grad is not None and bias.grad.abs().max() < 1e-10, "it could not even be learned"
    family = choose(Family, {"name": "mlp", "norm": "batch_norm"})
    assert family.resolved().biases is False
    assert family.notes() == []
    (note,) = family.changed(biases=True).notes()
    assert "biases" in note and "batch_norm" in note
    assert choose(Family, {"name": "mlp"}).resolved().biases is True


@pytest.mark.requirement("R053")
def test_gamma_and_beta_can_give_back_what_came_in() -> None:
    z = numbers(20, 6)
    module = scaled(build("batch_norm", 6), np.sqrt(z.var(0) + 1e-5), z.mean(0)).train()
    np.testing.assert_allclose(module(torch.from_numpy(z)).detach().numpy(), z, atol=EXACT * 10)


@pytest.mark.requirement("R054")
def test_moving_averages_follow_their_recursion_and_are_used_once_trained() -> None:
    module = build("batch_norm", 6, momentum=0.25).train()
    mean, variance = np.zeros(6), np.ones(6)
    for seed in range(5):
        z = numbers(8, 6, seed=seed)
        module(torch.from_numpy(z))
        mean, variance = 0.75 * mean + 0.25 * z.mean(0), 0.75 * variance + 0.25 * z.var(0, ddof=1)
    module.eval()
    z = numbers(3, 6, seed=9)
    wanted = (z - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(module(torch.from_numpy(z)).detach().numpy(), wanted, atol=EXACT * 10)
    again = module(torch.from_numpy(z[:1]))
    np.testing.assert_allclose(again.detach().numpy(), wanted[:1], atol=EXACT * 10)  # one example alone, and nothing moved


@pytest.mark.requirement("R054")
def test_whole_statistics_are_those_of_the_whole_split_in_every_layer() -> None:
    norms = [build("batch_norm", 6, statistics="whole") for _ in range(3)]
    net = nn.Sequential(*(m for norm in norms for m in (nn.Linear(6, 6).double(), norm, nn.Tanh())))
    data = torch.from_numpy(numbers(1000, 6))
    net.train()
    net(data[:16])
    net.eval()

    def passes() -> Any:
        for part in data.split([1, 299, 400, 300]):
            net(part)
            yield

    take_whole_statistics(net, passes)
    x = data
    for module in net:
        if isinstance(module, Normalise):
            torch.testing.assert_close(module.moving_mean, x.mean(0), atol=EXACT * 10, rtol=0)
            torch.testing.assert_close(module.moving_variance, x.var(0, correction=0), atol=EXACT * 10, rtol=0)
        x = module(x)


@pytest.mark.requirement("R055")
def test_a_micro_batch_of_one_token_is_refused_by_name_with_what_fits() -> None:
    model = choose(Family, {"name": "mlp", "norm": "batch_norm", "layers": 1, "width": 8}).build(20, 0).train()
    with pytest.raises(SettingError) as caught:
        model(torch.tensor([[3]]))
    assert caught.value.path == "model.norm"
    assert "layer_norm" in (caught.value.hint or "")
    model.eval()
    assert model(torch.tensor([[3]])).shape == (1, 1, 20)


def test_padding_never_enters_the_statistics_of_a_batch() -> None:
    family = choose(Family, {"name": "mlp", "norm": "batch_norm", "layers": 2, "width": 8, "window": 3})
    ids = torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0] * 9, [0] * 4 + [1] * 2 + [-1] * 3])
    seen = []
    for filler in (0, 19):
        model = family.build(20, 0).train()
        logits = model(torch.where(segments < 0, filler, ids), segments=segments)
        seen.append((logits[segments >= 0], model.state_dict()["layers.0.input_norm.moving_mean"]))
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])
    lengths = [ids[0], ids[1, :4], ids[1, 4:6]]
    loose = family.build(20, 0).train()
    packed = torch.cat([torch.nn.functional.pad(row, (0, 9 - len(row))) for row in lengths]).view(3, 9)
    apart = torch.stack([torch.tensor([0] * len(row) + [-1] * (9 - len(row))) for row in lengths])
    torch.testing.assert_close(loose(packed, segments=apart)[apart >= 0], seen[0][0], atol=1e-5, rtol=1e-5)  # float32, other order


@pytest.mark.requirement("R056")
def test_layer_norm_equals_its_formula() -> None:
    z, gamma, beta = numbers(5, 7), numbers(7, seed=1), numbers(7, seed=2)
    out = scaled(build("layer_norm", 7), gamma, beta)(torch.from_numpy(z)).detach().numpy()
    hat = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(out, hat * gamma + beta, atol=EXACT)
    assert not hasattr(build("layer_norm", 7, bias=False), "bias") or build("layer_norm", 7, bias=False).bias is None


def test_rms_norm_equals_its_formula() -> None:
    z = numbers(5, 7)
    wanted = z / np.sqrt((z**2).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(build("rms_norm", 7)(torch.from_numpy(z)).detach().numpy(), wanted, atol=EXACT)


@pytest.mark.requirement("R058")
def test_batch_norm_works_on_rows_and_layer_norm_on_columns_of_units_by_samples() -> None:
    """The worked example of the lesson."""
    matrix = torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 8.0]], dtype=torch.float64)  # units × samples
    rows = build("batch_norm", 2, epsilon=1e-12).train()(matrix.T).T
    columns = build("layer_norm", 2, epsilon=1e-12)(matrix.T).T
    torch.testing.assert_close(rows, torch.tensor([[-1.22, 0.0, 1.22], [-0.71, -0.71, 1.41]]).double(), atol=0.006, rtol=0)
    torch.testing.assert_close(columns, torch.tensor([[-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]]).double(), atol=1e-9, rtol=0)
    page = (Path(lesson.__file__).parent / "normalisation.md").read_text("utf-8")
    for line in ("| unit 1 | −1.22 | 0 | 1.22 |", "| unit 2 | −0.71 | −0.71 | 1.41 |", "| unit 2 | 1 | −1 | 1 |"):
        assert line in page


@pytest.mark.requirement("R060")
def test_weight_norm_multiplies_with_rows_of_length_g_in_the_direction_of_v() -> None:
    linear = nn.Linear(5, 4).double()
    plain = linear.weight.detach().clone()
    wrapped = choose(Norm, "weight_norm").wrap(linear)
    torch.testing.assert_close(wrapped.plain(), plain, atol=EXACT, rtol=0)  # fresh: the map it replaces
    with torch.no_grad():
        wrapped.gain.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
        wrapped.weight.mul_(7.0)  # the length of v does not matter
    effective = wrapped.plain()
    torch.testing.assert_close(effective.norm(dim=1), torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), atol=EXACT, rtol=0)
    direction = plain / plain.norm(dim=1, keepdim=True)
    torch.testing.assert_close(effective, direction * wrapped.gain.detach()[:, None], atol=EXACT, rtol=0)
    x = torch.from_numpy(numbers(3, 5))
    torch.testing.assert_close(wrapped(x), x @ effective.T + linear.bias, atol=EXACT * 10, rtol=0)
    wrapped(x).square().sum().backward()
    across = (wrapped.weight.grad * wrapped.weight.detach()).sum(1)
    torch.testing.assert_close(across, torch.zeros(4).double(), atol=1e-10, rtol=0)  # v only turns: no gradient along itself


@pytest.mark.requirement("R060")
def test_a_fresh_model_with_weight_norm_is_the_plain_one_and_zero_rows_are_refused() -> None:
    ids = torch.arange(12).view(2, 6)
    plain, normed = (choose(Family, {"name": "mlp", "width": 16, "norm": norm}).build(20, 0) for norm in (None, "weight_norm"))
    torch.testing.assert_close(normed(ids), plain(ids), atol=1e-6, rtol=1e-5)  # float32
    with pytest.raises(SettingError, match="zero"):
        choose(Family, {"name": "mlp", "width": 16, "norm": "weight_norm", "init": "zero"}).build(20, 0)


@pytest.mark.requirement("R061", "R062", "E7")
def test_local_response_norm_equals_the_published_formula_and_constants() -> None:
    part = choose(Norm, "local_response_norm")
    assert (part.size, part.k, part.alpha, part.beta) == (5, 2.0, 1e-4, 0.75)
    assert part.place == "activation"
    for settings in ({}, {"size": 3, "k": 1.0, "alpha": 0.3, "beta": 0.5}):
        part = choose(Norm, {"name": "local_response_norm", **settings})
        a = numbers(4, 9)
        wanted = np.empty_like(a)
        for unit in range(9):
            around = a[:, max(0, unit - part.size // 2) : min(9, unit + part.size // 2 + 1)]
            wanted[:, unit] = a[:, unit] / (part.k + part.alpha * (around**2).sum(1)) ** part.beta
        np.testing.assert_allclose(part.build(9)(torch.from_numpy(a)).numpy(), wanted, atol=EXACT)
    theirs = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)  # torch divides α by n
    x = torch.from_numpy(numbers(4, 9))
    ours = choose(Norm, "local_response_norm").build(9)(x)
    torch.testing.assert_close(ours, theirs(x[:, :, None])[:, :, 0], atol=EXACT, rtol=0)


@pytest.mark.requirement("R062")
def test_local_response_norm_stands_after_the_activation_takes_no_mean_and_lets_strong_units_hold_down_others() -> None:
    model = choose(Family, {"name": "mlp", "width": 8, "norm": "local_response_norm"}).build(20, 0)
    layer = model.layers[0]
    assert isinstance(layer.input_norm, nn.Identity) and not isinstance(layer.activation_norm, nn.Identity)
    module = choose(Norm, {"name": "local_response_norm", "alpha": 0.5}).build(9)
    even = torch.full((1, 9), 2.0)
    assert (module(even) > 0).all(), "a constant is not taken away"
    strong = even.clone()
    strong[0, 4] = 20.0
    change = module(strong) / module(even)
    assert (change[0, [2, 3, 5, 6]] < 0.5).all()
    assert torch.equal(change[0, [0, 1, 7, 8]], torch.ones(4))
    assert torch.equal(module(-even), -module(even))


@pytest.mark.requirement("R062")
def test_weight_norm_has_fewer_numbers_to_normalise_than_batch_norm_where_weights_are_shared() -> None:
    convolution = nn.Conv1d(64, 64, 3)
    positions, rows = 128, 16
    outputs = rows * convolution(torch.zeros(1, 64, positions)).numel()
    assert convolution.weight.numel() == 12_288
    assert outputs == 129_024 > 10 * convolution.weight.numel()


@pytest.mark.requirement("R063")
def test_batch_norm_gives_an_example_other_numbers_in_other_company() -> None:
    module, x = build("batch_norm", 6).train(), torch.from_numpy(numbers(1, 6))
    seen = torch.stack([module(torch.cat([x, torch.from_numpy(numbers(7, 6, seed=s))]))[0] for s in range(1, 9)])
    assert (seen.std(0) > 0.05).all()
    calm = build("layer_norm", 6).train()
    assert torch.equal(calm(torch.cat([x, torch.from_numpy(numbers(7, 6))]))[0], calm(x)[0])


@pytest.fixture(scope="module")
def small_talk() -> lesson.Text:
    return lesson.text(limit=8000)


@pytest.mark.requirement("R055", "R059")
def test_batch_norm_worsens_as_micro_batches_shrink_to_two_and_layer_norm_does_not(small_talk: lesson.Text) -> None:
    torch.set_num_threads(1)
    held = {}
    for norm in ("batch_norm", "layer_norm"):
        for batch in (2, 64):
            held[norm, batch] = lesson.train(lesson.Run(norm, batch, steps=40), small_talk).held
    # Layer norm: the same gradients, summed in another order. Batch norm: some tenths of a nat after 40 of the lesson's 300 updates.
    assert held["layer_norm", 2] == pytest.approx(held["layer_norm", 64], abs=0.02)
    assert held["batch_norm", 2] > held["batch_norm", 64] + 0.1


@pytest.mark.requirement("R064", "E13")
def test_the_drift_of_net_inputs_is_measured(small_talk: lesson.Text) -> None:
    torch.set_num_threads(1)
    deep = {norm: lesson.train(lesson.Run(norm, 128, 4, steps=40), small_talk) for norm in (None, "batch_norm")}
    for outcome in deep.values():
        assert 0 < outcome.drift < 10
        assert outcome.losses[-1] < outcome.losses[0]


def test_statistics_survive_saving_and_an_interrupted_training_continues_to_the_bit(tmp_path: Path) -> None:
    import chattune
    from chattune.models.checkpoint import load_model

    logs = write_raw_logs(tmp_path / "window.txt")
    recipe = {
        "collect": {"sources": str(logs)},
        "model": {"name": "mlp", "layers": 1, "width": 16, "window": 4, "context": 32, "norm": {"name": "batch_norm"}},
    }
    settings = [word for word in TINY if not word.startswith("model.")] + ["train.steps=6", "train.evaluations=1", "train.keep=last"]
    moved = {}
    for statistics in ("moving", "whole"):
        told = chattune.run(
            {**recipe, "model": {**recipe["model"], "norm": {"name": "batch_norm", "statistics": statistics}}}, settings,
            home=tmp_path / "runs", until="train",
        )  # fmt: skip
        moved[statistics] = load_model(told.run).state_dict()
    name = "layers.0.input_norm.moving_mean"
    assert moved["moving"][name].abs().max() > 0
    assert not torch.equal(moved["moving"][name], moved["whole"][name])
    for parameter in ("embedding.weight", "layers.0.linear.weight"):
        assert torch.equal(moved["moving"][parameter], moved["whole"][parameter]), "what replaces the batch never touches training"


class Always:
    """An order of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def next(self) -> Batch:
        return self.batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": 0, "index": 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state == self.state_dict()


def test_what_batch_norm_remembers_is_saved_and_restored_with_the_weights(tmp_path: Path) -> None:
    from chattune.train.budget import Budget
    from chattune.train.config import TrainConfig
    from chattune.train.device import Worker
    from chattune.train.loop import Training
    from chattune.train.state import Snapshots

    ids = torch.randint(20, (4, 13), generator=torch.Generator().manual_seed(0))
    inputs, targets, place = ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.arange(12).expand(4, 12)
    batch = Batch(inputs, targets, torch.ones(4, 12), place, torch.zeros(4, 12, dtype=torch.int32))
    config = TrainConfig(optimizer={"name": "adamw", "lr": 0.01}, batch_tokens=48)  # type: ignore[arg-type]

    def training(precision: str) -> Training:
        model = choose(Family, {"name": "mlp", "layers": 1, "width": 16, "norm": "batch_norm"}).build(20, 0).train()
        worker = Worker(model, precision)  # type: ignore[arg-type]
        worker.model.train()
        return Training(config, worker, Always(batch), Budget(steps=8), 0)

    def states(one: Training) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in one.worker.master.state_dict().items()}

    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        folder.mkdir()
        through, stopped, resumed = training(precision), training(precision), training(precision)
        for _ in range(4):
            through.step()
        for _ in range(2):
            stopped.step()
        stopped.save(Snapshots(folder))
        snapshot = Snapshots(folder).load()
        assert snapshot is not None
        resumed.restore(snapshot)
        for _ in range(2):
            resumed.step()
        wanted, found = states(through), states(resumed)
        assert wanted["layers.0.input_norm.moving_mean"].dtype == torch.float32
        assert all(torch.equal(wanted[name], found[name]) for name in wanted)
