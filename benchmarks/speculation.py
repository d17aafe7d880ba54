"""When speculation pays: greedy replies with proposals beside the same replies without, token by token the same.

Two works on the test questions of a run: `chat`, each question asked once; `again`, asked a second time after it was answered, so that
the reply stands in the conversation already. Proposals by lookup, by a draft model, and by both. The sides take turns within one
process; medians over rounds, and of the tokens proposed the share that was taken.

    .venv/bin/python benchmarks/speculation.py RUN [--draft RUN] [--home runs] [--weights float32] [--questions 12] [--json]
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import Line, parser, say

import chattune
from chattune import story
from chattune.generate.reply import Sampling

if TYPE_CHECKING:
    from chattune.generate.reply import ChatModel, Reply

WORKS = ("chat", "again")
GREEDY = Sampling(temperature=0, repetition_penalty=1, max_tokens=48)


def questions(run: Path, count: int) -> list[list[dict[str, str]]]:
    """The first turns of the test dialogs that the run was split from."""
    from chattune.dialogs.artifact import Dialogs

    made = next(path for path in story.lineage(run) if (path / "test.jsonl").exists())
    found = [[{"role": "user", "content": dialog.messages[0].content}] for dialog in Dialogs.open(made).read("test")]
    return found[:count]


def asked(model: ChatModel, messages: list[dict[str, str]], work: str) -> list[dict[str, str]]:
    """The conversation after which a reply is timed."""
    if work == "chat":
        return messages
    (first,) = model.replies([messages], GREEDY)
    return [*messages, {"role": "assistant", "content": first.text}, *messages]


def timed(model: ChatModel, conversations: list[list[dict[str, str]]]) -> tuple[list[Reply], float]:
    """One reply after the other, and tokens a second; what was read before is forgotten."""
    model.close()
    model.replies(conversations[:1], GREEDY)  # makes the engine
    began = time.perf_counter()
    replies = [model.replies([messages], GREEDY)[0] for messages in conversations]
    return replies, sum(len(reply.tokens) for reply in replies) / (time.perf_counter() - began)


def measure(sides: dict[str, ChatModel], run: Path, rounds: int, count: int, as_json: bool) -> list[Line]:
    """A line for each work and side, said and given."""
    lines = []
    for work in WORKS:
        conversations = [asked(sides["plain"], messages, work) for messages in questions(run, count)]
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        said: dict[str, list[Any]] = {}
        for _ in range(rounds):
            for name, model in sides.items():
                replies, speed = timed(model, conversations)
                speeds[name].append(speed)
                said.setdefault(name, replies)
        plain = statistics.median(speeds["plain"])
        for name in [name for name in sides if name != "plain"]:
            figures = sides[name].figures()
            assert figures is not None
            taken = figures.accepted_total / max(figures.proposed_total, 1)
            same = sum(one == two for one, two in zip(said[name], said["plain"], strict=True))
            told = f"{taken:.0%} of the proposals taken, {same} of {len(conversations)} replies equal"
            print(f"# {work}, {name}: {told}", file=sys.stderr)
            speed = statistics.median(speeds[name])
            lines.append(Line(f"{work}, {name}", "without proposals", speed / plain, None, None, speed, plain, "tokens/s"))
            say(lines[-1], as_json)
    return lines


def main() -> None:
    options = parser(__doc__ or "", peers=False)
    options.add_argument("run")
    options.add_argument("--draft", help="a run with the same tokenizer")
    options.add_argument("--home", type=Path, default=Path("runs"))
    options.add_argument("--weights", default="own")
    options.add_argument("--questions", type=int, default=12)
    chosen = options.parse_args()
    if chosen.threads:
        import torch

        torch.set_num_threads(chosen.threads)
    ways: dict[str, dict[str, Any]] = {"plain": {}, "lookup": {"speculation": "lookup"}}
    if chosen.draft:
        ways |= {"draft": {"speculation": {"lookup": 0}, "draft": chosen.draft}, "both": {"draft": chosen.draft}}
    sides = {name: chattune.load(chosen.run, chosen.home, weights=chosen.weights, **way) for name, way in ways.items()}
    run = story.checkpoint_of(story.Home(chosen.home).find(chosen.run))
    measure(sides, run, chosen.rounds, chosen.questions, chosen.json)


if __name__ == "__main__":
    main()
