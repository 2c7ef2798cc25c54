"""Each pair predicted from all others, in closed form, from one decomposition."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, eigh, qr
from scipy.spatial.distance import cdist

from tilereg.kriging.prior import Deviation, Prior

__all__ = ["FLAT", "LeaveOut", "leave_one_out", "residuals_of", "without_trend"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Extents below this share of the largest, and weights below this, are none.
FLAT = 1e-9
_NOTHING = 1e-12


@dataclass(frozen=True)
class LeaveOut:
    """Predictions of pairs from the others: Dubrule's matrix ``Q (Q' K Q + noise)^-1 Q'``.

    Parameters
    ----------
    rest, half : (K, L) and (L, K) ndarrays
        The factors of the matrix.
    product : (K, D) ndarray
        Of the matrix and the values.
    diagonal : (K,) ndarray
    """

    rest: Floats
    half: Floats
    product: Floats
    diagonal: Floats

    @classmethod
    def of(cls, points: Floats, values: Floats, prior: Prior) -> LeaveOut:
        """Factorise the covariance of (K, D) points, in mean spacings, with (K, D) values."""
        system = prior.covariance(cdist(points, points))
        if math.isfinite(prior.reach):
            deviation = Deviation.of(points, values, prior.reach)(points)
            system *= deviation[:, None] * deviation
        rest = without_trend(points)
        inner = rest.T @ system @ rest
        inner[np.diag_indices_from(inner)] += prior.noise
        half = cho_solve(cho_factor(inner, lower=True), rest.T)
        return cls(rest, half, rest @ (half @ values), np.einsum("ij,ji->i", rest, half))

    def of_values(self, values: Floats) -> LeaveOut:
        """Return the same for other values at the same points."""
        return replace(self, product=self.rest @ (self.half @ values))

    def residuals(self) -> Floats:
        """Return by how much all others fail to predict each pair, (K, D)."""
        return np.asarray(self.product / self.diagonal[:, None])

    def residuals_without(self, row: int, at: Rows) -> Floats:
        """Return the same of the pairs `at`, (L, D), where another pair is not known either."""
        both = self.rest[row] @ self.half[:, at]
        left = self.product[at] * self.diagonal[row] - both[:, None] * self.product[row]
        return np.asarray(left / (self.diagonal[at] * self.diagonal[row] - both**2)[:, None])


def leave_one_out(points: Floats, values: Floats, prior: Prior) -> Floats:
    """Return by how much the other pairs fail to predict each pair, (K, D).

    Parameters
    ----------
    points : (K, D) ndarray
        In mean spacings.
    values : (K, D) ndarray
        Displacements.
    prior : Prior
    """
    return LeaveOut.of(points, values, prior).residuals()


def residuals_of(
    points: Floats,
    values: Floats,
    beta: float,
    noises: tuple[float, ...],
    deviation: Floats | None = None,
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
    """
    rest = without_trend(points)
    covariance = Prior(beta, 0.0).covariance(cdist(points, points))
    if deviation is not None:
        covariance *= deviation[:, None] * deviation
    energies, modes = eigh(rest.T @ covariance @ rest, driver="evd", overwrite_a=True)
    modes = rest @ modes
    energies = np.maximum(energies, 0.0)
    inverse = 1.0 / (energies[:, None] + np.asarray(noises))
    weight = np.maximum(modes**2 @ inverse, _NOTHING)
    square = np.zeros_like(weight)
    for amounts in (modes.T @ values).T:
        square += (modes @ (inverse * amounts[:, None])) ** 2
    return np.asarray(np.sqrt(square) / weight)


def without_trend(points: Floats) -> Floats:
    """Return an orthonormal basis (K, K - D - 1) of all that no affine map explains."""
    trend = np.column_stack([points - points.mean(axis=0), np.ones(len(points))])
    basis, triangle, _ = qr(trend, mode="full", pivoting=True)
    # Of points in a plane or on a line the trend has fewer columns of its own.
    size = np.abs(np.diag(triangle))
    return np.asarray(basis[:, int((size > FLAT * size[0]).sum()) :])
