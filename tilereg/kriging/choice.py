"""The prior that predicts pairs best from one another."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.kriging.leave_out import residuals_of
from tilereg.kriging.prior import Deviation, Prior

__all__ = ["BETAS", "choose_prior", "sampled"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

BETAS = (math.inf, 48.0, 32.0, 22.0, 16.0, 11.0, 8.0, 5.5, 4.0, 2.8, 2.0, 1.4)
_NOISES = tuple(10.0 ** (0.5 * k) for k in range(-18, 5))
# Widths from which a better one is sought.
_STARTS = (22.0, 8.0, 2.8)
# Widths where the size of the displacement may differ from place to place, where the search
# starts, and how far the size is averaged.
_NARROW, _NARROWER = 5.5, 2.8
_REACHES = (2.0, 1.5, 3.0)
# Pairs are predicted alike where they are missed by less, in mean spacings.
_ALIKE = 0.003
# Pairs that a prior is chosen from: some from everywhere, most of them in patches, where they are
# as dense as all are.
_SPREAD, _PATCHES, _PATCH = 100, 10, 30


def choose_prior(
    points: Floats,
    values: Floats,
    betas: tuple[float, ...] = BETAS,
    *,
    is_local: bool = False,
    weight: Floats | None = None,
) -> tuple[Prior, Floats, Rows]:
    """Choose the prior that predicts values at points best from the values at the others.

    Parameters
    ----------
    points : (K, D) ndarray
        In mean spacings.
    values : (K, D) ndarray
        Displacements; affine maps are free.
    betas : tuple of float
        Widths to choose from.
    is_local : bool
        Whether the size of the displacement may differ from place to place.
    weight : (K,) ndarray, optional
        Above 0; the noise of a pair is that of the prior over its weight, and its residual counts
        for as much. Default 1.

    Returns
    -------
    prior : Prior
    residual : (L,) ndarray
        Leave-one-out residuals of the pairs that were looked at.
    rows : (L,) ndarray
        Which these are.
    """
    rows = sampled(points)
    search = _Search(points[rows], values[rows], betas, None if weight is None else weight[rows])
    everywhere = np.ones(len(rows))
    for beta in (math.inf, *_STARTS):
        search.look(math.inf, everywhere, beta)
    search.climb(math.inf, everywhere)
    narrow = search.best()[0].beta
    if is_local and (narrow <= _NARROW or math.isinf(narrow)):
        for reach in _REACHES:
            deviation = Deviation.of(points, values, reach)(points[rows])
            search.look(reach, deviation, min(narrow, _NARROWER))
            search.climb(reach, deviation)
            if math.isinf(search.best()[0].reach):
                break
    prior, residual = search.best()
    return prior, residual, rows


class _Search:
    """Priors that were looked at, from one decomposition for all amounts of noise."""

    def __init__(
        self, points: Floats, values: Floats, betas: tuple[float, ...], weight: Floats | None
    ) -> None:
        """Start with none."""
        self._points, self._values, self._weight = points, values, weight
        self._betas = sorted(betas)
        self._found: dict[tuple[float, float], Floats] = {}
        self._least_median = math.inf

    def best(self, reach: float | None = None) -> tuple[Prior, Floats]:
        """Return the prior of least leave-one-out residuals, and those.

        Of all that were looked at, or of the Gaussian ones of one reach.
        """
        # Wrong pairs weigh little, and so would a bent region if large errors were cut off.
        floor = max(_ALIKE, self._least_median)
        losses = {
            (its, beta): self._mean(np.log(residuals**2 + floor**2))
            for (its, beta), residuals in self._found.items()
            if reach is None or (its == reach and math.isfinite(beta))
        }
        its, beta = min(losses, key=lambda key: float(losses[key].min()))
        at = int(np.argmin(losses[its, beta]))
        return Prior(beta, _NOISES[at], its), self._found[its, beta][:, at]

    def look(self, reach: float, deviation: Floats, beta: float) -> None:
        """Judge the priors of the allowed width that is nearest to one.

        A spline's covariance is one only as long as it is the same everywhere.
        """
        if math.isinf(beta) and math.isfinite(reach):
            return
        beta = min(self._betas, key=lambda b: abs(1 / b - 1 / beta))
        if (reach, beta) not in self._found:
            found = residuals_of(self._points, self._values, beta, _NOISES, deviation, self._weight)
            self._found[reach, beta] = found
            self._least_median = min(self._least_median, float(np.median(found, axis=0).min()))

    def _mean(self, losses: Floats) -> Floats:
        """Return the weighted mean (L,) of (K, L) losses."""
        if self._weight is None:
            return np.asarray(losses.mean(axis=0))
        return np.asarray(np.average(losses, axis=0, weights=self._weight))

    def climb(self, reach: float, deviation: Floats) -> None:
        """Look at the widths next to the best as long as they are better."""
        if not any(its == reach and math.isfinite(beta) for its, beta in self._found):
            return
        known = 0
        while len(self._found) > known:
            known = len(self._found)
            at = self._betas.index(self.best(reach)[0].beta)
            for beta in self._betas[max(at - 1, 0) : at + 2]:
                self.look(reach, deviation, beta)


def sampled(points: Floats, spread: int = _SPREAD, num_patches: int = _PATCHES) -> Rows:
    """Return rows of the (K, D) points that a prior is chosen from, sorted.

    Some from everywhere and some patches of thirty neighbours; all where that is not less.
    """
    if len(points) <= spread + num_patches * _PATCH:
        return np.arange(len(points))
    order = np.random.default_rng(0).permutation(len(points))
    patches = cKDTree(points).query(points[order[-num_patches:]], k=_PATCH)[1]
    return np.unique(np.concatenate([order[:spread], patches.ravel()]))
