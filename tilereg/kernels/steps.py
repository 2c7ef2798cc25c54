"""Sums for fits of steps: what least squares on both sides of a plane need."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["add_up"]

Floats = NDArray[np.float64]


@njit(cache=True, nogil=True)
def add_up(
    rows: NDArray[np.int64],
    groups: NDArray[np.int64],
    along: Floats,
    across: Floats,
    values: Floats,
    place: float,
    half: float,
    gram: Floats,
    right: Floats,
    square: Floats,
    count: NDArray[np.int64],
) -> None:
    """Add pairs near a plane to the normal equations of their group.

    rows (R,) are the pairs, groups (R,) theirs, below zero for none; along (N,) positions along
    the normal, across (N, E) within the plane, from the middle of the group; values (N, D). The
    regressors are 1, t, t^2, t^3, the E places across, and last the step, -1/2 and 1/2: t is the
    distance from the plane over `half`. Adds to gram (G, P, P), right (G, P, D), square (G,) and
    count (G,).
    """
    num_across, ndim = across.shape[1], values.shape[1]
    size = 5 + num_across
    p = np.empty(size)
    p[0] = 1.0
    for k in range(rows.shape[0]):
        g = groups[k]
        if g < 0:
            continue
        i = rows[k]
        t = (along[i] - place) / half
        p[1], p[2], p[3] = t, t * t, t * t * t
        for e in range(num_across):
            p[4 + e] = across[i, e]
        p[size - 1] = 0.5 if t >= 0 else -0.5
        for a in range(size):
            for b in range(a + 1):
                gram[g, a, b] += p[a] * p[b]
            for d in range(ndim):
                right[g, a, d] += p[a] * values[i, d]
        for d in range(ndim):
            square[g] += values[i, d] * values[i, d]
        count[g] += 1
