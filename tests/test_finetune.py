"""Fine-tuning: adapters and freezing inside a training, the trial and its gate, resuming, and what a checkpoint then holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from material import THINGS, TINY, write_raw_logs

from chattune.core.artifact import Home
from chattune.core.config import validate
from chattune.core.errors import ArtifactError, Interrupted, SettingError, TrialError
from chattune.core.stage import execute, load_stage, plan
from chattune.evaluate.loss import SplitLoss
from chattune.models.checkpoint import Checkpoint, load_model
from chattune.models.freezing import freeze
from chattune.models.patterns import meant
from chattune.story import Recipe, Result, run
from chattune.tokens.token_set import TokenSet
from chattune.train import trial
from chattune.train.config import TrainConfig
from chattune.train.state import Snapshots, steps

QUICK = {
    "optimizer": {"name": "adamw", "lr": 0.01}, "steps": 6, "batch_tokens": 256, "threads": 1, "precision": "float32", "compile": "off",
    "evaluations": 1,
}  # fmt: skip
LORA = {"name": "lora", "rank": 8, "alpha": 16.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A home with a trained model. Runs may be added, none changed."""
    folder = tmp_path_factory.mktemp("finetune")
    sources = {"collect": {"sources": str(write_raw_logs(folder / "window.txt"))}}
    return run(sources, [*TINY, "model.kv_heads=1"], home=folder / "runs", name="base", until="train")


@pytest.fixture(scope="module")
def domain(base: Result) -> Result:
    """In the same home, conversations about orders, as the base's tokenizer reads them."""
    place = base.run.parent.parent / "orders.txt"
    orders = "Anna: order {n} boxes of {t} for me\nBot: your order of {t} is on its way.\nAnna: how much are they?\nBot: {n} coins.\n"
    place.write_text("\n".join(orders.format(n=2 + number % 7, t=thing) for number, thing in enumerate(THINGS)), "utf-8")
    sources, shares = {"sources": str(place)}, {"shares": [0.5, 0.25, 0.25]}
    settings = {"collect": sources, "split": shares, "prepare": {"tokenizer": str(base.runs["prepare"])}}
    return run(settings, home=base.run.parent, until="prepare")


def tuned(base: Result, settings: Mapping[str, Any], *, start: bool = True, seed: int = 0, on: Result | None = None) -> Path:
    """The address of a training from the base's weights, on its own tokens or those of `on`, planned and not yet done."""
    stage = load_stage("train")
    tokens, checkpoint = TokenSet.open((on or base).runs["prepare"]), Checkpoint.open(base.runs["train"])
    config = validate(TrainConfig, {**QUICK, **settings}, prefix="train")
    family = checkpoint.model().family
    return plan(
        stage, {"train": config, "model": family, "seed": seed}, {"tokens": tokens, "start": checkpoint if start else None},
        Home(base.run.parent),
    )  # fmt: skip


def recorded(path: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / name).read_text("utf-8").splitlines()]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(path).named_parameters())


@pytest.mark.requirement("R078")
def test_a_lora_training_gives_plain_merged_weights_and_the_adapter_beside_them(base: Result) -> None:
    out = tuned(base, {"adapter": LORA, "steps": 12})
    execute(out)
    before, after = weights(base.run), weights(out)
    assert before.keys() == after.keys(), "a plain model, as transformers reads it"
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed
    assert all(name.rpartition(".")[0].endswith(("qkv", "output", "gate_up")) for name in changed), "tables and norms stay to the bit"
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"} <= Checkpoint.open(out).manifest["outputs"].keys()
    summary = Checkpoint.open(out).manifest["metrics"]
    assert 0 < summary["learned"] < summary["parameters"] == sum(p.numel() for p in after.values())
    losses = [row["loss"] for row in recorded(out) if row.get("event") == "evaluation"]
    assert losses[-1] < losses[0]


@pytest.mark.requirement("R078")
def test_an_adapter_that_cannot_be_merged_is_read_back_with_its_model(base: Result) -> None:
    out = tuned(base, {"adapter": {"name": "bottleneck", "size": 6}, "optimizer": {"lr": 0.01}, "steps": 12, "keep": "last"})
    execute(out)
    checkpoint = Checkpoint.open(out)
    assert checkpoint.adapter is not None
    assert checkpoint.adapter.name == "bottleneck"
    before, after = load_model(base.run), checkpoint.model()
    for name, weight in before.named_parameters():
        assert torch.equal(weight, after.get_parameter(name)), "the model's own weights stand untouched beside it"
    ids = torch.arange(7, 17)[None]
    assert not torch.equal(before(ids), after(ids))
    from chattune.models.export import to_gguf, to_hugging_face

    exported = to_hugging_face(checkpoint, base.run.parent.parent / "with-bottleneck")
    assert "bottleneck adapter stands beside the weights" in exported["notes"][0]
    assert (base.run.parent.parent / "with-bottleneck" / "adapter" / "adapter_model.safetensors").is_file()
    with pytest.raises(ArtifactError, match="for which GGUF has no place"):
        to_gguf(checkpoint, base.run.parent.parent / "with-bottleneck.gguf", "f32")
    stage = load_stage("train")
    inputs = {"tokens": TokenSet.open(base.runs["prepare"]), "start": checkpoint}
    again = plan(stage, {"train": validate(TrainConfig, QUICK), "model": before.family, "seed": 1}, inputs, Home(base.run.parent))
    with pytest.raises(SettingError, match="bottleneck"):
        execute(again)


@pytest.mark.requirement("R078", "C2")
@pytest.mark.campaign
@pytest.mark.parametrize(
    "settings", [{"adapter": LORA}, {"adapter": {**LORA, "name": "dora", "dropout": 0.3}}, {"freeze": ["embedding"]}],
    ids=["lora", "dora", "freeze"],
)  # fmt: skip
def test_interrupted_fine_tuning_continues_to_the_bit(base: Result, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from chattune.train import loop

    more = {**settings, "steps": 8, "accumulate": 2, "regularizers": [{"name": "ema", "decay": 0.5}]}
    whole, parts = tuned(base, more), tuned(base, {**more, "save_steps": 3})
    execute(whole)
    plain = loop.Training.advance

    def ended(training: loop.Training) -> None:
        if training.state.step == 5:
            raise Interrupted(15, "the power went")
        plain(training)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "advance", ended)
        with pytest.raises(Interrupted):
            execute(parts)
    snapshot = Snapshots(parts / "state").at(steps(parts / "state")[-1])
    learns = set(snapshot.model)
    assert not any(name.endswith("embedding.weight") for name in learns), "a snapshot holds only what learns"
    execute(parts)
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [row.get("loss") for row in recorded(whole)] == [row.get("loss") for row in recorded(parts)]


@pytest.mark.requirement("R078")
def test_what_is_frozen_stays_to_the_bit_and_is_named(base: Result, capsys: pytest.CaptureFixture[str]) -> None:
    out = tuned(base, {"freeze": ["embedding", "blocks.*.attention"]})
    execute(out)
    told = " ".join(capsys.readouterr().err.split() + capsys.readouterr().out.split())
    before, after = weights(base.run), weights(out)
    for name, weight in before.items():
        frozen = name.startswith("embedding") or ".attention." in name
        assert torch.equal(weight, after[name]) == frozen, name
    assert "frozen embedding.weight" in told
    assert "blocks.*.attention.qkv.weight" in told


def test_freezing_everything_or_nothing_known_is_refused(base: Result) -> None:
    model = load_model(base.run)
    with pytest.raises(SettingError, match="nothing is left to learn"):
        freeze(model, ("*",))
    with pytest.raises(SettingError, match="Did you mean 'embedding'") as caught:
        freeze(load_model(base.run), ("embeding",))
    assert caught.value.path == "train.freeze"


def test_a_part_of_a_fused_matrix_cannot_be_frozen_alone(base: Result) -> None:
    with pytest.raises(SettingError, match=r"q_proj.* is stored as one matrix with .*k_proj.*, .*v_proj"):
        freeze(load_model(base.run), ("q_proj",))
    model = load_model(base.run)
    assert any(name.endswith("qkv.weight") for name in freeze(model, ("q_proj", "k_proj", "v_proj")))


def test_a_pattern_means_a_name_its_last_words_and_all_inside() -> None:
    name = "model.layers.3.self_attn.q_proj"
    assert all(meant(p, name) for p in ("q_proj", "self_attn.q_proj", "model", "layers.3", "layers.*", "*q_proj", "?_proj", name))
    assert not any(meant(p, name) for p in ("proj", "layers.1", "attn", "q_proj.*", "model.layers.30"))


def test_adapters_and_trials_ask_for_a_start(base: Result) -> None:
    for settings in ({"adapter": "lora"}, {"trial": {}}):
        with pytest.raises(SettingError, match="needs a model to start from") as caught:
            execute(tuned(base, settings, start=False))
        assert caught.value.path == f"train.{next(iter(settings))}"


def test_an_adapter_brings_its_own_optimizer_unless_told_otherwise() -> None:
    def optimizer(**settings: Any) -> dict[str, Any]:
        return validate(TrainConfig, settings).optimizer.dump()

    assert optimizer()["name"] == "muon"
    assert (optimizer(adapter="lora")["name"], optimizer(adapter="lora")["lr"]) == ("adamw", None)
    assert (optimizer(adapter="prefix")["name"], optimizer(adapter="prefix", optimizer="adamw")["lr"]) == ("adamw", 0.01)
    assert optimizer(adapter="lora", optimizer={"lr": 0.01})["lr"] == 0.01
    assert optimizer(adapter="lora", optimizer={"name": "adamw", "weight_decay": 0.0})["weight_decay"] == 0.0
    assert optimizer(adapter="lora", optimizer={"name": "sgd"})["name"] == "sgd"
    recipe = Recipe.read({"train": {"adapter": {"name": "lora", "rank": 4}}}, ["train.optimizer.weight_decay=0.0"])
    assert recipe.sections["train"].optimizer.lr == recipe.derived["train.optimizer.lr"]
    again = Recipe.read(recipe.dump())
    assert again.sections["train"] == recipe.sections["train"]
    assert recipe.sections["train"].optimizer.name == "adamw"
    with pytest.raises(SettingError, match="Did you mean 'lora'"):
        validate(TrainConfig, {"adapter": "lore"})


@pytest.mark.requirement("R149")
def test_a_trial_that_helps_opens_the_way_to_the_same_training_as_without_it(base: Result, domain: Result) -> None:
    settings = {"adapter": LORA, "steps": 40}
    plain, gated = tuned(base, settings, on=domain), tuned(base, {**settings, "trial": {"fraction": 0.5}}, on=domain)
    execute(plain)
    execute(gated)
    assert (plain / "model.safetensors").read_bytes() == (gated / "model.safetensors").read_bytes()
    found = json.loads((gated / "trial.json").read_text())
    assert found["passed"]
    assert found["high"] < 0
    assert found["after"] < found["before"]
    assert Checkpoint.open(gated).manifest["metrics"]["trial"] == found
    assert max(row["step"] for row in recorded(gated, "trial.jsonl")) == 20, "the share of the dialogs is also that of the steps"
    assert not (gated / "state").exists()


@pytest.mark.requirement("R149")
def test_a_trial_that_does_not_help_ends_with_its_figures_and_is_not_repeated(base: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    from chattune.train import loop

    out = tuned(base, {"adapter": LORA, "optimizer": {"lr": 1e-8}, "trial": {"fraction": 0.3}})
    with pytest.raises(TrialError, match="the trial did not improve the model: held-out loss") as caught:
        execute(out)
    assert caught.value.exit_code == 3
    assert "trial.json" in (caught.value.hint or "")
    found = json.loads((out / "trial.json").read_text())
    assert not found["passed"]
    assert not (out / "model.safetensors").exists()
    monkeypatch.setattr(loop.Training, "advance", lambda training: pytest.fail("it was tried before"))
    with pytest.raises(TrialError) as again:
        execute(out)
    assert again.value.message == caught.value.message


@pytest.mark.requirement("R149")
def test_an_interrupted_trial_continues_to_the_same_verdict(base: Result, domain: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    from chattune.train import loop

    settings = {"adapter": LORA, "steps": 40, "trial": {"fraction": 0.5}}
    whole, parts = tuned(base, settings, on=domain), tuned(base, {**settings, "save_steps": 3}, on=domain)
    execute(whole)
    plain = loop.Training.advance

    def ended(training: loop.Training) -> None:
        if training.state.step == 8:
            raise Interrupted(2, "the power went")
        plain(training)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "advance", ended)
        with pytest.raises(Interrupted):
            execute(parts)
    assert steps(parts / "state" / "trial") == [3, 6]
    execute(parts)
    assert json.loads((parts / "trial.json").read_text()) == json.loads((whole / "trial.json").read_text())
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.requirement("R149")
def test_the_gate_wants_more_than_chance_and_pairs_dialogs() -> None:
    random = np.random.default_rng(0)
    tokens = np.full(200, 50.0)
    hard = random.normal(3.0, 1.0, 200) * tokens  # dialogs differ a lot among themselves
    before = SplitLoss(hard, tokens, tokens)
    slightly = SplitLoss(hard - 0.01 * tokens + random.normal(0, 0.02, 200) * tokens, tokens, tokens)
    found = trial.verdict(before, slightly, 0)
    assert found["passed"], "paired, the difference of 0.01 stands out of a spread of 1 between dialogs"
    assert found["low"] < found["difference"] < found["high"] < 0
    noise = SplitLoss(hard + random.normal(0, 0.5, 200) * tokens, tokens, tokens)
    assert not trial.verdict(before, noise, 0)["passed"]
    assert not trial.verdict(before, before, 0)["passed"]


def test_windows_are_no_longer_than_asked(base: Result) -> None:
    out = tuned(base, {"context": 32})
    execute(out)
    assert Checkpoint.open(out).model().family.context_length() == 64, "the model itself is made for more"


@pytest.mark.requirement("R078")
def test_a_four_bit_base_trains_and_gives_plain_weights(base: Result) -> None:
    out = tuned(base, {"adapter": {**LORA, "base": "nf4"}, "optimizer": {"lr": 0.01}, "steps": 12})
    execute(out)
    assert weights(out).keys() == weights(base.run).keys()


@pytest.fixture(scope="module")
def judged(base: Result, domain: Result) -> Path:
    """The evaluation of a model that was fine-tuned on orders, with what the base learned from as the general conversations."""
    place = base.run.parent.parent / "window.txt"
    out = tuned(base, {"adapter": LORA, "steps": 60}, on=domain)
    checkpoint = execute(out)
    stage = load_stage("evaluate")
    recipe = Recipe.read({"evaluate": {"general": str(place), "general_dialogs": 20, "replies": 2, "baselines": ["most_frequent"]}})
    dialogs, tokens = load_stage("split").output.open(domain.runs["split"]), TokenSet.open(domain.runs["prepare"])
    inputs = {"dialogs": dialogs, "tokens": tokens, "checkpoint": checkpoint}
    return execute(plan(stage, recipe.of(stage), inputs, Home(base.run.parent))).path


@pytest.mark.requirement("R159")
def test_a_fine_tuned_model_is_judged_beside_its_start_on_its_domain_and_in_general(base: Result, judged: Path) -> None:
    started = json.loads((judged / "summary.json").read_text())["started"]
    assert started["start"] == base.run.name
    for name, dialogs in (("domain", None), ("general", 20)):
        found = started[name]
        assert dialogs in (None, found["dialogs"])
        assert found["difference"]["value"] == pytest.approx(found["after"]["value"] - found["before"]["value"], abs=1e-9)
        assert found["difference"]["low"] <= found["difference"]["value"] <= found["difference"]["high"]
    assert started["domain"]["difference"]["high"] < 0, "sixty updates on orders help with orders"
    assert started["general"]["difference"]["low"] > 0, "and cost what was learned before"
    assert not started["notes"]
    page = (judged / "report.html").read_text("utf-8")
    assert "Against the model it started from" in page
    assert f"{started['general']['difference']['value']:+.3f}" in page


@pytest.mark.requirement("R159")
def test_the_loss_before_is_that_of_the_model_it_started_from(base: Result, domain: Result, judged: Path) -> None:
    from chattune.evaluate.judge import usual_overlap
    from chattune.evaluate.loss import split_loss

    tokens = TokenSet.open(domain.runs["prepare"])
    seen = split_loss(
        load_model(base.run), tokens.split("test"), tokens.tokenizer.byte_lengths, context=64, overlap=usual_overlap(64)
    )
    started = json.loads((judged / "summary.json").read_text())["started"]
    assert started["domain"]["before"]["value"] == pytest.approx(seen.bits_per_byte, rel=1e-9)


@pytest.mark.requirement("R159")
def test_what_it_learned_from_is_no_measure_of_forgetting(base: Result, domain: Result, judged: Path) -> None:
    from chattune.evaluate.forgetting import sentences

    stage = load_stage("evaluate")
    checkpoint = next(Checkpoint.open(run) for run in Home(base.run.parent).runs() if run.name == _judged_run(judged))
    dialogs, tokens = load_stage("split").output.open(domain.runs["split"]), TokenSet.open(domain.runs["prepare"])
    own = str(base.run.parent.parent / "orders.txt")
    recipe = Recipe.read({"evaluate": {"general": own, "replies": 0, "baselines": ["most_frequent"]}})
    inputs = {"dialogs": dialogs, "tokens": tokens, "checkpoint": checkpoint}
    report = execute(plan(stage, recipe.of(stage), inputs, Home(base.run.parent)))
    started = json.loads((report.path / "summary.json").read_text())["started"]
    assert "general" not in started
    assert "is what it learned from" in sentences(started)[-1]


def _judged_run(report: Path) -> str:
    return str(json.loads((report / "manifest.json").read_text())["inputs"]["checkpoint"]["run"])


@pytest.mark.requirement("R078")
def test_in_bfloat16_frozen_weights_are_there_once_and_saved_unrounded(base: Result) -> None:
    from chattune.core.part import choose
    from chattune.models.adapters import Adapter
    from chattune.train.device import Worker

    master = load_model(base.run)
    choose(Adapter, LORA).attach(master)
    worker = Worker(master, "bfloat16")
    for own, kept in zip(worker.model.parameters(), master.parameters(), strict=True):
        assert own.dtype == torch.bfloat16
        assert (own.data_ptr() == kept.data_ptr()) == (not kept.requires_grad)
        assert kept.dtype == (torch.float32 if kept.requires_grad else torch.bfloat16)
    out = tuned(base, {"adapter": {**LORA, "targets": ["q_proj"]}, "precision": "bfloat16", "optimizer": {"lr": 0.01}})
    execute(out)
    before, after = weights(base.run), weights(out)
    for name, weight in before.items():
        if "qkv" in name:  # queries learned, keys and values did not
            assert torch.equal(weight[32:], after[name][32:])
            assert not torch.equal(weight[:32], after[name][:32])
        else:
            assert torch.equal(weight, after[name]), name
