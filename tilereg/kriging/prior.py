"""What is known of a displacement besides the pairs: its covariance, and their noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from tilereg.affine import fit_affine

__all__ = ["Deviation", "Prior", "bent", "gaussian_sums"]

Floats = NDArray[np.float64]

# Of the deviation: least square, and weight of the average where no point is near.
_LEAST, _FAR = 1e-5, 1e-3
_ROUNDS = 10


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
    reach : float
        Mean spacings over which the size of the displacement is averaged, where it is not the
        same everywhere; the covariance is then multiplied by `Deviation`.
    """

    beta: float
    noise: float
    reach: float = math.inf

    def covariance(self, distance: Floats) -> Floats:
        """Return the covariance at (N, M) distances in mean spacings."""
        if math.isfinite(self.beta):
            return np.asarray(np.exp(-0.5 * (distance / self.beta) ** 2))
        square = distance**2
        return np.asarray(0.5 * square * np.log(np.maximum(square, 1e-300)))


@dataclass(frozen=True)
class Deviation:
    """How large the displacement is from place to place: its standard deviation, 1 on average.

    Tissue that is torn or squeezed in some places and lies as it was in the rest is bent by far
    more there. One variance for all smooths the former, or adds ripples to the latter.

    Parameters
    ----------
    points : (K, D) ndarray
        In mean spacings.
    square : (K,) ndarray
        Squared lengths of the displacements there, 1 on average.
    reach : float
        Width of the Gaussian that they are averaged with; infinite for a constant.
    """

    points: Floats
    square: Floats
    reach: float

    @classmethod
    def of(cls, points: Floats, values: Floats, reach: float) -> Deviation:
        """Measure (K, D) displacements less the affine map that most of them agree on."""
        if not math.isfinite(reach):
            return cls(points, np.ones(len(points)), reach)
        square = (_off_trend(points, values) ** 2).sum(axis=1)
        return cls(points, square / max(float(square.mean()), 1e-300), reach)

    def __call__(self, places: Floats) -> Floats:
        """Return the deviation (N,) at (N, D) places."""
        if not math.isfinite(self.reach):
            return np.ones(len(places))
        weight = np.exp(-0.5 * (cdist(places, self.points) / self.reach) ** 2)
        return self._from(weight @ self.square, weight.sum(axis=1))

    def on_grid(self, axes: list[Floats]) -> Floats:
        """Return the deviation (n_1, .., n_D) at the nodes with these coordinates an axis."""
        if not math.isfinite(self.reach):
            return np.ones([len(axis) for axis in axes])
        weights = np.column_stack([self.square, np.ones(len(self.points))])
        sums = gaussian_sums(self.points, weights, self.reach, axes)
        return self._from(sums[..., 0], sums[..., 1])

    def _from(self, squares: Floats, weights: Floats) -> Floats:
        """Return the root of a weighted mean; far from all points it is as on average."""
        return np.asarray(np.sqrt((squares + _FAR) / (weights + _FAR) + _LEAST))


def gaussian_sums(points: Floats, weights: Floats, width: float, axes: list[Floats]) -> Floats:
    """Return sums of weighted Gaussians around points at the nodes of a grid, factor by factor.

    Parameters
    ----------
    points : (K, D) ndarray
    weights : (K, C) ndarray
    width : float
    axes : list of (n_d,) ndarrays
        Coordinates of the nodes.

    Returns
    -------
    (n_1, .., n_D, C) ndarray
    """
    *outer, last = [
        np.exp(-0.5 * ((axis[:, None] - points[:, d]) / width) ** 2) for d, axis in enumerate(axes)
    ]
    out = np.empty((*(len(axis) for axis in axes), weights.shape[1]))
    for index in np.ndindex(out.shape[:-2]):
        factor = math.prod(f[i] for f, i in zip(outer, index, strict=True))
        out[index] = (last * factor) @ weights
    return out


def _off_trend(points: Floats, values: Floats) -> Floats:
    """Return values less the affine map of least distances, which a bent part hardly moves."""
    trend = np.column_stack([points, np.ones(len(points))])
    rest = values
    for _ in range(_ROUNDS):
        length = np.sqrt((rest**2).sum(axis=1))
        weight = 1.0 / np.sqrt(length + np.median(length) + 1e-12)
        best = np.linalg.lstsq(trend * weight[:, None], values * weight[:, None], rcond=1e-9)[0]
        rest = values - trend @ best
    return rest


def bent(points: Floats, targets: Floats) -> Floats:
    """Return what an affine map leaves of the displacements of (K, D) points to their targets."""
    return targets - fit_affine(points, targets, np.ones(len(points)), prior=1e-6)(points)
