"""Constellations of neighbours: guesses at the pose that need no starting rotation.

Every spot makes tetrahedra with its nearest neighbours. Their six edge lengths do not depend on
the pose, and the sign of the volume tells mirror images apart. Similar tetrahedra of the two
clouds are found in a k-d tree with a ratio test, and each gives a rigid map (geometric hashing,
Lamdan & Wolfson 1988).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.affine import fit_rigid
from tilereg.matching.shelves import ALIKE, Shelves
from tilereg.transform import Affine

__all__ = ["match_constellations"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_NEIGHBOURS = 6
_NUM_SEEDS = 1500
_FLATTEST = 0.02
_LARGEST_DISTANCE = 0.2
_LARGEST_RATIO = 0.9
_MOST_MATCHES = 400
_SUPPORT = 60
_SUPPORT_RADIUS = 0.33


def match_constellations(
    fixed: Floats,
    moving: Floats,
    fixed_tree: cKDTree,
    moving_tree: cKDTree,
    shelves: Shelves = ALIKE,
) -> Iterator[tuple[Affine, int]]:
    """Yield rigid maps and the fixed row that each is believed around, best supported first.

    Parameters
    ----------
    fixed, moving : (N, 3), (M, 3) ndarray
        Clouds in units of the mean distance of nearest neighbours.
    fixed_tree, moving_tree : cKDTree
        Trees of the two clouds.
    shelves : Shelves, optional
        Which spots may be partners: tetrahedra are found without, their support is not.
    """
    if min(len(fixed), len(moving)) <= _NEIGHBOURS:
        return
    seeds = np.random.default_rng(0).permutation(len(fixed))[:_NUM_SEEDS]
    pairs = _match(
        _describe(fixed, seeds, fixed_tree),
        _describe(moving, np.arange(len(moving)), moving_tree),
    )
    targets_tree = cKDTree(shelves.targets(moving)) if shelves.has_classes else moving_tree
    ranked = []
    for source, target in pairs:
        rigid = fit_rigid(fixed[source], moving[target])
        _, rows = fixed_tree.query(fixed[source[0]], k=min(_SUPPORT, len(fixed)))
        moved = shelves.moved(rigid(fixed[rows]), rows)
        distance, _ = targets_tree.query(moved, distance_upper_bound=_SUPPORT_RADIUS)
        ranked.append((int(np.isfinite(distance).sum()), rigid, int(source[0])))
    ranked.sort(key=lambda entry: -entry[0])
    yield from ((rigid, centre) for _, rigid, centre in ranked[:30])


def _describe(points: Floats, rows: Rows, tree: cKDTree) -> tuple[Floats, Rows, NDArray[np.bool_]]:
    """Return edge lengths (K, 6), the four rows (K, 4) and the handedness (K,) of tetrahedra."""
    _, neighbours = tree.query(points[rows], k=_NEIGHBOURS + 1)
    choice = np.array(list(itertools.combinations(range(1, _NEIGHBOURS + 1), 3)))
    corners = neighbours[:, choice]
    apex = points[rows][:, None, :]
    a, b, c = (points[corners[..., k]] for k in range(3))
    ends = [(apex, a), (apex, b), (apex, c), (a, b), (a, c), (b, c)]
    edges = np.stack([np.linalg.norm(p - q, axis=-1) for p, q in ends], axis=-1)
    volume = np.einsum("ijk,ijk->ij", np.cross(a - apex, b - apex), c - apex)
    longest = np.maximum(edges.max(axis=-1), 1e-300)
    good = np.abs(volume) / longest**3 > _FLATTEST
    apexes = np.broadcast_to(rows[:, None, None], (*corners.shape[:2], 1))
    quads = np.concatenate([apexes, corners], axis=-1)
    return edges[good], quads[good], (volume > 0)[good]


def _match(
    fixed: tuple[Floats, Rows, NDArray[np.bool_]], moving: tuple[Floats, Rows, NDArray[np.bool_]]
) -> list[tuple[Rows, Rows]]:
    """Return the most alike tetrahedra of the same handedness that have no close rival."""
    found: list[tuple[float, Rows, Rows]] = []
    for hand in (False, True):
        ours, theirs = np.flatnonzero(fixed[2] == hand), np.flatnonzero(moving[2] == hand)
        if not len(ours) or len(theirs) < 2:
            continue
        distance, rows = cKDTree(moving[0][theirs]).query(
            fixed[0][ours], k=2, distance_upper_bound=_LARGEST_DISTANCE
        )
        good = np.isfinite(distance[:, 0]) & (distance[:, 0] < _LARGEST_RATIO * distance[:, 1])
        found += zip(
            distance[good, 0].tolist(),
            fixed[1][ours[good]],
            moving[1][theirs[rows[good, 0]]],
            strict=True,
        )
    found.sort(key=lambda entry: entry[0])
    return [(source, target) for _, source, target in found[:_MOST_MATCHES]]
