"""Match two clouds of spots: pose, votes, Coherent Point Drift, and a verdict."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from scipy.stats import binom

from tilereg.errors import InputError
from tilereg.field import split_affine
from tilereg.lattice import Lattice, NormalEquations
from tilereg.matching.cells import CellList
from tilereg.matching.clouds import Unit, canonical_order, crowding, num_distinct, steps_aside
from tilereg.matching.coarse import Coarse, find_pose, pose_evidence
from tilereg.matching.cpd import Drift, drift, local_density
from tilereg.matching.extension import Extension, extend
from tilereg.matching.pairing import GATE, mutual_neighbours, pair_sigma
from tilereg.matching.refit import Refit, fit_all, fit_judge, fit_plate
from tilereg.matching.result import Match, correspondences, in_rows, nothing
from tilereg.matching.selection import SIMPLE_MODELS, Selection, fit_simple, select_model
from tilereg.matching.votes import count_votes, fit_votes
from tilereg.points import Spots, check_points
from tilereg.smoothing import Coherent
from tilereg.transform import Affine, DisplacementField, Transform

__all__ = ["FIELDS", "METHODS", "match_spots"]

Floats = NDArray[np.float64]

METHODS = ("cpd",)
FIELDS = ("auto", "coherent", "kriging")

# With a low share of outliers to start from, spots without a partner pull the field to wrong ones;
# a high one is found to be too high in the first iterations.
_MANY_OUTLIERS = 0.9
# Where sigma starts, in spacings; after an earlier drift nearer, but never below the second, and
# not below so many of its own.
_WIDE, _AGAIN, _WIDER = 0.33, 0.2, 2.5
# How closely a drift's first field follows what it starts from, in spacings.
_START_NOISE = 0.01
_FEWEST = 4
_FEW = 60
_FIRST = Coherent(16.0, 0.1)
_VOTING = Coherent(16.0, 1.0)
_MOST_HELD_OUT = 5000
_CERTAIN = -5.0
_CERTAIN_OF_FEW = -3.5
_VOTE_CELL = 2.5
_MOST_NODES = 1_000_000
# Share of the spots with a partner that have one of their own, where no map has collapsed.
_ONE_TO_ONE = 0.8


def match_spots(
    fixed: ArrayLike | Spots,
    moving: ArrayLike | Spots,
    *,
    method: str = "cpd",
    field: str = "auto",
    initial: Affine | None = None,
    max_rotation: float = 180.0,
    w: float | None = None,
    beta: float | None = None,
    held_out: float = 0.05,
    domain: tuple[ArrayLike, ArrayLike] | None = None,
    max_iterations: int = 100,
    seed: int = 0,
) -> Match:
    """Match two clouds that are related by a pose and a smooth deformation.

    Nothing needs to be known: not the pose, not the overlap, not the unit. Both clouds may hold
    spots without a partner. The same input gives the same bits.

    Parameters
    ----------
    fixed, moving : (N, D) and (M, D) array_like or Spots, micrometre
        Axes z, y, x or y, x.
    method : str
        'cpd': Coherent Point Drift over all spots.
    field : str
        'coherent': the drift's own, and no more than it reaches. 'kriging': one through all
        pairs, whose stiffness is chosen by how well each is predicted from the others
        (`tilereg.kriging`). 'auto': that, unless held-out pairs clearly prefer the drift's; the
        drift's where there are none or `beta` is given.
    initial : Affine, optional
        Pose to start from, fixed to moving. Default: searched for.
    max_rotation : float, degrees
        Largest rotation that is searched for; 180 means any.
    w : float, optional
        Share of moving spots without a partner to start from. Default 0.9; always re-estimated.
    beta : float, micrometre, optional
        Coherence width of the field. Default: the one that predicts held-out pairs best.
    held_out : float
        Share of the fixed spots that do not enter the match and judge it.
    domain : pair of (D,) array_like, micrometre, optional
        Box in which the field may vary. Default: the box of the fixed spots.
    max_iterations : int
        Most iterations of a stage.
    seed : int
        Which spots are held out.

    Returns
    -------
    Match

    Raises
    ------
    InputError
        If a cloud is not (N, 2) or (N, 3), the dimensions differ, a number is not finite, or the
        method or the field is unknown.

    Notes
    -----
    Memory and time grow linearly with the spots. See `tilereg.matching.cpd` for the method.

    Examples
    --------
    >>> import numpy as np
    >>> fixed = np.random.default_rng(0).uniform(0, 100, (200, 3))
    >>> match = match_spots(fixed, fixed + [5.0, -3.0, 40.0])
    >>> match.status, np.abs(match.transform(fixed) - fixed - [5, -3, 40]).max() < 1e-3
    ('ok', np.True_)
    """
    if method not in METHODS:
        raise InputError(f"Invalid method '{method}'. Known methods: {', '.join(METHODS)}.")
    if field not in FIELDS:
        raise InputError(f"Invalid field '{field}'. Known fields: {', '.join(FIELDS)}.")
    if field == "kriging" and beta is not None:
        raise InputError(
            "A kriging field chooses its own width, beta is that of the drift's. Leave one out."
        )
    x, y = _cloud(fixed, "fixed points"), _cloud(moving, "moving points")
    _check_axes(x, y, initial)
    _check_numbers(max_rotation, w, beta, max_iterations)
    rows = canonical_order(x), canonical_order(y)
    x, y = x[rows[0]], y[rows[1]]
    counts = num_distinct(x), num_distinct(y)
    if min(counts) < _FEWEST:
        return nothing(x, f"{counts[0]} fixed and {counts[1]} moving spots are too few to match.")
    unit = Unit.of(x, y)
    box = (x.min(axis=0), x.max(axis=0)) if domain is None else domain
    matcher = _Matcher(
        fixed=unit.fixed(x),
        moving=unit.moving(y),
        low=unit.fixed(np.atleast_2d(np.asarray(box[0], dtype=np.float64)))[0],
        high=unit.fixed(np.atleast_2d(np.asarray(box[1], dtype=np.float64)))[0],
        held=_hold_out(len(x), held_out, seed),
        w=_MANY_OUTLIERS if w is None else w,
        beta=None if beta is None else beta / unit.scale,
        field=field,
        max_iterations=max_iterations,
    )
    _check_width(matcher, beta)
    pose = (
        find_pose(matcher.fitted, matcher.moving, max_rotation=max_rotation)
        if initial is None
        else Coarse(unit.affine_in(initial), -math.inf, "given", 0, 1.0)
    )
    if not pose.is_found:
        return nothing(
            x,
            f"The best of {pose.num_tried} poses gives no more partners than chance does "
            f"(log10 of its probability {pose.evidence:.1f}).",
            status="no registration",
            spacing=unit.scale,
        )
    found = matcher.run(pose, unit, x, y)
    return replace(found, correspondences=in_rows(found.correspondences, *rows))


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A map that has not seen the held-out spots, in units of the mean spacing."""

    map: Transform
    sigma: float
    model: str
    beta: float
    w: float
    losses: dict[str, float]
    iterations: list[int]
    field: str | None
    """'coherent', 'kriging' or 'thin-plate'; None where the map is affine."""
    num_compared: int = 1
    """Maps among which the held-out spots have chosen it."""
    compared: dict[str, float] = dataclasses.field(default_factory=dict)
    """Residuals of the held-out spots that the field was chosen by."""
    extension: Extension | None = None

    @property
    def grown(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """The pairs of an extension: the map alone might not bring all of them together again."""
        if self.extension is None:
            return None
        return self.extension.fixed_rows, self.extension.moving_rows


@dataclass(frozen=True, kw_only=True)
class _Matcher:
    """The two clouds in units of the mean spacing, and how to match them."""

    fixed: Floats
    moving: Floats
    low: Floats
    high: Floats
    held: NDArray[np.bool_]
    w: float
    beta: float | None
    field: str
    max_iterations: int

    @cached_property
    def density(self) -> Floats:
        """Local density of the moving spots."""
        return local_density(self.moving)

    @cached_property
    def crowding(self) -> float:
        """By how much nearer moving spots lie than fixed ones."""
        return crowding(self.fixed, self.moving)

    @cached_property
    def fitted(self) -> Floats:
        """The fixed spots that may enter the fit."""
        return self.fixed[~self.held]

    def run(self, pose: Coarse, unit: Unit, x: Floats, y: Floats) -> Match:
        """Find the field, the pairs and the verdict."""
        found = self._find(pose)
        matched, chance, evidence = self._verdict(found, pose)
        is_certain = evidence < (_CERTAIN if self.held.any() else _CERTAIN_OF_FEW)
        new = self._refit(found) if is_certain else None
        final = found.map if new is None else new.transform
        moved = final(self.fixed)
        moved[self.held] = found.map(self.fixed[self.held])
        rows = None if new is None else (new.fixed_rows, new.moving_rows)
        pairs = correspondences(self.fixed, moved, self.moving, found.sigma, self.held, rows)
        pairs = replace(
            pairs,
            fixed=x[pairs.fixed_index],
            moving=y[pairs.moving_index],
            residual=pairs.residual * unit.scale,
        )
        is_one_to_one = len(pairs) >= _ONE_TO_ONE * matched * len(x)
        is_sound = all(
            pose.allows(map_.affine, one_to_one=is_one_to_one) for map_ in (found.map, final)
        )
        is_ok = is_certain and len(pairs) >= _FEWEST - 1 and is_sound
        message = (
            f"{len(pairs)} pairs; {100 * matched:.0f} % of the fixed spots have a partner within "
            f"{GATE * found.sigma * unit.scale:.3g} um, {100 * chance:.0f} % by chance "
            f"(log10 of its probability {evidence:.1f})."
        )
        if not is_sound:
            message = f"The fitted map collapses the spots or mirrors them. {message}"
        return Match(
            transform=unit.transform_out(final.affine, final.field),
            judge=unit.transform_out(found.map.affine, found.map.field),
            correspondences=pairs,
            status="ok" if is_ok else "no registration",
            message=message,
            evidence=evidence,
            share_matched=matched,
            share_chance=chance,
            residual_sigma=found.sigma * unit.scale,
            w=found.w,
            model=found.model,
            beta=unit.scale * (found.beta if new is None else new.beta),
            spacing=unit.scale,
            details={
                "pose": {
                    "source": pose.source,
                    "evidence": pose.evidence,
                    "tried": pose.num_tried,
                    "coverage": pose.coverage,
                },
                "losses_um": {k: v * unit.scale for k, v in found.losses.items()},
                "iterations": found.iterations,
                "extended": found.extension is not None,
                "field": found.field,
                "held_out_rms_um": {k: v * unit.scale for k, v in found.compared.items()},
            },
        )

    def _find(self, pose: Coarse) -> _Found:
        """Find the map that the held-out spots judge: drift, model, extension."""
        first, lattice = self._drift(pose.affine, _FIRST, None)
        chosen = self._select(pose.affine, first, lattice)
        result = first
        if chosen.model == "field":
            start = lattice.field(first.solution.coefficients)
            result, lattice = self._drift(pose.affine, chosen.prior, start, first)
            if not result.steps:
                result, lattice = self._drift(pose.affine, chosen.prior, start)
            raw = lattice.field(result.solution.coefficients)
            map_ = Transform(*split_affine(pose.affine, raw, self.fitted))
        else:
            map_ = Transform(self._simple(chosen.model, pose.affine, first), None)
        found = _Found(
            map=map_,
            sigma=pair_sigma(
                map_(self.fixed), self.moving, result.sigma, aside=steps_aside(self.moving)
            ),
            model=chosen.model,
            field="coherent" if chosen.model == "field" else None,
            beta=chosen.prior.beta if chosen.model == "field" else math.nan,
            w=result.w,
            losses=chosen.losses,
            iterations=[len(first.steps), len(result.steps)],
        )
        # Few spots judge themselves, and a width or a field that was asked for is kept.
        if not self.held.any() or self.beta is not None or self.field == "coherent":
            return self._by_kriging(found) if self.field == "kriging" else found
        extension = extend(
            self.fixed,
            self.moving,
            self.held,
            map_,
            found.sigma,
            (self.low, self.high),
            is_simple=chosen.model in SIMPLE_MODELS,
        )
        if extension is None:
            return self._by_kriging(found)
        seen = pair_sigma(extension.transform(self.fixed), self.moving, extension.sigma)
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
        return self._by_kriging(extended) if extension.is_plate else extended

    def _by_kriging(self, found: _Found) -> _Found:
        """Fit the field by kriging, where the held-out spots do not clearly prefer what it is."""
        if found.model != "field" or found.field is None:
            return found
        must = self.field == "kriging"
        fit = fit_judge(
            self.fixed,
            self.moving,
            self.held,
            found.map,
            found.sigma,
            (self.low, self.high),
            pairs=found.grown,
            name=found.field,
            must=must,
        )
        if fit is None:
            return found
        return replace(
            found,
            map=fit.transform,
            sigma=pair_sigma(
                fit.transform(self.fixed),
                self.moving,
                found.sigma,
                aside=steps_aside(self.moving),
            ),
            field="kriging",
            beta=fit.beta,
            num_compared=found.num_compared + (not must),
            compared=fit.losses,
        )

    def _refit(self, found: _Found) -> Refit | None:
        """Fit a field of the same kind to all pairs; None for the drift's own."""
        box = self.low, self.high
        if found.field == "kriging":
            return fit_all(self.fixed, self.moving, found.map, found.sigma, box, pairs=found.grown)
        if found.grown is None:
            return None
        return fit_plate(self.fixed, self.moving, *found.grown, box)

    def _drift(
        self,
        affine: Affine,
        prior: Coherent,
        start: DisplacementField | None,
        earlier: Drift | None = None,
    ) -> tuple[Drift, Lattice]:
        """Run the drift with a prior, from votes or from the field of an earlier one."""
        source = self.fitted
        base = affine(source)
        lattice = Lattice.cover(self.low, self.high, prior.spacing)
        near = self.crowding
        sigma = _WIDE * near
        if earlier is not None:
            sigma = min(sigma, max(_AGAIN * near, _WIDER * earlier.sigma))
        if start is None and len(source) >= _FEW:
            cells = CellList.build(self.moving, near * _VOTE_CELL)
            votes = count_votes(source, base, cells, near)
            coarse = Lattice.cover(self.low, self.high, _VOTING.spacing)
            voted, _ = fit_votes(votes, coarse, _VOTING)
            start = coarse.field(voted.coefficients)
        solution = None
        if start is not None:
            # Fitted at the spots: between lattices the ends of a field are not the same.
            weights = np.full(len(source), 1 / _START_NOISE**2)
            equations = NormalEquations.assemble(lattice, source, weights, start(source))
            solution = prior.solve(equations, tolerance=1e-3)
        found = drift(
            source,
            base,
            self.moving,
            lattice,
            prior,
            density=self.density,
            start=solution,
            sigma=sigma,
            w=self.w if earlier is None else earlier.w,
            max_iterations=self.max_iterations,
        )
        return found, lattice

    def _select(self, affine: Affine, found: Drift, lattice: Lattice) -> Selection:
        """Choose the model from the pairs of a first drift."""
        source = self.fitted
        moved = affine(source) + lattice.field(found.solution.coefficients)(source)
        ours, theirs = mutual_neighbours(
            moved, self.moving, GATE * math.sqrt(source.shape[1]) * found.sigma
        )
        if len(ours) < _FEWEST:
            return Selection("translation", _FIRST, {})
        return select_model(
            source[ours], affine(source[ours]), self.moving[theirs], found.sigma, beta=self.beta
        )

    def _simple(self, model: str, affine: Affine, found: Drift) -> Affine:
        """Fit a rigid or affine model to the partners of a first drift, then to near pairs."""
        source = self.fitted
        near = found.posterior > 0.3
        if near.sum() < _FEWEST - 1:
            return affine
        map_ = fit_simple(model, source[near], found.partner[near], found.posterior[near])
        tree = cKDTree(self.moving)
        for _ in range(5):
            distance, rows = tree.query(map_(source))
            scale = max(float(np.median(distance[near])), 1e-6)
            weights = np.where(
                distance < 6 * scale, 1 / (1 + (distance / (2 * scale)) ** 2) ** 2, 0
            )
            if (weights > 0).sum() < _FEWEST - 1:
                break
            map_ = fit_simple(model, source, self.moving[rows], weights)
            near = weights > 0
        return map_

    def _verdict(self, found: _Found, pose: Coarse) -> tuple[float, float, float]:
        """Return the share of spots with a partner, the share by chance, and log10 of its odds."""
        cells = CellList.build(self.moving, 1.0)
        map_, model = found.map, found.model
        moved = map_(self.fixed)
        reach = GATE * found.sigma
        aside = steps_aside(self.moving)
        near = cells.count_within(moved, reach) > 0
        by_chance = np.mean([cells.count_within(moved + a, reach) > 0 for a in aside], axis=0)
        matched, chance = float(near.mean()), float(by_chance.mean())
        if not self.held.any():
            return matched, chance, pose_evidence(self.fixed, self.moving, map_, model, pose)
        judged = int(self.held.sum())
        odds = max(float(by_chance[self.held].mean()), chance, 0.5 / judged / len(aside))
        log_odds = binom.logsf(int(near[self.held].sum()) - 1, judged, min(odds, 1.0))
        evidence = float(log_odds) / math.log(10)
        if model in SIMPLE_MODELS:
            # So few parameters are paid for by a few spots: all others judge, held out or not.
            every = pose_evidence(self.fixed, self.moving, map_, model, pose)
            evidence = min(evidence, every) + math.log10(2)
        # The same spots may have chosen among several maps.
        return matched, chance, evidence + math.log10(found.num_compared)


def _cloud(points: ArrayLike | Spots, name: str) -> Floats:
    """Return the positions of points or spots, checked."""
    return check_points(points.positions if isinstance(points, Spots) else points, name)


def _check_axes(fixed: Floats, moving: Floats, initial: Affine | None) -> None:
    """Raise unless everything has the same number of axes."""
    if fixed.shape[1] != moving.shape[1]:
        raise InputError(
            f"Fixed points have {fixed.shape[1]} axes, moving points have {moving.shape[1]}. "
            "Both must have the same."
        )
    if initial is not None and initial.ndim != fixed.shape[1]:
        raise InputError(
            f"The initial affine has {initial.ndim} axes, the points have {fixed.shape[1]}."
        )


def _check_numbers(
    max_rotation: float, w: float | None, beta: float | None, max_iterations: int
) -> None:
    """Raise unless all settings are in their ranges."""
    if not 0 <= max_rotation <= 180:
        raise InputError(f"Invalid max_rotation {max_rotation}. It must be 0 to 180 degrees.")
    if w is not None and not 0 < w < 1:
        raise InputError(f"Invalid w {w}. A share above 0 and below 1 is needed.")
    if beta is not None and not (beta > 0 and math.isfinite(beta)):
        raise InputError(f"Invalid beta {beta} um. It must be > 0 and finite.")
    if max_iterations < 1:
        raise InputError(f"Invalid max_iterations {max_iterations}. It must be at least 1.")


def _check_width(matcher: _Matcher, beta: float | None) -> None:
    """Raise where a coherence width is so small that its lattice could not be held."""
    if matcher.beta is None or beta is None:
        return
    size = Lattice.cover(matcher.low, matcher.high, Coherent(matcher.beta, 1.0).spacing).size
    if size > _MOST_NODES:
        ndim = matcher.fixed.shape[1]
        least = beta * (size / _MOST_NODES) ** (1 / ndim)
        raise InputError(
            f"Invalid beta {beta} um. A field this fine over the fixed spots would have {size} "
            f"nodes, and at most {_MOST_NODES} are held; use {least:.3g} um or more."
        )


def _hold_out(count: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Return which of the fixed spots only judge; none where there are few."""
    if not 0 <= share < 0.5:
        raise InputError(f"Invalid held_out {share}. A share of 0 to below 0.5 is needed.")
    held = np.zeros(count, dtype=bool)
    if count >= _FEW and share > 0:
        number = int(np.clip(share * count, min(50, count // 5), _MOST_HELD_OUT))
        held[np.random.default_rng(seed).permutation(count)[:number]] = True
    return held
