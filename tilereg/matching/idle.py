"""Spots of weight 0: they take part in nothing, and are told where their partners would be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilereg.matching.pairing import GATE, mutual_neighbours
from tilereg.matching.result import Match
from tilereg.matching.shelves import Shelves
from tilereg.points import Correspondences

__all__ = ["with_idle"]

Floats = NDArray[np.float64]
Labels = NDArray[Any]


def with_idle(
    match: Match,
    x: Floats,
    y: Floats,
    weights: tuple[Floats | None, Floats | None],
    classes: tuple[Labels, Labels] | None,
) -> Correspondences:
    """Return the pairs of a match and, of weight 0, those of fixed spots that took no part.

    A fixed spot of weight 0 is paired with a moving spot that no other has, where each is the
    nearest of the other within three standard deviations.

    Parameters
    ----------
    match : Match
    x, y : (N, D), (M, D) ndarrays, micrometre
        All spots, as they were given.
    weights : pair of (N,), (M,) ndarrays, optional
    classes : pair of (N,), (M,) ndarrays, optional
    """
    pairs = match.correspondences
    if weights[0] is None or not match.is_ok:
        return pairs
    is_free = np.ones(len(y), dtype=bool) if weights[1] is None else weights[1] > 0
    is_free[pairs.moving_index] = False
    ours, theirs = np.flatnonzero(weights[0] == 0), np.flatnonzero(is_free)
    if not len(ours) or not len(theirs):
        return pairs
    moved = match.transform(x[ours])
    # In mean spacings, as shelves are made for.
    places, targets = moved / match.spacing, y[theirs] / match.spacing
    numbers = None
    if classes is not None:
        every = np.concatenate([classes[0][ours], classes[1][theirs]])
        codes = np.unique(every, return_inverse=True)[1]
        numbers = codes[: len(ours)], codes[len(ours) :]
    shelves = Shelves.of(numbers, places, targets)
    near = GATE * math.sqrt(x.shape[1]) * match.residual_sigma / match.spacing
    one, two = mutual_neighbours(shelves.moved(places), shelves.targets(targets), near)
    idle = Correspondences(
        fixed=x[ours[one]],
        moving=y[theirs[two]],
        fixed_index=ours[one],
        moving_index=theirs[two],
        weight=np.zeros(len(one)),
        residual=np.linalg.norm(moved[one] - y[theirs[two]], axis=1),
        held_out=np.zeros(len(one), dtype=bool),
        tile=np.zeros(len(one), dtype=np.int64),
    )
    every_pair = pairs.beside(idle)
    return every_pair.take(np.argsort(every_pair.fixed_index, kind="stable"))
