"""Coherent Point Drift as it was published: over all pairs of points, O(M N) in time and memory.

The mixture and the updates are those of Myronenko & Song (2010), "Point Set Registration: Coherent
Point Drift", IEEE TPAMI 32 (12), 2262-2275. Their letters here:

===========  ================================================================================
X            target, (N, D);  Y source, (M, D);  TY where the map brings the source, T(Y)
P            posterior p_mn that target n belongs to source m; P1 and Pt1 its sums, PX = P X
sigma2, w    variance of the mixture's components an axis; share of outliers
B, t         matrix and shift of the rigid and the affine map
G, W         Gaussian kernel exp(-|y_i - y_j|^2 / (2 beta^2)), (M, M), and its weights, (M, D)
beta, alpha  width of the kernel; weight of its energy tr(W' G W), lambda in the paper
===========  ================================================================================

Numpy alone, and as plain as it gets: the reference that `tilereg.matching.drift` is tested
against, and an engine for small clouds. The paper's density of outliers, 1 / N whatever the unit,
is a parameter here. The low rank of G is that of a pivoted Cholesky factor instead of the first
eigenvectors: as exact with a few columns more, without a decomposition, and with weights at the
pivots that say the same at any place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilereg.matching.descent import (
    Descended,
    Descent,
    Expectation,
    check_size,
    descend,
    expectation,
)
from tilereg.matching.gaussian_kernel import kernel, kernel_factor
from tilereg.transform import Affine

__all__ = ["Dense", "affine", "nonrigid", "rigid", "translation"]

Floats = NDArray[np.float64]

Fit = Callable[[Floats, Floats], Floats]
"""Of A = X' P' Y and Y' d(P1) Y, centred; returns B."""


@dataclass(frozen=True, eq=False)
class Dense:
    """Where the iterations ended.

    Parameters
    ----------
    moved : (M, D) ndarray
        T(Y), without the offset.
    affine : Affine
        B and t; the identity for the nonrigid drift.
    weights : (M, D) ndarray
        W of the nonrigid drift, T(y) = y + sum_m G(y, y_m) w_m anywhere; zero for the others.
    sigma : float
    w : float
    posterior : (M,) ndarray
        P1: how much of a partner every source has.
    num_iterations : int
    is_settled : bool
    """

    moved: Floats
    affine: Affine
    weights: Floats
    sigma: float
    w: float
    posterior: Floats
    num_iterations: int
    is_settled: bool


def translation(
    source: Floats, target: Floats, *, w: float, descent: Descent, start: Floats | None = None
) -> Dense:
    """Find the shift; parameters are those of `rigid`."""
    return _linear(source, target, w, descent, start, _shift)


def rigid(
    source: Floats, target: Floats, *, w: float, descent: Descent, start: Floats | None = None
) -> Dense:
    """Find the rotation and the shift (Sect. 4 of the paper, Fig. 2, the scale held at one).

    Parameters
    ----------
    source, target : (M, D), (N, D) ndarrays
    w : float
        Share of the targets without a partner, 0 to below 1.
    descent : Descent
    start : (M, D) ndarray, optional
        T(Y) to start from. Default: the source.

    Raises
    ------
    ResourceError
        If the posterior of all pairs would take too much memory.
    """
    return _linear(source, target, w, descent, start, _rotation)


def affine(
    source: Floats, target: Floats, *, w: float, descent: Descent, start: Floats | None = None
) -> Dense:
    """Find the affine map (Fig. 3 of the paper); parameters are those of `rigid`."""
    return _linear(source, target, w, descent, start, _matrix)


def nonrigid(
    source: Floats,
    target: Floats,
    *,
    w: float,
    beta: float,
    alpha: float,
    descent: Descent,
    left_out: float | None = None,
    start: Floats | None = None,
) -> Dense:
    """Find the coherent displacement (Sect. 5 of the paper, Fig. 4).

    Parameters
    ----------
    source, target : (M, D), (N, D) ndarrays
    w : float
        Share of the targets without a partner, 0 to below 1.
    beta : float
        Width of the kernel.
    alpha : float
        Weight of the kernel's energy: one over the variance that a displacement is expected to
        have, so of the unit of one over a squared length.
    descent : Descent
    left_out : float, optional
        Share of the kernel's trace that a low rank may leave out. Default: G as it is, solved
        in O(M^3) an iteration; of rank K in O(M K^2).
    start : (M, D) ndarray, optional
        T(Y) to start from. Default: the source.

    Raises
    ------
    ResourceError
        If the posterior of all pairs, or G, would take too much memory.
    """
    check_size(len(source), max(len(source), len(target)))
    solve = _exact(source, beta, alpha) if left_out is None else _low(source, beta, alpha, left_out)
    weights = np.zeros_like(source)

    def maximise(sums: Expectation, sigma2: float) -> Floats:
        nonlocal weights
        shift, weights = solve(sums, sigma2)
        return source + shift

    first = source if start is None else start
    found = descend(target, first, expectation, maximise, w, descent)
    return _dense(found, Affine.identity(source.shape[1]), weights)


def _linear(
    source: Floats,
    target: Floats,
    w: float,
    descent: Descent,
    start: Floats | None,
    fit: Fit,
) -> Dense:
    """Run the drift of a map without a field."""
    map_ = Affine.identity(source.shape[1])

    def maximise(sums: Expectation, _sigma2: float) -> Floats:
        nonlocal map_
        Np = sums.P1.sum()
        mu_x, mu_y = sums.PX.sum(axis=0) / Np, sums.P1 @ source / Np
        Y = source - mu_y
        # P1' Y is zero, so that X need not be centred.
        A = (sums.PX - sums.P1[:, None] * mu_x).T @ Y
        B = fit(A, (Y * sums.P1[:, None]).T @ Y)
        map_ = Affine(B, mu_x - B @ mu_y)
        return map_(source)

    first = source if start is None else start
    found = descend(target, first, expectation, maximise, w, descent)
    return _dense(found, map_, np.zeros_like(source))


def _shift(A: Floats, _moment: Floats) -> Floats:
    """Return the matrix of a shift."""
    return np.eye(len(A))


def _rotation(A: Floats, _moment: Floats) -> Floats:
    """Return the rotation that is nearest to A = X' P' Y (Eq. 9)."""
    U, _, Vt = np.linalg.svd(A)
    C = np.ones(len(A))
    C[-1] = 1.0 if np.linalg.det(U @ Vt) > 0 else -1.0
    return np.asarray((U * C) @ Vt)


def _matrix(A: Floats, moment: Floats) -> Floats:
    """Return the matrix of least squares, A (Y' d(P1) Y)^-1 (Fig. 3)."""
    # Spots in a plane say nothing about the direction across it: there it stays as it is.
    ridge = 1e-9 * max(float(np.trace(moment)), 1e-300) * np.eye(len(A))
    return np.asarray(np.linalg.solve(moment + ridge, (A + ridge).T).T)


def _dense(found: Descended, map_: Affine, weights: Floats) -> Dense:
    """Join what all drifts have and what they differ in."""
    return Dense(
        found.moved, map_, weights, found.sigma, found.w, found.posterior, found.num_iterations,
        found.is_settled,
    )  # fmt: skip


Solver = Callable[[Expectation, float], tuple[Floats, Floats]]
"""Of the sums and sigma2; returns G W and W."""


def _exact(Y: Floats, beta: float, alpha: float) -> Solver:
    """Return the solver of (d(P1) G + alpha sigma2 I) W = PX - d(P1) Y, Eq. 22: G W and W."""
    G = kernel(Y, Y, beta)

    def solve(sums: Expectation, sigma2: float) -> tuple[Floats, Floats]:
        system = sums.P1[:, None] * G
        system[np.diag_indices_from(system)] += alpha * sigma2
        W = np.asarray(np.linalg.solve(system, sums.PX - sums.P1[:, None] * Y), dtype=np.float64)
        return G @ W, W

    return solve


def _low(Y: Floats, beta: float, alpha: float, left_out: float) -> Solver:
    """Return the same for G about L L': weights at the pivots alone, zero elsewhere."""
    L, pivots = kernel_factor(Y, beta, left_out)

    def solve(sums: Expectation, sigma2: float) -> tuple[Floats, Floats]:
        system = (L * sums.P1[:, None]).T @ L
        system[np.diag_indices_from(system)] += alpha * sigma2
        b = np.linalg.solve(system, L.T @ (sums.PX - sums.P1[:, None] * Y))
        # L = G[:, pivots] L[pivots]'^-1, so that weights at the pivots say the same everywhere.
        W = np.zeros_like(Y)
        W[pivots] = np.linalg.solve(L[pivots].T, b)
        return L @ b, W

    return solve
