"""How stiff a radial field is: the smoothing, and the width, that predict pairs best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilereg.fields.basis import Basis
from tilereg.kriging.choice import sampled
from tilereg.kriging.leave_out import Trend, residuals_of_inner

__all__ = ["SMOOTHINGS", "Stiffness", "choose_stiffness"]

Floats = NDArray[np.float64]

SMOOTHINGS = tuple(10.0 ** (0.5 * k) for k in range(24, -19, -1))
"""Amounts to choose from, in mean spacings, the stiffest first."""

# Pairs that a stiffness is chosen from: some from everywhere, most in patches of neighbours.
_SPREAD, _PATCHES = 250, 25
# Pairs are predicted alike where they are missed by less, in mean spacings; and two losses are.
_ALIKE, _SAME = 0.003, 1e-6
# Smoothing that leaves affine maps alone, and next to none, in mean energies.
_STIFF, _SOFT = 1e8, 1e-13


@dataclass(frozen=True)
class Stiffness:
    """What was chosen.

    Parameters
    ----------
    basis : Basis
    smoothing : float
        In mean spacings.
    losses : dict
        Leave-one-out residual, in mean spacings, by width and smoothing.
    """

    basis: Basis
    smoothing: float
    losses: dict[tuple[float, float], float]


def choose_stiffness(
    points: Floats,
    values: Floats,
    weight: Floats,
    bases: tuple[Basis, ...],
    smoothings: tuple[float, ...] = SMOOTHINGS,
) -> Stiffness:
    """Choose the basis and the smoothing that predict each pair best from all others.

    Parameters
    ----------
    points, values : (K, D) ndarray
        In mean spacings. Of more than 1000 pairs some are looked at, most of them in patches that
        are as dense as all are: how stiff a deformation is does not depend on how many pairs
        there are.
    weight : (K,) ndarray
    bases : tuple of Basis
        The stiffest first.
    smoothings : tuple of float
        The stiffest first.

    Notes
    -----
    The residuals are those of Dubrule (1983), for all smoothings from one decomposition. The
    logarithm of their squares is averaged, so that wrong pairs weigh little.
    """
    if len(bases) == len(smoothings) == 1:
        return Stiffness(bases[0], smoothings[0], {})
    rows = sampled(points, _SPREAD, _PATCHES)
    found = [
        _residuals(points[rows], values[rows], weight[rows], basis, smoothings) for basis in bases
    ]
    floor = max(_ALIKE, min(float(np.median(each, axis=0).min()) for each in found))
    share = weight[rows] / weight[rows].sum()
    losses = {
        (basis.beta, smoothing): float(np.exp(0.5 * loss))
        for basis, each in zip(bases, found, strict=True)
        for smoothing, loss in zip(smoothings, share @ np.log(each**2 + floor**2), strict=True)
    }
    # Of those that predict alike, the first is the stiffest.
    least = min(losses.values())
    beta, smoothing = next(key for key, loss in losses.items() if loss <= (1 + _SAME) * least)
    basis = next(basis for basis in bases if basis.beta == beta)
    return Stiffness(basis, smoothing, losses)


def _residuals(
    points: Floats, values: Floats, weight: Floats, basis: Basis, smoothings: tuple[float, ...]
) -> Floats:
    """Return the lengths (K, L) of the leave-one-out residuals of L smoothings."""
    # Weights make the noise differ from pair to pair; multiplied by their roots all have one.
    root = np.sqrt(weight)[:, None]
    trend = Trend(root * basis.polynomial(points))
    inner = trend.inner(root * basis.radial(points, points) * root.T)
    size = float(np.trace(inner)) / len(inner)
    noises = tuple(min(max(smoothing / size, _SOFT), _STIFF) for smoothing in smoothings)
    return residuals_of_inner(trend, inner / size, root * values, noises) / root
