"""What may be asked of a match, and what is said about anything else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.errors import InputError
from tilereg.lattice import Lattice
from tilereg.matching.engines import METHODS
from tilereg.matching.problem import Problem
from tilereg.points import Landmarks
from tilereg.smoothing import Coherent
from tilereg.transform import Affine

__all__ = [
    "FIELDS",
    "check_axes",
    "check_choice",
    "check_held_out",
    "check_landmarks",
    "check_numbers",
    "check_weight",
    "check_width",
]

Floats = NDArray[np.float64]

FIELDS = ("auto", "coherent", "kriging")

_MOST_NODES = 1_000_000


def check_choice(method: str, field: str, beta: float | None) -> None:
    """Raise unless method and field are known, and the field has a width."""
    if method not in METHODS:
        raise InputError(f"Invalid method '{method}'. Known methods: {', '.join(METHODS)}.")
    if field not in FIELDS:
        raise InputError(f"Invalid field '{field}'. Known fields: {', '.join(FIELDS)}.")
    if field == "kriging" and beta is not None:
        raise InputError(
            "A kriging field chooses its own width, beta is that of the drift's. Leave one out."
        )


def check_landmarks(landmarks: Landmarks | Sequence[ArrayLike] | None) -> Landmarks | None:
    """Return landmarks as a record; None where there are none."""
    if landmarks is None:
        return None
    if not isinstance(landmarks, Landmarks):
        if len(landmarks) not in (2, 3):
            raise InputError(
                f"Invalid landmarks: {len(landmarks)} arrays. Give fixed points, moving points "
                "and, if they differ, weights."
            )
        landmarks = Landmarks.of(*landmarks)
    return landmarks if len(landmarks) else None


def check_weight(weight: ArrayLike | None, count: int, role: str) -> Floats | None:
    """Return the weights of a cloud as an array; None where all are 1."""
    if weight is None:
        return None
    trust = np.asarray(weight, dtype=np.float64)
    if trust.shape != (count,):
        raise InputError(
            f"Invalid shape {trust.shape} of the {role} weights. One a spot is needed: ({count},)."
        )
    bad = ~((trust >= 0) & (trust <= 1))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"Invalid weight {trust[row]} of {role} spot {row}, counted from 0. A weight is a "
            "number from 0 (takes no part) to 1."
        )
    return None if (trust == 1).all() else trust


def check_axes(
    fixed: Floats, moving: Floats, initial: Affine | None, landmarks: Landmarks | None
) -> None:
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
    if landmarks is not None and landmarks.ndim != fixed.shape[1]:
        raise InputError(
            f"Landmarks have {landmarks.ndim} axes, the points have {fixed.shape[1]}. All must "
            "have the same."
        )


def check_held_out(share: float) -> None:
    """Raise unless a share of spots can be held out."""
    if not 0 <= share < 0.5:
        raise InputError(f"Invalid held_out {share}. A share of 0 to below 0.5 is needed.")


def check_numbers(
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


def check_width(problem: Problem, beta: float | None) -> None:
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
