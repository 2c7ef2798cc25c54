"""Mutual nearest neighbours, and how exact they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.matching.cells import CellList

__all__ = ["GATE", "mutual_neighbours", "pair_sigma", "wide_pairs"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

GATE = 3.0
"""Standard deviations, all axes together, within which mutual neighbours are a pair."""

# Pairs are sought this far, in spacings, where chance adds no more than so many of them.
_REACHES, _MOST_BY_CHANCE = (0.27, 0.14, 0.07), 0.01
_ENOUGH_JUDGES = 8
_LEAST_SIGMA = 1e-6
# Least size of the cells in spacings: a few points each.
_CELL, _MORE = 1.5, 1.0 + 1e-9
# Of more spots than these some tell how exact pairs are.
_MOST_LOOKED_AT = 20_000


def mutual_neighbours(moved: Floats, target: Floats, reach: float) -> tuple[Rows, Rows]:
    """Return rows of mutual nearest neighbours of two (N, D) clouds within `reach`."""
    return _Sides.of(moved, target, reach).pairs(np.arange(len(moved)), 0.0, reach)


@dataclass(frozen=True)
class _Side:
    """A cloud in which the nearest point is sought: in cells, or in a tree if they are uneven."""

    cloud: Floats
    cells: CellList

    @classmethod
    def of(cls, cloud: Floats, reach: float) -> _Side:
        """Sort a cloud for searches within about a reach."""
        return cls(cloud, CellList.build(cloud, max(reach, _CELL)))

    @cached_property
    def tree(self) -> cKDTree:
        """The cloud as a tree."""
        return cKDTree(self.cloud, balanced_tree=False)

    def nearest(self, points: Floats, reach: float) -> Rows:
        """Return the row of the nearest point within a reach, -1 where none is."""
        if self.cells.is_even:
            return self.cells.nearest_within(points, reach)
        distance, rows = self.tree.query(points, distance_upper_bound=reach)
        return np.where(np.isfinite(distance), rows, -1).astype(np.int64)


@dataclass(frozen=True)
class _Sides:
    """Two clouds."""

    moved: _Side
    target: _Side

    @classmethod
    def of(cls, moved: Floats, target: Floats, reach: float) -> _Sides:
        """Sort both for searches within about a reach."""
        return cls(_Side.of(moved, reach), _Side.of(target, reach))

    def pairs(self, rows: Rows, step: Floats | float, reach: float) -> tuple[Rows, Rows]:
        """Return the mutual pairs of some rows of the first cloud, all of it moved by a step."""
        theirs = self.target.nearest(self.moved.cloud[rows] + step, reach)
        ours, theirs = rows[theirs >= 0], theirs[theirs >= 0]
        # One is there: a little farther is looked for rounding alone.
        same = self.moved.nearest(self.target.cloud[theirs] - step, _MORE * reach) == ours
        return ours[same], theirs[same]


def wide_pairs(moved: Floats, moving: Floats, aside: Floats, near: float) -> tuple[Rows, Rows]:
    """Return the mutual pairs within the widest reach at which chance adds hardly any.

    Parameters
    ----------
    moved, moving : (N, D), (M, D) ndarrays
        In units of the mean spacing.
    aside : (L, D) ndarray
        Steps that part all pairs: what is paired then is by chance.
    near : float
        Reach where chance adds too many at any wider one.
    """
    pairs = mutual_neighbours(moved, moving, near)
    for reach in _REACHES:
        if reach <= near:
            break
        chance = np.mean([len(mutual_neighbours(moved + a, moving, reach)[0]) for a in aside])
        if chance <= _MOST_BY_CHANCE * len(pairs[0]):
            return mutual_neighbours(moved, moving, reach)
    return pairs


def pair_sigma(
    moved: Floats,
    target: Floats,
    guess: float,
    judges: NDArray[np.bool_] | None = None,
    aside: Floats | None = None,
) -> float:
    """Return the standard deviation of a mutual pair an axis.

    Parameters
    ----------
    moved, target : (N, D), (M, D) ndarrays
    guess : float
        Where the search begins; what is returned if there are no pairs.
    judges : (N,) bool ndarray, optional
        The spots that the map has not seen: only they count, where there are enough pairs.
    aside : (L, D) ndarray, optional
        Steps that part all pairs: what is paired then, by chance, is taken off. Not with judges.
    """
    ndim = moved.shape[1]
    sides = _Sides.of(moved, target, 0.0)
    every = np.arange(len(moved))
    if len(every) > _MOST_LOOKED_AT:
        # The order is by distance from the middle: these are spread over the cloud.
        every = every[:: -(-len(every) // _MOST_LOOKED_AT)]
    sigma = guess
    for _ in range(3):
        reach = GATE * math.sqrt(ndim) * sigma
        ours, theirs = sides.pairs(every, 0.0, reach)
        if judges is not None:
            judging = sides.pairs(np.flatnonzero(judges), 0.0, reach)
            if len(judging[0]) >= _ENOUGH_JUDGES:
                ours, theirs = judging
        if len(ours) < ndim:
            return guess
        count = float(len(ours))
        total = float(((moved[ours] - target[theirs]) ** 2).sum())
        # A spot that has its own partner finds none by chance.
        share = (1 - count / len(every)) / (1 if aside is None else len(aside))
        for step in () if aside is None else aside:
            ours, theirs = sides.pairs(every, step, reach)
            count -= share * len(ours)
            total -= share * float(((moved[ours] + step - target[theirs]) ** 2).sum())
        if count < ndim or total <= 0:
            return guess
        sigma = max(math.sqrt(total / count / ndim), _LEAST_SIGMA)
    return sigma
