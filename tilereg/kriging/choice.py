"""The prior that predicts pairs best from one another."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.kriging.leave_out import residuals_of
from tilereg.kriging.prior import Prior

__all__ = ["BETAS", "choose_prior", "sampled"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

BETAS = (math.inf, 48.0, 32.0, 22.0, 16.0, 11.0, 8.0, 5.5, 4.0, 2.8, 2.0)
_NOISES = tuple(10.0 ** (0.5 * k) for k in range(-18, 5))
# Pairs that a prior is chosen from: some from everywhere, most of them in patches, where they are
# as dense as all are.
_SPREAD, _PATCHES, _PATCH = 100, 10, 30


def choose_prior(
    points: Floats, values: Floats, betas: tuple[float, ...] = BETAS
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

    Returns
    -------
    prior : Prior
    residual : (L,) ndarray
        Leave-one-out residuals of the pairs that were looked at.
    rows : (L,) ndarray
        Which these are.
    """
    rows = sampled(points)
    points, values = points[rows], values[rows]
    found = [
        (Prior(beta, noise), residual)
        for beta in betas
        for noise, residual in zip(
            _NOISES, residuals_of(points, values, beta, _NOISES), strict=True
        )
    ]
    # Wrong pairs weigh little, and so would a bent region if large errors were cut off.
    floor = min(float(np.median(r)) for _, r in found)
    losses = [float(np.log(r**2 + floor**2 + 1e-24).mean()) for _, r in found]
    prior, residual = found[int(np.argmin(losses))]
    return prior, residual, rows


def sampled(points: Floats) -> Rows:
    """Return rows of the (K, D) points a prior is chosen from: at most 400, sorted."""
    if len(points) <= _SPREAD + _PATCHES * _PATCH:
        return np.arange(len(points))
    order = np.random.default_rng(0).permutation(len(points))
    patches = cKDTree(points).query(points[order[-_PATCHES:]], k=_PATCH)[1]
    return np.unique(np.concatenate([order[:_SPREAD], patches.ravel()]))
