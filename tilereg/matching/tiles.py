"""A tile of a cloud: where it is, and how it is matched on its own.

A tile owns the fixed spots of its core, a half-open box, and sees those of a halo around it, and
the moving spots where a first map brings all of these. It is matched by the engine of whole clouds
from that map, and judged by the held-out spots of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilereg.affine import fit_affine
from tilereg.matching.cells import CellList
from tilereg.matching.classes import arrange, check_classes
from tilereg.matching.clouds import Unit, num_distinct
from tilereg.matching.coarse import Coarse
from tilereg.matching.cpd import cpd
from tilereg.matching.pairing import GATE, mutual_neighbours
from tilereg.matching.problem import FEWEST_PAIRS, Found, Problem
from tilereg.matching.verdict import Verdict, judge
from tilereg.matching.votes import CLEAR, VOTE_CELL, Ballot
from tilereg.spot_source import SpotPart, is_picked
from tilereg.transform import Affine, Transform

__all__ = [
    "LEAST_TILE",
    "Tile",
    "TileMatch",
    "TileOptions",
    "match_tile",
    "plan_tiles",
]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

LEAST_TILE = 1000
"""Fewest spots that a tile may be asked to own."""

# Of fewer spots no tile is matched on its own.
_FEWEST_SPOTS = 30
# A tile is lost where of so many blocks no such share votes clearly.
_BLOCKS, _LEAST_CLEAR, _ENOUGH_TO_VOTE = 100, 0.2, 600
# Spots that the first map is made affine with, and how closely its matrix is known.
_SAMPLED, _KNOWN = 4000, 0.05


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of space that is matched as one unit.

    Parameters
    ----------
    number : int
    low, high : (D,) tuples of float, micrometre
        Corners of the core, low <= x < high. Outer faces lie at infinity, so that every fixed
        spot has one owner.
    """

    number: int
    low: tuple[float, ...]
    high: tuple[float, ...]

    def owns(self, points: Floats) -> NDArray[np.bool_]:
        """Tell which of (N, D) points lie in the core."""
        return np.asarray(((points >= self.low) & (points < self.high)).all(axis=1))

    def around(self, halo: float) -> tuple[Floats, Floats]:
        """Return the box of core and halo."""
        return np.array(self.low) - halo, np.array(self.high) + halo

    def within(self, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        """Return the part of the core in a box."""
        return np.maximum(self.low, low), np.minimum(self.high, high)

    def gap(self, other: Tile) -> float:
        """Return the distance to another tile, 0 where they touch."""
        apart = np.maximum(np.subtract(self.low, other.high), np.subtract(other.low, self.high))
        return float(np.linalg.norm(np.maximum(apart, 0.0)))


@dataclass(frozen=True, kw_only=True)
class TileOptions:
    """How tiles are matched.

    Parameters
    ----------
    halo : float, micrometre
    held_out : float
        Share of the fixed spots that judge.
    seed : int
        Which these are.
    w : float
        Share of moving spots without a partner to start from.
    max_iterations : int
    """

    halo: float
    held_out: float
    seed: int
    w: float
    max_iterations: int


@dataclass(frozen=True, eq=False, kw_only=True)
class TileMatch:
    """The pairs that a tile owns, and how certain they are.

    Parameters
    ----------
    tile : Tile
    status : str
        'ok'; 'lost', where hardly any neighbourhood finds its like from the first map; 'no
        registration', where chance explains the pairs; 'few spots', where too few tell anything;
        'empty', where there is no fixed or no moving spot.
    fixed, moving : (K, D) ndarrays, micrometre
    fixed_rows, moving_rows : (K,) ndarrays
    trust : (K,) ndarray
        Product of the weights of the spots of a pair.
    miss : (K,) ndarray, micrometre
        Distance of the two by the tile's own map.
    held_out : (K,) bool ndarray
    num_spots, num_judges : int
        Fixed spots of the core, and those of them that are held out.
    near : int
        How many of the former have a moving spot within three deviations.
    by_chance : float
        How many would, if all were moved aside.
    sigma, spacing : float, micrometre
        Deviation of a pair an axis, mean distance of neighbours.
    beta, noise : float
        Width in micrometre of the prior that predicts the pairs best, and a pair's variance in
        units of its own; NaN where none was chosen.
    evidence : float
        Log10 of the probability that chance gives as many judges a partner.
    seen : int
        Spots of both clouds that were looked at.
    """

    tile: Tile
    status: str
    fixed: Floats
    moving: Floats
    fixed_rows: Rows
    moving_rows: Rows
    trust: Floats
    miss: Floats
    held_out: NDArray[np.bool_]
    num_spots: int = 0
    num_judges: int = 0
    near: int = 0
    by_chance: float = 0.0
    sigma: float = math.nan
    spacing: float = math.nan
    beta: float = math.nan
    noise: float = math.nan
    evidence: float = 0.0
    seen: int = 0

    @property
    def is_ok(self) -> bool:
        """Whether the pairs are more than chance."""
        return self.status == "ok"

    @property
    def is_judged(self) -> bool:
        """Whether its spots were compared with those of the moving cloud."""
        return not math.isnan(self.sigma)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.fixed_rows)


def plan_tiles(sample: Floats, count: int, most: int) -> list[Tile]:
    """Cut space into tiles of about equally many spots, half by half along the longest side.

    Parameters
    ----------
    sample : (S, D) ndarray, micrometre
        Spots, spread as all are.
    count : int
        How many there are.
    most : int
        About how many a tile may own.
    """
    ndim = sample.shape[1]
    a_sample = count / max(1, len(sample))
    boxes: list[tuple[Floats, Floats]] = []

    def cut(points: Floats, low: Floats, high: Floats) -> None:
        sides = np.ptp(points, axis=0) if len(points) else np.zeros(ndim)
        axis = int(sides.argmax())
        if len(points) * a_sample <= most or sides[axis] <= 0:
            boxes.append((low, high))
            return
        values = np.sort(points[:, axis])
        place = float(values[len(values) // 2])
        if place == values[0]:
            # Of many at one place all go to one side.
            place = float(values[np.searchsorted(values, place, side="right")])
        left = points[:, axis] < place
        inner = low.copy(), high.copy()
        inner[0][axis] = inner[1][axis] = place
        cut(points[left], low, inner[1])
        cut(points[~left], inner[0], high)

    cut(sample, np.full(ndim, -np.inf), np.full(ndim, np.inf))
    return [
        Tile(number=i, low=tuple(low.tolist()), high=tuple(high.tolist()))
        for i, (low, high) in enumerate(boxes)
    ]


def match_tile(
    tile: Tile, fixed: SpotPart, moving: SpotPart, start: Transform, options: TileOptions
) -> TileMatch:
    """Match the spots of a tile.

    Parameters
    ----------
    tile : Tile
    fixed : SpotPart
        Spots of core and halo.
    moving : SpotPart
        Where the first map brings them, and around.
    start : Transform
        That map, fixed to moving, micrometre. Off by at most two spacings or so.
    options : TileOptions
    """
    seen = len(fixed) + len(moving)
    own = int(tile.owns(fixed.positions).sum())
    if own == 0 or len(moving) == 0:
        return _nothing(tile, "empty", own, seen)
    labels = None
    if fixed.spot_class is not None and moving.spot_class is not None:
        if not np.isin(fixed.spot_class, moving.spot_class).any():
            return _nothing(tile, "few spots", own, seen)
        labels = check_classes(fixed.spot_class, moving.spot_class, len(fixed), len(moving))
    arranged = arrange(fixed.positions, moving.positions, labels, (fixed.weight, moving.weight))
    fixed, moving = (p.take(r) for p, r in zip((fixed, moving), arranged.rows, strict=True))
    x, y = fixed.positions, moving.positions
    if min(num_distinct(x), num_distinct(y)) < _FEWEST_SPOTS:
        return _nothing(tile, "few spots", own, seen)
    unit = Unit.of(x, y)
    problem = Problem(
        fixed=unit.fixed(x),
        moving=unit.moving(y),
        low=unit.fixed(x.min(axis=0)[None])[0],
        high=unit.fixed(x.max(axis=0)[None])[0],
        held=is_picked(fixed.rows, options.held_out, options.seed),
        w=options.w,
        beta=None,
        field="auto",
        max_iterations=options.max_iterations,
        fixed_weight=arranged.weights[0],
        moving_weight=arranged.weights[1],
    ).on_shelves(arranged.numbers)
    if len(problem.fitted) < _FEWEST_SPOTS:
        return _nothing(tile, "few spots", own, seen)
    pose = Coarse(_affine_of(start, problem, unit), -math.inf, "given", 0, 1.0)
    if _is_lost(problem, pose.affine):
        return _nothing(tile, "lost", own, seen)
    found = cpd(problem, pose)
    verdict = judge(problem, found, pose)
    is_ok = verdict.is_certain and pose.allows(found.map.affine)
    return _owned(tile, problem, found, verdict, unit, (fixed, moving), seen, is_ok=is_ok)


def _affine_of(start: Transform, problem: Problem, unit: Unit) -> Affine:
    """Return the affine map that is nearest to a map at the spots of a tile, in its unit."""
    points = problem.fixed[:: -(-len(problem.fixed) // _SAMPLED)]
    world = unit.scale * points + unit.fixed_centre
    targets = unit.moving(start(world))
    centre = unit.affine_in(start.affine)
    return fit_affine(points, targets, prior=len(points) * _KNOWN**2, centre=centre)


def _is_lost(problem: Problem, affine: Affine) -> bool:
    """Whether blocks of spots do not find their like from a pose."""
    fitted = problem.fitted
    if len(fitted) < _ENOUGH_TO_VOTE:
        return False
    near = problem.crowding
    ballot = Ballot(fitted, CellList.build(problem.targets, near * VOTE_CELL), near)
    picked = np.linspace(0, len(fitted) - 1, _BLOCKS).astype(np.int64)
    moved = problem.moved(affine, problem.fitted_rows)
    votes = ballot.count_of(moved, ballot.around(picked), np.arange(_BLOCKS))
    return bool((votes.scores > CLEAR).mean() < _LEAST_CLEAR)


def _owned(
    tile: Tile,
    problem: Problem,
    found: Found,
    verdict: Verdict,
    unit: Unit,
    parts: tuple[SpotPart, SpotPart],
    seen: int,
    *,
    is_ok: bool,
) -> TileMatch:
    """Return the pairs of the core, and what its spots tell of the map."""
    fixed, moving = parts
    moved = problem.moved(found.map)
    reach = GATE * found.sigma
    pairs = found.grown or mutual_neighbours(
        moved, problem.targets, math.sqrt(moved.shape[1]) * reach
    )
    own = tile.owns(fixed.positions)
    kept = own[pairs[0]] & is_ok
    enough = kept.sum() >= FEWEST_PAIRS
    status = "no registration" if not is_ok else "ok" if enough else "few spots"
    kept &= enough
    ours, theirs = pairs[0][kept], pairs[1][kept]
    trust = problem.confidence(ours, theirs)
    rows = np.flatnonzero(own)
    cells = CellList.build(problem.targets, 1.0)
    near = cells.count_within(moved[rows], reach) > 0
    aside = [(cells.count_within(moved[rows] + a, reach) > 0).sum() for a in problem.aside]
    held = problem.held[rows]
    fit = found.kriging
    return TileMatch(
        tile=tile,
        status=status,
        fixed=fixed.positions[ours],
        moving=moving.positions[theirs],
        fixed_rows=fixed.rows[ours],
        moving_rows=moving.rows[theirs],
        trust=np.ones(len(ours)) if trust is None else trust,
        miss=unit.scale * np.linalg.norm(moved[ours] - problem.targets[theirs], axis=1),
        held_out=problem.held[ours],
        num_spots=len(rows),
        num_judges=int(held.sum()),
        near=int(near.sum()),
        by_chance=float(np.mean(aside)),
        sigma=unit.scale * found.sigma,
        spacing=unit.scale,
        beta=math.nan if fit is None else unit.scale * fit.unit * fit.prior.beta,
        noise=math.nan if fit is None else fit.prior.noise,
        evidence=verdict.evidence,
        seen=seen,
    )


def _nothing(tile: Tile, status: str, num_spots: int, seen: int = 0) -> TileMatch:
    """Return a tile without pairs."""
    ndim, rows = len(tile.low), np.empty(0, dtype=np.int64)
    return TileMatch(
        tile=tile, status=status, fixed=np.empty((0, ndim)), moving=np.empty((0, ndim)),
        fixed_rows=rows, moving_rows=rows, trust=np.empty(0), miss=np.empty(0),
        held_out=np.empty(0, dtype=bool),
        num_spots=num_spots, seen=seen,
    )  # fmt: skip
