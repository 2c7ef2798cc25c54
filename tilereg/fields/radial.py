"""Exact radial fields through pairs, like `scipy.interpolate.RBFInterpolator`, smoothing chosen.

With a Gaussian it is the kernel field of Coherent Point Drift (Myronenko & Song 2010) with its
affine maps free; with ``r^2 log r`` the thin-plate spline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.blas import one_thread
from tilereg.errors import InputError
from tilereg.fields.basis import Basis
from tilereg.fields.model import KERNELS, MOST_DEGREE
from tilereg.fields.pairs import Pairs
from tilereg.fields.penalised import fit_all, fit_some
from tilereg.fields.stiffness import SMOOTHINGS, choose_stiffness
from tilereg.kriging.choice import BETAS
from tilereg.points import check_points
from tilereg.sampling import farthest_points
from tilereg.transform import Affine

__all__ = ["CONTROL_POINTS", "RadialFit", "RadialMap", "fit_radial"]

Floats = NDArray[np.float64]

CONTROL_POINTS = 2000
"""Most centres unless another number is given."""

_FEWEST_CONTROL_POINTS, _MOST_CONTROL_POINTS = 25, 5000
_BATCH = 1_000_000


@dataclass(frozen=True, eq=False)
class RadialMap:
    """The exact map ``x -> A x + b + sum_k w_k phi(|x - c_k|) + p(x)``.

    Parameters
    ----------
    basis : Basis
    centres, weights : (M, D) ndarray
        In mean spacings of the pairs.
    terms : (R, D) ndarray
        Of the monomials.
    affine : Affine
        In mean spacings.
    unit : float, micrometre
        Mean spacing of the pairs.
    centre : (D,) ndarray, micrometre
    """

    basis: Basis
    centres: Floats
    weights: Floats
    terms: Floats
    affine: Affine
    unit: float
    centre: Floats

    @property
    def places(self) -> Floats:
        """The centres (M, D) in micrometre."""
        return np.asarray(self.centres * self.unit + self.centre)

    def __call__(self, points: ArrayLike) -> Floats:
        """Map (N, D) fixed points to the moving world, micrometre; memory is linear in N."""
        inner = (check_points(points) - self.centre) / self.unit
        out = self.affine(inner) + self.basis.polynomial(inner) @ self.terms
        rows = max(1, _BATCH // len(self.centres))
        with one_thread():
            for start in range(0, len(inner), rows):
                part = slice(start, start + rows)
                out[part] += self.basis.radial(inner[part], self.centres) @ self.weights
        return np.asarray(out * self.unit + self.centre)


@dataclass(frozen=True, kw_only=True)
class RadialFit:
    """An exact field and how it was chosen.

    Parameters
    ----------
    map : RadialMap
    degree : int
    smoothing : float
        As `scipy.interpolate.RBFInterpolator` has it for coordinates in micrometre.
    beta : float, micrometre
        Width of the Gaussian; infinite for the other kernels.
    num_centres : int
    losses : dict
        Leave-one-out residual in micrometre by width in micrometre and smoothing; empty where
        nothing was left to choose.
    """

    map: RadialMap
    degree: int
    smoothing: float
    beta: float
    num_centres: int
    losses: dict[tuple[float, float], float]


def fit_radial(
    pairs: Pairs,
    *,
    kernel: str = "thin_plate_spline",
    smoothing: float | None = None,
    degree: int | None = None,
    beta: float | None = None,
    control_points: int = CONTROL_POINTS,
) -> RadialFit:
    """Fit a field of radial functions and a polynomial to pairs.

    Parameters
    ----------
    pairs : Pairs
    kernel, smoothing, degree
        As in `scipy.interpolate.RBFInterpolator`, for coordinates in micrometre: with as many
        control points as pairs the field is its interpolant with ``smoothing / weight``. Defaults:
        the thin-plate spline, the smoothing that predicts each pair best from the others, and the
        least degree with which affine maps are free.
    beta : float, micrometre, optional
        Width of the Gaussian, ``1 / (sqrt(2) epsilon)``. Default: chosen like the smoothing.
    control_points : int
        Most centres. Of more pairs so many, farthest apart, are centres, and all are fitted.

    Returns
    -------
    RadialFit

    Raises
    ------
    InputError
        If the pairs are too few, a number is out of range, or the system is singular.

    Notes
    -----
    Time grows with the cube of the control points, and with the pairs times their square where
    those are more; memory with their square. The pairs alone decide, not their order nor the
    unit: in another unit the same smoothing is another number.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.interpolate import RBFInterpolator
    >>> fixed = np.random.default_rng(0).uniform(0, 9, (50, 2))
    >>> moving = fixed + np.sin(fixed)
    >>> fit = fit_radial(Pairs.of(fixed, moving), smoothing=0.1)
    >>> np.allclose(fit.map(fixed), RBFInterpolator(fixed, moving, smoothing=0.1)(fixed))
    True
    """
    _check_numbers(smoothing, beta, control_points)
    basis = _basis(pairs, kernel, degree)
    scale = pairs.unit ** KERNELS[kernel].power
    with one_thread():
        chosen = choose_stiffness(
            pairs.points,
            pairs.values,
            pairs.weight,
            _widths(basis, None if beta is None else beta / pairs.unit),
            tuple(s * float(pairs.weight.max()) for s in SMOOTHINGS)
            if smoothing is None
            else (smoothing / scale,),
        )
        map_ = _fitted(pairs, chosen.basis, chosen.smoothing, control_points)
    return RadialFit(
        map=map_,
        degree=basis.degree,
        smoothing=chosen.smoothing * scale,
        beta=chosen.basis.beta * pairs.unit,
        num_centres=len(map_.centres),
        losses={
            (width * pairs.unit, amount * scale): loss * pairs.unit
            for (width, amount), loss in chosen.losses.items()
        },
    )


def _check_numbers(smoothing: float | None, beta: float | None, control_points: int) -> None:
    """Raise unless all numbers are in their ranges."""
    if smoothing is not None and not (smoothing >= 0 and math.isfinite(smoothing)):
        raise InputError(f"Invalid smoothing {smoothing}. It must be >= 0 and finite.")
    if beta is not None and not (beta > 0 and math.isfinite(beta)):
        raise InputError(f"Invalid beta {beta} um. It must be > 0 and finite.")
    if not _FEWEST_CONTROL_POINTS <= control_points <= _MOST_CONTROL_POINTS:
        raise InputError(
            f"Invalid control_points {control_points}. Their number must be from "
            f"{_FEWEST_CONTROL_POINTS} to {_MOST_CONTROL_POINTS}: time and memory grow with its "
            "square. For finer fields use the model 'thin-plate' or 'kriging'."
        )


def _basis(pairs: Pairs, kernel: str, degree: int | None) -> Basis:
    """Return the functions that fit pairs, or say why they cannot."""
    if kernel not in KERNELS:
        raise InputError(f"Invalid kernel '{kernel}'. Known kernels: {', '.join(KERNELS)}.")
    least = KERNELS[kernel].least_degree
    wanted = least if degree is None else degree
    if not least <= wanted <= MOST_DEGREE:
        raise InputError(
            f"Invalid degree {wanted} beside the kernel '{kernel}'. It must be from {least} to "
            f"{MOST_DEGREE}."
        )
    reach = float(np.linalg.norm(pairs.points, axis=1).max())
    basis = Basis(kernel, wanted, reach=reach)
    num_terms = basis.polynomial(pairs.points[:1]).shape[1]
    if len(pairs) <= num_terms:
        raise InputError(
            f"Cannot fit a radial field of degree {wanted} to pairs at {len(pairs)} places. At "
            f"least {num_terms + 1} are needed; use a lower degree or another model."
        )
    return basis


def _widths(basis: Basis, beta: float | None) -> tuple[Basis, ...]:
    """Return the bases to choose from, the widest first; beta in mean spacings."""
    if basis.kernel != "gaussian":
        return (basis,)
    betas = BETAS if beta is None else (beta,)
    return tuple(replace(basis, beta=width) for width in betas if math.isfinite(width))


def _fitted(pairs: Pairs, basis: Basis, smoothing: float, control_points: int) -> RadialMap:
    """Solve for the weights of the radial functions and of the monomials."""
    places = pairs.points, pairs.values, pairs.weight
    if len(pairs) <= control_points:
        centres = pairs.points
        weights, terms = fit_all(*places, basis, smoothing)
    else:
        # From the middle outwards, so that neither order nor pose of the pairs matters.
        middle = int(np.argmin((pairs.points**2).sum(axis=1)))
        centres = pairs.points[farthest_points(pairs.points, control_points, start=middle)]
        weights, terms = fit_some(*places, centres, basis, smoothing)
    return RadialMap(
        basis, centres, weights, terms, affine=pairs.affine, unit=pairs.unit, centre=pairs.centre
    )
