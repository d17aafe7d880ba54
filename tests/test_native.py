"""The compiled step says what PyTorch says, in every format, whatever it computes side by side; where it cannot, it says why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import chatterbot_corpus
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from chattune.core.errors import UsageError
from chattune.generate.native import build
from chattune.generate.native import runner as native
from chattune.generate.native.packing import PART, WEIGHTS, Weights, dequantised, rounded, rounded_activations
from chattune.generate.native.runner import NativeRunner, native_reason, native_runner
from chattune.generate.runner import Piece
from chattune.models.adapters.lora import LoRA
from chattune.models.families._gpt import GPTModel
from chattune.models.families.gpt import GPT
from chattune.models.families.gru import GRU
from chattune.models.layers import Linear

VOCABULARY, LENGTH, SLOTS = 51, 48, 4
LOUD: dict[str, Any] = {"init": {"name": "normal", "std": 0.2}, "init_outputs": "same"}
# Sizes that fill no tile, group or register.
SMALL: dict[str, Any] = {"layers": 2, "width": 72, "heads": 6, "kv_heads": 2, "head": 20, "hidden": 100, "context": LENGTH, **LOUD}
GEMMA: dict[str, Any] = {
    "norm": {"name": "rms_norm", "epsilon": 1e-6, "offset": 1.0}, "norm_placement": "both", "activation": "geglu_tanh",
    "embedding_scale": 8.0, "attention_scale": 0.2, "window": 7, "global_layers": [1], "rope_theta": 1e6, "local_rope_theta": 1e4,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "as it stands": {},
    "llama 3": {"qk_norm": False, "tied": False, "rope_theta": 5e5, "rope_scaling": {"factor": 4.0, "context": 32}},
    "linear scaling": {"rope_scaling": {"type": "linear", "factor": 4.0}, "kv_heads": 6},
    "qwen2": {"qk_norm": False, "biases": "qkv"},
    "gemma 2": {**GEMMA, "attention_softcap": 5.0, "logit_softcap": 4.0},
    "gemma 3": {**GEMMA, "qk_norm": True},
    "gpt2": {"kv_heads": 6, "positions": "learned", "norm": "layer_norm", "biases": "all", "activation": "gelu_tanh", "qk_norm": False},
    "geglu": {"activation": "geglu", "biases": "all", "norm": {"name": "layer_norm", "bias": False}},
    "reglu after the sum": {"activation": "reglu", "norm_placement": "post"},
    "plain gelu, no positions": {"activation": "gelu", "positions": "none", "hidden": 104},
    "relu, no residual": {"activation": "relu", "residual": False},
    "squared relu": {"activation": "relu_squared", "window": 11},
    "silu, one head": {"activation": "silu", "heads": 1, "kv_heads": 1, "head": 72},
}  # fmt: skip

needs_compiler = pytest.mark.skipif(build.library()[0] is None, reason=f"nothing can be compiled: {build.library()[1]}")


def fresh(**settings: Any) -> GPTModel:
    """A model whose vectors are random, too."""
    model = GPT(**{**SMALL, **settings}).build(VOCABULARY, seed=0).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn(weight.shape, generator=random) * 0.1)
    assert isinstance(model, GPTModel)
    return model


def ids_of(rows: int, seed: int = 0) -> list[list[int]]:
    found: list[list[int]] = torch.randint(VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(seed)).tolist()
    return found


def whole(runner: NativeRunner, ids: list[list[int]]) -> Tensor:
    """Logits of all places, every row in one piece."""
    return runner.forward([Piece(row, 0, each, every=True) for row, each in enumerate(ids)]).view(len(ids), -1, VOCABULARY)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@needs_compiler
@pytest.mark.requirement("R202")
@pytest.mark.parametrize("what", MODELS)
@torch.no_grad()
def test_the_compiled_step_says_what_the_model_says(what: str) -> None:
    model, ids = fresh(**MODELS[what]), ids_of(SLOTS)
    runner = native_runner(model, slots=SLOTS, length=LENGTH)
    # The same formulas in float32, sums in another order.
    assert distance(whole(runner, ids), model(torch.tensor(ids))) < 5e-6


@needs_compiler
@pytest.mark.requirement("R192", "R193")
@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_every_format_says_what_its_rounded_weights_say(weights: Weights) -> None:
    model, ids = fresh(tied=False), ids_of(SLOTS)
    oracle = dequantised(model, weights)
    if weights in ("int8", "int4"):
        for module in oracle.modules():
            if isinstance(module, Linear):
                module.register_forward_pre_hook(lambda module, inputs: rounded_activations(inputs[0]))
        oracle.norm.register_forward_hook(lambda module, inputs, normed: rounded_activations(normed))  # type: ignore[union-attr]
    room = native.Room(SLOTS, LENGTH, 2, short=False)
    found = whole(NativeRunner(model, native._loaded(), room, weights), ids)
    # A sum in another order puts a number that stands between two steps of int8 on the other one now and then.
    assert distance(found, oracle(torch.tensor(ids))) < (1e-5 if weights in ("float32", "bfloat16") else 1e-2)
    # Keys and values in float16 are off by 2⁻¹¹ at most, which moves a few such numbers more.
    assert distance(whole(native_runner(model, slots=SLOTS, length=LENGTH, weights=weights), ids), found) < 0.05


@needs_compiler
@pytest.mark.requirement("R200")
@pytest.mark.parametrize("weights", WEIGHTS)
def test_results_are_the_same_to_the_bit_however_the_work_is_cut(weights: Weights) -> None:
    model, ids = fresh(window=21), ids_of(SLOTS)
    runner = native_runner(model, slots=SLOTS, length=LENGTH, weights=weights, threads=2)
    wanted = whole(runner, ids)
    alone = native_runner(model, slots=SLOTS, length=LENGTH, weights=weights, threads=1)
    for row in range(SLOTS):
        for place in range(LENGTH):
            assert torch.equal(alone.forward([Piece(row, place, ids[row][place : place + 1])])[0], wanted[row, place])
    for chunk in (2, 3, 7, 17):  # prompts in chunks, and other rows that decode beside them
        for start in range(0, LENGTH, chunk):
            pieces = [Piece(row, start, ids[row][start : start + (chunk if row % 2 else 1)], every=True) for row in range(SLOTS)]
            found = runner.forward(pieces)
            last = min(start + chunk, LENGTH)
            assert torch.equal(found[0], wanted[0, start])
            assert torch.equal(found[1 : 1 + last - start], wanted[1, start:last])
            runner.forward([Piece(row, start, ids[row][start:last]) for row in range(SLOTS)])


@needs_compiler
def test_threads_of_its_own_compute_the_same_as_those_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = fresh(), ids_of(SLOTS)
    wanted = whole(native_runner(model, slots=SLOTS, length=LENGTH, threads=2), ids)
    monkeypatch.setattr(native, "threads_of_torch", lambda: (None, None))
    for threads in (1, 2, 3):
        runner = native_runner(model, slots=SLOTS, length=LENGTH, threads=threads)
        assert torch.equal(whole(runner, ids), wanted)
        del runner  # ends its threads


@needs_compiler
@pytest.mark.requirement("R200")
def test_only_the_logits_that_were_asked_for_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = fresh(), ids_of(3)
    runner = native_runner(model, slots=3, length=LENGTH)
    wanted = whole(runner, ids)
    for rows in (512, 11, 1):  # tokens of one call
        monkeypatch.setattr(native, "ROWS", rows)
        found = runner.forward([Piece(2, 0, ids[2][:30]), Piece(0, 0, ids[0][:5], every=True), Piece(1, 0, tuple(ids[1]))])
        assert torch.equal(found, torch.cat((wanted[2, 29:30], wanted[0, :5], wanted[1, -1:])))


@needs_compiler
@pytest.mark.requirement("R200")
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_copied_prefix_goes_on_as_its_source_and_what_stood_beyond_is_forgotten(weights: Weights) -> None:
    ids = ids_of(3)
    runner = native_runner(fresh(), slots=3, length=LENGTH, weights=weights)
    wanted = whole(runner, ids)
    for tokens in (1, 8, 19):
        runner.copy(0, 2, tokens)
        assert torch.equal(runner.forward([Piece(2, tokens, ids[0][tokens:], every=True)]), wanted[0, tokens:])
        found = runner.forward([Piece(2, tokens, ids[1][:1])])  # another way from the same place
        assert not torch.equal(found[0], wanted[0, tokens])
    assert torch.equal(runner.forward([Piece(1, 20, ids[1][20:])])[0], wanted[1, -1]), "other slots are as they were"


@needs_compiler
def test_a_bfloat16_model_is_computed_in_float32() -> None:
    model, ids = fresh(), ids_of(1)
    rounded_model = fresh().to(torch.bfloat16)
    wide = native_runner(rounded_model.float(), slots=1, length=LENGTH)
    short = native_runner(model.to(torch.bfloat16), slots=1, length=LENGTH)
    assert torch.equal(whole(short, ids), whole(wide, ids))


@needs_compiler
def test_ids_places_and_slots_beyond_their_limits_are_refused() -> None:
    runner = native_runner(fresh(), slots=2, length=8)
    for piece in (
        Piece(2, 0, [1]), Piece(-1, 0, [1]), Piece(0, 8, [1]), Piece(0, 0, [1] * 9), Piece(0, -1, [1]), Piece(0, 0, []),
        Piece(0, 0, [VOCABULARY]), Piece(0, 0, [-1]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"slot|ids"):
            runner.forward([piece])
    with pytest.raises(ValueError, match="slot"):
        runner.copy(0, 2, 1)
    assert runner.forward([]).shape == (0, VOCABULARY)
    with pytest.raises(UsageError, match="cannot be kept in 'int3'"):
        native_runner(fresh(), slots=1, length=8, weights="int3")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="learned positions"):
        native_runner(fresh(positions="learned", kv_heads=6), slots=1, length=LENGTH + 1)


@needs_compiler
@pytest.mark.security
@pytest.mark.requirement("I34")
def test_a_library_that_another_user_could_have_written_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Path(str(build.library()[0]._name))  # type: ignore[union-attr]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "chattune" / "native"
    folder.mkdir(parents=True)
    place = folder / kept.name
    place.write_bytes(kept.read_bytes())
    load = build.library.__wrapped__
    place.chmod(0o700)
    assert load()[1] == ""  # the positive control: the user's own is loaded
    place.chmod(0o722)
    assert load()[0] is None
    assert "another user" in load()[1]
    place.unlink()
    place.symlink_to(kept)
    assert "another user" in load()[1]
    place.unlink()
    place.write_bytes(kept.read_bytes())
    place.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: place.stat().st_uid + 1)
    assert "another user" in load()[1]


def test_without_a_compiler_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chattune.core.native.shutil.which", lambda name: None)
    library, reason = build.library.__wrapped__()
    assert library is None
    assert reason == "there is no C++ compiler (g++) on this machine"


def test_a_source_that_does_not_compile_is_told_with_the_compiler_s_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if build.library()[0] is None:
        pytest.skip("there is no compiler")
    source = tmp_path / "step.cpp"
    source.write_text("int main( {", "utf-8")
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library, reason = build.library.__wrapped__()
    assert library is None
    assert "cannot build step.cpp" in reason
    assert list((tmp_path / "chattune" / "native").iterdir()) == []


def test_what_has_no_compiled_counterpart_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gru" in str(native_reason(GRU(layers=1, width=16).build(VOCABULARY, 0)))
    model = fresh()
    LoRA().attach(model)
    assert "does not know" in str(native_reason(model))
    monkeypatch.setattr(native, "_trouble", lambda: "the compiled step computes something else than PyTorch in int4 on this processor")
    with pytest.raises(UsageError, match="something else than PyTorch in int4"):
        native_runner(fresh(), slots=1, length=8)
    monkeypatch.setenv("CHATTUNE_NATIVE", "0")
    assert "CHATTUNE_NATIVE=0" in str(native_reason(fresh()))


@needs_compiler
def test_a_library_that_computes_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(native._agrees(weights) for weights in WEIGHTS)
    monkeypatch.setattr(native, "rounded_activations", lambda x: x * 1.05)
    assert [native._agrees(weights) for weights in WEIGHTS] == [True, True, False, False]


@needs_compiler
@pytest.mark.requirement("R192", "R193")
def test_on_a_trained_model_int8_and_int4_cost_next_to_nothing() -> None:
    text = "\n".join(path.read_text("utf-8") for path in sorted(Path(chatterbot_corpus.__file__).parent.glob("data/english/*.yml")))
    ids = torch.tensor(list(text.encode("ascii", "ignore"))[: 1 << 17])
    model = GPT(layers=2, width=128, heads=2, context=64).build(128, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    random = torch.Generator().manual_seed(0)
    held_out = ids[-64 * 129 :].view(-1, 129)[:, :65]
    for _ in range(150):
        starts = torch.randint(len(ids) - held_out.numel() * 2 - 65, (20, 1), generator=random)
        rows = ids[starts + torch.arange(65)]
        optimizer.zero_grad()
        cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def loss(weights: Weights) -> float:
        runner = native_runner(model.eval(), slots=len(held_out), length=64, weights=weights)
        logits = runner.forward([Piece(row, 0, each[:-1].tolist(), every=True) for row, each in enumerate(held_out)])
        return float(cross_entropy(logits, held_out[:, 1:].flatten()))

    wide = loss("float32")
    assert wide < 2.7  # of 3.1 that single letters give: something was learnt
    assert loss("bfloat16") - wide < 0.005
    assert loss("int8") - wide < 0.005
    assert loss("int4") - wide < 0.03


@pytest.mark.requirement("R192", "R193")
def test_the_error_of_rounding_is_that_of_its_steps() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    errors = {weights: distance(rounded(weight, weights), weight) for weights in WEIGHTS}
    assert errors["float32"] == 0.0
    assert errors["bfloat16"] < 2**-9
    # A step is max/127 of 256 normal numbers, about 2.9/127; its error is uniform: /√12.
    assert errors["int8"] == pytest.approx(2.9 / 127 / 12**0.5, rel=0.1)
    # Plain rounding to max/7 of 32 normal numbers; their span in 15 steps is finer, and choosing it finer still.
    plain = weight.view(-1, PART)
    step = plain.abs().amax(1, keepdim=True) / 7
    assert errors["int4"] < 0.93 * distance((plain / step).round() * step, plain)


def test_zeros_and_single_large_numbers_are_kept() -> None:
    weight = torch.zeros(3, 130)
    weight[1, 5], weight[2, 129] = 3.0, -1e-20
    for weights in WEIGHTS:
        torch.testing.assert_close(rounded(weight, weights), weight, rtol=0.01, atol=1e-21)
