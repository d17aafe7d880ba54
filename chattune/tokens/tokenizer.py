"""The tokenizer: byte-level BPE over Chinese, English and everything else, lossless, with control tokens that no text can forge."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from chattune.core import files
from chattune.core.errors import CorruptError, DataError, SettingError
from chattune.tokens.control import (
    CHAT_TEMPLATE,
    CONTROL,
    MARK,
    MARK_BREAK,
    MARK_ITSELF,
    SMALLEST,
    TOKENIZER,
    TOKENIZER_CONFIG,
    control_token,
    escaped,
)  # fmt: skip

if TYPE_CHECKING:
    from chattune.tokens.template import Template

# As GPT-4's pattern, with marks beside letters (accents, Indic and Arabic vowels) and English contractions kept in the word.
# Letter runs take one sign before them, which fits Chinese clauses (，我) as well as English words ( the). Bytes per token on
# held-out chat at vocabulary 4096, against GPT-2's, GPT-4's and Qwen's pattern: English 3.78 (3.68, 3.71, 3.71), Chinese 4.32
# (4.23, 4.32, 4.21).
PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+(?:['’]\p{L}{1,2}(?!\p{L}))?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


class Tokenizer:
    """Text to ids and back. ``decode(encode(x)) == x`` for every text, and `encode` never gives a control id.

    `vocabulary`: number of ids; `control`: name → id of the control tokens (of one from elsewhere: ``pad``, ``end`` and perhaps
    ``begin``); `ends`: ids after which a reply is over, the end of turn first; `never`: ids that a reply may not hold;
    `byte_lengths`: (vocabulary,) int64, the UTF-8 bytes that each id stands for, 0 for control ids.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self.vocabulary: int = backend.get_vocab_size(with_added_tokens=True)
        self.control: dict[str, int] = {name: _require(backend.token_to_id(control_token(name)), name) for name in CONTROL}
        self.ends: tuple[int, ...] = (self.control["end"],)
        self.never: tuple[int, ...] = tuple(sorted(set(self.control.values()) - set(self.ends)))
        self._bytes = _bytes_of(backend, set(self.control.values()))
        self.byte_lengths: np.ndarray = np.array([len(piece) for piece in self._bytes], dtype=np.int64)

    @property
    def pieces(self) -> Sequence[bytes]:
        """The bytes that each id stands for; none for control ids."""
        return self._bytes

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int, *, minimum_count: int = 2) -> Self:
        """A tokenizer of exactly `vocabulary` ids, learnt from `texts`; the same texts give the same tokenizer.

        `SettingError` when the texts support fewer: a pair of neighbours is merged only if it occurs `minimum_count` times.
        """
        if vocabulary < SMALLEST:
            raise SettingError(
                f"{vocabulary} ids are too few: {SMALLEST} stand for the bytes and the control tokens.", path="prepare.vocabulary",
                value=vocabulary, rule=f"at least {SMALLEST}", hint=f"Set prepare.vocabulary={max(4096, SMALLEST)}.",
            )
        tokenizer = cls.train_at_most(texts, vocabulary, minimum_count=minimum_count)
        if tokenizer.vocabulary < vocabulary:
            raise SettingError(
                f"the data supports {tokenizer.vocabulary} ids, not {vocabulary}.", path="prepare.vocabulary", value=vocabulary,
                rule=f"at most {tokenizer.vocabulary} for this training split",
                hint=f"Set prepare.vocabulary={tokenizer.vocabulary} or less, or bring more conversations.",
            )
        return tokenizer

    @classmethod
    def train_at_most(cls, texts: Iterable[str], vocabulary: int, *, minimum_count: int = 2) -> Self:
        """As `train`, but a smaller tokenizer where the texts support no more."""
        backend = tokenizers.Tokenizer(models.BPE())
        # Both only delete, so that what stays keeps its place in the text: transformers finds the assistant's ids by place.
        backend.normalizer = normalizers.Sequence(
            [normalizers.Replace(MARK_BREAK, ""), normalizers.Replace(Regex(f"(?<={MARK}){MARK_ITSELF[1:]}"), "")]
        )
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=minimum_count,
            special_tokens=[AddedToken(control_token(name), special=True, normalized=False) for name in CONTROL],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator((escaped(text) for text in texts), trainer)
        return cls(backend)

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """The tokenizer in `folder`: one that chattune trained, or that of a Hugging Face directory (a `ForeignTokenizer`)."""
        from chattune.tokens.foreign import ForeignTokenizer
        from chattune.tokens.template import JINJA

        folder = Path(folder)
        path = folder / TOKENIZER
        if not path.is_file():
            return ForeignTokenizer.of(folder)
        text = _text_of(path)
        template = folder / CHAT_TEMPLATE
        if all(f'"{control_token(name)}"' in text for name in CONTROL) or (
            template.is_file() and template.read_bytes() == JINJA.encode()
        ):
            return Tokenizer(parsed(text, path))
        return ForeignTokenizer.of(folder)

    def template(self, targets: str = "all") -> Template:
        """The chat template that belongs to this tokenizer; `targets`: which turns carry loss."""
        from chattune.tokens.template import Template

        return Template(self, targets)

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``; the template adds ``chat_template.jinja``."""
        files.write_atomically(Path(folder) / TOKENIZER, self._backend.to_str(pretty=False))
        files.write_json(
            Path(folder) / TOKENIZER_CONFIG,
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": control_token("begin"),
                "eos_token": control_token("end"),
                "pad_token": control_token("pad"),
                "clean_up_tokenization_spaces": False,
                "padding_side": "right",
            },
        )

    def generation(self) -> dict[str, Any]:
        """What ``generation_config.json`` says beside a model: which ids begin and end, which are never drawn, how long a reply is."""
        ids = {"bos_token_id": self.control["begin"], "eos_token_id": self.control["end"], "pad_token_id": self.control["pad"]}
        return {**ids, "suppress_tokens": [*self.never], "max_new_tokens": 128}

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, which may hold anything but a lone surrogate (`DataError`)."""
        return list(self._backend.encode(escaped(text), add_special_tokens=False).ids)

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel on all cores."""
        found = self._backend.encode_batch_fast([escaped(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; control ids are left out, bytes that are not UTF-8 become U+FFFD."""
        return b"".join([self._bytes[i] for i in ids]).decode("utf-8", errors="replace")

    def stream(self) -> TextStream:
        """Decodes ids one at a time."""
        return TextStream(self._bytes)


class TextStream:
    """Text as it becomes complete: a character is held back until its last byte has come.

    All that `push` gave, and then `finish`, is what `Tokenizer.decode` gives for the same ids.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, which may be empty."""
        return self._decoder.decode(self._pieces[token])

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, or nothing."""
        return self._decoder.decode(b"", final=True)


def parsed(text: str, path: Path | str) -> tokenizers.Tokenizer:
    """The library's tokenizer from the text of a ``tokenizer.json``, or a `CorruptError` that names `path`."""
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception for what it cannot read
        raise CorruptError(f"is not a tokenizer: {error}.", path=str(path), rule="a tokenizer.json that is whole") from None


def _bytes_of(backend: tokenizers.Tokenizer, control: set[int]) -> list[bytes]:
    """The bytes of each id: the library writes each byte as one printable character."""
    byte_of = {character: byte for byte, character in byte_characters()}
    pieces = []
    for token in range(backend.get_vocab_size(with_added_tokens=True)):
        if token in control:
            pieces.append(b"")
            continue
        text = backend.id_to_token(token)
        if text is None or any(character not in byte_of for character in text):
            raise DataError(f"id {token} stands for {text!r}, not for bytes.", path=TOKENIZER, rule="a byte-level tokenizer")
        pieces.append(bytes(byte_of[character] for character in text))
    return pieces


def byte_characters() -> Iterator[tuple[int, str]]:
    """Byte-level BPE's alphabet (Radford et al. 2019): printable bytes stand for themselves, the others from U+0100 on."""
    hidden = 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            yield byte, chr(byte)
        else:
            yield byte, chr(256 + hidden)
            hidden += 1


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CorruptError("is not a tokenizer: it is not UTF-8.", path=str(path), rule="a tokenizer.json that is whole") from None


def _require(token: int | None, name: str) -> int:
    if token is None:
        raise DataError(f"has no control token {control_token(name)}.", path=TOKENIZER, rule="a tokenizer that chattune saved")
    return token
