"""Keep a moving average of the weights and use that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chattune.core.part import setting
from chattune.train.regularizers import Regularizer

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.models.language_model import LanguageModel


class EMA(Regularizer):
    """Evaluate and keep an exponential moving average of the weights instead of the last ones.

    Helps when: the rate is still high at the end, batches are small.   Hurts when: the rate decays to zero, which averages by
    itself; the run is shorter than the average's memory.   Cost: 4 bytes a parameter and one pass over them a step.
    Start with: decay 0.999.
    Source: Polyak & Juditsky 1992; Tarvainen & Valpola 2017, arXiv:1703.01780. Update t = 1, 2, … uses min(decay, (t − 1)/(t + 9)):
    the average starts at the first weights, without bias to the fresh ones, and its memory grows to 1/(1 − decay) steps.
    """

    decay: float = setting(0.999, "share of the average that stays each step", low=0.0, below=1.0, search=[0.99, 0.999, 0.9999])

    def begin(self, model: LanguageModel) -> _Average:
        return _Average(model)

    def weights(self, model: LanguageModel, step: int, memory: _Average) -> None:
        memory.count += 1
        memory.take(model, min(self.decay, (memory.count - 1) / (memory.count + 9)))

    def chosen(self, model: LanguageModel, memory: _Average) -> dict[str, Tensor] | None:
        """The average in the dtype of each parameter; before the first update, the model's own. Not copies."""
        if not memory.count:
            return None
        return {name: memory.average[name].to(parameter.dtype) for name, parameter in model.trainable().items()}


class _Average:
    """Float32 averages by parameter name, and how many updates they hold."""

    def __init__(self, model: LanguageModel) -> None:
        self.count = 0
        self.average = {name: parameter.detach().float().clone() for name, parameter in model.trainable().items()}

    def take(self, model: LanguageModel, decay: float) -> None:
        import torch

        current = [parameter.detach().float() for _, parameter in model.trainable().items()]
        torch._foreach_lerp_([self.average[name] for name, _ in model.trainable().items()], current, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        import torch

        return {"count": torch.tensor(self.count), **{f"average.{name}": tensor for name, tensor in self.average.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.count = int(state["count"])
        for name, tensor in self.average.items():
            tensor.copy_(state[f"average.{name}"])
