"""The engine `cpd`: drift, model, drift again, extension, kriging.

The drift itself is in `tilereg.matching.drift`. A first one, stiff, tells the model and how stiff
a field must be; a second one fits that. What it does not reach is extended from there, and the
pairs are fitted by kriging.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.field import split_affine
from tilereg.lattice import Lattice, NormalEquations
from tilereg.matching.cells import CellList
from tilereg.matching.coarse import Coarse
from tilereg.matching.drift import Drift, drift
from tilereg.matching.evidence import Chance
from tilereg.matching.extension import extend
from tilereg.matching.kriged import by_kriging
from tilereg.matching.pairing import GATE, mutual_neighbours, pair_sigma
from tilereg.matching.problem import FEWEST_PAIRS, Found, Problem
from tilereg.matching.selection import SIMPLE_MODELS, Selection, fit_simple, select_model
from tilereg.matching.votes import VOTE_CELL, Ballot, Votes, fit_votes, known_votes
from tilereg.smoothing import Coherent
from tilereg.transform import Affine, DisplacementField, Transform

__all__ = ["cpd"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Where sigma starts, in spacings; after an earlier drift nearer, but never below the second, and
# not below so many of its own.
_WIDE, _AGAIN, _WIDER = 0.33, 0.2, 2.5
# How closely a drift's first field follows what it starts from, in spacings.
_START_NOISE = 0.01
_FEW, _MANY = 60, 20_000
# Fixed spots that a first, stiff drift needs, and at most so many are passed over for one.
_ENOUGH, _MOST_STEP = 25_000, 4
_FIRST = Coherent(16.0, 0.1)
_VOTING = Coherent(16.0, 1.0)
_NEAR = 0.3
_ROUNDS = 5


def cpd(problem: Problem, pose: Coarse) -> Found:
    """Find the map by Coherent Point Drift over all spots, from a pose."""
    return _Cpd(problem, pose.affine).run()


@dataclass(frozen=True, eq=False)
class _Stage:
    """A drift, the rows of the spots that it moved, the lattice of its field, and all spots' w."""

    drift: Drift
    rows: Rows
    lattice: Lattice
    w: float

    @property
    def field(self) -> DisplacementField:
        """The displacement on top of the pose."""
        return self.lattice.field(self.drift.solution.coefficients)


@dataclass(frozen=True)
class _Cpd:
    """The clouds and the pose to start from."""

    problem: Problem
    affine: Affine

    def run(self) -> Found:
        """Find the map that the held-out spots judge."""
        problem = self.problem
        stages = [self._first()]
        chosen = self._select(stages[0])
        if chosen.model != "field":
            map_ = Transform(self._simple(chosen.model, stages[0]), None)
        else:
            if not self._is_done(chosen.prior):
                stages.append(self._second(chosen.prior, stages[0]))
            map_ = Transform(*split_affine(self.affine, stages[-1].field, problem.fitted))
        sigma = stages[-1].drift.sigma
        found = Found(
            map=map_,
            sigma=pair_sigma(problem.moved(map_), problem.targets, sigma, aside=problem.aside),
            model=chosen.model,
            field="coherent" if chosen.model == "field" else None,
            beta=chosen.prior.beta if chosen.model == "field" else math.nan,
            w=stages[-1].w,
            losses=chosen.losses,
            iterations=[len(stage.drift.steps) for stage in stages],
        )
        # Few spots judge themselves, and a width or a field that was asked for is kept.
        if not problem.held.any() or problem.beta is not None or problem.field == "coherent":
            return by_kriging(problem, found) if problem.field == "kriging" else found
        return self._extended(found)

    def _is_done(self, prior: Coherent) -> bool:
        """Whether a second drift would only repeat the first: kriging fits the pairs of many."""
        is_kriged = self.problem.held.any() and self.problem.beta is None
        is_many = len(self.problem.fixed) > _MANY and self.problem.field != "coherent"
        return bool(is_kriged and is_many and prior.beta >= _FIRST.beta)

    def _extended(self, found: Found) -> Found:
        """Extend a map to what the drift does not reach, and fit its pairs by kriging."""
        problem = self.problem
        is_simple = found.model in SIMPLE_MODELS
        extension = extend(problem, found.map, found.sigma, is_simple=is_simple)
        if extension is None:
            return by_kriging(problem, found)
        moved = problem.moved(extension.transform)
        seen = pair_sigma(moved, problem.targets, extension.sigma)
        extended = replace(
            found,
            map=extension.transform,
            sigma=max(seen, extension.sigma),
            model="field",
            field="thin-plate" if extension.is_plate else "kriging",
            beta=extension.beta,
            num_compared=extension.num_compared,
            extension=extension,
        )
        return by_kriging(problem, extended) if extension.is_plate else extended

    def _first(self) -> _Stage:
        """Run a stiff drift from votes: of very many spots, a part of them."""
        rows = self.problem.fitted_rows
        # They come by distance from the middle: each so many-th are spread as all are.
        step = min(max(1, len(rows) // _ENOUGH), _MOST_STEP)
        return self._drift(_FIRST, self._voted(), rows[::step], step=step)

    def _voted(self) -> DisplacementField | None:
        """Return the field that landmarks and blocks of spots vote for; None without either.

        Blocks vote from the pose, and from where landmarks lead: those may be far from the pose,
        or wrong.
        """
        problem, near = self.problem, self.problem.crowding
        coarse = Lattice.cover(*problem.box, _VOTING.spacing)
        known = problem.known(self.affine)
        told: Votes | None = None
        starts: list[DisplacementField | None] = [None]
        if known is not None:
            told = known_votes(known.points, known.shift, known.weight)
            starts.append(fit_votes(told, coarse, _VOTING)[0])
        if len(problem.fitted) < _FEW:
            return self._better([Transform(self.affine, field) for field in starts]).field
        ballot = Ballot(problem.fitted, CellList.build(problem.targets, near * VOTE_CELL), near)
        return ballot.hold(coarse, _VOTING, self._predicted, starts, told)

    def _predicted(self, field: DisplacementField | None) -> Floats:
        """Bring the fitted spots to where partners are sought: by the pose, a field on top."""
        return self.problem.moved(Transform(self.affine, field), self.problem.fitted_rows)

    def _better(self, maps: list[Transform]) -> Transform:
        """Return the map that gives more partners than chance, the first of equals."""
        problem = self.problem
        chance = Chance.of(problem.moving, problem.shelves, problem.crowding)
        rows = problem.fitted_rows
        return min(maps, key=lambda map_: chance.evidence(problem.moved(map_, rows), 0))

    def _second(self, prior: Coherent, first: _Stage) -> _Stage:
        """Run the drift of a prior that was chosen, from where the first has ended."""
        rows = self.problem.fitted_rows
        found = self._drift(prior, first.field, rows, earlier=first)
        return found if found.drift.steps else self._drift(prior, first.field, rows)

    def _drift(
        self,
        prior: Coherent,
        start: DisplacementField | None,
        rows: Rows,
        *,
        step: int = 1,
        earlier: _Stage | None = None,
    ) -> _Stage:
        """Run the drift of every `step`-th fixed spot, from a field and an earlier one's sigma."""
        problem = self.problem
        source = problem.fixed[rows]
        base = problem.moved(self.affine, rows)
        lattice = Lattice.cover(*problem.box, prior.spacing)
        near = problem.crowding
        sigma = _WIDE * near
        w = problem.w if earlier is None else earlier.w
        if earlier is not None:
            sigma = min(sigma, max(_AGAIN * near, _WIDER * earlier.drift.sigma))
        solution = None
        if start is not None:
            # Fitted at the spots: between lattices the ends of a field are not the same.
            weights = np.full(len(source), 1 / _START_NOISE**2)
            equations = NormalEquations.assemble(lattice, source, weights, start(source))
            solution = prior.solve(equations, tolerance=1e-3)
        found = drift(
            source,
            base,
            problem.targets,
            lattice,
            prior,
            density=problem.density,
            known=problem.known(self.affine),
            trust=problem.trust(rows),
            start=solution,
            sigma=sigma,
            w=w if step == 1 else 1 - (1 - w) / step,
            max_iterations=problem.max_iterations,
        )
        w = found.w if step == 1 else max(1 - step * (1 - found.w), 0.0)
        return _Stage(found, rows, lattice, w)

    def _select(self, first: _Stage) -> Selection:
        """Choose the model from the pairs of a first drift."""
        problem, sigma = self.problem, first.drift.sigma
        source, rows = problem.fitted, problem.fitted_rows
        moved = problem.moved(self.affine, rows) + first.field(source)
        reach = GATE * math.sqrt(source.shape[1]) * sigma
        ours, theirs = mutual_neighbours(moved, problem.targets, reach)
        if len(ours) < FEWEST_PAIRS:
            return Selection("translation", _FIRST, {})
        base, target = self.affine(source[ours]), problem.moving[theirs]
        return select_model(source[ours], base, target, sigma, beta=problem.beta)

    def _simple(self, model: str, first: _Stage) -> Affine:
        """Fit a rigid or affine model to the partners of a first drift, then to near pairs."""
        problem, found = self.problem, first.drift
        source = problem.fixed[first.rows]
        near = found.posterior > _NEAR
        if near.sum() < FEWEST_PAIRS - 1:
            return self.affine
        partner = problem.shelves.lowered(found.partner, first.rows)
        weights = found.posterior
        if problem.fixed_weight is not None:
            weights = weights * problem.fixed_weight[first.rows]
        map_ = fit_simple(model, source[near], partner[near], weights[near])
        tree = cKDTree(problem.targets)
        count = len(source)
        for _ in range(_ROUNDS):
            distance, rows = tree.query(problem.moved(map_, first.rows))
            scale = max(float(np.median(distance[near])), 1e-6)
            sure = problem.confidence(first.rows, rows)
            sure = np.ones(count) if sure is None else sure
            x, y, trust = problem.with_landmarks(source, problem.moving[rows], sure)
            missed = np.linalg.norm(map_(x[count:]) - y[count:], axis=1)
            distance = np.concatenate([distance, missed])
            weights = trust * np.where(
                distance < 6 * scale, 1 / (1 + (distance / (2 * scale)) ** 2) ** 2, 0
            )
            near = weights[:count] > 0
            if near.sum() < FEWEST_PAIRS - 1:
                break
            map_ = fit_simple(model, x, y, weights)
        return map_
