"""Two-step fine-tuning: a trial on a share of the dialogs, and the gate that opens the way to all of them.

The gate compares the held-out loss of the model to start from with that of the trial, dialog by dialog: the loss must have
fallen by more than chance explains. The whole training then begins at the start again, so that its result does not depend on
whether there was a trial.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune.core import files
from chattune.core.errors import TrialError

if TYPE_CHECKING:
    import numpy as np

    from chattune.evaluate.loss import SplitLoss
    from chattune.tokens.windows import Windows

FILE, RECORD, STATE = "trial.json", "trial.jsonl", "trial"  # verdict, metrics, and the folder for resuming within the run's own


def verdict(before: SplitLoss, after: SplitLoss, seed: int) -> dict[str, Any]:
    """The gate's figures, in nats a token over the same dialogs: ``before``, ``after``, ``difference`` with ``low`` and ``high``
    (95 %, resampling dialogs in pairs), ``dialogs``, ``tokens`` and whether it ``passed``: the whole interval lies below zero."""
    import numpy as np

    from chattune.evaluate import bootstrap

    sums = np.stack((after.nll - before.nll, before.tokens), axis=1)
    difference, low, high = bootstrap.interval(sums, bootstrap.ratio, seed)
    return {
        "passed": high < 0.0, "before": before.loss, "after": after.loss, "difference": difference, "low": low, "high": high,
        "dialogs": len(before.nll), "tokens": int(before.tokens.sum()),
    }  # fmt: skip


def said(found: dict[str, Any]) -> str:
    """The verdict in one line."""
    return (
        f"held-out loss {found['before']:.4f} → {found['after']:.4f}, difference {found['difference']:+.4f} "
        f"[{found['low']:+.4f}, {found['high']:+.4f}] over {found['dialogs']} dialogs"
    )


def require_passed(found: dict[str, Any], out: Path) -> None:
    """`TrialError` where the gate stays closed."""
    if not found["passed"]:
        raise TrialError(
            f"the trial did not improve the model: {said(found)}.", path="train.trial", value=round(found["difference"], 6),
            rule="a held-out loss that falls by more than its 95 % interval",
            hint=f"Its figures are in {out / FILE}. Bring more or better dialogs, lower train.optimizer.lr, give it a larger "
            "train.trial.fraction, or take out train.trial to train in spite of it.",
        )  # fmt: skip


def known(out: Path) -> dict[str, Any] | None:
    """The verdict of a trial that was finished before."""
    if not (out / FILE).exists():
        return None
    found: dict[str, Any] = files.read_json(out / FILE)
    return found


def share(cut: Windows, fraction: float, dialogs: int, random: np.random.Generator) -> Windows:
    """The windows of a random share of the dialogs, at least one that has any."""
    import dataclasses

    import numpy as np

    able = np.unique(cut.dialog)
    chosen = random.permutation(able)[: max(1, round(fraction * dialogs))]
    keep = np.isin(cut.dialog, chosen)
    arrays = {f.name: getattr(cut, f.name)[keep] for f in dataclasses.fields(cut) if f.name != "dropped"}
    return dataclasses.replace(cut, **arrays)
