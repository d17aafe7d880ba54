"""Tokenizers from elsewhere: the ``tokenizer.json`` of a Hugging Face directory, or the vocabulary of a GGUF file.

Two kinds are understood: byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece-like BPE or unigram with ``▁`` for a space (Llama 2,
Mistral, Gemma). In the copy that encodes here every control token bears a secret name instead of its own, so no text can hold one;
only the template writes these names. What is saved is the file as it came.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chattune.core import files
from chattune.core.errors import ArtifactError, CorruptError
from chattune.tokens.control import GENERATION, TOKENIZER, TOKENIZER_CONFIG, refuse_surrogates
from chattune.tokens.tokenizer import TextStream, Tokenizer, byte_characters, parsed

if TYPE_CHECKING:
    from chattune.tokens.chat_template import ChatTemplate

SPACE = "▁"  # U+2581, which SentencePiece writes for a space
_LARGEST = 1 << 22  # ids; the largest vocabulary in use has a sixteenth of it
# Keys of tokenizer_config.json that name code, or files that do not travel with the tokenizer.
_LEFT_OUT = ("auto_map", "chat_template", "tokenizer_file", "vocab_file", "merges_file", "name_or_path", "special_tokens_map_file")

# What a tokenizer may fail to give back, and a text that shows it.
_LOSSES = {
    "letters with separate accents": "cafe\u0301", "compatibility forms such as ﬁ and Ａ": "ﬁ Ａ", "capitals": "aBc",
    "spaces at the beginning": "  a", "several spaces": "a   b", "spaces at the end": "a ", "tabs": "a\tb", "line feeds": "a\n\n b",
    "carriage returns": "a\r\nb", "the sign ▁ (it becomes a space)": "a▁b", "rare characters": "𠮷 𝒳 \U0001f99c 你好",
    "control characters": "a\x07b",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a directory or a file says about its tokenizer.

    `text`: ``tokenizer.json``; `config`: ``tokenizer_config.json``; `generation`: ``generation_config.json``; `template`: the Jinja
    text, or none; `place`: where it was found; `notes`: what is to be told about it.
    """

    text: str
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    template: str | None
    place: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Control:
    """The control tokens of a tokenizer: their text, id, and the secret names that stand for them."""

    ids: Mapping[str, int]
    special: frozenset[str]
    secret: str = field(default_factory=lambda: secrets.token_hex(8))

    def alias(self, text: str) -> str:
        return f"\ufdd0{self.secret}:{self.ids[text]}\ufdd1"  # noncharacters: Unicode keeps them for internal use


class ForeignTokenizer(Tokenizer):
    """A tokenizer that another library trained. `encode` never gives a control id; `losses` says what it does not give back.

    Control tokens are the special tokens and the added tokens that the chat template writes. `named`: ``bos_token`` → text.
    """

    def __init__(self, found: Found) -> None:
        self.found = found
        data = _plain(found.text, found.place)
        self.named = _named(found.config)
        self._added = {str(entry["content"]): int(entry["id"]) for entry in data["added_tokens"]}
        self._vocabulary_of_model = _model_vocabulary(data, found.place)
        self.notes = [*found.notes, *self._add_named(data)]
        self.control_tokens = self._control(data, found.template or "")
        self._backend = parsed(json.dumps(_renamed(data, self.control_tokens)), found.place)
        self.vocabulary = 1 + max([*self._vocabulary_of_model.values(), *self._added.values()])
        self._check_ids()
        self.strips_space = _strips_space(data)
        self._bytes = self._pieces(data)
        self.byte_lengths = np.array([len(piece) for piece in self._bytes], dtype=np.int64)
        self._set_ends(_ids(found.generation.get("eos_token_id")))
        self._check_decoding()

    @classmethod
    def of(cls, folder: Path) -> ForeignTokenizer:
        """The tokenizer of a Hugging Face directory."""
        from chattune.tokens._hugging_face import found_in

        with files.telling_damage(folder, "a tokenizer and a chat template that are whole"):
            return cls(found_in(Path(folder)))

    def template(self, targets: str = "all") -> ChatTemplate:
        from chattune.tokens.chat_template import ChatTemplate

        return ChatTemplate(self, targets)

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` as it came, ``tokenizer_config.json`` and ``generation_config.json``; the template adds its file."""
        config = {key: value for key, value in self.found.config.items() if key not in _LEFT_OUT}
        if "auto_map" in self.found.config or "tokenizer_class" not in config:
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        files.write_atomically(Path(folder) / TOKENIZER, self.found.text)
        files.write_json(Path(folder) / TOKENIZER_CONFIG, config)
        files.write_json(Path(folder) / GENERATION, self.generation())

    def generation(self) -> dict[str, Any]:
        """``generation_config.json``: its maker's, with all ids that end a turn, the end of turn first."""
        ids = {"eos_token_id": self.ends[0] if len(self.ends) == 1 else [*self.ends], "pad_token_id": self.control["pad"]}
        begin = {"bos_token_id": self.control["begin"]} if "begin" in self.control else {}
        return {key: value for key, value in self.found.generation.items() if key != "transformers_version"} | begin | ids

    def encode(self, text: str) -> list[int]:
        refuse_surrogates(text)
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            refuse_surrogates(text)
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_written(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Ids, and the characters that each stands for, of texts in which the template has written its control tokens (`written`)."""
        found = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in found]

    def decode(self, ids: Iterable[int]) -> str:
        text = b"".join([self._bytes[i] for i in ids]).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.strips_space else text

    def stream(self) -> TextStream:
        return _Stripping(self._bytes) if self.strips_space else TextStream(self._bytes)

    def written(self, text: str) -> str:
        """What the template itself writes: its control tokens under the names that only this object knows."""
        return self.marks.sub(lambda match: self.control_tokens.alias(match[0]), text)

    def said(self, text: str) -> str:
        """What the assistant says: it may use control tokens that are not special, such as ``<think>``, and no others."""
        return self._speakable.sub(lambda match: self.control_tokens.alias(match[0]), text) if self._speakable else text

    @cached_property
    def aliased(self) -> Mapping[str, int]:
        """Secret name → id of every control token."""
        return {self.control_tokens.alias(text): token for text, token in self.control_tokens.ids.items()}

    @cached_property
    def losses(self) -> list[str]:
        """Kinds of text that decoding does not give back as it was encoded."""
        return [kind for kind, text in _LOSSES.items() if self.decode(self.encode(text)) != text]

    def end_turns_with(self, token: int) -> None:
        """Let `token` be the end of turn that is learnt, before the others that end a reply."""
        self._set_ends([token, *self.ends])

    @cached_property
    def marks(self) -> re.Pattern[str]:
        """Finds the control tokens in what the template writes."""
        return _any_of(self.control_tokens.ids)

    @property
    def adds_begin(self) -> bool:
        """Whether texts that are no conversation begin with the token of that name."""
        begin, processor = self.named.get("bos_token"), json.loads(self.found.text).get("post_processor")
        return begin is not None and (self.found.config.get("add_bos_token") is True or json.dumps(begin) in json.dumps(processor))

    @cached_property
    def _speakable(self) -> re.Pattern[str] | None:
        plain = self.control_tokens.ids.keys() - self.control_tokens.special
        return _any_of(plain) if plain else None

    def _add_named(self, data: dict[str, Any]) -> Iterator[str]:
        """Tokens that tokenizer_config.json names are special, also where tokenizer.json does not list them as added."""
        special = [*self.named.values(), *_listed(self.found.config)]
        for text in dict.fromkeys(special):
            if text in self._added:
                continue
            if text not in self._vocabulary_of_model:
                yield f"tokenizer_config.json names the token {text!r}, which the vocabulary lacks: left out"
                self.named = {name: value for name, value in self.named.items() if value != text}
                continue
            self._added[text] = self._vocabulary_of_model[text]
            data["added_tokens"].append(added_token(self._added[text], text, special=True))
        for entry in data["added_tokens"]:
            entry["special"] = bool(entry.get("special")) or entry["content"] in special
        data["added_tokens"].sort(key=lambda entry: entry["id"])

    def _control(self, data: Mapping[str, Any], template: str) -> _Control:
        special = frozenset(entry["content"] for entry in data["added_tokens"] if entry["special"])
        written = {text for text in self._added if text in template and text.strip() and len(text) > 1}
        return _Control({text: self._added[text] for text in sorted(special | written)}, special)

    def _check_ids(self) -> None:
        if not 0 < self.vocabulary <= _LARGEST:
            raise CorruptError(f"has the id {self.vocabulary - 1}.", path=self.found.place, rule=f"ids below {_LARGEST}")
        for text, token in self._added.items():
            name = self.control_tokens.alias(text) if text in self.control_tokens.ids else text
            if self._backend.token_to_id(name) != token:
                raise CorruptError(
                    f"gives the added token {text!r} the id {token}, which is not where it stands.", path=self.found.place, value=token,
                    rule="added tokens at their places in the vocabulary", hint="Ask where the model comes from.",
                )

    def _pieces(self, data: Mapping[str, Any]) -> list[bytes]:
        """The bytes of each id; none for control tokens and for ids that stand for nothing."""
        byte_level, space = _kind_of(data, self.found.place)
        byte_of = {character: byte for byte, character in byte_characters()}
        fallback = bool(data["model"].get("byte_fallback"))
        pieces = [b""] * self.vocabulary
        control = set(self.control_tokens.ids.values()) - set(self._said_ids())
        for text, token in [*self._vocabulary_of_model.items(), *self._added.items()]:
            if token in control:
                continue
            if byte_level:
                known = all(character in byte_of for character in text)
                pieces[token] = bytes(byte_of[character] for character in text) if known else text.encode()
            elif fallback and (match := re.fullmatch(r"<0x([0-9A-F]{2})>", text)):
                pieces[token] = bytes([int(match[1], 16)])
            else:
                pieces[token] = text.replace(SPACE, " ").encode() if space else text.encode()
        return pieces

    def _said_ids(self) -> Iterator[int]:
        """Control tokens that are part of what is said: readers see ``<think>``."""
        return (token for text, token in self.control_tokens.ids.items() if text not in self.control_tokens.special)

    def _set_ends(self, ids: Sequence[int]) -> None:
        named = self._added.get(self.named.get("eos_token", ""))
        ends = [*dict.fromkeys([*ids, *([] if named is None else [named])])]
        if any(not 0 <= token < self.vocabulary for token in ends):
            raise CorruptError(f"says that {ends} end a reply.", path=self.found.place, value=ends, rule=f"ids below {self.vocabulary}")
        if not ends:
            raise ArtifactError(
                "names no token that ends a reply.", path=self.found.place,
                rule="an eos_token, or eos_token_id in generation_config.json", hint="Add it to tokenizer_config.json.",
            )
        known = [token for token in _ids(self.found.generation.get("pad_token_id")) if 0 <= token < self.vocabulary]
        pad = self._added.get(self.named.get("pad_token", ""), [*known, ends[0]][0])
        begin = self._added.get(self.named.get("bos_token", ""))
        self.ends = tuple(ends)
        self.control = {"pad": pad, "end": ends[0]} | ({} if begin is None else {"begin": begin})
        special = {token for text, token in self.control_tokens.ids.items() if text in self.control_tokens.special}
        self.never = tuple(sorted((special | {pad, *([] if begin is None else [begin])}) - set(ends)))

    def _check_decoding(self) -> None:
        """What the pieces give must be what the library gives: the decoder is understood, not guessed."""
        for text in ("Hello, world! It's 12 o'clock.", "你好，世界", "a  b\n\n c", "\U0001f99c!"):
            ids = self._backend.encode(text, add_special_tokens=False).ids
            theirs = self._backend.decode(ids, skip_special_tokens=True)
            if self.decode(ids) != theirs and "\ufffd" not in theirs:
                raise ArtifactError(
                    f"decodes {text!r} to {theirs!r}, which its pieces do not give.", path=self.found.place, value=theirs,
                    rule="a byte-level or SentencePiece-like tokenizer",
                    hint="This tokenizer is of a kind that chattune does not know.",
                )


class _Stripping(TextStream):
    """Leaves out the space that SentencePiece puts before the first word."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        super().__init__(pieces)
        self._begun = False

    def push(self, token: int) -> str:
        text = super().push(token)
        if self._begun or not text:
            return text
        self._begun = True
        return text.removeprefix(" ")


def _plain(text: str, place: str) -> dict[str, Any]:
    """The data of a tokenizer.json, without what acts only when special tokens are added or texts are cut."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"is not a tokenizer: {error}.", path=place, rule="a tokenizer.json that is whole") from None
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise CorruptError("is not a tokenizer: it has no model.", path=place, rule="a tokenizer.json that is whole")
    data["added_tokens"] = data.get("added_tokens") or []
    if not all(_sound(entry) for entry in data["added_tokens"]):
        raise CorruptError("is not a tokenizer: its added tokens lack text or id.", path=place, rule=f"texts with ids below {_LARGEST}")
    return {**data, "post_processor": None, "truncation": None, "padding": None}


def _sound(entry: Any) -> bool:
    """An added token with a text and a usable id."""
    if not isinstance(entry, dict) or type(entry.get("id")) is not int:
        return False
    return isinstance(entry.get("content"), str) and bool(entry["content"]) and 0 <= entry["id"] < _LARGEST


def added_token(token: int, text: str, special: bool) -> dict[str, Any]:
    """The entry of an added token in a tokenizer.json."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": text, **flags, "special": special}


def _model_vocabulary(data: Mapping[str, Any], place: str) -> dict[str, int]:
    model, kind = data["model"], data["model"].get("type")
    vocabulary = model.get("vocab")
    if kind is None and "merges" in model:
        kind = "BPE"
    if kind == "BPE" and (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")):
        raise ArtifactError(
            "marks where words begin or end inside its tokens.", path=place, rule="a byte-level or SentencePiece-like tokenizer",
            hint="Models that talk do not use such tokenizers; is this an encoder?",
        )
    if kind == "BPE" and isinstance(vocabulary, dict) and all(type(token) is int for token in vocabulary.values()):
        found = {str(text): token for text, token in vocabulary.items()}
    elif kind == "Unigram" and isinstance(vocabulary, list) and all(isinstance(item, list) and len(item) == 2 for item in vocabulary):
        found = {str(item[0]): token for token, item in enumerate(vocabulary)}
    else:
        raise ArtifactError(
            f"is a tokenizer of the kind {kind}.", path=place, value=kind, rule="BPE or Unigram",
            hint="WordPiece and word-level tokenizers belong to encoders such as BERT, which cannot talk." if kind else None,
        )
    if not found or any(not 0 <= token < _LARGEST for token in found.values()):
        raise CorruptError(f"has {len(found)} tokens, not all with a usable id.", path=place, rule=f"ids below {_LARGEST}")
    return found


def _renamed(data: Mapping[str, Any], control: _Control) -> dict[str, Any]:
    """The tokenizer with its control tokens under their secret names, and nothing by which text could become one."""

    def name(text: Any) -> Any:
        return control.alias(text) if text in control.ids else text

    model = dict(data["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {name(text): token for text, token in vocabulary.items()}
        model["merges"] = [merge for merge in model.get("merges", []) if not _touches(merge, control.ids)]
        model["unk_token"] = name(model.get("unk_token"))
    else:
        model["vocab"] = [[name(text), score] for text, score in vocabulary]
    added = [{**entry, "content": name(entry["content"])} for entry in data["added_tokens"]]
    return {**data, "model": model, "added_tokens": added}


def _touches(merge: Any, control: Mapping[str, int]) -> bool:
    left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
    return left + right in control or left in control or right in control


def nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """A normalizer, pre-tokenizer or decoder and, of a sequence, each in it."""
    if isinstance(node, Mapping):
        inner = next((node[key] for key in ("normalizers", "pretokenizers", "decoders") if isinstance(node.get(key), list)), None)
        yield from ([node] if inner is None else [leaf for item in inner for leaf in nodes(item)])


def _kind_of(data: Mapping[str, Any], place: str) -> tuple[bool, bool]:
    """Whether tokens are written in byte-level BPE's alphabet, and whether ``▁`` in them stands for a space."""
    kinds = [node.get("type") for node in nodes(data.get("decoder"))]
    spaced = any(
        node.get("type") == "Metaspace"
        or (node.get("type") == "Replace" and SPACE in str(node.get("pattern")) and node.get("content") == " ")
        for node in nodes(data.get("decoder"))
    )
    if "ByteLevel" not in kinds and not spaced:
        raise ArtifactError(
            f"has a decoder of the kind {kinds or 'none'}.", path=place, value=str(kinds),
            rule="a byte-level or SentencePiece-like tokenizer",
            hint="This tokenizer is of a kind that chattune does not know.",
        )
    return "ByteLevel" in kinds, spaced


def _strips_space(data: Mapping[str, Any]) -> bool:
    """Whether decoding takes away one space at the beginning, which encoding put there."""
    return any(
        (node.get("type") == "Strip" and node.get("content") == " " and node.get("start") == 1)
        or (node.get("type") == "Metaspace" and node.get("prepend_scheme", "always") != "never" and node.get("add_prefix_space", True))
        for node in nodes(data.get("decoder"))
    )


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token`` and the like, each as text."""
    entries = {key: value for key, value in config.items() if key.endswith("_token")}
    texts = {key: value.get("content") if isinstance(value, Mapping) else value for key, value in entries.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str) and text}


def _listed(config: Mapping[str, Any]) -> list[str]:
    """Further special tokens, in the words of transformers 4 or 5."""
    texts: list[str] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(key) or []
        for item in value.values() if isinstance(value, Mapping) else value:
            text = item.get("content") if isinstance(item, Mapping) else item
            if isinstance(text, str) and text:
                texts.append(text)
    return texts


def _ids(value: Any) -> list[int]:
    return [token for token in (value if isinstance(value, list) else [value]) if type(token) is int]


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Any of the texts, the longest that fits, as the library matches them."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=lambda text: (-len(text), text))) or r"(?!)")

