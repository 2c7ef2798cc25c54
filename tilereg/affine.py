"""Affine and rigid least squares between paired points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tilereg.transform import Affine

__all__ = ["fit_affine", "fit_rigid", "fit_translation", "num_parameters"]

Floats = NDArray[np.float64]


def fit_translation(source: Floats, target: Floats, weights: Floats | None = None) -> Affine:
    """Return the shift that brings (K, D) source points onto their targets."""
    ndim = source.shape[1]
    shift = np.average(target - source, axis=0, weights=weights)
    return Affine(np.eye(ndim), shift)


def fit_rigid(source: Floats, target: Floats, weights: Floats | None = None) -> Affine:
    """Return the proper rotation and shift between paired (K, D) points (Kabsch 1976)."""
    centre_s = np.average(source, axis=0, weights=weights)
    centre_t = np.average(target, axis=0, weights=weights)
    scaled = (source - centre_s) * (1.0 if weights is None else weights[:, None])
    u, _, vt = np.linalg.svd(scaled.T @ (target - centre_t))
    sign = np.ones(source.shape[1])
    sign[-1] = np.sign(np.linalg.det(vt.T @ u.T)) or 1.0
    rotation = vt.T @ (sign[:, None] * u.T)
    return Affine(rotation, centre_t - rotation @ centre_s)


def fit_affine(
    source: Floats,
    target: Floats,
    weights: Floats | None = None,
    *,
    prior: float = 0.0,
    centre: Affine | None = None,
) -> Affine:
    """Return the affine map between paired (K, D) points.

    Parameters
    ----------
    source, target : (K, D) ndarray
    weights : (K,) ndarray, optional
    prior : float
        Strength of the pull of the matrix towards that of `centre`, in the same units as
        ``sum_i w_i x_i^2``; holds the directions that flat or small clouds leave open.
    centre : Affine, optional
        Default: the rigid fit.
    """
    w = np.ones(len(source)) if weights is None else weights
    centre = fit_rigid(source, target, w) if centre is None else centre
    centre_s = np.average(source, axis=0, weights=w)
    centre_t = np.average(target, axis=0, weights=w)
    x, y = source - centre_s, target - centre_t
    moment = (x * w[:, None]).T @ x
    rest = y - x @ centre.matrix.T
    jitter = 1e-12 * max(np.trace(moment), 1e-300) + prior
    change = np.linalg.solve(moment + jitter * np.eye(len(moment)), (x * w[:, None]).T @ rest).T
    matrix = centre.matrix + change
    return Affine(matrix, centre_t - matrix @ centre_s)


def num_parameters(model: str, ndim: int) -> int:
    """Return the degrees of freedom of a model, 'translation', 'rigid' or 'affine'."""
    return {
        "translation": ndim,
        "rigid": ndim + ndim * (ndim - 1) // 2,
        "affine": ndim * (ndim + 1),
    }[model]
