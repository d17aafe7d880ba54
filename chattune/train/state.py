"""Checkpoints of a running training: written whole or not at all, verified byte by byte, rotated only when a newer one stands.

``folder/step-%08d/`` holds ``model.safetensors``, ``optimizer.safetensors``, ``memories.safetensors`` (only where a part keeps
tensors of its own), ``trainer_state.json`` and ``MANIFEST.json``. Nothing is unpickled and no file outside the manifest is
read. Randomness is derived (`core/seeds.py`), so no generator is stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from chattune.core import files
from chattune.core.errors import ArtifactError, CorruptError, ResumeError, SpaceError
from chattune.core.progress import talk
from chattune.core.stage import differing

SCHEMA = 1
MANIFEST, TRAINER = "MANIFEST.json", "trainer_state.json"
COMPUTING = ("chattune", "numpy", "torch")  # packages whose version can change a result
FILES = (TRAINER, "model.safetensors", "optimizer.safetensors", "memories.safetensors")  # no other name is ever opened
_ASIDE, _DAMAGED = ".old-", ".damaged-"


@dataclass(frozen=True)
class Snapshot:
    """A verified checkpoint: tensors on the CPU, `state` as it was given to `save`."""

    step: int
    path: Path
    model: dict[str, Tensor]
    state: dict[str, Any]
    memories: dict[str, dict[str, Tensor]]
    optimizer: dict[str, Any] = field(repr=False)

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Give `optimizer` the saved state, to the bit; `ResumeError` when it has other parameters."""
        try:
            optimizer.load_state_dict(self.optimizer)
        except (ValueError, KeyError) as error:
            raise ResumeError(
                f"its optimizer state does not fit: {error}.", path=str(self.path), rule="the same optimizer over the same parameters",
                hint="Start a new run to train with another optimizer.",
            ) from None
        _undo_casts(optimizer, self.optimizer)


class Snapshots:
    """The checkpoints of one run in `folder`, for its one writer.

    `configuration` (plain settings, or their digest), `data` (fingerprint of what is learned from) and `versions` say what a
    checkpoint belongs to. `keep_last` newest ones are kept and the best. `on_save_error`: ``"stop"`` raises `SpaceError`,
    ``"warn"`` says what happened and training goes on.
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int = 2,
        *,
        configuration: Mapping[str, Any] | str = "",
        data: Any = "",
        versions: Mapping[str, str] | None = None,
        on_save_error: Literal["stop", "warn"] = "stop",
    ) -> None:
        assert keep_last >= 2, "with one checkpoint there is nothing to fall back to"
        self.folder, self.keep_last, self.on_save_error = folder, keep_last, on_save_error
        self.belongs = _as_json(
            {"configuration": configuration, "data": data, "versions": {k: v for k, v in (versions or {}).items() if k in COMPUTING}}
        )

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return steps(self.folder)

    def save(
        self,
        step: int,
        model_tensors: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer | Mapping[str, Any],
        state: Mapping[str, Any],
        memories: Mapping[str, Mapping[str, Tensor]] | None = None,
        *,
        best: int | None = None,
    ) -> Path | None:
        """Write the checkpoint of `step` and only then drop old ones; its path, or ``None`` when it could not be written.

        `state`: plain data of the loop; `best`: the step whose checkpoint stays beside the last ones. When this returns a
        path, the bytes are on the disk and were read back.
        """
        path = self.folder / _name(step)
        try:
            self._write(path, step, model_tensors, optimizer, state, memories or {})
        except (SpaceError, CorruptError, OSError) as error:
            if self.on_save_error == "stop":
                raise
            talk().print(f"warning: checkpoint of step {step} was not saved: {error}", markup=False)
            return None
        try:
            self._rotate(step, best)
        except OSError as error:  # the new one stands: an old one too many harms nothing
            talk().print(f"warning: an old checkpoint could not be removed: {error}", markup=False)
        return path

    def load(self, *, allow_changes: bool = False) -> Snapshot | None:
        """The newest checkpoint whose every byte is as written; none yet: ``None``.

        Damaged ones are passed over and said. `CorruptError` when none is whole; `ResumeError` when it belongs to other
        settings, data or versions, unless `allow_changes`. Leftovers of a crash are removed.
        """
        self._tidy()
        snapshot, damaged = newest(self.folder)
        if snapshot is None:
            return None
        self._require_belonging(snapshot.path, allow_changes)
        for path in damaged:
            _set_aside(path, _DAMAGED)  # else it would count as one of the last
        return snapshot

    def at(self, step: int) -> Snapshot:
        """The checkpoint of that step, verified."""
        return read(self.folder / _name(step))

    def _write(
        self,
        path: Path,
        step: int,
        model_tensors: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer | Mapping[str, Any],
        state: Mapping[str, Any],
        memories: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        optimizer_tensors: dict[str, Tensor] = {}
        told = optimizer.state_dict() if isinstance(optimizer, torch.optim.Optimizer) else optimizer
        lowered = _lower(told, "", optimizer_tensors)
        trainer = {"step": step, "state": _lower(state, "state", None), "optimizer": lowered}
        groups: dict[str, dict[str, Tensor]] = {
            "model.safetensors": dict(model_tensors),
            "optimizer.safetensors": optimizer_tensors,
            "memories.safetensors": {f"{name}/{key}": tensor for name, memory in memories.items() for key, tensor in memory.items()},
        }
        text = json.dumps(trainer, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8")
        needed = len(text) + sum(t.nbytes for tensors in groups.values() for t in tensors.values())
        files.require_space(path, needed)
        aside = None
        try:
            with files.telling_space(path), files.new_directory(path) as temporary:
                listed = {TRAINER: _put(temporary / TRAINER, text)}
                for name, tensors in groups.items():
                    if tensors or not name.startswith("memories"):
                        listed[name] = _put(temporary / name, _packed(tensors))
                _put(temporary / MANIFEST, _manifest({"schema": SCHEMA, "step": step, **self.belongs, "files": listed}))
                _require_arrived(temporary, listed)
                aside = _set_aside(path)  # the same step was saved before
        except BaseException:
            if aside is not None and not path.exists():
                os.rename(aside, path)
            raise

    def _rotate(self, step: int, best: int | None) -> None:
        """Drop what is neither among the last nor the best; a concurrent reader sees a checkpoint whole or not at all."""
        known = self.steps()
        kept = {best, *[k for k in known if k <= step][-self.keep_last :]}  # what lies after `step` is of a history that was left
        for old in known:
            if old not in kept and (aside := _set_aside(self.folder / _name(old))):
                _remove(aside)
        for leftover in [*self.folder.glob(f"{_ASIDE}*"), *self.folder.glob(f"{_DAMAGED}*")]:
            _remove(leftover)

    def _tidy(self) -> None:
        for leftover in self.folder.glob(".tmp-*"):
            _remove(leftover)
        for aside in self.folder.glob(f"{_ASIDE}step-*"):
            place = self.folder / aside.name.removeprefix(_ASIDE)
            if place.exists() or place.name < _name(max(self.steps(), default=0)):
                _remove(aside)  # the crash came after its successor stood
            else:
                with contextlib.suppress(FileNotFoundError):  # processes that train together start together
                    os.rename(aside, place)

    def _require_belonging(self, path: Path, allow_changes: bool) -> None:
        manifest = files.read_json(path / MANIFEST)
        theirs = {key: manifest.get(key) for key in self.belongs}
        changes = differing(theirs, self.belongs)
        if not changes:
            return
        rows = [f"{place}: {was!r} → {now!r}" for place, was, now in changes]
        for row in rows:
            talk().print(f"  {row}", markup=False)
        if not allow_changes:
            more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
            raise ResumeError(
                f"this checkpoint belongs to other settings, data or versions: {'; '.join(rows[:3])}{more}.", path=str(path),
                value={place: [was, now] for place, was, now in changes}, rule="what the checkpoint was made with",
                hint="Put them back, or continue on purpose with `--allow-changes`.",
            )


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint in `folder`, oldest first; reads names only."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name[5:]) for entry in os.scandir(folder) if re.fullmatch(r"step-\d{8,}", entry.name))


def newest(folder: Path) -> tuple[Snapshot | None, list[Path]]:
    """The newest whole checkpoint and the damaged ones that are newer; changes nothing, so any process may call it.

    `CorruptError` when there are checkpoints and none is whole.
    """
    damaged: dict[Path, CorruptError] = {}
    while True:
        candidates = [folder / _name(step) for step in reversed(steps(folder))]
        path = next((p for p in candidates if p not in damaged), None)
        if path is None:
            if damaged:
                raise CorruptError(
                    f"none of its {len(damaged)} checkpoints is whole.", path=str(folder), rule="the sha256 in MANIFEST.json",
                    hint=f"Delete {folder} and start the run again. The newest: {next(iter(damaged.values()))}",
                )
            return None, []
        try:
            snapshot = read(path)
        except CorruptError as error:
            if path.exists():  # else the writer rotated it away meanwhile: look again
                damaged[path] = error
            continue
        for damage in damaged.values():
            talk().print(f"warning: {damage} Using the checkpoint of step {snapshot.step}.", markup=False)
        return snapshot, list(damaged)


def read(path: Path) -> Snapshot:
    """The checkpoint at `path`; `CorruptError` names the first file whose bytes are not those that were written."""
    manifest, content = _verified(path)
    try:
        trainer = json.loads(content.pop(TRAINER))
        tensors = {name: safetensors.torch.load(data) for name, data in content.items()}
        memories: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.get("memories.safetensors", {}).items():
            memory, _, key = name.partition("/")
            memories.setdefault(memory, {})[key] = tensor
        return Snapshot(
            step=manifest["step"], path=path, model=tensors["model.safetensors"], state=_raise(trainer["state"], {}), memories=memories,
            optimizer=_raise(trainer["optimizer"], tensors["optimizer.safetensors"]),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError) as error:
        raise CorruptError(f"cannot be understood: {error}.", path=str(path), rule="a checkpoint of ours") from None


def _verified(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Manifest and the bytes of every file that it lists, after comparing each."""
    try:
        text = (path / MANIFEST).read_bytes()
        manifest = json.loads(text)
        whole = isinstance(manifest, dict) and _manifest({k: v for k, v in manifest.items() if k != "sha256"}) == text
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptError(f"cannot be read: {error}.", path=str(path / MANIFEST), rule="valid JSON") from None
    if not whole or not _says_all(manifest):
        raise CorruptError("is not what was written.", path=str(path / MANIFEST), rule="its own sha256")
    if manifest["schema"] > SCHEMA:
        raise ArtifactError(
            f"was written by a newer chattune (schema {manifest['schema']}).", path=str(path), rule=f"schema {SCHEMA}",
            hint="Upgrade chattune.",
        )
    content = {}
    for name, expected in manifest["files"].items():
        if name not in FILES:
            raise CorruptError(f"lists '{name}'.", path=str(path / MANIFEST), rule=f"nothing but {', '.join(FILES)}")
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            raise CorruptError(f"cannot be read: {error.strerror}.", path=str(path / name), rule="listed in MANIFEST.json") from None
        if len(data) != expected["size"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise CorruptError("is not what was written.", path=str(path / name), rule="the sha256 in MANIFEST.json")
        content[name] = data
    return manifest, content


def _says_all(manifest: Mapping[str, Any]) -> bool:
    """A manifest may be whole and still not ours."""
    listed = manifest.get("files")
    return (
        type(manifest.get("schema")) is int and type(manifest.get("step")) is int and isinstance(listed, dict)
        and all(isinstance(entry, dict) and entry.keys() >= {"size", "sha256"} for entry in listed.values())
    )  # fmt: skip


def _manifest(data: dict[str, Any]) -> bytes:
    """The only text that stands for `data`: any other byte in the file is damage."""
    return (json.dumps({**data, "sha256": files.digest_of_data(data)}, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def _put(path: Path, data: bytes) -> dict[str, Any]:
    path.write_bytes(data)
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}  # of what was meant, not of what arrived


def _require_arrived(folder: Path, listed: Mapping[str, Mapping[str, Any]]) -> None:
    for name, expected in listed.items():
        if files.digest_of(folder / name) != expected["sha256"]:
            raise CorruptError("does not read back as it was written.", path=str(folder / name), hint="Check the disk.")


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if storage in seen else plain  # safetensors refuses tensors that share memory
        seen.add(storage)
    return safetensors.torch.save(separate)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _set_aside(path: Path, prefix: str = _ASIDE) -> Path | None:
    """Rename `path` out of sight; ``None`` when it is not there."""
    aside = path.parent / (prefix + path.name)
    if path.exists():
        _remove(aside)
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, aside)
            return aside
    return None


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _as_json(data: Any) -> Any:
    """What `data` is after a round through JSON, so that two sides compare equal."""
    return json.loads(json.dumps(data, ensure_ascii=False))


# Plain data ⇄ JSON without loss: tuples, numbers that JSON has no word for, keys that are no strings, and tensors (by name).
_TAGS = ("$tensor", "$tuple", "$float", "$items", "$dtype")


def _lower(value: Any, path: str, tensors: dict[str, Tensor] | None) -> Any:
    if isinstance(value, Tensor):
        if tensors is None:
            raise TypeError(f"{path} is a tensor; tensors belong into memories")
        while path in tensors:  # a key that holds a dot can look like a nested one
            path += "'"
        tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, Mapping):
        keys = list(value)
        if all(isinstance(key, str) and key not in _TAGS for key in keys):
            return {key: _lower(item, f"{path}.{key}" if path else key, tensors) for key, item in value.items()}
        pairs = ((key, f"{path}.{key}" if path else str(key)) for key in keys)
        return {"$items": [[_lower(key, path, None), _lower(value[key], place, tensors)] for key, place in pairs]}
    if isinstance(value, (list, tuple)):
        items = [_lower(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"{path} is a {type(value).__name__}, which a checkpoint has no form for")


def _raise(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_raise(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and (tag := next(iter(value))) in _TAGS:
        inner = value[tag]
        if tag == "$tensor":
            return tensors[inner]
        if tag == "$tuple":
            return tuple(_raise(item, tensors) for item in inner)
        if tag == "$float":
            return float(inner)
        if tag == "$dtype":
            return getattr(torch, inner)
        return {_raise(key, tensors): _raise(item, tensors) for key, item in inner}
    return {key: _raise(item, tensors) for key, item in value.items()}


def _undo_casts(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """`load_state_dict` casts moments to the dtype of their parameter; give back those that had another."""
    if "state" not in saved or "param_groups" not in saved:
        return
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, value in saved["state"].get(number, {}).items():
            current = optimizer.state[parameter].get(key)
            if isinstance(value, Tensor) and isinstance(current, Tensor) and current.dtype != value.dtype:
                optimizer.state[parameter][key] = value.to(current.device, copy=True)
