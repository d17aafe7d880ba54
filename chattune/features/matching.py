"""Which reply belongs to which question: two bags of words, each with vectors of its own, learnt so that pairs lie near each other.

A reply is judged among others: the loss of a pair is the negative logarithm of the probability that its reply is picked from among
random ones. Pairs that are rightly matched have a low one wherever questions and replies have something to do with one another.
Source: dual encoders with in-batch negatives, Henderson et al. 2017, arXiv:1705.00652; vectors as in StarSpace, Wu et al. 2018.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from chattune.core.errors import DataError
from chattune.core.seeds import generator
from chattune.features.words import chosen, with_marks

if TYPE_CHECKING:
    from torch import Tensor

WIDTH, EPOCHS, BATCH, RATE = 96, 5, 128, 0.01  # more epochs learn the pairs by heart, wrong ones too
_OTHERS = 255  # replies that a reply is picked from among


def mismatch(questions: Sequence[str], replies: Sequence[str], *, folds: int = 8, rounds: int = 3, seed: int = 0) -> np.ndarray:
    """(n,) float64 nats: how unlikely each reply is for its question, by models that have not seen this pair; a mean over `rounds`.

    In each round pairs are dealt into `folds`, and each part is judged by a model that learnt from the others. A pair that is there
    twice is known to the model that judges it, so repetitions should be left out first. `DataError` for fewer than 4 pairs a fold.
    """
    if len(questions) != len(replies):
        raise ValueError("one reply for each question")
    if len(questions) < 4 * folds:
        raise DataError(
            f"{len(questions)} pairs are too few to learn which belong together.", value=len(questions), rule=f"{4 * folds} pairs",
            hint="Leave this out for so few conversations.",
        )
    words = _Words([*questions, *replies])
    asked, answered = (words.rows(texts) for texts in (questions, replies))
    loss = np.zeros(len(questions))
    for round in range(rounds):
        random = generator(seed, "mismatch", round)
        fold = random.permutation(len(questions)) % folds
        for number in range(folds):
            own = np.flatnonzero(fold == number)
            model = _Pairs(len(words), int(random.integers(1 << 62)))
            model.learn(asked, answered, np.flatnonzero(fold != number), random)
            loss[own] += model.loss(asked, answered, own, random)
    return loss / rounds


class _Words:
    """Words that occur twice or more, with the weight ln(1 + n / texts that hold it); 0 stands for the others."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._split = with_marks(chosen("auto", texts[:5000]))
        count = Counter(word for text in texts for word in set(self._split(text)))
        kept = sorted((word for word, n in count.items() if n > 1), key=lambda word: (-count[word], word))[:50_000]
        self._number = {word: place for place, word in enumerate(kept, 1)}
        self._weight = [1.0, *(math.log(1 + len(texts) / count[word]) for word in kept)]

    def __len__(self) -> int:
        return len(self._weight)

    def rows(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each text the numbers of its known words, and their weights, of length 1."""
        found = []
        for text in texts:
            count = Counter(self._number.get(word, 0) for word in self._split(text)[:400])
            numbers = np.fromiter(count or {0: 1}, np.int64)
            weights = np.array([math.sqrt(count[number] or 1) * self._weight[number] for number in numbers.tolist()], np.float32)
            found.append((numbers, weights / max(1e-6, float(np.sqrt((weights**2).sum())))))
        return found


_Rows = Sequence[tuple[np.ndarray, np.ndarray]]


class _Pairs:
    def __init__(self, words: int, seed: int) -> None:
        import torch

        made = torch.Generator().manual_seed(seed)
        self.tables = [torch.nn.Parameter(torch.randn(words, WIDTH, generator=made) / math.sqrt(WIDTH)) for _ in range(2)]
        self.scale = torch.nn.Parameter(torch.tensor(2.5))

    def _vectors(self, side: int, rows: _Rows, places: np.ndarray) -> Tensor:
        """(n, width) of length 1."""
        import torch

        some = [rows[place] for place in places.tolist()]
        offsets = np.cumsum([0, *(len(numbers) for numbers, _ in some)])[:-1]
        numbers, weights = (torch.from_numpy(np.concatenate([row[part] for row in some])) for part in (0, 1))
        summed = torch.nn.functional.embedding_bag(
            numbers, self.tables[side], torch.from_numpy(offsets), mode="sum", per_sample_weights=weights
        )
        return torch.nn.functional.normalize(summed, dim=-1)

    def learn(self, asked: _Rows, answered: _Rows, places: np.ndarray, random: np.random.Generator) -> None:
        """Each reply of a batch is to be picked for its question from among all of the batch, and each question for its reply."""
        import torch

        optimizer = torch.optim.Adam([*self.tables, self.scale], lr=RATE)
        batches = max(1, len(places) // BATCH)
        total, step = EPOCHS * batches, 0
        for _ in range(EPOCHS):
            for own in np.array_split(random.permutation(places), batches):
                for group in optimizer.param_groups:
                    group["lr"] = RATE * (1 - step / total)
                scores = self.scale.exp() * self._vectors(0, asked, own) @ self._vectors(1, answered, own).T
                right = torch.arange(len(own))
                loss = torch.nn.functional.cross_entropy(scores, right) + torch.nn.functional.cross_entropy(scores.T, right)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1

    def loss(self, asked: _Rows, answered: _Rows, places: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """(n,) nats of each pair, its reply among others of `places`."""
        import torch

        with torch.no_grad():
            questions, replies = self._vectors(0, asked, places), self._vectors(1, answered, places)
            others = replies[torch.from_numpy(random.choice(len(places), min(_OTHERS, len(places)), replace=False))]
            scale = self.scale.exp()
            own = scale * (questions * replies).sum(-1, keepdim=True)
            among = torch.logsumexp(torch.cat([own, scale * questions @ others.T], dim=1), dim=1)
            found: np.ndarray = (among - own.squeeze(1)).double().numpy()
        return found
