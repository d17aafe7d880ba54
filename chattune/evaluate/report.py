"""The page that tells a reader at a glance whether the model is worth talking to, and everything needed to check and repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from chattune.core import files
from chattune.core.artifact import PLAN
from chattune.core.config import flatten
from chattune.core.record import Record
from chattune.core.stage import hardware, question_of, versions
from chattune.evaluate.artifact import LOSSES, PARITY
from chattune.evaluate.forgetting import sentences
from chattune.evaluate.history import sentence as history_sentence
from chattune.evaluate.parity import sentences as parity_sentences
from chattune.evaluate.verdict import relation, said
from chattune.generate.terminal import readable

if TYPE_CHECKING:
    from chattune.dialogs.artifact import Dialogs
    from chattune.evaluate.judge import Judged
    from chattune.evaluate.stage import EvaluateConfig
    from chattune.models.checkpoint import Checkpoint
    from chattune.tokens.token_set import TokenSet

PAGE = Path(__file__).with_name("report.html")
TEXT = 600  # characters of one text on the page; the files hold all
SHOWN = 12  # answered prompts on the page
WHEN = ("before", "half-way", "after")
ORDER = (
    "bits_per_byte", "perplexity", "bleu", "chrf", "rouge_1", "rouge_2", "rouge_l", "distinct_1", "distinct_2", "repetition", "empty",
)  # fmt: skip
DIGITS = {"bits_per_byte": 3, "perplexity": 1, "bleu": 2, "chrf": 2, "length": 1}
SPLIT = {
    "train": "training dialogs", "validation": "validation dialogs", "test": "test dialogs",
    "exact_overlap": "test questions that also stand in training",
    "near_duplicate_share": "near-duplicates of training in the test split",
    "row_random_exact_overlap": "what splitting row by row would have leaked",
}  # fmt: skip


def write(
    judged: Judged, config: EvaluateConfig, seed: int, dialogs: Dialogs, tokens: TokenSet, checkpoint: Checkpoint, out: Path
) -> None:
    """Write ``replies.jsonl``, ``losses.npy``, ``recipe.yaml``, ``report.html`` and, where asked for, ``parity.jsonl`` to `out`."""
    _write_rows(out / "replies.jsonl", judged.replies)
    if "parity" in judged.summary:
        _write_rows(out / PARITY, judged.parity)
    judged.loss.save(out / LOSSES)
    own = question_of(out)["config"] if (out / PLAN).exists() else {"evaluate": config.model_dump(mode="json"), "seed": seed}
    manifests = [*dialogs.manifests(), tokens.manifest, checkpoint.manifest]
    recipe, conflicts = whole_recipe([*(manifest["config"] for manifest in manifests), own])
    files.write_atomically(out / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    home = [] if str(out.parent) == "runs" else ["--home", str(out.parent)]
    facts = {
        "run": checkpoint.path.name,
        "data": dialogs.summary,
        "training": checkpoint.manifest,
        "recipe": recipe,
        "conflicts": conflicts,
        "command": shlex.join(["chattune", "run", str(out / "recipe.yaml"), *home]),
        "chat": shlex.join(["chattune", "chat", checkpoint.path.name, *home]),
        "record": Record(checkpoint.path / "metrics.jsonl").rows(),
        "samples": Record(checkpoint.path / "samples.jsonl").rows(),
    }
    files.write_atomically(out / "report.html", page(judged.summary, judged.replies, facts))


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    import json

    files.write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def whole_recipe(configs: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """One recipe from the settings of each stage, later stages last, and the sections in which they contradict one another."""
    recipe: dict[str, Any] = {}
    conflicts = []
    for config in configs:
        for section, value in config.items():
            if section in recipe and recipe[section] != value and section not in conflicts:
                conflicts.append(section)
            recipe[section] = value
    return recipe, conflicts


def page(summary: Mapping[str, Any], replies: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """``report.html`` as text. Everything from outside is escaped; the page holds no script and loads nothing."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from chattune.evaluate.curves import curves, described

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(text=_text, said=said, count=_count, plain=_plain)
    ngram = summary["baselines"].get("ngram", {}).get("perplexity")
    drawing = curves(facts["record"], _logarithm(ngram["value"]) if ngram else None)
    return environment.from_string(PAGE.read_text(encoding="utf-8")).render(
        summary=summary,
        verdict=summary["verdict"],
        headline={"yes": "Yes", "no": "Not yet", "not sure": "Perhaps"}[summary["verdict"]["answer"]],
        systems=_systems(summary),
        scores=_score_rows(summary),
        started=_started(summary.get("started")),
        started_sentences=sentences(summary.get("started")),
        history=_history(summary.get("history")),
        parity=_parity(summary.get("parity")),
        parity_sentences=parity_sentences(summary.get("parity")),
        trial=_tried(facts["training"]["metrics"].get("trial")),
        curves=Markup(drawing) if drawing else None,  # ours: matplotlib escapes what it writes
        described=described(facts["record"]),
        samples=_samples(facts["samples"]),
        answered=[_answered(row) for row in replies[:SHOWN]],
        split=_split(summary["split"]),
        settings=flatten(facts["recipe"]),
        versions=versions(),
        hardware=hardware(),
        facts=facts,
    )


def _history(curve: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The lengths of history and what each costs, as the page shows them."""
    if not curve:
        return None
    rows = [
        {
            "context": point["context"], "value": f"{point['value']:.3f}", "interval": f"{point['low']:.3f} – {point['high']:.3f}",
            "more": f"{point['more']['value']:+.3f}", "between": f"{point['more']['low']:+.3f} – {point['more']['high']:+.3f}",
        }
        for point in curve["points"]
    ]  # fmt: skip
    return {"rows": rows, "sentence": history_sentence(curve), "conversations": curve["conversations"]}


def _parity(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One row a group that some conversation mentions: its sides, the gap, the lean, and the change by fine-tuning."""
    return [
        {
            "name": group["group"], "sides": _listed(group["sides"]), "conversations": group["conversations"],
            "cells": [
                {"value": f"{score['value']:{sign}.3f}", "interval": f"{score['low']:{sign}.3f} – {score['high']:{sign}.3f}"}
                if (score := group[key])
                else None
                for key, sign in (("gap", ""), ("lean", "+"), ("change", "+"))
            ],
        }
        for group in (found or {}).get("groups", ())
        if group["gap"]
    ]  # fmt: skip


def _listed(sides: Sequence[str]) -> str:
    return " / ".join(sides) if len(sides) < 5 else f"{' / '.join(sides[:3])} / … ({len(sides)})"


def _split(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers of the split that have a name here first, then the other plain ones; shares as percentages."""
    names = [*(name for name in SPLIT if name in found), *(name for name in found if name not in SPLIT)]
    return [
        (SPLIT.get(name, name.replace("_", " ")), f"{found[name]:.2%}" if isinstance(found[name], float) else _count(found[name]))
        for name in names
        if isinstance(found[name], (int, float))
    ]


def _systems(summary: Mapping[str, Any]) -> list[str]:
    return ["model", *summary["baselines"], *(["people"] if summary["people"] else [])]


def _score_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a metric; in each a cell for every system, with places from 0 to 100 on the row's own scale for its mark."""
    names = [*(name for name in ORDER if name in summary["metrics"]), *(name for name in summary["metrics"] if name not in ORDER)]
    rows = []
    for name in names:
        scores = {
            "model": summary["metrics"][name],
            **{baseline: found.get(name) for baseline, found in summary["baselines"].items()},
            **({"people": summary["people"].get(name)} if summary["people"] else {}),
        }
        known = [score for score in scores.values() if score]
        low, high = min(score["low"] for score in known), max(score["high"] for score in known)
        better = summary["better"].get(name, "neither")
        rows.append(
            {
                "name": name, "better": better, "note": summary["notes"].get(name, ""),
                "cells": [_cell(name, system, score, scores["model"], better, (low, high)) for system, score in scores.items()],
            }
        )  # fmt: skip
    return rows


def _cell(
    name: str, system: str, score: Mapping[str, float] | None, ours: Mapping[str, float], better: str, scale: tuple[float, float]
) -> dict[str, Any] | None:
    if score is None:
        return None
    low, high = scale
    width = high - low or 1.0
    digits = DIGITS.get(name, 3)
    how = ""
    if system not in ("model", "people") and better != "neither":
        how = {"above": "beats" if better == "higher" else "beaten", "below": "beaten" if better == "higher" else "beats"}.get(
            relation(score, ours), "level"
        )
    return {
        "value": f"{score['value']:,.{digits}f}", "interval": f"{score['low']:,.{digits}f} – {score['high']:,.{digits}f}", "how": how,
        "from": round(100 * (score["low"] - low) / width, 1), "to": round(100 * (score["high"] - low) / width, 1),
        "at": round(100 * (score["value"] - low) / width, 1),
    }  # fmt: skip


def _started(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One row for the domain and one for the general conversations: before, after and difference."""
    return [
        {
            "name": name, "dialogs": found[name]["dialogs"], "of": found[name]["of"],
            "cells": [
                {"value": f"{score['value']:{sign}.3f}", "interval": f"{score['low']:{sign}.3f} – {score['high']:{sign}.3f}"}
                for score, sign in zip((found[name][key] for key in ("before", "after", "difference")), ("", "", "+"), strict=True)
            ],
        }
        for name in ("domain", "general")
        if found and name in found
    ]  # fmt: skip


def _tried(found: Mapping[str, Any] | None) -> str:
    """The trial's figures in one line."""
    if not found:
        return ""
    return (
        f"held-out loss {found['before']:.4f} → {found['after']:.4f} nats a token, difference {found['difference']:+.4f} "
        f"[{found['low']:+.4f}, {found['high']:+.4f}] over {found['dialogs']} dialogs"
    )


def _samples(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry a prompt: what was answered before, half-way and after; the last one told counts."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if isinstance(row.get("prompt"), str) and row.get("when") in WHEN:
            found.setdefault(row["prompt"], {})[row["when"]] = row
    return [{"prompt": prompt, "replies": [(when, told.get(when)) for when in WHEN]} for prompt, told in found.items()]


def _answered(row: Mapping[str, Any]) -> dict[str, Any]:
    """The last turns of a history, and who said what then."""
    return {
        "history": row["history"][-3:],
        "earlier": max(len(row["history"]) - 3, 0),
        "said": [("people", row["reference"]), ("model", row["reply"]), *row["baselines"].items()],
    }


def _text(text: str) -> str:
    """Text from outside, made fit for a page: what cannot be seen is shown as a replacement, what is too long is cut and says so."""
    shown = readable(text)
    return shown if len(shown) <= TEXT else f"{shown[:TEXT]} … ({len(shown) - TEXT:,} more characters)"


def _count(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _plain(value: Any) -> str:
    return "none" if value is None else "on" if value is True else "off" if value is False else _text(str(value))


def _logarithm(value: float) -> float:
    import math

    return math.log(value)
