"""Tiny Shakespeare, characters, 0.8M parameters: validation loss at equal wall time, beside nanoGPT's recipe for a processor.

Both train on the first nine tenths of the text and are judged by the loss on the whole last tenth, in windows of 64 characters
that are read one after the other. nanoGPT's recipe (4 × 128, context 64, batch 12, 2000 updates) runs first; chattune's then gets
three quarters, and a quarter, of the time that it took. The clock counts updates alone, of either; judging is outside of it.

    .venv/bin/python benchmarks/sample_efficiency.py [path=value …] [--compiled] [--rounds 1] [--shares 0.75 0.25] [--json]
"""

from __future__ import annotations

import gzip
import statistics
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from _common import Line, parser, say  # noqa: E402
from nano_loop import NanoGPT, Recipe, Shape, crops, train  # noqa: E402
from torch import Tensor  # noqa: E402

TEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "pretrain" / "tinyshakespeare.txt.gz"
CONTEXT = 64


def characters() -> tuple[Tensor, Tensor, int]:
    """Training and validation ids (the last tenth), and the number of different characters."""
    if not TEXT.exists():
        sys.exit(f"{TEXT.name} is missing: it belongs into shared/data/pretrain beside the repository")
    text = gzip.decompress(TEXT.read_bytes()).decode()
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([alphabet[character] for character in text])
    cut = len(ids) * 9 // 10
    return ids[:cut], ids[cut:], len(alphabet)


@torch.no_grad()
def loss_on(ids: Tensor, model: torch.nn.Module) -> float:
    """Mean nats a character over all of `ids` but the first, in windows of `CONTEXT`."""
    model.eval()
    total, count = 0.0, 0
    pieces = [ids[first : first + CONTEXT + 1] for first in range(0, len(ids) - 1, CONTEXT)]
    full = [piece for piece in pieces if len(piece) == CONTEXT + 1]
    groups = [torch.stack(full[first : first + 128]) for first in range(0, len(full), 128)]
    for group in [*groups, *(piece[None] for piece in pieces if len(piece) <= CONTEXT)]:
        nll = F.cross_entropy(model(group[:, :-1]).float().flatten(0, 1), group[:, 1:].flatten(), reduction="sum")
        total, count = total + float(nll), count + group[:, 1:].numel()
    return total / count


def nano(training: Tensor, validation: Tensor, vocabulary: int, seed: int) -> tuple[float, float]:
    """Seconds and loss of nanoGPT's recipe."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model, recipe = NanoGPT(Shape(4, 4, 128, CONTEXT, vocabulary)), Recipe()
    times = train(model, recipe, lambda: crops(training, recipe.rows, CONTEXT, random))
    return sum(times), loss_on(validation, model)


class Crops:
    """Batch `index` holds `rows` crops at places that follow from the seed and the index alone."""

    def __init__(self, ids: Tensor, rows: int, seed: int) -> None:
        self.ids, self.rows, self.seed, self.index = ids, rows, seed, 0
        self.places = torch.arange(CONTEXT).expand(rows, -1).contiguous()
        self.segments = torch.zeros_like(self.places, dtype=torch.int32)
        self.weights = torch.ones(rows, CONTEXT)

    def next(self):  # type: ignore[no-untyped-def]
        from chattune.core.seeds import derived
        from chattune.tokens.batch import Batch

        random = torch.Generator().manual_seed(derived(self.seed, "order", self.index))
        self.index += 1
        return Batch(*crops(self.ids, self.rows, CONTEXT, random), self.weights, self.places, self.segments)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": 0, "index": self.index}

    def load_state_dict(self, state) -> None:  # type: ignore[no-untyped-def]
        self.index = int(state["index"])


RECIPE = {
    "rows": 16,
    "model": {
        "layers": 4, "width": 128, "heads": 2, "hidden": 512, "context": CONTEXT, "activation": "relu_squared", "logit_softcap": 30.0,
    },
    "train": {
        "optimizer": {"name": "muon", "lr": 0.02, "adamw_lr": 0.01, "weight_decay": 0.0},
        "schedule": {"name": "warmup_stable_decay", "decay": 0.8},
    },
}  # fmt: skip


def ours(
    training: Tensor, validation: Tensor, vocabulary: int, seed: int, seconds: float, overrides: list[str], compiled: bool
) -> tuple[float, float, int]:
    """Seconds, loss and updates of chattune's own loop within `seconds` of updates; its schedule follows the clock."""
    from chattune.core.config import override
    from chattune.models.families.gpt import GPT
    from chattune.train import device
    from chattune.train.budget import Budget
    from chattune.train.config import TrainConfig
    from chattune.train.loop import Training

    recipe = override(RECIPE, overrides)
    config = TrainConfig.model_validate({**recipe["train"], "minutes": seconds / 60})
    model = GPT.model_validate(recipe["model"]).build(vocabulary, seed).train()
    order = Crops(training, recipe["rows"], seed)
    if compiled:  # code that an earlier run compiled and kept is only loaded; either is outside of the clock
        model.hidden = device.compiled(model)  # type: ignore[method-assign]
        config.objective.view(model, order.next()).loss.backward()
        order.index = 0
    loop = Training(config, device.Worker(model, "float32"), order, Budget(seconds=seconds), seed)
    while loop.state.seconds < seconds:
        began = time.perf_counter()
        loop.step()
        loop.state.seconds += time.perf_counter() - began
    model.__dict__.pop("hidden", None)
    return loop.state.seconds, loss_on(validation, model), loop.state.step


def main() -> None:
    options = parser(__doc__ or "", peers=False)
    options.set_defaults(rounds=1)
    options.add_argument("--shares", type=float, nargs="+", default=[0.75, 0.25], help="shares of nanoGPT's time that chattune gets")
    options.add_argument("--compiled", action="store_true", help="chattune's model compiled; compiling is outside of the clock")
    options.add_argument("overrides", nargs="*", help="changes of chattune's recipe, as rows=32 or train.optimizer.lr=0.03")
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    training, validation, vocabulary = characters()
    bars = {0.75: (1.64, 1.55), 0.25: (1.914, None), 0.1: (None, 1.914)}  # loss that must be reached, and the moonshot's
    theirs, mine = [], {share: [] for share in chosen.shares}
    for seed in range(chosen.rounds):
        theirs.append(nano(training, validation, vocabulary, seed))
        for share in chosen.shares:
            mine[share].append(ours(training, validation, vocabulary, seed, share * theirs[-1][0], chosen.overrides, chosen.compiled))
    seconds, loss = (statistics.median(found) for found in zip(*theirs, strict=True))
    print(f"nanoGPT's recipe: {seconds:.1f} s, loss {loss:.3f}", file=sys.stderr)
    for share, found in mine.items():
        used, reached, steps = (statistics.median(part) for part in zip(*found, strict=True))
        must, moonshot = bars.get(share, (None, None))
        aim = "".join(f", {name} {value:g}" for name, value in (("bar", must), ("moonshot", moonshot)) if value is not None)
        print(f"chattune in {used:.1f} s ({share:g} of it): {steps:.0f} updates, loss {reached:.3f}{aim}", file=sys.stderr)
        say(Line(f"sample_efficiency, {share:g} time", "nanoGPT's recipe, loss", loss / reached, None if must is None else loss / must,
                 None if moonshot is None else loss / moonshot, reached, loss, "nats"), chosen.json)  # fmt: skip


if __name__ == "__main__":
    main()
