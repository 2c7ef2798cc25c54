"""Fields whose stiffness is chosen in closed form: each pair is predicted by all others.

Universal kriging with an affine trend. Its leave-one-out residuals come from one decomposition
of the covariance for every amount of noise, so that tens of priors are judged in the time that
a single fit takes: those of Coherent Point Drift, a Gaussian covariance of any width, and the
thin-plate spline. Width and noise are properties of the deformation, not of how densely it is
sampled, so a few hundred pairs tell them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve, eigh, qr
from scipy.ndimage import spline_filter1d
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from tilereg.affine import fit_affine
from tilereg.blas import one_thread
from tilereg.errors import InputError
from tilereg.field import cover, mean_spacing, split_affine
from tilereg.lattice import Lattice, NormalEquations
from tilereg.points import check_points
from tilereg.smoothing import Coherent
from tilereg.transform import Affine, DisplacementField, Transform

__all__ = [
    "Kriging",
    "LeaveOut",
    "Prior",
    "bent",
    "choose_prior",
    "fit_kriging",
    "leave_one_out",
    "residuals_of",
    "sampled",
]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_BETAS = (math.inf, 48.0, 32.0, 22.0, 16.0, 11.0, 8.0, 5.5, 4.0, 2.8, 2.0)
_NOISES = tuple(10.0 ** (0.5 * k) for k in range(-18, 5))
# Pairs that a prior is chosen from: some from everywhere, most of them in patches, where they are
# as dense as all are.
_SPREAD, _PATCHES, _PATCH = 100, 10, 30
# Above so many pairs those that contradict their neighbours are not looked for, and the field is
# not the exact one but that of a lattice, with no less noise than its solver can resolve.
_MOST_EXACT = 2000
_LEAST_NOISE = 1e-6
_NEIGHBOURS = 9
_CONTRADICTED, _TOLERATED = 6.0, 0.2
# Left to its neighbours of their squared errors by a pair that helps to predict them.
_HELPFUL = 0.7
_ROUNDS = 6
# Extents below this share of the largest, and weights below this, are none.
_FLAT, _NOTHING = 1e-9, 1e-12
_LEAST_KEPT = 0.8
# Distance of the nodes in mean spacings, and how many there may be.
_NODE_STEP, _COARSE_STEP = 0.5, 2.0
# Nodes in the width of a Gaussian covariance, fitted on the lattice and evaluated at its nodes.
_NODES_A_BETA = (2.6, 5.0)
_MOST_NODES, _FEWEST_NODES = 60_000, 3000
# Where a spline through pairs needs nodes, and points so near, in extents, are at one place.
_PLATE_STEP, _SAME = 2.0, 1e-7
_BEYOND = 4
_BATCH = 4_000_000


@dataclass(frozen=True)
class Prior:
    """What is known of a displacement besides the pairs: its covariance, and the noise.

    Parameters
    ----------
    beta : float
        Width of the Gaussian covariance in mean spacings of the pairs; infinite for a spline
        with the generalised covariance ``r^2 log r``: the thin-plate spline in 2D, in 3D a
        smoother one of the same family (Duchon 1977), that of `scipy.interpolate`.
    noise : float
        Variance of a pair in units of the covariance.
    """

    beta: float
    noise: float

    def covariance(self, distance: Floats) -> Floats:
        """Return the covariance at (N, M) distances in mean spacings."""
        if math.isfinite(self.beta):
            return np.asarray(np.exp(-0.5 * (distance / self.beta) ** 2))
        square = distance**2
        return np.asarray(0.5 * square * np.log(np.maximum(square, 1e-300)))


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
    """

    transform: Transform
    prior: Prior
    unit: float
    is_kept: NDArray[np.bool_]
    residual: Floats


def fit_kriging(
    fixed: ArrayLike,
    moving: ArrayLike,
    *,
    domain: tuple[ArrayLike, ArrayLike] | None = None,
) -> Kriging:
    """Fit a field to pairs of points with the prior that predicts each pair best from the rest.

    Parameters
    ----------
    fixed, moving : (K, D) array_like, micrometre
        Pairs, axes z, y, x or y, x.
    domain : pair of (D,) array_like, micrometre, optional
        Box in which the field may vary. Default: the box of the fixed points.

    Returns
    -------
    Kriging

    Raises
    ------
    InputError
        If there are fewer than D + 2 pairs or the shapes differ.

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
    single = _single(x)
    unit, centre = mean_spacing(x[single]), x.mean(axis=0)
    points, targets = (x - centre) / unit, (y - centre) / unit
    low, high = (x.min(axis=0), x.max(axis=0)) if domain is None else domain
    low, high = ((np.asarray(side) - centre) / unit for side in (low, high))
    is_exact = bool(single.sum() <= _MOST_EXACT)
    step, most = (
        (_NODE_STEP, _MOST_NODES) if is_exact else (_COARSE_STEP, max(_FEWEST_NODES, len(x)))
    )
    lattice = cover(low, high, step, most)
    residual = np.full(len(x), np.nan)
    kept = single.copy()
    betas = tuple(b for b in _BETAS if _is_held(b, lattice, int(single.sum())))
    with one_thread():
        found, kept[single], residual[single] = _consistent(points[single], targets[single], betas)
        # Wide fields need few nodes, and time grows with them.
        if math.isfinite(found.beta):
            lattice = cover(low, high, max(step, found.beta / _NODES_A_BETA[is_exact]), most)
        affine, field = _on_lattice(points[kept], targets[kept], found, lattice)
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
    )


def _single(points: Floats) -> NDArray[np.bool_]:
    """Return which points are the only or the first one at their place."""
    extent = float(np.ptp(points, axis=0).max())
    pairs = cKDTree(points).query_pairs(_SAME * extent, output_type="ndarray")
    single = np.ones(len(points), dtype=bool)
    single[pairs[:, 1]] = False
    # Of points that are all at one place.
    if single.sum() < points.shape[1] + 2:
        single[:] = True
    return single


def _is_held(beta: float, lattice: Lattice, num_pairs: int) -> bool:
    """Whether a lattice is fine enough for fields of this width; the widest is always there."""
    if num_pairs > _MOST_EXACT and not math.isfinite(beta):
        return False
    finest = _PLATE_STEP if not math.isfinite(beta) else Coherent(beta, 1.0).spacing
    return beta == _BETAS[1] or max(lattice.spacing) <= 1.01 * finest


def choose_prior(
    points: Floats, values: Floats, betas: tuple[float, ...] = _BETAS
) -> tuple[Prior, Floats, Rows]:
    """Choose the prior that predicts values at points best from the values at the others.

    Parameters
    ----------
    points : (K, D) ndarray
        In mean spacings.
    values : (K, D) ndarray
        Displacements; affine maps are free.
    betas : tuple of float
        Widths to choose from.

    Returns
    -------
    prior : Prior
    residual : (L,) ndarray
        Leave-one-out residuals of the pairs that were looked at.
    rows : (L,) ndarray
        Which these are.
    """
    rows = sampled(points)
    points, values = points[rows], values[rows]
    found = [
        (Prior(beta, noise), residual)
        for beta in betas
        for noise, residual in zip(
            _NOISES, residuals_of(points, values, beta, _NOISES), strict=True
        )
    ]
    # Wrong pairs weigh little, and so would a bent region if large errors were cut off.
    floor = min(float(np.median(r)) for _, r in found)
    losses = [float(np.log(r**2 + floor**2 + 1e-24).mean()) for _, r in found]
    prior, residual = found[int(np.argmin(losses))]
    return prior, residual, rows


def leave_one_out(points: Floats, values: Floats, prior: Prior) -> Floats:
    """Return by how much the other pairs fail to predict each pair, (K, D).

    Parameters
    ----------
    points : (K, D) ndarray
        In mean spacings.
    values : (K, D) ndarray
        Displacements.
    prior : Prior
    """
    return LeaveOut.of(points, values, prior).residuals()


@dataclass(frozen=True)
class LeaveOut:
    """Predictions of pairs from the others: Dubrule's matrix ``Q (Q' K Q + noise)^-1 Q'``.

    Parameters
    ----------
    rest, half : (K, L) and (L, K) ndarrays
        The factors of the matrix.
    product : (K, D) ndarray
        Of the matrix and the values.
    diagonal : (K,) ndarray
    """

    rest: Floats
    half: Floats
    product: Floats
    diagonal: Floats

    @classmethod
    def of(cls, points: Floats, values: Floats, prior: Prior) -> LeaveOut:
        """Factorise the covariance of (K, D) points, in mean spacings, with (K, D) values."""
        system = prior.covariance(cdist(points, points))
        rest = _without_trend(points)
        inner = rest.T @ system @ rest
        inner[np.diag_indices_from(inner)] += prior.noise
        half = cho_solve(cho_factor(inner, lower=True), rest.T)
        return cls(rest, half, rest @ (half @ values), np.einsum("ij,ji->i", rest, half))

    def of_values(self, values: Floats) -> LeaveOut:
        """Return the same for other values at the same points."""
        return replace(self, product=self.rest @ (self.half @ values))

    def residuals(self) -> Floats:
        """Return by how much all others fail to predict each pair, (K, D)."""
        return np.asarray(self.product / self.diagonal[:, None])

    def residuals_without(self, row: int, at: Rows) -> Floats:
        """Return the same of the pairs `at`, (L, D), where another pair is not known either."""
        both = self.rest[row] @ self.half[:, at]
        left = self.product[at] * self.diagonal[row] - both[:, None] * self.product[row]
        return np.asarray(left / (self.diagonal[at] * self.diagonal[row] - both**2)[:, None])


def residuals_of(
    points: Floats, values: Floats, beta: float, noises: tuple[float, ...]
) -> list[Floats]:
    """Return the lengths (K,) of the leave-one-out residuals of priors of one width.

    Parameters
    ----------
    points, values : (K, D) ndarray
        As for `leave_one_out`.
    beta : float
        Width of the covariance, in the unit of the points; infinite for the thin-plate spline.
    noises : tuple of float
        One prior each.
    """
    rest = _without_trend(points)
    covariance = Prior(beta, 0.0).covariance(cdist(points, points))
    energies, modes = eigh(rest.T @ covariance @ rest, driver="evd", overwrite_a=True)
    modes = rest @ modes
    energies = np.maximum(energies, 0.0)
    amounts, square = modes.T @ values, modes**2
    found = []
    for noise in noises:
        inverse = 1.0 / (energies + noise)
        weight = np.maximum(square @ inverse, _NOTHING)
        residual = (modes @ (inverse[:, None] * amounts)) / weight[:, None]
        found.append(np.linalg.norm(residual, axis=1))
    return found


def _without_trend(points: Floats) -> Floats:
    """Return an orthonormal basis (K, K - D - 1) of all that no affine map explains."""
    trend = np.column_stack([points - points.mean(axis=0), np.ones(len(points))])
    basis, triangle, _ = qr(trend, mode="full", pivoting=True)
    # Of points in a plane or on a line the trend has fewer columns of its own.
    size = np.abs(np.diag(triangle))
    return np.asarray(basis[:, int((size > _FLAT * size[0]).sum()) :])


def sampled(points: Floats) -> Rows:
    """Return rows of the (K, D) points a prior is chosen from: at most 400, sorted."""
    if len(points) <= _SPREAD + _PATCHES * _PATCH:
        return np.arange(len(points))
    order = np.random.default_rng(0).permutation(len(points))
    patches = cKDTree(points).query(points[order[-_PATCHES:]], k=_PATCH)[1]
    return np.unique(np.concatenate([order[:_SPREAD], patches.ravel()]))


def _consistent(
    points: Floats, targets: Floats, betas: tuple[float, ...]
) -> tuple[Prior, NDArray[np.bool_], Floats]:
    """Choose a prior, leave out pairs that contradict their neighbours, choose again."""
    kept = np.ones(len(points), dtype=bool)
    if not _NEIGHBOURS + points.shape[1] + 1 < len(points) <= _MOST_EXACT:
        prior, errors, rows = choose_prior(points, bent(points, targets), betas)
        residual = np.full(len(points), np.nan)
        residual[rows] = errors
        if len(points) > _MOST_EXACT:
            prior = Prior(prior.beta, max(prior.noise, _LEAST_NOISE))
        return prior, kept, residual
    for _ in range(_ROUNDS):
        x, y = points[kept], targets[kept]
        values = bent(x, y)
        prior = choose_prior(x, values, betas)[0]
        others = LeaveOut.of(x, values, prior)
        errors = np.linalg.norm(others.residuals(), axis=1)
        bad = _misleading(x, others, errors)
        if not bad.any() or len(x) - bad.sum() < _LEAST_KEPT * len(points):
            break
        kept[np.flatnonzero(kept)[bad]] = False
    residual = np.empty(len(points))
    residual[kept] = errors if len(errors) == kept.sum() else errors[~bad]
    residual[~kept] = np.nan
    return prior, kept, residual


def bent(points: Floats, targets: Floats) -> Floats:
    """Return what an affine map leaves of the displacements of (K, D) points to their targets."""
    return targets - fit_affine(points, targets, np.ones(len(points)), prior=1e-6)(points)


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
    points: Floats, targets: Floats, prior: Prior, lattice: Lattice
) -> tuple[Affine, DisplacementField]:
    """Fit the field of a prior, and hold it on a lattice."""
    affine = fit_affine(points, targets, np.ones(len(points)), prior=1e-6)
    values = targets - affine(points)
    if len(points) <= _MOST_EXACT:
        trend, weights = _weights(points, values, prior)
        held = _interpolated(points, weights, prior, lattice)
        return Affine(affine.matrix + trend[:-1].T, affine.offset + trend[-1]), held
    weight = np.full(len(points), 1.0 / prior.noise)
    equations = NormalEquations.assemble(lattice, points, weight, values)
    solution = Coherent(prior.beta, 1.0).solve(equations, tolerance=1e-4)
    return affine, lattice.field(solution.coefficients)


def _weights(points: Floats, values: Floats, prior: Prior) -> tuple[Floats, Floats]:
    """Return the affine trend (D + 1, D) of values, and the points' weights in the covariance."""
    rest = _without_trend(points)
    system = prior.covariance(cdist(points, points))
    system[np.diag_indices_from(system)] += prior.noise
    inner = cho_factor(rest.T @ system @ rest, lower=True, overwrite_a=True)
    weights = rest @ cho_solve(inner, rest.T @ values)
    design = np.column_stack([points, np.ones(len(points))])
    trend = np.linalg.lstsq(design, values - system @ weights, rcond=_FLAT)[0]
    return trend, weights


def _interpolated(
    points: Floats, weights: Floats, prior: Prior, lattice: Lattice
) -> DisplacementField:
    """Return the field of weighted points, equal at the nodes of a lattice.

    Splines need values beyond the ends of the lattice: what they are there does not matter
    some nodes further in.
    """
    more = [_BEYOND if n > 1 else 0 for n in lattice.nodes]
    axes = [
        o + h * np.arange(-m, n + m)
        for o, h, n, m in zip(lattice.origin, lattice.spacing, lattice.nodes, more, strict=True)
    ]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    flat = nodes.reshape(-1, lattice.ndim)
    out = np.empty((len(flat), weights.shape[1]))
    rows = max(1, _BATCH // len(points))
    for start in range(0, len(flat), rows):
        distance = cdist(flat[start : start + rows], points)
        out[start : start + rows] = prior.covariance(distance) @ weights
    values: NDArray[np.float64] = out.reshape(nodes.shape)
    for axis, num_nodes in enumerate(lattice.nodes):
        if num_nodes > 1:
            values = np.asarray(spline_filter1d(values, 3, axis=axis, mode="mirror"))
    inner = tuple(slice(m, m + n) for m, n in zip(more, lattice.nodes, strict=True))
    return lattice.field(np.ascontiguousarray(values[inner]))
