"""The engine `ransac`: the map that most of some spots agree on, then ever nearer neighbours.

Random sample consensus (Fischler & Bolles 1981): every fixed spot may belong to any of several
moving ones near it; as few pairs as fix a map are drawn again and again, and the map that brings
most spots next to a candidate wins, squares truncated in place of a count (MSAC, Torr & Zisserman
2000). First one pair for a shift, over a wide reach, then a rigid map around it; the best of these
are fitted to what agrees with them (Chum et al. 2003). From there on it is followed as iterated
closest points are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.affine import fit_affine
from tilereg.matching.coarse import Coarse
from tilereg.matching.following import AFFINE, follow, softer
from tilereg.matching.from_pairs import from_pairs
from tilereg.matching.pairing import mutual_neighbours
from tilereg.matching.problem import FEWEST_PAIRS, Found, Problem
from tilereg.transform import Affine

__all__ = ["consensus", "ransac"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Maps = tuple[Floats, Floats]

# Fixed spots that are looked at.
_SPOTS = 500
# Candidates of a spot: how far away, in spacings, and how many; for a shift and for a rigid map.
_REACHES, _CANDIDATES = (3.0, 1.5), (16, 4)
# A spot agrees with a map that brings it so near to a candidate, in spacings.
_NEAR = (0.5, 0.35)
# Distances within a sample may differ by so many times that, and are at least twice as long.
_SLACK = 2.0
_DRAWN, _MOST_TRIED, _BATCH = 20_000, 1500, 50
_POLISHED, _ROUNDS = 10, 4


def ransac(problem: Problem, pose: Coarse) -> Found:
    """Find the map by a consensus, from a pose."""
    affine = consensus(problem, pose.affine)
    stages = (AFFINE, *softer(problem))
    return from_pairs(problem, follow(problem, affine, mutual_neighbours, stages))


def consensus(problem: Problem, start: Affine) -> Affine:
    """Return the affine map that brings most of some fitted spots next to a moving one.

    Parameters
    ----------
    problem : Problem
    start : Affine
        Around which the map is sought, up to three spacings away.
    """
    scene = _Scene.of(problem)
    rng = np.random.default_rng(0)
    best = start
    for reach, most, near, draw in zip(
        _REACHES, _CANDIDATES, _NEAR, (_shifts, _rigid_maps), strict=True
    ):
        near *= problem.crowding
        candidates = scene.candidates(best, problem.crowding * reach, most)
        if len(candidates.starts) < FEWEST_PAIRS:
            return best
        matrices, shifts = draw(candidates, rng, near)
        order = np.argsort(candidates.scores(matrices, shifts, near), kind="stable")
        drawn = [Affine(matrices[row], shifts[row]).compose(best) for row in order[:_POLISHED]]
        polished = [scene.polished(map_, near) for map_ in drawn]
        scores = [scene.score(map_, near) for map_ in (*drawn, *polished)]
        best = (*drawn, *polished)[int(np.argmin(scores))]
    return best


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Pairs (P,) of spots and what they may belong to; those of a spot begin at `starts` (S,)."""

    spots: Floats
    targets: Floats
    starts: Rows

    def scores(self, matrices: Floats, shifts: Floats, near: float) -> Floats:
        """Return the sum over spots of squared distances, truncated, of maps (T, D, D), (T, D)."""
        out = np.empty(len(matrices))
        for first in range(0, len(matrices), _BATCH):
            part = slice(first, first + _BATCH)
            moved = self.spots @ matrices[part].transpose(0, 2, 1) + shifts[part, None]
            square = ((moved - self.targets) ** 2).sum(axis=2)
            nearest = np.minimum.reduceat(square, self.starts, axis=1)
            out[part] = np.minimum(nearest, near**2).sum(axis=1)
        return out


@dataclass(frozen=True, eq=False)
class _Scene:
    """Some fitted spots, all moving ones, and where partners are sought among these."""

    problem: Problem
    rows: Rows
    tree: cKDTree

    @classmethod
    def of(cls, problem: Problem) -> _Scene:
        """Take spots that are spread over the cloud: they come by distance from the middle."""
        rows = problem.fitted_rows
        return cls(problem, rows[:: -(-len(rows) // _SPOTS)], cKDTree(problem.targets))

    def candidates(self, map_: Affine, reach: float, most: int) -> _Candidates:
        """Return the nearest moving spots within reach of where a map brings the spots."""
        columns = np.arange(1, min(most, self.tree.n) + 1)
        places = self.problem.moved(map_, self.rows)
        distance, near = self.tree.query(places, k=columns, distance_upper_bound=reach)
        row, column = np.nonzero(np.isfinite(distance))
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        spots = map_(self.problem.fixed[self.rows])
        return _Candidates(spots[row], self.problem.moving[near[row, column]], starts)

    def polished(self, map_: Affine, near: float) -> Affine:
        """Fit a map to the nearest of the spots that agree with it, again and again."""
        fixed = self.problem.fixed[self.rows]
        for _ in range(_ROUNDS):
            distance, rows = self._nearest(map_, near)
            found = distance < near
            count = int(found.sum())
            if count <= fixed.shape[1]:
                break
            target = self.problem.moving[rows[found]]
            # As much as if each were a spacing away: what few or flat ones leave open is kept.
            map_ = fit_affine(fixed[found], target, centre=map_, prior=count)
        return map_

    def score(self, map_: Affine, near: float) -> float:
        """Return the sum of squared distances to the nearest moving spots, truncated."""
        return float((np.minimum(self._nearest(map_, near)[0], near) ** 2).sum())

    def _nearest(self, map_: Affine, near: float) -> tuple[Floats, Rows]:
        """Return distances, infinite where there is none so near, and rows."""
        distance, rows = self.tree.query(
            self.problem.moved(map_, self.rows), distance_upper_bound=near
        )
        return distance, rows


def _shifts(pairs: _Candidates, rng: np.random.Generator, _near: float) -> Maps:
    """Return maps (T, D, D), (T, D) that fit one pair each, the one that moves nothing first."""
    rows = rng.permutation(len(pairs.spots))[:_MOST_TRIED]
    ndim = pairs.spots.shape[1]
    shifts = np.concatenate([np.zeros((1, ndim)), (pairs.targets - pairs.spots)[rows]])
    return np.tile(np.eye(ndim), (len(shifts), 1, 1)), shifts


def _rigid_maps(pairs: _Candidates, rng: np.random.Generator, near: float) -> Maps:
    """Return the same for as many pairs as there are axes, where the distances within agree."""
    ndim = pairs.spots.shape[1]
    rows = rng.integers(len(pairs.spots), size=(_DRAWN, ndim))
    x, y = pairs.spots[rows], pairs.targets[rows]
    agree = np.ones(len(rows), dtype=bool)
    for one in range(ndim):
        sides = [np.linalg.norm(c[:, one] - c[:, (one + 1) % ndim], axis=1) for c in (x, y)]
        # Short sides tell little about a rotation.
        is_long = sides[0] > 2 * _SLACK * near
        agree &= is_long & (np.abs(sides[0] - sides[1]) < _SLACK * near)
    x, y = (cloud[agree][:_MOST_TRIED] for cloud in (x, y))
    centre_x, centre_y = x.mean(axis=1), y.mean(axis=1)
    moment = np.einsum("tki,tkj->tij", y - centre_y[:, None], x - centre_x[:, None])
    u, _, vt = np.linalg.svd(moment)
    # The last singular value of as many points as axes is zero: its sign is free.
    u[:, :, -1] *= np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)[:, None]
    matrices = u @ vt
    shifts = centre_y - np.einsum("tij,tj->ti", matrices, centre_x)
    return (
        np.concatenate([np.eye(ndim)[None], matrices]),
        np.concatenate([np.zeros((1, ndim)), shifts]),
    )
