"""Grammars: replies that are JSON, follow a JSON Schema or match a regular expression, token by token, through llguidance.

A grammar knows the bytes of each token and nothing of the model: it says which tokens may come next, and the reply ends where it is
complete. Control tokens stand for no bytes, so that none can come inside, whatever a schema holds. A schema is a stranger's program:
its size is limited, nothing is fetched for it, and what may be dear to compile is tried in a helper process first.
"""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llguidance
import numpy as np

from chattune.core.errors import SettingError, UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.tokens.tokenizer import Tokenizer

KINDS = ("json_schema", "regex", "json_object")
MOST_BYTES, MOST_DEPTH, MOST_NODES, MOST_REGEX = 1 << 16, 64, 1 << 15, 1 << 13  # of a schema as JSON; bytes of a regular expression
# Beyond llguidance's own limits on items and on work in a step: its memory (1 to 2 kB a state), and its silence about the schema.
_LIMITS = {"max_lexer_states": 20_000, "max_grammar_size": 100_000, "verbose_errors": False}
# A model that has nothing to say could fill its reply with white space: one space, or a line break with its indentation. Without \u
# there is one way to write a key, so that none comes in under another spelling of its name.
_JSON = {
    "whitespace_pattern": r" |\n {0,40}", "whitespace_flexible": True, "item_separator": ",", "key_separator": ":",
    "json_allowed_escapes": '"\\bfnrt', "json_allow_general_unicode_escapes": False, "coerce_one_of": False, "lenient": False,
}  # fmt: skip
_DEAR = ("pattern", "patternProperties", "format", "multipleOf")  # keywords by which regular expressions may meet
_TRIAL = Path(__file__).with_name("_grammar_trial.py")


class Grammar:
    """What a reply may be, compiled for one tokenizer; each reply that follows it has a `matcher` of its own."""

    def __init__(self, start: llguidance.LLMatcher, ends: Sequence[int]) -> None:
        self._start, self._ends = start, tuple(ends)

    @classmethod
    def compile(cls, spec: Mapping[str, Any], tokenizer: Tokenizer) -> Grammar:
        """The grammar of ``{"json_schema": {…}}``, ``{"regex": "…"}`` (Rust's syntax; the whole reply must match) or
        ``{"json_object": True}``.

        `SettingError` for what is not such, is too large, can never be satisfied or is not supported; keywords that llguidance does
        not know how to keep, such as ``not`` and ``uniqueItems``, are refused by name. Strings hold no control characters but
        ``\\b \\f \\n \\r \\t``. What was compiled lately is kept.
        """
        kind, text = _read(spec)
        return cls(_compiled(tokenizer, tokenizer.ends, kind, text), tokenizer.ends)

    def matcher(self) -> Matcher:
        """The beginning of a reply."""
        return Matcher(self._start.deep_copy(), self._ends)


class Matcher:
    """How far one reply has come in its grammar. Used from one thread at a time."""

    def __init__(self, state: llguidance.LLMatcher, ends: Sequence[int]) -> None:
        self._state, self._ends = state, list(ends)

    @property
    def allows_end(self) -> bool:
        """Whether the reply may end here."""
        return self._state.is_accepting()

    @property
    def finished(self) -> bool:
        """Whether only the end of the turn may follow."""
        return self._state.is_stopped() and not self._state.is_error()

    def mask(self, logits: Tensor) -> None:
        """Set the logits (vocabulary,) of tokens that must not come to −∞, in place. One token stays possible: where the others
        were ruled out before, those that the grammar allows are equal.

        `UsageError` where going on would take more work than a step may.
        """
        import torch

        bits = np.frombuffer(self._state.compute_bitmask(), dtype=np.uint8)
        if self._state.is_error():
            raise _too_hard(self._state.get_error())
        known = min(len(logits), 8 * len(bits))
        banned = np.ones(len(logits), dtype=np.bool_)
        banned[:known] = np.unpackbits(~bits, count=known, bitorder="little").view(np.bool_)
        on_device = torch.from_numpy(banned).to(logits.device)
        if logits.device.type == "cpu":
            np.copyto(logits.numpy(), -np.inf, where=banned)  # a little work that torch would share among threads, and wait for them
        else:
            logits.masked_fill_(on_device, -math.inf)
        if logits.max() == -math.inf:
            logits.masked_fill_(~on_device, 0.0)

    def advance(self, token: int) -> None:
        """Go on by a token that `mask` left possible. `UsageError` as in `mask`."""
        known = self._state.validate_tokens([token]) == 1
        if not known and not self._state.is_error():
            raise ValueError(f"token {token} does not follow the grammar here")
        if not known or not self._state.consume_token(token):
            raise _too_hard(self._state.get_error())


def _read(spec: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and text of a grammar, within the limits."""
    if len(spec) != 1 or next(iter(spec)) not in KINDS:
        raise _refused(
            f"a grammar has one key, not {sorted(map(str, spec))}.", list(spec), f"one of {', '.join(KINDS)}",
            did_you_mean(str(next(iter(spec), "")), KINDS),
        )
    ((kind, value),) = spec.items()
    if kind == "json_object":
        if value is not True:
            raise _refused("json_object has no other value than true.", value, "true", "Leave the grammar out for free text.")
        return "json_schema", '{"type":"object"}'
    if kind == "json_schema":
        return kind, _schema(value)
    if not isinstance(value, str):
        raise _refused(f"a regular expression is text, not {type(value).__name__}.", value, "a string")
    if len(value.encode(errors="surrogatepass")) > MOST_REGEX:
        raise _refused("the regular expression is too long.", len(value), f"at most {MOST_REGEX} bytes")
    return kind, value


def _schema(schema: Any) -> str:
    """The schema as JSON, the same text for the same schema."""
    if not isinstance(schema, Mapping):
        raise _refused(f"a JSON Schema is an object, not {type(schema).__name__}.", schema, "an object")
    for number, (node, depth) in enumerate(_nodes(schema)):
        if depth > MOST_DEPTH or number > MOST_NODES:
            raise _refused(
                "the schema is too large.", max(depth, number), f"at most {MOST_DEPTH} levels and {MOST_NODES} values",
                "Name what comes more than once in $defs, and refer to it.",
            )  # fmt: skip
        if isinstance(node, Mapping) and "x-guidance" in node:
            raise _refused("x-guidance would change how the schema is read.", "x-guidance", "keywords of JSON Schema")
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError) as error:  # not JSON; a lone surrogate
        raise _refused(f"the schema is not JSON: {_told(str(error))}.", None, "what JSON can hold") from None
    if size > MOST_BYTES:
        raise _refused("the schema is too large.", size, f"at most {MOST_BYTES} bytes")
    return text


def _nodes(root: Any) -> Iterator[tuple[Any, int]]:
    """Each value in a schema with its depth; without recursion, since the schema may be deep or hold itself."""
    left = [(root, 1)]
    while left:
        node, depth = left.pop()
        yield node, depth
        inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, (list, tuple)) else ()
        left.extend((child, depth + 1) for child in inner)


@functools.lru_cache(maxsize=16)
def _compiled(tokenizer: Tokenizer, ends: tuple[int, ...], kind: str, text: str) -> llguidance.LLMatcher:
    if kind == "regex":
        grammar = llguidance.LLMatcher.grammar_from_regex(text)
    else:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=_JSON)  # type: ignore[arg-type]
        if any(f'"{keyword}"' in text for keyword in _DEAR):
            _try(grammar)
    if getattr(tokenizer, "strips_space", False):  # decoding takes a space away that the reply must then begin with
        inner = {**json.loads(grammar)["grammars"][0], "name": "reply"}
        grammar = json.dumps({"grammars": [{"name": "start", "lark_grammar": 'start: " " @reply'}, inner]})
    limits = llguidance.LLParserLimits(**_LIMITS)  # type: ignore[arg-type]
    matcher = llguidance.LLMatcher(_vocabulary(tokenizer, ends), grammar, log_level=0, limits=limits)
    matcher.compute_bitmask()  # what it finds out about the beginning is kept for all replies
    if matcher.is_error():
        raise _wrong(matcher.get_error())
    return matcher


def _try(grammar: str) -> None:
    """Refuse a grammar that the helper process cannot compile within its limits."""
    surroundings = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONIOENCODING": "utf-8"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_TRIAL)], input=json.dumps({"grammar": grammar, "limits": _LIMITS}), capture_output=True,
            env=surroundings, encoding="utf-8", timeout=60, check=False,
        )  # fmt: skip
        ended = done.returncode
    except subprocess.TimeoutExpired:
        ended = -signal.SIGKILL
    if ended:
        raise _refused(
            "the schema takes too long to compile.", None, "patterns and multiples that do not all meet in one place",
            "Use fewer pattern, format and multipleOf keywords, or smaller multiples.",
        )
    if error := json.loads(done.stdout):
        raise _wrong(error)


class _Pieces:
    """The bytes of each token, as llguidance asks for them. None for what a reply must not hold: control tokens, and the byte 0xFF,
    which is in no text and marks control tokens there. Where only one text can follow, it is asked for by the ids that `encode` gives
    it, so that a model is led along the tokens that it learnt from."""

    bos_token_id, special_token_ids, is_tokenizer_wrapper = None, (), True

    def __init__(self, tokenizer: Tokenizer) -> None:
        control = {*tokenizer.never, *tokenizer.ends, *tokenizer.control.values(), *_written(tokenizer)}
        self.eos_token_id, self._encode = tokenizer.ends[0], tokenizer.encode
        self.tokens = [
            b"" if token in control or piece.startswith(b"\xff") else piece for token, piece in enumerate(tokenizer.pieces)
        ]
        self._ids = {piece: token for token, piece in reversed([*enumerate(self.tokens)]) if piece}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            return self._longest_first(text)
        ids, wanted = self._encode(text), text.encode()
        # Tokenizers from elsewhere may put a space before a text, or write it otherwise.
        return ids if b"".join([self.tokens[token] for token in ids]) == wanted else self._longest_first(wanted)

    def _longest_first(self, text: bytes) -> list[int]:
        ids: list[int] = []
        start = 0
        while start < len(text):
            ends = range(min(len(text), start + self._longest), start, -1)
            stop = next((end for end in ends if text[start:end] in self._ids), None)
            if stop is None:
                return ids  # a character that this vocabulary cannot write
            ids.append(self._ids[text[start:stop]])
            start = stop
        return ids


def _written(tokenizer: Tokenizer) -> Iterator[int]:
    """Ids of the control tokens that a template from elsewhere writes, such as ``<think>``."""
    named = getattr(tokenizer, "control_tokens", None)
    return iter(() if named is None else named.ids.values())


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer, ends: tuple[int, ...]) -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(_Pieces(tokenizer), n_vocab=tokenizer.vocabulary, eos_token=list(ends))  # type: ignore[arg-type]


def _wrong(error: str) -> SettingError:
    if error.startswith("NoExtension"):
        return _refused("nothing can satisfy the grammar.", None, "a grammar that replies can follow", "Its parts exclude each other.")
    return _refused(f"the grammar cannot be used: {_told(error)}.", None, "a JSON Schema or regular expression that can be kept")


def _too_hard(error: str) -> UsageError:
    return UsageError(
        f"the reply has come to where its grammar is too hard to follow: {_told(error)}.", path="grammar",
        rule="a grammar of little ambiguity", hint="Make it simpler: fewer alternatives that begin alike.",
    )  # fmt: skip


def _told(error: str) -> str:
    """llguidance's own words, on one line."""
    words = " ".join(error.removesuffix("<non-verbose/>").split()).rstrip(".")
    return words if len(words) <= 200 else f"{words[:197]}..."


def _refused(message: str, value: Any, rule: str, hint: str | None = None) -> SettingError:
    return SettingError(message, path="grammar", value=value, rule=rule, hint=hint or None)
