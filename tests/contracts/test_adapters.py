"""The contract of every adapter, over whatever stands in the folder, and the formulas and files of those that we ship."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chattune.core.errors import CorruptError, SettingError, UsageError
from chattune.core.part import kind
from chattune.models.adapters import Adapter
from chattune.models.adapters._low_rank import LowRank
from chattune.models.adapters._maps import linear_maps
from chattune.models.adapters._nf4 import BLOCK, LEVELS, Packed
from chattune.models.language_model import LanguageModel
from chattune.models.layers import Linear
from chattune.tokens.batch import Batch
from chattune.train.objectives.next_token import NextToken

NAMES = kind("adapters").names()
VOCABULARY = 300
# One number that makes each adapter small, where it has such a setting.
SMALL = {"rank": 3, "alpha": 6.0, "size": 5, "tokens": 4}
CLOSE = 1e-5  # float32 sums of some hundred terms of order 1, taken in another order


def adapter(name: str, **settings: Any) -> Adapter:
    part = kind("adapters").load(name)
    return part(**{key: value for key, value in {**SMALL, **settings}.items() if key in part.model_fields})


def model(family: str = "gpt", **settings: Any) -> LanguageModel:
    """A small model whose every weight is other than zero."""
    part = kind("families").load(family)
    small = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "context": 32, **settings}
    built = part(**{key: value for key, value in small.items() if key in part.model_fields}).build(VOCABULARY, seed=0)
    return learned(built, 0.2).eval()


def learned(network: LanguageModel, size: float = 0.3, seed: int = 1) -> LanguageModel:
    """As if something had been learned: what learns moves by draws of that size."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=size)
    return network


def ids(rows: int = 2, time: int = 20, seed: int = 0) -> Tensor:
    return torch.randint(7, VOCABULARY, (rows, time), generator=torch.Generator().manual_seed(seed))


def batch(seed: int = 0) -> Batch:
    tokens = ids(3, 17, seed)
    weights = torch.ones(3, 16)
    weights[:, :6] = 0.0
    positions = torch.arange(16).expand(3, 16).contiguous()
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights, positions, torch.zeros(3, 16, dtype=torch.int32))


def descend(network: LanguageModel, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(network.trainable().values(), lr=0.01)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = NextToken().view(network, batch()).loss
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.requirement("R078")
@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_model_itself_learns_and_the_loss_falls(name: str) -> None:
    network = model().train()
    own = {key: value.detach().clone() for key, value in network.named_parameters()}
    adapter(name).attach(network)
    assert network.trainable()
    assert not own.keys() & network.trainable().keys()
    losses = descend(network, 12)
    assert losses[-1] < losses[0] - 0.05  # some hundred numbers that learn one batch by heart
    for key, value in network.named_parameters():
        if key in own:
            assert torch.equal(value, own[key]), key
            assert value.grad is None, f"{key}: a gradient that nobody needs"


@pytest.mark.requirement("R078")
@pytest.mark.parametrize("name", NAMES)
def test_what_learns_gets_a_gradient_everywhere(name: str) -> None:
    network = model().train()
    adapter(name).attach(network)
    learned(network)
    NextToken().view(network, batch()).loss.backward()
    for key, parameter in network.trainable().items():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_that_learned_nothing_changes_nothing(name: str) -> None:
    plain, network = model(), model()
    part = adapter(name)
    part.attach(network)
    if part.starts_as_nothing:
        torch.testing.assert_close(network(ids()), plain(ids()), atol=CLOSE, rtol=CLOSE)
    else:  # it must at least say so in its card
        assert "start" in (type(part).__doc__ or "")
        assert not torch.equal(network(ids()), plain(ids()))


@pytest.mark.parametrize("name", NAMES)
def test_taking_an_adapter_away_gives_the_model_back_to_the_bit(name: str) -> None:
    plain, network = model(), model()
    part = adapter(name)
    part.attach(network)
    learned(network)
    part.detach(network)
    assert [key for key, _ in network.named_parameters()] == [key for key, _ in plain.named_parameters()]
    assert torch.equal(network(ids()), plain(ids()))
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.requirement("R078")
@pytest.mark.parametrize("name", NAMES)
def test_a_merged_model_equals_the_one_with_its_adapter(name: str) -> None:
    network = model()
    part = adapter(name, activation="identity")
    names = [key for key, _ in network.named_parameters()]
    before = network(ids())
    part.attach(network)
    learned(network)
    adapted = network(ids())
    assert float((adapted - before).detach().abs().max()) > 0.1, "it does something"
    if not part.merges:
        with pytest.raises(UsageError, match="cannot be merged"):
            part.merge(network)
        torch.testing.assert_close(network(ids()), adapted, atol=0, rtol=0)
        return
    part.merge(network)
    assert [key for key, _ in network.named_parameters()] == names
    torch.testing.assert_close(network(ids()), adapted, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_learned_is_read_back_and_other_tensors_are_refused(name: str) -> None:
    network, again = model(), model()
    part = adapter(name)
    part.attach(network)
    learned(network)
    tensors, _ = part.exported(network)
    tensors = {key: value.clone() for key, value in tensors.items()}
    part.attach(again, seed=5)
    part.load_exported(again, tensors)
    torch.testing.assert_close(again(ids()), network(ids()), atol=CLOSE, rtol=CLOSE)
    first = next(iter(tensors))
    others = {"more": torch.zeros(1)}, {first: tensors[first][:1]}, {first: tensors[first] * torch.nan}
    for spoilt in ({}, *({**tensors, **other} for other in others)):
        with pytest.raises(CorruptError):
            part.load_exported(again, spoilt)


@pytest.mark.parametrize("name", NAMES)
def test_cached_decoding_and_packing_hold_with_an_adapter(name: str) -> None:
    network = model()
    adapter(name).attach(network)
    learned(network)
    inputs = ids(3, 12)
    cache = network.new_cache(3, 12)
    found = torch.cat([network(piece, cache=cache) for piece in inputs.split([5, 1, 1, 5], 1)], 1)
    torch.testing.assert_close(found, network(inputs), atol=CLOSE, rtol=CLOSE)
    positions = torch.tensor([[*range(7), *range(5)]])
    segments = torch.tensor([[0] * 7 + [1] * 5])
    packed = network(inputs[:1], positions, segments)
    torch.testing.assert_close(packed[:, :7], network(inputs[:1, :7]), atol=CLOSE, rtol=CLOSE)
    torch.testing.assert_close(packed[:, 7:], network(inputs[:1, 7:]), atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_its_own_and_computes_the_same(name: str) -> None:
    network = model()
    adapter(name).attach(network)
    learned(network)
    other = copy.deepcopy(network)
    assert torch.equal(other(ids()), network(ids()))
    learned(other)
    assert not torch.equal(other(ids()), network(ids()))
    short = copy.deepcopy(network).to(torch.bfloat16)
    assert short(ids()).dtype == torch.bfloat16
    assert short.trainable().keys() == network.trainable().keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_fresh_weights(name: str) -> None:
    drawn = []
    for seed in (1, 1, 2):
        network = model()
        adapter(name).attach(network, seed)
        drawn.append(network.trainable())
    assert all(torch.equal(a, b) for a, b in zip(drawn[0].values(), drawn[1].values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(drawn[0].values(), drawn[2].values(), strict=True))


@pytest.mark.parametrize("name", [name for name in NAMES if "targets" in kind("adapters").load(name).model_fields])
def test_a_target_that_means_nothing_is_refused_with_the_nearest_name(name: str) -> None:
    with pytest.raises(SettingError, match=r"Did you mean 'q_proj'|There are: ") as caught:
        adapter(name, targets=("q_prj",)).attach(model())
    assert caught.value.path == "train.adapter.targets"


@pytest.mark.requirement("R078")
@pytest.mark.parametrize("family", kind("families").names())
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_low_rank_adapters_fit_every_family_with_linear_maps_and_refuse_the_others(family: str, name: str) -> None:
    try:
        network = model(family)
    except (SettingError, TypeError, AssertionError):
        pytest.skip(f"{family} is made of a foreign config.json")
    part = adapter(name)
    if not linear_maps(network):
        with pytest.raises(SettingError, match="has no linear map inside"):
            part.attach(network)
        return
    before = network(ids())
    part.attach(network)
    torch.testing.assert_close(network(ids()), before, atol=CLOSE, rtol=CLOSE)
    learned(network)
    adapted = network(ids())
    assert float((adapted - before).detach().abs().max()) > 1e-3, "what was adapted takes part in the forward pass"
    part.merge(network)
    # Deep or recurrent sums of numbers above 1 magnify rounding.
    torch.testing.assert_close(network(ids()), adapted, atol=1e-3, rtol=1e-3)


@pytest.mark.requirement("R078")
def test_queries_keys_and_values_have_a_pair_each_though_they_are_one_matrix() -> None:
    network = model()
    adapter("lora", targets=("q_proj", "v_proj")).attach(network)
    module = network.get_submodule("blocks.0.attention.qkv")
    assert isinstance(module, LowRank)
    assert [tuple(p.shape) for p in module.up] == [(32, 3), (16, 3)]
    learned(network)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    plain = x @ module.matrix().t()
    wanted = plain.clone()
    wanted[:, :32] += 2.0 * (x @ module.down[0].t()) @ module.up[0].t()
    wanted[:, 48:] += 2.0 * (x @ module.down[1].t()) @ module.up[1].t()
    torch.testing.assert_close(module(x), wanted, atol=CLOSE, rtol=CLOSE)
    assert torch.equal(module(x)[:, 32:48], plain[:, 32:48]), "keys stay as they are"


@pytest.mark.requirement("R095")
@pytest.mark.parametrize("name", ["lora", "dora"])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_the_hand_written_gradient_of_low_rank_maps_equals_the_formula(name: str, drop: float) -> None:
    """Against autograd of ``x Wᵀ + b + s (drop(x) Aᵀ) Bᵀ`` in float64, with a trainable W and b as well."""
    random = torch.Generator().manual_seed(0)
    linear = Linear(7, 12, bias=True)
    linear.weight = torch.nn.Parameter(torch.randn(12, 7, generator=random))
    linear.bias = torch.nn.Parameter(torch.randn(12, generator=random))
    network = model()
    network.blocks[0].attention.qkv = linear
    network.splits = lambda name: (5, 3, 4) if "qkv.weight" in name else ()  # type: ignore[method-assign]
    network.public_names = lambda name: tuple(f"{name}{i}" for i in range(3)) if "qkv.weight" in name else (name,)  # type: ignore[method-assign]
    adapter(name, targets=("*qkv.weight0", "*qkv.weight2"), dropout=drop).attach(network)
    module = learned(network).get_submodule("blocks.0.attention.qkv").double().train()
    assert isinstance(module, LowRank)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    x = torch.randn(2, 6, 7, generator=random, dtype=torch.float64, requires_grad=True)
    towards = torch.randn(2, 6, 12, generator=random, dtype=torch.float64)
    inputs = [x, *module.parameters()]
    torch.manual_seed(3)
    fast = module(x)
    found = torch.autograd.grad((fast * towards).sum(), inputs)
    torch.manual_seed(3)
    slow = module._plainly(x, None, drop) * (module.ratios() if name == "dora" else 1.0) + module.bias
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-12)
    for wanted, got in zip(torch.autograd.grad((slow * towards).sum(), inputs), found, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-12)


def test_the_length_of_each_unit_in_dora_is_that_of_the_summed_matrix() -> None:
    network = model()
    adapter("dora").attach(network)
    learned(network)
    module = network.get_submodule("blocks.1.feed_forward.gate_up")
    both = module.matrix() + module.added()
    torch.testing.assert_close(torch.cat(module.lengths()), torch.linalg.vector_norm(both, dim=1), atol=CLOSE, rtol=CLOSE)
    lengths = torch.linalg.vector_norm(module.merged().weight, dim=1)
    torch.testing.assert_close(lengths, torch.cat([*module.magnitude]).abs(), atol=CLOSE, rtol=CLOSE)


def test_a_rank_stabilised_scale_divides_by_the_root() -> None:
    assert adapter("lora", rank=16, alpha=32.0).scale == 2.0
    assert adapter("lora", rank=16, alpha=32.0, rank_stabilised=True).scale == 8.0


def test_a_bottleneck_with_its_activation_says_why_it_cannot_be_merged() -> None:
    with pytest.raises(UsageError, match="no sum of weights"):
        adapter("bottleneck").merge(model())


# NF4: Dettmers et al. 2023, arXiv:2305.14314, appendix E; bitsandbytes 0.50.2 holds the same sixteen numbers (functional.py, nf4).
BITSANDBYTES = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def test_nf4_has_the_published_levels_which_are_quantiles_of_a_normal() -> None:
    from scipy.stats import norm

    assert list(LEVELS) == BITSANDBYTES
    # Their construction: evenly spaced probabilities up to 0.9677083, eight above zero and seven below, each side to ±1.
    offset = 0.9677083
    above = norm.ppf(torch.linspace(offset, 0.5, 9)[:-1].numpy())
    below = -norm.ppf(torch.linspace(offset, 0.5, 8)[:-1].numpy())
    values = torch.tensor(sorted([*above, 0.0, *below]))
    torch.testing.assert_close(torch.tensor(LEVELS), (values / values.max()).float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(8, 64), (5, 13), (3, 129)])
def test_nf4_takes_the_nearest_level_of_each_block(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    plain = Packed.of(weight).plain()
    flat, got = weight.flatten(), plain.flatten()
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        levels = torch.tensor(LEVELS) * block.abs().max()
        nearest = (block[:, None] - levels).abs().min(1).values
        torch.testing.assert_close((got[start : start + BLOCK] - block).abs(), nearest, atol=1e-6, rtol=0)
    assert torch.equal(Packed.of(plain).plain(), plain), "packing twice loses nothing more"


def test_nf4_keeps_zero_and_the_largest_exactly_and_half_a_byte_a_weight() -> None:
    weight = torch.zeros(4, 64)
    weight[1, 3], weight[2, 5] = -2.5, 7.0
    packed = Packed.of(weight)
    assert torch.equal(packed.plain(), weight)
    assert packed.codes.numel() == weight.numel() // 2
    assert packed.to(torch.bfloat16).scales.dtype == torch.int32, "scales stay whole in a bfloat16 model"
    assert packed.plain().dtype == torch.bfloat16


@pytest.mark.requirement("R078")
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_with_a_four_bit_base_the_adapter_learns_and_merges_what_it_computed_with(name: str) -> None:
    network = model().train()
    adapter(name, base="nf4").attach(network)
    assert not [key for key, _ in network.named_parameters() if key.endswith(("qkv.weight", "gate_up.weight"))]
    assert not any("codes" in key for key in network.state_dict()), "checkpoints do not hold what never changes"
    losses = descend(network, 12)
    assert losses[-1] < losses[0] - 0.05
    network.eval()
    adapted = network(ids())
    adapter(name, base="nf4").merge(network)
    torch.testing.assert_close(network(ids()), adapted, atol=CLOSE, rtol=CLOSE)


@pytest.mark.requirement("R078")
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an old name
@pytest.mark.parametrize("settings", [{}, {"targets": ("q_proj", "down_proj")}, {"rank_stabilised": True}], ids=str)
@pytest.mark.parametrize("name", ["lora", "dora"])
@pytest.mark.parametrize("qk_norm", [True, False], ids=["qwen3", "llama"])
def test_peft_reads_our_files_and_gives_the_same_logits(name: str, settings: dict[str, Any], qk_norm: bool, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    found = _through_peft(adapter(name, **settings), model(qk_norm=qk_norm), tmp_path)
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)  # two programs; logits of order 10, float32 through two layers


@pytest.mark.requirement("R078")
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an old name
@pytest.mark.parametrize("settings", [{"qk_norm": True}, {"qk_norm": False}], ids=["qwen3", "llama"])
def test_peft_reads_our_prefix_and_gives_the_same_logits(settings: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    found = _through_peft(adapter("prefix"), model(**settings), tmp_path)
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)  # two programs; logits of order 10, float32 through two layers


def test_a_prefix_asks_for_attention() -> None:
    with pytest.raises(SettingError, match="lstm family has no attention"):
        adapter("prefix").attach(model("lstm"))


def _through_peft(part: Adapter, network: LanguageModel, path: Path) -> tuple[Tensor, Tensor]:
    """Our logits with an adapter that learned something, and those of transformers with peft, from files alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from chattune.models.adapters._files import write_adapter
    from chattune.models.checkpoint import save_model
    from chattune.tokens.template import Template
    from chattune.tokens.tokenizer import Tokenizer

    (path / "tokenizer").mkdir()
    Template(Tokenizer.train_at_most(["some words, 一些字"] * 3, 280)).save(path / "tokenizer")
    save_model(network, path / "tokenizer", path / "base", "# A model\n")
    part.attach(network)
    learned(network)
    write_adapter(part, network, path / "adapter")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path / "base"), str(path / "adapter")).eval()
    with torch.no_grad():
        return network(ids()), theirs(ids()).logits
