"""Expectation and maximisation over all pairs of points, as Coherent Point Drift has them.

Eq. 6 of Myronenko & Song (2010) and the loop of their Figs. 2-4, in their letters; see
`tilereg.matching.dense_drift`. What maximises is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilereg.errors import ResourceError

__all__ = ["Descended", "Descent", "Expectation", "check_size", "descend", "expectation"]

Floats = NDArray[np.float64]

_MOST_BYTES = 1e9
# Of the extent of the target: sigma falls no lower, where source and target are the same.
_LEAST_SIGMA = 1e-6
_MOST_OUTLIERS = 0.99
# Partners of all sources together that say something about a map.
_FEWEST = 1.0


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How expectation and maximisation are repeated.

    Parameters
    ----------
    sigma : float, optional
        Where the mixture's standard deviation starts. Default: that of all differences (Fig. 2
        of the paper).
    least_sigma : float
        The least that it may fall to; never below a millionth of the target's extent.
    density : float or (N,) ndarray
        Density of the outliers times N: 1, the paper's, is one target in a unit of volume.
    offset : float or (M, D) ndarray
        Added to T(Y) wherever it is compared with the target: a map that is not sought.
    is_w_free : bool
        Whether w is estimated anew in each iteration, as 1 - Np / N; the paper's stays.
    max_iterations : int
    tolerance : float
        Settled when a step is smaller than this share of sigma, and sigma changes by less.
    """

    sigma: float | None = None
    least_sigma: float = 0.0
    density: float | Floats = 1.0
    offset: float | Floats = 0.0
    is_w_free: bool = False
    max_iterations: int = 150
    tolerance: float = 1e-3


@dataclass(frozen=True, eq=False)
class Expectation:
    """Sums of the posterior P: P1 (M,), Pt1 (N,) and PX (M, D)."""

    P1: Floats
    Pt1: Floats
    PX: Floats


Expect = Callable[[Floats, Floats, float, float, "float | Floats"], Expectation]
"""Of target, T(Y), sigma2, w and density."""


@dataclass(frozen=True, eq=False)
class Descended:
    """What is common to all drifts at the end."""

    moved: Floats
    sigma: float
    w: float
    posterior: Floats
    num_iterations: int
    is_settled: bool


def descend(
    target: Floats,
    start: Floats,
    expect: Expect,
    maximise: Callable[[Expectation, float], Floats],
    w: float,
    descent: Descent,
) -> Descended:
    """Repeat expectation and maximisation until they settle.

    Parameters
    ----------
    target, start : (N, D), (M, D) ndarrays
        X, and T(Y) to start from.
    expect : callable
        As `expectation`.
    maximise : callable
        Of the sums and sigma2; returns T(Y).
    w : float
    descent : Descent
    """
    check_size(len(start), len(target))
    offset = np.broadcast_to(descent.offset, start.shape)
    extent = math.sqrt(float(target.var(axis=0).sum()))
    least = max(descent.least_sigma, _LEAST_SIGMA * extent, 1e-150) ** 2
    TY = start + offset
    first = _first_variance(TY, target) if descent.sigma is None else descent.sigma**2
    sigma2 = max(first, least)
    P1 = np.zeros(len(start))
    for count in range(descent.max_iterations):
        sums = expect(target, TY, sigma2, w, descent.density)
        P1, Np = sums.P1, float(sums.P1.sum())
        if Np < _FEWEST:
            return Descended(TY - offset, math.sqrt(sigma2), w, P1, count, is_settled=False)
        own = Expectation(P1, sums.Pt1, sums.PX - P1[:, None] * offset)
        moved = maximise(own, sigma2) + offset
        following = max(_variance(target, sums, moved), least)
        if descent.is_w_free:
            w = min(max(1 - Np / len(target), 0.0), _MOST_OUTLIERS)
        step = math.sqrt(float(((moved - TY) ** 2).sum(axis=1).mean()))
        change = abs(math.sqrt(following / sigma2) - 1)
        TY, sigma2 = moved, following
        if max(step / math.sqrt(sigma2), change) < descent.tolerance:
            return Descended(TY - offset, math.sqrt(sigma2), w, P1, count + 1, is_settled=True)
    most = descent.max_iterations
    return Descended(TY - offset, math.sqrt(sigma2), w, P1, most, is_settled=False)


def expectation(
    target: Floats, moved: Floats, sigma2: float, w: float, density: float | Floats = 1.0
) -> Expectation:
    """Return the sums of the posterior (Eq. 6 of the paper).

    Parameters
    ----------
    target, moved : (N, D), (M, D) ndarrays
        X and T(Y).
    sigma2, w : float
    density : float or (N,) ndarray
        As in `Descent`.
    """
    ndim = target.shape[1]
    centre = target.mean(axis=0)
    X, TY = target - centre, moved - centre
    # In place: there is room for one (M, N) matrix.
    P = TY @ X.T
    P *= -2.0
    P += (TY**2).sum(axis=1)[:, None]
    P += (X**2).sum(axis=1)
    np.maximum(P, 0.0, out=P)
    P *= -0.5 / sigma2
    np.exp(P, out=P)
    outlier = w / (1 - w) * len(TY) / len(X) * density * (2 * math.pi * sigma2) ** (ndim / 2)
    # Without outliers a target far from all sources belongs to none.
    P /= np.maximum(P.sum(axis=0) + outlier, 1e-300)
    P1 = P.sum(axis=1)
    return Expectation(P1, P.sum(axis=0), P @ X + P1[:, None] * centre)


def check_size(num_sources: int, num_targets: int, matrices: int = 1) -> None:
    """Raise if so many (M, N) matrices would take too much memory.

    Raises
    ------
    ResourceError
        Naming the size and what to use instead.
    """
    needed = 8.0 * matrices * num_sources * num_targets
    if needed > _MOST_BYTES:
        raise ResourceError(
            f"All pairs of {num_sources} and {num_targets} spots need {needed / 1e9:.1f} GB, more "
            f"than the {_MOST_BYTES / 1e9:.1f} GB that an engine of all pairs may take. Use "
            "method='cpd', which takes memory in proportion to the spots."
        )


def _variance(target: Floats, sums: Expectation, moved: Floats) -> float:
    """Return sum_mn p_mn |x_n - T(y_m)|^2 / (Np D)."""
    centre = target.mean(axis=0)
    X, TY = target - centre, moved - centre
    square = (
        sums.Pt1 @ (X**2).sum(axis=1)
        - 2 * ((sums.PX - sums.P1[:, None] * centre) * TY).sum()
        + sums.P1 @ (TY**2).sum(axis=1)
    )
    return float(square / (sums.P1.sum() * X.shape[1]))


def _first_variance(source: Floats, target: Floats) -> float:
    """Return the mean square of all differences an axis."""
    gap = source.mean(axis=0) - target.mean(axis=0)
    return float((source.var(axis=0) + target.var(axis=0) + gap**2).mean())
