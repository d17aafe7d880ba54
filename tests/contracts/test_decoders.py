"""The contract of every decoder, over whatever stands in the folder and every family; and what each one of ours promises."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chattune.core.errors import UsageError
from chattune.core.part import kind
from chattune.generate.decoders import Candidate, Decoder
from chattune.generate.reply import ChatModel, Sampling
from chattune.generate.speaker import Speaker, candidates
from chattune.models.families.gpt import GPT
from chattune.models.language_model import LanguageModel
from chattune.tokens.template import Template
from chattune.tokens.tokenizer import Tokenizer

NAMES = kind("decoders").names()
FAMILIES = kind("families").names()
VOCABULARY, CONTEXT, END, NEVER = 40, 24, 2, (0, 1)
PROMPT = [7, 12, 9, 30, 21]
SMALL = {
    "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "context": CONTEXT, "init": {"name": "normal", "std": 0.2},
    "init_outputs": "same",
}  # fmt: skip
CLOSE = 1e-5  # float32 sums, taken by a cache in another order


def decoder(name: str, **settings: Any) -> Decoder:
    return kind("decoders").load(name)(**settings)


def model(family: str = "gpt", vocabulary: int = VOCABULARY, seed: int = 0, **settings: Any) -> LanguageModel:
    part = kind("families").load(family)
    chosen = {key: value for key, value in {**SMALL, **settings}.items() if key in part.model_fields}
    return part(**chosen).build(vocabulary, seed=seed).eval()


def speaker(family: str = "gpt", limit: int = 8, seed: int = 0, **settings: Any) -> Speaker:
    return Speaker(model(family, **settings), frozenset({END}), NEVER, limit, seed)


def whole(s: Speaker, prompt: list[int], tokens: tuple[int, ...]) -> np.ndarray:
    """Log-probability of each token, from one pass without a cache."""
    with torch.no_grad():
        logits = s.model(torch.tensor([[*prompt, *tokens]]))[0, len(prompt) - 1 : -1].double()
    logits[:, list(s.never)] = -torch.inf
    return logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_candidates_are_scored_by_the_models_own_log_probabilities_and_keep_the_limit(name: str, family: str) -> None:
    s = speaker(family)
    found = decoder(name).decode(s, PROMPT)
    assert found
    for candidate in found:
        assert 0 < len(candidate.tokens) <= 8
        assert (candidate.finish_reason == "stop") == (candidate.tokens[-1] == END)
        assert candidate.finish_reason == "stop" or len(candidate.tokens) == 8
        assert END not in candidate.tokens[:-1]
        assert not set(candidate.tokens) & set(NEVER)
        np.testing.assert_allclose(candidate.logprobs, whole(s, PROMPT, candidate.tokens), atol=CLOSE, rtol=CLOSE)
        assert math.isfinite(candidate.score)
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_repeats_with_its_seed_and_leaves_the_world_as_it_was(name: str) -> None:
    s = speaker(seed=3, limit=100)
    before = {key: value.clone() for key, value in s.model.state_dict().items()}
    random = torch.random.get_rng_state()
    first = decoder(name).decode(s, PROMPT)
    assert first == decoder(name).decode(s, PROMPT)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in s.model.state_dict().items())
    assert all(len(PROMPT) + len(candidate.tokens) <= CONTEXT for candidate in first), "nor does it leave the context"
    with pytest.raises(UsageError, match="leaves no room"):
        decoder(name).decode(s, [7] * CONTEXT)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_acts_where_a_decoder_says_that_it_draws_and_nowhere_else(name: str) -> None:
    found = [decoder(name).decode(speaker(limit=8), PROMPT)]
    for seed in (1, 2):
        s = speaker(limit=8)
        found.append(decoder(name).decode(Speaker(s.model, s.ends, s.never, s.limit, seed), PROMPT))
    assert all(one == found[0] for one in found) == (not kind("decoders").load(name).draws)


# Beams

TINY, STEPS = 4, 4


def every_reply(s: Speaker, length_penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """All replies of at most STEPS tokens over TINY ids, the best first."""
    found = []
    for length in range(1, STEPS + 1):
        for tokens in itertools.product(range(TINY), repeat=length):
            ended = tokens[-1] == END
            if END not in tokens[:-1] and (ended or length == STEPS):
                found.append((whole(s, [1, 3], tokens).sum() / length**length_penalty, tokens))
    return sorted(found, key=lambda item: (-item[0], item[1]))


@pytest.mark.requirement("R200")
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_beam_search_equals_exhaustive_search_where_beams_are_enough(seed: int, length_penalty: float) -> None:
    s = Speaker(model(vocabulary=TINY, seed=seed), frozenset({END}), (), STEPS)
    wanted = every_reply(s, length_penalty)
    wide = TINY**STEPS
    found = decoder("beam_search", width=wide, n_best=wide, length_penalty=length_penalty).decode(s, [1, 3])
    assert len(found) == len(wanted)
    np.testing.assert_allclose([c.score for c in found], [score for score, _ in wanted], atol=CLOSE)
    assert {c.tokens for c in found} == {tokens for _, tokens in wanted}
    (best,) = decoder("beam_search", width=wide, length_penalty=length_penalty).decode(s, [1, 3])
    assert best.score == pytest.approx(wanted[0][0], abs=CLOSE), "stopping early loses nothing"


@pytest.mark.requirement("R200")
def test_wider_beams_find_replies_that_greedy_search_misses() -> None:
    gains = []
    for seed in range(12):
        s = Speaker(model(vocabulary=12, seed=seed), frozenset({END}), NEVER, 6)
        scores = [decoder("beam_search", width=width, length_penalty=0.0).decode(s, PROMPT[:1])[0].score for width in (1, 4, 400)]
        assert scores[2] >= max(scores) - 1e-9
        gains.append(scores[1] - scores[0])
    assert np.mean(gains) > 0.02, "nats; most of these small models are searched well by one beam"
    assert max(gains) > 0.1


@pytest.mark.requirement("R200")
def test_beam_search_finds_what_transformers_finds_or_better() -> None:
    from transformers import GenerationConfig

    equal = 0
    for seed in range(8):
        s = Speaker(model("hf", seed=seed), frozenset({END}), (), 10)
        (ours,) = decoder("beam_search", width=4).decode(s, PROMPT)
        asked = GenerationConfig(
            num_beams=4, length_penalty=1.0, early_stopping="never", max_new_tokens=10, eos_token_id=END, pad_token_id=0,
            do_sample=False, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        seen = torch.ones(1, len(PROMPT), dtype=torch.long)
        theirs = s.model.network.generate(torch.tensor([PROMPT]), attention_mask=seen, generation_config=asked)
        said = theirs.sequences[0, len(PROMPT) :].tolist()
        score = float(theirs.sequences_scores[0])
        assert ours.score >= score - CLOSE, "theirs lets a beam end only where that is among the best continuations"
        equal += said[: len(ours.tokens)] == list(ours.tokens) and ours.score == pytest.approx(score, abs=CLOSE)
    assert equal >= 6


def test_beams_cannot_give_more_replies_than_there_are() -> None:
    with pytest.raises(ValueError, match="5 replies cannot come of 4 beams"):
        decoder("beam_search", n_best=5)


def test_diverse_beams_are_one_beam_search_at_one_group_and_differ_from_the_first_token_on_at_more() -> None:
    s = speaker(limit=6)
    (alone,) = decoder("diverse_beam_search", groups=1, width=3).decode(s, PROMPT)
    assert alone == decoder("beam_search", width=3).decode(s, PROMPT)[0]
    same = decoder("diverse_beam_search", groups=4, width=1, strength=0.0).decode(s, PROMPT)
    assert len({candidate.tokens[0] for candidate in same} - {END}) == 1, "without a cost for it all groups begin alike"
    found = decoder("diverse_beam_search", groups=4, width=1, strength=100.0).decode(s, PROMPT)
    firsts = {candidate.tokens[0] for candidate in found}
    assert len(found) == 4 == len(firsts)
    assert alone.score >= max(candidate.score for candidate in found) - CLOSE


# Contrastive search

@pytest.mark.parametrize(("k", "alpha"), [(4, 0.6), (3, 0.3), (5, 1.0), (4, 0.0), (1, 0.6)])
def test_contrastive_search_equals_its_formula_in_numpy(k: int, alpha: float) -> None:
    s = speaker(limit=7)
    (found,) = decoder("contrastive_search", k=k, alpha=alpha).decode(s, PROMPT)
    ids = list(PROMPT)
    while len(ids) - len(PROMPT) < 7 and ids[-1] != END:
        with torch.no_grad():
            logits = s.model(torch.tensor([ids]))[0, -1].double()
            logits[list(NEVER)] = -torch.inf
            p = logits.softmax(-1).numpy()
            tried = []
            for token in np.argsort(-p)[:k]:
                hidden = s.model.hidden(torch.tensor([[*ids, token]]))[0].double().numpy()
                unit = hidden / np.linalg.norm(hidden, axis=-1, keepdims=True)
                tried.append(((1 - alpha) * p[token] - alpha * (unit[:-1] @ unit[-1]).max(), int(token)))
        ids.append(max(tried)[1])
    assert list(found.tokens) == ids[len(PROMPT) :]


# Drawing, and doubt

def test_the_best_of_many_draws_is_the_likeliest_and_they_follow_the_models_distribution() -> None:
    s = speaker(limit=1)
    found = decoder("best_of", samples=4000).decode(s, PROMPT)
    share = np.bincount([c.tokens[0] for c in found], minlength=VOCABULARY) / 4000
    with torch.no_grad():
        logits = s.model(torch.tensor([PROMPT]))[0, -1].double()
    logits[list(NEVER)] = -torch.inf
    np.testing.assert_allclose(share, logits.softmax(-1).numpy(), atol=0.04)  # five standard errors of a share of a half
    assert len(decoder("best_of", samples=5).decode(s, PROMPT)) == 5


def test_without_dropout_there_is_no_doubt_of_its_own_and_with_it_there_is() -> None:
    s = speaker(limit=6)
    (sure,) = decoder("monte_carlo_dropout", rate=0.0, samples=3).decode(s, PROMPT)
    with torch.no_grad():
        logits = s.model(torch.tensor([[*PROMPT, *sure.tokens]]))[0, len(PROMPT) - 1 : -1].double()
    logits[:, list(NEVER)] = -torch.inf
    p = logits.softmax(-1).numpy()
    np.testing.assert_allclose(sure.entropy, -(p * np.log(np.where(p > 0, p, 1))).sum(-1), atol=CLOSE)
    np.testing.assert_allclose(sure.information, 0, atol=CLOSE)
    less, more = (decoder("monte_carlo_dropout", rate=rate, samples=32).decode(s, PROMPT)[0] for rate in (0.05, 0.4))
    assert less.tokens == more.tokens == sure.tokens
    assert 0 < np.mean(less.information) < np.mean(more.information)
    for candidate in (less, more):
        assert all(0 <= i <= h <= math.log(VOCABULARY) for i, h in zip(candidate.information, candidate.entropy, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_left_as_it_was_found(family: str) -> None:
    s = speaker(family, limit=3)
    s.model.set_dropout(0.25)
    next(iter(s.model.children())).train()

    def state(m: nn.Module) -> list[tuple[bool, dict[str, float]]]:
        return [(module.training, {k: v for k, v in vars(module).items() if isinstance(v, float)}) for module in m.modules()]

    before, numbers = state(s.model), {name: value.clone() for name, value in s.model.state_dict().items()}
    decoder("monte_carlo_dropout", samples=2).decode(s, PROMPT)
    assert state(s.model) == before
    assert all(torch.equal(value, numbers[name]) for name, value in s.model.state_dict().items())


def test_a_chat_model_gives_candidates_as_replies() -> None:
    template = Template(Tokenizer.train_at_most(["hello there, who are you? "] * 3, 290))
    family = GPT(layers=2, width=32, heads=4, kv_heads=2, context=96, init={"name": "normal", "std": 0.2}, init_outputs="same")
    chat = ChatModel(family.build(template.tokenizer.vocabulary, seed=0), template)
    messages = [{"role": "user", "content": "hello"}]
    found = candidates(chat, messages, decoder("beam_search", width=3, n_best=3), limit=10)
    assert len(found) == 3
    for scored in found:
        assert scored.reply.text == chat.tokenizer.decode(scored.reply.tokens)
        assert isinstance(scored.candidate, Candidate)
        assert len(scored.reply.tokens) <= 10
    greedy = candidates(chat, messages, decoder("contrastive_search", k=1), limit=10)[0].reply
    assert greedy == chat.replies([messages], Sampling(temperature=0, repetition_penalty=1, max_tokens=10))[0]
