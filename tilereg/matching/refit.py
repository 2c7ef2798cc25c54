"""The field of a match from its pairs: one that held-out spots judge, and one through all pairs.

The drift fits soft partners with one prior. Once the pairs are known, kriging fits them with the
prior that predicts each from the others. The held-out spots judge that map; then one of the same
kind is fitted to all pairs, theirs too: where spots are few, none can be spared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.blas import one_thread
from tilereg.field import fit_field
from tilereg.kriging import Kriging, LeaveOut, bent, fit_kriging
from tilereg.matching.growth import assign_rest, grow
from tilereg.matching.pairing import GATE, mutual_neighbours, wide_pairs
from tilereg.matching.problem import Problem
from tilereg.matching.transport import assign
from tilereg.transform import Transform

__all__ = ["Refit", "exchanged", "fit_all", "fit_judge", "fit_plate", "reassigned"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Held-out spots are few, and their own noise is larger than what two maps differ by: the map
# of the drift is kept only where they are so many standard errors, or so many, for it.
_CLEAR, _FEWEST_JUDGES = 4.0, 8
# A spline through grown pairs is kept unless their residual falls to this share: one width for
# the whole field does no justice to a region that is bent more.
_BETTER = 0.9
# Of so few spots the pairs are sought anew as well.
_FEW = 1000
_MOST_ROUNDS = 3
# Pairs that the others miss by so many spacings may have exchanged their partners with one of
# their nearest; they have where that leaves so small a share of the squared error.
_MISSED, _NEIGHBOURS, _MUCH_LESS = 0.2, 9, 0.25
_MOST_EXCHANGES = 20
# Spots are assigned to where others predict them within so many spacings, where such a share of
# the smaller cloud has a partner. An assignment is taken where it adds so many times as many pairs
# as chance and others are hardly missed more, or leaves such a share of the squared misses.
_REASSIGNED, _NEARLY_ALL, _OFTENER, _WORSE, _CLOSER = 1.5, 0.95, 5.0, 1.3, 0.98


@dataclass(frozen=True)
class Refit:
    """A field through pairs of a match.

    Parameters
    ----------
    transform : Transform
    beta : float
        Coherence width in the unit of the points; infinite for a spline.
    fixed_rows, moving_rows : (K,) ndarrays
        The pairs that it was fitted to.
    losses : dict
        Root mean square residual of the held-out pairs, of the map so far and of this one.
    kriging : Kriging, optional
        The fit that a next one can be like.
    """

    transform: Transform
    beta: float
    fixed_rows: Rows
    moving_rows: Rows
    losses: dict[str, float] = field(default_factory=dict)
    kriging: Kriging | None = None


def fit_judge(
    problem: Problem,
    map_: Transform,
    sigma: float,
    *,
    pairs: tuple[Rows, Rows] | None = None,
    name: str = "coherent",
    must: bool = False,
) -> Refit | None:
    """Fit a field by kriging to the pairs of a map that are not held out.

    None where there are too few, or the held-out spots clearly prefer the map.

    Parameters
    ----------
    problem : Problem
        Its held-out spots judge. They take their partners, but no fit sees them.
    map_ : Transform
    sigma : float
        Standard deviation of a pair an axis.
    pairs : tuple of (K,) ndarrays, optional
        Rows of pairs that have grown; then the map is kept unless it is clearly worse. Default:
        the mutual nearest spots within three standard deviations.
    name : str
        What the map's field is called among the losses.
    must : bool
        Whether the field is fitted whatever the held-out spots say, or where there are none.
    """
    fixed, moving = problem.fixed, problem.moving
    ndim = fixed.shape[1]
    is_grown = pairs is not None
    if pairs is None:
        near = GATE * math.sqrt(ndim) * sigma
        pairs = mutual_neighbours(problem.moved(map_), problem.targets, near)
    ours, theirs = pairs
    used = ~problem.held[ours]
    judges = int((~used).sum())
    if used.sum() <= 2 * ndim or (judges < _FEWEST_JUDGES and not must):
        return None
    given = problem.given(ours[used], theirs[used])
    fit = fit_kriging(*given[:2], weight=given[2], domain=problem.box)
    losses = {}
    if judges:
        x, y = fixed[ours[~used]], moving[theirs[~used]]
        ours_now, before = (
            ((candidate(x) - y) ** 2).sum(axis=1) for candidate in (fit.transform, map_)
        )
        losses = {name: _root_mean(before), "kriging": _root_mean(ours_now)}
        if not must and (
            losses["kriging"] > _BETTER * losses[name]
            if is_grown
            else _is_clearly_more(ours_now, before)
        ):
            return None
    return replace(_of_kriging(fit, ours[used], theirs[used]), losses=losses)


def fit_all(
    problem: Problem,
    judge: Transform,
    sigma: float,
    *,
    pairs: tuple[Rows, Rows] | None = None,
    like: Kriging | None = None,
) -> Refit:
    """Fit a field by kriging to all pairs of a map, those of held-out spots too.

    Of few spots the pairs are sought once more, now that all may tell of their neighbours; of many
    they are `pairs`, or else the mutual nearest spots within three standard deviations.
    Parameters are those of `fit_judge`; `judge` is the map that has not seen the held-out spots,
    `like` the fit that made it, if there was one.
    """
    fixed, moving = problem.fixed, problem.moving
    moved, targets = problem.moved(judge), problem.targets
    near = GATE * math.sqrt(fixed.shape[1]) * sigma
    if len(fixed) > _FEW:
        ours, theirs = mutual_neighbours(moved, targets, near) if pairs is None else pairs
        return _of_kriging(_last(problem, ours, theirs, like), ours, theirs)
    ours, theirs = wide_pairs(moved, targets, problem.aside, near)
    for add in (grow, assign_rest):
        found = add(fixed, moved, targets, ours, theirs, sigma=sigma, aside=problem.aside)
        # Chance must explain hardly any of what is added, be it a single pair.
        if len(found.fixed_rows) - len(ours) > 5 * found.by_chance:
            ours, theirs = found.fixed_rows, found.moving_rows
    fit = _last(problem, ours, theirs)
    for _ in range(_MOST_ROUNDS):
        better = exchanged(
            fixed[ours],
            moving[theirs],
            fit,
            classes=problem.shelves.classes(ours),
            weight=problem.confidence(ours, theirs),
        )
        if (better == np.arange(len(theirs))).all():
            break
        theirs = theirs[better]
        fit = _last(problem, ours, theirs)
    return reassigned(problem, _of_kriging(fit, ours, theirs))


def reassigned(problem: Problem, found: Refit) -> Refit:
    """Assign spots anew to where the others predict them, where nearly all have a partner.

    A field through wrong pairs goes where they say, and confirms them; the fields without each of
    them do not. Spots that stay without a partner are given none by chance: nothing is done where
    there are more than a few. `found` holds a fit by kriging.
    """
    fewer = min(len(problem.fixed), len(problem.moving))
    reach = _REASSIGNED * problem.crowding
    miss = _misses(problem, found)
    for _ in range(_MOST_ROUNDS):
        if len(miss) < _NEARLY_ALL * fewer:
            break
        ours, theirs = _assigned(problem, found, miss, reach)
        following = _of_kriging(_last(problem, ours, theirs), ours, theirs)
        missed = _misses(problem, following)
        added = len(following.fixed_rows) - len(found.fixed_rows)
        if added > 0 and added <= _OFTENER * _by_chance(problem, found, reach):
            break
        share = _share_of_misses(following, missed, found, miss, reach)
        if share > (_WORSE if added > 0 else _CLOSER):
            break
        found, miss = following, missed
    return found


def _by_chance(problem: Problem, found: Refit, reach: float) -> float:
    """Return how many spots that have no partner would be given one by chance."""
    moved = problem.moved(found.transform)
    ours = np.delete(moved, found.fixed_rows, axis=0)
    theirs = np.delete(problem.targets, found.moving_rows, axis=0)
    return float(np.mean([len(assign(ours + step, theirs, reach)[0]) for step in problem.aside]))


def _share_of_misses(
    new: Refit, new_miss: Floats, old: Refit, old_miss: Floats, reach: float
) -> float:
    """Return the ratio of squared misses of the spots that have a partner before and after."""
    _, ours, theirs = np.intersect1d(new.fixed_rows, old.fixed_rows, return_indices=True)
    after, before = (
        float(np.minimum((miss[rows] ** 2).sum(axis=1), reach**2).sum())
        for miss, rows in ((new_miss, ours), (old_miss, theirs))
    )
    return after / max(before, 1e-300)


def _misses(problem: Problem, found: Refit) -> Floats:
    """Return by how much (K, D) the other pairs of a fit miss each pair."""
    fit, ours, theirs = found.kriging, found.fixed_rows, found.moving_rows
    assert fit is not None
    x, y = problem.fixed[ours], problem.moving[theirs]
    points, targets = ((side - x.mean(axis=0)) / fit.unit for side in (x, y))
    weight = problem.confidence(ours, theirs)
    with one_thread():
        others = LeaveOut.of(points, bent(points, targets), fit.prior, weight)
    return fit.unit * others.residuals()


def _assigned(problem: Problem, found: Refit, miss: Floats, reach: float) -> tuple[Rows, Rows]:
    """Return the pairs of an assignment to where others predict spots, and those it leaves."""
    predicted = found.transform(problem.fixed)
    predicted[found.fixed_rows] = problem.moving[found.moving_rows] - miss
    ours, theirs = assign(problem.shelves.moved(predicted), problem.targets, reach)
    left = ~np.isin(found.fixed_rows, ours) & ~np.isin(found.moving_rows, theirs)
    ours = np.concatenate([ours, found.fixed_rows[left]])
    order = np.argsort(ours)
    return ours[order], np.concatenate([theirs, found.moving_rows[left]])[order]


def fit_plate(problem: Problem, ours: Rows, theirs: Rows) -> Refit:
    """Fit a thin-plate spline to all of many pairs that have grown, which left out wrong ones."""
    x, y, weight = problem.given(ours, theirs, is_last=True)
    plate = fit_field(x, y, weight=weight, domain=problem.box, robust=False).transform
    return Refit(plate, math.inf, ours, theirs)


def exchanged(
    fixed: Floats,
    moving: Floats,
    fit: Kriging,
    *,
    classes: Rows | None = None,
    weight: Floats | None = None,
) -> Rows:
    """Return the order (K,) of the moving points in which no two neighbours should exchange.

    Parameters
    ----------
    fixed, moving : (K, D) ndarrays
        Pairs.
    fit : Kriging
        Fitted to them.
    classes : (K,) int ndarray, optional
        Only pairs of one class may exchange.
    weight : (K,) ndarray, optional
        Of each pair, as `fit_kriging` takes them.

    Notes
    -----
    Two pairs that exchanged their partners confirm each other's error, so both are predicted
    from all others but these two.
    """
    order = np.arange(len(fixed))
    if len(fixed) <= _NEIGHBOURS + fixed.shape[1] + 2:
        return order
    points = (fixed - fixed.mean(axis=0)) / fit.unit
    targets = (moving - fixed.mean(axis=0)) / fit.unit
    near = cKDTree(points).query(points, k=_NEIGHBOURS + 1)[1][:, 1:]
    kinds = np.zeros(len(points)) if classes is None else classes
    # Of several at one place each may be its own neighbour.
    may = (kinds[near] == kinds[:, None]) & (near != order[:, None])
    with one_thread():
        others = LeaveOut.of(points, bent(points, targets), fit.prior, weight)
        for _ in range(_MOST_EXCHANGES):
            share, one, two = _best_exchange(others, targets, near, may)
            if share >= _MUCH_LESS:
                break
            # One at a time: exchanged partners spoil the predictions of all around.
            order[[one, two]] = order[[two, one]]
            targets[[one, two]] = targets[[two, one]]
            others = others.of_values(bent(points, targets))
    return order


def _best_exchange(
    others: LeaveOut, targets: Floats, near: Rows, may: NDArray[np.bool_]
) -> tuple[float, int, int]:
    """Return which two neighbours are predicted best after an exchange: share of error, rows.

    near (K, L) are the neighbours of each, may (K, L) which of them it may exchange with.
    """
    is_missed = np.linalg.norm(others.residuals(), axis=1) > _MISSED
    best = (np.inf, 0, 0)
    for one in np.flatnonzero(is_missed):
        for two in near[one][may[one] & is_missed[near[one]]]:
            misses = np.concatenate(
                [
                    others.residuals_without(int(two), np.array([one])),
                    others.residuals_without(int(one), np.array([two])),
                ]
            )
            step = targets[two] - targets[one]
            after = misses + np.stack([step, -step])
            share = float((after**2).sum() / (misses**2).sum())
            best = min(best, (share, int(one), int(two)))
    return best


def _last(problem: Problem, ours: Rows, theirs: Rows, like: Kriging | None = None) -> Kriging:
    """Fit a field by kriging to pairs and to the landmarks, none of which is sought again."""
    x, y, weight = problem.given(ours, theirs, is_last=True)
    return fit_kriging(x, y, weight=weight, domain=problem.box, like=like)


def _of_kriging(fit: Kriging, ours: Rows, theirs: Rows) -> Refit:
    """Return a fit with the pairs that it has kept."""
    kept = fit.is_kept[: len(ours)]
    beta = fit.prior.beta * fit.unit
    return Refit(fit.transform, beta, ours[kept], theirs[kept], kriging=fit)


def _root_mean(square: Floats) -> float:
    """Return the root of the mean of squared lengths."""
    return math.sqrt(float(square.mean()))


def _is_clearly_more(ones: Floats, others: Floats) -> bool:
    """Whether chance does not explain that the first of paired numbers are larger."""
    excess = ones - others
    error = float(excess.std(ddof=1)) / math.sqrt(len(excess))
    return float(excess.mean()) > _CLEAR * error
