"""The benchmarks compare equal work: their peers run, in miniature, and learn what they are timed on."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from chattune.generate.native.runner import native_reason

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def throughput() -> Any:
    import train_throughput

    return train_throughput


def test_every_peer_of_the_throughput_benchmark_does_the_same_work(throughput: Any) -> None:
    shape = throughput.Shape(layers=2, width=32, heads=2, hidden=96, context=16, vocabulary=64, rows=2)
    mine = throughput.family(shape).build(shape.vocabulary, 0)
    theirs = throughput.llama(shape)
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in theirs.parameters())
    for run in (throughput.ours, throughput.nano, throughput.plain_loop, throughput.trainer):
        found = run(shape, 2)
        assert found.work == [32.0, 32.0]
        assert len(found.seconds) == 2
        assert min(found.seconds) > 0
        assert found.memory > 0.05


def test_the_packing_benchmark_counts_loss_bearing_tokens(throughput: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sft_packing

    shape = throughput.Shape(layers=1, width=16, heads=2, hidden=32, context=256, vocabulary=64, rows=2)
    monkeypatch.setattr(sft_packing, "SHAPE", shape)
    lengths = [len(ids) for ids, _ in sft_packing.rendered(2000)]
    assert 28 < sum(lengths) / len(lengths) < 32  # the mean that the bars were measured at
    rates = {}
    for name in ("packed", "padded", "bucketed"):
        rates[name] = sum(sft_packing.ours(name, 60, 2).work)
    rates["random"] = sum(sft_packing.random_padding(60, 2).work)
    assert rates["packed"] > rates["random"] > rates["padded"]  # as many positions, fewer of them empty
    assert rates["packed"] > 0.9 * rates["bucketed"]


def test_the_small_gpt2_learns_and_its_rate_warms_up_and_decays(throughput: Any) -> None:
    import nano_loop

    torch.manual_seed(0)
    model = nano_loop.NanoGPT(nano_loop.Shape(layers=1, heads=2, width=16, context=8, vocabulary=5))
    ids = torch.arange(200) % 5
    recipe = nano_loop.Recipe(steps=60, rows=4, peak=1e-2, warmup=5)
    random = torch.Generator().manual_seed(0)

    def loss() -> float:
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(model(ids[None, :8])[0], ids[1:9]))

    before = loss()
    assert before == pytest.approx(torch.log(torch.tensor(5.0)).item(), abs=0.2)  # fresh: about uniform
    nano_loop.train(model, recipe, lambda: nano_loop.crops(ids, 4, 8, random))
    assert loss() < 0.5 * before
    assert recipe.rate(0) < recipe.rate(4) < recipe.peak
    assert recipe.rate(60) == pytest.approx(recipe.lowest)


def test_the_sample_efficiency_benchmark_scores_every_character_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import sample_efficiency

    monkeypatch.setattr(sample_efficiency, "CONTEXT", 4)

    class Uniform(torch.nn.Module):
        seen = 0

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            self.seen += ids.numel()
            return torch.zeros(*ids.shape, 7)

    model = Uniform()
    assert sample_efficiency.loss_on(torch.arange(23) % 7, model) == pytest.approx(torch.log(torch.tensor(7.0)).item())
    assert model.seen == 22  # all but the first are predicted


def test_a_slow_peer_is_timed_once_and_not_again(throughput: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import _common

    monkeypatch.setattr(_common, "PATIENCE", 0.0)
    shape = throughput.Shape(layers=2, width=32, heads=2, hidden=96, context=16, vocabulary=64, rows=2)
    for run in (throughput.ours, throughput.nano, throughput.trainer):
        found = run(shape, 5)
        assert found.work == [32.0], "one update after those that warm up"
        assert len(found.seconds) == 1


def test_a_peer_is_meant_by_its_whole_name_or_by_the_beginning_of_several() -> None:
    import _common

    peers = ["chattune", "chattune, compiled", "Trainer, default", "Trainer, bf16"]
    assert [name for name in peers if _common._means("chattune", name, peers)] == ["chattune"]
    assert [name for name in peers if _common._means("Trainer", name, peers)] == ["Trainer, default", "Trainer, bf16"]


def test_every_peer_of_the_decoding_benchmark_decodes(tmp_path: Path) -> None:
    import decode

    bench = decode.Bench(decode.Shape(layers=2, width=64, heads=2, hidden=96, vocabulary=300), tmp_path, prompt=16, new=4)
    peers = {
        "chattune float32": lambda: decode.ours(bench, "float32", True), "chattune int4": lambda: decode.ours(bench, "int4", True),
        "chattune float32, PyTorch": lambda: decode.ours(bench, "float32", False),
        "transformers float32": lambda: decode.transformers(bench, "float32"),
        "llama.cpp Q4_0": lambda: decode.llama_cpp(bench, "Q4_0"),
    }  # fmt: skip
    if native_reason(bench.model()) is not None:
        del peers["chattune float32"], peers["chattune int4"]
    if find_spec("xllamacpp") is None:
        del peers["llama.cpp Q4_0"]
    found = {name: [measure()] for name, measure in peers.items()}
    for runs in found.values():
        assert runs[0].work == [16, 3, 24]
        assert min(runs[0].seconds) > 0
    lines = list(decode.lines("tiny", found))
    assert {line.bench.split(", ")[1] for line in lines} == set(decode.WORKS)
    if len(found) == 5:
        assert any(line.peer == "llama.cpp Q4_0" and line.bar == 1.3 for line in lines)
