"""The data report: what is in the dialogs, what became of those that are not, what to be careful about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chattune.core import files
from chattune.core.errors import DataError
from chattune.core.seeds import generator
from chattune.dialogs.artifact import SPLITS, Dialogs
from chattune.dialogs.description import Tally
from chattune.dialogs.dialog import Dialog
from chattune.dialogs.features import dialog_shift
from chattune.dialogs.features import drawn as sampled
from chattune.dialogs.gathering import Wanted, read_sources
from chattune.dialogs.quality import Usual, quality
from chattune.dialogs.shape import Shaped, shaped
from chattune.tokens.token_set import TokenSet

PAGE = Path(__file__).with_name("survey.html")
SHOWN = 20  # places of what was dropped, for each reason
_LEAST = 20  # dialogs on either side


def surveyed(
    dialogs: Dialogs, tokens: TokenSet | None, *, sample: int, topics: int, against: Sequence[str], seed: int
) -> dict[str, Any]:
    """Everything that the page shows, as plain data."""
    tallies, drawn = {}, {}
    for name in SPLITS:
        tallies[name], drawn[name] = _seen(dialogs.read(name), sample, generator(seed, "survey", name))
    new = sampled(_read(against), sample, generator(seed, "survey", "against")) if against else []
    summary = dialogs.summary
    found: dict[str, Any] = {
        "counts": summary["counts"], "messages": summary["messages"], "sources": summary["sources"], "split": summary["split"],
        "dropped": _places(dialogs), "splits": {name: tally.told() for name, tally in tallies.items()},
        "topics": _topics(drawn["train"], topics, seed), "quality": _quality(drawn["train"]),
        "cleaners": summary.get("cleaners", []), "balance": summary.get("balance"), "augment": summary.get("augment", []),
        "shift": _shifts(drawn, new, seed), "sample": _masked(tokens) if tokens is not None else None, "sampled": len(drawn["train"]),
    }  # fmt: skip
    found["cautions"] = cautions(found)
    return found


def cautions(found: Mapping[str, Any]) -> list[str]:
    """What to be careful about, a sentence each."""
    said = []
    counts, split, train = found["counts"], found["split"], found["splits"]["train"]
    if (lost := counts["read"] - counts["kept"]) > counts["read"] / 4:
        reason, count = max(counts["dropped"].items(), key=lambda item: item[1])
        said.append(f"{lost / counts['read']:.0%} of what was read is not kept, most of it for one reason: {reason} ({count}).")
    if split["exact_overlap"] > 0.005 or split["near_duplicate_share"] > 0.005:
        said.append(
            f"{split['near_duplicate_share']:.1%} of the test's questions stand in training, nearly or exactly: scores will flatter."
        )
    if train["dialogs"] < 500:
        said.append(f"{train['dialogs']} training dialogs are few: prefer fine-tuning a pretrained model.")
    for name, shares in (("source", train["sources"]), ("writing", train["writing"]), ("topic", found["topics"]["sizes"])):
        if len(shares) > 1 and (ratio := max(shares.values()) / max(1, min(shares.values()))) > 20:
            said.append(f"The largest {name} has {ratio:.0f} times the dialogs of the smallest: see the balancers.")
    if found["topics"]["empty"]:
        some = ", ".join(f"{topic} in {source}" for topic, source in found["topics"]["empty"][:3])
        said.append(f"Some topics stand in one source only: there is no {some}.")
    for name, shift in found["shift"].items():
        if shift["shifted"]:
            worst = shift["features"][0]["name"] if shift["features"] else "their words"
            said.append(f"{name} differ more than chance allows (p = {shift['p']:.2g}), most in {worst}.")
    diversity = train["diversity"]
    if diversity["words"] > 10_000 and diversity["entropy_bits"] < 6:
        said.append(f"Replies are monotonous: {diversity['entropy_bits']:.1f} bits a word, where talk usually has 9 to 10.")
    low = found["quality"]["below_half"]
    if low > 0.02:
        said.append(f"{low:.1%} of the training dialogs score below 0.5 in quality: see the cleaner quality.")
    return said


def write(found: Mapping[str, Any], run: str, out: Path) -> None:
    """``data_report.html``: one page, no script, nothing from elsewhere."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(count=lambda value: f"{value:,}", bars=_bars, percent=lambda value: f"{value:.1%}")
    page = environment.from_string(PAGE.read_text(encoding="utf-8")).render(found=found, run=run, names=SPLITS)
    files.write_atomically(out / "data_report.html", page)


def _bars(shares: Mapping[str, float]) -> list[dict[str, Any]]:
    """Rows of a bar chart: a name, a number, and its share of the largest in percent."""
    most = max(shares.values(), default=0) or 1
    total = sum(shares.values()) or 1
    return [{"name": str(n), "value": v, "width": round(100 * v / most, 1), "share": v / total} for n, v in shares.items()]


def _seen(dialogs: Iterable[Dialog], sample: int, random: np.random.Generator) -> tuple[Tally, list[Dialog]]:
    tally = Tally()

    def counted() -> Iterable[Dialog]:
        for dialog in dialogs:
            tally.see(dialog)
            yield dialog

    return tally, sampled(counted(), sample, random)


def _read(sources: Sequence[str]) -> Iterable[Dialog]:
    for item in read_sources(Wanted(sources)):
        if isinstance(item, Dialog) and isinstance(found := shaped(item), Shaped):
            yield found.dialog


def _places(dialogs: Dialogs) -> dict[str, list[dict[str, Any]]]:
    """For each reason the first places at which something was dropped for it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for drop in dialogs.drops():
        own = found.setdefault(drop.reason, [])
        if len(own) < SHOWN:
            own.append({"file": drop.file, "line": drop.line, "detail": drop.detail})
    return dict(sorted(found.items()))


def _asked(dialog: Dialog) -> str:
    return " ".join(message.content for message in dialog.messages if message.role == "user")[:2000]


def _topics(dialogs: Sequence[Dialog], count: int, seed: int) -> dict[str, Any]:
    """Clusters of what users ask about, by name: their sizes, over sources, and the cells of that table that are empty."""
    from chattune.features.embedding import fit
    from chattune.features.topics import clusters, names

    nothing: dict[str, Any] = {"sizes": {}, "table": {}, "empty": []}
    if len(dialogs) < _LEAST:
        return nothing
    texts = [_asked(dialog) for dialog in dialogs]
    try:
        rows = fit(texts, size=64, seed=seed).encode(texts)
    except DataError:  # texts that have no words in common have no topics either
        return nothing
    _, numbers = clusters(rows, min(count, len(dialogs) // 5), seed)
    called = names(texts, numbers)
    table = Counter((called[number], dialog.source) for number, dialog in zip(numbers.tolist(), dialogs, strict=True))
    sources = sorted({dialog.source for dialog in dialogs})
    sizes = Counter(called[number] for number in numbers.tolist())
    return {
        "sizes": dict(sizes.most_common()), "table": {f"{topic} · {source}": n for (topic, source), n in sorted(table.items())},
        "empty": [(topic, source) for topic in sorted(called) for source in sources if not table[topic, source]],
    }  # fmt: skip


def _quality(dialogs: Sequence[Dialog]) -> dict[str, Any]:
    usual = Usual("\n".join(m.content for m in dialog.messages if m.role == "assistant") for dialog in dialogs)
    scores = [quality(dialog, usual) for dialog in dialogs]
    edges = np.linspace(0, 1, 11)
    counted = np.histogram([score.score for score in scores], edges)[0].tolist()
    return {
        "scores": {f"{low:.1f}–{high:.1f}": n for low, high, n in zip(edges[:-1], edges[1:], counted, strict=True)},
        "worst": dict(Counter(score.worst for score in scores if score.score < 0.5).most_common()),
        "below_half": float(np.mean([score.score < 0.5 for score in scores])) if scores else 0.0,
    }


def _shifts(drawn: Mapping[str, list[Dialog]], new: list[Dialog], seed: int) -> dict[str, dict[str, Any]]:
    """Training beside validation, test and new logs."""
    train = drawn["train"]
    others = {"Training and validation": drawn["validation"], "Training and test": drawn["test"], "Training and the new logs": new}
    return {
        name: dialog_shift(train, other, seed).told(6) for name, other in others.items() if min(len(train), len(other)) >= _LEAST
    }


def _masked(tokens: TokenSet) -> list[dict[str, Any]]:
    """The first training dialog as the model reads it: pieces of text, each with whether it is learned."""
    split = tokens.split("train")
    ids, weights = split.ids[split.offsets[0] : split.offsets[1]].tolist(), split.weights[split.offsets[0] : split.offsets[1]].tolist()
    names = {number: f"<|{name}|>" for name, number in tokens.tokenizer.control.items()}
    pieces: list[dict[str, Any]] = []
    run: list[int] = []
    state: tuple[bool, bool] | None = None

    def close() -> None:
        if run and state is not None:
            text = "".join(names[i] for i in run) if state[1] else tokens.tokenizer.decode(run)
            pieces.append({"text": text, "learned": state[0], "control": state[1]})

    for number, weight in zip(ids[:400], weights[:400], strict=True):
        now = (weight > 0, number in names)
        if now != state:
            close()
            run, state = [], now
        run.append(number)
    close()
    return pieces
