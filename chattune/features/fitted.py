"""`FittedClassifier`: what a classifier learnt, and its form on disk (``classifier.json`` and ``weights.safetensors``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic_core import PydanticCustomError
from torch import Tensor

from chattune.core import files
from chattune.core.errors import CorruptError, DataError
from chattune.core.part import choose
from chattune.features.classifiers import Classifier
from chattune.features.words import Choice, chosen, with_marks

DESCRIPTION, WEIGHTS = "classifier.json", "weights.safetensors"


class FittedClassifier:
    """Tells labels of texts.

    `part`: the settings it was learnt with; `labels`: the classes in the order of all scores; `vocabulary`: the words that are
    known, numbered from 1 on (0 stands for words never seen); `words`: what a word is.
    """

    def __init__(self, part: Classifier, labels: Sequence[str], vocabulary: Sequence[str], words: Choice) -> None:
        self.part, self.labels, self.words = part, tuple(labels), words
        self.vocabulary = {word: number for number, word in enumerate(vocabulary, start=1)}
        self._split = with_marks(words)

    def features(self, texts: Sequence[str]) -> Tensor:
        """(n, features) float32: what the last, linear layer looks at."""
        raise NotImplementedError

    def logits(self, texts: Sequence[str]) -> Tensor:
        """(n, classes) float32."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Everything learnt, by name."""
        raise NotImplementedError

    def take(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`; KeyError, ValueError or RuntimeError where they do not fit."""
        raise NotImplementedError

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """(n, classes) float64; rows sum to 1."""
        found: np.ndarray = torch.softmax(self.logits(texts).double(), dim=-1).numpy()
        return found

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text."""
        return [self.labels[number] for number in self.logits(texts).argmax(-1).tolist()] if texts else []

    def numbers(self, text: str) -> list[int]:
        """The words of `text` as numbers; 0 where a word was never seen."""
        return [self.vocabulary.get(word, 0) for word in self._split(text)]

    def save(self, folder: Path) -> None:
        """Write the two files; each is replaced as a whole."""
        folder.mkdir(parents=True, exist_ok=True)
        files.write_atomically(folder / WEIGHTS, safetensors.torch.save({k: v.contiguous() for k, v in self.tensors().items()}))
        described = {
            "schema": 1, "classifier": self.part.dump(), "labels": self.labels, "words": self.words,
            "vocabulary": list(self.vocabulary),
        }  # fmt: skip
        files.write_json(folder / DESCRIPTION, described)

    @staticmethod
    def load(folder: Path) -> FittedClassifier:
        """The classifier saved in `folder`; `CorruptError` where the files are not what `save` wrote."""
        described = files.read_json(folder / DESCRIPTION)
        try:
            part: Classifier = choose(Classifier, described["classifier"])
            fitted = part.fitted()(part, described["labels"], described["vocabulary"], described["words"])
            tensors = safetensors.torch.load((folder / WEIGHTS).read_bytes())
            if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
                raise ValueError("a weight is not finite")
            fitted.take(tensors)
        except FileNotFoundError:
            raise DataError("is missing.", path=str(folder / WEIGHTS), rule="a classifier that chattune saved") from None
        except (KeyError, TypeError, ValueError, RuntimeError, PydanticCustomError, safetensors.SafetensorError) as error:
            raise CorruptError(f"cannot be understood: {error}.", path=str(folder), rule="a classifier that chattune saved") from None
        return fitted


def vocabulary_of(texts: Sequence[str], choice: Choice, minimum_count: int) -> tuple[list[str], Choice]:
    """Words that occur at least so often, the frequent ones first and equals by spelling; and what a word is, decided."""
    decided = chosen(choice, texts)
    counts = Counter(word for text in texts for word in with_marks(decided)(text))
    return sorted((word for word, count in counts.items() if count >= minimum_count), key=lambda word: (-counts[word], word)), decided
