"""Polynomial fields of low degree, which a lattice of cubic B-splines holds exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.errors import InputError
from tilereg.fields.basis import monomials
from tilereg.fields.model import MOST_DEGREE
from tilereg.fields.pairs import Pairs
from tilereg.kriging.leave_out import FLAT
from tilereg.points import check_points
from tilereg.transform import Affine

__all__ = ["PolynomialFit", "PolynomialMap", "fit_polynomial"]

Floats = NDArray[np.float64]

# Pairs are predicted alike where they are missed by less, in mean spacings; and two losses are.
_ALIKE, _SAME = 0.003, 1e-6
_LEAST_FREEDOM = 1e-9


@dataclass(frozen=True, eq=False)
class PolynomialMap:
    """The exact map ``x -> A x + b + p(x)``.

    Parameters
    ----------
    degree : int
    terms : (R, D) ndarray
        Of the monomials of centred points over `reach`, in mean spacings.
    reach : float, micrometre
    affine : Affine
        In micrometre.
    unit : float, micrometre
        Mean spacing of the pairs.
    centre : (D,) ndarray, micrometre
    """

    degree: int
    terms: Floats
    reach: float
    affine: Affine
    unit: float
    centre: Floats

    def __call__(self, points: ArrayLike) -> Floats:
        """Map (N, D) fixed points to the moving world, micrometre."""
        array = check_points(points)
        design = monomials((array - self.centre) / self.reach, self.degree)
        return np.asarray(self.affine(array) + self.unit * (design @ self.terms))


@dataclass(frozen=True, kw_only=True)
class PolynomialFit:
    """A polynomial and how its degree was chosen.

    Parameters
    ----------
    map : PolynomialMap
    degree : int
    losses : dict
        Leave-one-out residual in micrometre by degree; empty where it was given.
    """

    map: PolynomialMap
    degree: int
    losses: dict[int, float]


def fit_polynomial(pairs: Pairs, *, degree: int | None = None) -> PolynomialFit:
    """Fit a polynomial of total degree 1 to 3 to pairs by weighted least squares.

    Parameters
    ----------
    pairs : Pairs
    degree : int, optional
        Default: the one that predicts each pair best from the others, the lowest of those that
        do alike.

    Returns
    -------
    PolynomialFit

    Raises
    ------
    InputError
        If the degree is out of range, or there are not more pairs than monomials.

    Notes
    -----
    The space of polynomials of a total degree is that of any affine coordinates: neither pose nor
    unit of the pairs matters. Leave-one-out residuals are ``r_i / (1 - h_i)`` with the leverages
    h, and the logarithm of their squares is averaged, so that wrong pairs weigh little.
    """
    if degree is not None and not 1 <= degree <= MOST_DEGREE:
        raise InputError(f"Invalid degree {degree} of a polynomial. It must be 1 to {MOST_DEGREE}.")
    reach = float(np.linalg.norm(pairs.points, axis=1).max())
    degrees = range(1, MOST_DEGREE + 1) if degree is None else (degree,)
    solved = {}
    for candidate in degrees:
        design = monomials(pairs.points / reach, candidate)
        if len(pairs) > design.shape[1]:
            solved[candidate] = _solved(design, pairs.values, pairs.weight)
    if not solved:
        raise InputError(
            f"Cannot fit a polynomial of degree {degree} to pairs at {len(pairs)} places. Its "
            f"{design.shape[1]} monomials need more places than that; use a lower degree."
        )
    losses = _losses({d: errors for d, (_, errors) in solved.items()}, pairs.weight)
    least = min(losses.values())
    chosen = next(d for d, loss in losses.items() if loss <= (1 + _SAME) * least)
    map_ = PolynomialMap(
        degree=chosen,
        terms=solved[chosen][0],
        reach=reach * pairs.unit,
        affine=pairs.world_affine,
        unit=pairs.unit,
        centre=pairs.centre,
    )
    return PolynomialFit(
        map=map_,
        degree=chosen,
        losses={d: loss * pairs.unit for d, loss in losses.items()} if degree is None else {},
    )


def _solved(design: Floats, values: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Return the terms (R, D), of least size, and the leave-one-out residuals (K,)."""
    root = np.sqrt(weight)[:, None]
    left, energies, right = np.linalg.svd(root * design, full_matrices=False)
    kept = energies > FLAT * energies[0]
    left, right = left[:, kept], right[kept]
    amounts = left.T @ (root * values)
    terms = right.T @ (amounts / energies[kept][:, None])
    freedom = np.maximum(1.0 - (left**2).sum(axis=1), _LEAST_FREEDOM)
    return terms, np.linalg.norm(values - design @ terms, axis=1) / freedom


def _losses(errors: dict[int, Floats], weight: Floats) -> dict[int, float]:
    """Return the leave-one-out residual of every degree, in mean spacings."""
    floor = max(_ALIKE, min(float(np.median(each)) for each in errors.values()))
    share = weight / weight.sum()
    return {
        degree: float(np.exp(0.5 * share @ np.log(each**2 + floor**2)))
        for degree, each in errors.items()
    }
