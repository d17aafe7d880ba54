"""Speculation changes how fast a reply comes, never what it says: exact tokens, exact distributions, and the rules that give them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from chattune.core.errors import UsageError
from chattune.core.part import kind
from chattune.generate.choice import Chances, Choice, Chooser, Past, Row, Style
from chattune.generate.engine import Ask, Engine
from chattune.generate.reply import Reply, Sampling
from chattune.generate.runner import TorchRunner
from chattune.generate.speculation import Proposal, Speculation, Trust, accepted, looked_up
from chattune.models.language_model import LanguageModel
from chattune.tokens.tokenizer import Tokenizer

FAMILIES = kind("families").names()
SMALL = {
    "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "context": 96, "init": {"name": "normal", "std": 0.2}, "init_outputs": "same",
}  # fmt: skip
VOCABULARY = 300
END, WORDS = 0, 9  # of the tokenizer of a few tokens
DRAWS = 20_000


def build(name: str, vocabulary: int = VOCABULARY, seed: int = 0, **settings: Any) -> LanguageModel:
    part = kind("families").load(name)
    family = part(**{key: value for key, value in {**SMALL, **settings}.items() if key in part.model_fields})
    return family.build(vocabulary, seed=seed).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_at_most(["hello there, who are you? 你好"] * 3, 280)


class Few:
    """A tokenizer of a few tokens, each one letter, and an end."""

    vocabulary, ends, never = WORDS, (END,), (1,)

    def stream(self) -> Few:
        return self

    def push(self, token: int) -> str:
        return "_abcdefghij"[token]

    def finish(self) -> str:
        return ""


def repeating(random: torch.Generator, length: int) -> tuple[int, ...]:
    """A prompt that says some things again, so that there is something to look up."""
    phrase = torch.randint(7, 280, (length,), generator=random).tolist()
    return (*phrase, 9, *phrase[: length // 2], 8, *phrase)


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
    if name == "gpt":
        draft = TorchRunner(build("gpt", seed=5, layers=1), slots=4, length=96)
        greedy = Sampling(temperature=0, repetition_penalty=1.1, max_tokens=24)
        asks = [Ask(prompt, greedy) for prompt in prompts]
        plain = Engine(model, tokenizer, slots=4).run(asks)
        for own in (draft, TorchRunner(model, slots=4, length=96)):
            for engine in (Engine(model, tokenizer, slots=4, draft=own, speculation=Speculation(lookup=0)),):
                assert engine.run(asks) == plain
                assert engine.run(asks) == plain, "once more, in slots that hold something"
        load = engine.load()
        assert load.accepted_total == load.proposed_total > 0, "the model as its own draft model: every token is taken"
        assert load.steps_total < load.generated_total / 3, "and steps are saved"


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


# The distribution of what is drawn


@dataclass
class Asked:
    ids: list[int]
    chooser: Chooser


def exactly(model: LanguageModel, prompt: Sequence[int], sampling: Sampling, length: int) -> dict[tuple[int, ...], float]:
    """The probability of each reply of at most `length` tokens, by whole passes and the rules themselves."""
    choice = Choice(np.array(Few.never), np.array(Few.ends))
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer: dict[tuple[int, ...], float] = {}
        for reply, probability in found.items():
            if reply and reply[-1] == END:
                longer[reply] = probability
                continue
            ids = [*prompt, *reply]
            with torch.inference_mode():
                logits = model(torch.tensor([ids]))[0, -1:].float()
                asked = Asked(ids, Chooser(Style(sampling), Chances(0, prompt), Past(ids, len(prompt))))
                shares, _ = choice.shares(logits, [Row(asked)])
            longer |= {(*reply, token): probability * float(shares[0, token]) for token in range(WORDS) if shares[0, token] > 0}
        found = longer
    return found


def compare(replies: Sequence[Reply], expected: dict[tuple[int, ...], float], length: int) -> None:
    """The chi-square of the counts, and their total variation, against what chance allows."""
    counts = dict.fromkeys(expected, 0)
    for reply in replies:
        said = (*reply.tokens, END) if len(reply.tokens) < length else reply.tokens
        counts[said] += 1  # a reply that cannot be fails here
    assert sum(expected.values()) == pytest.approx(1.0)
    likely = [(counts[said], probability * len(replies)) for said, probability in expected.items()]
    large = [(count, mean) for count, mean in likely if mean >= 5]
    rest = [(sum(c for c, m in likely if m < 5), sum(m for _, m in likely if m < 5))]
    cells = [*large, *(rest if rest[0][1] >= 5 else [])]
    square = sum((count - mean) ** 2 / mean for count, mean in cells)
    freedom = len(cells) - 1
    # Mean n and deviation √2n of a chi-square; five of them are passed by chance once in some hundred thousand times.
    assert square < freedom + 5 * math.sqrt(2 * freedom), (square, freedom)
    distance = sum(abs(count - mean) for count, mean in likely) / 2 / len(replies)
    # A count's mean deviation is √(2np/π): what chance alone gives in the mean, and half as much again.
    assert distance < 1.5 * sum(math.sqrt(2 * mean / math.pi) for _, mean in likely) / 2 / len(replies)


RULED = Sampling(temperature=1.2, top_p=0.95, top_k=7, repetition_penalty=1.3, presence_penalty=0.4, logit_bias={3: 0.7}, max_tokens=3)
USUAL = Sampling(temperature=1.2, top_p=0.95, min_p=0.02, repetition_penalty=1.1, max_tokens=3)
PROMPT = (2, 3, 4, 5, 2, 3)  # what follows 2, 3 can be looked up


def few(layers: int = 1, seed: int = 0, std: float = 0.25) -> LanguageModel:
    init = {"name": "normal", "std": std}
    return build("gpt", WORDS, seed, layers=layers, width=16, heads=2, kv_heads=2, context=24, init=init)


def many(engine: Engine, sampling: Sampling, count: int = DRAWS, prompt: tuple[int, ...] = PROMPT) -> list[Reply]:
    return engine.run([Ask(prompt, sampling, number=number) for number in range(count)])


@pytest.mark.requirement("R200", "R202")
@pytest.mark.parametrize(("sampling", "count"), [(USUAL, DRAWS), (RULED, DRAWS // 4)], ids=["usual", "ruled"])
def test_draws_have_the_distribution_of_model_and_rules_however_they_are_decoded(sampling: Sampling, count: int) -> None:
    model, tokenizer = few(), cast(Tokenizer, Few())
    expected = exactly(model, PROMPT, sampling, 3)
    assert len(expected) > 100
    together = many(Engine(model, tokenizer, slots=64), sampling, count)  # batched and cached; the prompt is read once and shared
    compare(together, expected, 3)
    some = 400  # what is the same reply for the same number has the same distribution
    for engine in (
        Engine(model, tokenizer, slots=1), Engine(model, tokenizer, slots=16, chunk=2),
        Engine(model, tokenizer, slots=16, speculation=Speculation(match=1)),
    ):  # fmt: skip
        assert many(engine, sampling, some) == together[:some], "single, in chunks, looked up"
    assert engine.load().accepted_total > some / 10
    with pytest.raises(AssertionError):  # the positive control
        compare(together, exactly(model, PROMPT, sampling.model_copy(update={"temperature": sampling.temperature + 0.2}), 3), 3)


@pytest.mark.requirement("R200", "R202")
@pytest.mark.parametrize(
    ("changed", "sampling", "count"), [({"seed": 1}, RULED, DRAWS), ({"std": 0.2}, USUAL, DRAWS // 4)], ids=["stranger", "relative"]
)
def test_a_draft_model_changes_no_distribution(changed: dict[str, Any], sampling: Sampling, count: int) -> None:
    model, draft = few(), few(**changed)
    small, speculation = TorchRunner(draft, slots=64, length=24), Speculation(lookup=0, draft=2)
    engine = Engine(model, cast(Tokenizer, Few()), slots=64, draft=small, speculation=speculation)
    compare(many(engine, sampling, count), exactly(model, PROMPT, sampling, 3), 3)
    load = engine.load()
    assert 0.1 < load.accepted_total / load.proposed_total < 0.95, "some are taken, some are not"


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
    model, tokenizer = few(), cast(Tokenizer, Few())
    other = build("gpt", WORDS + 1, width=16, heads=2, kv_heads=2, context=24)
    for draft in (
        TorchRunner(other, slots=2, length=24), TorchRunner(few(), slots=1, length=24),
        TorchRunner(build("gru", WORDS, width=16, context=24), slots=2, length=24),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="cannot propose"):
            Engine(model, tokenizer, slots=2, draft=draft)
    recurrent = build("gru", WORDS, width=16, context=24)
    engine = Engine(recurrent, tokenizer, slots=2, draft=TorchRunner(few(), slots=2, length=24))
    assert engine.speculation is None, "states cannot go back"


def test_a_draft_model_proposes_as_far_as_its_own_context_reaches() -> None:
    model, tokenizer = few(), cast(Tokenizer, Few())
    ask = Ask(PROMPT, Sampling(temperature=0, min_tokens=18, max_tokens=18))
    (plain,) = Engine(model, tokenizer, slots=1).run([ask])
    steps = []
    for length in (12, 24):
        only_drafts = Speculation(lookup=0)
        engine = Engine(model, tokenizer, slots=1, draft=TorchRunner(model, slots=1, length=length), speculation=only_drafts)
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
