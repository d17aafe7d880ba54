"""Models over a few tokens, whose replies can be counted one by one, and the tokenizer that goes with them."""

from __future__ import annotations

from typing import Any, cast

from chattune.core.part import kind
from chattune.models.language_model import LanguageModel
from chattune.tokens.tokenizer import Tokenizer

END, WORDS = 0, 9
SMALL = {
    "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "context": 96, "init": {"name": "normal", "std": 0.2}, "init_outputs": "same",
}  # fmt: skip


class Few:
    """A tokenizer of a few tokens, each one letter, and an end."""

    vocabulary, ends, never = WORDS, (END,), (1,)

    def stream(self) -> Few:
        return self

    def push(self, token: int) -> str:
        return "_abcdefghij"[token]

    def finish(self) -> str:
        return ""


FEW = cast(Tokenizer, Few())


def build(name: str, vocabulary: int, seed: int = 0, **settings: Any) -> LanguageModel:
    """A small model of any family, with random weights; of `settings` what the family has."""
    part = kind("families").load(name)
    family = part(**{key: value for key, value in {**SMALL, **settings}.items() if key in part.model_fields})
    return family.build(vocabulary, seed=seed).eval()  # type: ignore[no-any-return]


def few(seed: int = 0, std: float = 0.25, name: str = "gpt", **settings: Any) -> LanguageModel:
    """A model over `WORDS` tokens: the smaller `std`, the more alike the chances of them."""
    shape = {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "context": 40, "init": {"name": "normal", "std": std}}
    return build(name, WORDS, seed, **{**shape, **settings})
