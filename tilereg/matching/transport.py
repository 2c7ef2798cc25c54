"""The engine `transport`: optimal one-to-one assignment with a cost of not matching.

A pair costs its squared distance; a spot that stays without a partner costs as much as a pair at
the end of the reach. Partners are sought within it only, so memory is linear in the spots.
Assignment and map take turns, the map ever softer, so that the pairs follow a deformation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from tilereg.matching.coarse import Coarse
from tilereg.matching.following import AFFINE, follow, softer
from tilereg.matching.from_pairs import Pairs, from_pairs
from tilereg.matching.problem import Found, Problem

__all__ = ["assign", "transport"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Groups of spots that share no candidates are assigned together up to so many of these.
_GROUP = 500


def transport(problem: Problem, pose: Coarse) -> Found:
    """Find the map by optimal assignments, from a pose."""
    stages = (AFFINE, *softer(problem))
    return from_pairs(problem, follow(problem, pose.affine, assign, stages))


def assign(moved: Floats, moving: Floats, reach: float) -> Pairs:
    """Return rows of the one-to-one pairs of least cost, sorted by the first.

    Parameters
    ----------
    moved, moving : (N, D), (M, D) ndarrays
    reach : float
        A spot that is not assigned costs as much as a pair at this distance.

    Notes
    -----
    Every spot has a dummy partner of its own, at the cost of not matching, so that there is a
    full matching (Jonker & Volgenant's algorithm for sparse costs, as in `scipy`). Its time grows
    with the square of the spots, so those that share no candidates are assigned apart.
    """
    near = cKDTree(moving).query_ball_point(moved, reach, return_sorted=True)
    counts = np.array([len(rows) for rows in near], dtype=np.int64)
    if not counts.any():
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    ours = np.repeat(np.arange(len(moved)), counts)
    theirs = np.concatenate([np.asarray(rows, dtype=np.int64) for rows in near])
    cost = ((moved[ours] - moving[theirs]) ** 2).sum(axis=1) / reach**2
    parts = [
        _assigned(ours[part], theirs[part], cost[part])
        for part in _groups(ours, theirs, len(moved), len(moving))
    ]
    rows, partners = (np.concatenate(side) for side in zip(*parts, strict=True))
    order = np.argsort(rows)
    return rows[order], partners[order]


def _groups(ours: Rows, theirs: Rows, num_ours: int, num_theirs: int) -> list[Rows]:
    """Return the candidates in parts that share no spot, as small ones joined."""
    total = num_ours + num_theirs
    graph = csr_array((np.ones(len(ours)), (ours, num_ours + theirs)), shape=(total, total))
    label = connected_components(graph, directed=False)[1][ours]
    order = np.argsort(label, kind="stable")
    ends = np.flatnonzero(np.diff(label[order])) + 1
    # Cut only between groups, at the first end after every so many candidates.
    first = np.unique(np.searchsorted(ends, np.arange(_GROUP, len(order), _GROUP)))
    return np.split(order, ends[first[first < len(ends)]])


def _assigned(ours: Rows, theirs: Rows, cost: Floats) -> Pairs:
    """Return the pairs of least cost among candidates; not matching costs one."""
    own, row = np.unique(ours, return_inverse=True)
    other, column = np.unique(theirs, return_inverse=True)
    every = np.arange(len(own))
    rows, columns = np.concatenate([row, every]), np.concatenate([column, len(other) + every])
    # A full matching has as many costs as there are rows: one more each changes nothing, and a
    # cost of zero would be no candidate.
    costs = 1 + np.concatenate([cost, np.ones(len(own))])
    graph = csr_array((costs, (rows, columns)), shape=(len(own), len(other) + len(own)))
    rows, columns = min_weight_full_bipartite_matching(graph)
    found = columns < len(other)
    return own[rows[found]], other[columns[found]]
