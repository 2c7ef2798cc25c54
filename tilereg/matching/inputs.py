"""What a match is given, checked and put in order, and told back in the rows that it came in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.matching.checking import check_landmarks, check_weight
from tilereg.matching.classes import Arrangement, arrange, check_classes
from tilereg.matching.idle import with_idle
from tilereg.matching.landmarks import judge_landmarks, warnings_of
from tilereg.matching.result import Match, in_rows
from tilereg.points import Landmarks, Spots, check_points

__all__ = ["Inputs"]

Floats = NDArray[np.float64]
Labels = NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
    """Two clouds, and what is known of them.

    Parameters
    ----------
    fixed, moving : (N, D), (M, D) ndarrays, micrometre
        As they were given.
    classes : pair of (N,), (M,) ndarrays, optional
    weights : pair of (N,), (M,) ndarrays, optional
        None where all are 1.
    landmarks : Landmarks, optional
    arranged : Arrangement
        The spots that take part, in canonical order.
    """

    fixed: Floats
    moving: Floats
    classes: tuple[Labels, Labels] | None
    weights: tuple[Floats | None, Floats | None]
    landmarks: Landmarks | None
    arranged: Arrangement

    @classmethod
    def of(
        cls,
        fixed: ArrayLike | Spots,
        moving: ArrayLike | Spots,
        *,
        classes: tuple[ArrayLike | None, ArrayLike | None],
        weights: tuple[ArrayLike | None, ArrayLike | None],
        landmarks: Landmarks | Sequence[ArrayLike] | None,
    ) -> Inputs:
        """Check clouds, classes and weights, else those that spots have, and landmarks."""
        x, y = _positions(fixed, "fixed points"), _positions(moving, "moving points")
        ours, theirs = (
            _of_spots(points, "spot_class", given)
            for points, given in zip((fixed, moving), classes, strict=True)
        )
        checked = check_classes(ours, theirs, len(x), len(y))
        trust = (
            check_weight(_of_spots(fixed, "weight", weights[0]), len(x), "fixed"),
            check_weight(_of_spots(moving, "weight", weights[1]), len(y), "moving"),
        )
        return cls(
            fixed=x,
            moving=y,
            classes=checked,
            weights=trust,
            landmarks=check_landmarks(landmarks),
            arranged=arrange(x, y, checked, trust),
        )

    @property
    def ordered(self) -> tuple[Floats, Floats]:
        """The spots that take part, in canonical order."""
        rows = self.arranged.rows
        return self.fixed[rows[0]], self.moving[rows[1]]

    @property
    def box(self) -> tuple[Floats, Floats]:
        """The box of the fixed spots that take part, and of the landmarks."""
        points = self.ordered[0]
        if self.landmarks is not None:
            points = np.concatenate([points, self.landmarks.fixed])
        return points.min(axis=0), points.max(axis=0)

    @property
    def beside(self) -> dict[str, bool]:
        """What there is beside the clouds, that an engine must be able to use."""
        return {
            "spot classes": self.classes is not None,
            "landmarks": self.landmarks is not None,
            "spot weights": any(weight is not None for weight in self.weights),
        }

    def told(self, match: Match) -> Match:
        """Return the match of the ordered spots with the rows that were given.

        With what was left out for its class or its weight, and how the landmarks are obeyed.
        """
        pairs = in_rows(match.correspondences, *self.arranged.rows)
        match = replace(match, correspondences=pairs)
        pairs = with_idle(match, self.fixed, self.moving, self.weights, self.classes)
        match = replace(match, correspondences=pairs)
        if self.arranged.message:
            details = match.details | {"alone": self.arranged.alone}
            message = f"{match.message} {self.arranged.message}"
            match = replace(match, message=message, details=details)
        known = self.landmarks
        if known is None:
            return match
        if match.model != "none":
            known = judge_landmarks(known, match.transform, pairs)
        warnings = warnings_of(known) if match.is_ok else ()
        return replace(match, landmarks=known, warnings=warnings)


def _positions(points: ArrayLike | Spots, name: str) -> Floats:
    """Return the positions of points or spots, checked."""
    return check_points(points.positions if isinstance(points, Spots) else points, name)


def _of_spots(points: ArrayLike | Spots, name: str, given: ArrayLike | None) -> ArrayLike | None:
    """Return the classes or weights that are given, else those that spots have."""
    if given is not None or not isinstance(points, Spots):
        return given
    found: ArrayLike | None = getattr(points, name)
    return found
