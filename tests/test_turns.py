"""Small clouds in any pose that have no neighbourhoods in common: the whole must tell."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tilereg import match_spots
from tilereg.matching.turns import followed, rotations

Floats = NDArray[np.float64]


def shell(seed: int, count: int = 120) -> Floats:
    """Cells at about even distances on an egg with a dent: alike everywhere, but for the shape."""
    rng = np.random.default_rng(seed)
    turn = np.arange(count) + 0.5
    height, angle = 1 - 2 * turn / count, turn * np.pi * (1 + np.sqrt(5))
    wide = np.sqrt(1 - height**2)
    points = np.stack([height, wide * np.sin(angle), wide * np.cos(angle)], axis=1)
    points *= [150.0, 100.0, 70.0]
    points[:, 1] += 0.002 * points[:, 0] ** 2
    points[:, 2] += 0.3 * np.where(points[:, 0] > 0, points[:, 0], 0.0)
    return points + rng.normal(0, 2, points.shape)


@pytest.mark.parametrize("seed", range(3))
def test_a_shell_of_cells_in_any_pose(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    fixed = shell(seed)
    turn = Rotation.random(random_state=seed).as_matrix()
    moving = 1.12 * fixed @ turn.T + 6.0 * np.sin(fixed / 60.0) @ turn.T + 400.0
    moving += rng.normal(0, 2.0, fixed.shape)
    order = rng.permutation(len(fixed))
    match = match_spots(fixed, moving[order])
    assert match.is_ok
    pairs = match.correspondences
    right = order[pairs.moving_index] == pairs.fixed_index
    assert right.sum() >= 0.9 * len(fixed)


@pytest.mark.parametrize(("ndim", "most_gap"), [(2, 1.6), (3, 16.0)])
def test_rotations_leave_no_gap(ndim: int, most_gap: float) -> None:
    """Every rotation has one of them near it."""
    turns = rotations(ndim, 180.0)
    np.testing.assert_allclose(
        turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(ndim), turns.shape), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(turns), 1.0)
    if ndim == 3:
        wanted = Rotation.random(200, random_state=0).as_matrix()
    else:
        angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 200)
        wanted = np.array(
            [[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]]
        ).transpose(2, 0, 1)
    trace = np.einsum("aij,bij->ab", wanted, turns)
    cosine = (trace - 1) / 2 if ndim == 3 else trace / 2
    gap = np.degrees(np.arccos(np.clip(cosine, -1, 1))).min(axis=1)
    assert gap.max() < most_gap
    assert len(rotations(ndim, 0.5)) < len(turns) / 20


@pytest.mark.parametrize("ndim", [2, 3])
def test_closest_points_lead_to_the_right_end(ndim: int) -> None:
    rng = np.random.default_rng(5)
    fixed = rng.uniform(0, 8, (90, ndim)) * np.array([2.0, 1.0, 1.0])[:ndim]
    turn = Rotation.from_rotvec([0, 0, 2.2]).as_matrix()[3 - ndim :, 3 - ndim :] if ndim == 3 else (
        np.array([[np.cos(2.2), -np.sin(2.2)], [np.sin(2.2), np.cos(2.2)]])
    )  # fmt: skip
    moving = fixed @ turn.T + 3.0
    best, *others = followed(fixed, moving)
    assert np.abs(best(fixed) - moving).max() < 1e-6
    assert all(np.abs(other(fixed) - moving).mean() > 0.2 for other in others)
