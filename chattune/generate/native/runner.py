"""`NativeRunner`: a GPT model's steps in one compiled call each, checked on first use against PyTorch; `native_reason`: why not."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chattune.core.errors import UsageError, did_you_mean
from chattune.core.native import switched_off, threads_of_torch
from chattune.generate.native.build import library
from chattune.generate.native.packing import WEIGHTS, Packed, Weights, dequantised, of_head, pack, rounded_activations
from chattune.generate.runner import Piece
from chattune.models.families._gpt import GPTModel
from chattune.models.families.gpt import GPT
from chattune.models.initializers.normal import Normal
from chattune.models.language_model import LanguageModel
from chattune.models.layers import Linear, RMSNorm, llama3_speeds, rotary_speeds

if TYPE_CHECKING:
    from chattune.models.families._gpt import _Block

ROWS = 512  # tokens of one call; more are cut, so that the memory between layers stays small
_ACTIVATIONS = {
    "swiglu": 0, "silu": 0, "geglu": 1, "gelu": 1, "geglu_tanh": 2, "gelu_tanh": 2, "reglu": 3, "relu": 3, "relu_squared": 4,
}  # fmt: skip
_PLACEMENTS = {"pre": 0, "post": 1, "both": 2}
_ALL, _LAST, _NONE = 1, 0, 2  # of a piece's tokens, those whose logits are computed


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("format", ctypes.c_int32),
        ("inputs", ctypes.c_int32), ("tiles", ctypes.c_int32),
    )  # fmt: skip


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("epsilon", ctypes.c_float), ("kind", ctypes.c_int32))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("qkv", "output", "up", "down")),
        *((name, _Norm) for name in (
            "attention_norm", "attention_output_norm", "feed_forward_norm", "feed_forward_output_norm", "query_norm", "key_norm",
        )),
        ("window", ctypes.c_int32), ("local", ctypes.c_int32),
    )  # fmt: skip


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in (
            "layers", "width", "heads", "kv", "head", "hidden", "vocabulary", "slots", "length", "threads", "activation", "gated",
            "placement", "residual", "short_cache", "rotary",
        )),
        *((name, ctypes.c_float) for name in ("attention_scale", "attention_cap", "logit_cap", "embedding_scale")),
        *((name, ctypes.c_void_p) for name in (
            "embedding", "position", "cosines", "sines", "local_cosines", "local_sines", "layer",
        )),
        ("norm", _Norm), ("table", _Matrix), ("parallel", ctypes.c_void_p), ("together", ctypes.c_void_p),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Room:
    """What a runner holds and computes with; `short`: keys and values in float16."""

    slots: int
    length: int
    threads: int
    short: bool


class NativeRunner:
    """A `Runner` for the GPT family on the processor, without PyTorch between ids and logits.

    Results do not depend on what else a step holds, on the cuts of a prompt, or on the number of threads. Keys and values are kept in
    float32 beside float32 weights, and in float16 beside shorter ones. The interpreter is free for other threads during a step.
    """

    rewinds = joins = True
    why = ""

    def __init__(self, model: GPTModel, loaded: ctypes.CDLL, room: Room, weights: Weights) -> None:
        self.slots, self.length, self.vocabulary, self.weights = room.slots, room.length, model.vocabulary, weights
        self.why = f"the compiled step, with weights in {weights}"
        self.weight_bytes = 0  # read for every token that is computed alone
        self._kept: list[Any] = []  # what the library points to
        self._library = loaded
        shape = self._shape(model, room)
        self._decoder = ctypes.c_void_p(loaded.chattune_open(ctypes.byref(shape)))
        if not self._decoder:
            raise MemoryError(f"no memory for {room.slots} slots of {room.length} tokens")

    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        """Float32 (sum over pieces of 1 or len(ids), vocabulary), in order of the pieces."""
        for piece in pieces:
            count = len(piece.ids)
            if not 0 <= piece.slot < self.slots or not count or not 0 <= piece.start <= self.length - count:
                raise ValueError(f"slot {piece.slot} from {piece.start}, {count} ids: {self.slots} slots hold {self.length} tokens")
            if min(piece.ids) < 0 or max(piece.ids) >= self.vocabulary:
                raise ValueError(f"ids must be from 0 to {self.vocabulary - 1}")
        logits = torch.empty(sum(len(piece.ids) if piece.every else 1 for piece in pieces), self.vocabulary)
        done = 0
        for part in _cut(pieces):
            done += self._step(part, logits.data_ptr() + 4 * done * self.vocabulary)
        return logits

    def copy(self, source: int, target: int, tokens: int) -> None:
        if not (0 <= source < self.slots and 0 <= target < self.slots and 0 <= tokens <= self.length):
            raise ValueError(f"{tokens} tokens from slot {source} to {target}: {self.slots} slots hold {self.length} tokens")
        self._library.chattune_copy(self._decoder, source, target, tokens)

    def _step(self, part: list[tuple[Piece, int]], logits: int) -> int:
        """Compute pieces with what is asked of each; gives the rows of logits written."""
        count = len(part)
        integers = ctypes.c_int32 * count
        ids = [number for piece, _ in part for number in piece.ids]
        failed = self._library.chattune_step(
            self._decoder, count, integers(*(piece.slot for piece, _ in part)), integers(*(piece.start for piece, _ in part)),
            integers(*(len(piece.ids) for piece, _ in part)), integers(*(asked for _, asked in part)),
            (ctypes.c_int32 * len(ids))(*ids), ctypes.c_void_p(logits),
        )  # fmt: skip
        if failed:
            raise MemoryError(f"no memory for a step of {len(ids)} tokens")
        return sum({_ALL: len(piece.ids), _LAST: 1, _NONE: 0}[asked] for piece, asked in part)

    def __del__(self) -> None:
        if getattr(self, "_decoder", None):
            self._library.chattune_close(self._decoder)
            self._decoder = ctypes.c_void_p()

    # ---- what the library is told ----

    def _shape(self, model: GPTModel, room: Room) -> _Shape:
        f: GPT = model.family
        assert f.layers and f.width and f.heads and f.kv_heads and f.head and f.hidden
        layers = (_Layer * f.layers)(*(self._layer(block, f.window) for block in model.blocks))  # type: ignore[arg-type]
        self._kept.append(layers)
        cosines, sines = self._turns(f, f.rope_theta, stretched=True)
        local = self._turns(f, f.local_rope_theta, stretched=False) if f.local_rope_theta is not None else (cosines, sines)
        table = model.embedding.weight if model.output is None else model.output.weight
        position = model.position_embedding
        return _Shape(
            f.layers, f.width, f.heads, f.kv_heads, f.head, f.hidden, model.vocabulary, room.slots, room.length, room.threads,
            _ACTIVATIONS[f.activation], f.gated, _PLACEMENTS[f.norm_placement], f.residual, room.short,
            f.positions == "rotary", f.head**-0.5 if f.attention_scale is None else f.attention_scale, f.attention_softcap or 0.0,
            f.logit_softcap or 0.0, f.embedding_scale, self._floats(model.embedding.weight),
            None if position is None else self._floats(position.weight), cosines, sines, *local, ctypes.cast(layers, ctypes.c_void_p),
            self._norm(model.norm), self._matrix(table, None, of_head(self.weights)), *threads_of_torch(),
        )  # fmt: skip

    def _layer(self, block: _Block, window: int | None) -> _Layer:
        attention, branch = block.attention, block.feed_forward
        up = branch.gate_up if branch.gated else branch.up
        weight: Tensor = up.weight
        bias: Tensor | None = up.bias
        if branch.gated:  # a tile holds eight gates and the eight numbers that they multiply
            weight = _side_by_side(weight)
            bias = None if bias is None else _side_by_side(bias[:, None])[:, 0]
        return _Layer(
            self._matrix(attention.qkv.weight, attention.qkv.bias), self._matrix(attention.output.weight, attention.output.bias),
            self._matrix(weight, bias), self._matrix(branch.output.weight, branch.output.bias), self._norm(block.attention_norm),
            self._norm(block.attention_output_norm), self._norm(block.feed_forward_norm), self._norm(block.feed_forward_output_norm),
            self._norm(attention.query_norm), self._norm(attention.key_norm), (window or 0) if attention.local else 0, attention.local,
        )  # fmt: skip

    def _matrix(self, weight: Tensor, bias: Tensor | None, weights: Weights | None = None) -> _Matrix:
        packed: Packed = pack(weight, weights or self.weights)
        self._kept.append(packed.data)
        self.weight_bytes += packed.data.nbytes
        scale = None if packed.scale is None else self._floats(packed.scale)
        filled = None
        if bias is not None:
            filled = self._floats(nn.functional.pad(bias.detach().float(), (0, packed.tiles * 16 - len(bias))))
        return _Matrix(packed.data.data_ptr(), scale, filled, WEIGHTS.index(packed.weights), packed.inputs, packed.tiles)

    def _norm(self, norm: nn.Module | None) -> _Norm:
        if norm is None:
            return _Norm(None, None, 0.0, 0)
        if isinstance(norm, RMSNorm):
            return _Norm(self._floats(norm.scale()), None, norm.epsilon, 1)
        assert isinstance(norm, nn.LayerNorm)
        return _Norm(self._floats(norm.weight), None if norm.bias is None else self._floats(norm.bias), norm.eps, 2)

    def _turns(self, f: GPT, theta: float, *, stretched: bool) -> tuple[int | None, int | None]:
        """Cosines and sines (length, head/2) as `GPTModel` takes them."""
        assert f.head
        if f.positions != "rotary":
            return None, None
        speeds = rotary_speeds(f.head, theta, torch.device("cpu"))
        if stretched and (scaling := f.rope_scaling) is not None:
            if scaling.type == "llama3":
                speeds = llama3_speeds(speeds, scaling.factor, scaling.low, scaling.high, scaling.context)
            else:
                speeds = speeds / scaling.factor
        angles = torch.arange(self.length)[:, None].float() * speeds
        return self._floats(angles.cos()), self._floats(angles.sin())

    def _floats(self, numbers: Tensor) -> int:
        kept = numbers.detach().float().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()


def native_runner(
    model: LanguageModel, *, slots: int, length: int, weights: Weights = "float32", threads: int | None = None
) -> NativeRunner:
    """A runner of `model` that holds `slots` requests of at most `length` tokens; `threads`: none means those of PyTorch.

    `UsageError` with the reason where the model, the processor or the machine has no compiled step (`native_reason`), and where
    learned positions end before `length`. Weights are copied: what the model learns later is not seen.
    """
    if weights not in WEIGHTS:
        raise UsageError(
            f"weights cannot be kept in '{weights}'.", path="weights", value=weights, rule=", ".join(WEIGHTS),
            hint=did_you_mean(weights, WEIGHTS),
        )  # fmt: skip
    if (reason := native_reason(model)) is not None:
        raise UsageError(f"{reason}.", path="native", rule="a model and a machine that have a compiled step", hint="Use native=False.")
    assert isinstance(model, GPTModel)
    if model.position_embedding is not None and length > (model.family.context or 0):
        raise UsageError(
            f"the model has {model.family.context} learned positions; {length} were asked for.", path="length", value=length,
            rule=f"at most {model.family.context}",
        )
    room = Room(slots, length, threads or torch.get_num_threads(), short=weights != "float32")
    return NativeRunner(model, _loaded(), room, weights)


def _loaded() -> ctypes.CDLL:
    loaded, _ = library()
    assert loaded is not None
    return loaded


def native_reason(model: LanguageModel) -> str | None:
    """None where the compiled step can run `model`; else why it cannot, as a clause."""
    if switched_off():
        return "CHATTUNE_NATIVE=0 turns the compiled step off"
    return _unsupported(model) or _trouble()


def _unsupported(model: LanguageModel) -> str | None:
    """What of the model has no compiled counterpart."""
    if not isinstance(model, GPTModel):
        return f"the compiled step is for the gpt family, not for {model.family.name}"
    if model.device.type != "cpu":
        return f"the compiled step is for processors; the model is on {model.device.type}"
    known = (GPTModel, nn.Embedding, nn.ModuleList, Linear, RMSNorm, nn.LayerNorm)
    for name, module in model.named_modules():
        if type(module) not in known and not type(module).__module__.endswith("families._gpt"):
            return f"the compiled step does not know {type(module).__name__} ({name})"
    return None


@cache
def _trouble() -> str | None:
    """Why nothing can be compiled here, or what was compiled computes something else than PyTorch."""
    loaded, reason = library()
    if loaded is None:
        return reason
    loaded.chattune_open.restype = ctypes.c_void_p
    loaded.chattune_sizes.restype = loaded.chattune_step.restype = ctypes.c_int32
    loaded.chattune_copy.restype = loaded.chattune_close.restype = None
    if [loaded.chattune_sizes(which) for which in range(4)] != [ctypes.sizeof(kind) for kind in (_Matrix, _Norm, _Layer, _Shape)]:
        return "the compiled step lays its structures out differently"
    wrong = [weights for weights in WEIGHTS if not _agrees(weights)]
    return f"the compiled step computes something else than PyTorch in {', '.join(wrong)} on this processor" if wrong else None


@torch.no_grad()
def _agrees(weights: Weights) -> bool:
    """Whether a small model says the same compiled and in PyTorch: whole, in pieces of all sizes, and one token after the other."""
    init = Normal(std=0.2)
    family = GPT(layers=2, width=72, heads=6, kv_heads=2, head=16, hidden=104, context=64, init=init, init_outputs="same")
    with torch.random.fork_rng(devices=[]):
        model = family.build(50, seed=0).eval()
    assert isinstance(model, GPTModel)
    oracle = dequantised(model, weights)
    if weights in ("int8", "int4"):
        for module in oracle.modules():
            if isinstance(module, Linear):
                module.register_forward_pre_hook(lambda module, inputs: rounded_activations(inputs[0]))
        assert oracle.norm is not None
        oracle.norm.register_forward_hook(lambda module, inputs, normed: rounded_activations(normed))  # what the head multiplies
    ids = [[(7 * place * place + 3 * row + place) % 50 for place in range(40)] for row in range(3)]
    wanted = oracle(torch.tensor(ids))
    runner = NativeRunner(model, _loaded(), Room(3, 40, 2, short=weights == "bfloat16"), weights)
    cuts = ((0, 17), (17, 22), (22, 23), (23, 24), (24, 40))
    found = [
        runner.forward([Piece(row, start, ids[row][start:stop], True) for row in range(3)]).view(3, -1, 50) for start, stop in cuts
    ]
    # Sums in another order, and keys in float16; a number that stands on the border of two steps of int8 may fall to either.
    limit = {"float32": 1e-5, "bfloat16": 2e-3, "int8": 1e-2, "int4": 1e-2}[weights]
    off = torch.cat(found, 1) - wanted
    return bool(off.square().mean().sqrt() < limit * wanted.square().mean().sqrt())


def _side_by_side(weight: Tensor) -> Tensor:
    """(2·hidden, n): gates above what they multiply → (hidden to the next 8 · 2, n): eight of each in turn."""
    hidden, inputs = len(weight) // 2, weight.shape[1]
    both = nn.functional.pad(weight.detach().view(2, hidden, inputs), (0, 0, 0, -hidden % 8))
    return both.view(2, -1, 8, inputs).transpose(0, 1).reshape(-1, inputs)


def _cut(pieces: Sequence[Piece]) -> Iterator[list[tuple[Piece, int]]]:
    """The pieces in order, in parts of at most `ROWS` tokens, each with those of its tokens whose logits are asked for."""
    part: list[tuple[Piece, int]] = []
    room = ROWS
    for piece in pieces:
        for start in range(0, len(piece.ids), ROWS):
            ids = piece.ids[start : start + ROWS]
            if len(ids) > room:
                yield part
                part, room = [], ROWS
            asked = _ALL if piece.every else _LAST if start + len(ids) == len(piece.ids) else _NONE
            part.append((replace(piece, start=piece.start + start, ids=ids), asked))
            room -= len(ids)
    if part:
        yield part
