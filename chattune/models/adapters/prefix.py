"""Learned keys and values before the conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chattune.core.part import setting
from chattune.models.adapters import Adapter

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.models.language_model import LanguageModel


class Prefix(Adapter):
    """In every layer, let all tokens attend to a few learned keys and values, as if something had been said before.

    Helps when: one model serves many tasks at once: a prefix can be chosen for each request; there are very few weights to learn.
    Hurts when: much is to be learned, or decoding must stay as fast: it cannot be merged. It changes the model a little from the
    start, since softmax always gives the prefix a share; rates have to be high.
    Cost: 2 · layers · kv heads · head · tokens weights; attention over so many more keys.   Start with: tokens 16; adamw at 0.01.
    Source: Li & Liang 2021, arXiv:2101.00190; without the network that produced their prefix while it was trained.
    """

    tokens: int = setting(16, "keys and values in each layer", low=1, high=4096, log=True, search=[8, 16, 32, 64])

    @property
    def merges(self) -> bool:
        return False

    @property
    def starts_as_nothing(self) -> bool:
        return False

    @property
    def rate(self) -> float | None:
        return 1e-2

    def attach(self, model: LanguageModel, seed: int = 0) -> None:
        from chattune.models.adapters import _prefix

        _prefix.attach(self, model, seed)

    def detach(self, model: LanguageModel) -> None:
        from chattune.models.adapters import _prefix

        _prefix.detach(model)

    def exported(self, model: LanguageModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """peft's prefix tuning, which counts positions from behind the prefix: keys are turned accordingly."""
        from chattune.models.adapters import _prefix

        return _prefix.tensors(self, model), _prefix.config(self, model)

    def load_exported(self, model: LanguageModel, tensors: dict[str, Tensor]) -> None:
        from chattune.models.adapters import _prefix

        _prefix.load(self, model, tensors)
