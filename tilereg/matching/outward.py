"""Extend a pose that was found in a part of the clouds over all of them.

A pose is grown from one block of spots by fits to nearest neighbours, which ends where a
deformation takes spots farther than about half a spacing. Blocks that vote reach several times as
far: an affine map through the votes of ever more of the cloud follows it to its ends.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tilereg.affine import fit_affine
from tilereg.matching.cells import CellList
from tilereg.matching.coarse import Coarse
from tilereg.matching.problem import Problem
from tilereg.matching.votes import CLEAR, VOTE_CELL, Ballot, Votes
from tilereg.transform import Affine

__all__ = ["extend_pose"]

Floats = NDArray[np.float64]

# Blocks that vote in each ring, and the share of them that must be clear.
_BLOCKS, _MOST_UNCLEAR = 100, 0.7
# Spots that a ring begins with.
_FEWEST = 500
# Residual of a vote in spacings: at least; and how closely a matrix is known.
_LEAST, _USUAL, _KNOWN = 0.3, 1.0, 0.05
_ROUNDS = 8
_MOST_STRETCH = 1.5


def extend_pose(problem: Problem, pose: Coarse) -> Coarse:
    """Return the pose that blocks all over the cloud vote for, as far as they do.

    Parameters
    ----------
    problem : Problem
    pose : Coarse
        Found around one of the spots that may enter a fit.

    Returns
    -------
    Coarse
        The same where it covers the cloud already, or no ring around it votes clearly.
    """
    fixed = problem.fitted
    if pose.coverage >= 1 or len(fixed) < _FEWEST:
        return pose
    near = problem.crowding
    ballot = Ballot(fixed, CellList.build(problem.targets, near * VOTE_CELL), near)
    order = np.argsort(((fixed - fixed[pose.centre]) ** 2).sum(axis=1), kind="stable")
    size = max(_FEWEST, int(pose.coverage * len(fixed)))
    while pose.coverage < 1:
        size = min(2 * size, len(fixed))
        picked = order[np.linspace(0, size - 1, min(_BLOCKS, size)).astype(np.int64)]
        moved = problem.moved(pose.affine, problem.fitted_rows)
        votes = ballot.count_of(moved, ballot.around(picked), np.arange(len(picked)))
        affine = _through(votes, pose.affine, near)
        if affine is None:
            return pose
        pose = replace(pose, affine=affine, coverage=size / len(fixed))
    return pose


def _through(votes: Votes, affine: Affine, near: float) -> Affine | None:
    """Fit an affine map to clear votes on top of one; None where they tell nothing of it."""
    clear = votes.take(votes.scores > CLEAR)
    if len(clear.scores) < (1 - _MOST_UNCLEAR) * len(votes.scores):
        return None
    targets = affine(clear.centres) + clear.shifts
    prior = (near * _USUAL / _KNOWN) ** 2
    fitted = affine
    for _ in range(_ROUNDS):
        miss = np.linalg.norm(fitted(clear.centres) - targets, axis=1)
        scale = max(near * _LEAST, float(np.median(miss)))
        weights = 1 / (1 + (miss / scale) ** 2) ** 2
        fitted = fit_affine(clear.centres, targets, weights, prior=prior, centre=affine)
    change = fitted.compose(affine.inverse)
    is_sound = np.linalg.det(change.matrix) > 0 and change.stretch <= _MOST_STRETCH
    return fitted if is_sound else None
