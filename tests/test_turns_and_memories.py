"""The encoder–decoder over turns and the memory network: who sees what, and the formulas against plain restatements."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from chattune.core.part import kind
from chattune.models.language_model import LanguageModel
from chattune.tokens.control import CONTROL

END = CONTROL.index("end")
VOCABULARY = 50
TURNS = torch.tensor([[7, 8, 9, END, 10, 11, 12, 13, END, 14, 15]])  # two turns that ended, and one that goes on
CLOSE = 1e-5  # float32 sums of some dozen terms of order 1, taken in another order


def built(name: str, **settings: object) -> LanguageModel:
    common = {"width": 16, "context": 32, "init": {"name": "normal", "std": 0.3}}
    model: LanguageModel = kind("families").load(name)(**common, **settings).build(VOCABULARY, seed=1).eval()
    return model


def encoder_decoder(**settings: object) -> LanguageModel:
    return built("encoder_decoder", layers=2, heads=2, init_outputs="same", **settings)


def encoded(model: LanguageModel, ids: Tensor) -> Tensor:
    """What the encoder makes of the tokens: (time, width)."""
    found: list[Tensor] = []
    handle = model.encoder_norm.register_forward_hook(lambda module, inputs, output: found.append(output))
    model(ids)
    handle.remove()
    return found[0][0]


def changed(place: int) -> Tensor:
    other = TURNS.clone()
    other[0, place] = 30
    return other


@pytest.mark.requirement("R071", "E9")
def test_the_encoder_reads_a_turn_both_ways_and_the_turns_before_it() -> None:
    model = encoder_decoder()
    plain = encoded(model, TURNS)
    for place, seen_from in ((2, 0), (7, 4), (10, 9)):
        moved = (encoded(model, changed(place)) - plain).abs().amax(1) > 0
        # Every token of the own turn and of later ones notices, earlier ones too; turns before do not.
        assert moved.tolist() == [False] * seen_from + [True] * (11 - seen_from)


@pytest.mark.requirement("R071")
def test_the_decoder_knows_earlier_turns_through_cross_attention_alone() -> None:
    model = encoder_decoder()
    with torch.no_grad():
        for block in model.decoder:
            block.cross.output.weight.zero_()
    plain, other = model(TURNS), model(changed(1))
    assert not torch.equal(other[0, 1:4], plain[0, 1:4]), "its own turn notices"
    assert torch.equal(other[0, 4:], plain[0, 4:]), "later ones do not"


def test_before_a_turn_has_ended_there_is_nothing_to_look_back_at() -> None:
    model = encoder_decoder()
    plain = model(TURNS)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.mul_(3.0)
    other = model(TURNS)
    assert torch.equal(other[0, :4], plain[0, :4]), "the first turn sees only the slot of nothing"
    assert not torch.equal(other[0, 4], plain[0, 4])


def test_a_turn_is_encoded_once_when_replying() -> None:
    model = encoder_decoder()
    lengths: list[int] = []
    model.encoder[0].register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    cache, found = model.new_cache(1, 16), []
    for token in TURNS.split(1, 1):
        found.append(model(token, cache=cache))
    assert lengths == [4, 5], "each turn goes through the encoder when the next one begins"
    torch.testing.assert_close(torch.cat(found, 1), model(TURNS), atol=CLOSE, rtol=CLOSE)


def test_another_end_token_may_end_the_turns() -> None:
    foreign = torch.where(TURNS == END, 40, TURNS)
    model = encoder_decoder(end=40)
    same = encoder_decoder()
    with torch.no_grad():
        same.embedding.weight[END] = model.embedding.weight[40]
    torch.testing.assert_close(model.hidden(foreign), same.hidden(TURNS), atol=0, rtol=0)


def remembered(model: LanguageModel, ids: Tensor, *, shared: bool, nonlinear: float, memory: int) -> np.ndarray:
    """Hidden states of one row, slot by slot and hop by hop, in float64."""
    weights = {name: weight.detach().double().numpy() for name, weight in model.state_dict().items()}
    tables = [weights[f"tables.{place}.weight"] for place in range(len(model.tables))]
    ages = [weights[f"ages.{place}.weight"] for place in range(len(model.tables))]
    tokens, width = ids[0].tolist(), tables[0].shape[1]
    states = []
    for now, token in enumerate(tokens):
        state = tables[0][token]
        for hop in range(model.family.hops):
            first = 0 if shared else hop
            slots = [(tokens[then], now - then) for then in range(now + 1) if now - then < memory]
            found = np.stack([tables[first][word] + ages[first][age] for word, age in slots])
            given = np.stack([tables[first + 1][word] + ages[first + 1][age] for word, age in slots])
            scores = found @ state / width**0.5
            share = np.exp(scores - scores.max())
            state = (weights["state.weight"] @ state if shared else state) + (share / share.sum()) @ given
            bent = round(nonlinear * width)
            state = np.concatenate([np.maximum(state[:bent], 0), state[bent:]])
        states.append(state)
    return np.stack(states)


@pytest.mark.parametrize("weights", ["shared", "adjacent"])
@pytest.mark.parametrize("memory", [32, 4])
@pytest.mark.parametrize("nonlinear", [0.5, 0.0])
def test_the_memory_network_is_its_formula(weights: str, memory: int, nonlinear: float) -> None:
    model = built("memory_network", hops=3, weights=weights, memory=memory, nonlinear=nonlinear)
    expected = remembered(model, TURNS, shared=weights == "shared", nonlinear=nonlinear, memory=memory)
    found = model.hidden(TURNS)[0].detach().double().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)  # float32 against float64 through three softmaxes
    cache = model.new_cache(1, 16)
    steps = torch.cat([model.hidden(piece, cache=cache) for piece in TURNS.split([5, 1, 4, 1], 1)], 1)
    np.testing.assert_allclose(steps[0].detach().double().numpy(), expected, atol=1e-4, rtol=1e-4)


def test_what_is_older_than_the_memory_is_forgotten() -> None:
    model = built("memory_network", hops=2, memory=4)
    plain, other = model(TURNS), model(changed(0))
    assert not torch.equal(plain[0, 3], other[0, 3])
    assert torch.equal(plain[0, 4:], other[0, 4:])


@pytest.mark.parametrize("weights", ["shared", "adjacent"])
@pytest.mark.parametrize("tied", [True, False])
def test_tables_of_a_memory_network_are_shared_as_the_settings_say(weights: str, tied: bool) -> None:
    model = built("memory_network", hops=3, weights=weights, tied=tied)
    tables = sum(VOCABULARY in weight.shape for weight in model.parameters())
    assert tables == {"shared": 2, "adjacent": 4}[weights] + (0 if tied else 2)
    assert model.family.parameters(VOCABULARY) == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(("name", "norm"), [("encoder_decoder", "batch_norm"), ("memory_network", "local_response_norm")])
def test_a_norm_that_does_not_fit_is_refused_with_those_that_do(name: str, norm: str) -> None:
    with pytest.raises(ValueError, match=f"{norm} does not fit .*rms_norm and layer_norm do"):
        built(name, norm=norm)
