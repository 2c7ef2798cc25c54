"""Kriging of pairs that come in parts, none of which need stay in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilereg.affine import fit_affine
from tilereg.blas import one_thread
from tilereg.field import mean_spacing, split_affine
from tilereg.kriging.choice import BETAS, choose_prior
from tilereg.kriging.fit import COARSE_STEP, LEAST_NOISE, nodes_of_many, step_of
from tilereg.kriging.prior import Prior, bent
from tilereg.lattice import Lattice, NormalEquations
from tilereg.smoothing import Coherent
from tilereg.transform import Affine, DisplacementField, Transform

__all__ = ["PairPart", "PartsModel", "fit_parts", "plan_parts_model"]

Floats = NDArray[np.float64]

# Parts, and pairs of each, from which unit and affine map are taken.
_ASKED_PARTS, _ASKED_PAIRS = 12, 3000
# Of priors of several parts the one is taken that is wider than this share of them: a field that
# is too soft follows some noise, one that is too stiff does not follow the deformation.
_WIDER = 0.25
# Most nodes: three gigabytes of equations.
_MOST_NODES = 1_000_000
# A lattice of pairs in parts holds fields of this many steps.
_NODES_A_BETA = 2.0


@dataclass(frozen=True, eq=False)
class PairPart:
    """Some pairs.

    Parameters
    ----------
    fixed, moving : (K, D) ndarrays, micrometre
    weight : (K,) ndarray
        Above 0.
    """

    fixed: Floats
    moving: Floats
    weight: Floats


@dataclass(frozen=True, eq=False)
class PartsModel:
    """What a fit to parts takes from some of them.

    Parameters
    ----------
    unit : float, micrometre
        Mean spacing of the pairs.
    centre : (D,) ndarray, micrometre
    prior : Prior
    affine : Affine
        What displacements are counted from, in the unit; the field is free to add any.
    sample : (S, D) ndarray
        Fixed points, in the unit.
    """

    unit: float
    centre: Floats
    prior: Prior
    affine: Affine
    sample: Floats


def plan_parts_model(
    parts: Sequence[PairPart], priors: Sequence[tuple[float, float, int]]
) -> PartsModel:
    """Take what a fit needs from compact pieces of some of the parts.

    Parameters
    ----------
    parts : sequence of PairPart
    priors : sequence of (float, float, int)
        Width in micrometre, noise and number of pairs of priors that were chosen from parts; those
        of infinite width are left out. Where there is none one is chosen from the pieces.
    """
    step = -(-len(parts) // _ASKED_PARTS)
    pieces = [_piece(part) for part in parts[::step]]
    x, y, weight = (np.concatenate(side) for side in zip(*pieces, strict=True))
    sizes = [len(piece[0]) for piece in pieces]
    unit = float(np.average([mean_spacing(piece[0]) for piece in pieces], weights=sizes))
    centre = x.mean(axis=0)
    points, targets = (x - centre) / unit, (y - centre) / unit
    known = sorted((beta / unit, noise, n) for beta, noise, n in priors if math.isfinite(beta))
    if known:
        total = np.cumsum([n for _, _, n in known])
        beta, noise, _ = known[int(np.searchsorted(total, _WIDER * total[-1]))]
    else:
        trust = None if (weight == 1).all() else weight
        betas = tuple(beta for beta in BETAS if math.isfinite(beta))
        with one_thread():
            found = choose_prior(points, bent(points, targets), betas, weight=trust)[0]
        beta, noise = found.beta, found.noise
    prior = Prior(max(beta, _NODES_A_BETA * COARSE_STEP), max(noise, LEAST_NOISE))
    affine = fit_affine(points, targets, np.ones(len(points)), prior=1e-6)
    return PartsModel(unit, centre, prior, affine, points)


def fit_parts(
    parts: Callable[[], Iterable[PairPart]],
    model: PartsModel,
    domain: tuple[Floats, Floats],
    count: int,
) -> Transform:
    """Fit a field by kriging to pairs in parts: normal equations add up.

    Parameters
    ----------
    parts : callable
        Returns the parts; each is looked at once.
    model : PartsModel
    domain : pair of (D,) ndarrays, micrometre
        Box in which the field may vary.
    count : int
        How many pairs there are, about.

    Notes
    -----
    Memory is that of a part and 2.7 kB a node of the lattice in 3D. Where more than a million nodes
    would be needed they are farther apart than the width asks for, and the field is stiffer.
    """
    low, high = ((side - model.centre) / model.unit for side in domain)
    step = max(COARSE_STEP, step_of(model.prior))
    lattice = Lattice.cover(low, high, step)
    while lattice.size > min(nodes_of_many(count), _MOST_NODES):
        step *= 1.1
        lattice = Lattice.cover(low, high, step)

    def inner() -> Iterable[tuple[Floats, Floats, Floats]]:
        for part in parts():
            points, targets = ((p - model.centre) / model.unit for p in (part.fixed, part.moving))
            yield points, part.weight / model.prior.noise, targets - model.affine(points)

    equations = NormalEquations.of_parts(lattice, len(low), inner())
    with one_thread():
        solution = Coherent(model.prior.beta, 1.0).solve(equations, tolerance=1e-4)
    field = lattice.field(solution.coefficients)
    unit, centre, affine = model.unit, model.centre, model.affine
    world = Affine(affine.matrix, unit * affine.offset + centre - affine.matrix @ centre)
    scaled = DisplacementField(
        field.coefficients * unit, field.origin * unit + centre, field.spacing * unit
    )
    return Transform(*split_affine(world, scaled, unit * model.sample + centre))


def _piece(part: PairPart) -> tuple[Floats, Floats, Floats]:
    """Return the pairs nearest to the middle of a part, as dense as they are."""
    middle = np.median(part.fixed, axis=0)
    order = np.argsort(((part.fixed - middle) ** 2).sum(axis=1), kind="stable")[:_ASKED_PAIRS]
    return part.fixed[order], part.moving[order], part.weight[order]
