"""Mutual nearest neighbours, and how exact they are."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

__all__ = ["GATE", "mutual_neighbours", "pair_sigma"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

GATE = 3.0
"""Standard deviations, all axes together, within which mutual neighbours are a pair."""

_ENOUGH_JUDGES = 8
_LEAST_SIGMA = 1e-6


def mutual_neighbours(moved: Floats, target: Floats, reach: float) -> tuple[Rows, Rows]:
    """Return rows of mutual nearest neighbours of two (N, D) clouds within `reach`."""
    distance, theirs = cKDTree(target).query(moved, distance_upper_bound=reach)
    back = cKDTree(moved).query(target, distance_upper_bound=reach)[1]
    ours = np.flatnonzero(np.isfinite(distance))
    ours = ours[back[theirs[ours]] == ours]
    return ours.astype(np.int64), theirs[ours].astype(np.int64)


def pair_sigma(
    moved: Floats, target: Floats, guess: float, judges: NDArray[np.bool_] | None = None
) -> float:
    """Return the standard deviation of a mutual pair an axis.

    Parameters
    ----------
    moved, target : (N, D), (M, D) ndarrays
    guess : float
        Where the search begins; what is returned if there are no pairs.
    judges : (N,) bool ndarray, optional
        The spots that the map has not seen: only they count, where there are enough pairs.
    """
    ndim = moved.shape[1]
    sigma = guess
    for _ in range(3):
        ours, theirs = mutual_neighbours(moved, target, GATE * math.sqrt(ndim) * sigma)
        if len(ours) < ndim:
            return guess
        if judges is not None and judges[ours].sum() >= _ENOUGH_JUDGES:
            ours, theirs = ours[judges[ours]], theirs[judges[ours]]
        square = ((moved[ours] - target[theirs]) ** 2).sum(axis=1)
        sigma = max(math.sqrt(float(square.mean()) / ndim), _LEAST_SIGMA)
    return sigma
