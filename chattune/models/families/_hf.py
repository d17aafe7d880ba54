"""A causal language model of transformers behind the interface of chattune.

The base network gives hidden states; what stands behind it (a matrix, perhaps scaled or capped) is the head. Padding stands on the
right in chattune; the cache of transformers wants it on the left, so that all rows write the same place.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.core.errors import SettingError, UnknownName, did_you_mean
from chattune.core.seeds import derived
from chattune.models.language_model import Cache, LanguageModel
from chattune.models.unpacked import beginnings

if TYPE_CHECKING:
    from chattune.models.families.hf import HF

_FITTING = 0.7  # windows go through together with those of at least this share of the longest one's length
_UNWRITTEN = ("transformers_version", "_name_or_path", "torch_dtype")  # of config.json: say nothing about the network
_NUMBER = "__float__"
_DROPOUTS = ("attention_dropout", "attn_dropout", "resid_dropout", "hidden_dropout", "activation_dropout", "dropout", "dropout_p")


def transformers() -> Any:
    """The library, or the error that says how to get it."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise SettingError(
            "the family hf needs the package transformers.", path="model.name", value="hf", rule="an installed transformers",
            hint="Run `pip install 'chattune[hf]'`.",
        ) from None
    return transformers


def configuration(family: HF, vocabulary: int) -> Any:
    """transformers' configuration of a resolved family."""
    auto = transformers().models.auto.configuration_auto
    decoders = transformers().models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    kind = family.architecture or ""
    if kind not in decoders or kind not in auto.CONFIG_MAPPING:
        raise UnknownName(
            f"transformers has no causal language model called '{kind}'.", path="model.architecture", value=kind,
            rule="a model_type of AutoModelForCausalLM", hint=did_you_mean(kind, decoders) or "Is it a newer transformers that has it?",
        )
    make = auto.CONFIG_MAPPING[kind]
    entries = dict(family.config)
    if "model_type" not in entries:
        entries = _from_the_dial(family, make()) | _known(entries, make())
    entries = {key: value for key, value in entries.items() if key not in (*_UNWRITTEN, "model_type", "architectures", "dtype")}
    try:
        return make.from_dict(_numbers({**entries, "vocab_size": vocabulary}, written=False))
    except Exception as error:  # each architecture checks in its own way
        raise _refused(f"takes this configuration for wrong: {' '.join(str(error).split())[:300]}", kind) from None


def outline(family: HF, vocabulary: int) -> nn.Module:
    """The network without numbers: names and shapes."""
    with torch.device("meta"):
        return _network(configuration(family, vocabulary))


def counted_operations(family: HF, vocabulary: int, time: int) -> float:
    """Operations of one token's forward pass, counted over a window of `time` on tensors that hold no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode(), torch.no_grad():
        network = _network(configuration(family, vocabulary))
        with FlopCounterMode(display=False) as counted:
            network(input_ids=torch.zeros(1, time, dtype=torch.long), use_cache=False)
    return float(counted.get_total_flops()) / time


class HFModel(LanguageModel):
    """The network that `HF.build` gives. Its `family` holds the whole configuration, as config.json has it."""

    compiles: ClassVar[bool] = False  # windows have another length in each batch
    family: HF

    def __init__(self, family: HF, vocabulary: int, network: nn.Module) -> None:
        super().__init__(family, vocabulary)
        self.network: Any = network
        self.base_name: str = network.base_model_prefix  # type: ignore[assignment]
        self.takes = frozenset(inspect.signature(type(self.base()).forward).parameters)
        self.steps_only = bool(getattr(network, "_is_stateful", False))
        self.plain_head = False

    @classmethod
    def fresh(cls, family: HF, vocabulary: int, seed: int) -> Self:
        """A model with fresh weights by transformers' rules, which draw from one stream that follows from the seed."""
        config = configuration(family, vocabulary)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived(seed, "init"))
            network = _network(config).float().eval()
        whole = _numbers({key: value for key, value in config.to_dict().items() if key not in _UNWRITTEN}, written=True)
        changes = {"config": whole, "layers": None, "width": None, "heads": None}
        model = cls(family.changed(**changes).resolved(), vocabulary, network)
        model._refuse_what_does_not_fit()
        model.plain_head = model._head_is_one_product()
        model.set_dropout(family.dropout)
        return model.train()

    def hidden(
        self, ids: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        if isinstance(cache, _TransformersCache):
            return self._continued(ids, segments, cache)
        if segments is None:
            return self._through(ids)
        begins = beginnings(segments)
        if bool(begins[:, 1:].any()) or not bool(begins[:, 0].all()):
            return self._window_by_window(ids, begins, segments >= 0)
        return self._through(ids) * (segments >= 0)[..., None]  # padding follows the one window of a row, which does not see it

    def head(self, hidden: Tensor) -> Tensor:
        if (weight := self.head_weight()) is not None:
            return F.linear(hidden, weight)
        # The network's own way from hidden states to logits, with the base network replaced by what it gave.
        network = copy.copy(self.network)
        network._modules = {**network._modules, self.base_name: _Given(hidden.reshape(1, -1, hidden.shape[-1]))}
        logits = network(input_ids=torch.zeros(1, hidden[..., 0].numel(), dtype=torch.long, device=hidden.device)).logits
        return logits.view(*hidden.shape[:-1], -1).to(hidden.dtype)  # type: ignore[no-any-return]

    def head_weight(self) -> Tensor | None:
        return self.network.get_output_embeddings().weight if self.plain_head else None

    def base(self) -> Any:
        """The part of the network that gives hidden states."""
        return getattr(self.network, self.base_name)

    def new_cache(self, rows: int, length: int) -> Cache:
        held = transformers().DynamicCache(config=self.network.config)
        return _TransformersCache(held, rows, length, self.device, pads=not self.steps_only)

    def set_dropout(self, rate: float) -> None:
        for module in self.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate
            for name in _DROPOUTS:
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, rate)

    def exported(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {name.removeprefix("network."): weight.detach() for name, weight in self.named_parameters()}
        buffers = self.network.state_dict().keys() & {name for name, _ in self.network.named_buffers()}
        tensors |= {name: buffer for name, buffer in self.network.named_buffers() if name in buffers}
        return tensors, {**self.family.config, "architectures": [type(self.network).__name__]}

    def load_exported(self, tensors: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(dict(tensors), strict=False)  # a tied head is stored once, under the name of the table

    def token_tables(self) -> set[str]:
        head = self.network.get_output_embeddings()
        return super().token_tables() | {f"{name}.weight" for name, module in self.named_modules() if module is head}

    def _through(self, ids: Tensor, **more: Any) -> Tensor:
        if "use_cache" in self.takes:
            more = {"use_cache": False, **more}
        hidden: Tensor = self.base()(input_ids=ids, **more)[0]
        return hidden

    def _window_by_window(self, ids: Tensor, begins: Tensor, real: Tensor) -> Tensor:
        """Windows as rows of their own, those of like length together."""
        flat = begins.flatten().nonzero().squeeze(1)
        number = begins.flatten().cumsum(0) - 1
        lengths, order = torch.bincount(number[real.flatten()], minlength=len(flat)).sort(descending=True, stable=True)
        first, result, start, sizes = flat[order], None, 0, lengths.tolist()
        while start < len(sizes):
            end = start + 1
            while end < len(sizes) and sizes[end] >= _FITTING * sizes[start]:
                end += 1
            step = torch.arange(sizes[start], device=ids.device)
            there = step < lengths[start:end, None]
            where = (first[start:end, None] + step).clamp(max=ids.numel() - 1)
            hidden = self._through(ids.flatten()[where])
            if result is None:
                result = hidden.new_zeros(ids.numel(), hidden.shape[-1])
            result = result.index_copy(0, where[there], hidden[there])
            start = end
        if result is None:  # padding only
            return self._through(ids) * 0.0
        return result.view(*ids.shape, -1)

    def _continued(self, ids: Tensor, segments: Tensor | None, cache: _TransformersCache) -> Tensor:
        """Tokens that continue what the cache holds. Rows with fewer are moved to the right end, where all rows write together."""
        rows, time = ids.shape
        cache.slots(time)
        count = torch.full_like(cache.lengths, time) if segments is None else (segments >= 0).sum(1)
        if self.steps_only and cache.written.shape[1]:
            if int(count.min()) < time:
                raise ValueError(f"a {self.family.architecture} cannot go on with padding: its state would take it for tokens")
            if time > 1:
                return torch.cat([self._continued(token, None, cache) for token in torch.split(ids, 1, 1)], 1)
        step = torch.arange(time, device=ids.device).expand(rows, -1)
        place = step - (time - count)[:, None]  # which of the row's tokens stands there, below 0: none
        cache.written = torch.cat([cache.written, place >= 0], 1)
        more: dict[str, Any] = {"attention_mask": cache.written.long(), "use_cache": True}
        if "past_key_values" in self.takes:
            more["past_key_values"] = cache.held
        else:  # a pure state: its mask is that of the tokens given, and where it goes on there is nothing to mask
            more["cache_params"] = cache.held
            more["attention_mask"] = more["attention_mask"] if cache.written.shape[1] == time else None
        if "position_ids" in self.takes:
            more["position_ids"] = cache.lengths[:, None] + place.clamp(min=0)
        hidden = self._through(ids.gather(1, place.clamp(min=0)), **more)
        cache.lengths = cache.lengths + count
        back = (step + (time - count)[:, None]).clamp(max=time - 1)
        moved = hidden.gather(1, back[..., None].expand(-1, -1, hidden.shape[-1]))
        return moved * (step < count[:, None])[..., None]

    @torch.no_grad()
    def _refuse_what_does_not_fit(self) -> None:
        """Probes, since an architecture does not say: does it run, does it look ahead, do its two halves make the whole?"""
        kind, ids = self.family.architecture or "", torch.arange(6)[None] % self.vocabulary
        other = torch.cat([ids[:, :4], (ids[:, 4:] + 3) % self.vocabulary], 1)
        try:
            first, second = (self.network(input_ids=each, use_cache=False).logits for each in (ids, other))
            together = self.head(self.hidden(ids)).float()
        except Exception as error:  # each architecture fails in its own way
            raise _refused(f"does not run with this configuration: {' '.join(str(error).split())[:300]}", kind) from None
        if not torch.allclose(second[:, :4], first[:, :4], rtol=1e-4, atol=1e-5):
            raise _refused("reads both ways, so that it cannot write token by token (an encoder, such as BERT: E10)", kind)
        if not torch.allclose(together, first.float(), rtol=1e-4, atol=1e-5):
            raise _refused("does not come apart into a base network and a head", kind)

    @torch.no_grad()
    def _head_is_one_product(self) -> bool:
        """Whether logits are hidden states times one matrix; seen on large states, where a cap would bend them."""
        head = self.network.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            return False
        states = torch.linspace(-100, 100, 4 * head.in_features).view(4, -1)
        return torch.allclose(self.head(states), head(states), rtol=1e-4, atol=1e-4)


class _TransformersCache(Cache):
    """The cache object of transformers; `written`: (rows, places) which of its places hold a token of the row."""

    rewinds: ClassVar[bool] = False
    joins: ClassVar[bool] = False  # all rows write the same place

    def __init__(self, held: Any, rows: int, length: int, device: torch.device, pads: bool) -> None:
        super().__init__(0, rows, 1, length, 1, dtype=torch.float32, device=device)
        self.held, self.room, self.pads = held, length, pads
        self.written = torch.zeros(rows, 0, dtype=torch.bool, device=device)

    @property
    def length(self) -> int:
        return self.room

    def select(self, rows: Tensor) -> None:
        self.held.reorder_cache(rows)
        self.written, self.lengths = self.written.index_select(0, rows), self.lengths.index_select(0, rows)


class _Given:
    """In place of a base network, or of a part of it: gives the hidden states it was made with."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden

    def __call__(self, *_: Any, **__: Any) -> _Output:
        return _Output(self.hidden)

    def __getattr__(self, name: str) -> _Given:
        return self  # OPT asks for `model.decoder`


class _Output:
    """What a head reads of a base network's answer: the hidden states, and nothing else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: int | slice) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        return None


def _network(config: Any) -> nn.Module:
    """The causal language model of a configuration, from the installed transformers alone."""
    make: Callable[..., nn.Module] = transformers().AutoModelForCausalLM.from_config
    try:
        try:
            return make(config, trust_remote_code=False, attn_implementation="sdpa")
        except ValueError as error:
            if "scaled_dot_product" not in str(error) and "sdpa" not in str(error):
                raise
            return make(config, trust_remote_code=False, attn_implementation="eager")
    except Exception as error:  # each architecture fails in its own way
        raise _refused(f"cannot be built from this configuration: {' '.join(str(error).split())[:300]}", config.model_type) from None


def _from_the_dial(family: HF, default: Any) -> dict[str, Any]:
    """Entries under the common names, of which an architecture takes those that it knows."""
    assert family.layers and family.width and family.heads
    head = family.width // family.heads
    wanted = {
        "hidden_size": family.width, "num_hidden_layers": family.layers, "num_attention_heads": family.heads,
        "num_key_value_heads": family.heads, "intermediate_size": 4 * family.width, "ffn_dim": 4 * family.width,
        "head_dim": head, "rotary_dim": head, "word_embed_proj_dim": family.width, "max_position_embeddings": family.context,
        "tie_word_embeddings": True, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    return {key: value for key, value in wanted.items() if _has(default, key)}


def _known(entries: dict[str, Any], default: Any) -> dict[str, Any]:
    for key in entries:
        if not _has(default, key):
            names = [name for name in default.to_dict() if not name.startswith("_")]
            raise UnknownName(
                f"a {default.model_type} has no entry called '{key}'.", path=f"model.config.{key}", value=entries[key],
                rule="an entry of its config.json", hint=did_you_mean(key, names),
            )
    return entries


def _numbers(value: Any, written: bool) -> Any:
    """Entries of a configuration with numbers that JSON does not know as transformers writes them in config.json
    (``{"__float__": "Infinity"}``), or as the numbers that they stand for."""
    if isinstance(value, Mapping):
        if not written and [*value] == [_NUMBER]:
            return float(value[_NUMBER])
        return {key: _numbers(each, written) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(each, written) for each in value]
    if written and isinstance(value, float) and not math.isfinite(value):
        return {_NUMBER: {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")}
    return value


def _has(default: Any, key: str) -> bool:
    return key in default.attribute_map or key in default.to_dict()


def _refused(what: str, architecture: str) -> SettingError:
    return SettingError(
        f"{architecture} {what}.", path="model.config", value=architecture, rule="a decoder of transformers",
        hint="`chattune list families` shows what else there is.",
    )
