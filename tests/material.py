"""Material of several tests: raw logs as people have them, and settings that train in seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import chattune
from chattune.core import files

THINGS = """
    apples bridges candles deserts engines forests gardens harbours islands jackets kettles lanterns mountains notebooks
    oceans pianos quilts rivers saddles temples umbrellas violins windmills yoghurt zebras bicycles cameras dolphins
    elephants fountains guitars helmets igloos jungles kites lemons museums needles orchids pillows radios spoons trains
    uniforms vases walnuts castles dragons feathers glaciers hammers insects jewels lizards magnets nettles owls parrots
""".split()  # noqa: SIM905 - readable
QUESTIONS = ("do you like {}?", "what should I know about {} before winter", "have you dreamt of {}", "tell me something short on {}")
ANSWERS = ("I never met any {}.", "Oh yes, {} are wonderful!", "My uncle sells {} near the station.", "Ask again when the {} are gone.")

# One block of about ten thousand weights and twenty updates: seconds on one core, and every stage does its real work.
TINY = [
    "model.layers=1", "model.width=32", "model.heads=2", "model.context=64", "train.steps=20", "train.batch_tokens=512",
    "train.threads=1", "train.precision=float32", "train.compile=off", "train.evaluations=2", "evaluate.replies=6",
    "evaluate.sampling.max_tokens=12", "train.minutes=", "prepare.vocabulary=",
]  # fmt: skip


def write_raw_logs(path: Path, count: int = len(THINGS)) -> Path:
    """A transcript of short chats about different things, as one would copy it out of a window."""
    blocks = []
    for index, thing in enumerate(THINGS[:count]):
        ask, answer = QUESTIONS[index % len(QUESTIONS)], ANSWERS[index // 2 % len(ANSWERS)]
        blocks.append(f"Anna: {ask.format(thing)}\nBot: {answer.format(thing)}\nAnna: thanks, {thing} it is\nBot: see you!\n")
    path.write_text("\n".join(blocks), "utf-8")
    return path


def planned_again(folder: Path, overrides: list[str]) -> tuple[Path, str]:
    """A train run in `folder` that was finished once and is only planned again, and the digest of the weights it came to."""
    logs = write_raw_logs(folder / "window.txt")
    run = chattune.run({"collect": {"sources": str(logs)}}, overrides, home=folder / "runs", until="train").run
    digest = files.digest_of(run / "model.safetensors")
    unfinish(run)
    return run, digest


def unfinish(run: Path) -> None:
    """Only the plan stays, as if it had never been executed."""
    for entry in run.iterdir():
        if entry.name != "plan.json":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
