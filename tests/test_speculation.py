"""Speculation changes how fast a reply comes, never what it says: of every family that can take back a token, and the rules for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import few_tokens
import numpy as np
import pytest
import torch
from few_tokens import FEW, WORDS, few
from torch import Tensor

from chattune.core.errors import UsageError
from chattune.core.part import kind
from chattune.generate.choice import Chances, Choice, Chooser, Past, Row, Style
from chattune.generate.decoding import Decoding
from chattune.generate.engine import Ask, Engine
from chattune.generate.ensemble import EnsembleModel
from chattune.generate.reply import ChatModel, Sampling
from chattune.generate.runner import TorchRunner
from chattune.generate.speculation import Proposal, Speculation, Trust, accepted, looked_up
from chattune.models.language_model import LanguageModel
from chattune.tokens.template import Template
from chattune.tokens.tokenizer import Tokenizer

FAMILIES = kind("families").names()
REWINDING = ("encoder_decoder", "gpt", "memory_network")  # families that can take back a token that they have read
VOCABULARY = 300


def build(name: str, vocabulary: int = VOCABULARY, seed: int = 0, **settings: Any) -> LanguageModel:
    return few_tokens.build(name, vocabulary, seed, **settings)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_at_most(["hello there, who are you? 你好"] * 3, 280)


def repeating(random: torch.Generator, length: int, between: int = 9) -> tuple[int, ...]:
    """A prompt that says some things again, so that there is something to look up."""
    phrase = torch.randint(7, 280, (length,), generator=random).tolist()
    return (*phrase, between, *phrase[: length // 2], 8, *phrase)


@pytest.mark.requirement("R200")
@pytest.mark.parametrize("name", FAMILIES)
def test_speculation_gives_every_family_the_tokens_it_has_without(name: str, tokenizer: Tokenizer) -> None:
    model = build(name)
    random = torch.Generator().manual_seed(0)
    prompts = [repeating(random, length) for length in (6, 14, 9, 20)]
    for sampling in (
        Sampling(temperature=0, repetition_penalty=1, max_tokens=24), Sampling(temperature=0, max_tokens=24, presence_penalty=0.5),
        Sampling(temperature=0.6, max_tokens=24, seed=3), Sampling(temperature=0.6, max_tokens=24, no_repeat_ngram=4, stop="e"),
    ):  # fmt: skip
        asks = [Ask(prompt, sampling) for prompt in prompts]
        plain = Engine(model, tokenizer, slots=4).run(asks)
        speculating = Engine(model, tokenizer, slots=3, chunk=8, speculation=Speculation(match=2))
        assert speculating.run(asks) == plain
        assert (speculating.speculation is not None) == speculating.runner.rewinds
    load = speculating.load()
    assert (load.proposed_total > 0) == speculating.runner.rewinds


@pytest.mark.requirement("R200")
@pytest.mark.parametrize("proposing", REWINDING)
@pytest.mark.parametrize("name", REWINDING)
def test_a_draft_model_of_any_family_that_rewinds_proposes_to_any_other(name: str, proposing: str, tokenizer: Tokenizer) -> None:
    model, draft = build(name), build(proposing, seed=5, layers=1)
    random, end = torch.Generator().manual_seed(0), tokenizer.ends[0]
    greedy = Sampling(temperature=0, repetition_penalty=1.1, max_tokens=24)
    # Some prompts have several turns, so that ends of turns are proposed and taken back, too.
    asks = [Ask(repeating(random, length, between), greedy) for length, between in ((6, 9), (14, end), (9, end), (20, 9))]
    plain = Engine(model, tokenizer, slots=4).run(asks)
    for own, speculation in ((draft, Speculation(lookup=0)), (draft, Speculation(match=1, lookup=3)), (model, Speculation(lookup=0))):
        runner = TorchRunner(own, slots=4, length=96)
        engine = Engine(model, tokenizer, slots=4, chunk=16, draft=runner, speculation=speculation)
        assert engine.run(asks) == plain
        assert engine.run(asks) == plain, "once more, in slots that hold something"
        load = engine.load()
        assert load.proposed_total > 0
        assert load.accepted_total < load.proposed_total or own is model
    assert load.accepted_total == load.proposed_total, "the model as its own draft model: every token is taken"
    assert load.steps_total < load.generated_total / 3, "and steps are saved"


@pytest.mark.parametrize("name", FAMILIES)
def test_families_that_cannot_take_back_a_token_are_refused_by_name(name: str, tokenizer: Tokenizer) -> None:
    model, gpt, template = build(name), build("gpt", seed=1), Template(tokenizer)
    this, other = ChatModel(model, template), ChatModel(gpt, template)
    both = ChatModel(EnsembleModel([gpt, model]), template)
    ways = {
        "speculation": (this, Decoding(speculation=Speculation())), "draft": (this, Decoding(draft=other)),
        "draft, proposing": (other, Decoding(draft=this)), "speculation, together": (both, Decoding(speculation=Speculation())),
        "draft, proposing together": (other, Decoding(draft=both)),
    }  # fmt: skip
    messages = [{"role": "user", "content": "hello, who are you?"}]
    for way, (chat, decoding) in ways.items():
        if name in REWINDING:
            greedy = Sampling(temperature=0, max_tokens=12)
            assert chat.decoded_by(decoding).replies([messages], greedy) == chat.replies([messages], greedy)
            continue
        with pytest.raises(UsageError, match=f"of the {name} family cannot take back") as refused:
            chat.decoded_by(decoding)
        assert refused.value.path == way.partition(",")[0]
        assert refused.value.value == name
        assert all(known in refused.value.rule for known in REWINDING)


def test_numbers_that_the_draft_model_lacks_are_refused_before_it_is_asked(tokenizer: Tokenizer) -> None:
    chat, draft = (ChatModel(build(name), Template(tokenizer)) for name in ("gpt", "memory_network"))
    with pytest.raises(UsageError, match="the memory_network family has no weights in int8") as refused:
        chat.decoded_by(Decoding(weights="int8", draft=draft))
    assert refused.value.path == "weights"


def test_the_log_probabilities_and_the_end_are_those_of_plain_decoding(tokenizer: Tokenizer) -> None:
    model = build("gpt")
    prompt = repeating(torch.Generator().manual_seed(1), 12)
    for sampling in (Sampling(temperature=0, repetition_penalty=1, max_tokens=7), Sampling(temperature=0, min_tokens=9, max_tokens=30)):
        ask = Ask(prompt, sampling, logprobs=2)
        plain = list(Engine(model, tokenizer, slots=1).stream(ask))
        draft = TorchRunner(model, slots=1, length=96)
        for engine in (
            Engine(model, tokenizer, slots=1, speculation=Speculation(match=1)), Engine(model, tokenizer, slots=1, draft=draft),
        ):  # fmt: skip
            found = list(engine.stream(ask))
            assert [(event.text, event.token, event.finish_reason) for event in found] == [
                (event.text, event.token, event.finish_reason) for event in plain
            ]
            for event, other in zip(found[:-1], plain[:-1], strict=True):
                assert event.logprob == pytest.approx(other.logprob, abs=1e-4)
                assert [token for token, _ in event.alternatives] == [token for token, _ in other.alternatives]


# The rules


@dataclass
class Asked:
    ids: list[int]
    chooser: Chooser


def test_the_rule_of_acceptance_gives_the_models_distribution_whatever_was_proposed() -> None:
    random = np.random.default_rng(0)
    target = np.array([[0.5, 0.2, 0.3, 0.0], [0.1, 0.1, 0.4, 0.4]])
    for other in ([0.1, 0.6, 0.3, 0.0], [0.5, 0.2, 0.3, 0.0], [0.0, 0.0, 0.0, 1.0], [0.25, 0.25, 0.25, 0.25]):
        q = [np.array(other)]
        first, second, taken = np.zeros(4), np.zeros(4), 0
        for _ in range(8000):
            proposed = int(random.choice(4, p=other))
            tokens = accepted(target, Proposal([proposed], q), random.random(2).tolist(), random.random(2).tolist())
            first[tokens[0]] += 1
            if len(tokens) > 1:
                assert tokens[0] == proposed
                second[tokens[1]] += 1
                taken += 1
        # Five standard errors of a share near a half.
        np.testing.assert_allclose(first / 8000, target[0], atol=0.028)
        assert taken / 8000 == pytest.approx(float(np.minimum(target[0], q[0]).sum()), abs=0.028), "as many as can be"
        if taken:
            np.testing.assert_allclose(second / taken, target[1], atol=5 * 0.5 / math.sqrt(taken))


def test_what_followed_the_same_tokens_last_is_looked_up() -> None:
    def found(ids: list[int], match: int, most: int) -> list[int]:
        return looked_up(np.array(ids, dtype=np.int64), match, most)

    assert found([1, 2, 3, 9, 1, 2, 3, 8, 7, 1, 2, 3], 3, 2) == [8, 7]
    assert found([1, 2, 3, 9, 1, 2, 3, 8, 7, 1, 2, 3], 3, 9) == [8, 7, 1, 2, 3]
    assert found([1, 2, 3, 4], 2, 4) == []
    assert found([5, 5, 5], 1, 4) == [5]
    assert found([5, 5, 5], 2, 4) == [5]
    assert found([1], 1, 4) == found([], 1, 4) == found([1, 1], 1, 0) == []


def test_proposals_that_are_never_taken_become_seldom_and_soon_begin_again() -> None:
    trust = Trust()

    def asked(steps: int, taken: int) -> int:
        count = 0
        for _ in range(steps):
            if trust.asks():
                count += 1
                trust.learn(taken)
        return count

    assert asked(20, taken=2) == 20
    assert asked(60, taken=0) < 15
    assert asked(20, taken=1) > 13


def test_a_draft_model_that_does_not_fit_is_refused() -> None:
    model = few()
    other = build("gpt", WORDS + 1, width=16, heads=2, kv_heads=2, context=24)
    for draft in (
        TorchRunner(other, slots=2, length=24), TorchRunner(few(), slots=1, length=24),
        TorchRunner(build("gru", WORDS, width=16, context=24), slots=2, length=24),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="cannot propose"):
            Engine(model, FEW, slots=2, draft=draft)
    recurrent = build("gru", WORDS, width=16, context=24)
    engine = Engine(recurrent, FEW, slots=2, draft=TorchRunner(few(), slots=2, length=24))
    assert engine.speculation is None, "states cannot go back"


def test_a_draft_model_proposes_as_far_as_its_own_context_reaches() -> None:
    model = few()
    ask = Ask((2, 3, 4, 5, 2, 3), Sampling(temperature=0, min_tokens=18, max_tokens=18))
    (plain,) = Engine(model, FEW, slots=1).run([ask])
    steps = []
    for length in (12, 24):
        only_drafts = Speculation(lookup=0)
        engine = Engine(model, FEW, slots=1, draft=TorchRunner(model, slots=1, length=length), speculation=only_drafts)
        assert engine.run([ask]) == [plain]
        load = engine.load()
        assert 0 < load.accepted_total == load.proposed_total
        steps.append(load.steps_total)
    assert steps[0] > steps[1] + 5, "beyond it token by token"


@pytest.mark.parametrize("seed", range(30))
def test_the_short_way_draws_the_tokens_that_the_rules_draw(seed: int) -> None:
    random = np.random.default_rng(seed)
    settings = {
        "temperature": float(random.choice([0.0, 0.2, 0.7, 1.0, 3.0])), "top_k": int(random.choice([0, 1, 5, 90])),
        "top_p": float(random.choice([0.2, 0.9, 0.999, 1.0])), "min_p": float(random.choice([0.0, 0.05])),
        "repetition_penalty": float(random.choice([1.0, 1.1, 2.0])),
    }  # fmt: skip
    style = Style(Sampling(**settings))
    assert style.short is not None
    by_rules = Style(Sampling(**settings))
    by_rules.short = None
    ids = random.integers(0, 400, 50).tolist()
    rows: dict[str, list[Row]] = {"short": [], "rules": []}
    for number in range(40):
        for name, own in (("short", style), ("rules", by_rules)):
            rows[name].append(Row(Asked(list(ids), Chooser(own, Chances(number, ids), Past(list(ids), 20))), tuple(range(number % 3))))
    choice = Choice(np.array([3, 4]), np.array([5]))
    logits = torch.from_numpy(random.normal(size=(40, 400)).astype(np.float32) * float(random.choice([0.1, 1, 4, 20])))
    found = {name: [chosen.token for chosen in choice.tokens(logits.clone(), own)] for name, own in rows.items()}
    assert found["short"] == found["rules"]


def test_a_model_that_gives_no_numbers_ends_its_request_with_an_error(tokenizer: Tokenizer) -> None:
    from chattune.core.errors import DivergenceError

    class Half(TorchRunner):
        def forward(self, pieces: Any) -> Tensor:
            logits = super().forward(pieces)
            for number, piece in enumerate(pieces):
                if 251 in piece.ids:
                    with torch.inference_mode():
                        logits[number] = torch.nan
            return logits

    model = build("gpt")
    engine = Engine(model, tokenizer, runner=Half(model, slots=2, length=96))
    good = Ask((5, 6, 7), Sampling(max_tokens=5))
    events: list[Any] = []
    ticket = engine.submit(Ask((5, 251), Sampling(max_tokens=5, temperature=1.5)), events.append)
    assert engine.run([good]) == Engine(model, tokenizer, slots=1).run([good]), "who stands beside is not concerned"
    assert [event.finish_reason for event in events] == ["error"]
    assert isinstance(ticket.error, DivergenceError)
