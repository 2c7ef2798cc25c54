"""Known pairs: the pose that they give, and whether the matched spots agree with them.

A landmark is a pair that needs no search. It pulls the field of the drift and enters every fit like
a matched pair of its weight; a weight above 1 counts in the last fit only. Here is what else it
does. What the spots around it say of its partner is asked without it, so that one that is wrong is
seen, however heavy it is.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.affine import fit_affine, fit_rigid
from tilereg.matching.clouds import Unit
from tilereg.matching.coarse import Coarse
from tilereg.matching.evidence import Chance
from tilereg.matching.problem import Problem
from tilereg.points import Correspondences, Landmarks
from tilereg.transform import Affine, Transform

__all__ = ["agrees", "judge_landmarks", "landmark_pose", "warnings_of", "with_landmarks"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# An extent below this share of the largest, and one that is too small to tell a matrix by.
_FLAT, _THIN = 1e-3, 0.05
# An affine map is fitted to twice as many landmarks as it needs. Its matrix is pulled to that of a
# rotation: residuals of about half a spacing, entries within 0.05 of one.
_AFFINE, _PRIOR = 2, (0.5 / 0.05) ** 2
_ROUNDS, _LEAST = 30, 1e-3
# Fixed spots that tell which of some poses is best.
_ASKED = 4000
# Share of a cloud's size within which a pose agrees with landmarks.
_REGION = 0.5
# What the pairs around a place say of it: a plane through so many; it is contradicted by so many
# of their own errors, and by so many spacings.
_NEIGHBOURS, _CONTRADICTED, _TOLERATED = 16, 6.0, 0.2
_RIDGE = 1e-3
_MOST_NAMED = 3
# Spots so near a landmark, in spacings, judge nothing: it has told where they belong.
_TOLD = 1.0


def with_landmarks(problem: Problem, landmarks: Landmarks, unit: Unit) -> Problem:
    """Return a problem with landmarks in its unit; those of weight 0 are left out."""
    used = landmarks.take(landmarks.weight > 0)
    if not len(used):
        return problem
    inner = replace(used, fixed=unit.fixed(used.fixed), moving=unit.moving(used.moving))
    far = cKDTree(inner.fixed).query(problem.fixed)[0] > _TOLD
    return replace(problem, landmarks=inner, held=problem.held & far)


def landmark_pose(problem: Problem) -> Coarse | None:
    """Return the pose that landmarks give; None where they are too few, or on a line.

    Rigid of at least D landmarks, affine of twice as many as that needs. One landmark that is
    wrong spoils a fit by least squares, so one by least distances is made too, and the spots tell
    which is better; the pose's evidence is theirs.
    """
    used = problem.landmarks
    if used is None:
        return None
    ndim = used.ndim
    if len(used) < ndim or min(_extents(used.fixed)[-2], _extents(used.moving)[-2]) < _FLAT:
        return None
    is_affine = len(used) >= _AFFINE * (ndim + 1) and _extents(used.fixed)[-1] > _THIN
    kinds = [(k, r) for k in dict.fromkeys((is_affine, False)) for r in (True, False)]
    poses = [_fitted(used, is_affine=k, is_robust=r) for k, r in kinds]
    chance = Chance.of(problem.moving, problem.shelves, problem.crowding)
    rows = problem.fitted_rows[:: -(-len(problem.fitted_rows) // _ASKED)]
    found = [chance.evidence(problem.moved(pose, rows), 0) for pose in poses]
    # Of equals the first.
    best = int(np.argmin(found))
    return Coarse(poses[best], found[best], "landmarks", 0, 1.0)


def agrees(pose: Affine, problem: Problem) -> bool:
    """Whether a pose brings most landmarks at least into the right region of the moving cloud."""
    known = problem.landmarks
    if known is None:
        return True
    length = np.linalg.norm(pose(known.fixed) - known.moving, axis=1)
    size = math.sqrt(float(problem.moving.var(axis=0).sum()))
    return float(np.median(length)) < _REGION * size


def _extents(points: Floats) -> Floats:
    """Return the extents of (L, D) points along their own axes as shares of the largest."""
    size = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    full = np.zeros(points.shape[1])
    full[: len(size)] = size
    return full / max(float(size[0]), 1e-300)


def _fitted(landmarks: Landmarks, *, is_affine: bool, is_robust: bool) -> Affine:
    """Fit a map to landmarks, by least squares or by least distances."""
    trust = np.minimum(landmarks.weight, 1.0)
    weights = trust
    for _ in range(_ROUNDS if is_robust else 1):
        if is_affine:
            pose = fit_affine(landmarks.fixed, landmarks.moving, weights, prior=_PRIOR)
        else:
            pose = fit_rigid(landmarks.fixed, landmarks.moving, weights)
        length = np.linalg.norm(pose(landmarks.fixed) - landmarks.moving, axis=1)
        weights = trust / (length + _LEAST)
    return pose


def judge_landmarks(
    landmarks: Landmarks, transform: Transform, pairs: Correspondences
) -> Landmarks:
    """Return landmarks with their residuals, and with what the spots around say of them.

    Parameters
    ----------
    landmarks : Landmarks
    transform : Transform
    pairs : Correspondences
        Matched spots.

    Notes
    -----
    The partner of a landmark is predicted by a plane through the displacements of the nearest
    pairs of spots, and so is each of these from its own neighbours. Where pairs are farther off,
    more is tolerated: by the square of the distance, as what bends grows.
    """
    residual = np.linalg.norm(transform(landmarks.fixed) - landmarks.moving, axis=1)
    count = min(_NEIGHBOURS, len(pairs) - 1)
    if count < landmarks.ndim + 2 or len(landmarks) == 0:
        return replace(landmarks, residual=residual)
    tree = cKDTree(pairs.fixed)
    shifts = pairs.moving - pairs.fixed
    far, near = tree.query(landmarks.fixed, k=np.arange(1, count + 1))
    partner = landmarks.fixed + _predicted(landmarks.fixed, pairs.fixed, shifts, near)
    miss = np.linalg.norm(partner - landmarks.moving, axis=1)
    rows = np.unique(near)
    theirs, others = tree.query(pairs.fixed[rows], k=np.arange(2, count + 2))
    own = _predicted(pairs.fixed[rows], pairs.fixed, shifts, others) - shifts[rows]
    errors, reach = np.zeros(len(pairs)), np.zeros(len(pairs))
    errors[rows], reach[rows] = np.linalg.norm(own, axis=1), theirs[:, -1]
    spacing = float(np.median(tree.query(pairs.fixed[rows], k=[2])[0]))
    beyond = np.maximum(1.0, far[:, -1] / np.median(reach[near], axis=1)) ** 2
    usual = np.median(errors[near], axis=1)
    limit = np.maximum(_CONTRADICTED * usual, _TOLERATED * spacing) * beyond
    return replace(landmarks, residual=residual, miss=miss, is_contradicted=miss > limit)


def _predicted(at: Floats, points: Floats, values: Floats, near: Rows) -> Floats:
    """Return the values (Q, D) at (Q, D) places of planes through the points of rows (Q, L)."""
    local = points[near] - at[:, None]
    square = (local**2).sum(axis=2)
    size = np.maximum(square.mean(axis=1), 1e-300)[:, None]
    weight = np.exp(-0.5 * square / size)
    design = np.concatenate([np.ones((*near.shape, 1)), local / np.sqrt(size)[..., None]], axis=2)
    weighted = design * weight[..., None]
    system = np.einsum("qli,qlj->qij", weighted, design)
    slopes = np.arange(1, system.shape[1])
    system[:, slopes, slopes] += _RIDGE
    right = np.einsum("qli,qld->qid", weighted, values[near])
    return np.asarray(np.linalg.solve(system, right)[:, 0])


def warnings_of(landmarks: Landmarks) -> tuple[str, ...]:
    """Return a sentence on the landmarks that the spots contradict, the worst ones by number."""
    bad = np.flatnonzero(landmarks.is_contradicted)
    if not len(bad):
        return ()
    worst = bad[np.argsort(-landmarks.miss[bad], kind="stable")][:_MOST_NAMED]
    named = "; ".join(
        f"number {row} at ({', '.join(f'{c:.4g}' for c in landmarks.fixed[row])}) um lies "
        f"{landmarks.miss[row]:.3g} um from there, {landmarks.residual[row]:.3g} um from where the "
        "transform brings it"
        for row in worst.tolist()
    )
    if len(bad) > len(worst):
        named += f"; and {len(bad) - len(worst)} more"
    return (
        f"{len(bad)} of {len(landmarks)} landmarks (counted from 0) are not where the spots around "
        f"them say: {named}. Correct them, or leave them out.",
    )
