"""Classes of spots: only like spots are paired, in every step, and chance is that of like spots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from clouds import Pair, make_pair
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from test_growth import bent, scattered

from tilereg import InputError, match_spots
from tilereg.kriging import fit_kriging
from tilereg.matching import Match
from tilereg.matching.classes import arrange, check_classes
from tilereg.matching.clouds import crowding
from tilereg.matching.coarse import find_pose
from tilereg.matching.drift import local_density
from tilereg.matching.engines import check_given
from tilereg.matching.evidence import Chance
from tilereg.matching.refit import exchanged
from tilereg.matching.shelves import ALIKE, Shelves

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


def classes_of(pair: Pair, count: int, seed: int = 0) -> tuple[Rows, Rows]:
    """Return classes of both clouds, the same for a spot and its partner."""
    rng = np.random.default_rng(seed)
    moving = rng.integers(0, count, len(pair.moving))
    strange = rng.integers(0, count, len(pair.fixed))
    return np.where(pair.partner >= 0, moving[pair.partner], strange), moving


def error(match: Match, pair: Pair) -> float:
    gap = match.transform(pair.fixed) - pair.true_map(pair.fixed)
    return float(np.median(np.linalg.norm(gap, axis=1)))


def right(match: Match, pair: Pair) -> float:
    """Return the share of the pairs that are true."""
    found = match.correspondences
    return float((pair.partner[found.fixed_index] == found.moving_index).mean())


def check_same(match: Match, other: Match, points: Floats) -> None:
    """Check that two matches are the same to the last bit."""
    np.testing.assert_array_equal(match.transform(points), other.transform(points))
    np.testing.assert_array_equal(match.judge(points), other.judge(points))
    np.testing.assert_array_equal(
        match.correspondences.moving_index, other.correspondences.moving_index
    )
    assert match.evidence == other.evidence
    assert match.share_chance == other.share_chance


@pytest.mark.parametrize("field", ["auto", "coherent"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_unlike_spots_are_never_paired(ndim: int, field: str) -> None:
    pair = make_pair(500, ndim=ndim, seed=3)
    ours, theirs = classes_of(pair, 4)
    # A tenth is of a class of its own: what was its partner is unlike now.
    changed = np.random.default_rng(1).permutation(500)[:50]
    ours[changed] = (ours[changed] + 1) % 4
    match = match_spots(pair.fixed, pair.moving, field=field, fixed_class=ours, moving_class=theirs)
    assert match.is_ok
    found = match.correspondences
    assert (ours[found.fixed_index] == theirs[found.moving_index]).all()
    assert right(match, pair) > 0.99
    plain = match_spots(pair.fixed, pair.moving, field=field)
    assert len(found) < len(plain.correspondences) - 20


@pytest.mark.parametrize(
    ("options", "count", "most"),
    [
        ({"noise": 4.0}, 10, 2.0),
        ({"noise": 4.0, "ndim": 2}, 10, 1.5),
        ({"overlap": 0.1}, 30, 0.25),
    ],
)
def test_what_is_hopeless_without_classes_is_right_with_them(
    options: dict[str, Any], count: int, most: float
) -> None:
    """Noise of half a spacing, where nine of ten neighbours are unlike; a tenth has a partner."""
    pair = make_pair(2000, **options)
    ours, theirs = classes_of(pair, count)
    assert not match_spots(pair.fixed, pair.moving, max_rotation=0.0).is_ok
    match = match_spots(
        pair.fixed, pair.moving, max_rotation=0.0, fixed_class=ours, moving_class=theirs
    )
    assert match.is_ok
    assert error(match, pair) < most
    assert right(match, pair) > 0.7


@pytest.mark.parametrize("ndim", [2, 3])
def test_names_and_rows_change_nothing(ndim: int) -> None:
    pair = make_pair(400, ndim=ndim)
    ours, theirs = classes_of(pair, 6)
    match = match_spots(pair.fixed, pair.moving, fixed_class=ours, moving_class=theirs)
    names = np.array(["Gad1", "Slc17a7", "b", "", "Z", "0"])
    other = match_spots(
        pair.fixed, pair.moving, fixed_class=names[ours].tolist(), moving_class=names[theirs]
    )
    check_same(match, other, pair.fixed)
    rows, columns = (np.random.default_rng(s).permutation(400) for s in (5, 6))
    shuffled = match_spots(
        pair.fixed[rows],
        pair.moving[columns],
        fixed_class=ours[rows] * -7,
        moving_class=theirs[columns] * -7,
    )
    np.testing.assert_array_equal(shuffled.transform(pair.fixed), match.transform(pair.fixed))
    found = shuffled.correspondences
    again = dict(zip(rows[found.fixed_index], columns[found.moving_index], strict=True))
    plain = match.correspondences
    assert again == dict(zip(plain.fixed_index, plain.moving_index, strict=True))


def test_spots_of_several_classes_at_one_place_have_an_order() -> None:
    """Two genes in the same dots: their rows could be told apart by nothing but the names."""
    pair = make_pair(200)
    fixed, moving = (np.repeat(cloud, 2, axis=0) for cloud in (pair.fixed, pair.moving))
    ours, theirs = classes_of(pair, 3)
    fixed_class = np.stack([ours, (ours + 1) % 3], axis=1).ravel()
    moving_class = np.stack([theirs, (theirs + 1) % 3], axis=1).ravel()
    match = match_spots(fixed, moving, fixed_class=fixed_class, moving_class=moving_class)
    rows = np.random.default_rng(0).permutation(400)
    other = match_spots(
        fixed[rows], moving, fixed_class=2 - fixed_class[rows], moving_class=2 - moving_class
    )
    assert match.is_ok
    np.testing.assert_array_equal(match.transform(fixed), other.transform(fixed))
    assert len(match.correspondences) == len(other.correspondences)


@pytest.mark.parametrize("ndim", [2, 3])
def test_one_class_is_no_class(ndim: int) -> None:
    pair = make_pair(300, ndim=ndim)
    names = np.full(300, "DAPI")
    match = match_spots(pair.fixed, pair.moving, fixed_class=names, moving_class=names)
    check_same(match, match_spots(pair.fixed, pair.moving), pair.fixed)


def test_a_class_of_one_cloud_takes_no_part() -> None:
    pair = make_pair(400)
    ours, theirs = classes_of(pair, 4)
    ours[:30], theirs[-20:] = 7, 9
    match = match_spots(pair.fixed, pair.moving, fixed_class=ours, moving_class=theirs)
    less = match_spots(
        pair.fixed[30:], pair.moving[:-20], fixed_class=ours[30:], moving_class=theirs[:-20]
    )
    np.testing.assert_array_equal(match.transform(pair.fixed), less.transform(pair.fixed))
    np.testing.assert_array_equal(
        match.correspondences.fixed_index, less.correspondences.fixed_index + 30
    )
    assert match.details["alone"] == {"fixed": {"7": 30}, "moving": {"9": 20}}
    assert "30 fixed spots of a class that only this cloud has ('7')" in match.message
    assert "20 moving spots" in match.message
    assert "Left out" not in less.message


def test_too_few_spots_of_common_classes() -> None:
    points = np.random.default_rng(0).uniform(0, 100, (200, 3))
    ours, theirs = np.zeros(200, dtype=int), np.ones(200, dtype=int)
    ours[:3] = theirs[:3] = 5
    match = match_spots(points, points, fixed_class=ours, moving_class=theirs)
    assert match.status == "few spots"
    assert "3 fixed and 3 moving" in match.message
    assert "197 fixed spots" in match.message


def test_chance_is_that_of_like_spots() -> None:
    """Ten classes make a tenth of the chance; where no spot is like its partner there is none."""
    pair = make_pair(600, noise=1.0)
    ours, theirs = classes_of(pair, 10)
    plain = match_spots(pair.fixed, pair.moving)
    match = match_spots(pair.fixed, pair.moving, fixed_class=ours, moving_class=theirs)
    assert match.is_ok
    assert match.share_chance < 0.25 * plain.share_chance
    strange = match_spots(
        pair.fixed,
        pair.moving,
        initial=match.transform.affine,
        fixed_class=(ours + 1) % 10,
        moving_class=theirs,
    )
    assert not strange.is_ok


def shelves_of(fixed: Floats, moving: Floats, count: int, seed: int = 0) -> Shelves:
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, count, len(fixed)), rng.integers(0, count, len(moving))
    return Shelves.of(numbers, fixed, moving)


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("ndim", [2, 3])
def test_like_spots_are_nearer_than_unlike_ones(ndim: int, scale: float) -> None:
    """Wherever a map throws them."""
    rng = np.random.default_rng(0)
    fixed, moving = rng.uniform(-5, 5, (60, ndim)), rng.uniform(-9, 9, (70, ndim))
    shelves = shelves_of(fixed, moving, 5)
    assert shelves.fixed is not None
    assert shelves.moving is not None
    moved = scale * fixed + 3.0
    distance = cdist(shelves.moved(moved), shelves.targets(moving))
    is_like = shelves.fixed[:, None] == shelves.moving
    assert distance[is_like].max() < distance[~is_like].min()
    if scale == 1:
        np.testing.assert_allclose(distance[is_like], cdist(moved, moving)[is_like])
    else:
        # What is far outside is kept so far away that no search reaches it.
        outside = np.abs(moved).max(axis=1) > 40
        assert distance[outside].min() > 20
    rows = np.array([3, 1])
    np.testing.assert_allclose(
        shelves.lowered(shelves.lifted(moved[rows], rows), rows), moved[rows]
    )


def test_without_classes_clouds_are_where_they_are() -> None:
    points = scattered(50, 3)
    same = np.zeros(50, dtype=np.int64)
    for shelves in (
        ALIKE,
        Shelves.of(None, points, points),
        Shelves.of((same, same), points, points),
    ):
        assert not shelves.has_classes
        assert shelves.moved(points) is points
        assert shelves.targets(points) is points
        assert shelves.num_alike(points) == 50


def test_density_and_number_of_like_spots_equal_the_plain_ones() -> None:
    fixed, moving = scattered(300, 3), scattered(400, 3, seed=1)
    shelves = shelves_of(fixed, moving, 5)
    assert shelves.fixed is not None
    assert shelves.moving is not None
    is_like = shelves.fixed[:, None] == shelves.moving
    assert shelves.num_alike(moving) == pytest.approx(is_like.sum(axis=1).mean())
    density = shelves.density(moving)
    for number in range(5):
        rows = shelves.moving == number
        np.testing.assert_array_equal(density[rows], local_density(moving[rows]))
    alone = Shelves.of((shelves.fixed, np.where(np.arange(400) == 7, 5, 0)), fixed, moving)
    assert alone.density(moving)[7] == pytest.approx(local_density(moving).mean() / 400)


def test_near_is_farther_where_like_spots_are_sparse() -> None:
    fixed, moving = scattered(8000, 3), scattered(8000, 3, seed=1)
    for count, least, most in ((1, 1.0, 1.0), (8, 1.7, 2.3), (1000, 3.0, 3.0)):
        shelves = shelves_of(fixed, moving, count)
        near = crowding(fixed, moving, (shelves.lifted(fixed), shelves.targets(moving)))
        assert least <= near <= most


def test_a_pose_is_judged_by_like_spots() -> None:
    """Turned by half a circle: constellations propose what only the right classes confirm."""
    fixed = scattered(700, 3)
    moving = fixed * [1, -1, -1]
    numbers = np.random.default_rng(0).integers(0, 8, 700)
    shelves = Shelves.of((numbers, numbers), fixed, moving)
    found = find_pose(fixed, moving, shelves=shelves)
    assert found.is_found
    assert found.source == "constellation"
    strange = Shelves.of(((numbers + 1) % 8, numbers), fixed, moving)
    assert not find_pose(fixed, moving, shelves=strange).is_found
    noisy = moving + np.random.default_rng(1).normal(0, 0.4, moving.shape)
    ours, plain = (
        Chance.of(moving, which, 1.0).evidence(which.moved(noisy), 6) for which in (shelves, ALIKE)
    )
    assert ours < 1.5 * plain < -1


def test_only_like_pairs_exchange_their_partners() -> None:
    fixed = scattered(300, 3)
    moving = bent(fixed, 1.0, 4.0)
    gap = np.linalg.norm(fixed[:, None] - fixed, axis=2) + 99 * np.eye(300)
    one, two = np.unravel_index(np.where(gap > 0.5, gap, 99).argmin(), gap.shape)
    order = np.arange(300)
    order[[one, two]] = two, one
    fit = fit_kriging(fixed, moving[order])
    kinds = np.zeros(300, dtype=np.int64)
    np.testing.assert_array_equal(
        order[exchanged(fixed, moving[order], fit, classes=kinds)], np.arange(300)
    )
    kinds[one] = 1
    assert exchanged(fixed, moving[order], fit, classes=kinds)[one] == one


def test_the_order_is_that_of_the_places() -> None:
    points = np.array([[0.0, 0], [5, 0], [5, 0], [0, 9], [9, 9], [0, 0]])
    labels = np.array([3, 1, 3, 2, 2, 3])
    first = arrange(points, points, (labels, labels))
    rows = np.array([4, 2, 5, 0, 1, 3])
    other = arrange(points[rows], points, (-labels[rows], -labels))
    assert first.numbers is not None
    assert other.numbers is not None
    np.testing.assert_array_equal(points[first.rows[0]], points[rows][other.rows[0]])
    np.testing.assert_array_equal(labels[first.rows[0]], labels[rows][other.rows[0]])
    np.testing.assert_array_equal(first.numbers[0], other.numbers[0])


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ([1, 2, 3], None, "moving spots have none"),
        (None, [1, 2, 3], "fixed spots have none"),
        ([1, 2], [1, 2, 3], r"shape \(2,\) of the fixed classes"),
        ([[1, 2, 3]], [1, 2, 3], r"shape \(1, 3\)"),
        ([1.0, 2.0, 3.0], [1, 2, 3], "fixed classes of type float64"),
        ([1, 2, 3], ["a", "b", None], "moving classes of type object"),
        ([1, 2, 3], ["1", "2", "3"], "integers, of the moving spots text"),
        (["a", "a", "a"], ["A", "A", "B"], "No class is in both clouds.*'a'.*'A', 'B'"),
    ],
)
def test_wrong_classes_are_explained(ours: Any, theirs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        match_spots(np.eye(3), np.eye(3), fixed_class=ours, moving_class=theirs)


def test_classes_of_any_kind() -> None:
    for labels in (
        ["a", "b"],
        np.array(["a", "b"], dtype=object),
        np.array([1, 2], dtype=np.uint8),
    ):
        checked = check_classes(labels, labels, 2, 2)
        assert checked is not None
        assert checked[0].tolist() == list(labels)


def test_an_engine_that_cannot_use_classes_refuses_them() -> None:
    check_given("cpd", {"spot classes": True})
    check_given("other", {"spot classes": False})
    with pytest.raises(InputError, match=r"'other' cannot use spot classes\. Use one of 'cpd'"):
        check_given("other", {"spot classes": True})


def test_no_spots_have_no_kind_of_class() -> None:
    none, some = np.zeros((0, 3)), np.random.default_rng(0).uniform(0, 9, (50, 3))
    for empty in (np.array([], dtype=str), np.array([], dtype=np.int64)):
        match = match_spots(none, some, fixed_class=empty, moving_class=["a"] * 50)
        assert match.status == "few spots"
        match = match_spots(some, none, fixed_class=["a"] * 50, moving_class=empty)
        assert match.status == "few spots"
