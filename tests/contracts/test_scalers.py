"""The contract of every scaler, over whatever stands in the folder: fitted on training rows only, and undone by its inverse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chattune.core.errors import DataError
from chattune.core.part import kind
from chattune.features.scalers import Scaler

NAMES = kind("scalers").names()


def scaler(name: str, **settings: Any) -> Scaler:
    part = kind("scalers").load(name)(**settings)
    assert isinstance(part, Scaler)
    return part


def rows(count: int = 60, seed: int = 0) -> np.ndarray:
    """Correlated features of very different units; the third and the last are constant."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, 4)) @ random.standard_normal((4, 4)) * [1, 10, 1e-3, 1e4] + [0, 5, -1, 1e5]
    return np.insert(x, (2, 4), (7.0, 0.1), axis=1)


@pytest.mark.requirement("R031")
@pytest.mark.parametrize("name", NAMES)
def test_constant_columns_are_left_out_and_said_and_come_back(name: str) -> None:
    fitted = scaler(name).fit(rows())
    assert fitted.dropped == (2, 5)
    assert fitted.transform(rows()).shape == (60, 4)
    assert (fitted.inverse(fitted.transform(rows()))[:, [2, 5]] == [7.0, 0.1]).all()
    other = rows(seed=1)
    other[:, 2] = 8.0  # what varies later than in training was never learnt
    assert fitted.transform(other).shape == (60, 4)


@pytest.mark.parametrize("name", NAMES)
def test_equal_numbers_with_rounding_noise_are_constant(name: str) -> None:
    x = rows()
    x[:, 2] = np.where(np.arange(60) % 2, 0.3, 0.1 + 0.2)
    assert np.ptp(x[:, 2]) > 0
    assert scaler(name).fit(x).dropped == (2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_the_inverse_gives_the_features_back(name: str) -> None:
    fitted = scaler(name).fit(rows())
    varying, training = [0, 1, 3, 4], rows()
    for x in (training, rows(9, seed=3)):
        back = fitted.inverse(fitted.transform(x))[:, varying]
        close = (np.abs((x - training.mean(0))[:, varying] / training.std(0)[varying]) < 4).all(1)  # tanh is flat beyond
        np.testing.assert_allclose(back[close], x[close][:, varying], rtol=1e-9, atol=1e-8)
        assert close.sum() >= 8


@pytest.mark.requirement("R029")
@pytest.mark.parametrize("name", NAMES)
def test_what_is_transformed_later_changes_nothing_and_each_row_stands_alone(name: str) -> None:
    fitted = scaler(name).fit(rows())
    later = rows(20, seed=9) * 3
    together = fitted.transform(later)
    alone = np.concatenate([fitted.transform(later[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(alone, together, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(fitted.transform(rows()), scaler(name).fit(rows()).transform(rows()))
    assert fitted.transform(np.zeros((0, 6))).shape == (0, together.shape[1])


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_comes_out_as_double_and_is_not_changed(name: str) -> None:
    x = rows().astype(np.float32)
    before = x.copy()
    fitted = scaler(name).fit(x)
    assert fitted.transform(x).dtype == np.float64
    assert np.array_equal(x, before)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_scaled_is_refused_with_its_place(name: str) -> None:
    part, broken = scaler(name), rows()
    broken[3, 1] = np.nan
    with pytest.raises(DataError, match="row 3, column 1 is nan"):
        part.fit(broken)
    with pytest.raises(DataError, match="row 3, column 1 is nan"):
        part.fit(rows()).transform(broken)
    with pytest.raises(DataError, match="all 2 columns are constant over 5 rows"):
        part.fit(np.ones((5, 2)))
    with pytest.raises(DataError, match="no row"):
        part.fit(np.zeros((0, 3)))
    with pytest.raises(DataError, match=r"shape \(3,\) are no matrix"):
        part.fit(np.arange(3.0))
    with pytest.raises(DataError, match="the matrix has 3 columns, the scaler was fitted on 6"):
        part.fit(rows()).transform(np.zeros((2, 3)))
