"""Small networks after the branches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from chattune.core.part import setting
from chattune.models.adapters import Adapter

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.models.language_model import LanguageModel


class Bottleneck(Adapter):
    """After the output of each branch, add what a small network with a narrow middle makes of it.

    Helps when: several tasks share one model and each brings its own few weights.   Hurts when: replies must be fast: with its
    activation it cannot be merged, and every token passes it. With `activation: identity` it merges.
    Cost: 2 · width · size weights a branch.   Start with: size 64; adamw at 0.5 / width.
    Source: Houlsby et al. 2019, arXiv:1902.00751: after both branches of a block, before the residual sum. The outer matrix begins
    as zero instead of their near-zero draws, so that nothing changes at the start.
    """

    size: int = setting(64, "units in the middle", low=1, high=65536, log=True, search=[16, 32, 64, 128])
    activation: Literal["gelu", "relu", "tanh", "identity"] = setting("gelu", "what the middle's units apply; identity: it merges")
    targets: tuple[str, ...] = setting(("output",), "maps after which it stands, by name or pattern")

    @property
    def merges(self) -> bool:
        return self.activation == "identity"

    def attach(self, model: LanguageModel, seed: int = 0) -> None:
        from chattune.models.adapters import _bottleneck

        _bottleneck.attach(self, model, seed)

    def merge(self, model: LanguageModel) -> None:
        """W becomes (1 + U D) W where the activation is the identity."""
        from chattune.models.adapters import _bottleneck

        if not self.merges:
            super().merge(model)
        _bottleneck.merge(model)

    def detach(self, model: LanguageModel) -> None:
        from chattune.models.adapters import _bottleneck

        _bottleneck.detach(model)

    def exported(self, model: LanguageModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Our own names: peft has no such adapter."""
        from chattune.models.adapters import _bottleneck

        return _bottleneck.tensors(model), {"adapter": self.dump()}

    def load_exported(self, model: LanguageModel, tensors: dict[str, Tensor]) -> None:
        from chattune.models.adapters import _bottleneck

        _bottleneck.load(model, tensors)
