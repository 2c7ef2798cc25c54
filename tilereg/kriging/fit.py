"""Kriging of pairs, held on a lattice; pairs that contradict their neighbours are left out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import spline_filter1d
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from tilereg.affine import fit_affine
from tilereg.blas import one_thread
from tilereg.errors import InputError
from tilereg.field import cover, mean_spacing, split_affine
from tilereg.kriging.choice import BETAS, choose_prior
from tilereg.kriging.leave_out import FLAT, LeaveOut
from tilereg.kriging.prior import Deviation, Prior, bent, gaussian_sums
from tilereg.lattice import Lattice, NormalEquations
from tilereg.points import check_points
from tilereg.smoothing import Coherent, Solution
from tilereg.transform import Affine, DisplacementField, Transform

__all__ = ["MOST_EXACT", "Kriging", "fit_kriging"]

Floats = NDArray[np.float64]

MOST_EXACT = 2000
"""Pairs above which those that contradict their neighbours are not looked for, and the field is
not the exact one but that of a lattice, with no less noise than its solver can resolve."""

LEAST_NOISE = 1e-6
"""Least noise of many pairs, in units of the covariance: what their solver resolves."""

COARSE_STEP = 2.0
"""Distance of the nodes of a field through many pairs, in mean spacings."""

_NEIGHBOURS = 9
_CONTRADICTED, _TOLERATED = 6.0, 0.2
# Left to its neighbours of their squared errors by a pair that helps to predict them.
_HELPFUL = 0.7
_ROUNDS = 6
_LEAST_KEPT = 0.8
# Distance of the nodes in mean spacings, and how many there may be.
_NODE_STEP = 0.5
# Nodes that are nearer than this hold fields whose size differs from place to place.
_LOCAL_STEP = 1.0
# Nodes in the width of a Gaussian covariance, fitted on the lattice and evaluated at its nodes.
_NODES_A_BETA = (2.6, 5.0)
_MOST_NODES, _FEWEST_NODES = 60_000, 3000
# Where a spline through pairs needs nodes, and points so near, in extents, are at one place.
_PLATE_STEP, _SAME = 2.0, 1e-7
_BEYOND = 4
_BATCH = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Kriging:
    """A fitted transform.

    Parameters
    ----------
    transform : Transform
        The pull-back, micrometre.
    prior : Prior
    unit : float, micrometre
        Mean spacing of the pairs.
    is_kept : (K,) bool ndarray
        False for pairs that contradict their neighbours, and for all but one of several at one
        place.
    residual : (K,) ndarray, micrometre
        How far off the other pairs predict each pair; of some of them where there are many,
        NaN for the rest and for those left out.
    solution : Solution, optional
        What a next fit to many pairs can start from.
    """

    transform: Transform
    prior: Prior
    unit: float
    is_kept: NDArray[np.bool_]
    residual: Floats
    solution: Solution | None = None


def fit_kriging(
    fixed: ArrayLike,
    moving: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    domain: tuple[ArrayLike, ArrayLike] | None = None,
    like: Kriging | None = None,
) -> Kriging:
    """Fit a field to pairs of points with the prior that predicts each pair best from the rest.

    Parameters
    ----------
    fixed, moving : (K, D) array_like, micrometre
        Pairs, axes z, y, x or y, x.
    weight : (K,) array_like, optional
        Above 0: the variance of a pair is that of one of weight 1 over its weight. Default 1.
    domain : pair of (D,) array_like, micrometre, optional
        Box in which the field may vary. Default: the box of the fixed points.
    like : Kriging, optional
        A fit to nearly the same pairs over the same box: of many, its unit and its prior are taken
        over and its field is started from.

    Returns
    -------
    Kriging

    Raises
    ------
    InputError
        If there are fewer than D + 2 pairs, the shapes differ, or a weight is not above 0.

    Notes
    -----
    Pairs whose leave-one-out residual is the largest in their neighbourhood, and many times what
    is usual there, are left out, at most a few rounds. Memory grows with the square of the pairs
    up to 2000, where those pairs are looked for, and is linear beyond.

    References
    ----------
    .. [1] O. Dubrule, Cross validation of kriging in a unique neighborhood, Math. Geology 15
       (1983) 687-699.
    .. [2] G. Wahba, Spline Models for Observational Data, SIAM (1990).
    """
    x, y = check_points(fixed, "fixed points"), check_points(moving, "moving points")
    ndim = x.shape[1]
    if x.shape != y.shape or len(x) < ndim + 2:
        raise InputError(
            f"Cannot fit a field to {x.shape} fixed and {y.shape} moving points. At least "
            f"{ndim + 2} pairs of the same dimension are needed."
        )
    given = None if weight is None else _checked(weight, len(x))
    single = _single(x, given)
    is_exact = bool(single.sum() <= MOST_EXACT)
    if is_exact or like is None or like.solution is None:
        like = None
    unit, centre = mean_spacing(x[single]) if like is None else like.unit, x.mean(axis=0)
    points, targets = (x - centre) / unit, (y - centre) / unit
    low, high = (x.min(axis=0), x.max(axis=0)) if domain is None else domain
    low, high = ((np.asarray(side) - centre) / unit for side in (low, high))
    step, most = (_NODE_STEP, _MOST_NODES) if is_exact else (COARSE_STEP, nodes_of_many(len(x)))
    lattice = cover(low, high, step, most)
    residual = np.full(len(x), np.nan)
    kept = single.copy()
    betas = tuple(b for b in BETAS if _is_held(b, lattice, int(single.sum())))
    with one_thread():
        # Where the nodes are far apart they cannot follow sizes that differ nearby.
        is_local = max(lattice.spacing) <= _LOCAL_STEP
        if like is None:
            found, kept[single], residual[single], weights = _consistent(
                points[single],
                targets[single],
                betas,
                is_local=is_local,
                trust=None if given is None else given[single],
            )
        else:
            found, weights = like.prior, None
        # Wide fields need few nodes, and time grows with them.
        if math.isfinite(found.beta):
            lattice = cover(low, high, max(step, step_of(found, is_exact=is_exact)), most)
        affine, field, solution = _on_lattice(
            points[kept],
            targets[kept],
            found,
            lattice,
            weights,
            trust=None if given is None else given[kept],
            start=None if like is None else like.solution,
        )
    world = Affine(affine.matrix, unit * affine.offset + centre - affine.matrix @ centre)
    scaled = DisplacementField(
        field.coefficients * unit, field.origin * unit + centre, field.spacing * unit
    )
    return Kriging(
        transform=Transform(*split_affine(world, scaled, x[kept])),
        prior=found,
        unit=unit,
        is_kept=kept,
        residual=residual * unit,
        solution=solution,
    )


def nodes_of_many(num_pairs: int) -> int:
    """Return the most nodes of a field through so many pairs."""
    return max(_FEWEST_NODES, num_pairs)


def step_of(prior: Prior, *, is_exact: bool = False) -> float:
    """Return the distance of the nodes that a prior of finite width needs."""
    return min(prior.beta, prior.reach) / _NODES_A_BETA[is_exact]


def _checked(weight: ArrayLike, count: int) -> Floats:
    """Return the weights of pairs."""
    weights = np.asarray(weight, dtype=np.float64)
    if weights.shape != (count,) or not (np.isfinite(weights) & (weights > 0)).all():
        raise InputError(
            f"Invalid weights of shape {weights.shape} of {count} pairs. One finite number > 0 a "
            "pair is needed; leave out pairs of weight 0."
        )
    return weights


def _single(points: Floats, weight: Floats | None = None) -> NDArray[np.bool_]:
    """Return which points are the only one at their place, the heaviest or the first."""
    extent = float(np.ptp(points, axis=0).max())
    pairs = cKDTree(points).query_pairs(_SAME * extent, output_type="ndarray")
    single = np.ones(len(points), dtype=bool)
    less = pairs[:, 1]
    if weight is not None:
        less = np.where(weight[pairs[:, 1]] > weight[pairs[:, 0]], pairs[:, 0], less)
    single[less] = False
    # Of points that are all at one place.
    if single.sum() < points.shape[1] + 2:
        single[:] = True
    return single


def _is_held(beta: float, lattice: Lattice, num_pairs: int) -> bool:
    """Whether a lattice is fine enough for fields of this width; the widest is always there."""
    if num_pairs > MOST_EXACT and not math.isfinite(beta):
        return False
    finest = _PLATE_STEP if not math.isfinite(beta) else Coherent(beta, 1.0).spacing
    return beta == BETAS[1] or max(lattice.spacing) <= 1.01 * finest


def _consistent(
    points: Floats,
    targets: Floats,
    betas: tuple[float, ...],
    *,
    is_local: bool,
    trust: Floats | None,
) -> tuple[Prior, NDArray[np.bool_], Floats, Floats | None]:
    """Choose a prior, leave out pairs that contradict their neighbours, choose again.

    Returns the prior, which pairs are kept, their residuals, and their weights if they are known.
    """
    kept = np.ones(len(points), dtype=bool)
    if not _NEIGHBOURS + points.shape[1] + 1 < len(points) <= MOST_EXACT:
        prior, errors, rows = choose_prior(points, bent(points, targets), betas, weight=trust)
        residual = np.full(len(points), np.nan)
        residual[rows] = errors
        if len(points) > MOST_EXACT:
            prior = Prior(prior.beta, max(prior.noise, LEAST_NOISE))
        return prior, kept, residual, None
    for _ in range(_ROUNDS):
        x, y = points[kept], targets[kept]
        values, weight = bent(x, y), None if trust is None else trust[kept]
        prior = choose_prior(x, values, betas, is_local=is_local, weight=weight)[0]
        others = LeaveOut.of(x, values, prior, weight)
        errors = np.linalg.norm(others.residuals(), axis=1)
        bad = _misleading(x, others, errors)
        if not bad.any() or len(x) - bad.sum() < _LEAST_KEPT * len(points):
            break
        kept[np.flatnonzero(kept)[bad]] = False
    is_last = len(errors) == kept.sum()
    residual = np.empty(len(points))
    residual[kept] = errors if is_last else errors[~bad]
    residual[~kept] = np.nan
    return prior, kept, residual, others.product if is_last else None


def _misleading(points: Floats, others: LeaveOut, errors: Floats) -> NDArray[np.bool_]:
    """Tell which pairs contradict their neighbours, and do not help to predict them.

    The pair in the middle of a narrow bump is predicted far worse than those around it, like a
    wrong one; but they are predicted much better with it than without it.
    """
    near = cKDTree(points).query(points, k=_NEIGHBOURS + 1)[1][:, 1:]
    usual = np.maximum(np.median(errors[near], axis=1), np.median(errors))
    is_worst = errors >= errors[near].max(axis=1)
    bad = np.asarray(is_worst & (errors > np.maximum(_CONTRADICTED * usual, _TOLERATED)))
    for row in np.flatnonzero(bad):
        without = others.residuals_without(int(row), near[row])
        bad[row] = (errors[near[row]] ** 2).sum() > _HELPFUL * (without**2).sum()
    return bad


def _on_lattice(
    points: Floats,
    targets: Floats,
    prior: Prior,
    lattice: Lattice,
    weights: Floats | None,
    *,
    trust: Floats | None,
    start: Solution | None,
) -> tuple[Affine, DisplacementField, Solution | None]:
    """Fit the field of a prior, and hold it on a lattice.

    weights (K, D) are those of the pairs in the sum of covariances, if they are known, trust (K,)
    is what they are given. Of many pairs, from an earlier solution, and with one.
    """
    affine = fit_affine(points, targets, np.ones(len(points)), prior=1e-6)
    values = targets - affine(points)
    if len(points) <= MOST_EXACT:
        deviation = Deviation.of(points, values, prior.reach)
        if weights is None:
            weights = LeaveOut.of(points, values, prior, trust).product
        noise = prior.noise if trust is None else prior.noise / trust[:, None]
        trend, weights = _with_trend(points, values, prior, deviation, weights, noise)
        held = _interpolated(points, weights, prior, deviation, lattice)
        return Affine(affine.matrix + trend[:-1].T, affine.offset + trend[-1]), held, None
    weight = np.full(len(points), 1.0 / prior.noise)
    if trust is not None:
        weight *= trust
    equations = NormalEquations.assemble(lattice, points, weight, values)
    solution = Coherent(prior.beta, 1.0).solve(equations, start=start, tolerance=1e-4)
    return affine, lattice.field(solution.coefficients), solution


def _with_trend(
    points: Floats,
    values: Floats,
    prior: Prior,
    deviation: Deviation,
    weights: Floats,
    noise: Floats | float,
) -> tuple[Floats, Floats]:
    """Return the affine trend (D + 1, D) of values beside the points' weights.

    And the weights multiplied by the deviation there, the other factor of the covariance. noise
    (K, 1) is that of each pair, or one number that of all.
    """
    size = deviation(points)
    system = prior.covariance(cdist(points, points)) * (size[:, None] * size)
    design = np.column_stack([points, np.ones(len(points))])
    left = values - system @ weights - noise * weights
    trend = np.asarray(np.linalg.lstsq(design, left, rcond=FLAT)[0], dtype=np.float64)
    return trend, size[:, None] * weights


def _interpolated(
    points: Floats, weights: Floats, prior: Prior, deviation: Deviation, lattice: Lattice
) -> DisplacementField:
    """Return the field of weighted points, equal at the nodes of a lattice.

    Splines need values beyond the ends of the lattice: what they are there does not matter
    some nodes further in.
    """
    more = [_BEYOND if n > 1 else 0 for n in lattice.nodes]
    axes: list[Floats] = [
        np.asarray(o + h * np.arange(-m, n + m), dtype=np.float64)
        for o, h, n, m in zip(lattice.origin, lattice.spacing, lattice.nodes, more, strict=True)
    ]
    values = _summed(points, weights, prior, axes)
    values *= deviation.on_grid(axes)[..., None]
    for axis, num_nodes in enumerate(lattice.nodes):
        if num_nodes > 1:
            values = np.asarray(spline_filter1d(values, 3, axis=axis, mode="mirror"))
    inner = tuple(slice(m, m + n) for m, n in zip(more, lattice.nodes, strict=True))
    return lattice.field(np.ascontiguousarray(values[inner]))


def _summed(points: Floats, weights: Floats, prior: Prior, axes: list[Floats]) -> Floats:
    """Return the covariance with weighted points (n_1, .., n_D, C) at the nodes of a grid."""
    if math.isfinite(prior.beta):
        return gaussian_sums(points, weights, prior.beta, axes)
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    flat = nodes.reshape(-1, points.shape[1])
    out = np.empty((len(flat), weights.shape[1]))
    rows = max(1, _BATCH // len(points))
    for start in range(0, len(flat), rows):
        distance = cdist(flat[start : start + rows], points)
        out[start : start + rows] = prior.covariance(distance) @ weights
    return out.reshape(*nodes.shape[:-1], -1)
