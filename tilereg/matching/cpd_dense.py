"""The engine `cpd-dense`: Coherent Point Drift over all pairs, with a Gaussian kernel.

The drift itself is in `tilereg.matching.dense_drift`. A first one, stiff, tells the model and how
wide the kernel should be; a second one fits that. Its field is held by a lattice in the end. Time
and memory grow with the product of the spots: it is the reference for the engine `cpd`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tilereg.blas import one_thread
from tilereg.field import split_affine
from tilereg.lattice_sampling import sample_on_lattice
from tilereg.matching.coarse import Coarse
from tilereg.matching.dense_drift import Dense, affine, nonrigid, rigid, translation
from tilereg.matching.descent import Descent
from tilereg.matching.gaussian_kernel import kernel_sum
from tilereg.matching.kriged import by_kriging
from tilereg.matching.pairing import GATE, mutual_neighbours, pair_sigma
from tilereg.matching.problem import FEWEST_PAIRS, Found, Problem
from tilereg.matching.selection import Selection, select_model
from tilereg.smoothing import Coherent
from tilereg.transform import Affine, Transform

__all__ = ["TOLERANCE", "Bent", "DenseEngine", "Straight", "cpd_dense", "held_by_lattice"]

Floats = NDArray[np.float64]

TOLERANCE = 0.003
"""How exactly a lattice holds the field, in spacings: a tenth of good localisation."""

# The first drift: where sigma starts, in spacings, and its kernel.
_WIDE, _FIRST = 1.0, Coherent(16.0, 0.1)
# Where the second starts: at most, at least, and in deviations of the first.
_AGAIN, _NEAR, _WIDER = 0.33, 0.2, 2.5
# Sigma falls no lower, in spacings: with a field, where its equations would be singular, and
# without.
_LEAST, _LEAST_STRAIGHT = 0.01, 1e-5
# Share of the kernel's trace that a low rank leaves out, of more spots than so many.
_LEFT_OUT, _MOST_EXACT = 1e-5, 400
_MOST_NODES = 1_000_000


class Bent(Protocol):
    """A drift with a field, as `tilereg.matching.dense_drift.nonrigid`."""

    def __call__(
        self,
        source: Floats,
        target: Floats,
        *,
        w: float,
        beta: float,
        alpha: float,
        descent: Descent,
        left_out: float | None,
        start: Floats | None,
    ) -> Dense:
        """Find the coherent displacement."""


class Straight(Protocol):
    """A drift without a field, as `tilereg.matching.dense_drift.affine`."""

    def __call__(
        self,
        source: Floats,
        target: Floats,
        *,
        w: float,
        descent: Descent,
        start: Floats | None,
    ) -> Dense:
        """Find the map."""


def cpd_dense(problem: Problem, pose: Coarse) -> Found:
    """Find the map by Coherent Point Drift over all pairs, from a pose.

    Raises
    ------
    ResourceError
        If all pairs would take too much memory.
    """
    models: dict[str, Straight] = {"translation": translation, "rigid": rigid, "affine": affine}
    with one_thread():
        return DenseEngine(problem, pose.affine, nonrigid, models).run()


@dataclass(frozen=True)
class DenseEngine:
    """The clouds, the pose to start from, and the drifts by model."""

    problem: Problem
    affine: Affine
    bent: Bent
    straight: dict[str, Straight]

    def run(self) -> Found:
        """Find the map that the held-out spots judge."""
        problem = self.problem
        first = self._bent(_FIRST, problem.w, _WIDE * problem.crowding, None)
        chosen = self._select(first)
        near = problem.crowding
        sigma = min(_AGAIN * near, max(_NEAR * near, _WIDER * first.sigma))
        if chosen.model != "field":
            last = self._straight(chosen.model, first.w, sigma)
            map_ = Transform(last.affine if last.num_iterations else self.affine)
        else:
            is_same = chosen.prior == _FIRST
            last = first if is_same else self._bent(chosen.prior, first.w, sigma, first.moved)
            map_ = held_by_lattice(problem, self.affine, last, chosen.prior.beta)
        moved = problem.moved(map_)
        found = Found(
            map=map_,
            sigma=pair_sigma(moved, problem.targets, last.sigma, aside=problem.aside),
            model=chosen.model,
            field="coherent" if chosen.model == "field" else None,
            beta=chosen.prior.beta if chosen.model == "field" else math.nan,
            w=last.w,
            losses=chosen.losses,
            iterations=[first.num_iterations, last.num_iterations],
        )
        # Few spots judge themselves, and a width or a field that was asked for is kept.
        is_kept = not problem.held.any() or problem.beta is not None or problem.field == "coherent"
        return found if is_kept and problem.field != "kriging" else by_kriging(problem, found)

    def _descent(self, sigma: float, least: float, base: Floats) -> Descent:
        """Return how to descend from a sigma, with T(Y) added to what a base adds to the source.

        Unlike spots are kept apart by the offset as well.
        """
        problem = self.problem
        return Descent(
            sigma=sigma,
            least_sigma=least,
            density=problem.density,
            offset=problem.shelves.lifted(base, problem.fitted_rows),
            is_w_free=True,
            max_iterations=problem.max_iterations,
        )

    def _bent(self, prior: Coherent, w: float, sigma: float, start: Floats | None) -> Dense:
        """Run the drift with a field on top of the pose, the kernel between fixed spots."""
        source = self.problem.fitted
        return self.bent(
            source,
            self.problem.targets,
            w=w,
            beta=prior.beta,
            alpha=1 / prior.variance,
            descent=self._descent(sigma, _LEAST, self.affine(source) - source),
            left_out=_LEFT_OUT if len(source) > _MOST_EXACT else None,
            start=start,
        )

    def _straight(self, model: str, w: float, sigma: float) -> Dense:
        """Run the drift without a field, from where the pose brings the spots."""
        source = self.problem.fitted
        return self.straight[model](
            source,
            self.problem.targets,
            w=w,
            descent=self._descent(sigma, _LEAST_STRAIGHT, np.zeros_like(source)),
            start=self.affine(source),
        )

    def _select(self, first: Dense) -> Selection:
        """Choose the model from the pairs of a first drift."""
        problem, source = self.problem, self.problem.fitted
        base = self.affine(source)
        moved = problem.shelves.moved(base + first.moved - source, problem.fitted_rows)
        reach = GATE * math.sqrt(source.shape[1]) * first.sigma
        ours, theirs = mutual_neighbours(moved, problem.targets, reach)
        if len(ours) < FEWEST_PAIRS:
            return Selection("translation", _FIRST, {})
        target = problem.moving[theirs]
        return select_model(source[ours], base[ours], target, first.sigma, beta=problem.beta)


def held_by_lattice(problem: Problem, affine: Affine, found: Dense, beta: float) -> Transform:
    """Return an affine map and the field of a drift on top of it, held by a lattice.

    Parameters
    ----------
    problem : Problem
    affine : Affine
    found : Dense
        Its weights are those of kernels around the fitted spots.
    beta : float
        Width of the kernel.
    """
    used = found.weights.any(axis=1)
    centres, weights = problem.fitted[used], found.weights[used]

    def bent(points: Floats) -> Floats:
        return affine(points) + kernel_sum(points, centres, weights, beta)

    low, high = problem.box
    held = sample_on_lattice(
        bent, low, high, affine=affine, tolerance=TOLERANCE, most_nodes=_MOST_NODES
    )
    assert held.transform.field is not None
    return Transform(*split_affine(affine, held.transform.field, problem.fitted))
