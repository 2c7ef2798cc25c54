"""A pair of clouds of spots with a known map between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tilereg.matching.problem import Problem

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two clouds; the first `num_common` rows of both are the same spots before shuffling."""

    fixed: Floats
    moving: Floats
    partner: NDArray[np.int64]
    true_map: Callable[[Floats], Floats]


def make_pair(
    count: int,
    *,
    ndim: int = 3,
    overlap: float = 0.75,
    noise: float = 0.3,
    rotation: float = 3.0,
    shift: float = 20.0,
    bump: float = 6.0,
    width: float = 150.0,
    seed: int = 0,
) -> Pair:
    """Scatter spots some twelve voxels apart; the map is rotation, shift and smooth bumps."""
    rng = np.random.default_rng(seed)
    spacing = 12.0
    common = round(overlap * count)
    alone = count - common
    side = (
        spacing * 1.8 * (count / 8) ** (1 / 3) if ndim == 3 else 2.2 * spacing * (count / 4) ** 0.5
    )
    points = rng.uniform(0, side, (common + 2 * alone, ndim))
    turn = Rotation.from_euler("x", rotation, degrees=True).as_matrix()[3 - ndim :, 3 - ndim :]
    centres = rng.uniform(0, side, (6, ndim))
    pushes = rng.normal(size=(6, ndim))
    pushes *= bump / np.linalg.norm(pushes, axis=1, keepdims=True)

    def true_map(x: Floats) -> Floats:
        square = ((x[:, None] - centres) ** 2).sum(axis=-1)
        smooth = np.exp(-square / (2 * width**2)) @ pushes
        return (x - side / 2) @ turn.T + side / 2 + shift + smooth

    fixed = np.concatenate([points[:common], points[common : common + alone]])
    moving = true_map(np.concatenate([points[:common], points[common + alone :]]))
    order_fixed, order_moving = rng.permutation(count), rng.permutation(count)
    place = np.empty(count, dtype=np.int64)
    place[order_moving] = np.arange(count)
    partner = np.where(order_fixed < common, place[order_fixed], -1)
    return Pair(
        (fixed + rng.normal(0, noise, fixed.shape))[order_fixed],
        (moving + rng.normal(0, noise, moving.shape))[order_moving],
        partner,
        true_map,
    )


def make_problem(
    fixed: Floats,
    moving: Floats,
    held: NDArray[np.bool_],
    *,
    fixed_weight: Floats | None = None,
    moving_weight: Floats | None = None,
) -> Problem:
    """Return what an engine is given for clouds in units of the mean spacing."""
    return Problem(
        fixed=fixed,
        moving=moving,
        low=fixed.min(axis=0),
        high=fixed.max(axis=0),
        held=held,
        w=0.5,
        beta=None,
        field="auto",
        max_iterations=100,
        fixed_weight=fixed_weight,
        moving_weight=moving_weight,
    )
