"""What fresh weights do to a model: one batch forwards and backwards, and what each layer makes of signal and gradient.

Works for every family by hooks: its layers are the members of its module lists (or its direct children where it has none),
and where their units are `Activation` modules, what enters those is looked at, too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from chattune.core.errors import UsageError
from chattune.core.seeds import derived
from chattune.models.activations import SATURATION, Activation
from chattune.models.language_model import LanguageModel
from chattune.tokens.control import CONTROL
from chattune.tokens.token_set import TokenSplit

TURN = 16  # tokens a turn in a random batch
FAR = 1e3  # a signal or gradient that changes by more than this from the first layer to the last is called vanishing or exploding
WORSE = 1.5  # times the loss of an even guess
MANY = 0.5  # a larger share of saturated or dead units is worth a word


@dataclass(frozen=True)
class LayerLook:
    """One layer. `variance`: of all numbers that leave it; `signal`: of each unit over the tokens, the mean of them (what tells one
    token from another); `saturated`: share of net inputs where the activation is flat (tanh beyond ±2, logistic beyond ±4); `dead`:
    share of ReLUs that no token wakes; `gradient`: 2-norm of the loss's gradient at what leaves the layer."""

    name: str
    variance: float
    signal: float
    saturated: float | None
    dead: float | None
    gradient: float


@dataclass(frozen=True)
class Advice:
    """Something to mend: what it is called, where, and the way out."""

    name: str
    text: str
    hint: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text} {self.hint}"


@dataclass(frozen=True)
class InitReport:
    """`layers` in the order of the computation; `loss` of the fresh model beside that of guessing evenly, log(vocabulary);
    `signal_ratio`: last layer over first; `gradient_ratio`: first layer over last, each of the chain of layers where it is farthest
    from 1, which is a perfect start; none: not defined."""

    layers: tuple[LayerLook, ...]
    loss: float
    even_loss: float
    signal_ratio: float | None
    gradient_ratio: float | None
    warnings: tuple[Advice, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite become none."""

        def plain(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [plain(item) for item in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        found: dict[str, Any] = plain(asdict(self))
        return found


def batch(vocabulary: int, context: int, split: TokenSplit | None = None) -> tuple[Tensor, str]:
    """Ids for `look`, at most 16 rows of 128, and what they are: the beginning of a prepared split, cut to rows, or random ones."""
    time = min(context, 128)
    if split is not None and len(split.ids) > time:
        rows = min(16, len(split.ids) // (time + 1))
        ids = torch.from_numpy(split.ids[: rows * (time + 1)].astype("int64")).view(rows, time + 1)
        return ids, f"{rows} × {time} tokens of the training split"
    random = torch.Generator().manual_seed(derived(0, "init-report"))
    ids = torch.randint(vocabulary, (16, time + 1), generator=random)
    ids[:, TURN - 1 :: TURN] = min(CONTROL.index("end"), vocabulary - 1)  # some families work turn by turn
    return ids, f"16 × {time} random ids below {vocabulary}"


def look(model: LanguageModel, ids: Tensor) -> InitReport:
    """Run `model` in training mode without dropout on `ids` (rows, time + 1), and back from the mean loss of the next tokens.

    The model's weights stay; gradients (and batch norms' averages) do not.
    """
    layers, units = _layers(model), _units(model)
    outputs: dict[str, Tensor] = {}
    net_inputs: dict[str, Tensor] = {}
    handles = [module.register_forward_hook(_keeping(outputs, name)) for name, module in layers.items()]
    handles += [unit.register_forward_pre_hook(_keeping_input(net_inputs, name)) for name, unit in units.items()]
    model.train()
    model.set_dropout(0.0)
    model.zero_grad(set_to_none=True)
    try:
        loss = _loss(model, ids)
        loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
    looks = tuple(_look_at(name, output, units, net_inputs) for name, output in outputs.items())
    tables = {name for name, module in layers.items() if isinstance(module, nn.Embedding)}
    chains = [chain for chain in _chains(looks, tables) if chain[0].gradient > 0 or not _waits(chain, model)]
    even = math.log(model.vocabulary)
    found = [advice for chain in chains for advice in _warnings(chain)]
    warnings = (*_far_start(float(loss.detach()), even), *found, *_symmetric(model, ids))
    model.zero_grad(set_to_none=True)
    signal, gradient = _worst(map(_signal_ratio, chains)), _worst(map(_gradient_ratio, chains))
    return InitReport(looks, float(loss.detach()), even, signal, gradient, warnings)


def draw(report: InitReport, path: Path) -> None:
    """Signal and gradient of each layer, on logarithmic scales, as SVG, PNG, or a page that holds the SVG: by the file's ending."""
    import io

    from matplotlib.figure import Figure

    if path.suffix not in (".svg", ".png", ".html"):
        raise UsageError(
            f"cannot draw into a '{path.suffix}' file.", path=str(path), value=path.suffix, rule=".svg, .png or .html",
            hint="Name the plot so.",
        )
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    names = [one.name for one in report.layers]
    for axes, values, label in (
        (above, [one.signal for one in report.layers], "variance over tokens"),
        (below, [one.gradient for one in report.layers], "gradient (2-norm)"),
    ):
        shown = [value if math.isfinite(value) and value > 0 else math.nan for value in values]
        axes.plot(range(len(names)), shown, marker="o", markersize=4)
        if any(value > 0 for value in shown):
            axes.set_yscale("log")
        axes.set_ylabel(label)
        axes.grid(alpha=0.2)
    every = math.ceil(len(names) / 32)
    below.set_xticks(range(0, len(names), every), names[::every], rotation=60, ha="right", fontsize=7)
    above.set_title(f"fresh weights: loss {report.loss:.3f} (even guess {report.even_loss:.3f})", fontsize=10)
    if path.suffix == ".html":
        written = io.StringIO()
        figure.savefig(written, format="svg")
        svg = written.getvalue()
        text = "<!doctype html><meta charset=utf-8><title>Fresh weights</title>\n" + svg[svg.index("<svg") :]
        path.write_text(text, "utf-8")
    else:
        figure.savefig(path, dpi=120)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """The embedding, if there is one of that name, and the members of module lists that stand in no other one."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and (name == "embedding" or isinstance(_parent(model, name), nn.ModuleList)):
            found[name] = module
    if len(found) > 1 or (found and "embedding" not in found):
        return found
    return {name: module for name, module in model.named_children() if next(module.parameters(), None) is not None}


def _parent(model: nn.Module, name: str) -> nn.Module | None:
    return model.get_submodule(name.rpartition(".")[0]) if name else None


def _units(model: nn.Module) -> dict[str, Activation]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Activation)}


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    return next((tensor for item in value if (tensor := _first_tensor(item)) is not None), None) if isinstance(value, tuple) else None


def _keeping(outputs: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, given: Any, output: Any) -> None:
        tensor = _first_tensor(output)
        if tensor is not None and tensor.requires_grad:
            tensor.retain_grad()
            outputs.pop(name, None)  # used more than once (shared weights): the last time counts
            outputs[name] = tensor

    return hook


def _keeping_input(inputs: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, given: Any) -> None:
        inputs[name] = given[0].detach()

    return hook


def _look_at(name: str, output: Tensor, units: Mapping[str, Activation], net_inputs: Mapping[str, Tensor]) -> LayerLook:
    flat = output.detach().float().flatten(0, -2)
    inside = [(units[unit].name, z.float().flatten(0, -2)) for unit, z in net_inputs.items() if unit.startswith(f"{name}.")]
    flatness = [float((z.abs() > SATURATION[kind]).float().mean()) for kind, z in inside if kind in SATURATION]
    asleep = [float((z <= 0).all(0).float().mean()) for kind, z in inside if kind == "relu"]
    return LayerLook(
        name, float(flat.var(correction=0)), float(flat.var(0, correction=0).mean()), max(flatness, default=None),
        max(asleep, default=None), float(output.grad.norm()) if output.grad is not None else 0.0,
    )  # fmt: skip


def _chains(looks: tuple[LayerLook, ...], tables: set[str]) -> list[list[LayerLook]]:
    """The layers of each module list, in their order (an encoder's, a decoder's); tables stand side by side and are left out."""
    found: dict[str, list[LayerLook]] = {}
    for one in looks:
        if one.name not in tables:
            found.setdefault(one.name.rpartition(".")[0], []).append(one)
    return list(found.values())


def _waits(chain: list[LayerLook], model: nn.Module) -> bool:
    """No gradient reaches this chain since the matrices that lead out of it begin at zero; they get one, so that it comes next time."""
    leading = [weight for weight in model.parameters() if weight.ndim >= 2 and not bool(weight.detach().any())]
    return all(one.gradient == 0 for one in chain) and any(w.grad is not None and bool(w.grad.any()) for w in leading)


def _signal_ratio(chain: list[LayerLook]) -> float | None:
    return _ratio(chain[-1].signal, chain[0].signal)


def _gradient_ratio(chain: list[LayerLook]) -> float | None:
    return _ratio(chain[0].gradient, chain[-1].gradient)


def _ratio(a: float, b: float) -> float | None:
    return a / b if b > 0 and math.isfinite(a) and math.isfinite(b) else None


def _worst(ratios: Iterable[float | None]) -> float | None:
    """The one that is farthest from 1."""
    return max((r for r in ratios if r is not None), key=lambda r: abs(math.log(r)) if r > 0 else math.inf, default=None)


def _far_start(loss: float, even: float) -> Iterator[Advice]:
    smaller = "Lower the gain or std of model.init, or give the model a norm."
    if not math.isfinite(loss):
        yield Advice("not finite", "numbers overflow in the first batch.", smaller)
    elif loss > WORSE * even:
        yield Advice("bad start", f"the loss begins at {loss:.1f}, where an even guess has {even:.1f}.", smaller)


def _warnings(layers: list[LayerLook]) -> Iterator[Advice]:
    if not all(math.isfinite(one.variance + one.gradient) for one in layers):
        return
    signal, gradient = _signal_ratio(layers), _gradient_ratio(layers)
    first, last = layers[0].name, layers[-1].name
    kept = "Choose a model.init that keeps variances (xavier_uniform for tanh, he for relu), a norm, or residual branches."
    if layers[-1].signal == 0 or (signal is not None and signal < 1 / FAR):
        yield Advice("vanishing signal", f"what tells tokens apart falls {_times(signal)} from {first} to {last}.", kept)
    elif signal is not None and signal > FAR:
        yield Advice("exploding signal", f"the signal grows by {signal:.1e} from {first} to {last}.", kept)
    if layers[0].gradient == 0 or (gradient is not None and gradient < 1 / FAR):
        yield Advice("vanishing gradient", f"the gradient falls {_times(gradient)} on its way back from {last} to {first}.", kept)
    elif gradient is not None and gradient > FAR:
        yield Advice("exploding gradient", f"the gradient grows by {gradient:.1e} on its way back from {last} to {first}.", kept)
    flat = [one for one in layers if (one.saturated or 0.0) > MANY]
    if flat:
        worst = max(flat, key=lambda one: one.saturated or 0.0)
        text = f"{worst.saturated:.0%} of the net inputs of {worst.name} lie where its units are flat ({len(flat)} such layers)."
        yield Advice("saturation", text, "Lower the gain or std of model.init, or give it a norm before the activation.")
    dead = [one for one in layers if (one.dead or 0.0) > MANY]
    if dead:
        worst = max(dead, key=lambda one: one.dead or 0.0)
        text = f"{worst.dead:.0%} of the ReLUs of {worst.name} answer to no token."
        yield Advice("dead units", text, "Use model.init=he, or a norm before the activation.")


def _symmetric(model: LanguageModel, ids: Tensor) -> Iterator[Advice]:
    """Units that begin equal and get equal gradients can never differ: told where some still do not after three steps.

    One step is not enough to know: matrices of zeros that lead out of residual branches keep what stands before them waiting.
    """
    if not _equal_rows(model):
        return
    tried = copy.deepcopy(model)
    for _ in range(3):
        tried.zero_grad(set_to_none=True)
        _loss(tried, ids).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for weight in tried.parameters():
                if weight.grad is not None and bool(weight.grad.any()) and bool(weight.grad.isfinite().all()):
                    weight.sub_(0.01 * weight.grad / weight.grad.square().mean().sqrt())
    same = _equal_rows(tried)
    if same:
        more = f" and {len(same) - 1} more" if len(same) > 1 else ""
        text = f"all units of {same[0]}{more} have equal weights and get equal gradients, and will stay equal."
        yield Advice("symmetry", text, "Draw fresh weights: model.init=fan_in or xavier_uniform.")


def _equal_rows(model: nn.Module) -> list[str]:
    """Names of the matrices whose units all have the same weights, but for rounding; token tables have rows of another kind."""
    same = []
    for name, weight in model.named_parameters():
        table = name.endswith(".weight") and isinstance(_parent(model, name), nn.Embedding)
        if weight.ndim < 2 or len(weight) < 2 or table:
            continue
        rows = weight.detach().flatten(1)
        if float((rows - rows[:1]).abs().max()) <= 1e-4 * float(rows.abs().max()):
            same.append(name)
    return same


def _loss(model: LanguageModel, ids: Tensor) -> Tensor:
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def _times(ratio: float | None) -> str:
    return "to nothing" if not ratio else f"to {ratio:.1e} of itself"
