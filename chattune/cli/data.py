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
from chattune.core.errors import DataError, UsageError
from chattune.core.stage import load_stage, plan


def data(
    what: Literal["report", "new"], run: str, /, *,
    against: Annotated[tuple[str, ...], Parameter(help="new logs to compare the training split with: files, folders, globs")] = (),
    sample: Annotated[
        int | None, Parameter(help="dialogs of each split that topics, quality and shift are sought in; without it: 5000")
    ] = None,
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
    if what == "report":
        return _report(run, against, sample, name, common)
    for option, value in (("--against", against or None), ("--sample", sample), ("--name", name)):
        if value is not None:
            raise UsageError(
                "belongs to `chattune data report`.", path=option, value=str(value), rule="with a report", hint="Leave it out."
            )
    return _new(Path(run))


def _report(run: str, against: tuple[str, ...], sample: int | None, name: str | None, common: Common) -> Answer:
    from chattune.evaluate.stage import SurveyConfig

    home, stage = Home(common.home), load_stage("survey")
    inputs = story.inputs_from(stage, story.chain_up([home.find(run)]))
    config = validate(SurveyConfig, {"against": against, **({} if sample is None else {"sample": sample})}, prefix="--")
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
        try:
            if sys.stdin.isatty():
                return input(f"{role}> ")
            line = sys.stdin.buffer.readline().decode("utf-8")  # as the file is written, whatever the terminal's encoding is
        except UnicodeDecodeError as error:
            raise DataError(
                f"holds a byte that is not utf-8: 0x{error.object[error.start]:02x}.", path="stdin", rule="text in utf-8",
                hint="Convert it first, as with `iconv -t utf-8`; the conversations before it are kept.",
            ) from None
        if not line:
            raise EOFError
        return line.lstrip("\ufeff")

    count = written(path, ask)
    told = f"{count} conversations were appended to {path}. Next: chattune collect {path}"
    return Answer(plain(told), {"file": str(path), "conversations": count})
