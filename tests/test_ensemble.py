"""Ensembles: averaging never hurts the mean, weights are fitted exactly, and votes do not depend on luck."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chattune.core.errors import SettingError, UsageError
from chattune.core.part import kind
from chattune.generate.engine import Ask, Engine
from chattune.generate.ensemble import (
    EnsembleModel,
    EnsembleRunner,
    fitted_weights,
    least_risk,
    majority,
    mixed,
    replies_of,
    target_logs,
    together,
)
from chattune.generate.reply import ChatModel, Sampling
from chattune.generate.runner import TorchRunner
from chattune.models.language_model import LanguageModel
from chattune.tokens.batch import Batch
from chattune.tokens.template import Template
from chattune.tokens.tokenizer import Tokenizer

VOCABULARY = 290
SMALL = {
    "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "context": 64, "init": {"name": "normal", "std": 0.2},
    "init_outputs": "same",
}  # fmt: skip
GREEDY = Sampling(temperature=0, repetition_penalty=1, max_tokens=12)
CLOSE = 1e-5  # float32 sums in another order


def member(family: str = "gpt", seed: int = 0, vocabulary: int = VOCABULARY, **shape: Any) -> LanguageModel:
    part = kind("families").load(family)
    return part(**{key: value for key, value in {**SMALL, **shape}.items() if key in part.model_fields}).build(vocabulary, seed).eval()


def batch(rows: int = 4, time: int = 20, seed: int = 0) -> Batch:
    ids = torch.randint(7, VOCABULARY, (rows, time + 1), generator=torch.Generator().manual_seed(seed))
    weights = (torch.rand(rows, time, generator=torch.Generator().manual_seed(seed + 1)) < 0.7).float()
    places = torch.arange(time).repeat(rows, 1)
    return Batch(ids[:, :-1], ids[:, 1:], weights, places, torch.zeros(rows, time, dtype=torch.int32))


@pytest.fixture(scope="module")
def template() -> Template:
    return Template(Tokenizer.train_at_most(["hello there, who are you? "] * 3, VOCABULARY))


MIXTURE = st.integers(1, 5).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, 10_000), st.floats(0.1, 30)))


@pytest.mark.requirement("R189")
@settings(deadline=None)  # the first call wakes torch up
@given(MIXTURE)
def test_the_loss_of_an_ensemble_is_at_most_the_mean_of_its_members(mixture: tuple[int, int, float]) -> None:
    count, seed, scale = mixture
    random = np.random.default_rng(seed)
    weights = random.dirichlet(np.ones(count)).tolist()
    logits = [torch.from_numpy(random.standard_normal((6, 40)) * scale) for _ in range(count)]
    targets = torch.from_numpy(random.integers(0, 40, 6))
    loss = torch.nn.functional.cross_entropy(mixed(logits, weights), targets, reduction="none")
    mean = sum(
        weight * torch.nn.functional.cross_entropy(each.float(), targets, reduction="none")
        for weight, each in zip(weights, logits, strict=True)
    )
    assert (loss <= mean + 1e-4 * (1 + mean)).all(), "for every target; float32 has six digits of some hundred nats"
    shares = sum(weight * each.float().softmax(-1) for weight, each in zip(weights, logits, strict=True))
    torch.testing.assert_close(mixed(logits, weights).softmax(-1), shares)
    alone = [1.0, *[0.0] * (count - 1)]
    torch.testing.assert_close(mixed(logits, alone), logits[0].float(), msg="a member with all the weight is itself")


@pytest.mark.requirement("R189")
def test_models_of_unlike_families_together_lose_less_than_on_average() -> None:
    models = [member("gpt"), member("gpt", 1, width=16), member("gru"), member("convolution"), member("hf")]
    logs, _ = target_logs(models, [batch()])
    joint, _ = target_logs([EnsembleModel(models)], [batch()])
    np.testing.assert_allclose(joint[:, 0], np.log(np.exp(logs).mean(axis=1)), atol=CLOSE)
    assert -joint.mean() < -logs.mean() - 0.1, "strictly less: they disagree"


@pytest.mark.parametrize("families", [("gpt", "gpt"), ("gpt", "lstm"), ("gpt", "mlp", "gru"), ("hf", "gpt")])
def test_an_ensemble_decodes_from_its_cache_as_in_one_pass(families: tuple[str, ...]) -> None:
    model = EnsembleModel([member(family, seed) for seed, family in enumerate(families)]).eval()
    ids = batch().inputs[:3, :14]
    cache = model.new_cache(3, 20)
    with torch.no_grad():
        found = torch.cat([model(piece, cache=cache) for piece in ids.split([9, 1, 4], 1)], 1)
        torch.testing.assert_close(found, model(ids), atol=CLOSE, rtol=CLOSE)
        cache.select(torch.tensor([2, 0]))
        more = model(ids[[2, 0], :1], cache=cache)
        torch.testing.assert_close(more[:, 0], model(torch.cat([ids[[2, 0]], ids[[2, 0], :1]], 1))[:, -1], atol=CLOSE, rtol=CLOSE)


def test_the_engine_serves_an_ensemble_of_models_or_of_runners_alike(template: Template) -> None:
    size = template.tokenizer.vocabulary
    chats = [ChatModel(member("gpt", seed, size), template) for seed in range(3)]
    weights = (0.5, 0.3, 0.2)
    many = [[{"role": "user", "content": "who " * n}] for n in (1, 5, 2, 9)]
    joint = together(chats, weights)
    wanted = joint.replies(many, GREEDY)
    runner = EnsembleRunner([TorchRunner(chat.model, slots=3, length=64) for chat in chats], weights)
    engine = Engine(joint.model, template.tokenizer, runner=runner, chunk=7)
    found = engine.run([Ask(tuple(joint.prompt_ids(messages)), GREEDY) for messages in many])
    assert [reply.tokens for reply in found] == [reply.tokens for reply in wanted]
    assert runner.rewinds and runner.joins and runner.why.startswith("3 models together: PyTorch")
    ids = joint.prompt_ids(many[0])
    p = sum(weight * chat.logits(ids).softmax(-1) for weight, chat in zip(weights, chats, strict=True))
    torch.testing.assert_close(joint.logits(ids).softmax(-1), p, atol=CLOSE, rtol=CLOSE)


def test_all_the_weight_on_one_model_is_that_model(template: Template) -> None:
    chats = [ChatModel(member("gpt", seed, template.tokenizer.vocabulary), template) for seed in range(2)]
    messages = [{"role": "user", "content": "hello"}]
    replies = [together(chats, weights).replies([messages], GREEDY)[0] for weights in ((1.0, 0.0), (0.0, 1.0))]
    assert replies == [chat.replies([messages], GREEDY)[0] for chat in chats]
    assert replies[0] != replies[1]


def test_models_that_do_not_speak_alike_are_refused(template: Template) -> None:
    other = Template(Tokenizer.train_at_most(["quite another text with other words "] * 3, VOCABULARY))
    chats = [ChatModel(member("gpt", 0, t.tokenizer.vocabulary), t) for t in (template, other)]
    with pytest.raises(UsageError, match="model 1 has another tokenizer") as caught:
        together(chats)
    assert "vote" in caught.value.hint
    with pytest.raises(UsageError, match="vocabularies of"):
        EnsembleModel([member(vocabulary=290), member(vocabulary=300)])
    with pytest.raises(UsageError, match="no models"):
        EnsembleModel([])
    with pytest.raises(UsageError, match="vocabularies of"):
        EnsembleRunner([TorchRunner(member(vocabulary=size), slots=1, length=8) for size in (290, 300)])
    for wrong in ((0.5, 0.6), (1.5, -0.5), (1.0,), (math.nan, 0.5)):
        with pytest.raises(SettingError, match="the weights of 2 models") as error:
            EnsembleModel([member(), member(seed=1)], wrong)
        assert error.value.path == "weights"


# Weights

@pytest.mark.requirement("R190")
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_weights_are_exact_where_the_best_are_known(share: float) -> None:
    # Each target is certain for one member and impossible for the other: the best weights are the shares of the targets.
    first = np.arange(1000) < share * 1000
    logs = np.where(np.stack([first, ~first], axis=1), 0.0, -np.inf)
    np.testing.assert_allclose(fitted_weights(logs), [share, 1 - share], atol=1e-9)
    doubled = fitted_weights(logs, np.where(first, 2.0, 1.0))  # as if the first member's targets stood there twice
    np.testing.assert_allclose(doubled, np.array([2 * share, 1 - share]) / (1 + share), atol=1e-9)


@pytest.mark.requirement("R190")
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), members=st.integers(1, 5), spread=st.floats(0.0, 4.0))
def test_fitted_weights_lie_on_the_simplex_and_no_others_do_better(seed: int, members: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    logs = -random.gamma(2.0, 1.0, (80, members)) - spread * random.random(members)
    weights = np.array(fitted_weights(logs))
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0)

    def loss(w: np.ndarray) -> float:
        return -float(np.log(np.exp(logs) @ w).mean())

    others = [np.full(members, 1 / members), *np.eye(members), *random.dirichlet(np.ones(members), 200)]
    # 1e-6 nats: ten thousand steps come so near where two members are all but equal.
    assert loss(weights) <= min(map(loss, others)) + 1e-6
    assert loss(weights) <= min(map(loss, others[: members + 1])), "never worse than uniform or the best alone"


@pytest.mark.requirement("R190")
def test_weights_fitted_on_validation_find_the_model_that_knows_the_data() -> None:
    models = [member(seed=seed) for seed in range(3)]
    with torch.no_grad():
        ids = torch.randint(7, VOCABULARY, (8, 1), generator=torch.Generator().manual_seed(0))
        for _ in range(24):  # texts that the second model would write
            nexts = torch.multinomial(models[1](ids)[:, -1].softmax(-1), 1, generator=torch.Generator().manual_seed(len(ids[0])))
            ids = torch.cat([ids, nexts], 1)
    time = ids.shape[1] - 1
    written = Batch(
        ids[:, :-1], ids[:, 1:], torch.ones(8, time), torch.arange(time).repeat(8, 1), torch.zeros(8, time, dtype=torch.int32)
    )
    weights = fitted_weights(*target_logs(models, [written]))
    assert weights[1] > 0.8
    assert not any(model.training for model in models), "modes are left as they were"


def test_weights_of_nothing_and_of_the_impossible_are_refused() -> None:
    for logs in (np.zeros((0, 2)), np.full((3, 2), -np.inf)):
        with pytest.raises(UsageError, match="cannot be fitted"):
            fitted_weights(logs)


# Replies

def test_the_answer_that_most_give_wins_and_the_first_of_equals() -> None:
    vote = majority(["It is 42.", "41", "it is 42", "IT IS 42!", "41"])
    assert (vote.number, vote.share) == (0, 0.6)
    assert vote.counts == (("it is 42", 3), ("41", 2))
    assert majority(["b", "a", "a", "b"]).number == 0
    assert majority(["a", "b", "b", "a"]).number == 0
    last = majority(["so 7", "hence 7", "maybe 8"], answer=lambda reply: reply.split()[-1])
    assert (last.number, last.counts) == (0, (("7", 2), ("8", 1)))
    with pytest.raises(UsageError, match="no replies"):
        majority([])


def test_the_reply_most_like_the_others_has_the_least_risk() -> None:
    replies = ["bananas are blue", "the cat sat on the mat", "the cat sat on a mat", "the cat sits on the mat"]
    assert least_risk(replies) == 1
    assert least_risk(replies[::-1]) == 2, "the same reply, wherever it stands"
    assert least_risk(replies, [0.97, 0.01, 0.01, 0.01]) == 0
    assert least_risk(["x", "y"]) == 0 == least_risk(["same", "same"])
    assert least_risk(["你好，世界", "你好世界", "再见"]) in (0, 1)
    with pytest.raises(UsageError, match="no replies"):
        least_risk([])


@pytest.mark.requirement("R189")
def test_models_with_unlike_tokenizers_vote_on_what_they_say(template: Template) -> None:
    other = Template(Tokenizer.train_at_most(["quite another text with other words "] * 3, 285))
    chats = [ChatModel(member("gpt", 0, t.tokenizer.vocabulary), t) for t in (template, other)]
    best_of = kind("decoders").load("best_of")(samples=6)
    messages = [{"role": "user", "content": "hello"}]
    replies = replies_of(chats, messages, best_of, limit=2)
    assert len(replies) == 12
    assert replies == replies_of(chats, messages, best_of, limit=2)
    texts = [reply.text for reply in replies]
    vote = majority(texts)
    assert sum(count for _, count in vote.counts) == 12
    assert vote.share == max(count for _, count in vote.counts) / 12
    assert 0 <= least_risk(texts) < 12
