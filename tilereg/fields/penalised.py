"""Penalised least squares with radial functions around all of the points, or around some."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpotrf, dpotrs, dpstrf

from tilereg.errors import InputError
from tilereg.fields.basis import Basis
from tilereg.kriging.leave_out import FLAT, Trend

__all__ = ["fit_all", "fit_some"]

Floats = NDArray[np.float64]

# Directions whose energy is below this share of the largest are not seen in float64.
_UNSEEN = 1e-14
_BATCH = 4_000_000


def fit_all(
    points: Floats, values: Floats, weight: Floats, basis: Basis, smoothing: float
) -> tuple[Floats, Floats]:
    """Fit a field with a centre at each point.

    Solves ``(K + smoothing / W) w + P c = v`` with ``P' w = 0``, which is the system of
    `scipy.interpolate.RBFInterpolator`, in the basis of what the polynomials leave.

    Parameters
    ----------
    points, values : (K, D) ndarray
        Each place once.
    weight : (K,) ndarray
    basis : Basis
    smoothing : float

    Returns
    -------
    weights : (K, D) ndarray
        Of the radial functions.
    terms : (R, D) ndarray
        Of the monomials; of least size where the points, in a plane for example, leave them open.

    Raises
    ------
    InputError
        If the system is singular.
    """
    design = basis.polynomial(points)
    system = basis.radial(points, points)
    system[np.diag_indices_from(system)] += smoothing / weight
    trend = Trend(design)
    factor, info = dpotrf(trend.inner(system), lower=1, overwrite_a=1)
    if info:
        raise _singular(basis, len(points), smoothing)
    weights = trend.outer(dpotrs(factor, trend.rest(values), lower=1)[0])
    rest = values - system @ weights
    return weights, np.asarray(np.linalg.lstsq(design, rest, rcond=FLAT)[0])


def fit_some(
    points: Floats,
    values: Floats,
    weight: Floats,
    centres: Floats,
    basis: Basis,
    smoothing: float,
) -> tuple[Floats, Floats]:
    """Fit a field with fewer centres than points to all points.

    Minimises ``sum_i weight_i |v_i - u(x_i)|^2 + smoothing * w' K w``; with a centre at each point
    it is the field of `fit_all`.

    Parameters
    ----------
    points, values : (K, D) ndarray
    weight : (K,) ndarray
    centres : (M, D) ndarray
    basis : Basis
    smoothing : float

    Returns
    -------
    weights, terms : (M, D), (R, D) ndarrays

    Raises
    ------
    InputError
        If the system is singular.

    Notes
    -----
    The radial functions are made orthonormal in the energy first: so the condition is that of K,
    not its square. Time grows with K M^2, memory with M^2.
    """
    span = _orthonormal(centres, basis)
    terms = _independent(basis.polynomial(points), weight)
    size = span.shape[1]
    gram, mixed = np.zeros((size, size)), np.zeros((size, terms.shape[1]))
    right, trend = np.zeros((size, values.shape[1])), np.zeros((terms.shape[1], values.shape[1]))
    rows = max(1, _BATCH // len(centres))
    for start in range(0, len(points), rows):
        part = slice(start, start + rows)
        root = np.sqrt(weight[part])[:, None]
        bent = root * (basis.radial(points[part], centres) @ span)
        flat = root * (basis.polynomial(points[part]) @ terms)
        gram += bent.T @ bent
        mixed += bent.T @ flat
        right += bent.T @ (root * values[part])
        trend += flat.T @ (root * values[part])
    gram -= mixed @ mixed.T
    gram[np.diag_indices_from(gram)] += smoothing
    factor, info = dpotrf(gram, lower=1, overwrite_a=1)
    if info:
        raise _singular(basis, len(points), smoothing)
    amounts = dpotrs(factor, right - mixed @ trend, lower=1)[0]
    return span @ amounts, terms @ (trend - mixed.T @ amounts)


def _orthonormal(centres: Floats, basis: Basis) -> Floats:
    """Return sums (M, r) of radial functions that leave out polynomials, of energy one each."""
    trend = Trend(basis.polynomial(centres))
    inner = trend.inner(basis.radial(centres, centres))
    most = float(np.diag(inner).max())
    factor, pivots, rank, _ = dpstrf(inner, lower=1, tol=_UNSEEN * most, overwrite_a=1)
    columns = np.zeros((len(pivots), rank))
    columns[pivots[:rank] - 1] = solve_triangular(
        factor[:rank, :rank], np.eye(rank), lower=True, trans="T"
    )
    return trend.outer(columns)


def _independent(design: Floats, weight: Floats) -> Floats:
    """Return sums (R, r) of monomials that are orthonormal at the weighted points."""
    energies, vectors = np.linalg.eigh(design.T @ (weight[:, None] * design))
    kept = energies > FLAT**2 * energies.max()
    return np.asarray(vectors[:, kept] / np.sqrt(energies[kept]))


def _singular(basis: Basis, num_points: int, smoothing: float) -> InputError:
    """Say that a system cannot be solved."""
    return InputError(
        f"A {basis.kernel} field through {num_points} pairs with smoothing {smoothing:.3g} (in "
        "mean spacings) has no single solution: pairs are too close, or the kernel is too wide. "
        "Use a larger smoothing or a smaller beta, or give neither to have both chosen."
    )
