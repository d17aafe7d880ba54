"""Near-duplicates among 100,000 texts of about 105 characters, of which 20,000 are planted: texts a second, recall and false joins.

The peer is datasketch (MinHash, MinHashLSH) with as many permutations, whose candidates are compared exactly, too. Truth is what
exact Jaccard similarities of character 5-grams say of the planted pairs. Each peer has a process of its own.

    .venv/bin/python benchmarks/near_duplicates.py [--json] [--rounds 3] [--texts 100000] [--threshold 0.8]
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

from _common import Measured, compare, in_turn, measured, memory, parser

PLANTED = 0.2


def texts(count: int) -> tuple[list[str], list[tuple[int, int]]]:
    """The texts, and the planted pairs: a fifth repeat another one with a word changed in one or two places."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlucmfwypvbgk", k=draw.randint(2, 9))) for _ in range(20_000)]
    fresh = round(count * (1 - PLANTED))
    found = [" ".join(draw.choices(words, k=18))[:105] for _ in range(fresh)]
    pairs = []
    for number in range(count - fresh):
        own = found[number].split()
        for _ in range(draw.randint(1, 2)):
            own[draw.randrange(len(own))] = draw.choice(words)
        pairs.append((number, len(found)))
        found.append(" ".join(own))
    return found, pairs


def grams(text: str) -> frozenset[str]:
    from chattune.dialogs.near_duplicates import spaced

    padded = f" {spaced(text).ljust(3)} "
    return frozenset(padded[place : place + 5] for place in range(len(padded) - 4))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def ours(count: int, threshold: float) -> list[tuple[int, int]]:
    from chattune.dialogs.near_duplicates import normalised, similar_pairs

    return [(a, b) for a, b in similar_pairs([normalised(text) for text in texts(count)[0]], threshold).tolist()]


def datasketch(count: int, threshold: float) -> list[tuple[int, int]]:
    from datasketch import MinHash, MinHashLSH

    own = [grams(text) for text in texts(count)[0]]
    index = MinHashLSH(threshold=threshold, num_perm=128)
    found = []
    for number, some in enumerate(own):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([gram.encode() for gram in some])
        found += [(other, number) for other in index.query(sketch) if jaccard(own[other], some) >= threshold]
        index.insert(number, sketch)
    return found


def run(peer: Any, count: int, threshold: float) -> Measured:
    """Texts and the seconds they took; what was found goes to stderr, for the parent to show."""
    texts(1000)
    began = time.perf_counter()
    found = peer(count, threshold)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    _, pairs = made = texts(count)
    seconds -= time.perf_counter() - began  # making the texts is no part of the work
    near = [(a, b) for a, b in pairs if jaccard(grams(made[0][a]), grams(made[0][b])) >= threshold]
    known, joined = set(near), {(min(pair), max(pair)) for pair in found}
    exact = sum(jaccard(grams(made[0][a]), grams(made[0][b])) >= threshold for a, b in joined - known)
    told = {"recall": len(known & joined) / len(known), "planted": len(known), "others": len(joined - known), "of these near": exact}
    print(f"# {json.dumps(told)}", file=sys.stderr)
    return measured([float(count)], [seconds])


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--texts", type=int, default=100_000)
    options.add_argument("--threshold", type=float, default=0.8)
    chosen = options.parse_args()
    found = in_turn(
        {
            "chattune": lambda: run(ours, chosen.texts, chosen.threshold),
            "datasketch": lambda: run(datasketch, chosen.texts, chosen.threshold),
        },
        chosen,
    )
    compare("near_duplicates", "chattune", found, {"datasketch": (12.0, 50.0)}, "texts/s", chosen.json)
    if not chosen.json:
        print("peak memory, GiB: " + ", ".join(f"{name} {memory(runs):.2f}" for name, runs in found.items()))


if __name__ == "__main__":
    main()
