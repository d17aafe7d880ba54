"""The contract of every text classifier, over whatever stands in the folder, and each one's formula."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chattune.core.errors import CorruptError, DataError
from chattune.core.part import kind
from chattune.features.classifiers import Classifier
from chattune.features.fitted import FittedClassifier

NAMES = kind("classifiers").names()
SMALL = {"width": 16, "filters": 16, "epochs": 30, "lr": 0.01, "batch": 8, "l2": 1e-4}
BANKING = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "eval" / "banking77_train.csv.gz"
TEXTS = [
    "where is my card", "my card has not come yet", "when will my card arrive", "the card is late",
    "how do I change my pin", "I forgot my pin number", "can I reset the pin", "new pin please",
    "what is the exchange rate", "which rate do you use for euros", "is the exchange rate good", "rate for dollars",
]  # fmt: skip
LABELS = ["card"] * 4 + ["pin"] * 4 + ["rate"] * 4
CHINESE = ["我的卡在哪里", "卡还没有到", "怎么修改密码", "我忘记了密码"]


def classifier(name: str, **settings: Any) -> Classifier:
    part = kind("classifiers").load(name)
    return part(**{key: value for key, value in {**SMALL, **settings}.items() if key in part.model_fields})


@pytest.mark.requirement("R067")
@pytest.mark.parametrize("name", NAMES)
def test_labels_are_learnt_and_carry_over_to_new_texts(name: str) -> None:
    fitted = classifier(name).fit(TEXTS, LABELS)
    assert fitted.predict(TEXTS) == LABELS
    assert fitted.predict(["my new card is late, when will it come", "reset my pin please"]) == ["card", "pin"]
    assert fitted.labels == ("card", "pin", "rate")


@pytest.mark.parametrize("name", NAMES)
def test_chinese_is_cut_into_words_and_told_apart(name: str) -> None:
    fitted = classifier(name).fit(CHINESE, ["卡", "卡", "密码", "密码"])
    assert fitted.words == "jieba"
    assert fitted.predict([*CHINESE, "请问怎么修改密码"]) == ["卡", "卡", "密码", "密码", "密码"]


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_sum_to_one_and_do_not_depend_on_the_neighbours(name: str) -> None:
    fitted = classifier(name).fit(TEXTS, LABELS)
    texts = ["pin", "", "words never seen anywhere", "where is the card and what is the rate and can I have a new pin"]
    together = fitted.probabilities(texts)
    np.testing.assert_allclose(together.sum(1), 1.0, atol=1e-12)
    alone = np.concatenate([fitted.probabilities([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)  # float32 sums over other paddings
    assert fitted.features(texts).shape == (4, fitted.features(TEXTS).shape[1])
    assert fitted.predict([]) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_same_examples_and_seed_give_the_same_bits_whatever_was_drawn_before(name: str) -> None:
    first = classifier(name).fit(TEXTS, LABELS, seed=3)
    torch.rand(5)
    state = torch.random.get_rng_state()
    second = classifier(name).fit(TEXTS, LABELS, seed=3)
    assert torch.equal(state, torch.random.get_rng_state()), "fitting leaves the caller's generator alone"
    assert all(torch.equal(first.tensors()[key], value) for key, value in second.tensors().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_classifier_answers_as_before_and_a_damaged_one_is_refused(name: str, tmp_path: Path) -> None:
    fitted = classifier(name).fit([*TEXTS, *CHINESE], [*LABELS, "卡", "卡", "pin", "pin"])
    fitted.save(tmp_path)
    again = FittedClassifier.load(tmp_path)
    assert again.part == fitted.part
    assert np.array_equal(again.probabilities(TEXTS), fitted.probabilities(TEXTS))
    other = classifier(name).fit(TEXTS[:8], LABELS[:8])
    other.save(tmp_path / "other")
    (tmp_path / "weights.safetensors").write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    with pytest.raises(CorruptError, match="cannot be understood"):
        FittedClassifier.load(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_examples_that_teach_nothing_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="12 texts have 2 labels"):
        classifier(name).fit(TEXTS, ["a", "b"])
    with pytest.raises(DataError, match="1 different labels"):
        classifier(name).fit(TEXTS, ["a"] * 12)


def test_softmax_regression_finds_the_minimum_that_scipy_finds() -> None:
    from scipy.optimize import minimize

    part = classifier("softmax_regression", l2=0.01, steps=1000)
    fitted: Any = part.fit(TEXTS, LABELS)
    x = fitted.features(TEXTS).double().numpy()
    y = np.array([fitted.labels.index(label) for label in LABELS])

    def loss(flat: np.ndarray) -> float:
        matrix, bias = flat[:-3].reshape(-1, 3), flat[-3:]
        scores = x @ matrix + bias
        nll = np.log(np.exp(scores).sum(1)) - scores[np.arange(len(y)), y]
        return float(nll.mean() + 0.005 * (matrix**2).sum())

    found = minimize(loss, np.zeros(x.shape[1] * 3 + 3), method="L-BFGS-B", options={"maxiter": 500, "maxfun": 10**6})
    ours = np.concatenate([fitted.matrix.double().numpy().ravel(), fitted.bias.double().numpy()])
    assert loss(ours) <= found.fun + 1e-6  # scipy's gradients are finite differences


def test_rows_of_softmax_regression_are_tf_idf_of_words_and_pairs() -> None:
    fitted: Any = classifier("softmax_regression").fit(["a b", "a a", "c d"], ["x", "y", "x"])
    row = fitted.features(["a b a"])[0]
    idf = {term: math.log(4 / (1 + count)) + 1 for term, count in Counter(["a", "a", "b", "ab", "aa"]).items()}
    weights = {"a": (1 + math.log(2)) * idf["a"], "b": idf["b"], "ab": idf["ab"]}  # the pair "b a" was never seen
    length = math.sqrt(sum(weight**2 for weight in weights.values()))
    assert sorted(row[row > 0].tolist()) == pytest.approx(sorted(weight / length for weight in weights.values()), rel=1e-6)


@pytest.mark.requirement("R067")
def test_text_cnn_is_the_largest_answer_of_each_filter_over_a_matrix_of_words() -> None:
    fitted: Any = classifier("text_cnn", spans=(2, 3), epochs=1).fit(TEXTS, LABELS)
    numbers = fitted.numbers("where is my new card")
    matrix = fitted.network.embedding.weight[numbers].detach().double().numpy()  # (words, width)
    expected = []
    for span, convolution in zip((2, 3), fitted.network.filters, strict=True):
        weight, bias = convolution.weight.detach().double().numpy(), convolution.bias.detach().double().numpy()
        places = [np.einsum("fws,sw->f", weight, matrix[at : at + span]) + bias for at in range(len(numbers) - span + 1)]
        expected.append(np.maximum(np.stack(places), 0).max(0))
    found = fitted.features(["where is my new card"])[0].detach().double().numpy()
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5)


@pytest.mark.requirement("R067")
@pytest.mark.skipif(not BANKING.exists(), reason="the shared data is not here")
@pytest.mark.parametrize("name", NAMES)
def test_intents_of_real_bank_customers_are_told_apart(name: str) -> None:
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(BANKING.read_bytes()).decode("utf-8"))))
    wanted = sorted({row["category"] for row in rows})[:8]
    rows = [row for row in rows if row["category"] in wanted]
    train, test = [row for n, row in enumerate(rows) if n % 5], rows[::5]
    fitted = classifier(name, width=64, filters=64, epochs=6, lr=4e-3, batch=32).fit(
        [row["text"] for row in train], [row["category"] for row in train]
    )
    right = np.mean([a == row["category"] for a, row in zip(fitted.predict([row["text"] for row in test]), test, strict=True)])
    commonest = max(Counter(row["category"] for row in test).values()) / len(test)
    assert right > 0.85 > 2 * commonest, f"{right:.3f} right; the commonest label alone {commonest:.3f}"
