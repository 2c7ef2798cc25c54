"""What is known of a displacement besides the pairs: its covariance, and their noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilereg.affine import fit_affine

__all__ = ["Prior", "bent"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """What is known of a displacement besides the pairs: its covariance, and the noise.

    Parameters
    ----------
    beta : float
        Width of the Gaussian covariance in mean spacings of the pairs; infinite for a spline
        with the generalised covariance ``r^2 log r``: the thin-plate spline in 2D, in 3D a
        smoother one of the same family (Duchon 1977), that of `scipy.interpolate`.
    noise : float
        Variance of a pair in units of the covariance.
    """

    beta: float
    noise: float

    def covariance(self, distance: Floats) -> Floats:
        """Return the covariance at (N, M) distances in mean spacings."""
        if math.isfinite(self.beta):
            return np.asarray(np.exp(-0.5 * (distance / self.beta) ** 2))
        square = distance**2
        return np.asarray(0.5 * square * np.log(np.maximum(square, 1e-300)))


def bent(points: Floats, targets: Floats) -> Floats:
    """Return what an affine map leaves of the displacements of (K, D) points to their targets."""
    return targets - fit_affine(points, targets, np.ones(len(points)), prior=1e-6)(points)
