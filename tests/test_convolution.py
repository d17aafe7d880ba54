"""The convolutional family: its layers against torch's convolution, what it sees, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from chattune.models.families.convolution import Convolution
from chattune.models.language_model import LanguageModel

VOCABULARY = 40
CLOSE = 1e-5  # float32, the same sums in another order


def model(**settings: Any) -> LanguageModel:
    part = Convolution(**{"layers": 3, "width": 8, "context": 64, "init_outputs": "same", **settings})
    return part.build(VOCABULARY, seed=0).eval()


def test_a_block_is_a_dilated_causal_convolution_with_a_gate() -> None:
    m = model(kernel=4, cycle=2, norm=None)
    x = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0))
    for block, distance in zip(m.blocks, (1, 2, 1), strict=True):
        # (outputs, taps · width) from the newest tap to the oldest → (outputs, width, taps) from the oldest
        weight = block.gated.weight.view(-1, 4, 8).transpose(1, 2).flip(2)
        padded = torch.nn.functional.pad(x.transpose(1, 2), (3 * distance, 0))
        net = torch.nn.functional.conv1d(padded, weight, dilation=distance).transpose(1, 2)
        a, b = net.chunk(2, -1)
        found, _ = block(x, x.new_zeros(2, block.reach, 8), None)
        torch.testing.assert_close(found, x + (a * torch.sigmoid(b)) @ block.output.weight.T, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize(("kernel", "cycle", "reach"), [(3, 8, 15), (2, 8, 8), (3, 1, 7)])
def test_a_prediction_sees_exactly_the_receptive_field_that_the_card_promises(kernel: int, cycle: int, reach: int) -> None:
    m = model(kernel=kernel, cycle=cycle)
    family = m.family
    assert isinstance(family, Convolution)
    assert 1 + (kernel - 1) * sum(family.distances()) == reach
    tokens = torch.randint(VOCABULARY, (1, 30), generator=torch.Generator().manual_seed(0))
    plain = m(tokens)[0, -1]
    for back in (0, 1, reach - 1, reach, reach + 3):
        other = tokens.clone()
        other[0, -1 - back] = (other[0, -1 - back] + 1) % VOCABULARY
        assert torch.equal(m(other)[0, -1], plain) == (back >= reach), back


def test_the_cache_holds_the_receptive_field_and_no_more_however_long_the_dialog() -> None:
    m = model()
    for length in (16, 4096):
        assert [state[0].shape for state in m.new_cache(2, length).states] == [(2, 2, 8), (2, 4, 8), (2, 8, 8)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm", "weight_norm", "local_response_norm", None])
def test_every_norm_that_fits_is_counted_packed_and_cached(norm: str | None) -> None:
    m = model(norm=norm)
    assert m.family.parameters(VOCABULARY) == sum(weight.numel() for weight in m.parameters())
    tokens = torch.randint(1, VOCABULARY, (1, 14), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0] * 5 + [1] * 7 + [-1] * 2])
    torch.testing.assert_close(m(tokens, None, segments)[:, 5:12], m(tokens[:, 5:12]), atol=CLOSE, rtol=CLOSE)
    cache = m.new_cache(1, 14)
    pieces = torch.cat([m(piece, cache=cache) for piece in tokens.split([3, 1, 10], 1)], 1)
    torch.testing.assert_close(pieces, m(tokens), atol=CLOSE, rtol=CLOSE)


@pytest.mark.requirement("E12")
def test_batch_norm_is_refused_with_what_fits() -> None:
    with pytest.raises(ValidationError, match=r"batch_norm mixes tokens.*rms_norm, layer_norm and weight_norm fit"):
        Convolution(norm="batch_norm")
