"""Fit the field of a match anew, to all of its pairs.

The drift fits soft partners with one prior. Once the pairs are known, kriging fits them with the
prior that predicts each from the others. The held-out spots judge that map; then one of the same
kind is fitted to all pairs, theirs too: where spots are few, none can be spared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.kriging import Kriging, LeaveOut, bent, fit_kriging
from tilereg.matching.clouds import steps_aside
from tilereg.matching.growth import assign_rest, grow
from tilereg.matching.pairing import GATE, mutual_neighbours, wide_pairs
from tilereg.transform import Transform

__all__ = ["Refit", "exchanged", "refit"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Held-out spots are few, and their own noise is larger than what two maps differ by: the map
# through all pairs is left alone only where they are worse by so many standard errors.
_CLEAR = 4.0
# Of so few spots the pairs are sought anew as well.
_FEW = 1000
_MOST_ROUNDS = 3
# Pairs that the others miss by so many spacings may have exchanged their partners with one of
# their nearest; they have where that leaves so small a share of the squared error.
_MISSED, _NEIGHBOURS, _MUCH_LESS = 0.2, 9, 0.25
_MOST_EXCHANGES = 20


@dataclass(frozen=True)
class Refit:
    """A field through all pairs of a match.

    Parameters
    ----------
    transform : Transform
        Fitted to all pairs.
    judge : Transform
        Fitted to those that are not held out.
    fixed_rows, moving_rows : (K,) ndarrays
        The pairs that `transform` was fitted to.
    beta : float
        Coherence width in the unit of the points; infinite for a spline.
    losses : dict
        Root mean square residual of the held-out pairs, of the map so far and of `judge`.
    """

    transform: Transform
    judge: Transform
    fixed_rows: Rows
    moving_rows: Rows
    beta: float
    losses: dict[str, float]


def refit(
    fixed: Floats,
    moving: Floats,
    held: NDArray[np.bool_],
    map_: Transform,
    sigma: float,
    box: tuple[Floats, Floats],
    *,
    is_judged: bool = False,
    must: bool = False,
) -> Refit | None:
    """Fit a field by kriging to all pairs of a map; None where that predicts spots worse.

    Parameters
    ----------
    fixed, moving : (N, D), (M, D) ndarrays
        In units of the mean spacing.
    held : (N,) bool ndarray
        Spots that the map has not seen.
    map_ : Transform
    sigma : float
        Standard deviation of a pair an axis.
    box : pair of (D,) ndarrays
        Where the field may vary.
    is_judged : bool
        Whether the map is such a field already, which the held-out spots have preferred.
    must : bool
        Whether the field is fitted even where the held-out spots do not prefer it.
    """
    ndim = fixed.shape[1]
    ours, theirs = mutual_neighbours(map_(fixed), moving, GATE * math.sqrt(ndim) * sigma)
    used = ~held[ours]
    if used.sum() <= 2 * ndim or not (must or held[ours].any()):
        return None
    judge, prior, losses = map_, None, {}
    if not is_judged:
        first = fit_kriging(fixed[ours[used]], moving[theirs[used]], domain=box)
        judge, prior = first.transform, first.prior
        if not used.all():
            rows = ours[~used], theirs[~used]
            squares = {
                name: ((candidate(fixed[rows[0]]) - moving[rows[1]]) ** 2).sum(axis=1)
                for name, candidate in (("coherent", map_), ("kriging", judge))
            }
            losses = {name: math.sqrt(float(s.mean())) for name, s in squares.items()}
            if not must and _is_clearly_more(squares["kriging"], squares["coherent"]):
                return None
    if len(fixed) <= _FEW:
        return _sought_anew(fixed, moving, judge, sigma, box, losses)
    fit = fit_kriging(fixed[ours], moving[theirs], domain=box, prior=prior)
    return _refit(fit, judge, ours, theirs, losses)


def _sought_anew(
    fixed: Floats,
    moving: Floats,
    judge: Transform,
    sigma: float,
    box: tuple[Floats, Floats],
    losses: dict[str, float],
) -> Refit:
    """Seek the pairs once more, now that all may tell of their neighbours, and fit them."""
    moved = judge(fixed)
    aside = steps_aside(moving)
    near = GATE * math.sqrt(fixed.shape[1]) * sigma
    ours, theirs = wide_pairs(moved, moving, aside, near)
    for add in (grow, assign_rest):
        found = add(fixed, moved, moving, ours, theirs, sigma=sigma)
        # Chance must explain hardly any of what is added, be it a single pair.
        if len(found.fixed_rows) - len(ours) > 5 * found.by_chance:
            ours, theirs = found.fixed_rows, found.moving_rows
    for _ in range(_MOST_ROUNDS):
        fit = fit_kriging(fixed[ours], moving[theirs], domain=box)
        better = exchanged(fixed[ours], moving[theirs], fit)
        if (better == np.arange(len(theirs))).all():
            break
        theirs = theirs[better]
    else:
        fit = fit_kriging(fixed[ours], moving[theirs], domain=box)
    return _refit(fit, judge, ours, theirs, losses)


def exchanged(fixed: Floats, moving: Floats, fit: Kriging) -> Rows:
    """Return the order (K,) of the moving points in which no two neighbours should exchange.

    Parameters
    ----------
    fixed, moving : (K, D) ndarrays
        Pairs.
    fit : Kriging
        Fitted to them.

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
    others = LeaveOut.of(points, bent(points, targets), fit.prior)
    near = cKDTree(points).query(points, k=_NEIGHBOURS + 1)[1][:, 1:]
    for _ in range(_MOST_EXCHANGES):
        share, one, two = _best_exchange(others, targets, near)
        if share >= _MUCH_LESS:
            break
        # One at a time: exchanged partners spoil the predictions of all around.
        order[[one, two]] = order[[two, one]]
        targets[[one, two]] = targets[[two, one]]
        others = others.of_values(bent(points, targets))
    return order


def _best_exchange(others: LeaveOut, targets: Floats, near: Rows) -> tuple[float, int, int]:
    """Return which two neighbours are predicted best after an exchange: share of error, rows."""
    is_missed = np.linalg.norm(others.residuals(), axis=1) > _MISSED
    best = (np.inf, 0, 0)
    for one in np.flatnonzero(is_missed):
        for two in near[one][is_missed[near[one]]]:
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


def _refit(
    fit: Kriging, judge: Transform, ours: Rows, theirs: Rows, losses: dict[str, float]
) -> Refit:
    """Return the result of a last fit, with the pairs that it has kept."""
    kept = fit.is_kept
    beta = fit.prior.beta * fit.unit
    return Refit(fit.transform, judge, ours[kept], theirs[kept], beta, losses)


def _is_clearly_more(ones: Floats, others: Floats) -> bool:
    """Whether chance does not explain that the first of paired numbers are larger."""
    excess = ones - others
    error = float(excess.std()) / math.sqrt(len(excess))
    return float(excess.mean()) > _CLEAR * error
