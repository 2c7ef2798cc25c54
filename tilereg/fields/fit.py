"""One interface to all field models: pairs and a model in, a transform and its story out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.agreement import agreement
from tilereg.errors import InputError
from tilereg.field import fit_field, mean_spacing, split_affine
from tilereg.fields.model import FieldModel
from tilereg.fields.pairs import Pairs, check_pairs, in_order
from tilereg.fields.polynomial import fit_polynomial
from tilereg.fields.radial import CONTROL_POINTS, fit_radial
from tilereg.kriging import MOST_EXACT, fit_kriging
from tilereg.lattice_sampling import PointMap, sample_on_lattice
from tilereg.transform import Transform

__all__ = ["ModelFit", "fit_model"]

Floats = NDArray[np.float64]
Box = tuple[Floats, Floats]

# Error of the lattice in mean spacings of the pairs: a fifth of a localisation error of a
# twentieth, which is small beside what the field itself is uncertain by.
_TOLERANCE = 0.01
# Of polynomials, which it holds but for rounding.
_EXACT = 1e-6
# Agreement with its neighbours below which a pair is left out where it cannot be weighted down.
_CONTRADICTED = 0.1


@dataclass(frozen=True, kw_only=True)
class ModelFit:
    """A fitted transform and how it was chosen.

    Parameters
    ----------
    transform : Transform
        The pull-back, micrometre.
    model : FieldModel
        As it was asked for, with the numbers that were chosen: the same model for other pairs.
    parameters : dict
        What was chosen, as plain numbers and names.
    losses : dict
        Residual of pairs that were predicted from others, in micrometre, by what was compared;
        empty where nothing was left to choose.
    weight : (K,) ndarray
        Of each pair: as given, times how far it agrees with its neighbours; zero for those that
        are left out.
    lattice_error : float, micrometre, or None
        Bound of the distance of the transform from the model inside the domain; None where the
        model states none.
    """

    transform: Transform
    model: FieldModel
    parameters: dict[str, Any]
    losses: dict[str, float]
    weight: Floats
    lattice_error: float | None


def fit_model(
    fixed: ArrayLike,
    moving: ArrayLike,
    *,
    model: FieldModel | str = "thin-plate",
    weight: ArrayLike | None = None,
    domain: tuple[ArrayLike, ArrayLike] | None = None,
) -> ModelFit:
    """Fit a field model to pairs of points.

    Parameters
    ----------
    fixed, moving : (K, D) array_like, micrometre
        Pairs, axes z, y, x or y, x.
    model : FieldModel or str
        What is fitted, or its name alone.
    weight : (K,) array_like, optional
        Confidence in each pair; 0 leaves it out. Default 1. Kriging takes those above zero alike.
    domain : pair of (D,) array_like, micrometre, optional
        Box in which the field may vary; polynomials of a degree above one, which grow fast, vary
        no further than the pairs reach. Outside, the displacement is that of the nearest point of
        the box. Default: the box of the fixed points.

    Returns
    -------
    ModelFit

    Raises
    ------
    InputError
        If the pairs are too few or not finite, the model has no such parameter or cannot be
        fitted, or a lattice cannot hold it.

    Notes
    -----
    The order of the pairs changes nothing, and the unit nothing but units. Every model leaves
    affine maps free and ends as an affine map and a lattice of cubic B-splines, so that files,
    warps and bounds are the same for all.

    Examples
    --------
    >>> import numpy as np
    >>> fixed = np.random.default_rng(0).uniform(0, 90, (200, 3))
    >>> moving = fixed + 4e-4 * fixed[:, ::-1] ** 2
    >>> fit = fit_model(fixed, moving, model="polynomial")
    >>> fit.parameters, np.abs(fit.transform(fixed) - moving).max() < 1e-9
    ({'degree': 2}, np.True_)
    """
    wanted = FieldModel(name=model) if isinstance(model, str) else model
    x, y, trust = check_pairs(fixed, moving, weight)
    rows = in_order(x, y, trust)
    if not len(rows):
        raise InputError("Cannot fit a field: no pair has a weight above zero.")
    x, y, trust = x[rows], y[rows], trust[rows]
    box = _box(x, domain)
    fit = _FITS[wanted.name](x, y, trust, wanted, box)
    weights = np.zeros(len(np.asarray(fixed)))
    weights[rows] = fit.weight
    return replace(fit, weight=weights)


def _box(points: Floats, domain: tuple[ArrayLike, ArrayLike] | None) -> Box:
    """Return the corners of a domain, of the points unless given."""
    if domain is None:
        return points.min(axis=0), points.max(axis=0)
    low, high = (np.asarray(side, dtype=np.float64) for side in domain)
    if low.shape != (points.shape[1],) or high.shape != low.shape or not (low <= high).all():
        raise InputError(
            f"Invalid domain {low.tolist()} to {high.tolist()} um. Two corners of "
            f"{points.shape[1]} axes are needed, the lower first."
        )
    return low, high


def _thin_plate(x: Floats, y: Floats, trust: Floats, model: FieldModel, box: Box) -> ModelFit:
    """Fit a thin-plate spline, which lives on its lattice."""
    fit = fit_field(
        x,
        y,
        weight=trust,
        smoothing=model.smoothing,
        spacing=model.spacing,
        domain=box,
        robust=model.robust,
    )
    return ModelFit(
        transform=fit.transform,
        model=replace(model, smoothing=fit.smoothing),
        parameters={"smoothing": fit.smoothing},
        losses={f"smoothing={s:.3g}": loss for s, loss in fit.losses.items()},
        weight=fit.weight,
        lattice_error=0.0,
    )


def _kriging(x: Floats, y: Floats, trust: Floats, model: FieldModel, box: Box) -> ModelFit:
    """Fit by kriging; of many pairs those that contradict their neighbours are told before."""
    kept = np.ones(len(x), dtype=bool)
    if len(x) > MOST_EXACT:
        unit = mean_spacing(x)
        kept = agreement(x / unit, y / unit, trust) > _CONTRADICTED
    fit = fit_kriging(x[kept], y[kept], domain=box)
    kept[kept] = fit.is_kept
    prior = fit.prior
    known = fit.residual[np.isfinite(fit.residual)]
    return ModelFit(
        transform=fit.transform,
        model=model,
        parameters={
            "beta_um": prior.beta * fit.unit if math.isfinite(prior.beta) else None,
            "noise": prior.noise,
            "reach_um": prior.reach * fit.unit if math.isfinite(prior.reach) else None,
        },
        losses={"leave-one-out": float(np.sqrt((known**2).mean()))} if len(known) else {},
        weight=trust * kept,
        lattice_error=None,
    )


def _radial(x: Floats, y: Floats, trust: Floats, model: FieldModel, box: Box) -> ModelFit:
    """Fit radial functions, and hold them on a lattice."""
    pairs = Pairs.of(x, y, trust, robust=model.robust)
    fit = fit_radial(
        pairs,
        kernel=model.kernel or "thin_plate_spline",
        smoothing=model.smoothing,
        degree=model.degree,
        beta=model.beta,
        control_points=model.control_points or CONTROL_POINTS,
    )
    reached = _reached(x, box, fit.degree)
    transform, error = _held(fit.map, pairs, reached, model.tolerance, at=fit.map.places)
    beta = fit.beta if math.isfinite(fit.beta) else None
    return ModelFit(
        transform=transform,
        model=replace(model, smoothing=fit.smoothing, beta=beta),
        parameters={
            "kernel": fit.map.basis.kernel,
            "smoothing": fit.smoothing,
            "degree": fit.degree,
            "control_points": fit.num_centres,
        }
        | ({} if beta is None else {"beta_um": beta}),
        losses=_by_width(fit.losses) if beta is not None else _by_smoothing(fit.losses),
        weight=pairs.trusted,
        lattice_error=error,
    )


def _by_smoothing(losses: dict[tuple[float, float], float]) -> dict[str, float]:
    """Name losses by the smoothing."""
    return {f"smoothing={smoothing:.3g}": loss for (_, smoothing), loss in losses.items()}


def _by_width(losses: dict[tuple[float, float], float]) -> dict[str, float]:
    """Name losses by the width, each with the smoothing that is the best there."""
    best: dict[str, float] = {}
    for (beta, _), loss in losses.items():
        name = f"beta={beta:.3g} um"
        best[name] = min(loss, best.get(name, math.inf))
    return best


def _polynomial(x: Floats, y: Floats, trust: Floats, model: FieldModel, box: Box) -> ModelFit:
    """Fit a polynomial, and hold it on a lattice as far as the pairs reach."""
    pairs = Pairs.of(x, y, trust, robust=model.robust)
    fit = fit_polynomial(pairs, degree=model.degree)
    reached = _reached(x, box, fit.degree)
    transform, error = _held(fit.map, pairs, reached, _EXACT * pairs.unit)
    return ModelFit(
        transform=transform,
        model=replace(model, degree=fit.degree),
        parameters={"degree": fit.degree},
        losses={f"degree={degree}": loss for degree, loss in fit.losses.items()},
        weight=pairs.trusted,
        lattice_error=error,
    )


def _reached(points: Floats, box: Box, degree: int) -> Box:
    """Return the box in which a polynomial of some degree may vary."""
    if degree == 1:
        return box
    low, high = points.min(axis=0), points.max(axis=0)
    return np.clip(box[0], low, high), np.clip(box[1], low, high)


def _held(
    map_: PointMap, pairs: Pairs, box: Box, tolerance: float | None, at: Floats | None = None
) -> tuple[Transform, float]:
    """Hold a map on a lattice, its affine part kept apart as the pairs see it."""
    held = sample_on_lattice(
        map_,
        *box,
        affine=pairs.world_affine,
        tolerance=_TOLERANCE * pairs.unit if tolerance is None else tolerance,
        at=at,
    )
    field = held.transform.field
    if field is None:
        return held.transform, held.error
    seen = pairs.outward(pairs.points)
    return Transform(*split_affine(held.transform.affine, field, seen)), held.error


_FITS: dict[str, Callable[[Floats, Floats, Floats, FieldModel, Box], ModelFit]] = {
    "thin-plate": _thin_plate,
    "kriging": _kriging,
    "radial": _radial,
    "polynomial": _polynomial,
}
