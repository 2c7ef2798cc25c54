"""The map of pairs: its model, its fit, and what it leaves over. The end of several engines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilereg.field import split_affine
from tilereg.kriging import Kriging, fit_kriging
from tilereg.lattice import Lattice, NormalEquations
from tilereg.matching.pairing import GATE, mutual_neighbours, pair_sigma
from tilereg.matching.problem import FEWEST_PAIRS, Found, Problem
from tilereg.matching.selection import Selection, fit_simple, select_model
from tilereg.transform import Affine, Transform

__all__ = ["Paired", "Pairs", "deviation", "from_pairs"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

Pairs = tuple[Rows, Rows]
"""Rows of the fitted fixed spots and of their moving ones."""

# Rounds of fitting and pairing, and in how many the model is chosen anew.
_ROUNDS, _CHOICES = 5, 2
_REWEIGHTED = 3
# Median length of a normal vector in standard deviations of a component.
_MEDIAN_LENGTH = {2: 1.177, 3: 1.538}
# Iterations of the estimate of the deviation, its least, and least share of right or wrong pairs.
_ESTIMATED, _LEAST, _LEAST_SHARE = 10, 1e-6, 0.02
# Pairs that are off by so many deviations count for little.
_FAR = 3.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Paired:
    """What an engine has found.

    Parameters
    ----------
    pairs : tuple of (K,) ndarrays
        Rows of the fitted fixed spots and of the moving ones.
    affine : Affine
        What a coherent field is added to; the map where there are too few pairs.
    sigma : float
        Standard deviation of a pair an axis.
    iterations : list of int
        Of each stage.
    """

    pairs: Pairs
    affine: Affine
    sigma: float
    iterations: list[int]


def from_pairs(problem: Problem, paired: Paired) -> Found:
    """Choose the model of pairs, fit it, and pair anew until the pairs settle.

    A field is fitted by kriging; where a width or a coherent field is asked for, as a Gaussian
    process of that width, or of the one that predicts held-out pairs best.
    """
    rows, source, moving = problem.fitted_rows, problem.fitted, problem.moving
    targets = problem.targets
    gate = GATE * math.sqrt(source.shape[1])
    pairs, affine, sigma = paired.pairs, paired.affine, paired.sigma
    fit = _Fit(Transform(affine), sigma)
    chosen: Selection | None = None
    count = 0
    while len(pairs[0]) >= FEWEST_PAIRS and count < min(_ROUNDS, problem.max_iterations):
        x, y = source[pairs[0]], moving[pairs[1]]
        if chosen is None or count < _CHOICES:
            chosen = select_model(x, affine(x), y, sigma, beta=problem.beta)
        fit = _fitted(problem, affine, chosen, x, y, sigma)
        moved = problem.moved(fit.map, rows)
        sigma = pair_sigma(moved, targets, fit.sigma, aside=problem.aside)
        count += 1
        known, pairs = pairs, mutual_neighbours(moved, targets, gate * sigma)
        if all(np.array_equal(old, new) for old, new in zip(known, pairs, strict=True)):
            break
    share = len(pairs[0]) / len(source)
    seen = pair_sigma(problem.moved(fit.map), targets, sigma, aside=problem.aside)
    return Found(
        map=fit.map,
        sigma=max(seen, fit.sigma, fit.predicted),
        model="affine" if chosen is None else chosen.model,
        field=fit.field,
        beta=fit.beta,
        w=max(0.0, 1.0 - share * len(problem.fixed) / len(moving)),
        losses={} if chosen is None else chosen.losses,
        iterations=[*paired.iterations, count],
        kriging=fit.kriging,
    )


def deviation(residual: Floats, guess: float) -> float:
    """Return the deviation an axis of those pairs that are no chance.

    Right pairs are off by a normal vector; those by chance lie anywhere within reach.

    Parameters
    ----------
    residual : (K, D) ndarray
        By how much pairs are off.
    guess : float
        Where the estimate begins.
    """
    ndim = residual.shape[1]
    square = (residual**2).sum(axis=1)
    ball = math.pi if ndim == 2 else 4 / 3 * math.pi
    volume = ball * max(float(square.max()), _LEAST**2) ** (ndim / 2)
    share, variance = 0.5, guess**2
    for _ in range(_ESTIMATED):
        right = share * np.exp(-0.5 * square / variance) / (2 * math.pi * variance) ** (ndim / 2)
        likely = right / (right + (1 - share) / volume)
        share = min(max(float(likely.mean()), _LEAST_SHARE), 1 - _LEAST_SHARE)
        total = max(float(likely.sum()), 1e-9)
        variance = max(float(likely @ square) / (ndim * total), _LEAST**2)
    return math.sqrt(variance)


@dataclass(frozen=True)
class _Fit:
    """A map, the deviation of its pairs, and of a field kind, width and what a next can be like.

    `predicted` is the deviation from what the other pairs predict, where that is known.
    """

    map: Transform
    sigma: float
    predicted: float = 0.0
    field: str | None = None
    beta: float = math.nan
    kriging: Kriging | None = None


def _fitted(
    problem: Problem, affine: Affine, chosen: Selection, x: Floats, y: Floats, sigma: float
) -> _Fit:
    """Fit the chosen model to (K, D) pairs."""
    if chosen.model != "field":
        map_ = _robust(chosen.model, x, y, sigma)
        return _Fit(Transform(map_), deviation(map_(x) - y, sigma))
    if problem.beta is None and problem.field != "coherent":
        return _kriged(problem, x, y, sigma)
    lattice = Lattice.cover(*problem.box, chosen.prior.spacing)
    base = affine(x)
    weights = np.ones(len(x))
    solution = None
    for _ in range(_REWEIGHTED):
        equations = NormalEquations.assemble(lattice, x, weights / sigma**2, y - base)
        solution = chosen.prior.solve(equations, start=solution, tolerance=1e-4)
        field = lattice.field(solution.coefficients)
        weights = _weights(base + field(x) - y, sigma)
    bent = Transform(*split_affine(affine, field, problem.fitted))
    own = deviation(bent(x) - y, sigma)
    return _Fit(bent, own, field="coherent", beta=chosen.prior.beta)


def _kriged(problem: Problem, x: Floats, y: Floats, sigma: float) -> _Fit:
    """Fit a field by kriging; of the pairs themselves it may leave nothing over."""
    found = fit_kriging(x, y, domain=problem.box)
    others = float(np.nanmedian(found.residual)) / _MEDIAN_LENGTH[x.shape[1]]
    own = deviation(found.transform(x) - y, sigma)
    width = found.prior.beta * found.unit
    return _Fit(found.transform, own, others, "kriging", width, found)


def _robust(model: str, x: Floats, y: Floats, sigma: float) -> Affine:
    """Fit a model without a field, pairs that are far off weighted down."""
    map_ = fit_simple(model, x, y, np.ones(len(x)))
    for _ in range(_REWEIGHTED):
        map_ = fit_simple(model, x, y, _weights(map_(x) - y, sigma))
    return map_


def _weights(residual: Floats, sigma: float) -> Floats:
    """Return weights (K,) of residuals (K, D): Cauchy's, of the pairs' own deviation."""
    square = (residual**2).mean(axis=1)
    # Before the first fit the deviation may be far too small for all of them.
    scale = max(sigma**2, float(np.median(square)))
    return np.asarray(1 / (1 + square / (_FAR**2 * scale)))
