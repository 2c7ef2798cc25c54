"""The engine `icp`: iterated closest points, rigid, affine, then with ever softer fields.

Besl & McKay (1992) with mutual neighbours (Pajdla & Van Gool 1995), a reach that shrinks with the
pairs' own deviation and weights that fall with the distance, in place of a fixed trimming; then
with a field in place of the rigid map, stiff at first, as Amberg et al. (2007) do on surfaces.
"""

from __future__ import annotations

from tilereg.matching.coarse import Coarse
from tilereg.matching.following import AFFINE, RIGID, follow, softer
from tilereg.matching.from_pairs import from_pairs
from tilereg.matching.pairing import mutual_neighbours
from tilereg.matching.problem import Found, Problem

__all__ = ["icp"]


def icp(problem: Problem, pose: Coarse) -> Found:
    """Find the map by iterated closest points, from a pose."""
    stages = (RIGID, AFFINE, *softer(problem))
    return from_pairs(problem, follow(problem, pose.affine, mutual_neighbours, stages))
