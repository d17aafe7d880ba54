"""The tokenizer in the metadata of a GGUF file, as a ``tokenizer.json``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chattune.core.errors import ArtifactError, CorruptError
from chattune.core.gguf import GgufFile, read_gguf
from chattune.tokens._hugging_face import byte_level, tokenizer_json
from chattune.tokens.foreign import SPACE, Found, added_token
from chattune.tokens.tokenizer import byte_characters

_LONGEST = 1024  # characters of a token; the longest in use are lines of some hundred spaces
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # types of tokens

# How texts are split before merging, by llama.cpp's name for it: the patterns of the tokenizers that the models were made with.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+%s|" + r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*%s"
_SLASHED = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = _CASED % ("", "") + r"|\p{N}" + _SLASHED
_GPT4O = _CASED % (f"{_SUFFIX}?", f"{_SUFFIX}?") + r"|\p{N}{1,3}" + _SLASHED
_SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "jais", "default"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe", "dbrx", "pixtral"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "hunyuan", "megrez"), (_QWEN2,)),
    "tekken": (_TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4"), (_GPT4O,)),
}
_COMPOSED = ("qwen2", "deepseek-r1-qwen", "megrez")  # whose makers put texts into Unicode's composed form first
_GEMMA = ("gemma", "gemma2", "gemma3")


def found_in_gguf(file: GgufFile) -> Found:
    """Tokenizer, named tokens and template from the metadata. Refuses by name what would have to be guessed."""
    place = str(file.path)
    meta = _Metadata(file.metadata, place)
    kind, tokens, types = meta.text("model"), meta.texts("tokens"), meta.numbers("token_type")
    if types and len(types) != len(tokens):
        raise CorruptError(f"has {len(tokens)} tokens and {len(types)} types of them.", path=place, rule="one type for each token")
    if len(set(tokens)) != len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise CorruptError(f"has the token {twice!r} twice.", path=place, value=twice, rule="tokens that differ")
    types = types or [1] * len(tokens)
    added = [
        added_token(token, text, of_type == _CONTROL)
        for token, (text, of_type) in enumerate(zip(tokens, types, strict=True))
        if of_type in (_CONTROL, _USER_DEFINED)
    ]
    if kind == "gpt2":
        text = _byte_level(meta, tokens, added)
    elif kind == "llama":
        text = _sentencepiece(meta, tokens, types, added, gemma=file.metadata.get("general.architecture") in _GEMMA)
    else:
        raise ArtifactError(
            f"has a tokenizer of the kind '{kind}'.", path=place, value=kind, rule="gpt2 (byte-level BPE) or llama (SentencePiece)",
            hint="Import the model's Hugging Face directory instead.",
        )
    ids = {name: meta.id(name) for name in ("bos", "eos", "eot", "unknown", "padding")}
    if any(token is not None and not 0 <= token < len(tokens) for token in ids.values()):
        raise CorruptError(f"names tokens that it lacks: {ids}.", path=place, rule=f"ids below {len(tokens)}")
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {names[name]: tokens[token] for name, token in ids.items() if name in names and token is not None}
    config["add_bos_token"] = bool(meta.get("add_bos_token", kind == "llama"))
    length = next((value for key, value in file.metadata.items() if key.endswith(".context_length") and isinstance(value, int)), None)
    config |= {} if length is None else {"model_max_length": length}
    generation = {"eos_token_id": [ids[name] for name in ("eos", "eot") if ids[name] is not None], **_sampling(file.metadata)}
    template = file.metadata.get("tokenizer.chat_template")
    return Found(text, config, generation, template if isinstance(template, str) else None, place)


class _Metadata:
    """The entries ``tokenizer.ggml.…``, each of the type that it must be."""

    def __init__(self, data: Mapping[str, Any], place: str) -> None:
        self.data, self.place = data, place

    def get(self, key: str, otherwise: Any = None) -> Any:
        return self.data.get(f"tokenizer.ggml.{key}", otherwise)

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            raise ArtifactError(f"says nothing of tokenizer.ggml.{key}.", path=self.place, rule="a GGUF file with its tokenizer")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.get(key)
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            raise ArtifactError(f"has no list tokenizer.ggml.{key}.", path=self.place, rule="a GGUF file with its tokenizer")
        return value

    def numbers(self, key: str) -> list[Any]:
        value = self.get(key) or []
        if not isinstance(value, list) or (value and isinstance(value[0], str)):
            raise CorruptError(f"has something else than numbers as tokenizer.ggml.{key}.", path=self.place, rule="a list of numbers")
        return value

    def id(self, name: str) -> int | None:
        value = self.get(f"{name}_token_id")
        return value if type(value) is int else None


def _byte_level(meta: _Metadata, tokens: list[str], added: list[dict[str, Any]]) -> str:
    name = meta.get("pre", "default")
    if not isinstance(name, str) or name not in _SPLITS:
        raise ArtifactError(
            f"splits texts as '{name}' before merging.", path=meta.place, value=name, rule=f"one of {', '.join(sorted(_SPLITS))}",
            hint="Import the model's Hugging Face directory instead: its tokenizer.json says how texts are split.",
        )
    spelling = dict(byte_characters())
    alphabet = set(spelling.values())
    controls = {entry["content"] for entry in added}
    # Some files write a token with its real spaces or signs; in the vocabulary everything stands in the alphabet of the bytes.
    vocabulary = {
        text if text in controls or set(text) <= alphabet else "".join(spelling[byte] for byte in text.encode()): token
        for token, text in enumerate(tokens)
    }
    splits = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} for pattern in _SPLITS[name]]
    return byte_level(vocabulary, meta.texts("merges"), splits, added, composed=name in _COMPOSED)


def _sentencepiece(meta: _Metadata, tokens: list[str], types: Sequence[int], added: list[dict[str, Any]], gemma: bool) -> str:
    if gemma:  # its files hold runs of spaces as spaces
        tokens = [SPACE * len(text) if text.strip(" ") == "" else text for text in tokens]
    if longest := next((text for text in tokens if len(text) > _LONGEST), None):  # each is cut in every place
        raise CorruptError(
            f"has a token of {len(longest)} characters.", path=meta.place, value=longest[:60], rule=f"at most {_LONGEST} characters"
        )
    scores = meta.numbers("scores")
    if len(scores) != len(tokens):
        raise CorruptError(f"has {len(tokens)} tokens and {len(scores)} scores.", path=meta.place, rule="one score for each token")
    learnt = [kind not in (_UNKNOWN, _CONTROL, _BYTE) for kind in types]
    # Gemma's scores do not follow the order in which its tokens were learnt; their places do.
    rank = [float(-place) for place in range(len(tokens))] if gemma else scores
    unknown = next((text for text, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    model = {
        "type": "BPE", "vocab": {text: token for token, text in enumerate(tokens)}, "merges": _merges(tokens, rank, learnt),
        "unk_token": unknown, "fuse_unk": True, "byte_fallback": _BYTE in types, "ignore_merges": False,
    }  # fmt: skip
    spaced: dict[str, Any] = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders = [spaced, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if gemma:
        normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        return tokenizer_json(model, normalizer, None, {"type": "Sequence", "decoders": decoders}, added)
    prefixed = bool(meta.get("add_space_prefix", True))
    if prefixed:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    before = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first" if prefixed else "never", "split": False}
    return tokenizer_json(model, None, before, {"type": "Sequence", "decoders": decoders}, added)


def _merges(tokens: Sequence[str], scores: Sequence[float], learnt: Sequence[bool]) -> list[list[str]]:
    """SentencePiece joins the two neighbours whose union scores best: as merges, every way to make a token, the best token first."""
    place = {text: token for token, text in enumerate(tokens) if learnt[token]}
    found = [
        (-scores[token], token, place[text[:cut]], place[text[cut:]])
        for text, token in place.items()
        for cut in range(1, len(text))
        if text[:cut] in place and text[cut:] in place
    ]
    return [[tokens[left], tokens[right]] for _, _, left, right in sorted(found)]


def _sampling(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """How its maker samples, where the file says so."""
    words = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty"}
    found = {word: metadata.get(f"general.sampling.{key}") for key, word in words.items()}
    given = {word: value for word, value in found.items() if isinstance(value, (int, float)) and math.isfinite(value)}
    return {**given, "do_sample": True} if given else {}


def open_gguf(path: Path) -> Found:
    """The tokenizer of a GGUF file."""
    return found_in_gguf(read_gguf(path))

