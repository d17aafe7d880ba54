"""The experiment of the lesson on initialisation: eleven ways to begin, thirty layers of 256 units, signal and gradient.

    python docs/lessons/initialisation.py        writes initialisation.svg and the table in initialisation.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from page import figure, insert, power, save
from torch import Tensor

from chattune.core.part import choose
from chattune.core.seeds import derived
from chattune.models.activations import SATURATION, Activation, Name
from chattune.models.initializers import Initializer, Place

LAYERS, WIDTH, SAMPLES = 30, 256, 512


@dataclass(frozen=True)
class Case:
    """One way to begin: what it is called, what units do, what weights are drawn from."""

    label: str
    activation: Name
    init: dict[str, object]

    def initializer(self) -> Initializer:
        part: Initializer = choose(Initializer, self.init)
        return part


CASES = (
    Case("zero", "tanh", {"name": "zero"}),
    Case("uniform ±0.01", "tanh", {"name": "uniform", "bound": 0.01}),
    Case("normal, std 1", "tanh", {"name": "normal", "std": 1.0}),
    Case("Xavier", "tanh", {"name": "xavier_uniform"}),
    Case("4 × Xavier (swapped)", "tanh", {"name": "xavier_uniform", "gain": 4.0}),
    Case("orthogonal", "tanh", {"name": "orthogonal"}),
    Case("Xavier (swapped)", "logistic", {"name": "xavier_uniform"}),
    Case("4 × Xavier", "logistic", {"name": "xavier_uniform", "gain": 4.0}),
    Case("Xavier", "relu", {"name": "xavier_uniform"}),
    Case("He", "relu", {"name": "he"}),
    Case("Xavier", "identity", {"name": "xavier_uniform"}),
)


@dataclass(frozen=True)
class Seen:
    """What thirty layers did, layer by layer. `signal`: variance of each unit over the samples, the mean over units; `square`: mean
    square of all numbers; `saturated`: share of flat units in the last layer (none: they have no flat part); `gradient`: mean square
    of the gradient at each layer's output, where that of the last layer is drawn with 1."""

    signal: tuple[float, ...]
    square: tuple[float, ...]
    saturated: float | None
    gradient: tuple[float, ...]


def run(case: Case, *, layers: int = LAYERS, seed: int = 0, dtype: torch.dtype = torch.float64) -> Seen:
    """Send standard normal numbers (512, 256) through the stack, and standard normal gradients back from its end."""
    random = torch.Generator().manual_seed(derived(seed, "lesson", "inputs"))
    weights = [matrix(case.initializer(), WIDTH, WIDTH, seed, layer).to(dtype) for layer in range(layers)]
    x = torch.randn(SAMPLES, WIDTH, generator=random).to(dtype)
    unit, outputs, z = Activation(case.activation), [], x
    x.requires_grad_()
    for weight in weights:
        z = x @ weight.T
        x = unit(z)
        x.retain_grad()
        outputs.append(x)
    x.backward(torch.randn(x.shape, generator=random).to(dtype))  # type: ignore[no-untyped-call]
    limit = SATURATION.get(case.activation)
    return Seen(
        tuple(variance(output) for output in outputs),
        tuple(float(output.detach().square().mean()) for output in outputs),
        None if limit is None else float((z.detach().abs() > limit).float().mean()),
        tuple(float(output.grad.square().mean()) if output.grad is not None else 0.0 for output in outputs),
    )


def matrix(init: Initializer, outputs: int, inputs: int, seed: int = 0, layer: int = 0) -> Tensor:
    """A fresh weight matrix (outputs, inputs)."""
    weight = torch.empty(outputs, inputs)
    init.fill(weight, Place(f"layer {layer}", inputs, outputs), torch.Generator().manual_seed(derived(seed, "lesson", layer)))
    return weight


def variance(x: Tensor) -> float:
    """Of each unit over the samples (the mean of units is no signal), the mean over units."""
    return float(x.detach().var(0, correction=0).mean())


def table(seen: Sequence[tuple[Case, Seen]]) -> str:
    """The results as Markdown."""
    head = "| weights | units | signal at layer 30 | mean square there | flat units there | gradient left at layer 1 |"
    lines = [head, "|---|---|---:|---:|---:|---:|"]
    for case, one in seen:
        flat = "–" if one.saturated is None else f"{one.saturated:.0%}"
        numbers = (power(one.signal[-1]), power(one.square[-1]), flat, power(one.gradient[0] / one.gradient[-1]))
        lines.append(f"| {' | '.join((case.label, case.activation, *numbers))} |")
    return "\n".join(lines)


def draw(seen: Sequence[tuple[Case, Seen]], path: Path) -> None:
    """Signal forwards and gradient backwards, a line a case."""
    sheet, axes = figure(2)
    for place, title in enumerate(("signal (variance over samples)", "gradient (mean square)")):
        axes[place].set_yscale("log")
        axes[place].set_ylim(1e-40, 1e30)
        axes[place].set_xlabel("layer")
        axes[place].set_title(title, fontsize=10)
    styles = {"tanh": "-", "logistic": "--", "relu": "-.", "identity": ":"}
    for case, one in seen:
        for place, values in enumerate((one.signal, one.gradient)):
            shown = [value if value > 0 else float("nan") for value in values]
            axes[place].plot(range(1, len(shown) + 1), shown, styles[case.activation], label=f"{case.label}, {case.activation}")
    axes[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save(sheet, path)


def main() -> None:
    """Run all cases; write the picture and the table."""
    torch.set_num_threads(1)
    seen = [(case, run(case)) for case in CASES]
    folder = Path(__file__).parent
    draw(seen, folder / "initialisation.svg")
    insert(folder / "initialisation.md", "thirty layers", table(seen))


if __name__ == "__main__":
    main()
