"""Any rotation of a whole small cloud: every one on a dense grid is followed to where it leads.

Votes and constellations need neighbourhoods that look alike in both clouds. Some hundred cells of
two embryos do not have them: they lie at about even distances, and what is rigid between the two
is only the whole. Where nearly all have a partner, iterated closest points from all rotations find
it, and the distance to the nearest that is left tells which of the ends is the right one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from tilereg.affine import fit_affine, fit_rigid
from tilereg.transform import Affine

__all__ = ["followed", "rotations"]

Floats = NDArray[np.float64]

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


def followed(fixed: Floats, moving: Floats, max_rotation: float = 180.0) -> list[Affine]:
    """Return the affine maps that closest points lead to from all rotations, the best first.

    Parameters
    ----------
    fixed, moving : (N, D), (M, D) ndarrays
        Clouds in units of the mean spacing. Large ones are thinned out.
    max_rotation : float, degrees
        Rotations to start from.

    Returns
    -------
    list of Affine
        At most three that differ.
    """
    ours = fixed[:: -(-len(fixed) // _MOST_SPOTS)]
    centre, target = fixed.mean(axis=0), moving.mean(axis=0)
    sizes = [math.sqrt(float(((c - c.mean(axis=0)) ** 2).sum(1).mean())) for c in (fixed, moving)]
    scale = float(np.clip(sizes[1] / max(sizes[0], 1e-12), _LEAST_SCALE, _MOST_SCALE))
    tree = cKDTree(moving)
    found = []
    for turn in rotations(fixed.shape[1], max_rotation):
        affine = Affine(scale * turn, target - scale * turn @ centre)
        for _ in range(_STEPS):
            rows = tree.query(affine(ours))[1]
            rigid = fit_rigid(scale * ours, moving[rows])
            affine = Affine(scale * rigid.matrix, rigid.offset)
        found.append((_misses(affine, ours, moving, tree), affine))
    found.sort(key=lambda entry: entry[0])
    refined = []
    for _, start in found[:_REFINED]:
        affine = start
        for _ in range(_LAST_STEPS):
            distance, rows = tree.query(affine(fixed))
            weights = 1.0 / (1.0 + (distance / _HALF) ** 2) ** 2
            affine = fit_affine(fixed, moving[rows], weights, prior=1e-6)
        refined.append((_misses(affine, fixed, moving, tree), affine))
    refined.sort(key=lambda entry: entry[0])
    return _different([affine for _, affine in refined], fixed)[:_BEST]


def _misses(affine: Affine, points: Floats, moving: Floats, tree: cKDTree) -> float:
    """Return the mean distance to the nearest, from either cloud to the other."""
    moved = affine(points)
    there = np.minimum(tree.query(moved)[0], _FAR).mean()
    back = np.minimum(cKDTree(moved).query(moving)[0], _FAR).mean()
    return float(there + back)


def _different(maps: list[Affine], points: Floats) -> list[Affine]:
    """Return the first of all maps that bring points to the same places."""
    kept: list[Affine] = []
    for one in maps:
        moved = one(points)
        if all(np.abs(moved - other(points)).mean() > _SAME for other in kept):
            kept.append(one)
    return kept
