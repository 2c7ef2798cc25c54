"""Each pair predicted from all others, in closed form, from one decomposition."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, qr
from scipy.linalg.lapack import dormqr, dpotrf, dpotri
from scipy.spatial.distance import cdist

from tilereg.kriging.prior import Deviation, Prior

__all__ = [
    "FLAT",
    "LeaveOut",
    "Trend",
    "leave_one_out",
    "residuals_of",
    "residuals_of_inner",
]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Extents below this share of the largest, and weights below this, are none.
FLAT = 1e-9
_NOTHING = 1e-12


class Trend:
    """Functions at points, such as the affine ones, and all that they do not explain.

    Held as Householder reflections, which are applied in a time that grows with the square of
    the points; a basis of the rest, written out, takes their cube.
    """

    def __init__(self, columns: Floats) -> None:
        """Decompose functions, (K, R) values at the points."""
        (reflections, scales), triangle, _ = qr(columns, mode="raw", pivoting=True)
        # Of points in a plane or on a line the trend has fewer columns of its own.
        size = np.abs(np.diag(triangle))
        self.rank = int((size > FLAT * size[0]).sum())
        self._reflections = reflections[:, : self.rank], scales[: self.rank]

    @classmethod
    def affine(cls, points: Floats, root: Floats | None = None) -> Trend:
        """Decompose the affine functions at (K, D) points, times (K,) roots of weights."""
        columns = np.column_stack([points - points.mean(axis=0), np.ones(len(points))])
        return cls(columns if root is None else columns * root[:, None])

    def _turned(self, values: Floats, side: str, *, back: bool) -> Floats:
        """Multiply by the reflections from a side."""
        turned, _, info = dormqr(
            side, "N" if back else "T", *self._reflections, values, 64 * max(values.shape)
        )
        if info:
            raise np.linalg.LinAlgError(f"Reflections were refused: dormqr returned {info}.")
        return np.asarray(turned)

    def inner(self, matrix: Floats) -> Floats:
        """Return a symmetric (K, K) matrix in a basis of the rest, (K - rank, K - rank)."""
        half = self._turned(matrix, "L", back=False)
        return np.asarray(self._turned(half.T, "L", back=False)[self.rank :, self.rank :])

    def rest(self, values: Floats) -> Floats:
        """Return (K, L) values at the points in a basis of the rest, (K - rank, L)."""
        return self._turned(values, "L", back=False)[self.rank :]

    def outer(self, columns: Floats) -> Floats:
        """Return (K - rank, L) columns in a basis of the rest as (K, L) values at the points."""
        padded = np.zeros((len(columns) + self.rank, columns.shape[1]), order="F")
        padded[self.rank :] = columns
        return self._turned(padded, "L", back=True)


@dataclass(frozen=True)
class LeaveOut:
    """Predictions of pairs from the others: Dubrule's matrix ``Q (Q' K Q + noise)^-1 Q'``.

    The noise of a pair is that of the prior over its weight W. Multiplied by S, the roots of the
    weights, values have even noise again, so that the same is exact: the matrix is
    ``S Q (Q' S K S Q + noise)^-1 Q' S``, Q a basis of what S times the trend leaves.

    Parameters
    ----------
    matrix : (K, K) ndarray
    product : (K, D) ndarray
        Of the matrix and the values: the weights of the pairs in the field.
    """

    matrix: Floats
    product: Floats

    @classmethod
    def of(
        cls, points: Floats, values: Floats, prior: Prior, weight: Floats | None = None
    ) -> LeaveOut:
        """Factorise the covariance of (K, D) points, in mean spacings, with (K, D) values.

        weight (K,) are > 0; the noise of a pair is that of the prior over its weight.
        """
        system = prior.covariance(cdist(points, points))
        if math.isfinite(prior.reach):
            deviation = Deviation.of(points, values, prior.reach)(points)
            system *= deviation[:, None] * deviation
        root = None if weight is None else np.sqrt(weight)
        if root is not None:
            system *= root[:, None] * root
        trend = Trend.affine(points, root)
        inner = trend.inner(system)
        inner[np.diag_indices_from(inner)] += prior.noise
        return cls.of_inner(trend, inner, values, root)

    @classmethod
    def of_inner(
        cls, trend: Trend, inner: Floats, values: Floats, root: Floats | None = None
    ) -> LeaveOut:
        """Factorise a covariance, noise included, in the basis of what a trend leaves.

        Both times the (K,) roots of weights, where there are some.

        Raises
        ------
        numpy.linalg.LinAlgError
            If it is not positive definite.
        """
        factor, info = dpotrf(inner, lower=1, overwrite_a=1)
        if info:
            raise np.linalg.LinAlgError("The covariance is not positive definite.")
        inverse = dpotri(factor, lower=1, overwrite_c=1)[0]
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        matrix = trend.outer(trend.outer(inverse).T)
        if root is not None:
            matrix *= root[:, None] * root
        return cls(matrix, matrix @ values)

    def of_values(self, values: Floats) -> LeaveOut:
        """Return the same for other values at the same points."""
        return replace(self, product=self.matrix @ values)

    def residuals(self) -> Floats:
        """Return by how much all others fail to predict each pair, (K, D)."""
        return np.asarray(self.product / np.diag(self.matrix)[:, None])

    def residuals_without(self, row: int, at: Rows) -> Floats:
        """Return the same of the pairs `at`, (L, D), where another pair is not known either."""
        diagonal = np.diag(self.matrix)
        both = self.matrix[row, at]
        left = self.product[at] * diagonal[row] - both[:, None] * self.product[row]
        return np.asarray(left / (diagonal[at] * diagonal[row] - both**2)[:, None])


def leave_one_out(
    points: Floats, values: Floats, prior: Prior, weight: Floats | None = None
) -> Floats:
    """Return by how much the other pairs fail to predict each pair, (K, D).

    Parameters
    ----------
    points : (K, D) ndarray
        In mean spacings.
    values : (K, D) ndarray
        Displacements.
    prior : Prior
    weight : (K,) ndarray, optional
        Above 0; the noise of a pair is that of the prior over its weight. Default 1.
    """
    return LeaveOut.of(points, values, prior, weight).residuals()


def residuals_of(
    points: Floats,
    values: Floats,
    beta: float,
    noises: tuple[float, ...],
    deviation: Floats | None = None,
    weight: Floats | None = None,
) -> Floats:
    """Return the lengths (K, L) of the leave-one-out residuals of L priors of one width.

    Parameters
    ----------
    points, values : (K, D) ndarray
        As for `leave_one_out`.
    beta : float
        Width of the covariance, in the unit of the points; infinite for the thin-plate spline.
    noises : tuple of float
        One prior each.
    deviation : (K,) ndarray, optional
        Of the displacement at the points. Default: the same everywhere.
    weight : (K,) ndarray, optional
        As for `leave_one_out`.
    """
    covariance = Prior(beta, 0.0).covariance(cdist(points, points))
    if deviation is not None:
        covariance *= deviation[:, None] * deviation
    if weight is None:
        trend = Trend.affine(points)
        return residuals_of_inner(trend, trend.inner(covariance), values, noises)
    root = np.sqrt(weight)
    trend = Trend.affine(points, root)
    inner = trend.inner(covariance * (root[:, None] * root))
    found = residuals_of_inner(trend, inner, values * root[:, None], noises)
    return found / root[:, None]


def residuals_of_inner(
    trend: Trend, inner: Floats, values: Floats, noises: tuple[float, ...]
) -> Floats:
    """Return the lengths (K, L) of the leave-one-out residuals with L amounts of noise.

    Parameters
    ----------
    trend : Trend
        At K points.
    inner : (K - rank, K - rank) ndarray
        Covariance without noise in the basis of what the trend leaves; overwritten.
    values : (K, D) ndarray
    noises : tuple of float
    """
    energies, modes = eigh(inner, driver="evd", overwrite_a=True)
    modes = trend.outer(modes)
    energies = np.maximum(energies, 0.0)
    inverse = 1.0 / (energies[:, None] + np.asarray(noises))
    weight = np.maximum(modes**2 @ inverse, _NOTHING)
    square = np.zeros_like(weight)
    for amounts in (modes.T @ values).T:
        square += (modes @ (inverse * amounts[:, None])) ** 2
    return np.asarray(np.sqrt(square) / weight)
