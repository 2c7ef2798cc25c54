"""How far pairs agree with their neighbours, whatever field is to be fitted to them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

__all__ = ["agreement"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Neighbours that predict a pair, and pairs below which none can be told to be wrong.
_NEIGHBOURS = {2: 12, 3: 16}
_FEWEST = 12
_ROUNDS = 4
# Where Tukey's biweight ends, in medians of what is missed: seven standard deviations in 3D.
_TUKEY = 4.685
# Pairs are predicted alike where they are missed by less, in units of the points.
_ALIKE = 1e-6
_RIDGE = 1e-12
_CHUNK = 50_000


def agreement(points: Floats, targets: Floats, weight: Floats) -> Floats:
    """Return how far each pair agrees with what its neighbours predict.

    An affine map through the neighbours of a pair, itself left out, predicts it. What it misses
    is compared with what is usual there: where a field bends, all pairs are missed by more. Wrong
    neighbours are told in the round before.

    Parameters
    ----------
    points, targets : (K, D) ndarray
        Pairs, in mean spacings.
    weight : (K,) ndarray
        Confidence in each pair.

    Returns
    -------
    (K,) ndarray
        1 for a pair that is predicted exactly, 0 for one that contradicts its neighbours; 1 for
        all of fewer than a dozen pairs.

    Notes
    -----
    Tukey's biweight of the standardised residual, found in four rounds. Time and memory are
    linear in the pairs.
    """
    agreed = np.ones(len(points))
    if len(points) < _FEWEST:
        return agreed
    count = min(_NEIGHBOURS[points.shape[1]], len(points) - 1)
    near = _neighbours(points, count)
    for _ in range(_ROUNDS):
        missed = _missed(points, targets, weight * agreed, near)
        usual = np.maximum(np.median(missed[near], axis=1), np.median(missed))
        limit = _TUKEY * np.maximum(usual, _ALIKE)
        agreed = np.maximum(0.0, 1.0 - (missed / limit) ** 2) ** 2
    return agreed


def _neighbours(points: Floats, count: int) -> Rows:
    """Return the rows (K, count) of the points nearest to each, itself left out."""
    rows = cKDTree(points).query(points, k=count + 1)[1]
    # Of points at one place any may come first.
    own = rows == np.arange(len(points))[:, None]
    own[:, -1] |= ~own.any(axis=1)
    return np.asarray(rows[~own].reshape(len(points), count), dtype=np.int64)


def _missed(points: Floats, targets: Floats, weight: Floats, near: Rows) -> Floats:
    """Return by how much affine maps through the neighbours miss each pair, standardised (K,)."""
    every = np.arange(len(near))
    parts = [every[start : start + _CHUNK] for start in range(0, len(near), _CHUNK)]
    return np.concatenate([_missed_rows(points, targets, weight, near, rows) for rows in parts])


def _missed_rows(points: Floats, targets: Floats, weight: Floats, near: Rows, rows: Rows) -> Floats:
    """Return the same for some rows."""
    around = near[rows]
    # Where all neighbours are wrong they tell nothing, but something must be compared.
    trust = np.maximum(weight[around], 1e-12)
    trust /= trust.sum(axis=1, keepdims=True)
    places, values = points[around], targets[around]
    middle = np.einsum("kn,knd->kd", trust, places)
    mean = np.einsum("kn,knd->kd", trust, values)
    arm = places - middle[:, None]
    moment = np.einsum("kn,knd,kne->kde", trust, arm, arm)
    ndim = points.shape[1]
    size = np.trace(moment, axis1=1, axis2=2)[:, None, None]
    moment += (_RIDGE * size + 1e-300) * np.eye(ndim)
    mixed = np.einsum("kn,knd,kne->kde", trust, arm, values - mean[:, None])
    step = points[rows] - middle
    along = np.linalg.solve(moment, step[:, :, None])[:, :, 0]
    gap = targets[rows] - mean - np.einsum("kd,kde->ke", along, mixed)
    # Variance of the prediction: that of the mean, and more the further away it reaches.
    reach = np.einsum("kn,knd,kd->kn", trust, arm, along)
    variance = 1.0 + ((trust + reach) ** 2).sum(axis=1)
    return np.asarray(np.linalg.norm(gap, axis=1) / np.sqrt(variance))
