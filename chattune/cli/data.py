"""The command `data`: a report on what there is, and conversations written by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from chattune import story
from chattune.cli.answer import USUAL, Answer, Common, number, plain, table
from chattune.core.artifact import Home
from chattune.core.config import validate
from chattune.core.stage import load_stage, plan


def data(
    what: Literal["report", "new"], run: str, /, *,
    against: Annotated[tuple[str, ...], Parameter(help="new logs to compare the training split with: files, folders, globs")] = (),
    sample: Annotated[int, Parameter(help="dialogs of each split that topics, quality and shift are sought in")] = 5000,
    name: Annotated[str | None, Parameter(help="a name for the report")] = None, common: Common = USUAL,
) -> Answer:
    """Report on data (what is in it, what was left out and why, how the splits differ), or write conversations by hand.

    Parameters
    ----------
    what
        report: look at a run of `chattune collect`, or any made from one; new: ask for conversations and append them to a file
    run
        the run, or the file
    """
    return _new(Path(run)) if what == "new" else _report(run, against, sample, name, common)


def _report(run: str, against: tuple[str, ...], sample: int, name: str | None, common: Common) -> Answer:
    from chattune.evaluate.stage import SurveyConfig

    home, stage = Home(common.home), load_stage("survey")
    inputs = story.inputs_from(stage, story.chain_up([home.find(run)]))
    config = validate(SurveyConfig, {"against": against, "sample": sample}, prefix="survey")
    address = plan(stage, {"survey": config, "seed": 0}, inputs, home)
    if name is not None:
        home.give_name(name, address)
    found = story.answer(address).manifest["metrics"]
    counts, page, words = found["counts"], str(address / "data_report.html"), found["splits"]["train"]["diversity"]
    rows = [
        ("kept", f"{number(counts['kept'])} of {number(counts['read'])}"),
        *((f"  {reason}", number(count)) for reason, count in counts["dropped"].items()),
        ("splits", ", ".join(f"{split} {number(told['dialogs'])}" for split, told in found["splits"].items())),
        ("replies", f"{number(words['words'])} words, {number(words['different_words'])} different, "
                    f"{words['entropy_bits']:.2f} bits a word, distinct-2 {words['distinct_2']:.3f}"),
        ("topics", ", ".join(f"{topic} ({count})" for topic, count in [*found["topics"]["sizes"].items()][:6])),
        *((pair, f"{'they differ' if one['shifted'] else 'no shift'}, p = {one['p']:.2g}") for pair, one in found["shift"].items()),
        ("report", page),
    ]  # fmt: skip
    lines = [plain(table(rows)), *([""] if found["cautions"] else []), *(f"Caution: {plain(text)}" for text in found["cautions"])]
    return Answer("\n".join(lines), {"run": str(address), "report": page, **found})


def _new(path: Path) -> Answer:
    from chattune.dialogs.writing import written

    if sys.stdin.isatty():
        print("One line a turn; an empty line ends a conversation, and a second one (or Ctrl-D) all of them.", file=sys.stderr)

    def ask(role: str) -> str:
        if sys.stdin.isatty():
            return input(f"{role}> ")
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    count = written(path, ask)
    told = f"{count} conversations were appended to {path}. Next: chattune collect {path}"
    return Answer(plain(told), {"file": str(path), "conversations": count})
