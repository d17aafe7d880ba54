"""What was made from what: from a run back to the raw conversations, and to the run of a kind that is meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from chattune.core.artifact import Artifact, Home
from chattune.core.errors import ArtifactError
from chattune.core.stage import Stage, load_stage, question_of

DATA = ("collect", "clean", "split", "balance", "augment")  # stages that give dialogs
MODELS = ("train", "import")  # stages that give a model


def lineage(address: Path) -> list[Path]:
    """The run and everything that it was made from; what something else of it was made from comes later."""
    order, waiting = dict.fromkeys([address]), [address]
    while waiting:
        run = waiting.pop(0)
        order.pop(run)
        order[run] = None  # moved to the end: behind all that were made from it
        inputs = [address.parent / entry["run"] for entry in question_of(run)["inputs"].values()]
        order |= dict.fromkeys(inputs)
        waiting += inputs
    return [*order]


def chain_up(pool: Iterable[Path]) -> Iterator[Artifact]:
    """The artifacts of some runs, then of everything that they were made from."""
    seen: list[Path] = []
    for address in pool:
        seen += [run for run in lineage(address) if run not in seen]
    for address in seen:
        yield open_run(address)


def open_run(address: Path) -> Artifact:
    """The finished artifact of a run, as the class that its stage gives."""
    return load_stage(question_of(address)["stage"]).output.open(address)


def inputs_from(
    stage: Stage, pool: Iterable[Artifact], explicit: Mapping[str, Artifact | None] | None = None
) -> dict[str, Artifact | None]:
    """The stage's inputs from the artifacts at hand, matched by class, first match first; `explicit` ones by parameter."""
    pool, found = list(pool), dict[str, Artifact | None](explicit or {})
    for parameter, (kind, optional) in stage.inputs.items():
        if parameter in found:
            continue
        match = next((artifact for artifact in pool if isinstance(artifact, kind)), None)
        if match is None and not optional:
            raise ArtifactError(
                f"{stage.name} needs a {kind.stage} run.", path=parameter, rule=f"a finished {kind.stage} run",
                hint=f"Make one with `chattune {kind.stage}`; see `chattune runs`.",
            )
        found[parameter] = match
    return found


def checkpoint_of(address: Path) -> Path:
    """The run with a model that `address` is, or was made from."""
    for candidate in lineage(address) if question_of(address)["stage"] not in (*DATA, "prepare") else []:
        if question_of(candidate)["stage"] in MODELS:
            return candidate
    later = [run.name for run in Home(address.parent).runs() if question_of(run)["stage"] == "train" and address in lineage(run)]
    raise ArtifactError(
        f"is a {question_of(address)['stage']} run and holds no model.", path=str(address), rule="a train or evaluate run",
        hint=f"Trained from it: {', '.join(later[:3])}." if later else f"Train one with `chattune train {address.name}`.",
    )


def tokens_of(address: Path) -> Path:
    """The prepare run that `address` is."""
    if question_of(address)["stage"] != "prepare":
        raise ArtifactError(
            f"is a {question_of(address)['stage']} run and holds no tokens.", path=str(address), rule="a prepare run",
            hint="Prepare conversations with `chattune prepare`; see `chattune runs`.",
        )
    return address


def report_of(address: Path) -> Path | None:
    """The newest finished evaluation of a run (itself, if it is one)."""
    finished = [run for run, manifest in Home(address.parent).finished() if manifest["stage"] == "evaluate"]
    if address in finished:
        return address
    return next((run for run in reversed(finished) if address in lineage(run)), None)
