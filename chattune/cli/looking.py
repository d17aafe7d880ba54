"""Commands that look: runs, show, diff, compare, tree, list, explain, env."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from chattune import story
from chattune.cli import cards
from chattune.cli.answer import USUAL, Answer, Common, interval, number, plain, table
from chattune.core import files
from chattune.core.artifact import MANIFEST, Home
from chattune.core.errors import ArtifactError
from chattune.core.part import iterate_parts, kind, kinds
from chattune.core.progress import duration
from chattune.core.stage import differing, hardware, question_of, versions


def runs(*, common: Common = USUAL) -> Answer:
    """List every run, finished or not."""
    home = Home(common.home)
    names: dict[str, list[str]] = {}
    for name, run in home.names().items():
        names.setdefault(run, []).append(name)
    found = []
    for path in home.runs():
        manifest = files.read_json(path / MANIFEST) if (path / MANIFEST).exists() else {}
        found.append(
            {
                "run": path.name, "stage": question_of(path)["stage"], "names": names.get(path.name, []), "finished": bool(manifest),
                "when": manifest.get("finished"), "seconds": manifest.get("seconds"),
                "bytes": sum(item["size"] for item in manifest.get("outputs", {}).values()),
            }
        )  # fmt: skip
    if not found:
        return Answer(f"No runs in {common.home}. Make one with `chattune demo`.", {"runs": []})
    rows = [
        (r["run"], ", ".join(r["names"]) or "–", r["when"] or "unfinished", duration(r["seconds"] or 0), files.size(r["bytes"]))
        for r in found
    ]
    return Answer(table(rows, ("run", "names", "finished", "time", "size"), right=(3, 4)), {"runs": found})


def show(run: str, /, *, common: Common = USUAL) -> Answer:
    """Show what came out of a run: scores beside the baselines, counts, times, the report's path.

    Parameters
    ----------
    run
        a path, a name, or the beginning of a digest
    """
    told = story.summary(run, common.home)
    return Answer(evaluation_card(told), told)


def diff(a: str, b: str, /, *, common: Common = USUAL) -> Answer:
    """Print the settings, sources and metrics in which two runs of one stage differ.

    Parameters
    ----------
    a
        one run
    b
        the other run
    """
    first, second = (Home(common.home).find(reference) for reference in (a, b))
    questions = [question_of(path) for path in (first, second)]
    if questions[0]["stage"] != questions[1]["stage"]:
        raise ArtifactError(
            f"{first.name} and {second.name} are runs of different stages.", rule="two runs of one stage",
            hint="See `chattune tree RUN`.",
        )
    # The whole lineage counts: two trainings on different data differ there, though their own settings agree.
    settings = differing(*(_settings_of_lineage(path) for path in (first, second)))
    metrics = differing(*(story.summary(path).get("metrics") or _metrics(path) for path in (first, second)))
    rows = [(path, number(x), number(y)) for path, x, y in [*settings, *metrics]]
    data = {
        "runs": [str(first), str(second)],
        "settings": {path: [x, y] for path, x, y in settings},
        "metrics": {path: [x, y] for path, x, y in metrics},
    }
    return Answer(table(rows, ("path", first.name, second.name)) if rows else "No difference.", data)


def compare(
    *runs: str, html: Annotated[Path | None, Parameter(help="write the comparison as a page, too")] = None, common: Common = USUAL,
) -> Answer:
    """Compare models on the same test conversations: bits per byte, paired differences to the first, and what each one cost.

    Parameters
    ----------
    runs
        two or more train or evaluate runs: paths, names, or beginnings of digests
    """
    from chattune.evaluate import compare as comparing

    found = story.compare(runs, common.home)
    rows = [
        (
            row["name"], row["family"], interval(row["bits_per_byte"]), comparing.difference_in_words(row),
            *(comparing.shown(row, cost) for cost in COSTS),
        )
        for row in found["runs"]
    ]  # fmt: skip
    lines = [
        f"{found['test']['conversations']:,} test conversations, {found['test']['bytes']:,} bytes to predict",
        "",
        table(rows, ("run", "family", "bits per byte", "difference to the first", *COSTS.values()), right=range(4, 4 + len(COSTS))),
    ]
    if sentence := comparing.advice(found["capacity"]):
        lines += ["", sentence]
    if html is not None:
        files.write_atomically(html, comparing.page(found))
        lines += ["", f"page  {html}"]
    return Answer(plain("\n".join(lines)), {**found, "html": str(html) if html else None})


def tree(run: str, /, *, common: Common = USUAL) -> Answer:
    """Print what a run was made from, back to the raw logs.

    Parameters
    ----------
    run
        a path, a name, or the beginning of a digest
    """
    address = Home(common.home).find(run)
    data = _tree(address)
    return Answer("\n".join(_tree_lines(data)), data)


def list_(kind_name: str | None = None, /, *, common: Common = USUAL) -> Answer:
    """List the kinds of parts, the parts of one kind, or the shipped recipes.

    Parameters
    ----------
    kind_name
        a kind such as regularizers, or recipes; nothing: every kind
    """
    if kind_name == "recipes":
        recipes = {path.stem: _first_comment(path) for path in sorted(story.RECIPES.glob("*.yaml"))}
        return Answer(table(recipes.items()), {"recipes": recipes})
    if kind_name is None:
        rows = [(name, str(len(k.names())), cards.meaning(k)) for name, k in kinds().items()]
        data = {name: {"meaning": cards.meaning(k), "parts": k.names()} for name, k in kinds().items()}
        count = sum(1 for _ in iterate_parts())
        hint = f"{count} parts. `chattune list KIND` names them, `chattune list recipes` the recipes."
        return Answer(f"{table(rows, ('kind', 'parts', 'meaning'), right=(1,))}\n\n{hint}", {"kinds": data})
    chosen = kind(kind_name)
    parts = {name: chosen.summary(name) for name in chosen.names()}
    return Answer(f"{cards.meaning(chosen)}\n\n{table(parts.items())}", {"kind": chosen.name, "parts": parts})


def explain(name: str, /, *, common: Common = USUAL) -> Answer:
    """Explain a part, a kind or a setting: its card, defaults, limits and search range.

    Parameters
    ----------
    name
        a part (label_smoothing), a kind (optimizers), kind/part, or a dotted path (train.optimizer.lr)
    """
    found = cards.explain(name)
    return Answer("\n\n".join(cards.card_text(card) for card in found), {"cards": found})


def init_report(
    recipe: str, /, *overrides: str, plot: Annotated[Path | None, Parameter(help="draw it: a .svg, .png or .html file")] = None,
    common: Common = USUAL,
) -> Answer:
    """Show what fresh weights do: signal, saturation and gradient of each layer, and what is wrong with them.

    Parameters
    ----------
    recipe
        a YAML file, or the name of a shipped recipe; its tokens are used where they are prepared, else random ones
    overrides
        settings to change, as path=value
    """
    chosen = story.Recipe.read(recipe, overrides)
    story.say_derived(chosen)
    tokens = story.prepared(chosen, Home(common.home))
    from chattune.models import init_report as fresh

    family = chosen.sections["model"]
    vocabulary = tokens.tokenizer.vocabulary if tokens else story.planned_vocabulary(chosen)
    ids, what = fresh.batch(vocabulary, family.context_length(), tokens.split("train") if tokens else None)
    found = fresh.look(family.build(vocabulary, chosen.sections["seed"]), ids)
    if plot is not None:
        fresh.draw(found, plot)
    rows = [
        (one.name, f"{one.variance:.3g}", f"{one.signal:.3g}", _share(one.saturated), _share(one.dead), f"{one.gradient:.3g}")
        for one in found.layers
    ]
    ends = [
        ("batch", what),
        ("loss", f"{found.loss:.3f}; an even guess has {found.even_loss:.3f}"),
        ("signal, last layer over first", _times(found.signal_ratio)),
        ("gradient, first layer over last", _times(found.gradient_ratio)),
        *(("warning", str(advice)) for advice in found.warnings),
        *([("plot", str(plot))] if plot is not None else []),
    ]
    head = ("layer", "variance", "signal", "saturated", "dead", "gradient")
    data = {"batch": what, **found.as_json(), "plot": None if plot is None else str(plot)}
    return Answer(plain(f"{table(rows, head, right=range(1, 6))}\n\n{table(ends)}"), data)


def env(*, common: Common = USUAL) -> Answer:
    """Show versions, cores, memory, device and disk, and how large a model this machine can train."""
    import torch

    machine = hardware()
    free = shutil.disk_usage(next(p for p in (common.home, *common.home.absolute().parents) if p.exists())).free
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name(0) if cuda else "cpu"
    memory = torch.cuda.mem_get_info(0)[0] if cuda else available_memory()
    flops = matmul_rate(torch.device("cuda" if cuda else "cpu"))
    # 16 bytes a parameter (weight, gradient, two moments in float32), and as much again for activations at small batches.
    fits = int(memory / 32)
    # Compute-optimal training sees about 20 tokens a parameter at 6 operations each; a third of the measured peak is usual.
    hour = int((3600 * flops / 3 / 6 / 20) ** 0.5)
    data: dict[str, Any] = {
        "versions": versions(), **machine, "device": device, "memory_available_bytes": memory, "disk_free_bytes": free,
        "matmul_gflops": round(flops / 1e9, 1), "parameters_that_fit": fits, "parameters_in_an_hour": hour,
        "threads": torch.get_num_threads(), "variables": {k: v for k, v in sorted(os.environ.items()) if k in VARIABLES},
    }  # fmt: skip
    rows = [
        *((name, version) for name, version in data["versions"].items()),
        ("cores", f"{machine['cores']} ({machine['machine']}, {machine['system']}), {data['threads']} threads"),
        ("memory", f"{files.size(memory)} available of {files.size(machine['memory_bytes'])}"),
        ("disk", f"{files.size(free)} free for {common.home}"),
        ("device", f"{device}, {data['matmul_gflops']} GFLOP/s measured on a float32 matrix product"),
        *data["variables"].items(),
    ]
    sentence = (
        f"You can train up to ~{millions(fits)} parameters here before memory runs out; "
        f"an hour of training suits ~{millions(hour)} (20 tokens a parameter)."
    )
    return Answer(f"{table(rows)}\n\n{sentence}", data)


COSTS = {
    "parameters": "parameters", "operations": "operations/token", "tokens": "tokens seen", "tokens_per_second": "tokens/s",
    "memory_bytes": "peak memory", "train_seconds": "training",
}  # fmt: skip
LEAKS = "{:.1%} of the test questions stand in training too, {:.1%} nearly (a row-random split: {:.1%})"
VARIABLES = ("CUDA_VISIBLE_DEVICES", "FORCE_COLOR", "NO_COLOR", "OMP_NUM_THREADS", "RANK", "WORLD_SIZE")


def available_memory() -> int:
    """Bytes that a new process can use: what the kernel calls available, under the control group's limit."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = next((row for row in meminfo.read_text().splitlines() if row.startswith("MemAvailable:")), "")
        available = int(line.split()[1]) * 1024 if line else available
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        files_of_group = Path("/sys/fs/cgroup", limit), Path("/sys/fs/cgroup", used)
        if all(file.exists() for file in files_of_group):
            words = [file.read_text().strip() for file in files_of_group]
            if words[0].isdigit():
                available = min(available, int(words[0]) - int(words[1]))
    return available


def matmul_rate(device: Any) -> float:
    """Floating-point operations a second of a 1024³ float32 matrix product, the best of a few within 0.3 s."""
    import time

    import torch

    x = torch.ones(1024, 1024, device=device)
    best, until = float("inf"), time.perf_counter() + 0.3
    while time.perf_counter() < until:
        began = time.perf_counter()
        float((x @ x)[0, 0])  # reading one number waits for the device
        best = min(best, time.perf_counter() - began)
    return float(2 * 1024**3 / best)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.3g}×"


def millions(count: float) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.3g}M"


def evaluation_card(told: Mapping[str, Any]) -> str:
    """The summary of a run for people: scores beside the baselines first."""
    state = "" if told["finished"] else f"  (unfinished: `chattune resume {Path(told['run']).name}`)"
    lines = [f"{told['stage']}  {told['run']}{state}"]
    metrics, baselines = told.get("metrics") or {}, told.get("baselines") or {}
    if metrics and all(isinstance(score, dict) for score in metrics.values()):
        names = list(baselines)
        rows = [(metric, interval(score), *(interval(baselines[b].get(metric)) for b in names)) for metric, score in metrics.items()]
        lines += ["", table(rows, ("metric", "this model", *(name.replace("_", " ") for name in names)))]
    split, counts = told.get("split") or {}, told.get("counts") or {}
    verdict = told.get("stages", {}).get("evaluate", {}).get("verdict")
    if verdict:
        lines += ["", f"Worth talking to? {verdict['answer']}. {verdict['text']}"]
    if parity := told.get("stages", {}).get("evaluate", {}).get("parity"):
        from chattune.evaluate.parity import sentences

        lines += ["", *sentences(parity)]
    facts = []
    if told.get("parameters"):
        facts.append(("parameters", number(told["parameters"])))
    if split:
        facts += [
            ("split", "  ".join(f"{name} {number(split[name])}" for name in ("train", "validation", "test"))),
            ("leaks", LEAKS.format(split["exact_overlap"], split["near_duplicate_share"], split["row_random_exact_overlap"])),
        ]
    if counts:
        dropped = ", ".join(f"{reason} {n}" for reason, n in counts.get("dropped", {}).items()) or "none"
        facts.append(("dialogs", f"read {number(counts.get('read'))}, kept {number(counts.get('kept'))}, dropped: {dropped}"))
    if told.get("seconds", {}).get("total"):
        took = [f"{name} {duration(told['seconds'][name])}" for name in (*story.STORY, "total") if name in told["seconds"]]
        facts.append(("time", "  ".join(took)))
    if told.get("report"):
        facts.append(("report", told["report"]))
    return plain("\n".join([*lines, "", table(facts)] if facts else lines))


def _settings_of_lineage(address: Path) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for path in reversed(story.lineage(address)):
        question = question_of(path)
        merged |= question["config"] | {f"sources of {section}": value for section, value in question["sources"].items()}
    return merged


def _metrics(address: Path) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(address / MANIFEST)["metrics"] if (address / MANIFEST).exists() else {}
    return found


def _tree(address: Path) -> dict[str, Any]:
    question = question_of(address)
    sources = [path for facts in question["sources"].values() for path in (facts if isinstance(facts, (dict, list)) else [facts])]
    return {
        "run": address.name, "stage": question["stage"], "finished": (address / MANIFEST).exists(),
        "sources": [str(source) for source in sources],
        "inputs": {name: _tree(address.parent / entry["run"]) for name, entry in question["inputs"].items()},
    }  # fmt: skip


def _tree_lines(node: dict[str, Any], indent: str = "") -> list[str]:
    lines = [f"{indent}{node['run']}" + ("" if node["finished"] else "  (unfinished)")]
    deeper = f"{' ' * len(indent)}└─ "
    lines += [f"{deeper}{plain(source)}" for source in node["sources"]]
    for inner in node["inputs"].values():
        lines += _tree_lines(inner, deeper)
    return lines


def _first_comment(path: Path) -> str:
    line = path.read_text("utf-8").split("\n", 1)[0]
    return line.lstrip("# ").rstrip()
