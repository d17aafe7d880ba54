"""The story: a recipe with a section for each stage, run from raw conversations to a report; finished work is found.

This is where the stages meet. They know nothing of one another: inputs are matched by the class of the artifact.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from chattune.core import files
from chattune.core.artifact import MANIFEST, PLAN, Artifact, Home, check_name
from chattune.core.config import explain, flatten, override, read_yaml
from chattune.core.errors import ArtifactError, DataError, SettingError, UnknownName, UsageError, did_you_mean
from chattune.core.part import ROOT, Part, choose
from chattune.core.progress import duration, talk
from chattune.core.stage import Stage, ask, execute, load_stage, plan, question_of
from chattune.models.families import Family

if TYPE_CHECKING:
    from chattune.dialogs.stage import CollectConfig
    from chattune.evaluate.compare import Contender
    from chattune.evaluate.loss import SplitLoss
    from chattune.generate.reply import ChatModel, Sampling
    from chattune.tokens.token_set import TokenSet

STORY = ("import", "collect", "prepare", "train", "evaluate")
PARAMETERS = "model.parameters"
MODELS = ("train", "import")  # stages that give a model
RECIPES = ROOT / "recipes"


def stages() -> list[Stage]:
    """The stages of the story in order; imports their modules and no torch."""
    return [load_stage(name) for name in STORY]


def schema() -> dict[str, tuple[Stage, Any]]:
    """Section → the first stage that reads it, and the section's type."""
    found: dict[str, tuple[Stage, Any]] = {}
    for stage in stages():
        for section, hint in stage.sections.items():
            found.setdefault(section, (stage, hint))
    return found


@dataclass(frozen=True)
class Recipe:
    """Every section of the story, typed and complete.

    `sections`: name → settings; `derived`: dotted path → value that followed from the dial; `given`: dotted paths that the
    recipe or an override set; `source`: where it was read; `wanted`: the number of parameters that the model was to have, where the
    recipe says so (``model.parameters``), and the model's settings before they were turned to it.
    """

    sections: Mapping[str, Any]
    derived: Mapping[str, Any] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    source: str = ""
    wanted: tuple[int, Family] | None = None

    @classmethod
    def read(
        cls, reference: str | os.PathLike[str] | Mapping[str, Any], overrides: Iterable[str] = (), start: Path | None = None
    ) -> Recipe:
        """A recipe from a YAML file, the name of a shipped one, or a mapping; defaults < recipe < overrides.

        `start`: the checkpoint that training is to start from, if any; its model is then the recipe's.

        Raises `SettingError` with file, line and dotted path for a setting that does not exist or does not fit.
        """
        overrides = list(overrides)
        file, data, lines = _source(reference)
        changed = override(data, overrides)
        return cls._build(changed, file, _without(lines, [text.partition("=")[0].strip() for text in overrides]), start)

    @classmethod
    def _build(cls, data: Mapping[str, Any], file: Path | None, lines: Mapping[str, int], start: Path | None) -> Recipe:
        known = schema()
        for name in data:
            if name not in known:
                place = f"{file}:{lines[name]}: {name}" if file and name in lines else str(name)
                raise SettingError(
                    f"no section is called '{name}'.", path=place, value=name, rule=f"one of {', '.join(known)}",
                    hint=did_you_mean(str(name), known),
                )
        parameters, plain = _parameters_asked(data, file, lines)
        sections = {name: _section(name, *known[name], plain.get(name), file, lines) for name in known}
        start = start or _imported(sections)
        if start is not None:
            if parameters is not None:
                raise SettingError(
                    "the model to start from has the size that it has.", path=PARAMETERS, value=parameters,
                    rule="a size for fresh models only", hint=f"Leave {PARAMETERS} out.",
                )
            sections, derived = _derive_from(start, sections, data)
            return cls(sections, derived, frozenset(flatten(data)), str(file or ""))
        wanted = None if parameters is None else (parameters, sections["model"])
        sections, derived = _derive(sections, _sized(*wanted, sections["prepare"]) if wanted else None)
        return cls(sections, derived, frozenset(flatten(data)), str(file or ""), wanted)

    def dump(self) -> dict[str, Any]:
        """Plain data from which `read` builds the same recipe."""
        plain = {name: _plain(value) for name, value in self.sections.items()}
        return plain if self.wanted is None else {**plain, "model": {**self.wanted[1].dump(), "parameters": self.wanted[0]}}

    def knowing(self, vocabulary: int) -> Recipe:
        """The same recipe once the vocabulary is there: a model of so many parameters depends on it."""
        if self.wanted is None:
            return self
        parameters, family = self.wanted
        model = family.sized(parameters, vocabulary).resolved()
        if model != self.sections["model"]:
            changed = {k: v for k, v in flatten(model.dump(), "model").items() if flatten(family.dump(), "model").get(k) != v}
            told = "  ".join(f"{path}={value}" for path, value in changed.items())
            talk().print(f"derived  for {vocabulary} ids  {told}", markup=False)
        return replace(self, sections={**self.sections, "model": model})

    def stages(self) -> list[Stage]:
        """The stages that the recipe asks for, in order: without a model to start from, nothing is imported."""
        return [stage for stage in stages() if stage.name != "import" or self.sections["import"].path is not None]

    def of(self, stage: Stage) -> dict[str, Any]:
        """The sections that one stage reads."""
        return {name: self.sections[name] for name in stage.sections}


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
    """Import (where the recipe starts from a model), collect, prepare, train and evaluate; what is finished is not done again.

    `recipe`: a YAML file, the name of a shipped recipe, a mapping or a `Recipe`; `overrides`: ``dotted.path=value``;
    `name`: what the run is called from now on; `until`: the last stage to do.
    """
    if until is not None and until not in STORY:
        raise UnknownName(
            f"no stage is called '{until}'.", path="--until", value=until, rule=f"one of {STORY}", hint=did_you_mean(until, STORY)
        )
    if name is not None:
        check_name(name)
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe, overrides)
    _refuse_without_start(recipe)
    say_derived(recipe)
    place = Home(Path(home))
    made: dict[str, Path] = {}
    pool: list[Artifact] = []
    for stage in recipe.stages():
        inputs = inputs_from(stage, pool)
        recipe = settled(recipe, inputs)
        address = plan(stage, recipe.of(stage), inputs, place)
        made[stage.name] = address
        _remember(place, address, recipe, name, until)
        if name is not None and stage.name != "evaluate":
            place.give_name(name, address)
        pool.insert(0, answer(address))
        if stage.name == until:
            break
    report = made.get("evaluate")
    model = made.get("train", list(made.values())[-1])
    return Result(model, report / "report.html" if report else None, made, summary(model, place.path))


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


def load(run: str | os.PathLike[str], home: str | os.PathLike[str] = "runs") -> ChatModel:
    """The chat model of a run: a path, a name or the beginning of a digest. A report leads to the checkpoint it judged.

    Every file of the checkpoint is compared with its digest first. Raises `ArtifactError` where the run holds no model.
    """
    from chattune.generate.reply import ChatModel
    from chattune.models.checkpoint import Checkpoint

    address = checkpoint_of(Home(Path(home)).find(run))
    checkpoint = Checkpoint.open(address)
    checkpoint.verify()
    return ChatModel(checkpoint.model(), checkpoint.template, usual_sampling(address))


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


def checkpoint_of(address: Path) -> Path:
    """The run with a model that `address` is, or was made from."""
    for candidate in lineage(address) if question_of(address)["stage"] not in ("collect", "prepare") else []:
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


def report_of(address: Path) -> Path | None:
    """The newest finished evaluation of a run (itself, if it is one)."""
    finished = [run for run, manifest in Home(address.parent).finished() if manifest["stage"] == "evaluate"]
    if address in finished:
        return address
    return next((run for run in reversed(finished) if address in lineage(run)), None)


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
        "split": kept.get("collect", {}).get("split", {}),
        "counts": kept.get("collect", {}).get("counts", {}),
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


def open_run(address: Path) -> Artifact:
    """The finished artifact of a run, as the class that its stage gives."""
    return load_stage(question_of(address)["stage"]).output.open(address)


def recipe_file(reference: str | os.PathLike[str]) -> Path:
    """The file that a recipe's path or the name of a shipped recipe means."""
    path = Path(reference)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(RECIPES.glob("*.yaml"))}
    name = path.stem if path.parent.name in ("", "configs", "recipes") else ""
    if name in shipped and path.suffix in ("", ".yaml") and not path.is_dir():
        return shipped[name]
    raise UnknownName(
        "no such recipe.", path=str(path), value=str(path), rule="a YAML file, or the name of a shipped recipe",
        hint=did_you_mean(path.stem, shipped),
    )


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
    guessed = int(_text_bytes(recipe.sections["collect"]) * recipe.sections["collect"].splits[0] / BYTES_PER_TOKEN)
    return {**estimate(recipe.sections, guessed, vocabulary=planned_vocabulary(recipe)), "training_tokens_are": "guessed"}


def planned_vocabulary(recipe: Recipe) -> int:
    """The vocabulary that the recipe's tokenizer will have, or at most."""
    prepare = recipe.sections["prepare"]
    return prepare.vocabulary or prepare.vocabulary_at_most or 4096


def say_derived(recipe: Recipe) -> None:
    """Print where the settings come from, and the values that followed from the dial."""
    origin = recipe.source or "given in Python"
    talk().print(f"recipe  {origin}  (defaults < recipe < path=value; {len(recipe.given)} set)", markup=False)
    if recipe.derived:
        talk().print("derived  " + "  ".join(f"{path}={value}" for path, value in recipe.derived.items()), markup=False)
    for path, note in notes(recipe):
        talk().print(f"note  {path}: {note}", markup=False)


def notes(recipe: Recipe) -> list[tuple[str, str]]:
    """What is allowed but seldom meant: (section, sentence) for each remark that a part of the recipe has on itself."""
    return [(name, note) for name, section in recipe.sections.items() if isinstance(section, Part) for note in section.notes()]


def _source(reference: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[Path | None, Mapping[str, Any], Mapping[str, int]]:
    if isinstance(reference, Mapping):
        return None, reference, {}
    file = recipe_file(reference)
    return file, *read_yaml(file)


def _without(lines: Mapping[str, int], overridden: list[str]) -> dict[str, int]:
    """Lines of what the file still decides: a value given by an override has no line."""
    gone = {f"{'.'.join(path.split('.')[:count])}" for path in overridden for count in range(1, path.count(".") + 2)}
    return {path: line for path, line in lines.items() if path not in gone and not any(path.startswith(f"{o}.") for o in overridden)}


def _section(name: str, stage: Stage, hint: Any, value: Any, file: Path | None, lines: Mapping[str, int]) -> Any:
    default = stage.default(name)
    if value is None:
        return default
    if isinstance(default, Part) and isinstance(value, Mapping) and "name" not in value:
        value = {"name": default.name, **value}
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise explain(error, file=file, lines=lines, prefix=name) from None


def _parameters_asked(data: Mapping[str, Any], file: Path | None, lines: Mapping[str, int]) -> tuple[int | None, dict[str, Any]]:
    """``model.parameters``, a dial that every family has, and the recipe without it."""
    model = data.get("model")
    if not isinstance(model, Mapping) or model.get("parameters") is None:
        return None, dict(data)
    asked = model["parameters"]
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    try:
        number = float(asked[:-1]) * units[asked[-1]] if isinstance(asked, str) else float(asked)
        if isinstance(asked, bool) or not 1 <= number <= 1e13:
            raise ValueError
    except (ValueError, KeyError, TypeError, IndexError):
        place = f"{file}:{lines[PARAMETERS]}: {PARAMETERS}" if file and PARAMETERS in lines else PARAMETERS
        raise SettingError(
            f"{asked!r} is no number of parameters.", path=place, value=asked, rule="a number from 1 on, such as 1300000, 1.3e6 or 1.3M"
        ) from None
    return int(number), {**data, "model": {name: value for name, value in model.items() if name != "parameters"}}


def _sized(parameters: int, family: Family, prepare: Any) -> Family:
    """The family with so many parameters, for the vocabulary that the recipe asks for or that a model of that width recommends."""
    vocabulary = prepare.vocabulary or prepare.vocabulary_at_most
    if vocabulary:
        return family.sized(parameters, vocabulary)
    sized, vocabulary = family, 4096
    for _ in range(8):  # width and vocabulary follow one another; a few rounds settle them
        sized = family.sized(parameters, vocabulary)
        following = sized.recommended().get("prepare.vocabulary_at_most", vocabulary)
        if following == vocabulary:
            break
        vocabulary = following
    return sized


def _derive(sections: Mapping[str, Any], sized: Family | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Let the dial fill what was left open: first the model's own settings, then those that it recommends elsewhere.

    `sized`: the model turned to a number of parameters, where the recipe asks for one.
    """
    resolved, model = dict(sections), sections.get("model")
    if model is None:
        return resolved, {}
    resolved["model"] = (sized or model).resolved()
    before, after = flatten(model.dump(), "model"), flatten(resolved["model"].dump(), "model")
    settings, more = _recommended(resolved, resolved["model"].recommended())
    return settings, {path: value for path, value in after.items() if before.get(path) != value} | more


def _recommended(sections: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put values, by dotted path, where nothing was set; and those that were put."""
    known, resolved, derived = schema(), dict(sections), dict[str, Any]()
    for path, value in values.items():
        section, *keys = path.split(".")
        if section not in resolved:
            continue
        plain = _plain(resolved[section])
        node = plain
        for key in keys[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict) and keys[-1] in node and node[keys[-1]] is None:
            node[keys[-1]] = value
            resolved[section] = _section(section, *known[section], plain, None, {})
            derived[path] = value
    return resolved, derived


def _imported(sections: Mapping[str, Any]) -> Path | None:
    """The model that the recipe imports, where it lies."""
    if sections["import"].path is None:
        return None
    from chattune.models.sources import located

    return located(sections["import"].path).path


def _derive_from(start: Path, sections: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `_derive`, for a model that is started from: the model is the one that it is, and further training goes gently.

    What the recipe `data` says of the model must agree with it. AdamW (which most such models were made with), a tenth of the rate for
    fresh weights and small batches suit a model that already speaks; an adapter, whose weights are fresh, takes the whole rate.
    """
    from chattune.models.foreign import described

    family, vocabulary = described(start)
    model, given = family.resolved(), data.get("model")
    told = flatten({} if given is None else {"name": given} if isinstance(given, str) else given, "model")
    asked, found = flatten(sections["model"].dump(), "model"), flatten(model.dump(), "model")
    for path in told:
        if path in asked and asked[path] != found.get(path):
            raise SettingError(
                f"the model to start from has {found.get(path)!r}, not {asked[path]!r}.", path=path, value=asked[path],
                rule=f"{path}={found.get(path)}" if path in found else "a setting of the model to start from",
                hint="Leave the section model out: the model to start from is the model.",
            )
    usual = model.recommended()
    rate = usual.get("train.optimizer.lr")
    if rate is not None and getattr(sections["train"], "adapter", None) is None:
        rate = float(f"{rate / 10:.2g}")
    wanted = {"prepare.vocabulary_at_most": vocabulary, "train.batch_tokens": 4096, "train.optimizer.lr": rate}
    changed = {**sections, "model": model}
    first = {}
    if "optimizer" not in (data.get("train") or {}):
        first = {"train.optimizer.name": "adamw"}
        changed["train"] = _section("train", *schema()["train"], {**_plain(sections["train"]), "optimizer": "adamw"}, None, {})
    settings, derived = _recommended(changed, {path: value for path, value in wanted.items() if value is not None})
    return settings, first | derived


def _plain(value: Any) -> Any:
    return value.dump() if isinstance(value, Part) else value.model_dump(mode="json") if isinstance(value, BaseModel) else value


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
    from chattune.dialogs.stage import read_sources

    texts = {" ".join(m.content for m in item.messages) for item in read_sources(collect) if isinstance(item, Dialog)}
    return sum(len(text.encode("utf-8", "replace")) for text in texts)


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


def chain_up(pool: Iterable[Path]) -> Iterator[Artifact]:
    """The artifacts of some runs, then of everything that they were made from."""
    seen: list[Path] = []
    for address in pool:
        seen += [run for run in lineage(address) if run not in seen]
    for address in seen:
        yield open_run(address)
