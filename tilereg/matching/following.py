"""Pairs, a map through them, pairs again: with ever softer maps, until the pairs settle.

What iterated closest points, a consensus and an optimal assignment share. They differ in where
they start and in how they pair; see `tilereg.matching.icp`, `ransac` and `transport`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tilereg.affine import fit_affine, fit_rigid
from tilereg.lattice import Lattice, NormalEquations
from tilereg.matching.from_pairs import Paired, Pairs, deviation
from tilereg.matching.pairing import GATE
from tilereg.matching.problem import FEWEST_PAIRS, Problem
from tilereg.smoothing import Coherent
from tilereg.transform import Affine

__all__ = ["AFFINE", "RIGID", "Pairing", "Stage", "follow", "softer"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

Pairing = Callable[[Floats, Floats, float], Pairs]
"""One-to-one pairs of (N, D) and (M, D) places that are at most so far apart."""

Stage = str | Coherent
"""'rigid' on top of the map so far, 'affine', or the prior of a field."""

RIGID, AFFINE = "rigid", "affine"

# Deviation of a pair to start from, the least, and how far pairs may be apart, in spacings.
_WIDE, _LEAST, _FARTHEST = 0.33, 0.01, 1.0
# What the deviation falls by in a round and in a stage at most, and how much above the pairs' own
# it stays.
_RATE, _FALL, _SLACK = 0.75, 0.65, 1.05
_ROUNDS = 6
# Fields from stiff to soft: widths in spacings, variance in their squares.
_WIDTHS, _VARIANCE = (48.0, 32.0, 22.0, 16.0, 11.0), 0.1
_MOST_NODES_A_PAIR, _LEAST_NODES = 2.0, 400
# Weights of pairs fall where they are off by so many deviations.
_TAIL = 2.0


def softer(problem: Problem) -> tuple[Stage, ...]:
    """Return the fields from stiff to soft, down to the width that was asked for, if any was."""
    last = _WIDTHS[-1] if problem.beta is None else problem.beta
    widths = [width for width in _WIDTHS if width > last]
    return tuple(Coherent(width, _VARIANCE) for width in (*widths, last))


def follow(problem: Problem, affine: Affine, pairing: Pairing, stages: tuple[Stage, ...]) -> Paired:
    """Pair and fit in turn, stage by stage.

    Parameters
    ----------
    problem : Problem
    affine : Affine
        To start from.
    pairing : callable
    stages : tuple of str or Coherent
        From stiff to soft.

    Notes
    -----
    The reach of pairs is three of their deviations, at most one spacing. The deviation is that of
    the pairs that are no chance, but falls no faster than the maps get softer: what a stiff one
    does not follow is no reason to look nearer.
    """
    rounds = _Rounds(problem, affine, pairing)
    iterations = []
    for number, stage in enumerate(stages):
        if isinstance(stage, Coherent) and rounds.is_too_fine(stage):
            break
        is_last = number + 1 == len(stages)
        least = _LEAST if is_last else rounds.widest * _FALL ** (number + 1)
        iterations.append(rounds.run(stage, least))
    return Paired(
        pairs=rounds.pairs, affine=rounds.affine, sigma=rounds.sigma, iterations=iterations
    )


class _Rounds:
    """The pairs so far, how far off they are, and the affine map below the field."""

    def __init__(self, problem: Problem, affine: Affine, pairing: Pairing) -> None:
        """Pair what an affine map brings together."""
        self._problem, self._pairing = problem, pairing
        self.affine = affine
        self.widest = self.sigma = _WIDE * problem.crowding
        self._moved = affine(problem.fitted)
        self.pairs = self._paired()

    def is_too_fine(self, prior: Coherent) -> bool:
        """Whether a field's lattice has far more nodes than there are pairs to hold it."""
        problem = self._problem
        size = Lattice.cover(*problem.box, prior.spacing).size
        most = max(_LEAST_NODES, _MOST_NODES_A_PAIR * len(self.pairs[0]))
        return problem.beta is None and size > most

    def run(self, stage: Stage, least: float) -> int:
        """Fit and pair until the pairs settle; return how often."""
        moving, ndim = self._problem.moving, self._problem.moving.shape[1]
        base = self._moved if stage == RIGID else self.affine(self._problem.fitted)
        start = self.affine
        for count in range(min(_ROUNDS, self._problem.max_iterations)):
            ours, theirs = self.pairs
            if len(ours) < FEWEST_PAIRS:
                return count
            square = ((self._moved[ours] - moving[theirs]) ** 2).sum(axis=1)
            # With a heavy tail: what is far off is wrong, or of a region that is bent more.
            weights = 1 / (1 + square / (_TAIL**2 * ndim * self.sigma**2)) ** 2
            if isinstance(stage, Coherent):
                self._moved = self._bent(stage, base, weights / self.sigma**2)
            else:
                self._fit(stage, start, base, weights)
            own = deviation(self._moved[ours] - moving[theirs], self.sigma)
            self.sigma = min(self.widest, max(_RATE * self.sigma, _SLACK * own, least))
            known, self.pairs = self.pairs, self._paired()
            if all(np.array_equal(old, new) for old, new in zip(known, self.pairs, strict=True)):
                return count + 1
        return min(_ROUNDS, self._problem.max_iterations)

    def _paired(self) -> Pairs:
        """Pair what the map so far brings together."""
        problem = self._problem
        gate = GATE * math.sqrt(problem.moving.shape[1]) * self.sigma
        moved = problem.shelves.moved(self._moved, problem.fitted_rows)
        return self._pairing(moved, problem.targets, min(gate, _FARTHEST * problem.crowding))

    def _bent(self, prior: Coherent, base: Floats, weights: Floats) -> Floats:
        """Return where a field through the pairs brings the fitted spots."""
        ours, theirs = self.pairs
        source = self._problem.fitted
        lattice = Lattice.cover(*self._problem.box, prior.spacing)
        values = self._problem.moving[theirs] - base[ours]
        equations = NormalEquations.assemble(lattice, source[ours], weights, values)
        solution = prior.solve(equations, tolerance=1e-3)
        return base + lattice.field(solution.coefficients)(source)

    def _fit(self, stage: str, start: Affine, base: Floats, weights: Floats) -> None:
        """Fit a rigid map on top of what the stage started from, or an affine one."""
        ours, theirs = self.pairs
        source, target = self._problem.fitted, self._problem.moving[theirs]
        if stage == RIGID:
            self.affine = fit_rigid(base[ours], target, weights).compose(start)
        else:
            self.affine = fit_affine(source[ours], target, weights, centre=start)
        self._moved = self.affine(source)
