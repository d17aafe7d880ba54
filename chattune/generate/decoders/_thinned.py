"""Predictions of a model with dropout, as in training; the model itself is left as it was found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from chattune.core.seeds import derived
from chattune.generate.speaker import Speaker
from chattune.models.language_model import LanguageModel

_ROWS = 16  # copies that are asked together


def doubt(
    speaker: Speaker, ids: Sequence[int], said: int, samples: int, rate: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Entropy of the mean prediction, and mutual information, of each of the last `said` of `ids`; nats."""
    device = speaker.model.device
    mean = torch.zeros(said, speaker.model.vocabulary, dtype=torch.float64, device=device)
    within = torch.zeros(said, dtype=torch.float64, device=device)  # mean entropy of a copy's own prediction
    with torch.inference_mode(), _dropping(speaker.model, rate), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derived(speaker.seed, "monte_carlo_dropout", *ids))
        for start in range(0, samples, _ROWS):
            rows = min(_ROWS, samples - start)
            hidden = speaker.model.hidden(torch.tensor([list(ids[:-1])] * rows, device=device))[:, -said:]
            for row in hidden:
                log = speaker.log_probabilities(row)  # (said, vocabulary)
                mean += log.exp() / samples
                within += _entropy(log.exp()) / samples
    entropy = _entropy(mean)
    return tuple(entropy.tolist()), tuple((entropy - within).clamp(min=0.0).tolist())  # below 0 only by rounding


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(probabilities).sum(-1)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _dropping(model: LanguageModel, rate: float) -> Iterator[None]:
    """Training mode with this share dropped; what counts averages over batches stays as in evaluation."""
    modes = {module: module.training for module in model.modules()}
    rates = [(module, {name: value for name, value in vars(module).items() if isinstance(value, float)}) for module in modes]
    try:
        model.train()
        model.set_dropout(rate)
        for name in model.moving():
            model.get_submodule(name.rpartition(".")[0]).eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, values in rates:
            for name, value in values.items():
                setattr(module, name, value)
