"""The stage `prepare`: learn a tokenizer from the training split, and turn every split into ids with loss weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chattune.core import files
from chattune.core.errors import ArtifactError, DataError, SettingError
from chattune.core.part import Settings, setting
from chattune.core.progress import progress, talk
from chattune.core.stage import keep_summary, stage
from chattune.dialogs.artifact import SPLITS, Dialogs
from chattune.dialogs.dialog import Dialog
from chattune.tokens.control import GENERATION, SMALLEST, TOKENIZER, TOKENIZER_FILES, refuse_surrogates
from chattune.tokens.token_set import Pretrained, TokenSet

if TYPE_CHECKING:
    from chattune.tokens.template import Template
    from chattune.tokens.tokenizer import Tokenizer

VOCABULARY = 4096  # at most, where neither the recipe nor the model's size says another
# What a Hugging Face directory may say about a tokenizer besides the usual three files.
MORE_TOKENIZER_FILES = (GENERATION, "special_tokens_map.json", "config.json", "vocab.json", "merges.txt")
CHARACTERS_AT_ONCE = 1 << 22  # of text that is encoded together: enough for all cores, little for the memory


class PrepareConfig(Settings):
    """How dialogs become ids."""

    vocabulary: int | None = setting(
        None, "number of token ids, exactly; none: as many as the data supports", low=SMALLEST, high=1 << 20
    )
    vocabulary_at_most: int | None = setting(
        None, "bound where `vocabulary` is left open; none: derived from the model's size", low=SMALLEST, high=1 << 20
    )
    targets: Literal["all", "assistant"] = setting("all", "which turns carry loss; a message's own weight has the last word")
    minimum_count: int = setting(2, "times that a pair must occur in the training split to become a token", low=1, high=1_000_000)
    tokenizer: str | None = setting(
        None, "directory whose tokenizer and chat template are used instead of new ones; a model to start from brings its own"
    )

    def fingerprint(self) -> dict[str, str]:
        """The bytes of a tokenizer and a template that are taken over."""
        if self.tokenizer is None:
            return {}
        named = [Path(self.tokenizer) / name for name in (*TOKENIZER_FILES, *MORE_TOKENIZER_FILES)]
        found = [path for path in named if path.is_file()]
        if not any(path.name in (TOKENIZER, "vocab.json") for path in found):
            raise ArtifactError(
                "has no tokenizer.", path=f"prepare.tokenizer: {self.tokenizer}", value=self.tokenizer,
                rule=f"a directory with {TOKENIZER}, such as a finished prepare or train run",
            )
        return {str(path): files.digest_of(path) for path in found}


@stage
def prepare(*, config: PrepareConfig, dialogs: Dialogs, start: Pretrained | None = None, out: Path) -> TokenSet:
    """Tokenizer, chat template, and each split as memory-mapped ids, loss weights and offsets; with a `start`, by its tokenizer."""
    template = _tokenizer(config, dialogs, start).template(config.targets)
    template.save(out)
    counts = {name: _encode(template, dialogs, name, out / name) for name in SPLITS}
    keep_summary(out, {"token_set": {"vocabulary": template.tokenizer.vocabulary, "targets": config.targets, **counts}})
    train = counts["train"]
    talk().print(
        f"prepare  vocabulary {template.tokenizer.vocabulary}  train {train['tokens']:,} tokens, {train['bytes_per_token']} bytes each,"
        f" {train['targets']:,} of them targets  longest dialog {train['longest_dialog']:,}", markup=False,
    )  # fmt: skip
    return TokenSet(out)


def _tokenizer(config: PrepareConfig, dialogs: Dialogs, start: Pretrained | None) -> Tokenizer:
    from chattune.tokens.tokenizer import Tokenizer

    if start is not None or config.tokenizer is not None:
        return _taken_over(config, start)
    texts = (message.content for dialog in _read(dialogs, "train") for message in dialog.messages)
    if config.vocabulary is not None:
        return Tokenizer.train(texts, config.vocabulary, minimum_count=config.minimum_count)
    bound = config.vocabulary_at_most or VOCABULARY
    tokenizer = Tokenizer.train_at_most(texts, bound, minimum_count=config.minimum_count)
    if tokenizer.vocabulary < bound:
        talk().print(f"prepare  vocabulary {tokenizer.vocabulary}, as many as the data supports", markup=False)
    return tokenizer


def _taken_over(config: PrepareConfig, start: Pretrained | None) -> Tokenizer:
    """The tokenizer of the model to start from, or of a directory; both at once only where they are the same."""
    from chattune.tokens.tokenizer import Tokenizer

    if config.vocabulary is not None:
        raise SettingError(
            "a tokenizer that is taken over has its own vocabulary.", path="prepare.vocabulary", value=config.vocabulary,
            rule="none where a model is started from", hint="Leave prepare.vocabulary out.",
        )
    if start is None:
        assert config.tokenizer is not None
        return Tokenizer.load(Path(config.tokenizer))
    if config.tokenizer is not None and files.digest_of(Path(config.tokenizer) / TOKENIZER) != files.digest_of(start.path / TOKENIZER):
        raise SettingError(
            f"is not the tokenizer of {start.path.name}, which the model is started from.", path="prepare.tokenizer",
            value=config.tokenizer, rule="the tokenizer of the model", hint="Leave prepare.tokenizer out.",
        )
    return start.tokenizer


def _encode(template: Template, dialogs: Dialogs, split: str, folder: Path) -> dict[str, Any]:
    """Write one split and count what is in it."""
    from chattune.tokens.split_writer import SplitWriter

    with (dialogs.path / f"{split}.jsonl").open("rb") as file:
        total = sum(1 for _ in file)
    count = {"dialogs": 0, "tokens": 0, "targets": 0, "bytes": 0, "longest_dialog": 0}
    with SplitWriter(folder, template.tokenizer.vocabulary) as writer, progress(f"prepare {split}", total, unit="dialog") as bar:
        for some in _together(_read(dialogs, split)):
            piece = writer.append(_rendered(template, some))
            count["dialogs"] += len(piece)
            count["tokens"] += len(piece.ids)
            count["targets"] += int((piece.weights > 0).sum())
            count["bytes"] += int(template.tokenizer.byte_lengths[piece.ids].sum())
            count["longest_dialog"] = max(count["longest_dialog"], piece.longest)
            bar.update(count["dialogs"], tokens=f"{count['tokens']:,}")
    if split == "train" and count["targets"] == 0:
        raise DataError(
            "the training split has nothing to learn from.", path=str(dialogs.path / "train.jsonl"), value=0,
            rule="at least one turn with a loss weight above zero", hint="Set prepare.targets=all, or bring more conversations.",
        )
    return {**count, "bytes_per_token": round(count["bytes"] / max(1, count["tokens"]), 3)}


def _rendered(template: Template, some: list[Dialog]) -> list[tuple[list[int], list[float]]]:
    """Ids and weights; a dialog that the template does not take is told with the place it came from."""
    try:
        return template.render_many([dialog.messages for dialog in some])
    except DataError:
        for dialog in some:
            try:
                template.render(dialog.messages)
            except DataError as error:
                raise DataError(
                    error.message, path=f"{dialog.file}:{dialog.line}", value=dialog.id, rule=error.rule, hint=error.hint
                ) from None
        raise


def _read(dialogs: Dialogs, split: str) -> Iterator[Dialog]:
    """The dialogs of a split; one that UTF-8 cannot hold is told with the place it came from."""
    for dialog in dialogs.read(split):
        try:
            for message in dialog.messages:
                refuse_surrogates(message.content)
        except DataError as error:
            raise DataError(
                error.message, path=f"{dialog.file}:{dialog.line}", value=error.value, rule=error.rule, hint=error.hint
            ) from None
        yield dialog


def _together(dialogs: Iterator[Dialog]) -> Iterator[list[Dialog]]:
    some: list[Dialog] = []
    characters = 0
    for dialog in dialogs:
        some.append(dialog)
        characters += sum(len(message.content) for message in dialog.messages)
        if characters >= CHARACTERS_AT_ONCE:
            yield some
            some, characters = [], 0
    if some:
        yield some
