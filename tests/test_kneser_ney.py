"""Kneser-Ney against a plain restatement of its definition, and as the bar that it is."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from chattune.evaluate.kneser_ney import KneserNey

VOCABULARY = 7
BEGIN, END = 0, 1


def corpus(seed: int, dialogs: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, offsets and targets of dialogs that begin with BEGIN; some tokens are contexts only, as role headers are."""
    random = np.random.default_rng(seed)
    texts = []
    for _ in range(dialogs):
        length = int(random.integers(0, 12))
        text = [BEGIN]
        for _ in range(length):
            text.append(int(random.choice([(text[-1] * 2 + 3) % VOCABULARY, random.integers(1, VOCABULARY)])) or END)
        texts.append(text)
    ids = np.array([token for text in texts for token in text], dtype=np.uint16)
    offsets = np.concatenate(([0], np.cumsum([len(text) for text in texts])))
    targets = np.ones(len(ids), dtype=bool)
    targets[offsets[:-1]] = False
    targets[ids == 2] = False
    return ids, offsets, targets


class Plain:
    """Chen & Goodman 1999 in dictionaries, one n-gram at a time."""

    def __init__(self, ids: np.ndarray, offsets: np.ndarray, targets: np.ndarray, order: int) -> None:
        self.order = order
        left: list[dict[tuple[int, ...], set[int]]] = [defaultdict(set) for _ in range(order + 1)]
        self.counts: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
        for a, b in pairwise(offsets):
            text = [int(token) for token in ids[a:b]]
            for place in range(1, len(text)):
                if not targets[a + place]:
                    continue
                for k in range(1, order + 1):
                    start = place - k + 1
                    if start < 0:
                        continue
                    gram = tuple(text[start : place + 1])
                    if k == order or start == 0:
                        self.counts[k][gram] += 1
                    else:
                        left[k][gram].add(text[start - 1])
        for k in range(1, order):
            for gram, neighbours in left[k].items():
                self.counts[k][gram] += len(neighbours)
        self.discounts: list[tuple[float, ...]] = [()]
        for k in range(1, order + 1):
            n1, n2, n3, n4 = (sum(1 for count in self.counts[k].values() if count == c) for c in (1, 2, 3, 4))
            found = (0.5, 1.0, 1.5)
            if n1 and n2 and n3:
                share = n1 / (n1 + 2 * n2)
                raw = (1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3)
                found = tuple(e if 0 < e <= c else u for e, c, u in zip(raw, (1, 2, 3), found, strict=True))
            self.discounts.append((0.0, *found))

    def probability(self, context: tuple[int, ...], token: int) -> float:
        below = self.probability(context[1:], token) if context else 1 / VOCABULARY
        k = len(context) + 1
        followers = {gram: count for gram, count in self.counts[k].items() if gram[:-1] == context}
        total = sum(followers.values())
        if not total:
            return below
        discount = self.discounts[k]
        kept = followers.get((*context, token), 0)
        given = sum(discount[min(count, 3)] for count in followers.values())
        return max(kept - discount[min(kept, 3)], 0) / total + given / total * below


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_tables_equal_the_plain_definition(order: int) -> None:
    ids, offsets, targets = corpus(seed=1)
    model, plain = KneserNey(ids, offsets, targets, VOCABULARY, order), Plain(ids, offsets, targets, order)
    np.testing.assert_allclose(model.discounts, [d[1:] for d in plain.discounts[1:]], rtol=1e-12)
    test_ids, test_offsets, _ = corpus(seed=2, dialogs=8)
    ours = model.log_probabilities(test_ids, test_offsets)
    for a, b in pairwise(test_offsets):
        for place in range(a + 1, b):
            context = tuple(int(t) for t in test_ids[max(a, place - order + 1) : place])
            assert np.exp(ours[place]) == pytest.approx(plain.probability(context, int(test_ids[place])), rel=1e-12)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_probabilities_sum_to_one_after_every_context(order: int) -> None:
    ids, offsets, targets = corpus(seed=3)
    model = KneserNey(ids, offsets, targets, VOCABULARY, order)
    random = np.random.default_rng(0)
    made_up = [random.integers(0, VOCABULARY, size=n) for n in range(1, 9)]
    for context in (np.array([BEGIN]), np.array([], dtype=int), np.array([2]), *made_up):
        distribution = model.distribution(context)
        assert distribution.sum() == pytest.approx(1, abs=1e-12)
        assert (distribution > 0).all()


def test_distribution_and_scoring_agree() -> None:
    ids, offsets, targets = corpus(seed=4)
    model = KneserNey(ids, offsets, targets, VOCABULARY, 4)
    scored = model.log_probabilities(ids, offsets)
    for a, b in pairwise(offsets[:7]):
        for place in range(a + 1, b):
            assert np.log(model.distribution(ids[a:place])[ids[place]]) == pytest.approx(scored[place], rel=1e-12)


def test_context_never_crosses_from_one_dialog_to_the_next() -> None:
    ids, offsets, targets = corpus(seed=5)
    model = KneserNey(ids, offsets, targets, VOCABULARY, 5)
    whole = model.log_probabilities(ids, offsets)
    for a, b in pairwise(offsets):
        alone = model.log_probabilities(ids[a:b], np.array([0, b - a]))
        np.testing.assert_array_equal(whole[a:b], alone)


def test_more_context_helps_on_text_with_structure() -> None:
    random = np.random.default_rng(0)
    text = [BEGIN]
    for _ in range(4000):
        follows = (text[-1] + (text[-2] if len(text) > 1 else 0)) % 5 + 1
        text.append(follows if random.random() < 0.9 else int(random.integers(1, 6)))
    ids = np.array(text)
    train, test = ids[:3000], np.concatenate(([BEGIN], ids[3000:]))
    targets = np.arange(len(train)) > 0
    models = [KneserNey(train, np.array([0, len(train)]), targets, VOCABULARY, order) for order in (1, 2, 3)]
    losses = [-model.log_probabilities(test, np.array([0, len(test)]))[1:].mean() for model in models]
    assert losses[2] < losses[1] - 0.5 < losses[0]


@pytest.mark.parametrize("texts", [[], [[BEGIN]], [[BEGIN, 3]], [[BEGIN, 3], [BEGIN]]])
def test_the_smallest_corpora_still_give_a_distribution(texts: list[list[int]]) -> None:
    ids = np.array([token for text in texts for token in text], dtype=np.int64)
    offsets = np.concatenate(([0], np.cumsum([len(text) for text in texts]))).astype(np.int64)
    model = KneserNey(ids, offsets, np.ones(len(ids), dtype=bool), VOCABULARY, 5)
    assert model.distribution(np.array([BEGIN, 4, 5])).sum() == pytest.approx(1, abs=1e-12)
    assert np.isfinite(model.log_probabilities(np.array([BEGIN, 3, 4]), np.array([0, 3]))).all()


@pytest.mark.long
def test_on_real_chat_it_is_no_straw_man() -> None:
    """The published anchor: order 5 has 1.664 bits per byte, 95 % interval 1.643–1.684, and order 3 has 0.014 more."""
    import json
    from importlib.resources import files

    from chattune.dialogs.dialog import Message
    from chattune.evaluate.loss import score_tokens
    from chattune.tokens.template import Template
    from chattune.tokens.token_set import TokenSplit
    from chattune.tokens.tokenizer import Tokenizer

    talks = []
    for entry in json.loads(files("chitchat_dataset").joinpath("dataset.json").read_text(encoding="utf-8")).values():
        said = [" ".join(burst["text"] for burst in turn).strip() for turn in entry["messages"]]
        messages = [Message(("user", "assistant")[place % 2], text) for place, text in enumerate(filter(None, said))]
        if len(messages) > 1:
            talks.append(messages)
    order = np.random.default_rng(0).permutation(len(talks))
    train, test = ([talks[place] for place in part] for part in (order[: int(0.8 * len(order))], order[int(0.9 * len(order)) :]))
    template = Template(Tokenizer.train((message.content for talk in train for message in talk), 4096))
    control, lengths = template.tokenizer.control, template.tokenizer.byte_lengths
    seen, unseen = (TokenSplit.of(template.render_many(part), control) for part in (train, test))
    bits = {}
    for k in (3, 5):
        model = KneserNey(seen.ids, seen.offsets, seen.weights > 0, 4096, k)
        bits[k] = score_tokens(unseen, lengths, model.log_probabilities(unseen.ids, unseen.offsets)).bits_per_byte
    assert bits[5] == pytest.approx(1.664, abs=0.045)  # another split: two intervals of ±0.021 each
    assert bits[3] - bits[5] == pytest.approx(0.014, abs=0.004)
