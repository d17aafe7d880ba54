"""The story: a recipe with a section for each stage, run from raw conversations to a report; finished work is found.

This is where the stages meet. They know nothing of one another: inputs are matched by the class of the artifact.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chattune.core import files
from chattune.core.artifact import MANIFEST, PLAN, Artifact, Home, check_name
from chattune.core.errors import ArtifactError, DataError, SettingError, UnknownName, UsageError, did_you_mean
from chattune.core.part import choose
from chattune.core.progress import duration, talk
from chattune.core.stage import ask, execute, plan, question_of
from chattune.models.families import Family
from chattune.story.ancestry import DATA, chain_up, checkpoint_of, inputs_from, lineage, open_run, report_of, tokens_of
from chattune.story.recipe import RECIPES, STORY, Recipe, notes, planned_vocabulary, recipe_file, say_derived, schema, stages

if TYPE_CHECKING:
    from chattune.dialogs.stage import CollectConfig
    from chattune.evaluate.compare import Contender
    from chattune.evaluate.loss import SplitLoss
    from chattune.generate.decoding import Decoding
    from chattune.generate.reply import ChatModel, Sampling, Speculation
    from chattune.tokens.batch import Batch
    from chattune.tokens.token_set import TokenSet

__all__ = [
    "DATA", "RECIPES", "Recipe", "Result", "STORY", "answer", "chain_up", "check_until", "checkpoint_of", "compare", "decoding",
    "ensemble", "export", "forecast", "inputs_from", "lineage", "load", "notes", "open_run", "planned_vocabulary", "prepared",
    "recipe_file", "report_of", "resume", "run", "say_derived", "schema", "settled", "stages", "summary", "tokens_of", "usual_sampling",
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What `run` gives: the run that holds the model (or the last one made), its report, every run by stage, and the summary."""

    run: Path
    report: Path | None
    runs: Mapping[str, Path]
    summary: Mapping[str, Any]


def run(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    overrides: Iterable[str] = (),
    *,
    home: str | os.PathLike[str] = "runs",
    name: str | None = None,
    until: str | None = None,
) -> Result:
    """Every stage that the recipe asks for, from raw conversations to a report; what is finished is not done again.

    `recipe`: a YAML file, the name of a shipped recipe, a mapping or a `Recipe`; `overrides`: ``dotted.path=value``;
    `name`: what the run is called from now on; `until`: the last stage to do.
    """
    check_until(until)
    if name is not None:
        check_name(name)
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe, overrides)
    _refuse_without_start(recipe)
    if until not in DATA:
        say_derived(recipe)
    place = Home(Path(home))
    made: dict[str, Path] = {}
    pool: list[Artifact] = []
    for stage in recipe.stages(until):
        inputs = inputs_from(stage, pool)
        recipe = settled(recipe, inputs)
        address = plan(stage, recipe.of(stage), inputs, place)
        made[stage.name] = address
        _remember(place, address, recipe, name, until)
        if name is not None and stage.name != "evaluate":
            place.give_name(name, address)
        pool.insert(0, answer(address))
    report = made.get("evaluate")
    model = made.get("train", list(made.values())[-1])
    return Result(model, report / "report.html" if report else None, made, summary(model, place.path))


def check_until(until: str | None) -> None:
    """`UnknownName` where `until` is no stage of a story."""
    if until is not None and until not in STORY:
        raise UnknownName(
            f"no stage is called '{until}'.", path="--until", value=until, rule=f"one of {STORY}", hint=did_you_mean(until, STORY)
        )


def _refuse_without_start(recipe: Recipe) -> None:
    """Before any work: adapters and trials belong to a model that is started from."""
    train = recipe.sections["train"]
    needing = [name for name in ("adapter", "trial") if getattr(train, name, None) is not None]
    if needing and recipe.sections["import"].path is None:
        raise SettingError(
            f"train.{needing[0]} needs a model to start from.", path="import.path", value=None,
            rule="a Hugging Face directory, a GGUF file or a Python package that ships one",
            hint=f"Set import.path, or leave train.{needing[0]} out.",
        )


def settled(recipe: Recipe, inputs: Mapping[str, Artifact | None]) -> Recipe:
    """The recipe for a stage with these inputs: what depends on the vocabulary follows once the tokens are there."""
    from chattune.tokens.token_set import TokenSet

    tokens = inputs.get("tokens")
    return recipe.knowing(tokens.tokenizer.vocabulary) if isinstance(tokens, TokenSet) else recipe


def answer(address: Path) -> Artifact:
    """Execute a planned run and say what happened: found, or done in so many seconds."""
    found = (address / MANIFEST).exists()
    if not found:
        talk().print(f"{question_of(address)['stage']}  {address.name}", markup=False)
    try:
        artifact = execute(address)
    except (UsageError, DataError):
        _forget(address)
        raise
    seconds = artifact.manifest["seconds"]
    talk().print(f"{artifact.manifest['stage']}  {'reused' if found else 'finished'} {address.name}  {duration(seconds)}", markup=False)
    return artifact


def resume(reference: str | os.PathLike[str], home: str | os.PathLike[str] = "runs", *, allow_changes: bool = False) -> Result:
    """Continue an interrupted run where it stopped, and the story that it was part of to its end.

    `allow_changes`: go on although versions of what computes changed since; the result is then no longer exact.
    """
    address = Home(Path(home)).find(reference)
    place = Home(address.parent)
    if allow_changes and (address / "state").is_dir():
        from chattune.train.stage import ALLOW_CHANGES

        (address / "state" / ALLOW_CHANGES).touch()
    memory = place.path / "stories" / f"{address.name}.json"
    if memory.exists():
        told = files.read_json(memory)
        return run(Recipe.read(told["recipe"]), home=place.path, name=told["name"], until=told["until"])
    artifact = answer(address)
    return Result(address, None, {artifact.manifest["stage"]: address}, summary(address, place.path))


def load(
    run: str | os.PathLike[str], home: str | os.PathLike[str] = "runs", *, weights: str = "own",
    speculation: str | Mapping[str, Any] | Speculation | None = None, draft: str | os.PathLike[str] | None = None,
) -> ChatModel:
    """The chat model of a run: a path, a name or the beginning of a digest. A report leads to the checkpoint it judged.

    `weights`, `speculation`, `draft`: as for `decoding`. Every file of the checkpoint is compared with its digest first. Raises
    `ArtifactError` where the run holds no model, and `UsageError` where it cannot be decoded as asked.
    """
    from chattune.generate.reply import ChatModel
    from chattune.models.checkpoint import Checkpoint

    address = checkpoint_of(Home(Path(home)).find(run))
    how = decoding(weights, speculation, draft, home)
    checkpoint = Checkpoint.open(address)
    checkpoint.verify()
    return ChatModel(checkpoint.model(), checkpoint.template, usual_sampling(address), how)


def decoding(
    weights: str = "own", speculation: str | Mapping[str, Any] | Speculation | None = None,
    draft: str | os.PathLike[str] | None = None, home: str | os.PathLike[str] = "runs",
) -> Decoding:
    """How replies are computed.

    `weights`: ``"own"``: the model's own numbers, by PyTorch; ``"auto"``: int8 by the compiled step where it can run the model;
    float32, bfloat16, int8 or int4. `speculation`: ``"lookup"`` or settings of `Speculation`; `draft`: the run of a smaller model with
    the same tokenizer, which proposes tokens.
    """
    from chattune.generate.decoding import Decoding
    from chattune.generate.reply import Speculation

    meant = None if speculation is None else Speculation.meant(speculation)
    return Decoding(weights, meant, None if draft is None else load(draft, home))


def ensemble(
    runs: Sequence[str | os.PathLike[str]], shares: Sequence[float] | Literal["fitted"] | None = None,
    home: str | os.PathLike[str] = "runs",
) -> ChatModel:
    """Several runs as one chat model that averages their probabilities, token by token.

    `shares`: the weight of each; none: equal; ``"fitted"``: those under which the validation dialogs of the first run are likeliest.
    `UsageError` where the runs do not have one tokenizer and one chat template.
    """
    from chattune.generate.ensemble import fitted_weights, target_logs, together

    chats = [load(run, home) for run in runs]
    equal = together(chats)  # a mistake is told before anything is fitted
    if shares is None:
        return equal
    if shares == "fitted":
        validation = _validation(checkpoint_of(Home(Path(home)).find(runs[0])), equal.context)
        shares = fitted_weights(*target_logs([chat.model for chat in chats], validation))
        told = "  ".join(f"{Path(run).name}={share:.3f}" for run, share in zip(runs, shares, strict=True))
        talk().print(f"fitted  {told}", markup=False)
    return together(chats, shares)


def _validation(checkpoint: Path, context: int) -> Iterator[Batch]:
    """The validation split that a model was trained beside, once."""
    from chattune.tokens.batchers.bucketed import Bucketed
    from chattune.tokens.order import Order
    from chattune.tokens.token_set import TokenSet
    from chattune.tokens.windows import windows

    made_from = question_of(checkpoint)["inputs"].get("tokens")
    if made_from is None:
        raise ArtifactError(
            "was not trained here: there are no validation dialogs to fit weights on.", path=str(checkpoint), rule="a train run first",
            hint="Name a run of `chattune train` first, or give the weights as numbers.",
        )
    split = TokenSet.open(checkpoint.parent / made_from["run"]).split("validation")
    order = Order(split, windows(split, context), Bucketed(), 8 * context, context, 0)
    return (order.next() for _ in range(order.batches_per_epoch))


def export(
    run: str | os.PathLike[str], to: str, out: Path | None = None, kind: str | None = None, home: str | os.PathLike[str] = "runs"
) -> dict[str, Any]:
    """Write the model of a run for other programs: ``path``, ``bytes`` and ``notes``.

    `to`: ``"hf"``, a Hugging Face directory, or ``"gguf"``, one file with numbers of the `kind` (f32, f16, bf16, q8_0). What stands at
    `out` already is never written over. Every file of the run is compared with its digest first.
    """
    from chattune.models.checkpoint import Checkpoint
    from chattune.models.export import to_gguf, to_hugging_face

    checkpoint = Checkpoint.open(checkpoint_of(Home(Path(home)).find(run)))
    out = out if out is not None else Path(f"{Path(os.fspath(run)).name}-hf" if to == "hf" else f"{Path(os.fspath(run)).name}.gguf")
    if out.exists() and not (to == "hf" and out.is_dir() and not any(out.iterdir())):
        raise ArtifactError("is there already.", path=str(out), rule="a new place", hint="Give another one with --out.")
    checkpoint.verify()
    return to_hugging_face(checkpoint, out) if to == "hf" else to_gguf(checkpoint, out, kind or "bf16")


def usual_sampling(checkpoint: Path) -> Sampling:
    """How the maker of a model samples from it, where the checkpoint says so; else our defaults."""
    from chattune.core.config import validate
    from chattune.generate.reply import Sampling
    from chattune.tokens.control import GENERATION

    said = files.read_json(checkpoint / GENERATION) if (checkpoint / GENERATION).exists() else {}
    return validate(Sampling, Sampling.recommended(said))


def summary(run: str | os.PathLike[str], home: str | os.PathLike[str] = "runs") -> dict[str, Any]:
    """The numbers that stand for a run, in the form that ``chattune show RUN --json`` prints.

    ``run``, ``report``, ``seconds``, ``parameters``, ``metrics``, ``baselines``, ``split``, ``counts`` as far as its lineage and
    its evaluation know them; ``stage``, ``finished``, ``runs``; ``samples`` of the training, and all that each stage kept.
    """
    address = Home(Path(home)).find(run)
    report = report_of(address)
    chain = lineage(report or address)
    manifests = {m["stage"]: m for m in (files.read_json(p / MANIFEST) for p in reversed(chain) if (p / MANIFEST).exists())}
    kept = {stage: manifest["metrics"] for stage, manifest in manifests.items()}
    seconds = {stage: manifest["seconds"] for stage, manifest in manifests.items()}
    if "train" in seconds:  # a resumed training was longer than its last session
        seconds["train"] = max(seconds["train"], kept["train"].get("train_seconds", 0.0))
    runs = {question_of(p)["stage"]: p for p in reversed(chain)}
    return {
        "run": str(address),
        "stage": question_of(address)["stage"],
        "finished": (address / MANIFEST).exists(),
        "report": str(report / "report.html") if report else None,
        "seconds": {**seconds, "total": round(sum(seconds.values()), 3)},
        "parameters": kept.get("train", kept.get("import", {})).get("parameters"),
        "metrics": kept.get("evaluate", {}).get("metrics", {}),
        "baselines": kept.get("evaluate", {}).get("baselines", {}),
        "split": _latest(kept, "split"),
        "counts": _latest(kept, "counts"),
        "samples": _samples(runs["train"]) if "train" in runs else [],
        "runs": {stage: str(path) for stage, path in runs.items()},
        "stages": kept,
    }


def compare(references: Iterable[str | os.PathLike[str]], home: str | os.PathLike[str] = "runs") -> dict[str, Any]:
    """Several models on the same test conversations, as `chattune.evaluate.compare` tells it; the first is the one to beat.

    `references`: train or evaluate runs. One that was not evaluated is scored now, which takes a pass over the test split.
    Raises `UsageError` where there is one only, or where the test conversations differ.
    """
    from chattune.evaluate import compare as comparing

    names = [os.fspath(reference) for reference in references]
    place = Home(Path(home))
    if len(names) < 2:
        raise UsageError("give two runs or more to compare.", path="compare", value=len(names), rule="at least two runs")
    return comparing.compare([_contender(name, place.find(name)) for name in names])


def _contender(name: str, address: Path) -> Contender:
    from chattune.evaluate.compare import Contender

    model = checkpoint_of(address)
    manifest, described = files.read_json(model / MANIFEST), files.read_json(model / "config.json")["chattune"]
    family: Family = choose(Family, described["family"])
    costs: dict[str, float] = {
        "parameters": family.parameters(described["vocabulary"]),
        "operations": family.operations(described["vocabulary"], family.context_length()),
    }
    known = ("tokens", "tokens_per_second", "memory_bytes", "train_seconds")
    costs |= {cost: manifest["metrics"][cost] for cost in known if cost in manifest["metrics"]}
    loss, dialogs = _judged(address if question_of(address)["stage"] == "evaluate" else _evaluation_of(model), model)
    return Contender(name, family.name, files.read_json(dialogs / MANIFEST)["outputs"]["test.jsonl"]["sha256"], loss, costs)


def _evaluation_of(model: Path) -> Path | None:
    """The newest finished evaluation of this very model, not of one that was made from it."""
    finished = [run for run, manifest in Home(model.parent).finished() if manifest["stage"] == "evaluate"]
    return next((run for run in reversed(finished) if question_of(run)["inputs"]["checkpoint"]["run"] == model.name), None)


def _judged(report: Path | None, model: Path) -> tuple[SplitLoss, Path]:
    """The loss on each test conversation, from an evaluation or computed now, and the collect run that they are from."""
    from chattune.evaluate.artifact import LOSSES, Report

    if report is not None and (report / LOSSES).exists():
        return Report.open(report).loss, report.parent / question_of(report)["inputs"]["dialogs"]["run"]
    from chattune.evaluate.judge import usual_overlap
    from chattune.evaluate.loss import split_loss
    from chattune.models.checkpoint import Checkpoint
    from chattune.tokens.token_set import TokenSet

    inputs = question_of(report or model)["inputs"]
    if "tokens" not in inputs:
        raise ArtifactError(
            "was neither trained here nor evaluated.", path=str(model), rule="a model that was judged on a test split",
            hint="Evaluate it on the dialogs of the others first.",
        )
    tokens = TokenSet.open(model.parent / inputs["tokens"]["run"])
    talk().print(f"compare  scoring {model.name}", markup=False)
    judged = Checkpoint.open(model).model()
    context = judged.family.context_length()
    lengths = tokens.tokenizer.byte_lengths
    loss = split_loss(judged, tokens.split("test"), lengths, context=context, overlap=usual_overlap(context))
    return loss, tokens.path.parent / question_of(tokens.path)["inputs"]["dialogs"]["run"]


def forecast(recipe: Recipe, home: str | os.PathLike[str] = "runs", *, tokens: Path | None = None) -> dict[str, Any]:
    """What training by the recipe would cost, as `chattune.train.estimate` tells it. Writes nothing.

    `home`: where finished runs are looked for; with them the tokens are known instead of guessed from the sources; `tokens`: a
    prepare run, where the training is not part of the recipe's story.
    """
    from chattune.tokens.token_set import TokenSet
    from chattune.train.estimate import BYTES_PER_TOKEN, estimate, estimate_on

    known = TokenSet.open(tokens) if tokens else prepared(recipe, Home(Path(home)))
    if known is not None:
        recipe = recipe.knowing(known.tokenizer.vocabulary)
        return {**estimate_on(known, recipe.sections), "training_tokens_are": "counted"}
    guessed = int(_text_bytes(recipe.sections["collect"]) * recipe.sections["split"].shares[0] / BYTES_PER_TOKEN)
    return {**estimate(recipe.sections, guessed, vocabulary=planned_vocabulary(recipe)), "training_tokens_are": "guessed"}


def prepared(recipe: Recipe, home: Home) -> TokenSet | None:
    """The token set of the recipe, where its collect and prepare runs are finished."""
    from chattune.tokens.token_set import TokenSet

    pool: list[Artifact] = []
    for stage in recipe.stages():
        if stage.name == "train":
            break
        address, _ = ask(stage, recipe.of(stage), inputs_from(stage, pool), home)
        if not (address / MANIFEST).exists():
            return None
        pool.insert(0, stage.output.open(address))
    assert isinstance(pool[0], TokenSet)
    return pool[0]


def _text_bytes(collect: CollectConfig) -> int:
    """UTF-8 bytes of everything said in the sources, each text counted once: duplicates are left out later."""
    from chattune.dialogs.dialog import Dialog
    from chattune.dialogs.gathering import read_sources

    texts = {" ".join(m.content for m in item.messages) for item in read_sources(collect.wanted()) if isinstance(item, Dialog)}
    return sum(len(text.encode("utf-8", "replace")) for text in texts)


def _latest(kept: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """What the last stage of data that knows it says of it."""
    found: dict[str, Any] = next((kept[stage][name] for stage in reversed(DATA) if name in kept.get(stage, {})), {})
    return found


def _samples(train: Path) -> list[dict[str, Any]]:
    """The recipe's prompts and what was answered before, half-way and after."""
    path = train / "samples.jsonl"
    return list(files.read_lines_of_json(path)) if path.exists() else []


def _forget(address: Path) -> None:
    """Take back a plan that can never be answered, if nothing was done for it."""
    if {entry.name for entry in address.iterdir()} <= {PLAN, ".lock"}:
        home = Home(address.parent)
        for name, run in home.names().items():
            if run == address.name:
                (home.path / "names" / name).unlink()
        (home.path / "stories" / f"{address.name}.json").unlink(missing_ok=True)
        shutil.rmtree(address)


def _remember(place: Home, address: Path, recipe: Recipe, name: str | None, until: str | None) -> None:
    """Keep what was asked beside the runs, so that `resume` can go on to the end of the story."""
    (place.path / "stories").mkdir(parents=True, exist_ok=True)
    files.write_json(place.path / "stories" / f"{address.name}.json", {"recipe": recipe.dump(), "name": name, "until": until})
