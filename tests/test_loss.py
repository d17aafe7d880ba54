"""The loss of a split: every target token once, whatever the windows and the batches."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chattune.dialogs.dialog import Message
from chattune.evaluate.loss import SplitLoss, score_tokens, split_loss
from chattune.models.families.gpt import GPT
from chattune.models.language_model import LanguageModel
from chattune.tokens.template import Template
from chattune.tokens.token_set import TokenSplit
from chattune.tokens.tokenizer import Tokenizer

TEXTS = ["hello there, how are you today?", "fine thanks", "ok", "你好，世界", "🙂", "a longer message with many words in it, indeed."]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_at_most(TEXTS * 3, 300)


@pytest.fixture(scope="module")
def split(tokenizer: Tokenizer) -> TokenSplit:
    random = np.random.default_rng(0)
    dialogs = []
    for turns in (1, 2, 3, 5, 9, 12, 2):
        said = [Message("user" if n % 2 == 0 else "assistant", TEXTS[int(random.integers(len(TEXTS)))]) for n in range(turns)]
        dialogs.append(said)
    dialogs.append([Message("user", "not scored", weight=0.0)])
    return TokenSplit.of(Template(tokenizer).render_many(dialogs), tokenizer.control)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> LanguageModel:
    import torch

    loud = {"name": "normal", "std": 0.4}
    built = GPT(layers=2, width=16, heads=2, context=64, init=loud, init_outputs="same").build(tokenizer.vocabulary, seed=1)
    with torch.no_grad():
        for parameter in built.parameters():  # far from uniform predictions, so that a wrong context would show
            parameter.mul_(1.5)
    return built


def plain_nll(model: LanguageModel, split: TokenSplit, dialog: int) -> float:
    """Negative log-likelihood of a dialog's targets in one forward pass over all of it."""
    import torch

    ids = torch.from_numpy(split.ids[split.offsets[dialog] : split.offsets[dialog + 1]].astype(np.int64))
    weights = torch.from_numpy(split.weights[split.offsets[dialog] : split.offsets[dialog + 1]].astype(np.float32))
    with torch.no_grad():
        logits = model(ids[None, :-1])[0].double()
    chosen_ = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return float(-(chosen_ * (weights[1:] > 0)).sum())


def test_loss_equals_a_plain_forward_pass_for_each_dialog(model: LanguageModel, split: TokenSplit, tokenizer: Tokenizer) -> None:
    found = split_loss(model, split, tokenizer.byte_lengths, context=512, rows=2)
    for dialog in range(len(split)):
        assert found.nll[dialog] == pytest.approx(plain_nll(model, split, dialog), rel=1e-5)  # float32 against float64
    assert found.loss == pytest.approx(found.nll.sum() / found.tokens.sum())
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx(found.nll.sum() / math.log(2) / found.bytes.sum())


@pytest.mark.parametrize("overlap", [0, 5, 15])
def test_every_target_is_scored_once_however_long_the_dialog(
    model: LanguageModel, split: TokenSplit, tokenizer: Tokenizer, overlap: int
) -> None:
    found = split_loss(model, split, tokenizer.byte_lengths, context=16, overlap=overlap)
    scored = np.asarray(split.weights) > 0
    assert found.tokens.tolist() == [int(scored[a:b].sum()) for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True)]
    assert found.tokens[-1] == found.nll[-1] == 0
    in_all = sum(int(tokenizer.byte_lengths[token]) for token in split.ids[scored])
    assert found.bytes.sum() == in_all


def test_bytes_are_the_bytes_of_what_was_said(tokenizer: Tokenizer, model: LanguageModel) -> None:
    said = [[Message("user", text), Message("assistant", text[::-1])] for text in TEXTS]
    split = TokenSplit.of(Template(tokenizer).render_many(said), tokenizer.control)
    found = split_loss(model, split, tokenizer.byte_lengths, context=64)
    assert found.bytes.tolist() == [2 * len(text.encode()) for text in TEXTS]


def test_overlap_is_context_and_changes_the_loss_only_by_that(model: LanguageModel, split: TokenSplit, tokenizer: Tokenizer) -> None:
    whole = split_loss(model, split, tokenizer.byte_lengths, context=512)
    far = split_loss(model, split, tokenizer.byte_lengths, context=24, overlap=12)
    none = split_loss(model, split, tokenizer.byte_lengths, context=24, overlap=0)
    short = np.diff(split.offsets) - 1 <= 24
    np.testing.assert_allclose(far.nll[short], whole.nll[short], rtol=1e-5)
    assert not np.allclose(far.nll[~short], none.nll[~short], rtol=1e-4)


def test_batching_and_limits_change_nothing_but_the_speed(model: LanguageModel, split: TokenSplit, tokenizer: Tokenizer) -> None:
    many = split_loss(model, split, tokenizer.byte_lengths, context=32, overlap=8, rows=64)
    one = split_loss(model, split, tokenizer.byte_lengths, context=32, overlap=8, rows=1)
    np.testing.assert_allclose(many.nll, one.nll, rtol=1e-5)
    few = split_loss(model, split, tokenizer.byte_lengths, context=32, overlap=8, limit=3)
    places = [0, 4, 7]  # evenly spaced over eight dialogs
    np.testing.assert_allclose(few.nll, many.nll[places], rtol=1e-5)
    assert few.tokens.tolist() == many.tokens[places].tolist()


def test_scoring_leaves_the_model_as_it_was(tokenizer: Tokenizer, split: TokenSplit) -> None:
    model = GPT(size="micro", layers=1, width=16, heads=1, context=64, dropout=0.5).build(tokenizer.vocabulary, seed=0)
    model.train()
    first = split_loss(model, split, tokenizer.byte_lengths, context=64)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    np.testing.assert_array_equal(first.nll, split_loss(model, split, tokenizer.byte_lengths, context=64).nll)  # no dropout
    model.eval()
    split_loss(model, split, tokenizer.byte_lengths, context=64)
    assert not model.training


def test_a_model_in_bfloat16_is_scored_in_float32(model: LanguageModel, split: TokenSplit, tokenizer: Tokenizer) -> None:
    import copy

    import torch

    small = copy.deepcopy(model).to(torch.bfloat16)
    exact, rough = (split_loss(m, split, tokenizer.byte_lengths, context=64) for m in (model, small))
    assert rough.loss == pytest.approx(exact.loss, rel=0.05)  # eight bits of mantissa in weights and activations
    assert rough.loss != exact.loss


def test_a_model_that_scores_tokens_itself_is_counted_alike(split: TokenSplit, tokenizer: Tokenizer, model: LanguageModel) -> None:
    uniform = score_tokens(split, tokenizer.byte_lengths, np.full(len(split.ids), -math.log(tokenizer.vocabulary)))
    ours = split_loss(model, split, tokenizer.byte_lengths, context=64)
    assert uniform.tokens.tolist() == ours.tokens.tolist()
    assert uniform.bytes.tolist() == ours.bytes.tolist()
    assert uniform.perplexity == pytest.approx(tokenizer.vocabulary)


def test_loss_of_nothing_is_zero() -> None:
    nothing = SplitLoss(np.zeros(0), np.zeros(0), np.zeros(0))
    assert (nothing.loss, nothing.bits_per_byte) == (0, 0)
    assert nothing.intervals(0)["perplexity"] == (1, 1, 1)
