"""The stage `evaluate`: how good is a model on conversations it never saw, and is it better than what costs nothing?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, field_validator

from chattune.core import files
from chattune.core.part import Settings, part_list, setting
from chattune.core.progress import talk
from chattune.core.stage import keep_summary, stage
from chattune.dialogs.artifact import Dialogs
from chattune.dialogs.augmentations._sides import Swaps
from chattune.dialogs.sources import source_files
from chattune.evaluate.artifact import DataReport, Report
from chattune.evaluate.baselines import Baseline
from chattune.evaluate.metrics import Metric
from chattune.generate.reply import Sampling
from chattune.models.checkpoint import Checkpoint
from chattune.tokens.token_set import TokenSet

METRICS = ("bleu", "chrf", "rouge_l", "distinct_1", "distinct_2", "repetition", "empty", "length")
BASELINES = ("ngram", "retrieval", "most_frequent")


def _metrics(value: Any) -> Any:
    return part_list(_added(METRICS, value))


def _baselines(value: Any) -> Any:
    return part_list(_added(BASELINES, value))


def _added(usual: tuple[str, ...], value: Any) -> Any:
    """A list is taken as it stands; a mapping, which is what an override of one part's setting makes, changes the usual ones."""
    return {**dict.fromkeys(usual), **value} if isinstance(value, Mapping) and "name" not in value else value


class Parity(Swaps):
    """What is swapped in the test conversations, to see whether the model treats sides alike."""

    dialogs: int = setting(1000, "test conversations at most for each group, evenly spaced over those that mention a side", low=1)


class EvaluateConfig(Settings):
    """What is measured on the test split, and beside what. Bits per byte and perplexity always are."""

    replies: int = setting(200, "test conversations in which one turn is answered and judged; 0: none", low=0, high=1_000_000)
    sampling: Sampling = Sampling(max_tokens=64)
    metrics: Annotated[tuple[Metric, ...], BeforeValidator(_metrics)] = setting(METRICS, "numbers about the replies")
    baselines: Annotated[tuple[Baseline, ...], BeforeValidator(_baselines)] = setting(BASELINES, "what the model has to beat")
    overlap: int | None = setting(
        None, "tokens that a window of a long conversation sees of the one before; none: half the model's context", low=0, high=1 << 20
    )
    history_dialogs: int = setting(
        40, "test conversations on which the loss is measured with shorter and shorter history; 0: not measured", low=0, high=1_000_000
    )
    general: tuple[str, ...] | None = setting(
        None, "for a fine-tuned model, conversations of no domain on which forgetting shows: files, folders or words for what is "
        "installed; none: chitchat, or chatterbot-chinese for Chinese; []: not measured",
    )  # fmt: skip
    general_dialogs: int = setting(200, "of these, at most so many, evenly spaced", low=1, high=1_000_000)
    parity: Parity | None = setting(
        None, "whether the model treats sides alike, such as he and she: replies are compared with their counterparts. true, or what "
        "is swapped; none: not measured",
    )  # fmt: skip

    @field_validator("general", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("parity", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value

    def fingerprint(self) -> dict[str, Any]:
        """The bytes of the general conversations, where some are named, and of the terms that are swapped."""
        general = {file.shown: file.digest() for file in source_files(self.general)} if self.general else {}
        return general | {str(path): files.digest_of(path) for path in (self.parity.files() if self.parity else ())}


@stage
def evaluate(
    *, config: EvaluateConfig, seed: int = 0, dialogs: Dialogs, tokens: TokenSet, checkpoint: Checkpoint, out: Path
) -> Report:
    """Judge `checkpoint` on the test split of `dialogs`, beside baselines that learned from the training split."""
    from chattune.evaluate.forgetting import sentences
    from chattune.evaluate.history import sentence as history_sentence
    from chattune.evaluate.judge import judge
    from chattune.evaluate.parity import sentences as parity_sentences
    from chattune.evaluate.report import write

    judged = judge(config, seed, dialogs, tokens, checkpoint)
    keep_summary(out, judged.summary)
    write(judged, config, seed, dialogs, tokens, checkpoint, out)
    for sentence in sentences(judged.summary.get("started")):
        talk().print(f"evaluate  {sentence}", markup=False)
    if history := judged.summary.get("history"):
        talk().print(f"evaluate  {history_sentence(history)}", markup=False)
    for sentence in parity_sentences(judged.summary.get("parity")):
        talk().print(f"evaluate  {sentence}", markup=False)
    verdict = judged.summary["verdict"]
    talk().print(f"evaluate  worth talking to? {verdict['answer']}. {verdict['text']}", markup=False)
    for reason in verdict["reasons"]:
        talk().print(f"evaluate  {reason}", markup=False)
    return Report(out)


class SurveyConfig(Settings):
    """What the data report looks at."""

    sample: int = setting(5000, "dialogs of each split that topics, quality and shift are sought in, drawn at random", low=20)
    topics: int = setting(12, "topics at the most", low=2, high=200)
    against: tuple[str, ...] = setting((), "new logs, which the training split is compared with: files, folders, globs")

    @field_validator("against", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def fingerprint(self) -> dict[str, str]:
        """The bytes of the new logs."""
        return {file.shown: file.digest() for file in source_files(self.against)}


@stage
def survey(
    *, config: SurveyConfig, seed: int = 0, dialogs: Dialogs, tokens: TokenSet | None = None, out: Path
) -> DataReport:
    """Look at dialogs: what is in them, what was left out, how the splits differ, what to be careful about; one page."""
    from chattune.evaluate.survey import surveyed, write

    found = surveyed(dialogs, tokens, sample=config.sample, topics=config.topics, against=config.against, seed=seed)
    write(found, dialogs.path.name, out)
    keep_summary(out, found)
    return DataReport(out)
