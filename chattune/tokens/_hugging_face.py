"""What a Hugging Face directory says about its tokenizer, gathered from the files in which the years have left it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chattune.core import files
from chattune.core.errors import ArtifactError, CorruptError, DataError
from chattune.tokens.control import CHAT_TEMPLATE, GENERATION, TOKENIZER, TOKENIZER_CONFIG
from chattune.tokens.foreign import Found

_LONGEST_TEMPLATE = 1 << 20  # characters; the longest in use has a thirtieth of it
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def found_in(folder: Path) -> Found:
    """Tokenizer, named tokens, template, and how replies end and are sampled. Runs nothing; code that is named is not looked at."""
    config = {**_mapping(folder / "special_tokens_map.json"), **_mapping(folder / TOKENIZER_CONFIG)}
    generation = _mapping(folder / GENERATION)
    notes = ["tokenizer_config.json names code (auto_map), which is never run"] if "auto_map" in config else []
    own = _mapping(folder / "config.json")
    ends = [*_ids(generation.get("eos_token_id")), *_ids(own.get("eos_token_id"))]
    pad = generation.get("pad_token_id", own.get("pad_token_id"))
    template, more = _template(folder, config)
    return Found(
        _text(folder), config, {**generation, "eos_token_id": [*dict.fromkeys(ends)], "pad_token_id": pad}, template,
        str(folder / TOKENIZER), (*notes, *more),
    )  # fmt: skip


def _text(folder: Path) -> str:
    path = folder / TOKENIZER
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise CorruptError("is not a tokenizer: it is not UTF-8.", path=str(path), rule="a tokenizer.json that is whole") from None
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _of_merges(folder)
    older = next((name for name in _SENTENCEPIECE if (folder / name).is_file()), None)
    if older is not None:
        raise ArtifactError(
            f"has its tokenizer only as {older}.", path=str(folder), value=older, rule=f"a {TOKENIZER}",
            hint="Convert it once with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR).",
        )
    raise DataError("is missing.", path=str(path), rule="a tokenizer that chattune saved, or one of a Hugging Face directory")


def _of_merges(folder: Path) -> str:
    """A tokenizer.json from GPT-2's two files."""
    vocabulary = _mapping(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [line for line in lines if line and not line.startswith("#version")]
    return byte_level({text: int(token) for text, token in vocabulary.items()}, merges)


def byte_level(
    vocabulary: Mapping[str, int], merges: list[str], splitting: list[dict[str, Any]] | None = None,
    added: list[dict[str, Any]] | None = None, composed: bool = False,
) -> str:
    """A byte-level BPE as the text of a tokenizer.json.

    `splitting`: its pre-tokenizers, GPT-2's where none are given; `added`: control tokens; `composed`: whether texts are put into
    Unicode's composed form first.
    """
    spelling = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": splitting is None}
    before = {"type": "Sequence", "pretokenizers": [*splitting, spelling]} if splitting else spelling
    model = {"type": "BPE", "vocab": dict(vocabulary), "merges": merges, "byte_fallback": False, "ignore_merges": False}
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return tokenizer_json(model, {"type": "NFC"} if composed else None, before, decoder, added or [])


def tokenizer_json(model: Any, normalizer: Any, pre_tokenizer: Any, decoder: Any, added: list[dict[str, Any]]) -> str:
    data = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": decoder, "model": model,
    }  # fmt: skip
    return json.dumps(data, ensure_ascii=False)


def _template(folder: Path, config: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """The chat template, from the file of its own, or the older places; of several the one called default."""
    path = folder / CHAT_TEMPLATE
    if path.is_file():
        try:
            return _short(path.read_text(encoding="utf-8"), path), []
        except UnicodeDecodeError:
            raise CorruptError("is not UTF-8.", path=str(path), rule="Jinja text") from None
    value = config.get("chat_template") or _mapping(folder / "chat_template.json").get("chat_template")
    if isinstance(value, list):
        named = {str(item.get("name")): item.get("template") for item in value if isinstance(item, Mapping)}
        others = sorted(named.keys() - {"default"})
        value = named.get("default")
        left_out = [f"further chat templates are left out: {', '.join(others)}"] if others else []
        return (_short(value, path) if isinstance(value, str) else None), left_out
    return (_short(value, path), []) if isinstance(value, str) else (None, [])


def _short(template: str, path: Path) -> str:
    if len(template) > _LONGEST_TEMPLATE:
        raise ArtifactError(
            f"has {len(template)} characters.", path=str(path), value=len(template), rule=f"at most {_LONGEST_TEMPLATE}"
        )
    return template


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    data = files.read_json(path)
    if not isinstance(data, dict):
        raise CorruptError("holds no settings.", path=str(path), rule="a mapping")
    # Some write a length without limit as a number that JSON does not know: what has no limit need not be said.
    return {key: value for key, value in data.items() if not (isinstance(value, float) and not math.isfinite(value))}


def _ids(value: Any) -> list[int]:
    return [token for token in (value if isinstance(value, list) else [value]) if type(token) is int]
