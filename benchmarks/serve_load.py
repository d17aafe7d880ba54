"""Tokens a second of whole servers with 1, 8 and 32 clients: `chattune serve` beside llama.cpp's server, same weights, over HTTP.

Each client asks ``/v1/completions`` for greedy continuations of prompts of its own; tokens of all clients are counted over the time
until the last one is answered, prompts included. Both servers decode eight requests side by side. Each server runs in a process of its
own, and the clients in another, all on this machine. Models as in decode.py.

    .venv/bin/python benchmarks/serve_load.py [--json] [--model 25M] [--rounds 3] [--new 64] [--peers "chattune int8" "llama.cpp Q8_0"]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from _common import Line, Measured, in_turn, measured, parser, say
from decode import SHAPES, Bench

SLOTS, PROMPT = 8, 64
CLIENTS = (1, 8, 32)
REQUESTS = {1: 4, 8: 2, 32: 1}  # of each client
PEERS = {"int8": "Q8_0", "int4": "Q4_0", "bfloat16": "BF16"}  # our weights → llama.cpp's of the same width
BAR = 1.0  # not slower


def served(bench: Bench, name: str) -> None:
    """Be the server of that name until standard input ends; its address is the first line of standard output."""
    kind, _, weights = name.partition(" ")
    if kind == "chattune":
        _serve_ours(bench, weights)
        return
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_parallel, settings.port = str(bench.gguf(weights)), SLOTS, 0
    settings.n_ctx = SLOTS * (-bench.length // 256 * -256)
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = os.cpu_count() or 1
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    sys.stdin.read()


def _serve_ours(bench: Bench, weights: str) -> None:
    from chattune.generate.engine import Engine
    from chattune.generate.reply import ChatModel
    from chattune.generate.runner import runner_for
    from chattune.serve.app import Server
    from chattune.serve.limits import Limits
    from chattune.serve.models import NativeModel, Shelf
    from chattune.serve.process import bind, serve
    from chattune.tokens.tokenizer import Tokenizer

    model = bench.model()
    runner = runner_for(model, slots=SLOTS, length=bench.length, weights=weights)
    bench.gguf("F32")  # writes the tokenizer, too
    chat = ChatModel(model, Tokenizer.load(bench.folder).template())
    engine = Engine(model, chat.tokenizer, slots=SLOTS, length=bench.length, runner=runner)
    shelf = Shelf()
    shelf.put(NativeModel("model", chat, engine, slots=SLOTS, limits=Limits(), context=bench.length))
    with bind("127.0.0.1", 0) as bound:
        serve(Server(shelf), bound, lambda: print(f"http://127.0.0.1:{bound.getsockname()[1]}", flush=True))


def loaded(bench: Bench, name: str, words: list[str]) -> Measured:
    """Tokens and seconds with each number of CLIENTS."""
    ours, command = name.startswith("chattune"), [sys.executable, __file__, *words, "--server", name]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout and child.stdin
    try:
        url = child.stdout.readline().strip()
        asyncio.run(_asked(url, bench, ours, 1, 1))  # whatever is done once
        found = [asyncio.run(_asked(url, bench, ours, clients, REQUESTS[clients])) for clients in CLIENTS]
    finally:
        child.stdin.close()
        child.terminate()
        child.wait(30)
        child.stdout.close()
    return measured([tokens for tokens, _ in found], [seconds for _, seconds in found])


async def _asked(url: str, bench: Bench, ours: bool, clients: int, requests: int) -> tuple[int, float]:
    """Tokens that so many clients got, and the seconds it took."""
    tokens = 0
    # Both go on to the end, and neither penalises what was said.
    more: dict[str, Any] = {"min_tokens": bench.new, "repetition_penalty": 1.0, "top_p": 1.0}
    if not ours:
        more = {"ignore_eos": True, "repeat_penalty": 1.0, "samplers": ["temperature"], "cache_prompt": False}

    async def one(number: int) -> None:
        nonlocal tokens
        async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False) as ask:
            for request in range(requests):
                prompt = [100 + (number * 31 + request * 17 + place * 7) % 160 for place in range(PROMPT)]
                body = {"model": "model", "prompt": prompt, "max_tokens": bench.new, "temperature": 0, **more}
                answer = await ask.post("/v1/completions", json=body)
                answer.raise_for_status()
                tokens += answer.json()["usage"]["completion_tokens"]

    began = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(clients)))
    return tokens, time.perf_counter() - began


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--model", choices=[name for name, shape in SHAPES.items() if shape], default="25M")
    options.add_argument("--new", type=int, default=64, help="tokens of each reply")
    options.add_argument("--home", type=Path, default=Path("runs/decode"), help="where the files for llama.cpp are kept")
    options.add_argument("--server", help=argparse.SUPPRESS)  # a child process is this one
    chosen = options.parse_args()
    folder = chosen.home / f"{chosen.model}-serve"
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(SHAPES[chosen.model], folder, PROMPT, chosen.new)
    if chosen.server:
        served(bench, chosen.server)
        return
    words = ["--model", chosen.model, "--new", str(chosen.new), "--home", str(chosen.home)]
    names = [name for ours, theirs in PEERS.items() for name in (f"chattune {ours}", f"llama.cpp {theirs}")]
    found = in_turn({name: partial(loaded, bench, name, words) for name in names}, chosen)
    for ours, theirs in PEERS.items():
        mine, other = found.get(f"chattune {ours}"), found.get(f"llama.cpp {theirs}")
        if not mine or not other:
            continue
        for index, clients in enumerate(CLIENTS):
            x, y = (statistics.median(run.work[index] / run.seconds[index] for run in runs) for runs in (mine, other))
            name = f"{chosen.model}, {clients} clients, chattune {ours}"
            say(Line(name, f"llama.cpp {theirs}", x / y, BAR, None, x, y, "tokens/s"), chosen.json)


if __name__ == "__main__":
    main()
