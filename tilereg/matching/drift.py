"""Coherent Point Drift over all spots, with truncated sums and a field on a lattice.

The mixture, the outlier term and the updates are those of Myronenko & Song (2010), "Point set
registration: Coherent Point Drift". Their letters here:

====  =======================================================================================
X     source: the fixed spots, (M, D);  T(X) their places in the moving world
Y     target: the moving spots, (N, D)
P     posterior p_mn that target n belongs to source m; P1 its sums over n
w     share of outliers;  s the mixture's standard deviation sigma
====  =======================================================================================

What differs is how sums and the field are held. Pairs farther apart than 3.5 s are never formed,
so a step costs O(M + N). The field is a cubic B-spline lattice with the paper's Gaussian prior,
and affine maps are free. The outlier density is the local density of the targets instead of a
uniform one over a box, so clustered clouds and tilted volumes need no volume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tilereg.lattice import Lattice, NormalEquations
from tilereg.matching.cells import CellList, neighbour_distance
from tilereg.smoothing import Coherent, Solution

__all__ = ["Drift", "DriftStep", "Known", "drift", "local_density"]

Floats = NDArray[np.float64]

_TRUNCATION = 3.5
_RATE = 0.75
_SLACK = 1.05
_MOST_OUTLIERS, _LEAST_OUTLIERS = 0.95, 0.02
_SETTLED = 2e-3
_LAST_STEPS = 4
_NEIGHBOURS = 12
_LEAST_POSTERIOR = 1e-3


@dataclass(frozen=True)
class DriftStep:
    """One iteration: sigma, its maximum-likelihood estimate, w, and the step of T (rms)."""

    sigma: float
    sigma_ml: float
    w: float
    step: float


@dataclass(frozen=True, eq=False)
class Drift:
    """Where the iterations ended.

    Parameters
    ----------
    solution : Solution
        Lattice coefficients of the displacement on top of the base map.
    sigma : float
        Standard deviation of a pair an axis, maximum likelihood.
    w : float
        Share of the targets without a partner.
    posterior : (M,) ndarray
        P1: how much of a partner every source has.
    partner : (M, D) ndarray
        Posterior mean of the partner; the transformed source itself where it has none.
    steps : tuple of DriftStep
    """

    solution: Solution
    sigma: float
    w: float
    posterior: Floats
    partner: Floats
    steps: tuple[DriftStep, ...] = field(default=())


@dataclass(frozen=True, eq=False)
class Known:
    """Pairs that need no posterior, such as landmarks.

    Parameters
    ----------
    points, shift : (L, D) ndarray
        Where they are, and their displacement on top of the base map.
    weight : (L,) ndarray
        Relative to a source that is sure of its partner.
    """

    points: Floats
    shift: Floats
    weight: Floats

    def beside(
        self, source: Floats, weights: Floats, values: Floats, sigma: float
    ) -> tuple[Floats, Floats, Floats]:
        """Return points, weights and values of a fit with these pairs added."""
        return (
            np.concatenate([source, self.points]),
            np.concatenate([weights, self.weight / sigma**2]),
            np.concatenate([values, self.shift]),
        )


def local_density(points: Floats) -> Floats:
    """Return the number of points in a unit volume around each point, from near neighbours."""
    ndim = points.shape[1]
    count = min(_NEIGHBOURS, len(points) - 1)
    if count < 1:
        return np.ones(len(points))
    radius = neighbour_distance(points, count)
    radius = np.maximum(radius, 1e-3 * max(float(radius.max()), 1e-6))
    ball = math.pi if ndim == 2 else 4 / 3 * math.pi
    return np.asarray(count / (ball * radius**ndim))


def drift(
    source: Floats,
    base: Floats,
    target: Floats,
    lattice: Lattice,
    prior: Coherent,
    *,
    density: Floats | None = None,
    known: Known | None = None,
    trust: tuple[Floats | None, Floats | None] = (None, None),
    start: Solution | None = None,
    sigma: float = 0.33,
    least_sigma: float = 0.01,
    w: float = 0.5,
    max_iterations: int = 60,
) -> Drift:
    """Run expectation and maximisation while sigma falls.

    Parameters
    ----------
    source : (M, D) ndarray
        Fixed spots, where the field is evaluated.
    base : (M, D) ndarray
        Where the base map brings them; the field is added to this.
    target : (N, D) ndarray
        Moving spots.
    lattice : Lattice
    prior : Coherent
    density : (N,) ndarray, optional
        `local_density` of the target, where it is known already.
    known : Known, optional
        Pairs that pull the field like sources that are sure of their partners.
    trust : pair of (M,), (N,) ndarrays, optional
        Confidence in each source, which multiplies its posterior in the fit, and in each target,
        which multiplies what it gives to the sources around it. Default: 1.
    start : Solution, optional
        Field to start from. Default none.
    sigma, least_sigma : float
        Where sigma starts, and the least that it may fall to.
    w : float
        Share of outliers to start from; too low a value does not lock.

    Returns
    -------
    Drift
    """
    ndim = source.shape[1]
    density = local_density(target) if density is None else density
    target_cells = CellList.build(target, _TRUNCATION * sigma)
    moved = base if start is None else base + lattice.field(start.coefficients)(source)
    solution = start
    steps: list[DriftStep] = []
    last_steps = 0
    total = len(target) if trust[1] is None else float(trust[1].sum())
    p1, partner, sigma_ml = np.zeros(len(source)), moved, sigma
    for _ in range(max_iterations):
        radius = _TRUNCATION * sigma
        sums = CellList.build(moved, radius).gaussian_sum(target, sigma, radius)
        outlier = w / (1 - w) * len(source) / len(target) * density
        outlier *= (2 * math.pi * sigma**2) ** (ndim / 2)
        factor = 1.0 / (sums + outlier)
        if trust[1] is not None:
            factor *= trust[1]
        p1, offset, square = target_cells.posterior_sums(moved, sigma, radius, factor)
        mean = offset / np.maximum(p1, 1e-300)[:, None]
        partner = moved + np.where(p1[:, None] > _LEAST_POSTERIOR, mean, 0.0)
        weights = np.where(p1 > _LEAST_POSTERIOR, p1, 0.0) / sigma**2
        if trust[0] is not None:
            weights *= trust[0]
        if not weights.any():
            break
        rows = source, weights, partner - base
        if known is not None:
            rows = known.beside(*rows, sigma)
        equations = NormalEquations.assemble(lattice, *rows)
        tolerance = 1e-3 if not last_steps else 1e-4
        solution = prior.solve(equations, start=solution, tolerance=tolerance)
        following = base + lattice.field(solution.coefficients)(source)
        # sum p |y - T'|^2 = sum p |y - T|^2 + P1 (|m - T'|^2 - |m - T|^2), m the mean partner.
        rest = square + p1 * (((partner - following) ** 2).sum(1) - (mean**2).sum(1))
        sigma_ml = _deviation(rest, p1, trust[0], ndim)
        w = float(np.clip(1 - float(p1.sum()) / total, _LEAST_OUTLIERS, _MOST_OUTLIERS))
        step = math.sqrt(float(((following - moved) ** 2).sum(1).mean()))
        steps.append(DriftStep(sigma, sigma_ml, w, step))
        moved = following
        lower = max(least_sigma, _RATE * sigma, _SLACK * sigma_ml)
        if lower < 0.985 * sigma and not last_steps:
            sigma = lower
            continue
        last_steps += 1
        if last_steps >= _LAST_STEPS or step < _SETTLED * sigma:
            break
    if solution is None:
        solution = Solution(np.zeros((*lattice.nodes, ndim)), (), 0)
    return Drift(solution, max(sigma_ml, least_sigma), w, p1, partner, tuple(steps))


def _deviation(squares: Floats, p1: Floats, trust: Floats | None, ndim: int) -> float:
    """Return sigma of maximum likelihood from sums of p |y - T(x)|^2 and of p at each source."""
    if trust is not None:
        squares, p1 = trust * squares, trust * p1
    return math.sqrt(max(float(squares.sum()), 0.0) / (ndim * float(p1.sum())) + 1e-18)
