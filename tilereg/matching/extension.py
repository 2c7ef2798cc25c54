"""Extend a match to what the map of the drift does not reach.

Round by round: pair what the map brings together, grow into regions that are bent more, assign
what is left over, and fit anew with the prior that predicts each pair best from the others. The
held-out spots decide which round, if any, is better than the map of the drift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.field import fit_field
from tilereg.kriging import fit_kriging
from tilereg.matching.growth import Growth, assign_rest, grow
from tilereg.matching.pairing import GATE, mutual_neighbours, pair_sigma, wide_pairs
from tilereg.matching.problem import Problem
from tilereg.transform import Transform

__all__ = ["Extension", "extend"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_MOST_ROUNDS = 8
_PATIENCE = 2
# So many pairs are fitted anew even where nothing grows.
_MOST_REFITTED = 1000
# An error of so many spacings is as good as none.
_EXACT = 0.02
# By how much held-out spots must come closer: in the mean where something was found, else in the
# mean logarithm.
_LEAST_FOUND, _CLOSER, _MUCH_CLOSER = 0.005, 0.02, 0.1
# Median length of a normal vector in standard deviations of a component.
_MEDIAN_LENGTH = {2: 1.177, 3: 1.538}


@dataclass(frozen=True)
class Extension:
    """A map that reaches further.

    Parameters
    ----------
    transform : Transform
    sigma : float
        Standard deviation of a pair an axis, as the other pairs predict it.
    beta : float
        Coherence width of its field in spacings; infinite for a thin-plate spline.
    fixed_rows, moving_rows : (K,) ndarrays
        Its pairs, those of held-out spots among them, which it was not fitted to.
    is_plate : bool
        Whether its field is a smoothing thin-plate spline, not one by kriging.
    num_compared : int
        Maps among which the held-out spots have chosen it.
    """

    transform: Transform
    sigma: float
    beta: float
    fixed_rows: Rows
    moving_rows: Rows
    is_plate: bool
    num_compared: int = 1


def extend(
    problem: Problem, map_: Transform, sigma: float, *, is_simple: bool = False
) -> Extension | None:
    """Return the map that is closest to the held-out spots' partners; None if nothing is closer.

    Parameters
    ----------
    problem : Problem
        Its held-out spots judge. They take their partners, but never enter a fit, nor tell about
        others.
    map_ : Transform
        From where to extend.
    sigma : float
        Standard deviation of a pair an axis.
    is_simple : bool
        Whether the map has no field yet: then one must be clearly better.
    """
    scene = _Scene(problem)
    best, least = None, scene.misses(map_)
    last: tuple[bytes, bytes] | None = None
    failures = 0
    for number in range(_MOST_ROUNDS):
        found = scene.pairs(map_, sigma, is_first=number == 0)
        if found is None:
            break
        pairs, source = found
        if (key := (pairs[0].tobytes(), pairs[1].tobytes())) == last:
            break
        last = key
        extension = scene.fit(*pairs)
        map_, sigma = extension.transform, extension.sigma
        misses = scene.misses(map_)
        # What grew is hardly chance. What was assigned, or only fitted anew, must show itself.
        has_grown = source == "grown"
        margin = 0.0 if has_grown else _MUCH_CLOSER if is_simple and best is None else _CLOSER
        closer = misses[1] < least[1] - margin
        if closer or (has_grown and misses[0] < least[0] - _LEAST_FOUND):
            best, least, failures = extension, misses, 0
        else:
            failures += 1
        if failures >= _PATIENCE:
            break
    return None if best is None else replace(best, num_compared=number + 2)


@dataclass(frozen=True)
class _Scene:
    """What does not change from round to round."""

    problem: Problem

    def misses(self, map_: Transform) -> tuple[float, float]:
        """Return by how much held-out spots miss a partner, at most a spacing: mean, mean log."""
        problem = self.problem
        rows = np.flatnonzero(problem.held)
        distance = cKDTree(problem.targets).query(problem.moved(map_, rows))[0]
        distance = np.minimum(distance, 1.0)
        return float(distance.mean()), float(np.log(distance + _EXACT).mean())

    def pairs(
        self, map_: Transform, sigma: float, *, is_first: bool
    ) -> tuple[tuple[Rows, Rows], str] | None:
        """Return all pairs that follow from a map; None where they are not worth a fit.

        And where from: 'grown' or 'assigned' where many were added, else 'near'.
        """
        problem = self.problem
        ndim = problem.fixed.shape[1]
        moved, targets = problem.moved(map_), problem.targets
        near = GATE * math.sqrt(ndim) * sigma
        ours, theirs = mutual_neighbours(moved, targets, near)
        if not is_first and len(ours) <= _MOST_REFITTED:
            ours, theirs = wide_pairs(moved, targets, problem.aside, near)
        if len(ours) <= 2 * ndim:
            return None
        growth, source = Growth(ours, theirs, 0.0), "near"
        for name, add in (("grown", grow), ("assigned", assign_rest)):
            if name == "assigned" and (is_first or len(ours) > _MOST_REFITTED):
                break
            found = add(
                problem.fixed,
                moved,
                targets,
                ours,
                theirs,
                sigma=sigma,
                judges=problem.held,
                aside=problem.aside,
            )
            if found.is_gain_over(len(ours)):
                growth, source = found, name
                break
        if source == "near" and len(ours) > _MOST_REFITTED:
            return None
        if (~problem.held[growth.fixed_rows]).sum() <= 2 * ndim:
            return None
        return (growth.fixed_rows, growth.moving_rows), source

    def fit(self, ours: Rows, theirs: Rows) -> Extension:
        """Fit a map to pairs, those of held-out spots left out."""
        problem = self.problem
        ndim = problem.fixed.shape[1]
        used = ~problem.held[ours]
        count = int(used.sum())
        x, y, weight = problem.given(ours[used], theirs[used])
        if count > _MOST_REFITTED:
            # The growth has left out what contradicts its neighbours.
            plate = fit_field(x, y, weight=weight, domain=problem.box, robust=False).transform
            guess = pair_sigma(problem.moved(plate), problem.targets, 0.1, problem.held)
            return Extension(plate, guess, math.inf, ours, theirs, is_plate=True)
        fit = fit_kriging(x, y, weight=weight, domain=problem.box)
        # The pairs' own residuals matter where a lattice is too coarse for the field.
        own = np.linalg.norm(fit.transform(x) - y, axis=1)[:count][fit.is_kept[:count]]
        length = max(float(np.nanmedian(fit.residual[:count])), float(np.median(own)))
        sigma = length / _MEDIAN_LENGTH[ndim]
        width = fit.prior.beta * fit.unit
        return Extension(fit.transform, max(sigma, 1e-6), width, ours, theirs, is_plate=False)
