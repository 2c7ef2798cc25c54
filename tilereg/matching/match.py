"""Match two clouds of spots: a pose, an engine, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.matching.checking import (
    FIELDS,
    check_axes,
    check_choice,
    check_held_out,
    check_numbers,
    check_width,
)
from tilereg.matching.clouds import Unit, num_distinct
from tilereg.matching.coarse import Coarse, find_pose
from tilereg.matching.engines import METHODS, Engine, check_given, engine
from tilereg.matching.inputs import Inputs
from tilereg.matching.kriged import refit
from tilereg.matching.landmarks import agrees, landmark_pose, with_landmarks
from tilereg.matching.outward import extend_pose
from tilereg.matching.pairing import GATE
from tilereg.matching.problem import FEWEST_PAIRS, Found, Problem
from tilereg.matching.result import Match, correspondences, nothing
from tilereg.matching.seams import Tear, find_tear, num_near
from tilereg.matching.verdict import judge
from tilereg.points import Landmarks, Spots
from tilereg.transform import Affine

__all__ = ["FIELDS", "METHODS", "match_spots"]

Floats = NDArray[np.float64]

# With a low share of outliers to start from, spots without a partner pull the field to wrong ones;
# a high one is found to be too high in the first iterations.
_MANY_OUTLIERS = 0.9
_FEW, _MOST_HELD_OUT = 60, 5000
# Log10 of the probability from which on spots do not clearly confirm a pose.
_UNSEEN = -12.0
# Share of the spots with a partner that have one of their own, where no map has collapsed.
_ONE_TO_ONE = 0.8
# How often the clouds are matched without their seams, each time knowing these better.
_MENDINGS = 2


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
    seams: bool = True,
    fixed_class: ArrayLike | None = None,
    moving_class: ArrayLike | None = None,
    landmarks: Landmarks | Sequence[ArrayLike] | None = None,
    fixed_weight: ArrayLike | None = None,
    moving_weight: ArrayLike | None = None,
) -> Match:
    """Match two clouds that are related by a pose and a smooth deformation.

    Nothing needs to be known: not the pose, not the overlap, not the unit. Both clouds may hold
    spots without a partner. The same input gives the same bits.

    Parameters
    ----------
    fixed, moving : (N, D) and (M, D) array_like or Spots, micrometre
        Axes z, y, x or y, x.
    method : str
        The engine; see the notes for which one when. 'cpd': Coherent Point Drift over all spots.
        'cpd-dense': the same as it was published, over all pairs. 'icp': iterated closest points,
        rigid, affine, then with ever softer fields. 'ransac': a consensus among several candidates
        a spot, then as 'icp'. 'transport': optimal one-to-one assignment with a cost of not
        matching, again and again as 'icp'. 'probreg', 'probreg-filterreg': CPD and FilterReg of
        the package probreg, an extra.
    field : str
        'coherent': the drift's own, and no more than it reaches. 'kriging': one through all
        pairs, whose stiffness is chosen by how well each is predicted from the others
        (`tilereg.kriging`). 'auto': that, unless held-out pairs clearly prefer the drift's; the
        drift's where there are none or `beta` is given. Engines that end in pairs have no field of
        their own: 'coherent' is the drift's kind of field through their pairs then.
    initial : Affine, optional
        Pose to start from, fixed to moving. Default: searched for.
    max_rotation : float, degrees
        Largest rotation that is searched for; 180 means any.
    w : float, optional
        Share of moving spots without a partner to start from. Default 0.9; re-estimated, but for
        'probreg-filterreg', which keeps it. Of no use to 'icp', 'ransac' and 'transport', which
        ignore it.
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
    seams : bool
        Whether jumps of the displacement across planes are sought: an image that was stitched
        from fields of view with an error. They are in `details` ('seams').
    fixed_class, moving_class : (N,), (M,) array_like of int or str, optional
        Class of each spot, such as its gene. Only spots of the same class are paired, in every
        step, and chance is that of like spots. Those of a class that only one cloud has are left
        out; the result's `message` says so. Default: those of the `Spots`; else all are alike.
    landmarks : Landmarks, or (L, D), (L, D) and optionally (L,) array_like, micrometre, optional
        Known pairs: fixed points, moving points, and weights relative to a matched pair of spots
        (default 1: as good as one; 0 takes no part; above 1 counts in the last fit of a kriging
        or thin-plate field). They give the pose where there are enough of them and none is given,
        pull the drift and enter the fits. They count for no evidence: spots alone can make a
        match 'ok'. The result tells how each is obeyed, and warns of those that the spots around
        contradict.
    fixed_weight, moving_weight : (N,), (M,) array_like, optional
        Confidence in each spot, 0 to 1: it multiplies the posterior in the drift's fit, and the
        weight of the spot's pair in every other. A spot of weight 0 takes part in nothing; where
        it would have a partner all the same, the pair is told with its residual and weight 0.
        Default: those of the `Spots`; else all are believed.

    Returns
    -------
    Match

    Raises
    ------
    InputError
        If a cloud is not (N, 2) or (N, 3), the dimensions differ, a number is not finite, the
        method or the field is unknown, the classes cannot be compared, the landmarks are no pairs,
        a weight is not from 0 to 1, or the method cannot use what is given.

    Notes
    -----
    Memory and time grow linearly with the spots, but for 'cpd-dense' and 'probreg', where they
    grow with the product of both clouds (and are refused above a gigabyte). See
    `tilereg.matching.drift` for the method.

    All engines start from the same pose, are judged by the same held-out spots and end in the same
    kind of field, so that where they find the same pairs they give the same map. Use 'cpd' unless
    there is a reason not to: it finds spots up to three spacings from where the pose brings them,
    grows into regions that are bent more, and alone knows landmarks and weights of spots. 'icp' is
    the fastest of up to some ten thousand spots, and reaches a spacing and a half; 'transport' as
    far, where every pair must be one to one in the best way; 'ransac' as far as 'cpd', for a given
    pose that is off. 'cpd-dense', which reaches two spacings, and 'probreg' are references for
    some thousand spots.

    Examples
    --------
    >>> import numpy as np
    >>> fixed = np.random.default_rng(0).uniform(0, 100, (200, 3))
    >>> match = match_spots(fixed, fixed + [5.0, -3.0, 40.0])
    >>> match.status, np.abs(match.transform(fixed) - fixed - [5, -3, 40]).max() < 1e-3
    ('ok', np.True_)
    """
    check_choice(method, field, beta)
    check_numbers(max_rotation, w, beta, max_iterations)
    inputs = Inputs.of(
        fixed,
        moving,
        classes=(fixed_class, moving_class),
        weights=(fixed_weight, moving_weight),
        landmarks=landmarks,
    )
    check_axes(inputs.fixed, inputs.moving, initial, inputs.landmarks)
    check_given(method, inputs.beside)
    x, y = inputs.ordered
    held = _hold_out(len(x), held_out, seed)
    counts = num_distinct(x), num_distinct(y)
    if min(counts) < FEWEST_PAIRS:
        message = f"{counts[0]} fixed and {counts[1]} moving spots are too few to match."
        return inputs.told(nothing(x, message))
    unit = Unit.of(x, y)
    low, high = inputs.box if domain is None else domain
    problem = Problem(
        fixed=unit.fixed(x),
        moving=unit.moving(y),
        low=unit.fixed(np.atleast_2d(np.asarray(low, dtype=np.float64)))[0],
        high=unit.fixed(np.atleast_2d(np.asarray(high, dtype=np.float64)))[0],
        held=held,
        w=_MANY_OUTLIERS if w is None else w,
        beta=None if beta is None else beta / unit.scale,
        field=field,
        max_iterations=max_iterations,
        fixed_weight=inputs.arranged.weights[0],
        moving_weight=inputs.arranged.weights[1],
    )
    problem = problem.on_shelves(inputs.arranged.numbers)
    if inputs.landmarks is not None:
        problem = with_landmarks(problem, inputs.landmarks, unit)
    check_width(problem, beta)
    pose = _pose(problem, None if initial is None else unit.affine_in(initial), max_rotation)
    if not pose.is_found:
        message = (
            f"The best of {pose.num_tried} poses gives no more partners than chance does "
            f"(log10 of its probability {pose.evidence:.1f})."
        )
        none = nothing(x, message, status="no registration", spacing=unit.scale)
        return inputs.told(none)
    run = engine(method)
    found = run(problem, pose)
    tear = None
    if seams and (tear := find_tear(problem, found.map, found.sigma)):
        problem, found, tear = _mended(run, problem, found, pose, tear)
    return inputs.told(_assembled(problem, found, pose, unit, x, y, tear))


def _mended(
    run: Engine, problem: Problem, found: Found, pose: Coarse, tear: Tear
) -> tuple[Problem, Found, Tear | None]:
    """Match the clouds as they were before the stitching, if they match better so."""
    best: tuple[Problem, Found, Tear | None] = (problem, found, None)
    most = num_near(problem, found.map, found.sigma)
    for _ in range(_MENDINGS):
        healed = tear.healed(problem)
        again = run(healed, pose)
        num = num_near(healed, again.map, found.sigma)
        # Pairs that are lost make the others look closer.
        if again.sigma < best[1].sigma and num > most:
            best, most = (healed, again, tear), num
        tear = tear.corrected(problem, again.map, again.sigma)
    return best


def _pose(problem: Problem, given: Affine | None, max_rotation: float) -> Coarse:
    """Return the pose that is given or that landmarks give; search where spots doubt it."""
    if given is not None:
        return Coarse(given, -math.inf, "given", 0, 1.0)
    told = landmark_pose(problem)
    if told is None or told.evidence > _UNSEEN:
        # Landmarks may be set roughly, or all be wrong: spots know better, where they know at all.
        shelves = problem.shelves.take(problem.fitted_rows)
        found = find_pose(
            problem.fitted, problem.moving, max_rotation=max_rotation, shelves=shelves
        )
        if told is None or (found.is_found and agrees(found.affine, problem)):
            return extend_pose(problem, found) if found.is_found else found
    return replace(told, evidence=-math.inf)


def _assembled(
    problem: Problem,
    found: Found,
    pose: Coarse,
    unit: Unit,
    x: Floats,
    y: Floats,
    tear: Tear | None,
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
    if not is_ok and pose.source == "landmarks":
        message += " The pose is that of the landmarks; without them one is searched for."
    judged = found.map
    if tear is not None:
        final, judged = (tear.torn(map_, problem) for map_ in (final, judged))
        message = f"{message} {tear.message(unit)}"
        at, to = unit.fixed(pairs.fixed), unit.moving(pairs.moving)
        miss = np.where(pairs.held_out[:, None], judged(at), final(at)) - to
        pairs = replace(pairs, residual=unit.scale * np.linalg.norm(miss, axis=1))
    return Match(
        transform=unit.transform_out(final.affine, final.field),
        judge=unit.transform_out(judged.affine, judged.field),
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
            "seams": [] if tear is None else tear.rows(unit),
        },
    )


def _hold_out(count: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Return which of the fixed spots only judge; none where there are few."""
    check_held_out(share)
    held = np.zeros(count, dtype=bool)
    if count >= _FEW and share > 0:
        number = int(np.clip(share * count, min(50, count // 5), _MOST_HELD_OUT))
        held[np.random.default_rng(seed).permutation(count)[:number]] = True
    return held
