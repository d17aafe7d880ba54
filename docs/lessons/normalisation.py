"""The experiments of the lesson on normalisation: small batches, and what batch normalisation does not owe to a steady distribution.

    python docs/lessons/normalisation.py        a few minutes; writes normalisation.svg and the tables in normalisation.md

A network of two hidden layers predicts the next character of small talk from the eight before it. Every update is computed from 128
examples; what changes is in how many micro-batches, which is all that a norm over the batch gets to see at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from page import figure, insert, save
from torch import Tensor, nn

from chattune.core.part import choose
from chattune.core.seeds import derived, generator
from chattune.models.initializers import Place
from chattune.models.initializers.xavier_uniform import XavierUniform
from chattune.models.norms import Norm
from chattune.models.norms._batch_norm import Normalise, take_whole_statistics

WINDOW, EXAMPLES, SEEDS = 8, 128, 3
BATCHES = (2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Text:
    """Windows of characters and what follows each: `inputs` (examples, 8) and `targets` (examples), for learning and for judging."""

    characters: int
    inputs: Tensor
    targets: Tensor
    held_inputs: Tensor
    held_targets: Tensor


@dataclass(frozen=True)
class Run:
    """What is compared: a norm, the examples of a micro-batch, hidden layers, and noise that unsteadies each unit after its norm."""

    norm: str | None
    batch: int
    layers: int = 2
    noise: bool = False
    steps: int = 300
    rate: float = 3e-3


@dataclass
class Outcome:
    """Nats a character: on a part of what was learned, on held-out text with moving and with whole-split statistics; and the mean
    distance that the mean of a unit's net input went from one twentieth of the run to the next, over its mean standard deviation."""

    learned: float = math.nan
    held: float = math.nan
    held_whole: float = math.nan
    drift: float = math.nan
    losses: list[float] = field(default_factory=list)


class Net(nn.Module):
    """Embeddings of eight characters, hidden layers of tanh units with a norm before them, a softmax."""

    def __init__(self, characters: int, norm: Norm | None, layers: int, seed: int, width: int = 128, embedding: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, embedding)
        sides = [(WINDOW * embedding, width)] + [(width, width)] * (layers - 1)
        self.linears = nn.ModuleList(nn.Linear(*side, bias=norm is None or not norm.shifts) for side in sides)
        self.norms = nn.ModuleList(nn.Identity() if norm is None else norm.build(width) for _ in sides)
        self.output = nn.Linear(width, characters)
        for name, weight in self.named_parameters():
            random = torch.Generator().manual_seed(derived(seed, "lesson", name))
            if name == "embedding.weight":
                weight.detach().normal_(0.0, 1.0, generator=random)
            elif weight.ndim == 2:
                XavierUniform().fill(weight, Place(name, weight.shape[1], weight.shape[0]), random)
            elif not name.startswith("norms."):
                weight.detach().zero_()
        self.noise: torch.Generator | None = None
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x).flatten(1)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            z = linear(x)
            self.seen = z.detach()
            z = norm(z)
            if self.noise is not None and self.training:
                shift, scale = torch.randn(2, z.shape[1], generator=self.noise)
                z = z * (1 + 0.5 * scale.tanh()) + shift / 2  # another mean and variance for each unit in each pass
            x = torch.tanh(z)
        return self.output(x)  # type: ignore[no-any-return]


def text(limit: int | None = None) -> Text:
    """The built-in English small talk, a tenth of its dialogs held out; at most `limit` examples of each part."""
    from chattune.dialogs.dialog import Dialog
    from chattune.dialogs.gathering import Wanted, read_sources

    said = sorted({"\n".join(m.content for m in d.messages) for d in read_sources(Wanted(["chatterbot-english"]))
                   if isinstance(d, Dialog)})  # fmt: skip
    order = generator(0, "lesson", "split").permutation(len(said))
    alphabet = sorted(set("".join(said)) | {"\n"})
    number = {character: place for place, character in enumerate(alphabet)}
    parts = []
    for chosen in (order[len(order) // 10 :], order[: len(order) // 10]):
        ids = np.array([number[c] for place in chosen for c in "\n" * WINDOW + said[place]])
        windows = torch.from_numpy(np.lib.stride_tricks.sliding_window_view(ids, WINDOW + 1).copy())
        some = windows[:: max(1, len(windows) // limit)] if limit else windows
        parts += [some[:, :-1].contiguous(), some[:, -1].contiguous()]
    return Text(len(alphabet), *parts)


def train(run: Run, data: Text, seed: int = 0) -> Outcome:
    """Updates by Adam of `EXAMPLES` random examples each, in micro-batches of `run.batch`, of which a norm sees one at a time."""
    norm: Norm | None = None if run.norm is None else choose(Norm, run.norm)
    net, outcome = Net(data.characters, norm, run.layers, seed), Outcome()
    if run.noise:
        net.noise = torch.Generator().manual_seed(derived(seed, "lesson", "noise"))
    optimizer = torch.optim.Adam(net.parameters(), lr=run.rate, foreach=True)
    random = torch.Generator().manual_seed(derived(seed, "lesson", "order"))
    means: list[Tensor] = []
    moved: list[float] = []
    for step in range(run.steps):
        for group in optimizer.param_groups:
            group["lr"] = run.rate * (1 - step / run.steps)
        chosen = torch.randint(len(data.inputs), (EXAMPLES,), generator=random)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in chosen.split(run.batch):
            loss = F.cross_entropy(net(data.inputs[part]), data.targets[part]) * (len(part) / EXAMPLES)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        optimizer.step()
        outcome.losses.append(total)
        if step % max(1, run.steps // 20) == 0:
            look(net, data.inputs[:1024])
            assert net.seen is not None
            means.append(net.seen.mean(0))
            if len(means) > 1:
                moved.append(float((means[-1] - means[-2]).abs().mean() / net.seen.std(0).mean()))
    outcome.drift = float(np.mean(moved))
    outcome.learned = judge(net, data.inputs[:20_000], data.targets[:20_000])
    outcome.held = judge(net, data.held_inputs, data.held_targets)
    if run.norm == "batch_norm":
        settle(net, data.inputs)
        outcome.held_whole = judge(net, data.held_inputs, data.held_targets)
    return outcome


@torch.no_grad()
def look(net: Net, inputs: Tensor) -> Tensor:
    """Logits in evaluation mode."""
    net.eval()
    logits: Tensor = net(inputs)
    net.train()
    return logits


def judge(net: Net, inputs: Tensor, targets: Tensor) -> float:
    """Mean nats a character."""
    return float(F.cross_entropy(look(net, inputs), targets))


def settle(net: Net, inputs: Tensor) -> None:
    """Whole-split statistics for every batch norm, as `statistics: whole` takes them."""
    for module in net.modules():
        if isinstance(module, Normalise):
            module.norm = module.norm.changed(statistics="whole")

    def passes() -> Iterator[None]:
        for part in inputs.split(8192):
            look(net, part)
            yield

    take_whole_statistics(net, passes)


def small_batches(data: Text, seeds: Iterable[int], batches: Iterable[int], steps: int = 300) -> dict[tuple[str, int], list[Outcome]]:
    """Every norm at every size of micro-batch; without a batch norm the size cannot matter, so three sizes show it."""
    batches = list(batches)
    few = [batches[0], batches[len(batches) // 2], batches[-1]]
    return {
        (norm, batch): [train(Run(None if norm == "none" else norm, batch, steps=steps), data, seed) for seed in seeds]
        for norm in ("none", "layer_norm", "batch_norm")
        for batch in (batches if norm == "batch_norm" else dict.fromkeys(few))
    }


def unsteady(data: Text, seeds: Iterable[int], steps: int = 300) -> dict[str, list[Outcome]]:
    """Twelve layers without a norm at two rates, with batch norm, and with batch norm whose units are shaken anew in each pass (after
    Santurkar et al. 2018)."""
    runs = {
        "no norm, rate 0.01": Run(None, 128, 12, steps=steps, rate=0.01),
        "no norm, rate 0.003": Run(None, 128, 12, steps=steps, rate=0.003),
        "batch norm, rate 0.01": Run("batch_norm", 128, 12, steps=steps, rate=0.01),
        "batch norm, shaken, rate 0.01": Run("batch_norm", 128, 12, noise=True, steps=steps, rate=0.01),
    }
    return {name: [train(run, data, seed) for seed in seeds] for name, run in runs.items()}


def mean(outcomes: Iterable[Outcome], name: str) -> str:
    """Mean and standard deviation over seeds."""
    values = [getattr(one, name) for one in outcomes]
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def batch_table(found: Mapping[tuple[str, int], list[Outcome]]) -> str:
    """The first experiment as Markdown."""
    head = "| examples a micro-batch | norm | learned text | held-out text | held-out, whole statistics |"
    lines = [head, "|---:|---|---:|---:|---:|"]
    for (norm, batch), outcomes in found.items():
        whole = mean(outcomes, "held_whole") if norm == "batch_norm" else "–"
        cells = (str(batch), norm.replace("_", " "), mean(outcomes, "learned"), mean(outcomes, "held"), whole)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shift_table(found: Mapping[str, list[Outcome]]) -> str:
    """The second experiment as Markdown."""
    lines = ["| network | held-out text | drift of the last layer's net inputs |", "|---|---:|---:|"]
    lines += [f"| {name} | {mean(outcomes, 'held')} | {mean(outcomes, 'drift')} |" for name, outcomes in found.items()]
    return "\n".join(lines)


def draw(found: Mapping[tuple[str, int], list[Outcome]], path: Path) -> None:
    """Held-out loss over the size of the micro-batch, bars of one standard deviation over seeds."""
    sheet, (axes,) = figure(1)
    for norm, style in (("none", "s:"), ("layer_norm", "o-"), ("batch_norm", "^--")):
        sizes = [batch for name, batch in found if name == norm]
        values = [[one.held for one in found[norm, batch]] for batch in sizes]
        axes.errorbar(sizes, [np.mean(v) for v in values], yerr=[np.std(v) for v in values], fmt=style, label=norm.replace("_", " "))
    whole = [(batch, np.mean([one.held_whole for one in found[name, batch]])) for name, batch in found if name == "batch_norm"]
    axes.plot(*zip(*whole, strict=True), "v-.", label="batch norm, whole statistics")
    axes.set_xscale("log", base=2)
    sizes = sorted({batch for _, batch in found})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("examples in a micro-batch (128 an update)")
    axes.set_ylabel("held-out loss (nats a character)")
    axes.legend(fontsize=8)
    save(sheet, path)


def main() -> None:
    """Run both experiments; write the picture and the tables."""
    torch.set_num_threads(1)
    data, folder = text(), Path(__file__).parent
    found = small_batches(data, range(SEEDS), BATCHES)
    draw(found, folder / "normalisation.svg")
    insert(folder / "normalisation.md", "batch sizes", batch_table(found))
    insert(folder / "normalisation.md", "unsteady", shift_table(unsteady(data, range(SEEDS))))


if __name__ == "__main__":
    main()
