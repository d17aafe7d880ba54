"""The story: raw logs to reply in one go, offline; finished work is found; a recipe means one thing."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from material import TINY, write_raw_logs

import chattune
from chattune import story
from chattune.core import files
from chattune.core.artifact import MANIFEST, Home
from chattune.core.errors import ArtifactError, ChattuneError, CorruptError, ResumeError, SettingError, UnknownName
from chattune.core.part import ROOT
from chattune.core.stage import ask, execute, load_stage, plan, question_of
from chattune.story import Recipe, Result

METRICS = ("bits_per_byte", "perplexity", "bleu", "chrf", "rouge_l", "distinct_2", "repetition", "empty")


def _recipe(raw_logs: Path) -> dict[str, object]:
    return {"collect": {"sources": str(raw_logs)}, "train": {"prompts": ["hello"]}}


@pytest.mark.requirement("R148", "R178")
def test_raw_logs_become_a_model_that_replies(told: Result) -> None:
    model = chattune.load(told.run)
    reply = model.reply("do you like apples?", max_tokens=8, seed=1)
    assert isinstance(reply, str)
    assert model.reply([{"role": "user", "content": "do you like apples?"}], max_tokens=8, seed=1) == reply
    ids = model.prompt_ids([{"role": "user", "content": "hello"}])
    assert model.logits(ids).shape[-1] == model.model.vocabulary
    losses = [row["loss"] for row in files.read_lines_of_json(told.run / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.requirement("R132", "R175")
def test_the_summary_has_the_form_that_machines_read(told: Result) -> None:
    summary = json.loads(json.dumps(dict(told.summary), allow_nan=False))
    assert Path(summary["run"]) == told.run
    assert Path(summary["report"]).read_text("utf-8").lstrip().lower().startswith("<!doctype html>")
    assert summary["seconds"]["train"] > 0
    assert summary["seconds"]["total"] >= summary["seconds"]["train"]
    assert summary["parameters"] > 1000
    for name in METRICS:
        score = summary["metrics"][name]
        assert score["low"] <= score["value"] <= score["high"], name
        assert all(map(math.isfinite, score.values()))
    assert summary["baselines"]["ngram"]["bits_per_byte"].keys() >= {"value", "low", "high"}
    for baseline in ("ngram", "retrieval", "most_frequent"):
        assert summary["baselines"][baseline]["chrf"].keys() >= {"value", "low", "high"}
    split, counts = summary["split"], summary["counts"]
    assert split["exact_overlap"] == 0
    assert split.keys() >= {"train", "validation", "test", "near_duplicate_share", "row_random_exact_overlap"}
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())
    assert {sample["when"] for sample in summary["samples"]} == {"before", "half-way", "after"}


def test_finished_work_is_found_and_not_done_again(told: Result, raw_logs: Path) -> None:
    before = {path: (path / MANIFEST).stat().st_mtime_ns for path in told.runs.values()}
    again = chattune.run(_recipe(raw_logs), TINY, home=told.run.parent)
    assert again.runs == told.runs
    assert {path: (path / MANIFEST).stat().st_mtime_ns for path in told.runs.values()} == before


def test_a_changed_setting_redoes_only_what_depends_on_it(told: Result, raw_logs: Path) -> None:
    place = Home(told.run.parent)
    recipe = Recipe.read(_recipe(raw_logs), [*TINY, "train.steps=21"])
    for name in ("collect", "split", "prepare"):
        stage = load_stage(name)
        made_from = story.inputs_from(stage, story.chain_up([told.runs["split"]]))
        found, _ = ask(stage, recipe.of(stage), made_from, place)
        assert found == told.runs[name]
    train = load_stage("train")
    found, _ = ask(train, recipe.of(train), story.inputs_from(train, story.chain_up([told.runs["prepare"]])), place)
    assert not found.exists()


def test_a_run_is_loaded_by_path_name_digest_and_through_its_report(told: Result) -> None:
    home = told.run.parent
    prompt = [{"role": "user", "content": "hello"}]
    expected = chattune.load(told.run).prompt_ids(prompt)
    for reference in ("first", told.run.name, told.run.name.partition("-")[2][:6], told.runs["evaluate"].name):
        assert chattune.load(reference, home=home).prompt_ids(prompt) == expected
    assert story.lineage(told.runs["evaluate"])[-1] == told.runs["collect"]
    with pytest.raises(ArtifactError, match=rf"is a collect run and holds no model\. Trained from it: {told.run.name}"):
        chattune.load(told.runs["collect"])
    with pytest.raises(UnknownName, match="no run is called 'nowhere'"):
        chattune.load("nowhere", home=home)


@pytest.mark.security
@pytest.mark.requirement("C6", "I28")
def test_a_model_with_one_flipped_byte_is_refused_and_the_file_named(told: Result, tmp_path: Path) -> None:
    import shutil

    home = tmp_path / "runs"
    shutil.copytree(told.run.parent, home)
    weights = home / told.run.name / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CorruptError) as caught:
        chattune.load(home / told.run.name)
    assert str(weights) in str(caught.value)
    assert "run the stage again" in str(caught.value)


def test_a_story_cut_short_is_resumed_to_its_end(raw_logs: Path, told: Result, tmp_path: Path) -> None:
    home = tmp_path / "runs"
    first = chattune.run(_recipe(raw_logs), TINY, home=home, name="mine", until="prepare")
    assert list(first.runs) == ["collect", "split", "prepare"]
    assert story.summary("mine", home)["stage"] == "prepare"
    finished = story.resume("mine", home=home)
    assert finished.runs == first.runs  # it was asked for until prepare, and resume does what was asked
    stage = load_stage("train")
    recipe = Recipe.read(_recipe(raw_logs), [*TINY, "train.steps=2"])
    planned = plan(stage, recipe.of(stage), story.inputs_from(stage, story.chain_up([first.run])), Home(home))
    with pytest.raises(ArtifactError, match=rf"is not finished\. Continue it with `chattune resume {planned.name}`"):
        chattune.load(planned)
    assert story.resume(planned.name, home=home).run == planned
    assert isinstance(chattune.load(planned).reply("hello", max_tokens=2), str)


@pytest.mark.requirement("C9")
def test_changed_sources_make_a_new_run_and_an_old_plan_refuses_them(tmp_path: Path) -> None:
    logs = write_raw_logs(tmp_path / "window.txt", 40)
    home = Home(tmp_path / "runs")
    collect = load_stage("collect")
    recipe = Recipe.read({"collect": {"sources": [str(logs)]}})
    planned = plan(collect, recipe.of(collect), {}, home)
    write_raw_logs(logs, 41)
    with pytest.raises(ResumeError, match=r"the sources changed since this run was planned.*Run the recipe again"):
        execute(planned)
    assert plan(collect, recipe.of(collect), {}, home) != planned


def test_two_processes_do_not_work_on_one_run(told: Result, raw_logs: Path, tmp_path: Path) -> None:
    import fcntl

    home = Home(tmp_path / "runs")
    collect = load_stage("collect")
    planned = plan(collect, Recipe.read(_recipe(raw_logs)).of(collect), {}, home)
    with (planned / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ChattuneError, match="another process is working on this run"):
            execute(planned)
    assert execute(planned).path == planned


@pytest.mark.requirement("C1")
def test_leftovers_of_a_killed_write_are_swept_and_never_become_outputs(raw_logs: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "runs")
    collect = load_stage("collect")
    planned = plan(collect, Recipe.read(_recipe(raw_logs)).of(collect), {}, home)
    (planned / ".train.jsonl.abc123").write_text("half")
    (planned / ".tmp-x").mkdir()
    artifact = execute(planned)
    assert not any(name.startswith(".") for name in artifact.manifest["outputs"])
    assert {path.name for path in planned.glob(".*")} <= {".lock"}


def test_same_question_same_address_in_another_process(raw_logs: Path, tmp_path: Path) -> None:
    script = (
        "import sys, json; from chattune.story import *; from chattune.core.artifact import Home\n"
        "from chattune.core.stage import ask, load_stage\n"
        "stage = load_stage('collect'); recipe = Recipe.read(json.loads(sys.argv[1]))\n"
        "print(ask(stage, recipe.of(stage), {}, Home('runs'))[0].name)\n"
    )
    recipe = _recipe(raw_logs)
    done = subprocess.run([sys.executable, "-c", script, json.dumps(recipe)], capture_output=True, text=True, check=True)
    collect = load_stage("collect")
    assert done.stdout.strip() == ask(collect, Recipe.read(recipe).of(collect), {}, Home(tmp_path))[0].name


# Recipes


@pytest.mark.parametrize("path", sorted(story.RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_read_and_travels_through_its_dump(path: Path) -> None:
    recipe = Recipe.read(path)
    again = Recipe.read(yaml.safe_load(yaml.safe_dump(recipe.dump())))
    assert again.dump() == recipe.dump()
    assert again.derived == {}  # what was derived stands in the dump
    assert Recipe.read(path.stem).dump() == recipe.dump()
    assert (ROOT.parent / "configs" / path.name).read_text("utf-8") == path.read_text("utf-8")


def test_defaults_give_way_to_the_recipe_and_that_to_overrides(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model:\n  size: micro\ntrain:\n  steps: 5\n  clip: 0.5\n")
    recipe = Recipe.read(file, ["train.steps=7"])
    assert (recipe.sections["train"].steps, recipe.sections["train"].clip, recipe.sections["train"].accumulate) == (7, 0.5, 1)
    assert recipe.given == {"model.size", "train.steps", "train.clip"}


def test_the_dial_fills_what_was_left_open_and_nothing_else() -> None:
    small, big = (Recipe.read({"model": {"size": size}}) for size in ("micro", "tiny"))
    for recipe in (small, big):
        assert recipe.sections["model"] == recipe.sections["model"].resolved()
        assert recipe.sections["train"].batch_tokens == recipe.derived["train.batch_tokens"]
    assert small.sections["train"].batch_tokens < big.sections["train"].batch_tokens
    given = {"model": {"size": "tiny", "layers": 3}, "train": {"batch_tokens": 777, "optimizer": {"name": "adamw", "lr": 0.5}}}
    by_hand = Recipe.read(given)
    assert by_hand.sections["model"].layers == 3
    assert by_hand.sections["train"].batch_tokens == 777
    assert by_hand.sections["train"].optimizer.lr == 0.5
    assert not by_hand.derived.keys() & {"model.layers", "train.batch_tokens", "train.optimizer.lr"}
    assert Recipe.read({"train": {"optimizer": "adamw"}}).derived["train.optimizer.lr"] > 0


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("trian:\n  steps: 5\n", [], "r.yaml:1: trian: no section is called 'trian'. Did you mean 'train'?"),
        ("train:\n  optimizer:\n    lrr: 1\n", [], "r.yaml:3: train.optimizer.lrr: no setting is called 'lrr'. Did you mean 'lr'?"),
        ("train:\n  steps: 5\n", ["train.steps=0"], "train.steps: 0: input should be greater than or equal to 1."),
        ("train:\n  steps: 5\n  minutes: 2\n", [], "r.yaml:1: train: steps and minutes contradict one another: give one of them."),
        ("model:\n  size: huge\n", [], "r.yaml:2: model.size: 'huge': input should be 'micro', 'tiny', 'small', "),
        ("model: gtp\n", [], "r.yaml:1: model: 'gtp': families has no part called 'gtp'. Did you mean 'gpt'?"),
        ("seed: many\n", [], "r.yaml:1: seed: 'many': input should be a valid integer, unable to parse string as an integer."),
        ("train:\n  regularizers: [emma]\n", [], "r.yaml:2: train.regularizers.0: 'emma': regularizers has no part called 'emma'. "),
        ("train:\n  regularizers:\n  - ema: {decay: 2}\n", [], "r.yaml:3: train.regularizers.ema.decay: 2: input should be less "),
        ("split:\n  shares: [1, 1, 1]\n", [], "r.yaml:2: split.shares: "),
        ("", ["train.optimizer.lrr=1"], "train.optimizer.lrr: no setting is called 'lrr'. Did you mean 'lr'?"),
        ("train:\n  steps: 5\n", ["train.steps.more=1"], "train.steps.more: 'train.steps' is a value and has no settings."),
    ],
)  # fmt: skip
def test_a_mistake_in_a_recipe_is_told_in_one_line(tmp_path: Path, text: str, overrides: list[str], said: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(SettingError) as caught:
        Recipe.read(file, overrides)
    message = str(caught.value).replace(f"{tmp_path}/", "")
    assert message.startswith(said), message
    assert "\n" not in message
    assert not re.search(r"pydantic|ValidationError|ctx|function-plain", message)


def test_a_recipe_that_does_not_exist_says_which_are_shipped(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"no such recipe\. Did you mean 'demo'\?"):
        Recipe.read("demmo")
    with pytest.raises(UnknownName, match="no such recipe"):
        Recipe.read(tmp_path / "mine.yaml")


def test_the_plan_is_complete_and_resolved(told: Result) -> None:
    question = question_of(told.run)
    assert question["config"]["model"]["hidden"] is not None
    assert question["config"]["train"]["batch_tokens"] == 512
    assert question["inputs"]["tokens"]["run"] == told.runs["prepare"].name
    sources = question_of(told.runs["collect"])["sources"]["collect"]
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in sources.values())
