"""The tokenizer and chat template of a directory as metadata of a GGUF file: what llama.cpp needs to give the same ids."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

from chattune.core import files
from chattune.core.errors import ArtifactError
from chattune.tokens._gguf import _COMPOSED, _SPLITS
from chattune.tokens.control import CHAT_TEMPLATE, GENERATION, MARK, TOKENIZER, TOKENIZER_CONFIG
from chattune.tokens.template import JINJA

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's types of tokens
# llama.cpp's names for ways to split texts before merging, the usual ones first; each stands for all that split as it does.
_NAMES = ("gpt-2", "llama-bpe", "qwen2", "smollm", "tekken", "gpt-4o")
# Texts on which the ways differ: contractions, capitals, digits, runs of spaces and signs, accents, Chinese, emoji, line feeds.
_PROBES = (
    "I'm sure they'll say: it's 12345 o'clock, isn't it? I'VE", "camelCase HTMLParser fooBAR naïve café cafe\u0301 ÉTÉ",
    "1 22 333 4444 55555", "a  b   c    d\te\n\nf \n g\r\nh", "(hello) [world] {x} <y> //path/to#frag -- ... !!! ?!",
    "你好，世界！今天是2024年。我们去公园吧", "हिन्दी العَرَبِيَّة", "ภาษาไทย 한국어 日本語テスト", "👩‍👩‍👧‍👦 👍🏽 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🙂🙃",
    " leading and trailing ", "x=3.14159; y=\"quoted\" 'single' it’s O’Neill’s", "Don't can't won't y'all're I'd've",
)


def gguf_metadata(folder: Path, rows: int) -> tuple[dict[str, Any], list[str]]:
    """Entries ``tokenizer.…`` for the tokenizer in `folder`, filled up to `rows` tokens (those of the embeddings), and what a reader
    has to know. `ArtifactError` for a tokenizer that llama.cpp has no kind for."""
    folder = Path(folder)
    data = files.read_json(folder / TOKENIZER)
    config = files.read_json(folder / TOKENIZER_CONFIG)
    generation = files.read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    model, place = data["model"], str(folder / TOKENIZER)
    if model.get("type") not in ("BPE", None) or "merges" not in model:
        raise ArtifactError(
            f"is of the kind {model.get('type')}.", path=place, value=model.get("type"), rule="byte-level or SentencePiece-like BPE",
            hint="llama.cpp has no such tokenizer; export as a Hugging Face directory: --to hf.",
        )
    tokens, types = _tokens(data, rows, place)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    found: dict[str, Any] = {}
    if _byte_level(data):
        name, notes = _split_name(data)
        found |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.tokens": tokens}
        found |= {"tokenizer.ggml.token_type": types} | ({"tokenizer.ggml.merges": merges} if merges else {})
    else:
        notes = []
        found |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": tokens}
        found |= {"tokenizer.ggml.scores": _scores(tokens, model["merges"]), "tokenizer.ggml.token_type": types}
        found["tokenizer.ggml.add_space_prefix"] = _prefixed(data)
    found |= _ids(config, generation, tokens)
    found["tokenizer.ggml.add_bos_token"] = bool(config.get("add_bos_token", False))
    template = _template(folder, config)
    if template is not None:
        found["tokenizer.chat_template"] = template
        if MARK in template:
            notes.append("a message that holds '<|' reaches the model with a mark in between, which only chattune takes out again")
    return found, notes


def _tokens(data: Mapping[str, Any], rows: int, place: str) -> tuple[list[str], list[int]]:
    """Texts and types of all ids; ids without a token get a name of their own and are never used."""
    tokens: list[str | None] = [None] * rows
    types = [_UNUSED] * rows
    model = data["model"]
    added = {entry["content"]: (int(entry["id"]), bool(entry["special"])) for entry in data.get("added_tokens") or []}
    known = {**model["vocab"], **{text: token for text, (token, _) in added.items()}}
    if too_large := [token for token in known.values() if token >= rows]:
        raise ArtifactError(
            f"has ids up to {max(too_large)}, but the model has embeddings for {rows}.", path=place, value=max(too_large),
            rule=f"ids below {rows}", hint="Tokenizer and model do not belong together.",
        )
    for text, token in known.items():
        tokens[token], types[token] = text, _NORMAL
        if text in added:
            types[token] = _CONTROL if added[text][1] else _USER_DEFINED
        elif text == model.get("unk_token"):
            types[token] = _UNKNOWN
        elif model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x"):
            types[token] = _BYTE
    unk = model.get("unk_token")
    if unk in known:
        types[known[unk]] = _UNKNOWN
    return [f"[PAD{token}]" if text is None else text for token, text in enumerate(tokens)], types


def _byte_level(data: Mapping[str, Any]) -> bool:
    return "ByteLevel" in json.dumps(data.get("decoder"))


def _prefixed(data: Mapping[str, Any]) -> bool:
    """A space is put before the first word."""
    return '"Prepend"' in json.dumps(data.get("normalizer")) or any(
        f'"prepend_scheme": "{scheme}"' in json.dumps(data.get("pre_tokenizer")) for scheme in ("first", "always")
    )


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """SentencePiece joins the pair whose union scores best: the earlier a token is made, the better its score."""
    rank: dict[str, int] = {}
    for place, merge in enumerate(merges):
        left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
        rank.setdefault(left + right, place)
    return [-float(rank.get(text, len(merges))) for text in tokens]


def _split_name(data: Mapping[str, Any]) -> tuple[str, list[str]]:
    """llama.cpp's name for how texts are split, found by splitting; where none is the same, the nearest, which is told."""
    own = tokenizers.Tokenizer.from_str(json.dumps({**data, "added_tokens": [], "post_processor": None}))
    wanted = [_pieces(own.normalizer, own.pre_tokenizer, text) for text in _PROBES]
    shares: dict[str, float] = {}
    for name in _NAMES:
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _SPLITS[name]]
        splitter = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        made = [_pieces(normalizers.NFC() if name in _COMPOSED else None, splitter, text) for text in _PROBES]
        if made == wanted:
            return name, []
        shares[name] = sum(len(set(a) & set(b)) for a, b in zip(made, wanted, strict=True)) / sum(len(set(b)) for b in wanted)
    best = max(_NAMES, key=lambda name: shares[name])
    return best, [
        f"llama.cpp cannot split texts as this tokenizer does and splits as '{best}', which gives {shares[best]:.0%} of the words of a "
        "probe; where it differs the model sees other tokens than it was trained with"
    ]


def _pieces(normalizer: Any, splitter: Any, text: str) -> list[str]:
    text = text if normalizer is None else normalizer.normalize_str(text)
    return [piece for piece, _ in splitter.pre_tokenize_str(text)]


def _ids(config: Mapping[str, Any], generation: Mapping[str, Any], tokens: list[str]) -> dict[str, int]:
    place = {text: token for token, text in enumerate(tokens)}
    found = {}
    for key, name in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")):
        value = config.get(key)
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str) and text in place:
            found[f"tokenizer.ggml.{name}_token_id"] = place[text]
    ends = generation.get("eos_token_id")
    others = [token for token in (ends if isinstance(ends, list) else [ends]) if isinstance(token, int)]
    eos = found.get("tokenizer.ggml.eos_token_id")
    if eos is None and others:
        found["tokenizer.ggml.eos_token_id"] = eos = others[0]
    if more := [token for token in others if token != eos]:
        found["tokenizer.ggml.eot_token_id"] = more[0]
    return found


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / CHAT_TEMPLATE
    value = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if not isinstance(value, str):
        return None
    if value == JINJA:  # whose only escapes are those of the mark; llama.cpp knows none in Unicode
        value = value.replace(f"\\u{ord(MARK):04x}", MARK)
    # llama.cpp does not know the block by which transformers finds what the assistant says; "if true" keeps its white space.
    value = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", value)
    return re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", value)
