"""Recurrent families: the steps against torch and against plain NumPy, windows that stay apart, and how far back each remembers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from chattune.core.part import kind
from chattune.models import recurrence
from chattune.models.families._recurrent import Layer, RecurrentModel
from chattune.models.families._recurrent_family import RecurrentFamily
from chattune.models.families.convolution import Convolution
from chattune.models.families.gru import GRU
from chattune.models.families.lstm import LSTM
from chattune.models.families.rnn import RNN
from chattune.models.families.seq2seq import Seq2Seq
from chattune.models.norms.layer_norm import LayerNorm
from chattune.models.unpacked import Sequences, ages, beginnings
from chattune.tokens.control import CONTROL

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import lags

CELLS = ["rnn", "lstm", "gru"]
SIZES = torch.tensor([4, 3, 3, 1, 1])  # four sequences of 5, 3, 3 and 1 tokens
END = CONTROL.index("end")
EXACT = 1e-12  # float64, some dozen terms of order 1


def filled(cell: str, **settings: object) -> Layer:
    layer = Layer(cell, 5, 6, **settings).double()  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(0)
    for weight in layer.parameters():
        weight.data.normal_(generator=random)
    return layer


def inputs(layer: Layer) -> tuple[Tensor, tuple[Tensor, ...]]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(12, 5, dtype=torch.float64, generator=random).requires_grad_()
    state = tuple(torch.randn(4, 6, dtype=torch.float64, generator=random).requires_grad_() for _ in layer.empty(1))
    return x, state


@pytest.mark.requirement("R065", "R066")
@pytest.mark.parametrize("cell", CELLS)
def test_states_and_gradients_are_those_of_torchs_kernels(cell: str) -> None:
    layer = filled(cell)
    x, state = inputs(layer)
    results = []
    for run in (layer.forward, layer._kernel):
        out, last = run(x, SIZES, state)
        gradients = torch.autograd.grad(out.cos().sum() + last[0].sin().sum(), [x, *state, *layer.parameters()])
        results.append((out, *last, *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=EXACT, rtol=EXACT)


def test_written_out_gradients_pass_a_gradient_check() -> None:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=random).requires_grad_()

    assert torch.autograd.gradcheck(lambda x, u, h: recurrence.rnn(x, u, h, SIZES), (draw(12, 3), draw(3, 3), draw(4, 3)))
    arguments = draw(12, 9), draw(9, 3), draw(3), draw(4, 3)
    assert torch.autograd.gradcheck(lambda x, u, b, h: recurrence.gru(x, u, b, h, SIZES), arguments)


@pytest.mark.requirement("R057")
@pytest.mark.parametrize("cell", CELLS)
def test_a_norm_in_the_cell_follows_its_formula(cell: str) -> None:
    """Plain NumPy: z = W x + U h, each gate normalised by itself, the bias after the norm."""
    layer = filled(cell, norm=LayerNorm())
    x, state = inputs(layer)
    weights = {name: weight.detach().numpy() for name, weight in layer.named_parameters()}

    def net(gate: int, z: np.ndarray) -> np.ndarray:
        scaled = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
        scaled = scaled * weights[f"norms.{gate}.weight"] + weights[f"norms.{gate}.bias"]
        return scaled + weights["bias"][gate * 6 : gate * 6 + 6]

    def logistic(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    def step(read: np.ndarray, back: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if cell == "rnn":
            return np.tanh(net(0, read + back)), c
        if cell == "lstm":
            i, f, g, o = (net(gate, z) for gate, z in enumerate(np.split(read + back, 4, -1)))
            c = logistic(f) * c + logistic(i) * np.tanh(g)
            return logistic(o) * np.tanh(c), c
        (xr, xz, xn), (hr, hz, hn) = np.split(read, 3, -1), np.split(back, 3, -1)
        r, z = logistic(net(0, xr + hr)), logistic(net(1, xz + hz))
        return (1 - z) * np.tanh(net(2, xn + r * (hn + weights["bias_recurrent"]))) + z * h, c

    h, c = state[0].detach().numpy(), state[-1].detach().numpy()
    wanted, start = [], 0
    for size in SIZES.tolist():
        read = x.detach().numpy()[start : start + size] @ weights["input.weight"].T
        h, c = step(read, h[:size] @ weights["recurrent.weight"].T, h[:size], c[:size])
        wanted.append(h)
        start += size
    out, last = layer(x, SIZES, state)
    np.testing.assert_allclose(out.detach().numpy(), np.concatenate(wanted), atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(last[0], recurrence.final(out, SIZES), atol=0, rtol=0)


@pytest.mark.requirement("R057")
def test_layer_norm_bounds_the_net_input_of_a_recurrent_network_over_200_steps() -> None:
    """z = U h + W x with U three times a rotation and h = LN(z) without a squashing function would grow threefold a step; normalised,
    its state has the length √width at every step, and with tanh after it it stays within (−1, 1) without saturating."""
    width = 32
    model = RNN(layers=1, width=width, norm="layer_norm", init_recurrent={"name": "orthogonal", "gain": 3.0}).build(50, seed=0).eval()
    plain = RNN(layers=1, width=width, init_recurrent={"name": "orthogonal", "gain": 3.0}).build(50, seed=0).eval()
    tokens = torch.randint(50, (8, 200), generator=torch.Generator().manual_seed(0))
    matrix = model.stack()[0].recurrent.weight
    with torch.no_grad():
        h = torch.randn(8, width, generator=torch.Generator().manual_seed(1))
        free = h.clone()
        for _ in range(200):
            h, free = torch.nn.functional.layer_norm(h @ matrix.T, (width,)), (free @ matrix.T).clamp(-1e30, 1e30)
        assert float(h.norm(dim=1).max()) == pytest.approx(width**0.5, rel=1e-3)
        assert float(free.norm(dim=1).min()) > 1e29
        saturated = []
        for m in (plain, model):
            steps = Sequences.whole(8, 200, tokens.device)
            states, _ = m.stack()[0](m.embedding(steps.take(tokens)), steps.sizes, m.stack()[0].empty(8))
            saturated.append(float((states.abs() > 0.99).float().mean()))
    assert saturated[1] < saturated[0] / 3, saturated


@pytest.mark.parametrize("family", [RNN, LSTM, GRU, Seq2Seq])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "weight_norm"])
def test_every_norm_that_fits_a_cell_is_packed_cached_and_counted(family: type[RecurrentFamily], norm: str) -> None:
    m = family(layers=1, width=16, context=32, norm=norm).build(40, seed=0).eval()
    assert m.family.parameters(40) == sum(weight.numel() for weight in m.parameters())
    tokens = torch.randint(1, 40, (1, 14), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0] * 5 + [1] * 7 + [-1] * 2])
    with torch.no_grad():
        packed, alone = m(tokens, None, segments)[:, 5:12], m(tokens[:, 5:12])
        torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)  # float32, products of other shapes
        cache = m.new_cache(1, 14)
        pieces = torch.cat([m(piece, cache=cache) for piece in tokens.split([3, 1, 10], 1)], 1)
        torch.testing.assert_close(pieces, m(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.requirement("E12")
@pytest.mark.parametrize("norm", ["batch_norm", "local_response_norm"])
def test_a_norm_that_does_not_fit_a_cell_is_refused_with_those_that_do(norm: str) -> None:
    with pytest.raises(ValidationError, match=f"{norm} .*layer_norm, rms_norm"):
        LSTM(norm=norm)


@pytest.mark.parametrize("family", [LSTM, GRU])
@pytest.mark.parametrize(("memory", "keeps"), [(None, 0.5), (3.718, 0.731), (100, 0.99)])
def test_fresh_gates_keep_for_as_long_as_asked(family: type[RecurrentFamily], memory: float | None, keeps: float) -> None:
    model = family(layers=1, width=16, memory=memory).build(40, seed=0)
    assert isinstance(model, RecurrentModel)
    gates = torch.sigmoid(model.stack()[0].bias.detach())
    torch.testing.assert_close(gates[16:32], torch.full((16,), keeps), atol=1e-3, rtol=0)
    others = torch.cat([gates[:16], gates[32:]])
    torch.testing.assert_close(others, torch.full_like(others, 0.5), atol=0, rtol=0)


def test_recurrent_matrices_begin_as_rotations_gate_by_gate() -> None:
    for name, weight in LSTM(layers=2, width=16).build(40, seed=0).named_parameters():
        if name.endswith("recurrent.weight"):
            for gate in weight.detach().split(16):
                torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-5, rtol=0)  # float32 products of 16 terms


def test_sequences_go_there_and_back() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 1, -1], [0, 1, 1, 2, -1, -1], [-1] * 6])
    sequences = Sequences.of(beginnings(segments), segments >= 0)
    assert sequences.sizes.tolist() == [5, 3, 1]
    assert sequences.first.tolist() == [2, 0, 7, 6, 9], "the longest first, equal ones in their order"
    assert sequences.last.tolist() == [4, 1, 8, 6, 9]
    assert sequences.rows.tolist() == [0, 0, 1, 1, 1]
    values = torch.arange(18.0).view(3, 6, 1)
    assert sequences.take(values)[:, 0].tolist() == [2, 0, 7, 6, 9, 3, 1, 8, 4]
    assert torch.equal(sequences.put(sequences.take(values)), values * (segments >= 0)[..., None])
    whole = Sequences.whole(3, 6, torch.device("cpu"))
    everything = torch.zeros_like(segments)
    plain = Sequences.of(beginnings(everything), everything >= 0)
    assert torch.equal(whole.order, plain.order)
    assert torch.equal(whole.sizes, plain.sizes)
    assert torch.equal(whole.last, plain.last)
    assert ages(segments).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 1, 0, 0, 1], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_a_decoder_knows_earlier_turns_through_the_encoder_only(cell: str, attention: bool) -> None:
    """Turn by turn: the decoder's first state is the bridge of the encoder's state at the end before it, and with attention the turns
    that ended are seen; a change in an earlier turn reaches later ones, and one in a later turn nothing before it."""
    m = Seq2Seq(cell=cell, layers=1, width=16, context=32, attention=attention).build(40, seed=0).eval()
    tokens = torch.randint(7, 40, (1, 15), generator=torch.Generator().manual_seed(0))
    tokens[0, [4, 9]] = END
    with torch.no_grad():
        encoder, decoder, bridge = m.encoder[0], m.decoder[0], m.bridges[0]
        embedded = m.embedding(tokens)[0] * 4.0  # √16
        read, _ = encoder(embedded, torch.ones(15, dtype=torch.long), encoder.empty(1))
        begin = bridge(read[4:5]).split(16, 1)
        state = (torch.tanh(begin[0]), *begin[1:])
        out, _ = decoder(embedded[5:10], torch.ones(5, dtype=torch.long), state)
        if attention:
            memory = torch.cat([torch.zeros(1, 16), read[:5]])
            looked = torch.softmax(m.query(out) @ memory.T / 4.0, -1) @ memory
            out = torch.tanh(m.mix(torch.cat([out, looked], -1)))
        out = torch.nn.functional.rms_norm(out, (16,), eps=1e-5)
        found = m.hidden(tokens)[0]
        torch.testing.assert_close(found[5:10], out, atol=1e-5, rtol=1e-5)  # float32, products of other shapes
        other = tokens.clone()
        other[0, 7] = 7 if tokens[0, 7] != 7 else 8
        changed = m.hidden(other)[0]
    assert torch.equal(changed[:7], found[:7])
    assert not torch.equal(changed[7:10], found[7:10])
    assert not torch.equal(changed[10:], found[10:])


@pytest.mark.requirement("E20")
def test_the_cards_call_the_network_recurrent_and_chatgpt_neither_recurrent_nor_convolutional() -> None:
    card = RNN.__doc__ or ""
    assert "循环" in card
    assert "not the recursive one, and ChatGPT is neither" in card
    assert "ChatGPT is none of these" in (Convolution.__doc__ or "")


@pytest.mark.requirement("R065")
@pytest.mark.parametrize("gain", [0.7, 1.0, 1.5])
def test_the_gradient_of_a_plain_recurrent_network_vanishes_or_explodes_with_the_lag_as_a_power(gain: float) -> None:
    """With tiny inputs tanh is linear, and the recurrent matrix is `gain` times a rotation: the gradient is gain^lag, exactly but for
    the direction in which it enters a token's embedding."""
    init = {"name": "orthogonal", "gain": gain}
    m = RNN(layers=1, width=64, init={"name": "normal", "std": 1e-6}, init_recurrent=init, tied=False).build(lags.VOCABULARY, 0)
    shares = lags.gradients_by_lag(m, 25, 0)
    for lag in (5, 10, 20):
        assert shares[lag] == pytest.approx(gain**lag, rel=0.3)  # a rotated vector through a random matrix of 64 × 64


@pytest.mark.requirement("R065", "R066")
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_gates_that_begin_by_keeping_let_the_gradient_pass(name: str) -> None:
    """A state is multiplied by 1 − 1/100 a token, so that e^(−1/2) = 0.6 is left after 50; what units tell each other comes on top."""
    shares = lags.gradients_by_lag(kind("families").load(name)(layers=1, width=64, memory=100).build(lags.VOCABULARY, 0), 60, 0)
    assert shares[55] / shares[5] > 0.3


@pytest.fixture
def quick() -> Iterator[None]:
    """One thread and no denormals, as the benchmark has it; afterwards as before."""
    threads = torch.get_num_threads()
    lags.prepare()
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


@pytest.mark.requirement("R065", "R066", "R068")
@pytest.mark.parametrize(
    ("name", "lag", "learns"),
    [
        ("rnn", 10, True), ("rnn", 40, False), ("gru", 40, True), ("lstm", 40, True), ("gpt", 40, True), ("seq2seq", 40, True),
        ("seq2seq, no attention", 40, False),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("quick")
def test_gates_and_attention_bridge_a_lag_at_which_a_plain_recurrent_network_fails(name: str, lag: int, learns: bool) -> None:
    """The small version of benchmarks/lags.py: chance is 1/8, and trainings end as soon as they answer, after 50 to 200 updates."""
    for seed in (0, 1) if learns else (0,):
        outcome = lags.trained(name, lag, seed, steps=500 if learns else 200)[1]
        assert outcome.parameters == pytest.approx(lags.PARAMETERS, rel=0.03)
        assert (outcome.accuracy > 0.95) if learns else (outcome.accuracy < 0.3), outcome
