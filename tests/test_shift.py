"""Covariate shift: planted shifts of every kind are found, and sets of one distribution are let alone."""

from __future__ import annotations

import numpy as np
import pytest
from material import THINGS

from chattune.core.errors import DataError
from chattune.dialogs.description import FEATURES
from chattune.dialogs.dialog import Dialog, Message
from chattune.dialogs.features import dialog_features, dialog_shift, drawn
from chattune.features import shift as module
from chattune.features.embedding import FittedEmbedding
from chattune.features.shift import holm, shift

QUESTIONS = ("do you like {}?", "tell me about {}", "where can I buy {}, please?", "my {} broke", "what do {} cost?")


def rows(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_exponential((count, 6)) @ np.random.default_rng(99).standard_normal((6, 6))


def dialogs(count: int, seed: int, things: list[str] = THINGS, polite: float = 0.5) -> list[Dialog]:
    """Short talks about things, no two alike; some users are polite."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        ask = str(random.choice(QUESTIONS)).format(random.choice(things)) + f" {random.integers(10**6)}"
        ask = f"Hello! {ask} Thank you." if random.random() < polite else ask
        turns = [Message("user", ask), Message("assistant", " ".join(random.choice(THINGS, random.integers(2, 9))))]
        found.append(Dialog(str(number), tuple(turns) * int(random.integers(1, 4))))
    return found


@pytest.mark.requirement("R037", "must-6")
def test_forty_random_splits_of_one_set_give_at_most_two_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PERMUTATIONS", 399)  # enough for p-values of a third of the level of 0.01
    talks, numbers = dialogs(160, 0), rows(160, 0)
    alarms = []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(160)
        some = [[talks[number] for number in part] for part in (order[:80], order[80:])]
        alarms.append(dialog_shift(*some, seed=seed).shifted)
        alarms.append(shift(numbers[order[:80]], numbers[order[80:]], seed).shifted)
    assert len(alarms) == 40 and sum(alarms) <= 2


@pytest.mark.requirement("R037", "must-6")
@pytest.mark.parametrize("change", ["mean", "scale", "one feature", "correlation"])
def test_a_planted_shift_of_numbers_is_found(change: str) -> None:
    a, b = rows(150, 1), rows(150, 2)
    deviation = a.std(0)
    if change == "mean":
        b = b + 0.5 * deviation
    elif change == "scale":
        b = (b - b.mean(0)) * 2 + b.mean(0)
    elif change == "one feature":
        b[:, 3] += 0.8 * deviation[3]
    else:
        mixing = [[1.0, 1.0, 0.0], [0.0, 0.4, 1.0], [0.0, 0.0, 1.0]]
        a, b = rows(300, 1)[:, :3] @ mixing, rows(300, 2)[:, :3] @ mixing
        b = np.random.default_rng(5).permuted(b, axis=0)  # each feature alone is as before
    found = shift(a, b, names=[f"f{number}" for number in range(a.shape[1])])
    assert found.shifted and found.p <= 0.01
    assert found.rows == (len(a), len(b))
    if change == "one feature":
        assert found.features[0].name == "f3" and found.features[0].holm < 0.01 < found.features[1].p
        assert found.auc > 0.6
    if change == "correlation":
        assert found.features[0].holm > 0.01, "no feature gives it away by itself"
        assert found.mmd_p <= 0.01 / 3


@pytest.mark.requirement("R037")
def test_a_planted_shift_of_dialogs_is_found_and_named() -> None:
    before = dialogs(150, 1)
    about = dialog_shift(before, dialogs(150, 2, THINGS[:6]))
    assert about.shifted and any(one.name.startswith("meaning") and one.holm < 0.01 for one in about.features)
    manner = dialog_shift(before, dialogs(150, 2, polite=0.95))
    assert manner.shifted
    assert {"share of symbols", "share of capitals"} & {one.name for one in manner.features if one.holm < 0.01}
    told = manner.told(most=3)
    assert len(told["features"]) == 3 and told["shifted"] is True and "share of Han" in told["dropped"]


def test_the_figures_are_their_definitions() -> None:
    from scipy.stats import ks_2samp

    a, b = rows(30, 3), rows(25, 4) + 0.5
    found = shift(a, b)
    both = np.concatenate([a, b])
    z = (both - both.mean(0)) / both.std(0)
    distance = np.array([[((x - y) ** 2).sum() for y in z] for x in z])
    kernel = np.exp(-distance / np.median(distance[np.triu_indices(55, 1)]))
    inside = [kernel[s, s].sum() - n for s, n in ((slice(30), 30), (slice(30, 55), 25))]
    expected = inside[0] / (30 * 29) + inside[1] / (25 * 24) - 2 * kernel[:30, 30:].mean()
    assert found.mmd == pytest.approx(expected, abs=1e-12)
    for one in found.features:
        assert one.distance == pytest.approx(ks_2samp(a[:, one.feature], b[:, one.feature]).statistic)
    assert found.p == pytest.approx(min(1.0, 3 * min(found.auc_p, found.mmd_p, found.features[0].holm)))
    assert found.auc_p >= 1 / 1000 and found.mmd_p >= 1 / 1000
    assert shift(a, b) == found and shift(a, b, seed=1) != found


def test_the_domain_classifier_is_a_discriminant_that_never_saw_the_rows_it_judges() -> None:
    from sklearn.linear_model import Ridge
    from sklearn.metrics import roc_auc_score

    a, b = rows(40, 3), rows(40, 4) + 0.7
    x = np.concatenate([a, b])
    x = (x - x.mean(0)) / x.std(0)
    labels = np.repeat([0.0, 1.0], 40)[:, None]
    found = module._areas(x, labels, np.random.default_rng(8))[0]
    both = np.concatenate([x, x**2], axis=1)
    both = (both - both.mean(0)) / both.std(0)
    fold = np.random.default_rng(8).permutation(80) % 5
    scores = np.empty(80)
    for number in range(5):
        ridge = Ridge(alpha=1.0).fit(both[fold != number], labels[fold != number, 0])
        scores[fold == number] = ridge.predict(both[fold == number]) - labels[fold != number].mean()
    assert found == pytest.approx(roc_auc_score(labels[:, 0], scores), abs=1e-12)


def test_holms_correction_is_its_steps() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1.0, 1.0])


def test_what_cannot_be_compared_is_refused_and_what_never_varies_is_no_shift() -> None:
    with pytest.raises(DataError, match="cannot be compared"):
        shift(rows(19, 0), rows(40, 0))
    with pytest.raises(DataError, match="cannot be compared"):
        shift(rows(40, 0), rows(40, 0)[:, :3])
    with pytest.raises(DataError, match="cannot be compared"):
        dialog_shift(dialogs(5, 0), dialogs(50, 1))
    still = shift(np.ones((30, 2)), np.ones((40, 2)), names=["x", "y"])
    assert not still.shifted and still.p == 1.0 and still.dropped == ("x", "y")
    assert shift(np.ones((30, 1)), np.zeros((30, 1))).shifted
    silent = [Dialog(str(number), (Message("user", "?!"), Message("assistant", "…" * (number % 7)))) for number in range(60)]
    assert not dialog_shift(silent[::2], silent[1::2]).shifted


def test_rows_of_dialogs_are_what_is_counted_and_what_is_meant() -> None:
    talks = dialogs(30, 0)
    embedding = FittedEmbedding.fit([dialog.messages[0].content for dialog in talks], 4)
    found, names = dialog_features(talks, embedding)
    assert names == (*FEATURES, "meaning 1", "meaning 2", "meaning 3", "meaning 4")
    assert np.array_equal(found[:, : len(FEATURES)], dialog_features(talks)[0])
    once = [dialog for dialog in talks if len(dialog.messages) == 2]
    meant = embedding.encode([dialog.messages[0].content for dialog in once])
    np.testing.assert_allclose(dialog_features(once, embedding)[0][:, len(FEATURES) :], meant, atol=1e-6)
    assert dialog_features([])[0].shape == (0, len(FEATURES))


def test_dialogs_are_drawn_in_one_pass_each_as_likely_as_any_other() -> None:
    talks = dialogs(12, 0)
    counts = np.zeros(12)
    for seed in range(600):
        own = drawn(iter(talks), 4, np.random.default_rng(seed))
        counts[[int(dialog.id) for dialog in own]] += 1
        assert len({dialog.id for dialog in own}) == 4
    assert np.abs(counts - 200).max() < 4 * np.sqrt(600 / 3 * 2 / 3)  # four standard deviations of a binomial
    assert drawn(talks, 50, np.random.default_rng(0)) == talks
