"""Stages: plain functions from artifacts on disk to an artifact on disk; `plan` writes the question, `execute` answers it.

    @stage
    def train(config: TrainConfig, model: Family, seed: int, tokens: TokenSet, start: Checkpoint | None, out: Path) -> Checkpoint

The signature is the interface: parameters that are settings are sections of the recipe (`config` is the section that bears
the stage's name), parameters that are artifacts are inputs, `out` is the run directory. The same question has the same
address, so finished work is found and not done again, and interrupted work is executed again.

Where a launcher started several processes, all of them make these calls: the first plans, works and writes, the others wait for
what it writes, and take part in the stages that are marked ``@stage(together=True)``.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import functools
import importlib
import importlib.metadata
import inspect
import keyword
import os
import platform
import shutil
import subprocess
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, overload

from pydantic import TypeAdapter, ValidationError

from chattune.core import files, processes
from chattune.core.artifact import MANIFEST, PLAN, SCHEMA, Artifact, Home
from chattune.core.config import explain, flatten
from chattune.core.errors import ArtifactError, ChattuneError, ResumeError, UnknownName, did_you_mean
from chattune.core.part import ROOT, Settings

IMPORT_ORDER = (
    "core", "features", "dialogs", "tokens", "models", "safety", "knowledge", "generate", "evaluate", "train", "compress",
    "tune", "doctor", "feedback", "serve", "story", "cli",
)  # fmt: skip
DIGITS = 10
STATE = "state"  # folder of a run that holds what exact resuming needs; no output


class Stage:
    """A function with a typed signature, taken apart into sections, inputs and an output."""

    def __init__(self, function: Callable[..., Artifact], together: bool = False) -> None:
        functools.update_wrapper(self, function)
        self.function, self.together = function, together
        self.name = function.__name__.rstrip("_")  # Python keeps words such as import for itself

    def __call__(self, *args: Any, **kwargs: Any) -> Artifact:
        return self.function(*args, **kwargs)

    @functools.cached_property
    def _hints(self) -> dict[str, Any]:
        return typing.get_type_hints(self.function)

    @property
    def sections(self) -> dict[str, Any]:
        """Recipe section → its type, in the order of the signature."""
        return {
            self.name if parameter == "config" else parameter: hint
            for parameter, hint in self._hints.items()
            if parameter not in ("return", "out") and _artifact_type(hint) is None
        }

    @property
    def inputs(self) -> dict[str, tuple[type[Artifact], bool]]:
        """Parameter → artifact class, and whether it may be left out."""
        found = {}
        for parameter, hint in self._hints.items():
            kind = _artifact_type(hint)
            if kind is not None and parameter != "return":
                found[parameter] = (kind, type(None) in typing.get_args(hint))
        return found

    @property
    def output(self) -> type[Artifact]:
        output: type[Artifact] = self._hints["return"]
        return output

    def default(self, section: str) -> Any:
        """The section's default from the signature, or an instance made from its settings' defaults."""
        parameter = inspect.signature(self.function).parameters["config" if section == self.name else section]
        return parameter.default if parameter.default is not parameter.empty else self.sections[section]()


@overload
def stage(function: Callable[..., Artifact]) -> Stage: ...
@overload
def stage(*, together: bool) -> Callable[[Callable[..., Artifact]], Stage]: ...
def stage(function: Callable[..., Artifact] | None = None, *, together: bool = False) -> Any:
    """Make a stage of a function (see the module's docstring for its signature).

    `together`: every process that a launcher started calls the function; else only the first does.
    """
    return Stage(function, together) if function is not None else functools.partial(Stage, together=together)


def stage_names() -> list[str]:
    """Names of all stages; imports nothing but the syntax tree's reader."""
    names = []
    for package in IMPORT_ORDER:
        path = ROOT / package / "stage.py"
        if path.exists():
            tree = ast.parse(path.read_text("utf-8"))
            names += [
                node.name.rstrip("_")
                for node in tree.body
                if isinstance(node, ast.FunctionDef) and any(_makes_stage(decorator) for decorator in node.decorator_list)
            ]
    return names


def load_stage(name: str) -> Stage:
    """The stage of that name; imports its module, and no torch."""
    function = f"{name}_" if keyword.iskeyword(name) else name
    for package in IMPORT_ORDER:
        path = ROOT / package / "stage.py"
        if path.exists() and f"def {function}(" in path.read_text("utf-8"):
            found = getattr(importlib.import_module(f"{ROOT.name}.{package}.stage"), function, None)
            if isinstance(found, Stage):
                return found
    raise UnknownName(f"no stage is called '{name}'.", value=name, hint=did_you_mean(name, stage_names()))


def plan(stage: Stage, config: Mapping[str, Any], inputs: Mapping[str, Artifact | None], home: Home) -> Path:
    """Write the complete question to ``home/<stage>-<digest>/plan.json`` and return that directory.

    `config` maps each of the stage's sections to its settings. A section may add facts from outside the recipe that
    change the answer (the bytes of source files) by a method ``fingerprint()``.
    """
    run, question = ask(stage, config, inputs, home)
    if not processes.first():
        processes.await_file(run / PLAN)
        return run
    run.mkdir(parents=True, exist_ok=True)
    if not (run / PLAN).exists():
        files.write_json(run / PLAN, question)
    return run


def ask(
    stage: Stage, config: Mapping[str, Any], inputs: Mapping[str, Artifact | None], home: Home
) -> tuple[Path, dict[str, Any]]:
    """The address of a question and the question itself; writes nothing."""
    sections = {name: config[name] if name in config else stage.default(name) for name in stage.sections}
    found = {name: {"run": artifact.path.name, "digest": artifact.digest} for name, artifact in inputs.items() if artifact is not None}
    question = {
        "schema": SCHEMA,
        "stage": stage.name,
        "config": {name: _plain(value) for name, value in sections.items()},
        "inputs": found,
        "sources": {name: value.fingerprint() for name, value in sections.items() if hasattr(value, "fingerprint")},
    }
    address = files.digest_of_data({**question, "inputs": {name: item["digest"] for name, item in found.items()}})
    return home.path / f"{stage.name}-{address[:DIGITS]}", question


def execute(run: Path) -> Artifact:
    """Answer the question in ``run/plan.json``: find the finished answer, or do (or continue) the work."""
    question = files.read_json(run / PLAN)
    stage = load_stage(question["stage"])
    if (run / MANIFEST).exists():
        return stage.output.open(run)
    if not processes.first():
        if stage.together:
            stage.function(**arguments_of(run), out=run)
        processes.await_file(run / MANIFEST)
        return stage.output.open(run)
    with _only_one(run):
        if (run / MANIFEST).exists():
            return stage.output.open(run)
        _sweep(run)
        arguments = arguments_of(run)
        started = time.perf_counter()
        artifact = stage.function(**arguments, out=run)
        _finish(run, question, seconds=time.perf_counter() - started)
        shutil.rmtree(run / STATE, ignore_errors=True)  # what resuming needed; only now that the manifest stands
    return artifact


def arguments_of(run: Path) -> dict[str, Any]:
    """What the stage's function is called with for the question of `run`, but for ``out``; sources and inputs are verified."""
    question = question_of(run)
    return _arguments(load_stage(question["stage"]), question, run)


def question_of(run: Path) -> dict[str, Any]:
    """What ``plan.json`` holds."""
    question: dict[str, Any] = files.read_json(run / PLAN)
    return question


def differing(ours: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
    """Dotted paths whose values differ between two plain configurations, with both values."""
    a, b = flatten(ours), flatten(theirs)
    absent = "(not set)"
    return [(path, a.get(path, absent), b.get(path, absent)) for path in sorted(a | b) if a.get(path, absent) != b.get(path, absent)]


def keep_summary(out: Path, summary: Mapping[str, Any]) -> None:
    """Store the few numbers that stand for a run; `execute` copies them into the manifest as ``metrics``."""
    files.write_json(out / "summary.json", summary)


def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {"python": platform.python_version()}
    for package in ("chattune", "torch", "numpy", "tokenizers", "safetensors", "pydantic"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores and memory of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"machine": platform.machine(), "system": platform.system(), "cores": len(os.sched_getaffinity(0)), "memory_bytes": memory}


def _plain(value: Any) -> Any:
    return value.dump() if hasattr(value, "dump") else value.model_dump(mode="json") if isinstance(value, Settings) else value


def _makes_stage(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Name) and called.id == "stage"


def _artifact_type(hint: Any) -> type[Artifact] | None:
    for candidate in (hint, *typing.get_args(hint)):
        if inspect.isclass(candidate) and issubclass(candidate, Artifact):
            return candidate
    return None


def _arguments(stage: Stage, question: dict[str, Any], run: Path) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for section, hint in stage.sections.items():
        try:
            value = TypeAdapter(hint).validate_python(question["config"][section])
        except ValidationError as error:
            raise explain(error, prefix=section) from None
        arguments["config" if section == stage.name else section] = value
        if hasattr(value, "fingerprint"):
            found = value.fingerprint()
            if found != question["sources"][section]:
                changed = [path for path, *_ in differing(question["sources"][section], found)]
                raise ResumeError(
                    f"the sources changed since this run was planned: {', '.join(changed[:3])}.", path=str(run),
                    rule="the bytes that were planned", hint="Run the recipe again: changed sources make a new run.",
                )
    for name, (kind, optional) in stage.inputs.items():
        entry = question["inputs"].get(name)
        if entry is None:
            if not optional:
                raise ArtifactError(f"the plan has no input '{name}'.", path=str(run / PLAN))
            arguments[name] = None
            continue
        if entry["run"] != Path(entry["run"]).name or entry["run"] in ("", ".", ".."):
            raise ArtifactError(
                "names an input outside the home.", path=str(run / PLAN), value=entry["run"], rule="the name of a run directory"
            )
        artifact = kind.open(run.parent / entry["run"])
        if artifact.digest != entry["digest"]:
            raise ResumeError(
                f"its input {entry['run']} holds other data than when this run was planned.", path=str(run),
                value=artifact.digest[:DIGITS], rule=f"input digest {entry['digest'][:DIGITS]}",
                hint="Run the recipe again: other data makes a new run.",
            )
        artifact.verify()
        arguments[name] = artifact
    return arguments


def _finish(run: Path, question: dict[str, Any], seconds: float) -> None:
    outputs = {
        file.relative_to(run).as_posix(): {"size": file.stat().st_size, "sha256": files.digest_of(file)}
        for file in sorted(run.rglob("*"))
        if file.is_file() and file.name not in (PLAN, MANIFEST, ".lock") and file.relative_to(run).parts[0] != STATE
    }
    summary = run / "summary.json"
    files.write_json(
        run / MANIFEST,
        {
            **question,
            "outputs": outputs,
            "metrics": files.read_json(summary) if summary.exists() else {},
            "seconds": round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": _commit(),
            "versions": versions(),
            "hardware": hardware(),
        },
    )


def _sweep(run: Path) -> None:
    """Remove what a killed process left half-written: temporary files and directories begin with a dot, outputs never do."""
    for path in [*run.glob(".*"), *run.glob("*/.*")]:
        if path.name == ".lock":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _only_one(run: Path) -> Iterator[None]:
    with (run / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ChattuneError(
                "another process is working on this run.", path=str(run), rule="one process a run",
                hint="Wait for it, or end it and call `chattune resume`.",
            ) from None
        yield


def _commit() -> str | None:
    if not (ROOT.parent / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(ROOT.parent), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


__all__ = [
    "IMPORT_ORDER", "STATE", "Stage", "arguments_of", "ask", "differing", "execute", "hardware", "keep_summary", "load_stage", "plan",
    "question_of", "stage", "stage_names", "versions",
]  # fmt: skip
