"""Match two clouds of spots: a pose, an engine, and a verdict."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.errors import InputError
from tilereg.lattice import Lattice
from tilereg.matching.classes import Arrangement, arrange, check_classes
from tilereg.matching.clouds import Unit, num_distinct
from tilereg.matching.coarse import Coarse, find_pose
from tilereg.matching.engines import METHODS, check_given, engine
from tilereg.matching.kriged import refit
from tilereg.matching.pairing import GATE
from tilereg.matching.problem import FEWEST_PAIRS, Found, Problem
from tilereg.matching.result import Match, correspondences, in_rows, nothing
from tilereg.matching.shelves import Shelves
from tilereg.matching.verdict import judge
from tilereg.points import Spots, check_points
from tilereg.smoothing import Coherent
from tilereg.transform import Affine

__all__ = ["FIELDS", "METHODS", "match_spots"]

Floats = NDArray[np.float64]

FIELDS = ("auto", "coherent", "kriging")

# With a low share of outliers to start from, spots without a partner pull the field to wrong ones;
# a high one is found to be too high in the first iterations.
_MANY_OUTLIERS = 0.9
_FEW, _MOST_HELD_OUT = 60, 5000
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
    fixed_class: ArrayLike | None = None,
    moving_class: ArrayLike | None = None,
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
    fixed_class, moving_class : (N,), (M,) array_like of int or str, optional
        Class of each spot, such as its gene. Only spots of the same class are paired, in every
        step, and chance is that of like spots. Those of a class that only one cloud has are left
        out; the result's `message` says so. Default: all spots are alike.

    Returns
    -------
    Match

    Raises
    ------
    InputError
        If a cloud is not (N, 2) or (N, 3), the dimensions differ, a number is not finite, the
        method or the field is unknown, the classes cannot be compared, or the method cannot use
        what is given.

    Notes
    -----
    Memory and time grow linearly with the spots. See `tilereg.matching.drift` for the method.

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
    classes = check_classes(fixed_class, moving_class, len(x), len(y))
    check_given(method, {"spot classes": classes is not None})
    arranged = arrange(x, y, classes)
    rows = arranged.rows
    x, y = x[rows[0]], y[rows[1]]
    counts = num_distinct(x), num_distinct(y)
    if min(counts) < FEWEST_PAIRS:
        message = f"{counts[0]} fixed and {counts[1]} moving spots are too few to match."
        return _told(nothing(x, message), arranged)
    unit = Unit.of(x, y)
    box = (x.min(axis=0), x.max(axis=0)) if domain is None else domain
    inner = unit.fixed(x), unit.moving(y)
    problem = Problem(
        fixed=inner[0],
        moving=inner[1],
        low=unit.fixed(np.atleast_2d(np.asarray(box[0], dtype=np.float64)))[0],
        high=unit.fixed(np.atleast_2d(np.asarray(box[1], dtype=np.float64)))[0],
        held=_hold_out(len(x), held_out, seed),
        w=_MANY_OUTLIERS if w is None else w,
        beta=None if beta is None else beta / unit.scale,
        field=field,
        max_iterations=max_iterations,
        shelves=Shelves.of(arranged.numbers, *inner),
    )
    _check_width(problem, beta)
    pose = (
        find_pose(
            problem.fitted,
            problem.moving,
            max_rotation=max_rotation,
            shelves=problem.shelves.take(problem.fitted_rows),
        )
        if initial is None
        else Coarse(unit.affine_in(initial), -math.inf, "given", 0, 1.0)
    )
    if not pose.is_found:
        message = (
            f"The best of {pose.num_tried} poses gives no more partners than chance does "
            f"(log10 of its probability {pose.evidence:.1f})."
        )
        none = nothing(x, message, status="no registration", spacing=unit.scale)
        return _told(none, arranged)
    found = _assembled(problem, engine(method)(problem, pose), pose, unit, x, y)
    found = replace(found, correspondences=in_rows(found.correspondences, *rows))
    return _told(found, arranged)


def _told(match: Match, arranged: Arrangement) -> Match:
    """Say which spots were left out for their class."""
    if not arranged.message:
        return match
    details = match.details | {"alone": arranged.alone}
    return replace(match, message=f"{match.message} {arranged.message}", details=details)


def _assembled(
    problem: Problem, found: Found, pose: Coarse, unit: Unit, x: Floats, y: Floats
) -> Match:
    """Judge a map, fit it to all pairs if it is more than chance, and gather what is told."""
    verdict = judge(problem, found, pose)
    new = refit(problem, found) if verdict.is_certain else None
    final = found.map if new is None else new.transform
    moved = final(problem.fixed)
    moved[problem.held] = found.map(problem.fixed[problem.held])
    rows = None if new is None else (new.fixed_rows, new.moving_rows)
    pairs = correspondences(problem, moved, found.sigma, rows)
    pairs = replace(
        pairs,
        fixed=x[pairs.fixed_index],
        moving=y[pairs.moving_index],
        residual=pairs.residual * unit.scale,
    )
    is_one_to_one = len(pairs) >= _ONE_TO_ONE * verdict.matched * len(x)
    is_sound = all(
        pose.allows(map_.affine, one_to_one=is_one_to_one) for map_ in (found.map, final)
    )
    is_ok = verdict.is_certain and len(pairs) >= FEWEST_PAIRS - 1 and is_sound
    message = (
        f"{len(pairs)} pairs; {100 * verdict.matched:.0f} % of the fixed spots have a partner "
        f"within {GATE * found.sigma * unit.scale:.3g} um, {100 * verdict.chance:.0f} % by chance "
        f"(log10 of its probability {verdict.evidence:.1f})."
    )
    if not is_sound:
        message = f"The fitted map collapses the spots or mirrors them. {message}"
    return Match(
        transform=unit.transform_out(final.affine, final.field),
        judge=unit.transform_out(found.map.affine, found.map.field),
        correspondences=pairs,
        status="ok" if is_ok else "no registration",
        message=message,
        evidence=verdict.evidence,
        share_matched=verdict.matched,
        share_chance=verdict.chance,
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


def _check_width(problem: Problem, beta: float | None) -> None:
    """Raise where a coherence width is so small that its lattice could not be held."""
    if problem.beta is None or beta is None:
        return
    size = Lattice.cover(problem.low, problem.high, Coherent(problem.beta, 1.0).spacing).size
    if size > _MOST_NODES:
        ndim = problem.fixed.shape[1]
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
