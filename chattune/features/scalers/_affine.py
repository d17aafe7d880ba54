"""What the scalers share: columns that hold no information, and maps that subtract, multiply and add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chattune.core.errors import DataError

_NOISE = 8 * np.finfo(np.float64).eps  # of the largest value: what rounding leaves between equal numbers


@dataclass(frozen=True)
class Columns:
    """The columns of a matrix: `kept` and `dropped` ones by number, and the one value that each dropped one had.

    A column is dropped if all its values are equal up to rounding: with σ = 0 there is nothing to divide by and nothing to learn.
    """

    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    constant: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> tuple[Columns, np.ndarray]:
        """The columns of `x`, and (n, kept) float64 of those that are kept; `DataError` where that cannot be."""
        x = checked(x)
        if len(x) == 0:
            raise DataError("no row to learn a scale from.", value=0, rule="at least one row", hint="Fit on the training data.")
        spread = x.max(0) - x.min(0)
        varies = spread > _NOISE * np.abs(x).max(0)
        if not varies.any():
            raise DataError(
                f"all {x.shape[1]} columns are constant over {len(x)} rows.", value=x.shape[1], rule="a column that varies",
                hint="Bring more rows, or other features.",
            )
        own = cls(tuple(np.flatnonzero(varies).tolist()), tuple(np.flatnonzero(~varies).tolist()), x[0, ~varies].copy())
        return own, x[:, varies]

    def chosen(self, x: np.ndarray) -> np.ndarray:
        """(n, kept) of (n, columns) `x`."""
        x, wanted = checked(x), len(self.kept) + len(self.dropped)
        if x.shape[1] != wanted:
            raise DataError(
                f"the matrix has {x.shape[1]} columns, the scaler was fitted on {wanted}.", value=x.shape[1], rule=f"{wanted} columns"
            )
        return x[:, list(self.kept)]

    def restored(self, x: np.ndarray) -> np.ndarray:
        """(n, columns) of (n, kept) `x`: constant columns have their one value again."""
        whole = np.empty((len(x), len(self.kept) + len(self.dropped)))
        whole[:, list(self.kept)], whole[:, list(self.dropped)] = x, self.constant
        return whole


@dataclass(frozen=True)
class Affine:
    """``z = (x[:, kept] − shift) · forward + offset``.

    `forward`, `backward`: one factor for each column, or matrices (kept, components) and (components, kept).
    """

    columns: Columns
    shift: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    offset: float = 0.0

    @property
    def dropped(self) -> tuple[int, ...]:
        """Columns of x that are left out."""
        return self.columns.dropped

    def transform(self, x: np.ndarray) -> np.ndarray:
        """(n, components) float64 of (n, columns)."""
        return _times(self.columns.chosen(x) - self.shift, self.forward) + self.offset

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """(n, columns) of (n, components); what PCA left out is lost."""
        return self.columns.restored(_times(checked(z) - self.offset, self.backward) + self.shift)


def checked(x: np.ndarray) -> np.ndarray:
    """`x` as a float64 matrix; `DataError` for another shape, or for numbers that are not finite."""
    x = np.asarray(x, np.float64)
    if x.ndim != 2:
        raise DataError(f"features of shape {x.shape} are no matrix.", value=x.ndim, rule="rows of features")
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0].tolist()
        raise DataError(f"row {row}, column {column} is {x[row, column]}.", value=str(x[row, column]), rule="finite numbers")
    return x


def principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (d,), variances (k,) of the principal components (population, 1/N), falling, and their directions (d, k) of length 1.

    Components without variance are left out; the largest loading of each direction is positive, so that signs are no accident.
    """
    mean = x.mean(0)
    _, singular, directions = np.linalg.svd(x - mean, full_matrices=False)
    there = singular > singular[0] * max(x.shape) * np.finfo(np.float64).eps
    directions = directions[there].T
    sign = np.sign(directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])])
    return mean, singular[there] ** 2 / len(x), directions * sign


def _times(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    product: np.ndarray = x * factor if factor.ndim == 1 else x @ factor
    return product
