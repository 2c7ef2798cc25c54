"""Jumps between badly stitched fields of view: found, named, followed, and never made up."""

from __future__ import annotations

import numpy as np
import pytest
from clouds import Pair, make_pair
from numpy.typing import NDArray

from tilereg import Match, match_spots
from tilereg.kernels.steps import add_up
from tilereg.matching.planes import Side
from tilereg.points import Landmarks

Floats = NDArray[np.float64]

JUMP = np.array([3.0, -3.0, 4.0])


def torn(pair: Pair, image: str, axis: int, share: float = 0.5) -> tuple[Floats, Floats, float]:
    """Move all spots of a cloud beyond a plane; return both clouds and the plane."""
    cloud = pair.moving if image == "moving" else pair.fixed
    place = float(np.quantile(cloud[:, axis], share))
    jump = JUMP[-cloud.shape[1] :] * (1.0 if image == "moving" else -1.0)
    moved = cloud + np.where(cloud[:, axis, None] >= place, jump, 0.0)
    return (pair.fixed, moved, place) if image == "moving" else (moved, pair.moving, place)


def error_away(match: Match, pair: Pair, fixed: Floats, axis: int, image: str) -> float:
    """Return the root mean square error of the map away from the plane, at matched spots."""
    pairs = match.correspondences
    true = pair.true_map(pair.fixed[pairs.fixed_index])
    if image == "moving":
        true = true + (match_place(pairs.moving, match, axis)) * JUMP[-pair.fixed.shape[1] :]
    miss = np.linalg.norm(match.transform(fixed[pairs.fixed_index]) - true, axis=1)
    place = match.details["seams"][0]["position_um"]
    own = pairs.moving if image == "moving" else pairs.fixed
    away = np.abs(own[:, axis] - place) > 60
    return float(np.sqrt((miss[away] ** 2).mean()))


def match_place(points: Floats, match: Match, axis: int) -> Floats:
    """Tell which points lie beyond the first seam."""
    return np.asarray(points[:, axis, None] >= match.details["seams"][0]["position_um"])


@pytest.mark.parametrize(
    ("image", "axis", "count", "ndim"),
    [("fixed", 1, 4000, 3), ("moving", 2, 4000, 3), ("moving", 0, 4000, 2)],
)
def test_a_jump_is_named_and_changes_nothing_elsewhere(
    image: str, axis: int, count: int, ndim: int
) -> None:
    pair = make_pair(count, ndim=ndim)
    plain = match_spots(pair.fixed, pair.moving)
    assert plain.details["seams"] == []
    fixed, moving, place = torn(pair, image, axis)
    match = match_spots(fixed, moving)
    assert match.is_ok
    (seam,) = match.details["seams"]
    assert (seam["image"], seam["axis"]) == (image, "zyx"[3 - ndim + axis])
    assert seam["position_um"] == pytest.approx(place, abs=6.0)
    assert f"{image} image" in match.message
    expected = JUMP[-ndim:]
    np.testing.assert_allclose(seam["jump_um"], expected, atol=0.7)
    usual = np.linalg.norm(plain.transform(pair.fixed) - pair.true_map(pair.fixed), axis=1)
    limit = 1.5 * float(np.sqrt((usual**2).mean()))
    assert error_away(match, pair, fixed, axis, image) < limit
    # Without the search for seams the field bends over a wide strip.
    bent = match_spots(fixed, moving, seams=False)
    assert bent.details["seams"] == []
    bent.details["seams"].append(seam)
    assert error_away(bent, pair, fixed, axis, image) > 1.3 * error_away(
        match, pair, fixed, axis, image
    )


@pytest.mark.parametrize("seed", range(3))
def test_bends_are_no_seams(seed: int) -> None:
    pair = make_pair(3000, bump=15.0, width=70.0, seed=seed)
    match = match_spots(pair.fixed, pair.moving)
    assert match.is_ok
    assert match.details["seams"] == []


def test_the_unit_and_the_order_change_nothing() -> None:
    pair = make_pair(3000)
    fixed, moving, _ = torn(pair, "fixed", 1)
    match = match_spots(fixed, moving)
    order = np.random.default_rng(0).permutation(len(fixed))
    other = match_spots(1024 * fixed[order], 1024 * moving)
    (seam,), (scaled,) = match.details["seams"], other.details["seams"]
    assert scaled["position_um"] == 1024 * seam["position_um"]
    assert scaled["jump_um"] == [1024 * j for j in seam["jump_um"]]
    np.testing.assert_array_equal(other.transform(1024 * fixed), 1024 * match.transform(fixed))


def test_landmarks_are_torn_with_the_spots() -> None:
    pair = make_pair(3000)
    fixed, moving, _ = torn(pair, "fixed", 1)
    rows = np.argsort(fixed[:, 1])[[50, 400, -400, -50]]
    known = Landmarks.of(fixed[rows], pair.true_map(pair.fixed[rows]))
    match = match_spots(fixed, moving, landmarks=known)
    assert len(match.details["seams"]) == 1
    assert match.landmarks is not None
    assert (match.landmarks.residual < 0.8).all()
    assert not match.landmarks.is_contradicted.any()


def test_sums_equal_plain_least_squares() -> None:
    rng = np.random.default_rng(3)
    points, values = rng.uniform(-2, 2, (200, 3)), rng.normal(size=(200, 3))
    rows, groups = np.arange(10, 200), rng.integers(-1, 3, 190)
    gram, right = np.zeros((3, 7, 7)), np.zeros((3, 7, 3))
    square, count = np.zeros(3), np.zeros(3, dtype=np.int64)
    along, across = np.ascontiguousarray(points[:, 0]), np.ascontiguousarray(points[:, 1:])
    add_up(rows, groups, along, across, values, 0.3, 2.0, gram, right, square, count)
    for group in range(3):
        own = rows[groups == group]
        t = (along[own] - 0.3) / 2.0
        design = np.column_stack([t**0, t, t**2, t**3, across[own], np.where(t >= 0, 0.5, -0.5)])
        np.testing.assert_allclose(np.tril(gram[group]), np.tril(design.T @ design), atol=1e-12)
        np.testing.assert_allclose(right[group], design.T @ values[own], atol=1e-12)
        assert square[group] == pytest.approx((values[own] ** 2).sum())
        assert count[group] == len(own)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_exact_spots_have_one_seam(noise: float) -> None:
    pair = make_pair(3000, noise=noise, seed=3)
    fixed, moving, place = torn(pair, "moving", 1)
    match = match_spots(fixed, moving)
    plain = match_spots(fixed, moving, seams=False)
    # What lies between the plane and where it is found is lost, and nothing else.
    assert len(match.correspondences) > 0.97 * len(plain.correspondences)
    # In so small a volume the axes of both images are nearly the same.
    (seam,) = match.details["seams"]
    assert seam["axis"] == "y"
    for one in (match, plain):
        one.details["seams"][:] = [seam | {"position_um": place}]
    ours, theirs = (error_away(m, pair, fixed, 1, "moving") for m in (match, plain))
    assert ours < 0.7 * theirs


def test_residuals_are_those_of_the_torn_map() -> None:
    pair = make_pair(3000)
    fixed, moving, _ = torn(pair, "fixed", 1)
    match = match_spots(fixed, moving)
    assert match.details["seams"]
    pairs = match.correspondences
    for rows, map_ in ((pairs.held_out, match.judge), (~pairs.held_out, match.transform)):
        gap = np.linalg.norm(map_(pairs.fixed[rows]) - pairs.moving[rows], axis=1)
        np.testing.assert_allclose(pairs.residual[rows], gap, atol=1e-9)


@pytest.mark.parametrize(("count", "places"), [(20_000, [3.3]), (150_000, [3.3]), (150_000, [])])
def test_many_pairs_have_no_more_planes(count: int, places: list[float]) -> None:
    rng = np.random.default_rng(0)
    side = (count / 0.14) ** (1 / 3) / 2
    points = rng.uniform(-side, side, (count, 3))
    values = rng.normal(0, 0.05, points.shape)
    for place in places:
        values += np.where(points[:, 1:2] > place, [0.2, -0.3, 0.25], 0.0)
    clearness, planes = Side(points, values, 0.05).planes()
    assert (clearness > 0) == bool(places)
    assert [len(p) for p in planes] == [0, len(places), 0]
    np.testing.assert_allclose(planes[1], places, atol=0.3)


def test_a_slip_that_is_not_along_an_axis_is_no_seam() -> None:
    rng = np.random.default_rng(5)
    points = rng.uniform(-15, 15, (4000, 3))
    normal = np.array([0.0, np.cos(0.35), np.sin(0.35)])
    values = rng.normal(0, 0.05, points.shape)
    values += np.where((points @ normal)[:, None] > 0, [0.2, -0.3, 0.25], 0.0)
    assert Side(points, values, 0.05).planes()[0] == 0


def test_islands_far_apart_cost_nothing() -> None:
    rng = np.random.default_rng(5)
    points = np.concatenate([rng.uniform(0, 15, (600, 3)), rng.uniform(0, 15, (600, 3)) + 1e9])
    assert Side(points, rng.normal(0, 0.05, points.shape), 0.05).planes()[0] == 0


def test_too_few_spots_have_no_seams() -> None:
    assert match_spots(np.zeros((0, 3)), np.zeros((5, 3))).details["seams"] == []
