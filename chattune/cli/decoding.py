"""The options by which `chat` and `serve` say how replies are computed: what proposes tokens. Nothing here knows torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from cyclopts import Parameter

from chattune.core.config import parse
from chattune.core.errors import UsageError

if TYPE_CHECKING:
    from chattune.generate.reply import Speculation

SpeculateOption = Annotated[
    str | None, Parameter(help="propose tokens and check several in one pass: lookup, or settings (see `chattune explain speculation`)")
]
OPTIONS = {"weights": "--weights", "speculation": "--speculate", "draft": "--draft"}  # settings of `Decoding`, as they are typed


def speculation_of(said: str | None) -> Speculation | None:
    """What ``--speculate`` says: a word, or a mapping of settings; none where it is not given."""
    if said is None:
        return None
    from chattune.generate.reply import Speculation

    return Speculation.meant(mapping(said, "--speculate", "{lookup: 8, match: 2}"), "--speculate")


def mapping(said: str, option: str, example: str) -> Any:
    """The settings that an option spells in braces, else the word itself."""
    if not said.startswith("{"):
        return said
    try:
        return parse(said)
    except yaml.YAMLError:
        raise UsageError(
            f"'{said}' cannot be read.", path=option, value=said, rule="settings in braces", hint=f"Write it like {example}."
        ) from None


@contextmanager
def by_option(model: str | None = None) -> Iterator[None]:
    """A refusal of `Decoding` names the option, and the model that was meant where there are several."""
    try:
        yield
    except UsageError as error:
        if error.path in OPTIONS:
            error.path = OPTIONS[error.path]
            error.message = error.message if model is None else f"{model}: {error.message}"
        raise
