"""Grow a match into regions that a stiff map does not reach.

A drift with one stiffness can lock most of a cloud and leave out a region that is bent more.
From the rim of what is matched the pairs say where their unmatched neighbours belong: a local
thin-plate spline through the nearest pairs predicts the partner, and how well it predicts pairs
that it does not know tells how far from there a partner may be. Ring by ring the match grows
until nothing is added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from tilereg.matching.cells import CellList
from tilereg.matching.clouds import steps_aside

__all__ = ["Growth", "assign_rest", "grow"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_NEIGHBOURS = 16
_BATCH = 4096
_MOST_SWEEPS = 100
# A growth by fewer pairs, or by a smaller share, is not worth a new fit.
_FEWEST, _LEAST_SHARE = 4, 0.01
# More spots without a partner than this are looked at only where there are hardly any pairs: in
# a region where a share of what is usual around pairs is matched. So many around tell: of
# fewer, the share is low by chance too often.
_MANY, _HOLE, _AROUND = 1500, 0.8, 64
# How many standard deviations fewer: somewhere, or nothing is looked for, and anywhere.
_RARE, _UNUSUAL = 6.0, 2.5
_SAMPLED, _LEAST_RADIUS = 200, 1.0
# The rim: what has some pairs within so many of the distances that are usual between pairs.
_RIM_PAIRS, _RIM = 3, 2.2
# Reach of a prediction in spacings: at least, at most, and in errors of its neighbours' ones.
_LEAST_REACH, _MOST_REACH, _ERRORS = 0.15, 0.7, 3.0
# Squared error of a prediction by noisy neighbours and of the pair itself, in that of a pair.
_PREDICTED_NOISE = 1.8
# Outside of what is known, a spline errs by so much more than between known pairs.
_FAR = 5.0
_ERROR_NEIGHBOURS = 6
# A partner must be nearer than this share of the distance to the next one.
_CLEAR = 0.6
# A pair that is off by this, and by so many times its neighbours' errors, is taken back.
_TOLERATED, _CONTRADICTED, _ABSURD = 0.7, 8.0, 1.4
# The rest is assigned where neither cloud has more spots left, within so many spacings.
_MOST_LEFT, _REST_REACH = 1000, 1.5
_MOST_RETURNS = 5
# Added to the spline's system, in its own unit: pairs are not exact, slopes across a plane zero.
_NOISE, _RIDGE = 0.02, 0.05


@dataclass(frozen=True)
class Growth:
    """Pairs after a growth.

    Parameters
    ----------
    fixed_rows, moving_rows : (L,) ndarrays
        All pairs, sorted by the first.
    by_chance : float
        How many a round adds, at most, where the spots have no partner: with the same
        predictions moved aside.
    """

    fixed_rows: Rows
    moving_rows: Rows
    by_chance: float

    def is_gain_over(self, num_known: int) -> bool:
        """Whether chance explains no more than a fifth of what was added."""
        added = len(self.fixed_rows) - num_known
        least = max(_FEWEST, _LEAST_SHARE * num_known, 5.0 * self.by_chance)
        return added >= least


def grow(
    fixed: Floats,
    moved: Floats,
    moving: Floats,
    ours: Rows,
    theirs: Rows,
    *,
    sigma: float = 0.0,
    judges: NDArray[np.bool_] | None = None,
    aside: Floats | None = None,
) -> Growth:
    """Add the pairs that follow from the known ones.

    Parameters
    ----------
    fixed : (N, D) ndarray
        In units of the mean spacing.
    moved : (N, D) ndarray
        Where the map so far brings them, on their shelves.
    moving : (M, D) ndarray
        On their shelves too.
    ours, theirs : (K,) ndarrays
        Rows of known pairs.
    sigma : float
        Standard deviation of a known pair an axis.
    judges : (N,) bool ndarray, optional
        Spots that are given partners like all others, but tell nothing about other spots.
    aside : (S, D) ndarray, optional
        Steps that part all pairs. Default: those of the moving cloud.

    Returns
    -------
    Growth
    """
    scene = _Scene.of(fixed, moved, moving, sigma, judges, aside)
    if scene.tells[ours].sum() < fixed.shape[1] + 2:
        return Growth(ours, theirs, 0.0)
    partner = np.full(len(fixed), -1, dtype=np.int64)
    partner[ours] = theirs
    by_chance = 0.0
    for _ in range(_MOST_SWEEPS):
        rim = scene.rim(partner)
        if len(rim) == 0:
            break
        added, chance = scene.add(partner, rim)
        by_chance = max(by_chance, chance)
        if added <= scene.take_back(partner, rim):
            break
    rows = np.flatnonzero(partner >= 0)
    return Growth(rows, partner[rows], by_chance)


def assign_rest(
    fixed: Floats,
    moved: Floats,
    moving: Floats,
    ours: Rows,
    theirs: Rows,
    *,
    sigma: float = 0.0,
    judges: NDArray[np.bool_] | None = None,
    aside: Floats | None = None,
) -> Growth:
    """Assign the spots that have no partner to each other, those left out that contradict.

    Where nearly all spots have a partner, the few that are left over on both sides belong
    together, even where the map is off by more than a spacing. Parameters and result are those
    of `grow`; nothing is added where many are left.
    """
    rest = np.setdiff1d(np.arange(len(fixed)), ours), np.setdiff1d(np.arange(len(moving)), theirs)
    scene = _Scene.of(fixed, moved, moving, sigma, judges, aside)
    is_few = scene.tells[ours].sum() < fixed.shape[1] + 2
    if is_few or not 0 < max(map(len, rest)) <= _MOST_LEFT:
        return Growth(ours, theirs, 0.0)
    partner = np.full(len(fixed), -1, dtype=np.int64)
    partner[ours] = theirs
    rows, columns = _assigned(moved[rest[0]], moving[rest[1]])
    added = rest[0][rows]
    partner[added] = rest[1][columns]
    for _ in range(_MOST_RETURNS):
        left = added[partner[added] >= 0]
        if len(left) == 0 or scene.take_back(partner, left) == 0:
            break
    # Further aside than usual: what is left over lies together, and must not meet itself.
    steps = 2 * scene.aside
    by_chance = [len(_assigned(moved[rest[0]] + step, moving[rest[1]])[0]) for step in steps]
    every = np.flatnonzero(partner >= 0)
    return Growth(every, partner[every], float(np.mean(by_chance)))


def _assigned(ours: Floats, theirs: Floats) -> tuple[Rows, Rows]:
    """Return rows of the assignment of least squared distance, a cost of not assigning."""
    cost = np.minimum(cdist(ours, theirs, "sqeuclidean"), _REST_REACH**2)
    rows, columns = linear_sum_assignment(cost)
    near = cost[rows, columns] < _REST_REACH**2
    return rows[near], columns[near]


@dataclass(frozen=True)
class _Scene:
    """The clouds; partners, a row of `moving` for each of `fixed` or -1, are passed along."""

    fixed: Floats
    moved: Floats
    moving: Floats
    noise: float  # error of a pair, all axes together
    aside: Floats
    tells: NDArray[np.bool_]  # which of `fixed` may tell about others

    @classmethod
    def of(
        cls,
        fixed: Floats,
        moved: Floats,
        moving: Floats,
        sigma: float,
        judges: NDArray[np.bool_] | None,
        aside: Floats | None,
    ) -> _Scene:
        """Gather what does not change."""
        tells = np.ones(len(fixed), dtype=bool) if judges is None else ~judges
        noise = math.sqrt(fixed.shape[1]) * sigma
        steps = steps_aside(moving) if aside is None else aside
        return cls(fixed, moved, moving, noise, steps, tells)

    def rim(self, partner: Rows) -> Rows:
        """Return the spots without a partner next to those that have one."""
        known, todo = np.flatnonzero(partner >= 0), np.flatnonzero(partner < 0)
        if len(todo) == 0 or len(known) == len(self.moving):
            return todo[:0]
        if len(todo) > _MANY:
            todo = self._in_holes(todo, known)
            if len(todo) == 0:
                return todo
        tree = cKDTree(self.fixed[known])
        usual = tree.query(self.fixed[known], k=min(_RIM_PAIRS + 1, len(known)))[0][:, -1]
        count = min(_RIM_PAIRS, len(known) - 1)
        far = tree.query(self.fixed[todo], k=[count])[0][:, 0]
        is_near = far <= _RIM * max(float(np.median(usual)), 1.0)
        return np.asarray(todo[is_near], dtype=np.int64)

    def _in_holes(self, todo: Rows, known: Rows) -> Rows:
        """Return the spots around which fewer have a partner than usual; none where it is chance.

        Usual is the share around some of the pairs.
        """
        rows = np.concatenate([todo, known[:: -(-len(known) // _SAMPLED)]])
        have, every = self._counts_around(rows, known)
        share = have / every
        usual = float(np.median(share[len(todo) :]))
        spread = np.sqrt(usual * (1.0 - usual) * every[: len(todo)]) + 1e-9
        rare = (usual * every[: len(todo)] - have[: len(todo)]) / spread
        if rare.max() < _RARE:
            return todo[:0]
        return todo[(share[: len(todo)] < _HOLE * usual) & (rare > _UNUSUAL)]

    def _counts_around(self, rows: Rows, known: Rows) -> tuple[Floats, Floats]:
        """Return how many spots around each of some have a partner, and how many there are."""
        some = rows[:: -(-len(rows) // _SAMPLED)]
        count = min(_AROUND, len(self.fixed))
        far = cKDTree(self.fixed, balanced_tree=False).query(self.fixed[some], k=[count])[0]
        # Many may lie at one place.
        radius = max(float(np.median(far)), _LEAST_RADIUS)
        have, every = (
            CellList.build(cloud, radius / 2).count_within(self.fixed[rows], radius)
            for cloud in (self.fixed[known], self.fixed)
        )
        return have.astype(np.float64), np.maximum(every, 1).astype(np.float64)

    def add(self, partner: Rows, rim: Rows) -> tuple[int, float]:
        """Give partners to spots of the rim; return to how many, and how many by chance."""
        known = _Known.of(self, partner)
        free = np.ones(len(self.moving), dtype=bool)
        free[partner[partner >= 0]] = False
        candidates = np.flatnonzero(free)
        near = known.near(self.fixed[rim])
        predicted = self.moved[rim] + known.predict(self.fixed[rim], near)
        errors = known.errors(np.unique(near[:, :_ERROR_NEIGHBOURS]))
        square = np.minimum(errors[near[:, :_ERROR_NEIGHBOURS]], 1.0) ** 2
        bent = np.sqrt(np.maximum(square.mean(axis=1) - _PREDICTED_NOISE * self.noise**2, 0.0))
        reach = np.clip(_ERRORS * (self.noise + _FAR * bent), _LEAST_REACH, _MOST_REACH)
        targets = cKDTree(self.moving[candidates])
        chosen, rows = _nearest(targets, predicted, reach)
        partner[rim[chosen]] = candidates[rows]
        by_chance = [len(_nearest(targets, predicted + a, reach)[0]) for a in self.aside]
        return len(chosen), float(np.mean(by_chance))

    def take_back(self, partner: Rows, rim: Rows) -> int:
        """Take partners around the rim back that their neighbours contradict; return how many."""
        known = _Known.of(self, partner)
        judged = np.unique(known.near(self.fixed[rim]))
        near = known.near(self.fixed[known.rows[judged]], besides=judged)
        errors = known.errors(np.unique(np.concatenate([judged, near.ravel()])))
        typical = np.median(errors[near], axis=1)
        own = errors[judged]
        bad = (own > np.maximum(_CONTRADICTED * typical, _TOLERATED)) | (own > _ABSURD)
        partner[known.rows[judged[bad]]] = -1
        return int(bad.sum())


@dataclass(frozen=True)
class _Known:
    """The known pairs: where they are, and by how much the map misses their partners."""

    rows: Rows
    points: Floats
    shift: Floats
    tree: cKDTree

    @classmethod
    def of(cls, scene: _Scene, partner: Rows) -> _Known:
        """Gather the pairs."""
        rows = np.flatnonzero((partner >= 0) & scene.tells)
        points = scene.fixed[rows]
        return cls(rows, points, scene.moving[partner[rows]] - scene.moved[rows], cKDTree(points))

    def near(self, at: Floats, besides: Rows | None = None) -> Rows:
        """Return the nearest pairs (Q, L) of places, not counting one pair each."""
        count = min(_NEIGHBOURS, len(self.rows) - 1)
        if besides is None:
            return np.asarray(self.tree.query(at, k=np.arange(1, count + 1))[1], dtype=np.int64)
        rows = np.asarray(self.tree.query(at, k=count + 1)[1], dtype=np.int64)
        own = rows == besides[:, None]
        own[~own.any(axis=1), -1] = True  # of many at one place
        return np.asarray(rows[~own].reshape(len(rows), -1))

    def errors(self, rows: Rows) -> Floats:
        """Return how far off its neighbours predict some of the pairs; (K,), 0 elsewhere."""
        out = np.zeros(len(self.rows))
        at = self.points[rows]
        predicted = self.predict(at, self.near(at, besides=rows))
        out[rows] = np.sqrt(((predicted - self.shift[rows]) ** 2).sum(axis=1))
        return out

    def predict(self, at: Floats, near: Rows) -> Floats:
        """Return the shifts (Q, D) that local thin-plate splines through (Q, L) pairs give."""
        out = np.empty_like(at)
        for i in range(0, len(at), _BATCH):
            part = slice(i, i + _BATCH)
            out[part] = _splines(at[part], self.points[near[part]], self.shift[near[part]])
        return out


def _nearest(targets: cKDTree, predicted: Floats, reach: Floats) -> tuple[Rows, Rows]:
    """Return which predictions have a clear partner of their own, and its rows."""
    distance, rows = targets.query(predicted, k=2)
    # Of a single target the second is missing: infinitely far.
    good = (distance[:, 0] <= reach) & (distance[:, 0] <= _CLEAR * distance[:, 1])
    # One to one: the nearest prediction takes a partner.
    order = np.argsort(distance[:, 0], kind="stable")
    order = order[good[order]]
    taken, first = np.unique(rows[order, 0], return_index=True)
    return np.asarray(order[first], dtype=np.int64), np.asarray(taken, dtype=np.int64)


def _splines(at: Floats, points: Floats, values: Floats) -> Floats:
    """Return (Q, D) values at (Q, D) places of splines through (Q, L, D) points.

    The kernel is the distance, that of the thin-plate spline in 3D, with a plane (Duchon 1977).
    """
    count, ndim = points.shape[1:]
    local = points - at[:, None]
    size = np.sqrt((local**2).sum(axis=2).mean(axis=1))[:, None, None]
    local = local / np.maximum(size, 1e-12)
    gap = np.sqrt(((local[:, :, None] - local[:, None]) ** 2).sum(axis=3))
    total = count + ndim + 1
    system = np.zeros((len(at), total, total))
    system[:, :count, :count] = -gap
    diagonal = np.arange(count)
    system[:, diagonal, diagonal] += _NOISE
    system[:, :count, count] = system[:, count, :count] = 1.0
    system[:, :count, count + 1 :] = local
    system[:, count + 1 :, :count] = local.transpose(0, 2, 1)
    slopes = np.arange(count + 1, total)
    system[:, slopes, slopes] -= _RIDGE
    right = np.zeros((len(at), total))
    right[:, :count] = -np.sqrt((local**2).sum(axis=2))
    right[:, count] = 1.0
    weights = np.linalg.solve(system, right[..., None])[:, :count, 0]
    return np.asarray(np.einsum("ql,qld->qd", weights, values))
