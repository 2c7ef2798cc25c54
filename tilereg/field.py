"""Fit the pull-back field to correspondences: a robust smoothing thin-plate spline.

The spline is held on a lattice of cubic B-splines, so that cost is linear in the pairs and the
result is evaluated chunk by chunk without any sum over control points. Affine maps are free and
are kept apart, so the field itself is small wherever there is nothing to see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from tilereg.affine import fit_affine
from tilereg.errors import InputError
from tilereg.lattice import Lattice, NormalEquations
from tilereg.points import check_points
from tilereg.smoothing import Solution, ThinPlate
from tilereg.transform import Affine, DisplacementField, Transform

__all__ = ["FieldFit", "cover", "fit_field", "mean_spacing", "split_affine"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_SMOOTHINGS = tuple(10.0**k for k in (6, 5, 4, 3, 2, 1, 0, -1))
_FOLDS = 5
# Scales and weights are refitted so often, alike when a smoothing is judged and used.
_ROUNDS = 3
_PLAIN_ROUNDS = 2
_TUKEY = 4.685
_NEIGHBOURS = 9
_SPACINGS_A_NODE = 2.0
_MOST_NODES = 200_000
_FEWEST_NODES = 3000
_MOST_ASKED = 20_000


@dataclass(frozen=True, kw_only=True)
class FieldFit:
    """A fitted transform and how it was chosen.

    Parameters
    ----------
    transform : Transform
        The pull-back, micrometre.
    smoothing : float
        Weight of the bending energy in units of the mean spacing of the pairs.
    losses : dict
        Held-out root mean square residual in micrometre by smoothing; empty where it was given.
    weight : (K,) ndarray
        Robust weight of each pair, zero for those that contradict their neighbours.
    """

    transform: Transform
    smoothing: float
    losses: dict[float, float]
    weight: Floats


def fit_field(
    fixed: ArrayLike,
    moving: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    smoothing: float | None = None,
    spacing: float | None = None,
    domain: tuple[ArrayLike, ArrayLike] | None = None,
    robust: bool = True,
) -> FieldFit:
    """Fit a smoothing thin-plate spline to pairs of points, wrong pairs weighted down.

    Parameters
    ----------
    fixed, moving : (K, D) array_like, micrometre
        Pairs, axes z, y, x or y, x.
    weight : (K,) array_like, optional
        Confidence in each pair, 0 to 1. Default 1.
    smoothing : float, optional
        Weight of ``int |D^2 u|^2`` against the squared residuals over their variance, lengths in
        units of the mean spacing of the pairs. Default: the one that predicts held-out pairs
        best.
    spacing : float, micrometre, optional
        Distance of lattice nodes. Default twice the mean spacing of the pairs,
        more where that makes more than one node for two pairs.
    domain : pair of (D,) array_like, micrometre, optional
        Box in which the field may vary. Default: the box of the fixed points.
    robust : bool
        Whether pairs that contradict their neighbours are weighted down.

    Returns
    -------
    FieldFit

    Raises
    ------
    InputError
        If there are fewer than D + 1 pairs, the shapes differ, or a number is out of range.

    Notes
    -----
    The finite-element form of the smoothing thin-plate spline (Duchon 1977; Wahba 1990). Tukey's
    biweight of the residuals makes it robust; the weights are refitted three times.
    """
    x, y = check_points(fixed, "fixed points"), check_points(moving, "moving points")
    ndim = x.shape[1]
    if x.shape != y.shape or len(x) < ndim + 1:
        raise InputError(
            f"Cannot fit a field to {x.shape} fixed and {y.shape} moving points. At least "
            f"{ndim + 1} pairs of the same dimension are needed."
        )
    trust = np.ones(len(x)) if weight is None else np.asarray(weight, dtype=np.float64)
    if trust.shape != (len(x),) or not (trust >= 0).all() or not trust.any():
        raise InputError("Invalid weights. One number >= 0 a pair is needed, some above zero.")
    if smoothing is not None and not smoothing >= 0:
        raise InputError(f"Invalid smoothing {smoothing}. It must be >= 0.")
    if spacing is not None and not spacing > 0:
        raise InputError(f"Invalid spacing {spacing} um of the lattice. It must be > 0.")
    unit = mean_spacing(x)
    centre = x.mean(axis=0)
    low, high = (x.min(axis=0), x.max(axis=0)) if domain is None else domain
    problem = _Problem(
        points=(x - centre) / unit,
        targets=(y - centre) / unit,
        trust=trust / trust.max(),
        lattice=cover(
            (np.asarray(low) - centre) / unit,
            (np.asarray(high) - centre) / unit,
            _SPACINGS_A_NODE if spacing is None else spacing / unit,
            max(_FEWEST_NODES, len(x) // 2) if spacing is None else _MOST_NODES,
        ),
        robust=robust,
    )
    losses = {} if smoothing is not None else problem.losses()
    chosen = min(losses, key=lambda s: losses[s]) if smoothing is None else smoothing
    affine, field, trusted = problem.fit(chosen, np.arange(len(x)))
    world = Affine(affine.matrix, unit * affine.offset + centre - affine.matrix @ centre)
    scaled = DisplacementField(
        field.coefficients * unit, field.origin * unit + centre, field.spacing * unit
    )
    return FieldFit(
        transform=Transform(*split_affine(world, scaled, x)),
        smoothing=chosen,
        losses={s: loss * unit for s, loss in losses.items()},
        weight=trusted,
    )


def split_affine(
    affine: Affine, field: DisplacementField, points: Floats
) -> tuple[Affine, DisplacementField]:
    """Move the affine part of a field, as seen at points, into the affine map.

    The sum stays the same map inside the field's domain; what is left of the field is small
    where it has to be continued outside.
    """
    design = np.column_stack([points, np.ones(len(points))])
    part = np.linalg.lstsq(design, field(points), rcond=1e-9)[0]
    axes = [
        o + s * np.arange(n)
        for o, s, n in zip(field.origin, field.spacing, field.nodes, strict=True)
    ]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    linear = nodes @ part[:-1] + part[-1]
    rest = DisplacementField(field.coefficients - linear, field.origin, field.spacing)
    return Affine(affine.matrix + part[:-1].T, affine.offset + part[-1]), rest


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Pairs in units of their mean spacing, with the lattice that holds their field."""

    points: Floats
    targets: Floats
    trust: Floats
    lattice: Lattice
    robust: bool

    def losses(self) -> dict[float, float]:
        """Return the held-out residual of every smoothing, from stiff to soft."""
        part = np.random.default_rng(0).permutation(len(self.points)) % _FOLDS
        folds = range(1 if len(part) >= 1000 else _FOLDS)
        losses: dict[float, float] = {}
        floor = math.inf

        def loss_of(place: int) -> float:
            nonlocal floor
            residuals = []
            for fold in folds:
                affine, field, _ = self.fit(_SMOOTHINGS[place], np.flatnonzero(part != fold))
                judge = part == fold
                predicted = affine(self.points[judge]) + field(self.points[judge])
                residuals.append(np.linalg.norm(predicted - self.targets[judge], axis=1))
            every = np.concatenate(residuals)
            # Wrong pairs weigh little, and so would a bent region if large errors were cut off.
            floor = min(floor, float(np.median(every)))
            loss = float(np.exp(0.5 * np.log(every**2 + floor**2 + 1e-24).mean()))
            losses[_SMOOTHINGS[place]] = loss
            return loss

        best = middle = len(_SMOOTHINGS) // 2
        least = loss_of(middle)
        for step in (-1, 1):
            while 0 <= best + step < len(_SMOOTHINGS) and (loss := loss_of(best + step)) < least:
                best, least = best + step, loss
            if best != middle:
                break
        return losses

    def fit(self, smoothing: float, rows: Rows) -> tuple[Affine, DisplacementField, Floats]:
        """Fit to some of the pairs; return affine, field and the robust weights."""
        x, y, trust = self.points[rows], self.targets[rows], self.trust[rows]
        affine = fit_affine(x, y, trust, prior=1e-6)
        rest = y - affine(x)
        weight = trust
        scale = _scale(rest)
        near = _neighbours(x)
        solution: Solution | None = None
        for _ in range(_ROUNDS if self.robust else _PLAIN_ROUNDS):
            equations = NormalEquations.assemble(self.lattice, x, weight / scale**2, rest)
            solver = ThinPlate(smoothing, max(self.lattice.spacing))
            solution = solver.solve(equations, start=solution, tolerance=1e-4)
            field = self.lattice.field(solution.coefficients)
            residual = np.linalg.norm(field(x) - rest, axis=1)
            scale = max(_scale(field(x) - rest), 1e-9)
            if not self.robust:
                continue
            # Where all pairs of a region are missed, the field is too stiff, not they wrong.
            local = np.maximum(np.median(residual[near], axis=1), 1.5 * scale)
            weight = trust * np.maximum(0, 1 - (residual / (_TUKEY * local)) ** 2) ** 2
            if not weight.any():
                weight = trust
        return affine, field, weight


def _neighbours(points: Floats) -> Rows:
    """Return rows of the points nearest to each point, itself left out."""
    count = min(_NEIGHBOURS, len(points) - 1)
    rows = cKDTree(points).query(points, k=count + 1)[1]
    return np.asarray(rows[:, 1:] if count > 0 else rows[:, None], dtype=np.int64)


def _scale(residual: Floats) -> float:
    """Return the standard deviation an axis from the median of squared residuals."""
    square = (residual**2).sum(axis=1)
    quantile = {2: 1.386, 3: 2.366}[residual.shape[1]]
    return math.sqrt(max(float(np.median(square)), 1e-24) / quantile)


def mean_spacing(points: Floats) -> float:
    """Return the mean distance of nearest neighbours, coincident points taken as one.

    Of very many points some tell, the same ones in whatever order.
    """
    if len(points) < 2:
        return 1.0
    asked = points
    if len(points) > _MOST_ASKED:
        asked = points[np.lexsort(points.T)[:: -(-len(points) // _MOST_ASKED)]]
    distance = cKDTree(points, balanced_tree=False).query(asked, k=2)[0][:, 1]
    if not distance.all():
        return mean_spacing(np.unique(points, axis=0))
    return float(distance.mean())


def cover(low: Floats, high: Floats, spacing: float, most: int) -> Lattice:
    """Return a lattice over a box with at most so many nodes."""
    lattice = Lattice.cover(low, high, spacing)
    while lattice.size > min(most, _MOST_NODES):
        spacing *= 1.25
        lattice = Lattice.cover(low, high, spacing)
    return lattice
