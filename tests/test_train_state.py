"""Checkpoints of a running training: what goes in comes out to the bit, damage is seen, and the last good one is never lost."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from chattune.core.errors import ArtifactError, CorruptError, ResumeError, SpaceError
from chattune.core.progress import talk
from chattune.train import state as train_state
from chattune.train.state import Snapshots


def weights(step: int = 0) -> dict[str, torch.Tensor]:
    return {"a": torch.arange(6.0).reshape(2, 3) + step, "b": torch.tensor([1, 2, 3], dtype=torch.int64)}


def plain_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)


def save(snapshots: Snapshots, *steps: int, best: int | None = None) -> None:
    for step in steps:
        assert snapshots.save(step, weights(step), plain_optimizer(), {"step": step}, best=best) is not None


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """What was said on stderr so far."""
    talk.cache_clear()
    yield lambda: capsys.readouterr().err
    talk.cache_clear()


# lossless


def test_a_checkpoint_holds_exactly_the_files_that_the_architecture_names(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, configuration={"train": {"steps": 3}}, data="abc", versions={"torch": "2", "pydantic": "3"})
    path = snapshots.save(480, weights(), plain_optimizer(), {})
    assert path == tmp_path / "step-00000480"
    assert names(path) == ["MANIFEST.json", "model.safetensors", "optimizer.safetensors", "trainer_state.json"]
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert manifest["configuration"] == {"train": {"steps": 3}}
    assert manifest["versions"] == {"torch": "2"}  # what computes, and nothing else
    for name, entry in manifest["files"].items():
        assert entry["size"] == (path / name).stat().st_size
    assert torch.equal(load_file(path / "model.safetensors")["a"], weights()["a"])


def test_state_with_numbers_that_json_has_no_word_for_comes_back_the_same(tmp_path: Path) -> None:
    history = [{"loss": 0.1 + 0.2, "seen": math.nan}]
    state: dict[str, Any] = {"best": math.inf, "history": history, "pair": (1, (2.5, None)), "by step": {3: "x"}, "$tuple": 1}
    Snapshots(tmp_path).save(1, weights(), plain_optimizer(), state)
    found = Snapshots(tmp_path).load()
    assert found is not None
    assert math.isnan(found.state["history"][0].pop("seen"))
    state["history"][0].pop("seen")
    assert found.state == state
    assert type(found.state["pair"][1]) is tuple


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_lowering_to_json_loses_nothing(value: Any) -> None:
    text = json.dumps(train_state._lower(value, "", None), allow_nan=False)
    back = train_state._raise(json.loads(text), {})
    assert repr(back) == repr(value)  # repr tells 1 from True from 1.0, and tuples from lists


def test_tensors_under_ambiguous_keys_stay_apart() -> None:
    tensors: dict[str, torch.Tensor] = {}
    tree = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1), "list": [torch.full((1,), 2.0)], "type": torch.bfloat16}
    back = train_state._raise(json.loads(json.dumps(train_state._lower(tree, "", tensors))), tensors)
    assert (back["a"]["b"].item(), back["a.b"].item(), back["list"][0].item(), back["type"]) == (0.0, 1.0, 2.0, torch.bfloat16)


def test_what_has_no_lossless_form_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\.history\.0 is a ndarray"):
        Snapshots(tmp_path).save(1, weights(), plain_optimizer(), {"history": [np.zeros(2)]})
    with pytest.raises(TypeError, match=r"state\.x is a tensor"):
        Snapshots(tmp_path).save(1, weights(), plain_optimizer(), {"x": torch.zeros(2)})
    assert names(tmp_path) == []


def bits(tensor: torch.Tensor) -> list[int]:
    found: list[int] = tensor.contiguous().flatten().view(torch.uint8).tolist()
    return found


def test_memories_and_tied_and_odd_tensors_come_back_to_the_bit(tmp_path: Path) -> None:
    shared = torch.randn(4, 3)
    odd = {
        "tied.1": shared, "tied.2": shared, "transposed": shared.T, "scalar": torch.tensor(7, dtype=torch.uint8),
        "empty": torch.zeros(0, 3), "half": torch.randn(5).bfloat16(), "flag": torch.tensor([True, False]),
        "nan": torch.tensor([math.nan]),
    }  # fmt: skip
    memories = {"method-ema": {"count": torch.tensor(3), "average.a": torch.randn(2)}, "best": {"a": torch.randn(3)}}
    Snapshots(tmp_path).save(1, odd, plain_optimizer(), {}, memories)
    found = Snapshots(tmp_path).load()
    assert found is not None
    for name, tensor in odd.items():
        assert found.model[name].dtype == tensor.dtype
        assert found.model[name].shape == tensor.shape
        assert bits(found.model[name]) == bits(tensor)
    assert {memory: sorted(held) for memory, held in found.memories.items()} == {"best": ["a"], "method-ema": ["average.a", "count"]}
    assert torch.equal(found.memories["best"]["a"], memories["best"]["a"])


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.AdamW(p, lr=0.1, fused=True), lambda p: torch.optim.AdamW(p, amsgrad=True, foreach=False),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), lambda p: torch.optim.LBFGS(p, max_iter=3),
    lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.5), lambda p: torch.optim.Adagrad(p), lambda p: torch.optim.NAdam(p),
    lambda p: torch.optim.Adafactor(p), lambda p: torch.optim.Rprop(p), lambda p: torch.optim.Adadelta(p),
    lambda p: torch.optim.ASGD(p),
], ids=["adamw", "amsgrad", "nesterov", "lbfgs", "rmsprop", "adagrad", "nadam", "adafactor", "rprop", "adadelta", "asgd"])  # fmt: skip
@pytest.mark.requirement("C2")
def test_any_optimizer_of_torch_continues_to_the_bit(make: Any, tmp_path: Path) -> None:
    def steps(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], count: int) -> None:
        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = torch.stack([(p.sin() - 0.3).square().sum() for p in parameters]).sum()
            value.backward()
            return value

        for _ in range(count):
            optimizer.step(loss)

    random = torch.Generator().manual_seed(0)
    first = [torch.nn.Parameter(torch.randn(4, 3, generator=random)), torch.nn.Parameter(torch.randn(5, generator=random))]
    whole = make(first)
    steps(whole, first, 3)
    Snapshots(tmp_path).save(3, {str(n): p for n, p in enumerate(first)}, whole, {})
    steps(whole, first, 3)
    found = Snapshots(tmp_path).load()
    assert found is not None
    second = [torch.nn.Parameter(found.model[str(n)]) for n in range(2)]
    resumed = make(second)
    found.restore_optimizer(resumed)
    steps(resumed, second, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# rotation


def test_the_last_ones_and_the_best_stay(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, keep_last=2)
    save(snapshots, 1, 2)
    save(snapshots, 3, 4, 5, best=2)
    assert snapshots.steps() == [2, 4, 5]
    assert snapshots.at(2).state == {"step": 2}
    save(snapshots, 6, best=5)
    assert snapshots.steps() == [5, 6]
    assert names(tmp_path) == ["step-00000005", "step-00000006"]


def test_saving_a_step_twice_replaces_it(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    save(snapshots, 1, 2)
    snapshots.save(2, weights(9), plain_optimizer(), {"again": True})
    found = snapshots.load()
    assert found is not None
    assert found.state == {"again": True}
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_checkpoint_of_a_history_that_was_left_does_not_win_later(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    save(snapshots, 10, 20)
    save(snapshots, 11)
    assert snapshots.steps() == [10, 11]


@pytest.mark.requirement("C1")
def test_leftovers_of_a_crash_go_at_the_next_start_and_a_checkpoint_set_aside_comes_back(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    save(snapshots, 1, 2)
    (tmp_path / ".tmp-step-00000003-x1").mkdir()
    (tmp_path / ".tmp-step-00000003-x1" / "model.safetensors").write_bytes(b"half")
    os.rename(tmp_path / "step-00000002", tmp_path / ".old-step-00000002")  # the crash came between the two renames of a replacement
    found = Snapshots(tmp_path).load()
    assert found is not None
    assert found.step == 2
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    os.rename(tmp_path / "step-00000001", tmp_path / ".old-step-00000001")  # the crash came while an old one was deleted
    Snapshots(tmp_path).load()
    assert names(tmp_path) == ["step-00000002"]


def test_nothing_saved_yet_is_no_error(tmp_path: Path) -> None:
    assert Snapshots(tmp_path / "none").load() is None
    assert Snapshots(tmp_path / "none").steps() == []


# damage


@pytest.mark.requirement("C6", "I28")
def test_a_damaged_checkpoint_is_passed_over_said_and_replaced(tmp_path: Path, said: Any) -> None:
    snapshots = Snapshots(tmp_path)
    save(snapshots, 1, 2, 3)
    flip(tmp_path / "step-00000003" / "model.safetensors", 100)
    found = Snapshots(tmp_path).load()
    assert found is not None
    assert found.step == 2
    text = said()
    assert "step-00000003/model.safetensors" in text
    assert "Using the checkpoint of step 2" in text
    save(snapshots, 3)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    assert snapshots.at(3).state == {"step": 3}


@pytest.mark.requirement("C6", "I28")
def test_a_damaged_checkpoint_does_not_count_as_one_of_the_last(tmp_path: Path, said: Any) -> None:
    snapshots = Snapshots(tmp_path, keep_last=2)
    save(snapshots, 10, 20)
    flip(tmp_path / "step-00000020" / "trainer_state.json", 5)
    assert snapshots.load() is not None
    save(snapshots, 15)
    assert snapshots.steps() == [10, 15]


HARMS = ["truncated", "missing", "empty", "no manifest", "manifest of another", "foreign file listed", "folder"]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.requirement("C6", "I28")
def test_every_kind_of_damage_is_seen(harm: str, tmp_path: Path, said: Any) -> None:
    snapshots = Snapshots(tmp_path)
    save(snapshots, 1, 2)
    newest = tmp_path / "step-00000002"
    model, manifest = newest / "model.safetensors", newest / "MANIFEST.json"
    if harm == "truncated":
        model.write_bytes(model.read_bytes()[:-1])
    elif harm == "missing":
        model.unlink()
    elif harm == "empty":
        model.write_bytes(b"")
    elif harm == "no manifest":
        manifest.unlink()
    elif harm == "manifest of another":
        manifest.write_bytes((tmp_path / "step-00000001" / "MANIFEST.json").read_bytes())
    elif harm == "foreign file listed":
        data = json.loads(manifest.read_text())
        del data["sha256"]
        data["files"]["../../elsewhere"] = {"size": 0, "sha256": ""}
        manifest.write_bytes(train_state._manifest(data))
    else:
        model.unlink()
        model.mkdir()
    found = snapshots.load()
    assert found is not None
    assert found.step == 1


@pytest.mark.requirement("C6", "I28")
def test_when_none_is_whole_the_error_says_so_and_nothing_is_moved(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    save(snapshots, 1, 2)
    for step in (1, 2):
        flip(tmp_path / f"step-0000000{step}" / "optimizer.safetensors", 3)
    with pytest.raises(CorruptError, match="none of its 2 checkpoints is whole") as error:
        snapshots.load()
    assert error.value.hint
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_newer_form_is_refused_and_not_taken_for_damage(tmp_path: Path) -> None:
    save(Snapshots(tmp_path), 1, 2)
    manifest = tmp_path / "step-00000002" / "MANIFEST.json"
    data = json.loads(manifest.read_text())
    del data["sha256"]
    manifest.write_bytes(train_state._manifest({**data, "schema": 99}))
    with pytest.raises(ArtifactError, match="newer chattune") as error:
        Snapshots(tmp_path).load()
    assert not isinstance(error.value, CorruptError)


# what a checkpoint belongs to

BELONGS: dict[str, Any] = {
    "configuration": {"train": {"optimizer": {"name": "adamw", "lr": 0.001}}, "seed": 0}, "data": "d1", "versions": {"torch": "2.13.0"},
}  # fmt: skip


OTHER_RATE = {"train": {"optimizer": {"name": "adamw", "lr": 0.002}}, "seed": 0}


@pytest.mark.parametrize(("changed", "row"), [
    ({"configuration": OTHER_RATE}, "configuration.train.optimizer.lr: 0.001 → 0.002"),
    ({"data": "d2"}, "data: 'd1' → 'd2'"), ({"versions": {"torch": "2.14.0"}}, "versions.torch: '2.13.0' → '2.14.0'"),
], ids=["configuration", "data", "torch"])  # fmt: skip
@pytest.mark.requirement("C9")
def test_other_settings_data_or_torch_are_refused_with_the_differing_paths(changed: Any, row: str, tmp_path: Path, said: Any) -> None:
    save(Snapshots(tmp_path, **BELONGS), 1)
    other = Snapshots(tmp_path, **{**BELONGS, **changed})
    with pytest.raises(ResumeError) as error:
        other.load()
    assert row in str(error.value)
    assert row in said()
    assert "--allow-changes" in str(error.value)
    assert error.value.exit_code == 1
    allowed = other.load(allow_changes=True)
    assert allowed is not None
    assert allowed.step == 1


@pytest.mark.requirement("C9")
def test_the_same_settings_in_another_order_are_the_same(tmp_path: Path) -> None:
    save(Snapshots(tmp_path, **BELONGS), 1)
    again = {"configuration": {"seed": 0, "train": {"optimizer": {"lr": 0.001, "name": "adamw"}}}, "data": "d1"}
    versions = {"torch": "2.13.0", "pydantic": "9"}  # which does not compute
    assert Snapshots(tmp_path, **again, versions=versions).load() is not None


# space


@pytest.mark.requirement("C3")
def test_too_little_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Any) -> None:
    snapshots = Snapshots(tmp_path)
    save(snapshots, 1)
    full = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    with pytest.raises(SpaceError, match="100 B are free") as error:
        snapshots.save(2, weights(), plain_optimizer(), {})
    assert "step-00000002" in str(error.value)
    warning = Snapshots(tmp_path, on_save_error="warn")
    assert warning.save(2, weights(), plain_optimizer(), {}) is None
    assert "checkpoint of step 2 was not saved" in said()
    assert names(tmp_path) == ["step-00000001"]


# pickles

MARKER = "chattune-pickle-ran"


class _Poison:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.marker,))


POISONED = [
    "model.pt", "model.bin", "model.pth", "optimizer.pt", "rng_state.pth", "rng.pkl", "scheduler.pt", "training_args.bin",
    "ids.npy", "state.npz", "x.joblib", "x.ckpt", "rng.json",
]  # fmt: skip


@pytest.mark.security
@pytest.mark.requirement("I01", "I02", "I03")
def test_pickles_in_a_checkpoint_are_never_read(tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / MARKER
    poison = pickle.dumps(_Poison(marker))
    folder = tmp_path / "state"
    snapshots = Snapshots(folder)
    save(snapshots, 1, 2)
    for name in POISONED:
        (folder / name).write_bytes(poison)
        (folder / "step-00000002" / name).write_bytes(poison)
    found = snapshots.load()
    assert found is not None
    assert found.step == 2  # strangers beside the files are no damage, and are not opened
    for name in train_state.FILES[:3]:  # nor does a pickle under a name of ours run: its digest is wrong
        (folder / "step-00000002" / name).write_bytes(poison)
    found = snapshots.load()
    assert found is not None
    assert found.step == 1
    assert "step-00000002" in said()
    assert not marker.exists()
    pickle.loads(poison)
    assert marker.exists()  # the poison works where pickles are read


@pytest.mark.security
@pytest.mark.requirement("I01", "I02")
@pytest.mark.parametrize("name", train_state.FILES[:3])
def test_a_pickle_with_a_matching_manifest_is_refused_too(name: str, tmp_path: Path, said: Any) -> None:
    """Whoever can forge the manifest still reaches nothing that would run it."""
    marker = tmp_path / MARKER
    folder = tmp_path / "state"
    save(Snapshots(folder), 1)
    path = folder / "step-00000001"
    poison = pickle.dumps(_Poison(marker))
    listed = train_state._put(path / name, poison)
    data = json.loads((path / "MANIFEST.json").read_text())
    del data["sha256"]
    data["files"][name] = listed
    (path / "MANIFEST.json").write_bytes(train_state._manifest(data))
    with pytest.raises(CorruptError):
        Snapshots(folder).load()
    assert not marker.exists()
