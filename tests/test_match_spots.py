"""Matching: theorems, and the error of the field on clouds with a known map."""

from __future__ import annotations

import numpy as np
import pytest
from clouds import make_pair
from scipy.spatial.transform import Rotation

from tilereg import Affine, InputError, match_spots


def _error(transform, pair) -> np.ndarray:
    return np.linalg.norm(transform(pair.fixed) - pair.true_map(pair.fixed), axis=1)


@pytest.mark.parametrize(
    ("count", "ndim", "most"), [(300, 3, 0.35), (2000, 3, 0.2), (300, 2, 0.5), (2000, 2, 0.25)]
)
def test_field_error(count: int, ndim: int, most: float) -> None:
    pair = make_pair(count, ndim=ndim)
    match = match_spots(pair.fixed, pair.moving)
    assert match.is_ok
    assert np.median(_error(match.transform, pair)) < most
    pairs = match.correspondences
    assert (pair.partner[pairs.fixed_index] == pairs.moving_index).mean() > 0.98
    assert abs(match.w - 0.25) < 0.15


@pytest.mark.parametrize("rotation", [15.0, -15.0, 120.0])
@pytest.mark.parametrize("ndim", [2, 3])
def test_rotation_and_far_shift(rotation: float, ndim: int) -> None:
    pair = make_pair(1500, ndim=ndim, rotation=rotation, shift=1e5)
    match = match_spots(pair.fixed, pair.moving)
    assert match.is_ok
    assert np.median(_error(match.transform, pair)) < 0.3


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_rotation_about_any_axis(axis: str) -> None:
    pair = make_pair(1500, rotation=0.0)
    turn = Rotation.from_euler(axis, 15, degrees=True).as_matrix()
    match = match_spots(pair.fixed, pair.moving @ turn.T)
    assert match.is_ok
    error = match.transform(pair.fixed) - pair.true_map(pair.fixed) @ turn.T
    assert np.median(np.linalg.norm(error, axis=1)) < 0.3


def test_few_partners() -> None:
    pair = make_pair(3000, overlap=0.3)
    match = match_spots(pair.fixed, pair.moving)
    assert match.is_ok
    assert np.median(_error(match.transform, pair)) < 0.3
    assert abs(match.w - 0.7) < 0.1


def test_scale_of_a_few_per_cent() -> None:
    pair = make_pair(1500)
    match = match_spots(pair.fixed, pair.moving * [0.95, 1.03, 1.03])
    assert match.is_ok
    error = match.transform(pair.fixed) - pair.true_map(pair.fixed) * [0.95, 1.03, 1.03]
    assert np.median(np.linalg.norm(error, axis=1)) < 0.3


@pytest.mark.parametrize("scale", [0.8, 1.25])
@pytest.mark.parametrize(("ndim", "rotation"), [(2, 0.0), (2, 140.0), (3, 0.0), (3, 140.0)])
def test_sizes_that_differ(scale: float, ndim: int, rotation: float) -> None:
    pair = make_pair(1500, ndim=ndim, rotation=rotation)
    match = match_spots(pair.fixed, scale * pair.moving)
    assert match.is_ok
    error = match.transform(pair.fixed) - scale * pair.true_map(pair.fixed)
    assert np.median(np.linalg.norm(error, axis=1)) < 0.3


@pytest.mark.parametrize("ndim", [2, 3])
def test_affine_without_noise_is_exact(ndim: int) -> None:
    fixed = np.random.default_rng(1).uniform(0, 300, (600, ndim))
    matrix = np.eye(ndim) + np.random.default_rng(2).normal(0, 0.01, (ndim, ndim))
    match = match_spots(fixed, fixed @ matrix.T + 7.0)
    assert match.is_ok
    np.testing.assert_allclose(match.transform(fixed), fixed @ matrix.T + 7.0, atol=1e-2)


def test_unit_changes_nothing_but_units() -> None:
    pair = make_pair(800)
    match = match_spots(pair.fixed, pair.moving)
    for unit in (1e-3, 1e3):
        other = match_spots(pair.fixed * unit, pair.moving * unit)
        np.testing.assert_array_equal(
            other.correspondences.fixed_index, match.correspondences.fixed_index
        )
        np.testing.assert_allclose(
            other.transform(pair.fixed * unit) / unit, match.transform(pair.fixed), atol=0.03
        )


def test_order_of_the_spots_changes_nothing() -> None:
    pair = make_pair(800)
    rng = np.random.default_rng(3)
    rows, others = rng.permutation(800), rng.permutation(800)
    match = match_spots(pair.fixed, pair.moving)
    other = match_spots(pair.fixed[rows], pair.moving[others])
    np.testing.assert_allclose(other.transform(pair.fixed), match.transform(pair.fixed), atol=1e-6)
    found = set(
        zip(match.correspondences.fixed_index, match.correspondences.moving_index, strict=True)
    )
    again = set(
        zip(
            rows[other.correspondences.fixed_index],
            others[other.correspondences.moving_index],
            strict=True,
        )
    )
    assert found == again


def test_same_input_same_bits() -> None:
    pair = make_pair(500)
    first, second = (match_spots(pair.fixed, pair.moving) for _ in range(2))
    np.testing.assert_array_equal(first.transform(pair.fixed), second.transform(pair.fixed))


def test_far_outliers_change_little() -> None:
    pair = make_pair(800)
    match = match_spots(pair.fixed, pair.moving)
    extra = np.random.default_rng(4).uniform(-2000, -1000, (80, 3))
    other = match_spots(pair.fixed, np.concatenate([pair.moving, extra]))
    gap = np.linalg.norm(other.transform(pair.fixed) - match.transform(pair.fixed), axis=1)
    assert np.median(gap) < 0.1


def test_held_out_spots_judge_only() -> None:
    pair = make_pair(1000)
    match = match_spots(pair.fixed, pair.moving)
    pairs = match.correspondences
    assert 20 < pairs.held_out.sum() < 100
    # Held-out spots that are moved away change nothing of the transform.
    held = pairs.fixed_index[pairs.held_out]
    residual = np.linalg.norm(
        match.transform(pair.fixed[held]) - pairs.moving[pairs.held_out], axis=1
    )
    assert np.median(residual) < 1.0
    none = match_spots(pair.fixed, pair.moving, held_out=0.0)
    assert not none.correspondences.held_out.any()


def test_given_pose_is_used() -> None:
    pair = make_pair(800, rotation=0.0)
    pose = Affine(np.eye(3), np.full(3, 20.0))
    match = match_spots(pair.fixed, pair.moving, initial=pose)
    assert match.details["pose"]["source"] == "given"
    assert np.median(_error(match.transform, pair)) < 0.3
    wrong = Affine(np.eye(3), np.full(3, -500.0))
    assert not match_spots(pair.fixed, pair.moving, initial=wrong).is_ok


def test_mirror_image_is_not_matched() -> None:
    pair = make_pair(600)
    assert not match_spots(pair.fixed, pair.moving * [-1, 1, 1]).is_ok


@pytest.mark.parametrize("trial", range(20))
def test_unrelated_clouds(trial: int) -> None:
    rng = np.random.default_rng(trial)
    ndim, count = 2 + trial % 2, [10, 30, 100, 300, 800][trial % 5]
    clouds = rng.uniform(0, 300, (2, count, ndim))
    if trial >= 10:
        clouds[:, count // 2 :] = clouds[:, : count - count // 2] + rng.normal(
            0, 4, (2, count - count // 2, ndim)
        )
    match = match_spots(*clouds)
    assert not match.is_ok
    assert match.status == "no registration"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_spots(count: int) -> None:
    points = np.random.default_rng(0).uniform(0, 10, (count, 3))
    match = match_spots(points, points)
    assert match.status == "few spots"
    assert len(match.correspondences) == 0


def test_flat_clouds() -> None:
    pair = make_pair(500, ndim=2)
    flat = [np.column_stack([np.full(500, 3.0), p]) for p in (pair.fixed, pair.moving)]
    match = match_spots(*flat)
    assert match.is_ok
    error = match.transform(flat[0])[:, 1:] - pair.true_map(pair.fixed)
    assert np.median(np.linalg.norm(error, axis=1)) < 0.5


def test_wrong_input_is_refused() -> None:
    points = np.zeros((10, 3))
    bad = points.copy()
    bad[4, 1] = np.nan
    with pytest.raises(InputError, match="row 4"):
        match_spots(points, bad)
    with pytest.raises(InputError, match="3 axes"):
        match_spots(points, points[:, :2])
    with pytest.raises(InputError, match="Known methods"):
        match_spots(points, points, method="magic")


@pytest.mark.slow
def test_fifty_thousand_spots() -> None:
    pair = make_pair(50_000)
    match = match_spots(pair.fixed, pair.moving)
    assert match.is_ok
    assert np.median(_error(match.transform, pair)) < 0.1


def test_a_width_that_no_lattice_can_hold_is_refused() -> None:
    points = np.random.default_rng(0).uniform(0, 100, (300, 3))
    with pytest.raises(InputError, match=r"use .* um or more"):
        match_spots(points, points, beta=0.5)


def test_few_held_out_spots_do_not_decide_over_a_shift() -> None:
    """All spots judge a map of few parameters: sixteen held-out ones are too few for that."""
    rng = np.random.default_rng(4)
    common = rng.uniform(0, 200, (46, 2))
    fixed = np.concatenate([common, rng.uniform(0, 200, (37, 2))])
    moving = np.concatenate([common, rng.uniform(0, 200, (19, 2))]) + [1.2, -4.2]
    match = match_spots(fixed, moving + rng.normal(0, 0.4, moving.shape))
    assert match.is_ok
    assert match.model in ("translation", "rigid", "affine")
    assert match.evidence < -15
    shift = match.transform(np.array([[100.0, 100.0]]))[0] - 100
    assert np.abs(shift - [1.2, -4.2]).max() < 0.5
