"""Decoders of transformers that the GPT family does not cover. The wrapped network is in `_hf`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator
from pydantic_core import PydanticCustomError

from chattune.core.errors import SettingError
from chattune.core.part import setting
from chattune.models.families import Family
from chattune.models.families._sizes import head_size, power_of_two, recommended

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel

# size: (layers, width)
_SIZES = {"micro": (4, 128), "tiny": (4, 256), "small": (6, 384), "medium": (8, 512), "base": (12, 768), "large": (16, 1024)}
_CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len", "seq_length")
# Entries that say how many parts there are, and more than any model has.
_COUNT, _MOST = re.compile(r"(layers?|blocks|experts)$"), 4096
_REFUSED = {
    "auto_map": "names Python files to run",
    "trust_remote_code": "asks to run code that comes with a model",
    "custom_pipelines": "names Python files to run",
    "quantization_config": "describes packed weights, which are not trained here",
}


class HF(Family):
    """Any decoder of transformers (AutoModelForCausalLM) that the family `gpt` does not cover: Mamba, Falcon, OPT, GPT-NeoX, …

    The code is that of the installed transformers; none that comes with a model is ever run. Packed windows become rows of their own,
    so that every architecture can be trained packed.

    Helps when: a pretrained model of another architecture is fine-tuned, or an architecture is to be compared that nobody wrote here.
    Hurts when: `gpt` covers it (Llama, Qwen, Mistral, Gemma, GPT-2), which is faster, and clearer to read.
    Cost: that of the architecture; short windows beside long ones in a row cost some padding.
    Start with: `chattune import PATH`, which chooses this family where it must; from scratch: `architecture: gpt_neox, size: tiny`.
    Source: Wolf et al. 2020, arXiv:1910.03771. Fresh weights are drawn by transformers' own rules, from a stream of the run's seed.
    """

    dials: ClassVar[tuple[tuple[str, int], ...]] = ()

    architecture: str | None = setting(None, "`model_type` in transformers; none: that of `config`, else gpt_neox")
    config: dict[str, Any] = setting(
        {}, "entries of config.json: with `model_type` the whole architecture, without it what the dial leaves open"
    )
    size: Literal["micro", "tiny", "small", "medium", "base", "large"] = setting(
        "tiny", "the dial from which all that is left open follows, unless `config` is a whole config.json"
    )
    layers: int | None = setting(None, "blocks", low=1, high=256)
    width: int | None = setting(None, "numbers that stand for a token between the layers", low=2, high=65536)
    heads: int | None = setting(None, "attention heads, where the architecture has them", low=1, high=1024)
    context: int | None = setting(None, "positions that are used, in tokens", low=8, high=1048576)
    dropout: float = setting(
        0.0, "share dropped (not kept) wherever the architecture has dropout", low=0.0, below=1.0, search=[0.0, 0.1, 0.2]
    )

    @field_validator("config")
    @classmethod
    def _no_code(cls, config: dict[str, Any]) -> dict[str, Any]:
        for path, key, value in _entries(config, ""):
            if type(value) is int and value > _MOST and _COUNT.search(key):  # each would be a module, before a weight is read
                told = {"path": path, "value": str(value), "most": _MOST}
                raise PydanticCustomError("count", "{path} is {value}, more than {most}", told)
            if key in _REFUSED and value not in (None, {}, False):
                raise PydanticCustomError("code", "{path} {why}, and is refused", {"path": path, "why": _REFUSED[key]})
            if "attn_implementation" in key or "experts_implementation" in key:  # may name a kernel to fetch from the net
                raise PydanticCustomError("code", "{path} names code to compute with, and is refused", {"path": path})
        return config

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        kind = self.config.get("model_type")
        if kind is not None and not isinstance(kind, str):
            raise PydanticCustomError("config", "config.model_type must be a word", {})
        given = [name for name in ("layers", "width", "heads") if getattr(self, name) is not None]
        if kind is not None and given:
            raise PydanticCustomError("config", "config is whole, so that {names} must be left open", {"names": ", ".join(given)})
        if kind is not None and self.architecture not in (None, kind):
            message = "architecture is {architecture}, but config describes a {kind}"
            raise PydanticCustomError("config", message, {"architecture": self.architecture, "kind": kind})
        return self

    def resolved(self) -> Self:
        if "model_type" in self.config:
            return self.changed(architecture=self.config["model_type"], context=self.context_length())
        layers, width = _SIZES[self.size]
        width = self.width or width
        return self.changed(
            architecture=self.architecture or "gpt_neox",
            layers=self.layers or layers,
            width=width,
            heads=self.heads or (width // head_size(width) if width % 2 == 0 else 1),
            context=self.context or max(256, power_of_two(width)),
        )

    def recommended(self) -> dict[str, Any]:
        """Vocabulary, batch and rate that suit the width, as for GPT; nothing where `config` is whole."""
        if "model_type" in self.config:
            return {}
        return recommended(self.resolved().width or 0)

    def context_length(self) -> int:
        if "model_type" not in self.config:
            return self.resolved().context or 0
        known = [value for key in _CONTEXTS if isinstance(value := self.config.get(key), int) and value > 0]
        return min([*known[:1], self.context] if self.context else known[:1] or [2048])  # states and slopes know no end

    def build(self, vocabulary: int, seed: int) -> LanguageModel:
        from chattune.models.families._hf import HFModel

        return HFModel.fresh(self.resolved(), vocabulary, seed)

    def parameters(self, vocabulary: int) -> int:
        from chattune.models.families._hf import outline

        return sum(weight.numel() for weight in outline(self.resolved(), vocabulary).parameters())

    def operations(self, vocabulary: int, time: int) -> float:
        from chattune.models.families._hf import counted_operations

        return counted_operations(self.resolved(), vocabulary, time)

    def sized(self, parameters: int, vocabulary: int) -> Self:
        raise SettingError(
            "the family hf has no dial for its number of parameters.", path="model", value=parameters, rule="layers and width",
            hint="Set model.layers and model.width; `--dry-run` prints the parameters.",
        )


def _entries(config: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, Any]]:
    """Every entry of a nested mapping: its dotted path, its key and its value."""
    for key, value in config.items():
        yield f"config.{path}{key}", str(key), value
        if isinstance(value, Mapping):
            yield from _entries(value, f"{path}{key}.")
