"""Commands that make something: demo, run, the single stages, resume."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from chattune import story
from chattune.cli.answer import USUAL, Answer, Common, number, plain, short, table
from chattune.cli.looking import evaluation_card
from chattune.core import files
from chattune.core.artifact import Artifact, Home, check_name
from chattune.core.errors import UsageError
from chattune.core.progress import duration
from chattune.core.stage import load_stage, plan, question_of

Name = Annotated[str | None, Parameter(help="a name for the run")]
DryRun = Annotated[bool, Parameter(negative="", help="say what it would cost, and do nothing")]
RecipeOption = Annotated[str | None, Parameter(help="a YAML recipe for the settings; without one: the defaults")]


def demo(
    *overrides: str, lang: Annotated[Literal["en", "zh"], Parameter(help="English or Chinese dialogs")] = "en", name: Name = "demo",
    dry_run: DryRun = False, common: Common = USUAL,
) -> Answer:
    """Train, judge and meet a first chat model on built-in dialogs, in under ten minutes on two cores.

    Parameters
    ----------
    overrides
        settings to change, as path=value
    """
    if name is not None:
        check_name(name)
    recipe = story.Recipe.read("demo" if lang == "en" else f"demo-{lang}", overrides)
    if dry_run:
        return _forecast(recipe, common)
    result = story.run(recipe, home=common.home, name=name)
    lines = [*_samples(result.summary), evaluation_card(result.summary), "", *_next(name or result.run.name, result.report)]
    return Answer(plain("\n".join(lines)), result.summary)


def run(
    recipe: str, /, *overrides: str, name: Name = None, dry_run: DryRun = False,
    until: Annotated[str | None, Parameter(help="the last stage to do")] = None, common: Common = USUAL,
) -> Answer:
    """Run a recipe from raw conversations to a report; what is already finished is found.

    Parameters
    ----------
    recipe
        a YAML file, or the name of a shipped recipe (see `chattune list recipes`)
    overrides
        settings to change, as path=value
    """
    story.check_until(until)
    if name is not None:
        check_name(name)
    chosen = story.Recipe.read(recipe, overrides)
    if dry_run:
        _refuse_without_training(until)
        return _forecast(chosen, common)
    result = story.run(chosen, home=common.home, name=name, until=until)
    lines = [evaluation_card(result.summary), "", *_next(name or result.run.name, result.report)]
    return Answer("\n".join(lines), result.summary)


def import_(
    path: str, /, *, name: Name = None,
    template: Annotated[str | None, Parameter(help="a Jinja file used as chat template; without one: the model's own")] = None,
    common: Common = USUAL,
) -> Answer:
    """Bring in a pretrained model: a Hugging Face directory, a GGUF file, or an installed Python package that ships one.

    Parameters
    ----------
    path
        the directory, the file, or the package; nothing is downloaded, and no code of it is run
    """
    more = {"import": {"path": path, "template": template}}
    answer = _one("import", (), (), None, name, common, more)
    told = answer.data["stages"]["import"]
    lines = [
        f"import  {answer.data['run']}", "",
        table([
            ("model", f"{told['architecture']}, {number(told['parameters'])} parameters, context {number(told['context'])}"),
            ("tokenizer", f"{number(told['vocabulary'])} tokens; replies end with {', '.join(told['ends'].values())}"),
            ("license", told["license"] or "not said"),
            *(("note", note) for note in told["notes"]),
        ]),
        "", "Next:", f"  chattune chat {name or Path(answer.data['run']).name}",
        "  chattune run finetune import.path=… collect.sources=…   teach it your own conversations",
    ]  # fmt: skip
    return Answer(plain("\n".join(lines)), answer.data)


def export(
    run: str, /, *, to: Annotated[Literal["hf", "gguf"], Parameter(help="hf: a Hugging Face directory, gguf: a file for llama.cpp")],
    out: Annotated[Path | None, Parameter(help="the directory or file to write; without one: named after the run")] = None,
    type: Annotated[Literal["f32", "f16", "bf16", "q8_0"] | None, Parameter(help="of the numbers in a GGUF file")] = None,
    common: Common = USUAL,
) -> Answer:
    """Write a model for other programs.

    Parameters
    ----------
    run
        an import, train or evaluate run: a path, a name, or the beginning of a digest
    """
    if to == "hf" and type is not None:
        raise UsageError("--type is for GGUF files.", path="--type", value=type, rule="--to gguf", hint="Leave --type out.")
    found = story.export(run, to, out, type, common.home)
    rows = [("written", found["path"]), ("size", files.size(found["bytes"])), *(("note", note) for note in found["notes"])]
    return Answer(plain(table(rows)), found)


def collect(
    *files_and_settings: str, recipe: RecipeOption = None, name: Name = None, common: Common = USUAL,
) -> Answer:
    """Read conversations from files, clean them as the recipe says, and split them without leaks.

    Parameters
    ----------
    files_and_settings
        files of conversations; settings to change, as path=value
    """
    sources, overrides = _sorted_out(files_and_settings)
    chosen = story.Recipe.read(recipe or ({"collect": {"sources": sources}} if sources else {}), overrides)
    if recipe and sources:
        raise UsageError("give files or a recipe, not both.", rule="one source of conversations", hint="Put the files into the recipe.")
    told = story.run(chosen, home=common.home, name=name, until=story.DATA[-1]).summary
    return Answer(evaluation_card(told), told)


def clean(
    conversations: str, /, *overrides: str, recipe: RecipeOption = None, name: Name = None, common: Common = USUAL,
) -> Answer:
    """Clean collected conversations; every change is counted, with examples.

    Parameters
    ----------
    conversations
        a collect or clean run
    overrides
        settings to change, as path=value: clean.cleaners=[text_repair,personal_data]
    """
    return _one("clean", [conversations], overrides, recipe, name, common)


def split(
    conversations: str, /, *overrides: str, recipe: RecipeOption = None, name: Name = None, common: Common = USUAL,
) -> Answer:
    """Divide conversations into training, validation and test without leaks.

    Parameters
    ----------
    conversations
        a collect or clean run
    overrides
        settings to change, as path=value
    """
    return _one("split", [conversations], overrides, recipe, name, common)


def balance(
    dialogs: str, /, *overrides: str, recipe: RecipeOption = None, name: Name = None, common: Common = USUAL,
) -> Answer:
    """Draw the training split anew, so that no kind of dialog drowns the others.

    Parameters
    ----------
    dialogs
        a split, balance or augment run
    overrides
        settings to change, as path=value: balance.balancer=…
    """
    return _one("balance", [dialogs], overrides, recipe, name, common)


def augment(
    dialogs: str, /, *overrides: str, recipe: RecipeOption = None, name: Name = None, common: Common = USUAL,
) -> Answer:
    """Put variants of training dialogs beside them.

    Parameters
    ----------
    dialogs
        a split, balance or augment run
    overrides
        settings to change, as path=value: augment.augmentations=[…]
    """
    return _one("augment", [dialogs], overrides, recipe, name, common)


def prepare(
    dialogs: str, /, *overrides: str, start: Annotated[str | None, Parameter(help="a run whose tokenizer to go on with")] = None,
    recipe: RecipeOption = None, name: Name = None, common: Common = USUAL,
) -> Answer:
    """Turn collected dialogs into tokens: train the tokenizer (or go on with a model's), render, store.

    Parameters
    ----------
    dialogs
        a run of `chattune collect`
    overrides
        settings to change, as path=value
    """
    return _one("prepare", [dialogs], overrides, recipe, name, common, start=start)


def train(
    tokens: str, /, *overrides: str, start: Annotated[str | None, Parameter(help="a run whose model to start from")] = None,
    recipe: RecipeOption = None, name: Name = None, dry_run: DryRun = False, common: Common = USUAL,
) -> Answer:
    """Train a model on a token set.

    Parameters
    ----------
    tokens
        a prepare run
    overrides
        settings to change, as path=value
    """
    if dry_run:
        begun = None if start is None else story.checkpoint_of(Home(common.home).find(start))
        return _forecast(story.Recipe.read(recipe or {}, overrides, begun), common, story.tokens_of(Home(common.home).find(tokens)))
    return _one("train", [tokens], overrides, recipe, name, common, start=start)


def evaluate(
    checkpoint: str, /, *overrides: str,
    tokens: Annotated[str | None, Parameter(help="a prepare run to judge it on, for a model that was not trained here")] = None,
    recipe: RecipeOption = None, name: Name = None, common: Common = USUAL,
) -> Answer:
    """Score a model on the untouched test split, beside the baselines, and write the report.

    Parameters
    ----------
    checkpoint
        a train or import run
    overrides
        settings to change, as path=value
    """
    home = Home(common.home)
    if tokens is not None:
        judged_on = story.inputs_from(load_stage("evaluate"), story.chain_up([home.find(tokens)]), {"checkpoint": None})
        return _one("evaluate", [checkpoint], overrides, recipe, name, common, inputs=judged_on)
    if question_of(home.find(checkpoint))["stage"] == "import":
        raise UsageError(
            "an imported model has no test conversations of its own.", path="--tokens", rule="a prepare run with its tokenizer",
            hint=f"Make one with `chattune prepare DIALOGS --start {checkpoint}`, and give it with --tokens.",
        )
    return _one("evaluate", [checkpoint], overrides, recipe, name, common)


def resume(
    run: str, /, *, allow_changes: Annotated[bool, Parameter(negative="", help="go on with other versions than before")] = False,
    common: Common = USUAL,
) -> Answer:
    """Continue an interrupted run, and the recipe that it was part of to its end.

    Parameters
    ----------
    run
        a path, a name, or the beginning of a digest
    """
    result = story.resume(run, common.home, allow_changes=allow_changes)
    return Answer(evaluation_card(result.summary), result.summary)


_ASKING = {
    "clean": "Name cleaners: clean.cleaners=[…] (`chattune list cleaners` shows all).",
    "balance": "Name a balancer or a size: balance.balancer=… (`chattune list balancers` shows all).",
    "augment": "Name augmentations: augment.augmentations=[…] (`chattune list augmentations` shows all).",
}


def _one(
    stage_name: str, references: Sequence[str], overrides: Sequence[str], recipe: str | None, name: str | None, common: Common,
    more: Mapping[str, Any] | None = None, start: str | None = None, inputs: Mapping[str, Artifact | None] | None = None,
) -> Answer:
    """Plan and execute one stage, its inputs found from the references and what those were made from."""
    if name is not None:
        check_name(name)
    stage, home = load_stage(stage_name), Home(common.home)
    begun = None if start is None else story.checkpoint_of(home.find(start))
    chosen = story.Recipe.read(recipe or more or {}, overrides, begun)
    if stage_name in story.DATA and getattr(chosen.sections[stage_name], "idle", bool)():
        raise UsageError(
            f"{stage_name} has nothing to do.", path=stage_name, rule=f"a setting of {stage_name} that asks for something",
            hint=_ASKING[stage_name],
        )
    found = [home.find(reference) for reference in references]
    explicit: dict[str, Artifact | None] = {parameter: artifact for parameter, artifact in (inputs or {}).items() if artifact}
    explicit |= {"start": None} if "start" in stage.inputs else {}
    if begun is not None:
        explicit["start"] = story.open_run(begun)
    inputs = story.inputs_from(stage, story.chain_up(found), explicit)
    address = plan(stage, story.settled(chosen, inputs).of(stage), inputs, home)
    if name is not None:
        home.give_name(name, address)
    story.answer(address)
    told = story.summary(address, home.path)
    return Answer(evaluation_card(told), told)


def _refuse_without_training(until: str | None) -> None:
    """A forecast is one of the training: what ends before it has none."""
    if until is not None and story.STORY.index(until) < story.STORY.index("train"):
        raise UsageError(
            f"--dry-run says what training costs, and {until} comes before it.", path="--until", value=until,
            rule="train, or a later stage", hint="Leave one of the two out.",
        )  # fmt: skip


def _forecast(recipe: story.Recipe, common: Common, tokens: Path | None = None) -> Answer:
    from chattune.train.estimate import advice, refuse_over_limits

    story.say_derived(recipe)
    data = story.forecast(recipe, common.home, tokens=tokens)
    refuse_over_limits(data, recipe.sections["train"])
    free = shutil.disk_usage(next(p for p in (common.home, *common.home.absolute().parents) if p.exists())).free
    rows = [
        ("parameters", _parameters(data)),
        ("operations", f"{number(data['operations_per_token'])} a token forward, {data['operations']:.3g} for the training"),
        ("training tokens", f"{number(data['training_tokens'])} ({data['training_tokens_are']})"),
        ("steps", f"{number(data['steps'])}, which see {number(data['tokens'])} tokens"),
        ("time", f"{duration(data['seconds'])} at {number(data['tokens_per_second'])} tokens/s, measured here with a few updates"),
        ("replies", f"{data['reply_tokens_per_second']:.4g} tokens/s, one at a time"),
        ("memory", files.size(data["memory_bytes"])),
        ("disk", f"{files.size(data['disk_bytes'])} of {files.size(free)} that are free"),
    ]
    said = advice(data)
    return Answer("\n".join([table(rows), "", *said]), {**data, "disk_free_bytes": free, "advice": said})


def _parameters(data: Mapping[str, Any]) -> str:
    trained = "" if data["trained"] == data["parameters"] else f", {number(data['trained'])} of them trained"
    return f"{number(data['parameters'])}{trained} (vocabulary {number(data['vocabulary'])})"


def _sorted_out(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files, and overrides (``seed=`` or ``dotted.path=value`` that is not a file)."""
    overrides = [word for word in words if re.match(r"(seed|[a-z_]+(\.[A-Za-z0-9_]+)+)=", word) and not Path(word).exists()]
    return [word for word in words if word not in overrides], overrides


def _next(reference: str, report: Path | None) -> list[str]:
    lines = ["Next:", f"  chattune chat {reference}"]
    if report is not None:
        lines.append(f"  open {report} in a browser")
    return [*lines, "  chattune run chat collect.sources=…   your own conversations (docs/guide.md)"]


def _samples(summary: Mapping[str, Any]) -> list[str]:
    """Each prompt and what was answered before, half-way and after."""
    lines: list[str] = []
    for prompt in dict.fromkeys(sample["prompt"] for sample in summary["samples"]):
        answers = [(sample["when"], short(sample["reply"])) for sample in summary["samples"] if sample["prompt"] == prompt]
        lines += [f"> {prompt}", *(f"  {line}" for line in table(answers).splitlines()), ""]
    return lines
