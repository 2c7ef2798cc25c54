"""Any rotation of a whole small cloud: every one on a dense grid is followed to where it leads.

Votes and constellations need neighbourhoods that look alike in both clouds. Some hundred cells of
two embryos do not have them: they lie at about even distances, and what is rigid between the two
is only the whole. Where nearly all have a partner, iterated closest points from all rotations find
it, and the distance to the nearest that is left tells which of the ends is the right one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from tilereg.affine import fit_affine, fit_rigid
from tilereg.matching.shelves import ALIKE, Shelves
from tilereg.transform import Affine

__all__ = ["followed", "rotations"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_NUM_ROTATIONS = 3000
_PLANE_STEP = 3.0
_MOST_SPOTS = 150
_STEPS, _LAST_STEPS = 4, 10
_REFINED, _BEST = 30, 3
_LEAST_SCALE, _MOST_SCALE = 0.75, 1.33
# Distances count up to a spacing; weights of an affine fit halve at this one.
_FAR, _HALF = 1.0, 0.5
_SAME = 0.2
# The constants of super-Fibonacci spirals.
_PHI, _PSI = math.sqrt(2.0), 1.533751168755204288118041


def rotations(ndim: int, max_rotation: float) -> Floats:
    """Return rotations (L, D, D) that cover all up to an angle evenly.

    In the plane every three degrees, in space 3000 of them, about 12 degrees apart, on
    super-Fibonacci spirals [1]_.

    References
    ----------
    .. [1] M. Alexa, Super-Fibonacci spirals: fast, low-discrepancy sampling of SO(3), CVPR (2022).
    """
    if ndim == 2:
        angles = np.arange(-180.0, 180.0, _PLANE_STEP)
        angles = np.radians(angles[np.abs(angles) <= max_rotation + 1e-9])
        turned = np.array([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]])
        return turned.transpose(2, 0, 1)
    number = np.arange(_NUM_ROTATIONS) + 0.5
    outer, inner = np.sqrt(number / _NUM_ROTATIONS), np.sqrt(1.0 - number / _NUM_ROTATIONS)
    one, two = 2 * math.pi * number / _PHI, 2 * math.pi * number / _PSI
    turns = Rotation.from_quat(
        np.stack(
            [outer * np.sin(one), outer * np.cos(one), inner * np.sin(two), inner * np.cos(two)],
            axis=1,
        )
    )
    return np.asarray(turns.as_matrix()[turns.magnitude() <= math.radians(max_rotation) + 1e-9])


def followed(
    fixed: Floats,
    moving: Floats,
    max_rotation: float = 180.0,
    shelves: Shelves = ALIKE,
) -> list[Affine]:
    """Return the affine maps that closest points lead to from all rotations, the best first.

    Parameters
    ----------
    fixed, moving : (N, D), (M, D) ndarrays
        Clouds in units of the mean spacing. Large ones are thinned out.
    max_rotation : float, degrees
        Rotations to start from.
    shelves : Shelves, optional
        Which spots may be partners.

    Returns
    -------
    list of Affine
        At most three that differ.
    """
    every = np.arange(len(fixed))
    some = every[:: -(-len(fixed) // _MOST_SPOTS)]
    ours = fixed[some]
    centre, target = fixed.mean(axis=0), moving.mean(axis=0)
    sizes = [math.sqrt(float(((c - c.mean(axis=0)) ** 2).sum(1).mean())) for c in (fixed, moving)]
    scale = float(np.clip(sizes[1] / max(sizes[0], 1e-12), _LEAST_SCALE, _MOST_SCALE))
    targets = _Targets(moving, cKDTree(shelves.targets(moving)), shelves)
    found = []
    for turn in rotations(fixed.shape[1], max_rotation):
        affine = Affine(scale * turn, target - scale * turn @ centre)
        for _ in range(_STEPS):
            rows = targets.nearest(affine(ours), some)[1]
            rigid = fit_rigid(scale * ours, moving[rows])
            affine = Affine(scale * rigid.matrix, rigid.offset)
        found.append((targets.misses(affine(ours), some), affine))
    found.sort(key=lambda entry: entry[0])
    refined = []
    for _, start in found[:_REFINED]:
        affine = start
        for _ in range(_LAST_STEPS):
            distance, rows = targets.nearest(affine(fixed), every)
            weights = 1.0 / (1.0 + (distance / _HALF) ** 2) ** 2
            affine = fit_affine(fixed, moving[rows], weights, prior=1e-6)
        refined.append((targets.misses(affine(fixed), every), affine))
    refined.sort(key=lambda entry: entry[0])
    return _different([affine for _, affine in refined], fixed)[:_BEST]


@dataclass(frozen=True, eq=False)
class _Targets:
    """The moving spots, and the tree in which the partners of fixed ones are sought."""

    moving: Floats
    tree: cKDTree
    shelves: Shelves

    def nearest(self, moved: Floats, rows: Rows) -> tuple[Floats, Rows]:
        """Return distance and row of the nearest spot to each of some fixed ones, moved."""
        distance, found = self.tree.query(self.shelves.moved(moved, rows))
        return distance, found

    def misses(self, moved: Floats, rows: Rows) -> float:
        """Return the mean distance to the nearest, from either cloud to the other."""
        there = np.minimum(self.nearest(moved, rows)[0], _FAR).mean()
        back = cKDTree(self.shelves.moved(moved, rows)).query(self.tree.data)[0]
        return float(there + np.minimum(back, _FAR).mean())


def _different(maps: list[Affine], points: Floats) -> list[Affine]:
    """Return the first of all maps that bring points to the same places."""
    kept: list[Affine] = []
    for one in maps:
        moved = one(points)
        if all(np.abs(moved - other(points)).mean() > _SAME for other in kept):
            kept.append(one)
    return kept
