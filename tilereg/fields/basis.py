"""Functions that exact field models are sums of: radial ones around centres, and monomials."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

__all__ = ["Basis", "monomials"]

Floats = NDArray[np.float64]

_TINY = 1e-300


@dataclass(frozen=True)
class Basis:
    """A radial function and the polynomials beside it.

    Parameters
    ----------
    kernel : str
        'linear' -r, 'thin_plate_spline' r^2 log r, 'cubic' r^3, 'quintic' -r^5 or 'gaussian'
        exp(-r^2 / (2 beta^2)).
    degree : int
        Of the polynomials, 1 to 3.
    beta : float
        Width of the Gaussian in the unit of the points; the others have none.
    reach : float
        Length by which the monomials are scaled: that of the points.
    """

    kernel: str
    degree: int
    beta: float = np.inf
    reach: float = 1.0

    def radial(self, points: Floats, centres: Floats) -> Floats:
        """Return the radial functions around (M, D) centres at (N, D) points, (N, M)."""
        square = np.asarray(cdist(points, centres, "sqeuclidean"))
        if self.kernel == "gaussian":
            square *= -0.5 / self.beta**2
            return np.asarray(np.exp(square, out=square))
        if self.kernel == "thin_plate_spline":
            half = np.maximum(square, _TINY)
            np.log(half, out=half)
            half *= 0.5
            return np.asarray(np.multiply(half, square, out=half))
        distance = np.sqrt(square)
        if self.kernel == "linear":
            return np.asarray(np.negative(distance, out=distance))
        distance *= square
        if self.kernel == "quintic":
            distance *= -square
        return np.asarray(distance)

    def polynomial(self, points: Floats) -> Floats:
        """Return the monomials at (N, D) points, (N, R)."""
        return monomials(points / self.reach, self.degree)


def monomials(points: Floats, degree: int) -> Floats:
    """Return all products of up to `degree` coordinates at (N, D) points, the constant first."""
    columns = [np.ones(len(points))]
    axes = range(points.shape[1])
    for count in range(1, degree + 1):
        for factors in itertools.combinations_with_replacement(axes, count):
            columns.append(np.prod(points[:, factors], axis=1))
    return np.asarray(np.stack(columns, axis=1), dtype=np.float64)
