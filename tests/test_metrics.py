"""Metrics against values that are known, and their theorems."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tilereg import metrics
from tilereg.errors import InputError


def spots_image(positions: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    image = np.zeros(shape)
    image[tuple(positions.T)] = 100.0
    return ndimage.gaussian_filter(image, 1.0)


def test_field_error_of_a_known_shift() -> None:
    points = np.random.default_rng(0).uniform(0, 10, (50, 3))
    error = metrics.field_error(lambda p: p + [0.3, 0.0, 0.4], lambda p: p, points, (0.3, 0.1, 0.2))
    assert error.count == 50
    for value in (error.median, error.p95, error.rms, error.max):
        assert value == pytest.approx(0.5)
    assert error.max_voxels == pytest.approx(np.hypot(1, 2))
    assert np.isnan(metrics.field_error(lambda p: p, lambda p: p, points).rms_voxels)


def test_field_error_changes_with_the_unit_only() -> None:
    rng = np.random.default_rng(1)
    points, noise = rng.uniform(0, 10, (60, 2)), rng.normal(size=(60, 2))
    one = metrics.field_error(lambda p: p + noise, lambda p: p, points, (2.0, 3.0))
    nano = metrics.field_error(
        lambda p: p + noise * 1e3, lambda p: p, points * 1e3, (2000.0, 3000.0)
    )
    assert nano.p95 == pytest.approx(one.p95 * 1e3)
    assert nano.p95_voxels == pytest.approx(one.p95_voxels)


def test_field_error_leaves_out_what_has_no_truth() -> None:
    points = np.array([[0.0, 0.0], [1.0, 1.0]])
    partly = metrics.field_error(
        lambda p: p, lambda p: np.where(p > 0.5, np.nan, p + [0.0, 2.0]), points
    )
    assert (partly.count, partly.max) == (1, 2.0)
    with pytest.raises(InputError, match="1 of 2 points"):
        metrics.field_error(lambda p: np.where(p > 0.5, np.nan, p), lambda p: p, points)


def test_errors_inside_and_outside_the_hull() -> None:
    rng = np.random.default_rng(9)
    points, hull = rng.uniform(0, 10, (400, 3)), rng.uniform(2, 8, (300, 3))
    within = metrics.inside_hull(points, hull)

    def transform(p: NDArray[np.float64]) -> NDArray[np.float64]:
        return p + [[0.0, 0.3, 0.4]] + 5 * ~metrics.inside_hull(p, hull)[:, None] * [1.0, 0, 0]

    inside, outside = metrics.hull_errors(transform, lambda p: p, points, hull, (1.0, 0.1, 0.1))
    assert 20 < inside.count == within.sum() < 380
    assert inside.count + outside.count == 400
    assert (inside.median, inside.max) == pytest.approx((0.5, 0.5))
    assert inside.median_voxels == pytest.approx(5.0)
    assert outside.median == pytest.approx(np.hypot(5, 0.5))
    nowhere, everywhere = metrics.hull_errors(transform, lambda p: p, points, np.empty((0, 3)))
    assert (nowhere.count, everywhere.count) == (0, 400)
    assert np.isnan(nowhere.median)


def test_hull_of_a_box() -> None:
    corners = np.array([[z, y, x] for z in (0, 2) for y in (0, 1) for x in (0, 5)], float)
    cloud = np.vstack([corners, np.random.default_rng(2).uniform([0] * 3, [2, 1, 5], (500, 3))])
    points = np.random.default_rng(3).uniform(-1, 6, (2000, 3))
    expected = ((points >= 0) & (points <= [2, 1, 5])).all(axis=1)
    assert expected.any()
    assert (metrics.inside_hull(points, cloud) == expected).all()
    assert metrics.inside_hull(corners, cloud).all()
    assert (metrics.inside_hull(points * 1e-6, cloud * 1e-6) == expected).all()
    assert (metrics.inside_hull(points + 1e4, cloud + 1e4) == expected).all()


def test_hull_of_flat_clouds() -> None:
    rng = np.random.default_rng(4)
    plane = np.hstack([np.full((100, 1), 7.0), rng.uniform(0, 1, (100, 2))])
    middle = np.array([[7.0, 0.5, 0.5], [7.5, 0.5, 0.5], [7.0, 2.0, 0.5]])
    assert metrics.inside_hull(middle, plane).tolist() == [True, False, False]
    line = np.outer([0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    on_line = np.array([[0.5, 1.0, 1.5], [0.5, 1.0, 1.6], [3.0, 6.0, 9.0]])
    assert metrics.inside_hull(on_line, line).tolist() == [True, False, False]
    point = np.array([[1.0, 2.0]] * 3)
    assert metrics.inside_hull([[1.0, 2.0], [1.0, 2.1]], point).tolist() == [True, False]
    assert not metrics.inside_hull(middle, np.empty((0, 3))).any()


def test_ncc_against_numpy() -> None:
    rng = np.random.default_rng(5)
    a = rng.normal(size=(6, 7, 8))
    b = a + rng.normal(size=a.shape)
    mask = rng.uniform(size=a.shape) > 0.3
    assert metrics.ncc(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert metrics.ncc(a, b, mask) == pytest.approx(np.corrcoef(a[mask], b[mask])[0, 1])
    assert metrics.ncc(a, 3 * a - 2) == pytest.approx(1.0)
    assert metrics.ncc(a, -a) == pytest.approx(-1.0)
    assert np.isnan(metrics.ncc(a, np.ones_like(a)))


def test_ncc_in_blocks_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(6)
    # A background a million times the deviation: plain sums of squares would lose it.
    a = rng.normal(size=1001) + 1e6
    b = a + rng.normal(size=1001)
    cuts = [0, 1, 1, 500, 737, 1001]
    parts = [metrics.NccSums().add(a[i:j], b[i:j]) for i, j in pairwise(cuts)]
    merged = metrics.NccSums()
    for part in reversed(parts):
        merged = merged.merge(part)
    whole = np.corrcoef(a - 1e6, b - 1e6)[0, 1]
    assert merged.ncc == pytest.approx(whole, rel=1e-9)
    assert merged.count == 1001
    assert np.isnan(metrics.NccSums().ncc)


def test_ssim() -> None:
    rng = np.random.default_rng(7)
    a = rng.uniform(size=(9, 20, 20))
    assert metrics.ssim(a, a) == pytest.approx(1.0)
    assert metrics.ssim(a, rng.uniform(size=a.shape)) < 0.5
    assert metrics.ssim(a[:1], a[:1]) == pytest.approx(1.0)
    assert metrics.ssim(a[:4], a[:4]) == pytest.approx(1.0)
    with pytest.raises(InputError, match=r"\(2, 20, 20\)"):
        metrics.ssim(a[:2], a[:2])
    with pytest.raises(InputError, match="differ"):
        metrics.ssim(a, a[:8])


def test_bright_voxels() -> None:
    rng = np.random.default_rng(8)
    a = rng.uniform(size=(10, 30, 30))
    assert metrics.iou_bright(a, a) == 1.0
    assert metrics.iou_bright(a, 2 * a + 5) == 1.0
    assert metrics.iou_bright(a, -a) == 0.0
    assert np.isnan(metrics.iou_bright(np.ones((3, 3)), np.ones((3, 3))))
    assert metrics.mad_bright(a, 4 * a) == 0.0
    assert metrics.mad_bright(a, np.zeros_like(a)) > 0.9


def test_mad_uses_the_same_mask_before_and_after() -> None:
    reference, before = np.zeros((2, 10, 10)), np.zeros((2, 10, 10))
    reference[0, 2, 2] = before[1, 7, 7] = 5.0
    # Two pixels in the mask; each image misses the other's spot.
    assert metrics.mad_bright(reference, before) == 1.0
    assert metrics.mad_bright(reference, reference, before=before) == 0.0
    assert metrics.mad_bright(reference, np.zeros_like(before), before=before) == 0.5


def test_match_rate() -> None:
    positions = np.argwhere(np.ones((3, 4, 4))) * 9 + 5
    shape = (30, 40, 40)
    a = spots_image(positions, shape)
    assert metrics.match_rate(a, a) == 1.0
    assert metrics.match_rate(a, spots_image(positions + [0, 1, 1], shape)) == 1.0
    assert metrics.match_rate(a, spots_image(positions + [0, 2, 1], shape)) == 0.0
    assert metrics.match_rate(a, spots_image(positions[:36], shape)) == pytest.approx(0.75)
    assert metrics.match_rate(a, np.zeros(shape)) == 0.0
    assert np.isnan(metrics.match_rate(np.zeros(shape), a))


def test_match_rate_is_one_to_one() -> None:
    # Two spots of the image around one of the reference are one match.
    a = spots_image(np.array([[20, 20]]), (60, 60))
    b = spots_image(np.array([[18, 20], [22, 20]]), (60, 60))
    assert metrics.match_rate(a, b, percentile=99.8, distance=3) == 1.0
    assert metrics.match_rate(b, a, percentile=99.8, distance=3) == 0.5


def test_fold_share() -> None:
    jacobian = np.tile(np.eye(3), (5, 2, 1, 1))
    assert metrics.fold_share(jacobian) == 0.0
    jacobian[0, 0, 1, 1] = -0.1
    jacobian[1, 0, 2, 2] = 0.0
    jacobian[2, 0, 0, 0] = np.nan
    assert metrics.fold_share(jacobian) == pytest.approx(0.3)
    assert np.isnan(metrics.fold_share(np.empty((0, 2, 2))))
