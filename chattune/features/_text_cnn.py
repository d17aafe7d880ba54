"""The network of `TextCNN`: embeddings, convolutions over neighbouring words, the maximum over places, one linear layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.core.seeds import derived, generator
from chattune.features.fitted import FittedClassifier, vocabulary_of

if TYPE_CHECKING:
    from chattune.features.classifiers.text_cnn import TextCNN
    from chattune.features.words import Choice

_TEXTS = 256  # read together when answering
_NOTHING = -1  # beyond the end of a text: no word, not even an unknown one


class FittedTextCNN(FittedClassifier):
    """`network`: word numbers to logits. Padding never changes a text's answer."""

    part: TextCNN

    def __init__(self, part: TextCNN, labels: Sequence[str], vocabulary: Sequence[str], words: Choice) -> None:
        super().__init__(part, labels, vocabulary, words)
        with torch.device("meta"):  # drawn later, if at all, and not from the caller's generator
            network = _Network(part, len(vocabulary) + 1, len(labels))
        self.network = network.to_empty(device="cpu").eval()

    def features(self, texts: Sequence[str]) -> Tensor:
        """(n, spans × filters): the largest answer of each filter."""
        return torch.cat([self.network.pooled(batch) for batch in self._batches(texts)] or [torch.zeros(0, self.network.size)])

    def logits(self, texts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return self.network.output(self.features(texts))  # type: ignore[no-any-return]

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.network.state_dict())

    def take(self, tensors: dict[str, Tensor]) -> None:
        self.network.load_state_dict(tensors, strict=True)

    def _batches(self, texts: Sequence[str]) -> Iterator[Tensor]:
        for start in range(0, len(texts), _TEXTS):
            yield padded([self.numbers(text) for text in texts[start : start + _TEXTS]])


class _Network(nn.Module):
    def __init__(self, part: TextCNN, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.spans, self.drop, self.size = part.spans, part.drop, part.filters * len(part.spans)
        self.embedding = nn.Embedding(vocabulary, part.width)
        self.filters = nn.ModuleList(nn.Conv1d(part.width, part.filters, span) for span in part.spans)
        self.output = nn.Linear(self.size, classes)

    def pooled(self, numbers: Tensor) -> Tensor:
        """(texts, spans × filters) of (texts, time) word numbers, −1 beyond the end."""
        there = numbers >= 0
        x = (self.embedding(numbers.clamp(min=0)) * there[..., None]).transpose(1, 2)  # (texts, width, time)
        lengths = there.sum(1)
        found = []
        for span, convolution in zip(self.spans, self.filters, strict=True):
            answers = F.relu(convolution(F.pad(x, (0, max(0, span - x.shape[2])))))  # (texts, filters, places)
            places = torch.arange(answers.shape[2])
            # Places whose words all stand in the text; a text shorter than the span has one, filled up with nothing.
            inside = places <= (lengths - span).clamp(min=0)[:, None]
            found.append(answers.masked_fill(~inside[:, None], 0.0).amax(2))  # answers are at least 0
        return torch.cat(found, 1)

    def forward(self, numbers: Tensor) -> Tensor:
        """(texts, classes) logits."""
        return self.output(F.dropout(self.pooled(numbers), self.drop, self.training))  # type: ignore[no-any-return]

    @torch.no_grad()
    def fill(self, seed: int) -> None:
        """Fresh weights, each tensor from a stream of its own: words 0.1·normal, filters He, output normal / √inputs."""
        for name, weight in self.named_parameters():
            random = torch.Generator().manual_seed(derived(seed, "text_cnn", name))
            if name.endswith("bias"):
                weight.zero_()
            elif name.startswith("embedding"):
                weight.normal_(0.0, 0.1, generator=random)
            else:
                fan_in = weight[0].numel()
                weight.normal_(0.0, math.sqrt((2 if weight.ndim == 3 else 1) / fan_in), generator=random)


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(rows, longest) numbers, −1 beyond each one's end; at least one column."""
    longest = max(1, *(len(row) for row in rows))
    return torch.tensor([[*row, *[_NOTHING] * (longest - len(row))] for row in rows])


def fit(part: TextCNN, texts: Sequence[str], labels: Sequence[str], classes: list[str], seed: int) -> FittedTextCNN:
    """Minimise the mean negative log-likelihood; batches hold texts of like length, their order drawn anew each epoch."""
    fitted = FittedTextCNN(part, classes, *vocabulary_of(texts, part.words, part.minimum_count))
    network = fitted.network
    network.fill(seed)
    network.train()
    rows = [fitted.numbers(text) for text in texts]
    targets = torch.tensor([classes.index(label) for label in labels])
    optimizer = torch.optim.AdamW(network.parameters(), lr=part.lr, weight_decay=part.weight_decay, fused=True)
    total, step = part.epochs * math.ceil(len(rows) / part.batch), 0
    with torch.random.fork_rng(devices=[]):
        for epoch in range(part.epochs):
            for chosen in _batches([len(row) for row in rows], part.batch, seed, epoch):
                optimizer.param_groups[0]["lr"] = part.lr * 0.5 * (1 + math.cos(math.pi * step / total))
                torch.manual_seed(derived(seed, "text_cnn", "step", step))
                numbers = padded([rows[number] for number in chosen])
                forgotten = (torch.rand(numbers.shape) < part.unknown) & (numbers > 0)
                loss = F.cross_entropy(network(numbers.masked_fill(forgotten, 0)), targets[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
    network.eval()
    return fitted


def _batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Every text once: shuffled, then sorted by length within a few batches' worth, the batches shuffled again."""
    random = generator(seed, "text_cnn", "order", epoch)
    order = random.permutation(len(lengths)).tolist()
    pool = 16 * size
    batches = []
    for start in range(0, len(order), pool):
        near = sorted(order[start : start + pool], key=lambda number: lengths[number])
        batches += [near[at : at + size] for at in range(0, len(near), size)]
    for number in random.permutation(len(batches)).tolist():
        yield batches[number]
