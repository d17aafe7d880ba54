"""How surprised a model is by a split: nats for each dialog, every target token scored exactly once."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chattune.core import files
from chattune.core.errors import CorruptError
from chattune.evaluate import bootstrap

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel
    from chattune.tokens.token_set import TokenSplit
    from chattune.tokens.windows import Windows

Array = np.ndarray

_POSITIONS = 1 << 14  # tokens of one forward, unless one window has more: models with a long context would else take gigabytes
_LOGITS = 1 << 24  # logits held at once: 64 MiB in float32


@dataclass(frozen=True)
class SplitLoss:
    """One entry a dialog: `nll` in nats, `tokens` scored, `bytes` of UTF-8 that these tokens stand for.

    The end-of-turn token is scored and stands for no bytes, so bits per byte charge the model for knowing when to stop.
    """

    nll: Array
    tokens: Array
    bytes: Array

    @property
    def loss(self) -> float:
        """Nats per target token."""
        return float(self.nll.sum() / max(self.tokens.sum(), 1))

    @property
    def bits_per_byte(self) -> float:
        """Comparable between vocabularies: bits for each byte of the text."""
        return float(self.nll.sum() / math.log(2) / max(self.bytes.sum(), 1))

    @property
    def perplexity(self) -> float:
        """Comparable only between models that share a vocabulary."""
        return _exponential(self.loss)

    def totals(self) -> tuple[float, float, float]:
        """Nats, tokens and bytes of all dialogs together."""
        return float(self.nll.sum()), float(self.tokens.sum()), float(self.bytes.sum())

    @classmethod
    def of_totals(cls, totals: Sequence[float]) -> SplitLoss:
        """One entry that stands for many dialogs, from the sums of their `totals`."""
        return cls(*(np.asarray([value]) for value in totals))

    def save(self, path: Path) -> None:
        """Write (dialogs, 3) float64 numbers: `nll`, `tokens`, `bytes`."""
        content = io.BytesIO()
        np.save(content, np.stack((self.nll, self.tokens, self.bytes), axis=1).astype(np.float64), allow_pickle=False)
        files.write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> SplitLoss:
        """What `save` wrote."""
        try:
            columns = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, zipfile.BadZipFile):
            columns = None
        if not isinstance(columns, np.ndarray) or columns.ndim != 2 or columns.shape[1] != 3 or columns.dtype.kind != "f":
            raise CorruptError("holds no losses.", path=str(path), rule="three columns of numbers", hint="Evaluate again.")
        return cls(columns[:, 0], columns[:, 1], columns[:, 2])

    def intervals(self, seed: int) -> dict[str, tuple[float, float, float]]:
        """``bits_per_byte`` and ``perplexity``, each as value, low and high over conversations."""
        bits = bootstrap.interval(np.stack((self.nll / math.log(2), self.bytes), axis=1), bootstrap.ratio, seed)
        loss = bootstrap.interval(np.stack((self.nll, self.tokens), axis=1), bootstrap.ratio, seed)
        return {"bits_per_byte": bits, "perplexity": (_exponential(loss[0]), _exponential(loss[1]), _exponential(loss[2]))}


def split_loss(
    model: LanguageModel,
    split: TokenSplit,
    byte_lengths: Array,
    *,
    context: int,
    overlap: int = 0,
    rows: int = 16,
    limit: int | None = None,
    part: int = 0,
    of: int = 1,
) -> SplitLoss:
    """The loss of every dialog in `split` (of at most `limit` dialogs, evenly spaced; of these, share `part` of `of`).

    Dialogs longer than `context` are cut into windows; a later window sees `overlap` tokens of the one before without
    scoring them again. A token counts when its weight is above zero, and then once: weights are for training. Windows
    of like length go through together, at most ``rows * context`` positions a forward and not many thousands.
    `byte_lengths`: (vocabulary,). The negative log-likelihood is computed in float32 whatever the model's type; the
    model's mode is left as it was.
    """
    import torch

    from chattune.tokens.order import collate
    from chattune.tokens.windows import windows

    cut = windows(split, context, strategy="split", overlap=overlap)
    chosen = _evenly(len(split), limit)[part::of]
    device = next(model.parameters()).device
    nll = torch.zeros(len(split), dtype=torch.float64)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: tables that a model builds on first use must stay trainable-safe
            together = min(rows * context, max(context, _POSITIONS))
            for group in _groups(cut, np.flatnonzero(np.isin(cut.dialog, chosen)), together):
                batch = collate(split, cut, [[window] for window in group], pad=split.control["pad"])
                scored = batch.weights > 0
                dialogs = torch.from_numpy(np.asarray(cut.dialog)[group].astype(np.int64))[:, None].expand_as(scored)[scored]
                # One window a row and padding on the right: a causal model needs neither segments nor a mask.
                hidden = model.hidden(batch.inputs.to(device))[scored.to(device)]
                targets = batch.targets[scored].to(device)
                step = max(1, _LOGITS // model.vocabulary)
                for piece in (slice(start, start + step) for start in range(0, len(targets), step)):
                    logits = model.head(hidden[piece]).float()
                    surprise = torch.nn.functional.cross_entropy(logits, targets[piece], reduction="none")
                    nll.index_add_(0, dialogs[piece], surprise.double().cpu())
    finally:
        model.train(was_training)
    tokens, lengths = _sizes(split, byte_lengths)
    return SplitLoss(nll.numpy()[chosen], tokens[chosen], lengths[chosen])


def score_tokens(split: TokenSplit, byte_lengths: Array, log_probabilities: Array) -> SplitLoss:
    """The loss of a model that scored every token of `split` itself. `log_probabilities`: (tokens,) natural logarithms."""
    surprise = np.where(np.asarray(split.weights) > 0, -log_probabilities, 0.0)
    return SplitLoss(_per_dialog(surprise, split.offsets), *_sizes(split, byte_lengths))


def _exponential(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # beyond that a float has no word for it


def _evenly(count: int, limit: int | None) -> Array:
    if limit is None or limit >= count:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, max(limit, 1)).round().astype(np.int64))


def _groups(cut: Windows, chosen: Array, positions: int) -> list[Array]:
    """Windows sorted by length, longest first, in groups whose padded size is at most `positions`."""
    ordered = chosen[np.argsort(-np.asarray(cut.length)[chosen], kind="stable")]
    groups, start = [], 0
    while start < len(ordered):
        size = max(1, positions // int(max(cut.length[ordered[start]], 1)))
        groups.append(ordered[start : start + size])
        start += size
    return groups


def _sizes(split: TokenSplit, byte_lengths: Array) -> tuple[Array, Array]:
    scored = np.asarray(split.weights) > 0
    lengths = np.where(scored, np.asarray(byte_lengths)[np.asarray(split.ids)], 0)
    return _per_dialog(scored, split.offsets), _per_dialog(lengths, split.offsets)


def _per_dialog(values: Array, offsets: Array) -> Array:
    running = np.concatenate(([0], np.cumsum(values, dtype=np.float64)))
    offsets = np.asarray(offsets, dtype=np.int64)
    sums: Array = running[offsets[1:]] - running[offsets[:-1]]
    return sums
