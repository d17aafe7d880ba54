"""The evaluate stage on tiny real models and dialogs: losses that count every token once, honest intervals, a page that is safe."""

from __future__ import annotations

import html.parser
import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chattune.core.artifact import Home
from chattune.core.errors import ArtifactError, SettingError
from chattune.core.stage import execute, load_stage, plan
from chattune.dialogs.dialog import Dialog, Message
from chattune.evaluate.artifact import Report
from chattune.evaluate.exchanges import chosen, exchanges
from chattune.evaluate.verdict import relation, verdict
from chattune.story import Recipe

PAYLOAD = "</script><script>alert('x')</script><img src=x onerror=alert(1)> {{ 7*7 }} \x1b[31m\u202e"
SYLLABLES = ["ba", "do", "ke", "mi", "nu", "ra", "so", "ti", "wo", "zu"]


def talk(number: int) -> list[dict[str, str]]:
    """A dialog of made-up words that shares no question with another."""
    random = np.random.default_rng(number)
    turns = []
    for _ in range(1 + number % 3):
        for role in ("user", "assistant"):
            words = ["".join(random.choice(SYLLABLES, size=3)) for _ in range(5)]
            turns.append({"role": role, "content": " ".join(words)})
    return turns


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a whole tiny story: 120 dialogs, a model of some thousand weights, its evaluation."""
    folder = tmp_path_factory.mktemp("evaluate")
    lines = [json.dumps({"messages": talk(number)}) for number in range(118)]
    for place in range(2):
        hostile = [{"role": "user", "content": f"{PAYLOAD} {place}"}, {"role": "assistant", "content": f"{PAYLOAD} answer {place}"}]
        lines.append(json.dumps({"messages": hostile}))
    (folder / "talks.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def report(home: Path) -> Report:
    recipe = Recipe.read(
        {
            "collect": {"sources": [str(home / "talks.jsonl")]},
            "prepare": {"vocabulary": 300},
            "model": {"size": "micro", "layers": 1, "width": 32, "heads": 1, "context": 48},
            "train": {
                "steps": 4, "batch_tokens": 256, "precision": "float32", "compile": "off", "threads": 1, "evaluations": 2,
                "prompts": ["hello", PAYLOAD],
            },
            "evaluate": {"replies": 8, "sampling": {"max_tokens": 48}},
        }
    )  # fmt: skip
    place, made = Home(home / "runs"), []
    for name in ("collect", "split", "prepare", "train", "evaluate"):
        stage = load_stage(name)
        inputs = {
            parameter: next((a for a in made if isinstance(a, kind)), None) if not (optional and name == "train") else None
            for parameter, (kind, optional) in stage.inputs.items()
        }
        made.append(execute(plan(stage, recipe.of(stage), inputs, place)))
    assert isinstance(made[-1], Report)
    return made[-1]


# --- exchanges and prompts


def dialog(name: str, *turns: tuple[str, str]) -> Dialog:
    return Dialog(name, tuple(Message(role, content) for role, content in turns))


def test_exchanges_are_answered_turns_only() -> None:
    opens = [("assistant", "hi"), ("user", "who?"), ("user", "you?"), ("assistant", "me"), ("user", "ok"), ("assistant", " ")]
    found = list(exchanges([dialog("a", *opens)]))
    assert [(exchange.question, exchange.reply) for exchange in found] == [("who?\nyou?", "me")]
    assert [message.content for message in found[0].history] == ["hi", "who?", "you?"]


def test_prompts_are_drawn_by_the_seed_one_a_conversation() -> None:
    dialogs = [
        dialog(f"d{n}", ("user", f"q{n}"), ("assistant", f"a{n}"), ("user", "more"), ("assistant", f"b{n}")) for n in range(30)
    ]
    every, without = chosen([*dialogs, dialog("mute", ("user", "hello"))], 100, 0, lambda exchange: exchange.reply != "b3")
    assert len(every) == 30 == len({exchange.conversation for exchange in every})
    assert without == 1
    assert {exchange.reply[0] for exchange in every} == {"a", "b"}
    fewer, _ = chosen(dialogs[::-1], 10, 0, lambda exchange: exchange.reply != "b3")
    assert fewer == every[:10]
    assert chosen(dialogs, 10, 1, lambda exchange: True)[0] != fewer


# --- the verdict


def score(value: float, width: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def judged(bits: float, *, difference: float = 0.0, **others: float) -> dict[str, Any]:
    replies = {"bleu": 5.0, "chrf": 20.0, "rouge_l": 0.2, "empty": 0.0, "repetition": 0.0, **others}
    metrics = {"bits_per_byte": score(bits), **{name: score(value) for name, value in replies.items()}}
    baselines = {
        "ngram": {"bits_per_byte": score(1.66)},
        "retrieval": {"bleu": score(4.0), "chrf": score(19.0), "rouge_l": score(0.15)},
    }
    return verdict(metrics, baselines, {"repetition": score(0.02), "empty": score(0.0)}, score(difference, 0.005))


@pytest.mark.parametrize(
    ("found", "answer", "against"),
    [
        (judged(1.60), "yes", "better"),
        (judged(1.65, difference=-0.01), "yes", "slightly better"),
        (judged(1.655), "not sure", "level"),
        (judged(1.665, difference=0.01), "not sure", "slightly worse"),
        (judged(1.75), "no", "worse"),
        (judged(1.60, empty=0.3), "no", "better"),
        (judged(1.60, repetition=0.5), "no", "better"),
        (judged(1.60, bleu=1.0, chrf=9.0, rouge_l=0.05), "not sure", "better"),
        (judged(1.60, bleu=1.0, chrf=9.0, rouge_l=0.16), "yes", "better"),
    ],
)
def test_the_verdict_follows_from_the_figures(found: dict[str, Any], answer: str, against: str) -> None:
    assert (found["answer"], found["against_ngram"]) == (answer, against)
    assert found["text"]
    assert "1.660" in found["reasons"][0]


def test_the_verdict_does_without_what_was_not_measured() -> None:
    alone = verdict({"bits_per_byte": score(1.5)}, {}, {}, None)
    assert (alone["answer"], alone["against_ngram"]) == ("not sure", "unknown")
    silent = verdict({"bits_per_byte": score(1.5)}, {"ngram": {"bits_per_byte": score(1.7)}}, {}, score(-0.2))
    assert silent["answer"] == "not sure"


def test_only_intervals_that_do_not_touch_tell_a_difference() -> None:
    assert relation(score(1.0), score(1.01)) == "level with"
    assert relation(score(1.0), score(1.03)) == "below"
    assert relation(score(1.03), score(1.0)) == "above"


# --- the whole stage


def is_score(data: Any) -> bool:
    return set(data) == {"value", "low", "high"} and data["low"] <= data["value"] <= data["high"]


@pytest.mark.requirement("R178", "R179")
def test_the_summary_holds_what_machines_read(report: Report) -> None:
    summary = report.summary
    for name in ("bits_per_byte", "perplexity", "bleu", "chrf", "rouge_l", "distinct_2", "repetition", "empty"):
        assert is_score(summary["metrics"][name])
    assert is_score(summary["baselines"]["ngram"]["bits_per_byte"])
    assert is_score(summary["baselines"]["ngram"]["perplexity"])
    for baseline in ("ngram", "retrieval", "most_frequent"):
        assert is_score(summary["baselines"][baseline]["bleu"])
    assert is_score(summary["people"]["repetition"])
    assert "bleu" not in summary["people"]
    assert {"train", "validation", "test", "exact_overlap"} <= summary["split"].keys()
    assert {"read", "kept", "dropped"} <= summary["counts"].keys()
    assert report.manifest["metrics"] == summary
    assert summary["test"]["untouched"] is True
    assert summary["verdict"]["answer"] == "no"  # four steps do not beat an n-gram
    assert summary["prompts"]["answered"] == len(list(report.replies())) == 8
    assert {path.name for path in report.path.iterdir()} >= {"summary.json", "report.html", "replies.jsonl", "recipe.yaml"}


def test_every_judged_reply_is_kept_with_its_scores(report: Report) -> None:
    for row in report.replies():
        assert row["history"][-1]["role"] == "user"
        assert row["reference"].strip()
        assert row["finish_reason"] in ("stop", "length")
        assert row["baselines"].keys() == {"ngram", "retrieval", "most_frequent"}
        assert {"bleu", "empty"} <= row["scores"].keys()


def test_the_same_question_gives_the_same_figures(home: Path, report: Report, tmp_path: Path) -> None:
    stage = load_stage("evaluate")
    question = json.loads((report.path / "plan.json").read_text())
    config = stage.sections["evaluate"].model_validate(question["config"]["evaluate"])
    inputs = {name: kind.open(report.path.parent / question["inputs"][name]["run"]) for name, (kind, _) in stage.inputs.items()}
    again = stage.function(config=config, seed=question["config"]["seed"], **inputs, out=tmp_path)
    assert again.summary == report.summary
    assert (tmp_path / "replies.jsonl").read_bytes() == (report.path / "replies.jsonl").read_bytes()


def test_the_command_in_the_report_finds_the_same_run(report: Report) -> None:
    import chattune

    result = chattune.run(report.path / "recipe.yaml", home=report.path.parent)
    assert result.runs["evaluate"].name == report.path.name


def test_tokens_of_another_tokenizer_are_refused(report: Report, home: Path, tmp_path: Path) -> None:
    place = Home(report.path.parent)
    question = json.loads((report.path / "plan.json").read_text())
    stage, prepare = load_stage("evaluate"), load_stage("prepare")
    inputs = {name: kind.open(place.path / question["inputs"][name]["run"]) for name, (kind, _) in stage.inputs.items()}
    other = execute(plan(prepare, {"prepare": prepare.sections["prepare"](vocabulary=290)}, {"dialogs": inputs["dialogs"]}, place))
    with pytest.raises(ArtifactError, match="another tokenizer"):
        execute(plan(stage, {}, {**inputs, "tokens": other}, place))


def test_tokens_of_other_dialogs_are_refused(report: Report) -> None:
    from chattune.dialogs.artifact import Dialogs

    class Others(Dialogs):
        digest = "0"  # type: ignore[assignment]

    stage, inputs = load_stage("evaluate"), report.manifest["inputs"]
    opened = {name: kind.open(report.path.parent / inputs[name]["run"]) for name, (kind, _) in stage.inputs.items()}
    with pytest.raises(ArtifactError, match="other dialogs"):
        stage.function(config=stage.sections["evaluate"](), **{**opened, "dialogs": Others(opened["dialogs"].path)}, out=report.path)


@pytest.mark.requirement("R175")
def test_only_a_model_that_learned_from_this_training_split_alone_has_an_untouched_test_split(report: Report) -> None:
    from chattune.evaluate.judge import untouched
    from chattune.models.checkpoint import Checkpoint
    from chattune.tokens.token_set import TokenSet

    place, inputs = report.path.parent, report.manifest["inputs"]
    tokens, checkpoint = TokenSet.open(place / inputs["tokens"]["run"]), Checkpoint.open(place / inputs["checkpoint"]["run"])
    assert untouched(tokens, checkpoint)
    learned_from = checkpoint.manifest["inputs"]
    checkpoint.manifest["inputs"] = {**learned_from, "start": {"run": "train-x", "digest": "0"}}
    assert not untouched(tokens, checkpoint)
    checkpoint.manifest["inputs"] = {"tokens": {"run": "prepare-x", "digest": "0"}}
    assert not untouched(tokens, checkpoint)


def test_settings_of_one_metric_change_the_usual_ones_and_a_list_replaces_them() -> None:
    changed = Recipe.read({}, ["evaluate.metrics.rouge_l.word=characters", "evaluate.baselines.ngram.order=3"]).sections["evaluate"]
    assert [metric.name for metric in changed.metrics] == [metric.name for metric in Recipe.read({}).sections["evaluate"].metrics]
    assert next(metric for metric in changed.metrics if metric.name == "rouge_l").word == "characters"
    assert [baseline.name for baseline in changed.baselines] == ["ngram", "retrieval", "most_frequent"]
    assert changed.baselines[0].order == 3
    only = Recipe.read({"evaluate": {"metrics": ["bleu"], "baselines": []}}).sections["evaluate"]
    assert [metric.name for metric in only.metrics] == ["bleu"]
    assert only.baselines == ()


def test_a_metric_that_does_not_exist_is_told_with_the_nearest_name() -> None:
    with pytest.raises(SettingError, match="rouge_l"):
        Recipe.read({"evaluate": {"metrics": ["rougel"]}})


# --- the page


class Page(html.parser.HTMLParser):
    """What a browser would make of the page: tags in balance, ids, and what would be loaded."""

    VOID = {"meta", "br", "hr", "img", "link", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_texts_from_outside_stay_texts(report: Report) -> None:
    text = (report.path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    samples = report.path.parent / report.manifest["inputs"]["checkpoint"]["run"] / "samples.jsonl"
    assert json.loads(samples.read_text(encoding="utf-8").splitlines()[1])["prompt"] == PAYLOAD
    assert "&lt;/script&gt;&lt;script&gt;alert(&#39;x&#39;)" in text  # it stands there, as text
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "link", "base", "form"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "{{ 7*7 }}" in text  # a template in a text is not evaluated
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_page_stands_alone_and_is_small(report: Report) -> None:
    text = (report.path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    loaded = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href", "xlink:href")]
    assert all(value is not None and value.startswith("#") for value in loaded)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(text.encode()) < 2_000_000
    assert "default-src 'none'" in text


def test_the_page_is_readable_by_all(report: Report) -> None:
    text = (report.path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert ("html", {"lang": "en"}) in page.tags
    assert text.count("<figure") == text.count("<figcaption")
    assert "The validation loss went from" in text
    assert all(attributes["aria-hidden"] == "true" for tag, attributes in page.tags if tag == "svg")  # each is said in words beside it


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast_in_light_and_in_dark(scheme: str) -> None:
    from chattune.evaluate.report import PAGE

    blocks = re.findall(r":root \{([^}]*)\}", PAGE.read_text(encoding="utf-8"))
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[0 if scheme == "light" else 1]))
    for paper in ("page", "card"):
        for ink in ("ink", "soft", "yes", "no", "perhaps", "accent"):
            assert contrast(colours[ink], colours[paper]) >= 4.5  # WCAG 2 AA for text
        for line in ("train", "validation", "bar"):
            assert contrast(colours[line], colours[paper]) >= 3  # and for graphics


def test_the_page_shows_what_was_said_before_half_way_and_after(report: Report) -> None:
    text = (report.path / "report.html").read_text(encoding="utf-8")
    for when in ("before (step 0)", "half-way (step 2)", "after (step 4)"):
        assert text.count(f">{when}</dt>") == 2  # one for each prompt of the recipe


def test_the_answer_is_at_the_top(report: Report) -> None:
    text = (report.path / "report.html").read_text(encoding="utf-8")
    assert text.index("Not yet") < text.index("<table")
    assert report.summary["verdict"]["reasons"][0][:30] in text
    assert text.index("chattune run ") > text.index("Repeat it")


# --- curves


ROWS = [{"step": n, "loss": 8 / (n + 1) ** 0.3, "lr": 1e-3, "tokens": n * 100} for n in range(1, 900)]
LOOKS = [{"step": n, "event": "evaluation", "loss": 8 / (n + 1) ** 0.28} for n in range(0, 900, 100)]


@pytest.mark.requirement("R132")
def test_the_figure_shows_training_and_held_out_loss_together() -> None:
    from chattune.evaluate.curves import curves

    drawn = curves([*ROWS, *LOOKS], 1.5) or ""
    assert all(label in drawn for label in ("training batches", "validation split", "n-gram model, on the test split"))
    for name in ("--train", "--validation", "--bar"):
        assert drawn.count(f"var({name})") >= 2  # the line and its entry in the legend


def test_curves_take_the_colours_of_the_page() -> None:
    from chattune.evaluate.curves import curves, described

    drawn = curves([*ROWS, *LOOKS], 1.5)
    assert drawn is not None
    assert drawn.startswith("<svg")
    for name in ("--train", "--validation", "--bar"):
        assert f"var({name})" in drawn
    assert "currentColor" in drawn
    assert "#0102" not in drawn
    assert "n-gram model" in drawn
    assert "<?xml" not in drawn
    assert len(drawn) < 100_000
    assert curves([*ROWS, *LOOKS], 1.5) == drawn
    assert "at step 800" in described(LOOKS)


@pytest.mark.parametrize(
    "rows",
    [
        [], [{"step": 1, "loss": "nan", "lr": 1e-3}], [{"step": 1, "loss": 3.0, "lr": 1e-3}], LOOKS[:1], LOOKS,
        [*ROWS[:5], {"step": 6, "loss": math.inf, "lr": 0.0}, {"event": "saved", "step": 7}],
        [*ROWS[:5], {"step": 8, "event": "evaluation", "loss": "inf"}],
    ],
)  # fmt: skip
def test_curves_of_odd_records_are_drawn_or_left_out(rows: list[dict[str, Any]]) -> None:
    from chattune.evaluate.curves import curves, described

    drawn = curves(rows, None)
    assert (drawn is None) == (not any(isinstance(row.get("loss"), float) and math.isfinite(row["loss"]) for row in rows))
    assert described(rows)


def test_a_page_without_record_samples_and_replies_says_so(report: Report) -> None:
    from chattune.evaluate.report import page

    summary = {**report.summary, "people": {}, "baselines": {}, "notes": {}}
    summary["metrics"] = {name: report.summary["metrics"][name] for name in ("bits_per_byte", "perplexity")}
    facts = {
        "run": "train-x", "data": {}, "training": {"metrics": {}, "commit": None, "seconds": 1.0}, "recipe": {"seed": 0},
        "conflicts": ["seed"], "command": "chattune run x", "chat": "chattune chat x", "record": [], "samples": [],
    }  # fmt: skip
    text = page(summary, [], facts)
    Page(text)
    assert "no record of its training" in text
    assert "different values of seed" in text
