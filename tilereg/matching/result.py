"""The result of a match: the map, the pairs, and the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilereg.matching.pairing import GATE, mutual_neighbours
from tilereg.matching.problem import Problem
from tilereg.points import Correspondences, Landmarks
from tilereg.transform import Transform

__all__ = ["Match", "correspondences", "in_rows", "nothing"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Match:
    """What was found between a fixed and a moving cloud.

    Parameters
    ----------
    transform : Transform
        The pull-back, fixed to moving, micrometre. Not to be used unless the status is 'ok':
        else it is the identity, or what was fitted before the verdict.
    judge : Transform
        The map that the held-out spots have judged: they took their partners, but no fit has seen
        them. `transform` is the same, or one of the same kind that was then fitted to all pairs,
        theirs too. Evidence, shares and `residual_sigma` are of this map.
    correspondences : Correspondences
        The pairs: those that `transform` was fitted to, or the mutual nearest ones within three
        standard deviations of the residual. Residuals of held-out pairs are those of `judge`.
    status : str
        'ok'; 'no registration' where chance explains the pairs; 'few spots' where there are too
        few to tell.
    message : str
        The status in a sentence, with the figures behind it.
    evidence : float
        Log10 of the probability that chance gives as many held-out spots a partner.
    share_matched, share_chance : float
        Share of the fixed spots within reach of a moving spot, and the same share when the fixed
        spots are moved aside.
    residual_sigma : float, micrometre
        Standard deviation of a pair an axis.
    w : float
        Estimated share of moving spots without a partner.
    model : str
        'translation', 'rigid', 'affine' or 'field'.
    beta : float, micrometre
        Coherence width of the field; infinite where it is a thin-plate spline, NaN for the other
        models.
    spacing : float, micrometre
        Mean distance of nearest neighbours of the fixed spots.
    details : dict
        Source and evidence of the pose, losses of all models, iterations; 'field': 'coherent',
        'kriging', 'thin-plate' through many grown pairs or None; residuals of the held-out pairs
        that it was chosen by.
    landmarks : Landmarks, optional
        The known pairs that were given, and how each is obeyed.
    warnings : tuple of str
        What a user must know before the transform is used, a sentence each.
    """

    transform: Transform
    judge: Transform
    correspondences: Correspondences
    status: str
    message: str
    evidence: float
    share_matched: float
    share_chance: float
    residual_sigma: float
    w: float
    model: str
    beta: float
    spacing: float
    details: dict[str, Any]
    landmarks: Landmarks | None = None
    warnings: tuple[str, ...] = ()

    @property
    def is_ok(self) -> bool:
        """Whether a registration was found that chance does not explain."""
        return self.status == "ok"


def correspondences(
    problem: Problem, moved: Floats, sigma: float, pairs: tuple[Rows, Rows] | None = None
) -> Correspondences:
    """Return pairs with their residuals and weights, in the problem's unit.

    Parameters
    ----------
    problem : Problem
    moved : (N, D) ndarray
        Where the map brings the fixed spots.
    sigma : float
        Standard deviation of a pair an axis.
    pairs : tuple of (K,) ndarrays, optional
        Rows. Default: the mutual nearest pairs within three standard deviations.
    """
    fixed, moving, shelves = problem.fixed, problem.moving, problem.shelves
    ndim = fixed.shape[1]
    if pairs is None:
        near = GATE * math.sqrt(ndim) * sigma
        pairs = mutual_neighbours(shelves.moved(moved), problem.targets, near)
    ours, theirs = pairs
    square = ((moved[ours] - moving[theirs]) ** 2).sum(1)
    # Posterior of the pair against an outlier of the local density.
    outlier = (2 * math.pi * sigma**2) ** (ndim / 2) * shelves.num_alike(moving)
    outlier /= max(len(ours), 1)
    volume = float(np.prod(np.maximum(np.ptp(moving, axis=0), 1.0)))
    likely = np.exp(-0.5 * square / sigma**2)
    weight = likely / (likely + outlier / volume)
    if (trust := problem.confidence(ours, theirs)) is not None:
        weight *= trust
    return Correspondences(
        fixed=fixed[ours],
        moving=moving[theirs],
        fixed_index=ours,
        moving_index=theirs,
        # Zero says that a pair entered nothing.
        weight=np.maximum(weight, np.finfo(np.float64).tiny),
        residual=np.sqrt(square),
        held_out=problem.held[ours],
        tile=np.zeros(len(ours), dtype=np.int64),
    )


def in_rows(pairs: Correspondences, fixed_rows: Rows, moving_rows: Rows) -> Correspondences:
    """Return pairs of ordered clouds with the rows of the clouds as given, sorted by the fixed."""
    ours, theirs = fixed_rows[pairs.fixed_index], moving_rows[pairs.moving_index]
    order = np.argsort(ours)
    columns = {f.name: getattr(pairs, f.name)[order] for f in fields(pairs)}
    columns |= {"fixed_index": ours[order], "moving_index": theirs[order]}
    return Correspondences(**columns)


def nothing(
    x: Floats, message: str, *, status: str = "few spots", spacing: float = math.nan
) -> Match:
    """Return a match that says that there is none."""
    ndim = x.shape[1]
    none, rows = np.empty(0), np.empty(0, dtype=np.int64)
    empty = Correspondences(
        fixed=np.empty((0, ndim)), moving=np.empty((0, ndim)), fixed_index=rows, moving_index=rows,
        weight=none, residual=none, held_out=np.empty(0, dtype=bool), tile=rows,
    )  # fmt: skip
    identity = Transform.identity(ndim)
    return Match(
        transform=identity, judge=identity, correspondences=empty, status=status, message=message,
        evidence=0.0, share_matched=0.0, share_chance=0.0, residual_sigma=math.nan, w=1.0,
        model="none", beta=math.nan, spacing=spacing, details={"seams": []},
    )  # fmt: skip
