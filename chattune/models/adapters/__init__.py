"""Adapters: few new weights that learn beside a model whose own weights are frozen.

An adapter that is a sum of weights merges into them, so that the trained model is a plain one again; the others stay beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chattune.core.errors import UsageError
from chattune.core.part import Part

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.models.language_model import LanguageModel


class Adapter(Part):
    """A way to change what a model does without changing its weights."""

    @property
    def merges(self) -> bool:
        """Whether `merge` can put what was learned into plain weights."""
        return True

    @property
    def starts_as_nothing(self) -> bool:
        """Whether the model computes what it did before, until something is learned."""
        return True

    @property
    def rate(self) -> float | None:
        """AdamW's peak rate where the recipe leaves it open; none: what follows from the model's width for fresh weights."""
        return None

    def attach(self, model: LanguageModel, seed: int = 0) -> None:
        """Freeze `model` and add what learns, in place. Fresh weights are drawn from streams that `seed` and their names give.

        `SettingError` where the adapter does not fit the model, or a target means nothing.
        """
        raise NotImplementedError

    def merge(self, model: LanguageModel) -> None:
        """Put what was learned into plain weights, in place: a model without adapter that computes the same.

        `UsageError` where that cannot be (see `merges`).
        """
        raise UsageError(
            f"what {self.name} learned is no sum of weights and cannot be merged.", value=self.name,
            rule="lora, dora or a linear adapter",
            hint="It stays beside the model's weights, in the folder 'adapter'; chattune reads both.",
        )

    def detach(self, model: LanguageModel) -> None:
        """Take the adapter away, in place, and with it what was learned: the model as it was, frozen no longer."""
        raise NotImplementedError

    def exported(self, model: LanguageModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was learned, as the tensors of ``adapter_model.safetensors`` and the entries of ``adapter_config.json``: peft's
        where peft has an equivalent, else our own."""
        raise NotImplementedError

    def load_exported(self, model: LanguageModel, tensors: dict[str, Tensor]) -> None:
        """Take what `exported` gave into a `model` that the adapter was attached to; `CorruptError` names what does not fit."""
        raise NotImplementedError
