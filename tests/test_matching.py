"""The parts of matching against plain twins, and clouds at the edge of what can be matched."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clouds import make_pair
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from tilereg.errors import InputError
from tilereg.matching import Match, match_spots
from tilereg.matching import cpd as cpd_module
from tilereg.matching import match as match_module
from tilereg.matching.cells import CellList
from tilereg.matching.clouds import Unit, canonical_order, crowding, num_distinct, steps_aside
from tilereg.matching.coarse import find_pose
from tilereg.matching.constellations import match_constellations
from tilereg.matching.selection import _blocks, select_model
from tilereg.matching.votes import Ballot
from tilereg.transform import Affine

Floats = NDArray[np.float64]


def turn(ndim: int, degrees: float, axis: tuple[float, ...] = (1.0, 2.0, 3.0)) -> Floats:
    if ndim == 2:
        return np.asarray(Rotation.from_euler("z", degrees, degrees=True).as_matrix()[:2, :2])
    unit = np.array(axis) / np.linalg.norm(axis)
    return np.asarray(Rotation.from_rotvec(np.deg2rad(degrees) * unit).as_matrix())


def scatter(count: int, ndim: int, seed: int = 0, spacing: float = 12.0) -> Floats:
    """Return uniform points with about this mean distance of neighbours."""
    side = spacing * (count / (0.17 if ndim == 3 else 0.25)) ** (1 / ndim)
    return np.random.default_rng(seed).uniform(0, side, (count, ndim))


def pairs_of(match: Match) -> set[tuple[int, int]]:
    rows = match.correspondences
    return set(zip(rows.fixed_index.tolist(), rows.moving_index.tolist(), strict=True))


def uneven_clouds() -> dict[str, Floats]:
    rng = np.random.default_rng(0)
    return {
        "volume": rng.uniform(-5, 5, (300, 3)),
        "image": rng.uniform(-5, 5, (300, 2)),
        "clustered": np.repeat(rng.uniform(-50, 50, (10, 3)), 30, axis=0)
        + rng.normal(size=(300, 3)),
        "plane": rng.uniform(-5, 5, (200, 3)) * [0, 1, 1],
        "grid on the cell borders": np.argwhere(np.ones((6, 6, 6))).astype(float),
        "twice": np.repeat(rng.uniform(0, 5, (50, 3)), 2, axis=0),
        "one point": np.zeros((1, 3)),
    }


@pytest.mark.parametrize("name", uneven_clouds())
@pytest.mark.parametrize("size", [0.5, 1.0, 7.0])
def test_cells_hold_every_point_once(name: str, size: float) -> None:
    cloud = uneven_clouds()[name]
    cells = CellList.build(cloud, size)
    assert sorted(cells.order) == list(range(len(cloud)))
    np.testing.assert_array_equal(cells.points[:, 3 - cloud.shape[1] :], cloud[cells.order])
    assert cells.start[-1] == len(cloud)
    assert (np.diff(cells.start) >= 0).all()
    assert (1 / cells.inverse >= size * (1 - 1e-12)).all()


@pytest.mark.parametrize("name", uneven_clouds())
@pytest.mark.parametrize("radius", [0.3, 1.0, 4.0])
def test_sums_over_neighbours_equal_the_dense_ones(name: str, radius: float) -> None:
    rng = np.random.default_rng(1)
    cloud = uneven_clouds()[name]
    ndim = cloud.shape[1]
    # Some query points are far outside of all cells.
    points = np.concatenate([cloud[:50] + rng.normal(0, 0.3, cloud[:50].shape),
                             rng.uniform(-200, 200, (20, ndim)), [np.full(ndim, 1e6)]])  # fmt: skip
    sigma = radius / 3.5
    cells = CellList.build(cloud, radius)
    square = cdist(points, cloud, "sqeuclidean")
    near = square < radius**2
    np.testing.assert_array_equal(cells.count_within(points, radius), near.sum(axis=1))
    kernel = np.where(near, np.exp(-square / (2 * sigma**2)), 0)
    np.testing.assert_allclose(cells.gaussian_sum(points, sigma, radius), kernel.sum(1), atol=1e-12)
    factor = rng.uniform(0, 1, len(cloud))
    p = kernel * factor
    total, offset, squares = cells.posterior_sums(points, sigma, radius, factor)
    np.testing.assert_allclose(total, p.sum(1), atol=1e-12)
    plain = np.einsum("mn,mnd->md", p, cloud[None] - points[:, None])
    np.testing.assert_allclose(offset, plain, atol=1e-10)
    np.testing.assert_allclose(squares, (p * square).sum(1), atol=1e-10)


@pytest.mark.parametrize("name", uneven_clouds())
@pytest.mark.parametrize("radius", [0.3, 1.0, 4.0])
def test_near_neighbours_equal_the_plain_ones(name: str, radius: float) -> None:
    rng = np.random.default_rng(1)
    cloud = uneven_clouds()[name]
    points = np.concatenate([cloud[:50] + rng.normal(0, 0.3, cloud[:50].shape), cloud[:30],
                             [np.full(cloud.shape[1], 1e6)]])  # fmt: skip
    cells = CellList.build(cloud, 1.0)
    distance = cdist(points, cloud)
    # Of points at one place the first row.
    plain = np.where(distance.min(axis=1) < radius, distance.argmin(axis=1), -1)
    np.testing.assert_array_equal(cells.nearest_within(points, radius), plain)
    for count in {1, min(5, len(cloud)), min(12, len(cloud))}:
        found = cells.neighbour_distance(points, count, radius)
        np.testing.assert_allclose(found, np.sort(distance, axis=1)[:, count - 1], rtol=1e-12)


@pytest.mark.parametrize("name", ["volume", "image", "clustered", "plane", "one point"])
@pytest.mark.parametrize("reach", [0.7, 3.0, 40.0])
def test_votes_equal_the_histogram_of_all_differences(name: str, reach: float) -> None:
    cloud = uneven_clouds()[name]
    ndim = cloud.shape[1]
    points = np.random.default_rng(2).uniform(-3, 3, (60, ndim))
    low, high = np.full(ndim, -reach), np.full(ndim, reach) * [1, 2, 3][:ndim]
    bin_size = reach / 5
    found = CellList.build(cloud, 1.0).vote(points, low, high, bin_size)
    edges = [a + bin_size * np.arange(n + 1) for a, n in zip(low, found.shape, strict=True)]
    differences = (cloud[None] - points[:, None]).reshape(-1, ndim)
    plain, _ = np.histogramdd(differences, edges)
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("ndim", [2, 3])
def test_blocks_vote_for_their_displacement(ndim: int) -> None:
    fixed = scatter(600, ndim, spacing=1.0)
    shift = np.array([0.83, -1.21, 0.4])[:ndim]
    moving = np.concatenate([fixed[:300] + shift, scatter(300, ndim, 1, 1.0)])
    votes = Ballot(fixed, CellList.build(moving, 2.5)).count(fixed)
    clear = votes.scores > 10
    assert clear.mean() > 0.8
    np.testing.assert_allclose(votes.shifts[clear], np.tile(shift, (clear.sum(), 1)), atol=0.12)


@pytest.mark.parametrize("degrees", [0, 50, 180])
def test_constellations_find_any_rotation_and_no_mirror_image(degrees: float) -> None:
    fixed = scatter(150, 3, spacing=1.0)
    truth = Affine(turn(3, degrees), [3.0, 1.0, -2.0])
    for sign in (1, -1):
        moving = truth(fixed) * [sign, 1, 1]
        found = match_constellations(fixed, moving, cKDTree(fixed), cKDTree(moving))
        gaps = [np.abs(affine.matrix - truth.matrix).max() for affine, _ in found]
        assert (min(gaps, default=math.inf) < 1e-6) == (sign == 1)


def test_canonical_order_is_that_of_the_points() -> None:
    rng = np.random.default_rng(3)
    for cloud in uneven_clouds().values():
        ordered = cloud[canonical_order(cloud)]
        shuffled = rng.permutation(cloud)
        np.testing.assert_array_equal(shuffled[canonical_order(shuffled)], ordered)
        assert num_distinct(ordered) == len(np.unique(cloud, axis=0))
    assert num_distinct(np.empty((0, 2))) == 0
    points = scatter(200, 3)
    np.testing.assert_array_equal(
        canonical_order(points @ turn(3, 70).T * 5 + 3), canonical_order(points)
    )


def test_units_are_undone() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.uniform(1e4, 2e4, (50, 3)), rng.uniform(-500, 0, (60, 3))
    unit = Unit.of(x, y)
    affine = Affine(rng.normal(size=(3, 3)), rng.normal(size=3))
    inner = unit.affine_in(affine)
    np.testing.assert_allclose(inner(unit.fixed(x)), unit.moving(affine(x)), atol=1e-6)
    np.testing.assert_allclose(unit.affine_out(inner)(x), affine(x), atol=1e-6)


@pytest.mark.parametrize("thickness", [0.0, 2.0])
def test_steps_aside_stay_in_flat_clouds(thickness: float) -> None:
    flat = np.random.default_rng(5).uniform(0, 60, (300, 3)) * [thickness / 60, 1, 1]
    rotation = turn(3, 33)
    steps = steps_aside(flat @ rotation.T) @ rotation
    assert len(steps) == 4
    assert np.abs(steps[:, 0]).max() < 0.3
    assert len(steps_aside(scatter(300, 3))) == 6
    assert len(steps_aside(scatter(300, 2))) == 4
    assert len(steps_aside(flat * [0, 0, 1])) == 2


@pytest.mark.parametrize("name", ["translation", "rigid", "affine", "field"])
def test_the_simplest_model_that_explains_the_pairs_is_chosen(name: str) -> None:
    rng = np.random.default_rng(6)
    source = scatter(300, 3, spacing=1.0)
    matrix = {"translation": np.eye(3), "rigid": turn(3, 10)}.get(name, np.eye(3) * 1.1)
    bend = np.sin(source / 4) if name == "field" else 0.0
    target = source @ matrix.T + 0.3 + bend + rng.normal(0, 0.05, source.shape)
    selection = select_model(source, source, target, 0.05)
    assert selection.model == name


@pytest.mark.parametrize("count", [15, 60, 200])
@pytest.mark.parametrize("ndim", [2, 3])
def test_affine_maps_without_noise_are_exact(ndim: int, count: int) -> None:
    rng = np.random.default_rng(7)
    fixed = scatter(count, ndim, seed=count)
    for affine in (
        Affine.identity(ndim),
        Affine(np.eye(ndim) + rng.uniform(-0.02, 0.02, (ndim, ndim)), np.full(ndim, 500.0)),
    ):
        match = match_spots(fixed, affine(fixed))
        assert match.status == "ok"
        assert len(match.correspondences) == count
        np.testing.assert_array_equal(
            match.correspondences.fixed_index, match.correspondences.moving_index
        )
        np.testing.assert_allclose(match.transform(fixed), affine(fixed), atol=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_powers_of_two_of_the_unit_give_the_same_bits(ndim: int) -> None:
    pair = make_pair(300, ndim=ndim)
    match = match_spots(pair.fixed, pair.moving)
    for unit in (2.0**-10, 2.0**10):
        other = match_spots(pair.fixed * unit, pair.moving * unit)
        np.testing.assert_array_equal(
            other.transform(pair.fixed * unit), unit * match.transform(pair.fixed)
        )
        assert other.residual_sigma == unit * match.residual_sigma
        assert other.evidence == match.evidence


@pytest.mark.parametrize("ndim", [2, 3])
def test_any_unit_gives_the_same_map(ndim: int) -> None:
    """Up to the tolerance of the solvers: rounding may change the step at which they stop."""
    pair = make_pair(300, ndim=ndim)
    match = match_spots(pair.fixed, pair.moving)
    pairs = pairs_of(match)
    for unit in (1e-3, 1e3):
        other = match_spots(pair.fixed * unit, pair.moving * unit)
        assert len(pairs ^ pairs_of(other)) <= 0.01 * len(pairs)
        gap = other.transform(pair.fixed * unit) / unit - match.transform(pair.fixed)
        assert np.median(np.linalg.norm(gap, axis=1)) < 0.01 * match.spacing


@pytest.mark.parametrize("degrees", [37.0, 90.0])
@pytest.mark.parametrize("ndim", [2, 3])
def test_turning_both_clouds_turns_the_map(ndim: int, degrees: float) -> None:
    pair = make_pair(300, ndim=ndim)
    rotation = turn(ndim, degrees)
    match = match_spots(pair.fixed, pair.moving)
    other = match_spots(pair.fixed @ rotation.T, pair.moving @ rotation.T)
    gap = other.transform(pair.fixed @ rotation.T) @ rotation - match.transform(pair.fixed)
    assert np.median(np.linalg.norm(gap, axis=1)) < 0.01 * match.spacing


@pytest.mark.parametrize(
    ("ndim", "degrees", "axis"),
    [(3, a, tuple(e)) for a in (-15.0, 180.0) for e in np.eye(3).tolist()]
    + [(2, a, ()) for a in (-100.0, -15.0, 45.0, 180.0)],
)
def test_rotations_and_far_shifts(ndim: int, degrees: float, axis: tuple[float, ...]) -> None:
    pair = make_pair(300, ndim=ndim)
    rotation = turn(ndim, degrees, axis)
    match = match_spots(pair.fixed, (pair.moving + [1e5, -1e5, 3e4][:ndim]) @ rotation.T)
    assert match.is_ok
    truth = (pair.true_map(pair.fixed) + [1e5, -1e5, 3e4][:ndim]) @ rotation.T
    assert np.median(np.linalg.norm(match.transform(pair.fixed) - truth, axis=1)) < 0.5


def test_no_more_rotation_than_allowed_is_searched() -> None:
    pair = make_pair(200, ndim=2, rotation=0.0)
    moving = pair.moving @ turn(2, 90).T
    assert match_spots(pair.fixed, moving).is_ok
    assert not match_spots(pair.fixed, moving, max_rotation=30.0).is_ok


@pytest.mark.parametrize("ndim", [2, 3])
def test_few_partners_in_small_clouds(ndim: int) -> None:
    pair = make_pair(800, ndim=ndim, overlap=0.3)
    match = match_spots(pair.fixed, pair.moving)
    assert match.is_ok
    error = np.linalg.norm(match.transform(pair.fixed) - pair.true_map(pair.fixed), axis=1)
    assert np.median(error) < 0.5
    assert match.w == pytest.approx(0.7, abs=0.1)


def test_the_field_is_better_than_a_hundredth_of_the_spacing() -> None:
    pair = make_pair(2000, bump=10.0)
    match = match_spots(pair.fixed, pair.moving)
    error = np.linalg.norm(match.transform(pair.fixed) - pair.true_map(pair.fixed), axis=1)
    assert np.median(error) < 0.15
    assert match.residual_sigma == pytest.approx(0.3 * math.sqrt(2), rel=0.1)


def test_held_out_spots_never_enter_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Floats] = []
    places = {"find_pose": match_module} | dict.fromkeys(
        ("Ballot", "drift", "select_model"), cpd_module
    )
    for name, module in places.items():
        plain = getattr(module, name)

        def spy(source: Floats, *args: Any, plain: Any = plain, **options: Any) -> Any:
            seen.append(source)
            return plain(source, *args, **options)

        monkeypatch.setattr(module, name, spy)
    pair = make_pair(400)
    match = match_spots(pair.fixed, pair.moving)
    pairs = match.correspondences
    assert 20 <= pairs.held_out.sum() <= 50
    assert len(seen) >= 4
    inner = (pairs.fixed - pair.fixed.mean(axis=0)) / match.spacing
    for source in seen:
        distance, _ = cKDTree(source).query(inner)
        assert distance[pairs.held_out].min() > 1e-3
    assert cKDTree(seen[0]).query(inner[~pairs.held_out])[0].max() < 1e-9


@pytest.mark.parametrize("seed", [0, 1])
def test_few_spots_have_a_partner(seed: int) -> None:
    """Four fifths of either cloud are outliers, and nobody says how many."""
    pair = make_pair(1200, overlap=0.2, seed=seed)
    match = match_spots(pair.fixed, pair.moving)
    assert match.is_ok
    assert match.w == pytest.approx(0.8, abs=0.05)
    error = np.linalg.norm(match.transform(pair.fixed) - pair.true_map(pair.fixed), axis=1)
    assert np.median(error) < 0.4
    assert match.residual_sigma == pytest.approx(0.3 * math.sqrt(2), rel=0.4)


def test_pairs_are_rows_of_the_clouds() -> None:
    pair = make_pair(400)
    match = match_spots(pair.fixed, pair.moving)
    pairs = match.correspondences
    np.testing.assert_array_equal(pair.fixed[pairs.fixed_index], pairs.fixed)
    np.testing.assert_array_equal(pair.moving[pairs.moving_index], pairs.moving)
    # Held-out pairs judge the map that does not know them.
    for map_, rows in ((match.transform, ~pairs.held_out), (match.judge, pairs.held_out)):
        residual = np.linalg.norm(map_(pairs.fixed[rows]) - pairs.moving[rows], axis=1)
        np.testing.assert_allclose(residual, pairs.residual[rows])
    assert (np.diff(pairs.fixed_index) > 0).all()
    assert len(np.unique(pairs.moving_index)) == len(pairs)
    assert ((pairs.weight >= 0) & (pairs.weight <= 1)).all()


@pytest.mark.parametrize("name", ["plane", "tilted plane", "turned plane", "row of an image"])
def test_clouds_without_volume(name: str) -> None:
    points = np.random.default_rng(8).uniform(0, 100, (300, 3)) * [0, 1, 1]
    tilt = turn(3, 30)
    shift = np.array([1.0, 2.0, 3.0])
    fixed, moving = {
        "plane": (points, points + shift),
        "tilted plane": (points @ tilt.T, points @ tilt.T + shift),
        "turned plane": (points, points @ tilt.T + shift),
        "row of an image": (points[:, :2], points[:, :2] + shift[:2]),
    }[name]
    match = match_spots(fixed, moving)
    assert match.is_ok
    np.testing.assert_allclose(match.transform(fixed), moving, atol=1e-3)


@pytest.mark.parametrize("unit", [1e-3, 1.0])
def test_spots_that_are_there_twice(unit: float) -> None:
    points = unit * np.repeat(np.random.default_rng(9).uniform(0, 100, (200, 3)), 2, axis=0)
    match = match_spots(points, points + 5.0)
    assert match.is_ok
    np.testing.assert_allclose(match.transform(points), points + 5.0, atol=1e-3 * unit)


@pytest.mark.parametrize("places", [1, 2, 3])
def test_few_places_are_few_spots(places: int) -> None:
    points = np.repeat(np.random.default_rng(10).uniform(0, 9, (places, 3)), 50, axis=0)
    match = match_spots(points, points)
    assert match.status == "few spots"
    assert f"{places} fixed" in match.message


@pytest.mark.parametrize(("thickness", "degrees"), [(0.0, 30), (1.0, 30), (2.0, 0)])
def test_unrelated_flat_clouds(thickness: float, degrees: float) -> None:
    """A step off a plane would find no partners by chance, and any pose would look certain."""
    rng = np.random.default_rng(1)
    tilt = turn(3, degrees)
    fixed, moving = (rng.uniform(0, 1, (400, 3)) * [thickness, 20, 20] @ tilt.T for _ in range(2))
    assert match_spots(fixed, moving).status == "no registration"


@pytest.mark.parametrize("seed", [18, 27])
def test_a_map_that_collapses_the_cloud_is_no_registration(seed: int) -> None:
    """Flattened onto the mirror plane, most spots have a neighbour there: seeds that did."""
    cloud = np.random.default_rng(seed).uniform(0, 10, (1000, 3))
    match = match_spots(cloud, cloud * [-1, 1, 1])
    assert match.status == "no registration"


def test_the_pose_search_says_how_sure_it_is() -> None:
    fixed = scatter(200, 3, spacing=1.0)
    found = find_pose(fixed, fixed + 4.0)
    assert found.is_found
    assert found.coverage == 1
    np.testing.assert_allclose(found.affine(fixed), fixed + 4.0, atol=1e-9)
    assert found.allows(found.affine)
    assert not found.allows(Affine(np.diag([1.0, 1.0, 0.1]), np.zeros(3)))
    lost = find_pose(fixed, scatter(200, 3, seed=1, spacing=1.0))
    assert not lost.is_found
    assert lost.evidence > -7


def test_a_pose_that_is_far_off_is_no_registration() -> None:
    points = scatter(100, 3)
    match = match_spots(points, points, initial=Affine(np.eye(3), np.full(3, 1e4)))
    assert match.status == "no registration"
    assert len(match.correspondences) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "magic"}, "Known methods: cpd"),
        ({"held_out": 0.5}, "Invalid held_out 0.5"),
        ({"w": 0.0}, "Invalid w 0.0"),
        ({"w": 1.0}, "Invalid w 1.0"),
        ({"w": math.nan}, "Invalid w nan"),
        ({"beta": 0.0}, "Invalid beta 0.0 um"),
        ({"beta": math.inf}, "Invalid beta inf um"),
        ({"max_rotation": -1.0}, "Invalid max_rotation -1.0"),
        ({"max_rotation": math.nan}, "0 to 180 degrees"),
        ({"max_iterations": 0}, "Invalid max_iterations 0"),
        ({"initial": Affine.identity(2)}, "The initial affine has 2 axes"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], words: str) -> None:
    points = scatter(20, 3)
    with pytest.raises(InputError) as caught:
        match_spots(points, points, **options)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


SCRIPT = """
import sys, numpy as np
from tilereg.matching.cells import CellList
rng = np.random.default_rng(0)
cloud, points = rng.uniform(0, 4, (30, 3)), rng.uniform(0, 4, (20, 3))
cells = CellList.build(cloud, 1.0)
parts = [cells.gaussian_sum(points, 0.4, 1.0), cells.count_within(points, 1.0)]
parts += [p.ravel() for p in cells.posterior_sums(points, 0.4, 1.0, np.linspace(0, 1, 30))]
parts += [cells.vote(points, np.full(3, -1.0), np.full(3, 1.0), 0.5).ravel()]
np.save(sys.argv[1], np.concatenate(parts))
"""


def test_kernels_equal_their_uncompiled_selves(tmp_path: Path) -> None:
    results = []
    for name, switch in (("compiled", "0"), ("plain", "1")):
        out = tmp_path / f"{name}.npy"
        environment = {**os.environ, "NUMBA_DISABLE_JIT": switch}
        subprocess.run([sys.executable, "-c", SCRIPT, str(out)], env=environment, check=True)
        results.append(np.load(out))
    np.testing.assert_allclose(results[0], results[1], atol=1e-12)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_moving_cloud_that_is_far_denser(ndim: int, seed: int) -> None:
    """Beads among the dots of a whole round: nine in ten dots have no partner."""
    rng = np.random.default_rng(seed)
    box = np.full(ndim, 2000.0 if ndim == 2 else 500.0)
    beads = rng.uniform(0, 1, (100, ndim)) * box
    shift = rng.uniform(-30, 30, ndim)
    seen = beads[:85] + shift + rng.normal(0, 0.05, (85, ndim))
    dots = np.concatenate([seen, rng.uniform(0, 1, (1000, ndim)) * box])
    match = match_spots(beads, dots[rng.permutation(len(dots))])
    assert match.is_ok
    assert np.abs(match.transform(beads) - beads - shift).max() < 0.5
    assert 80 <= len(match.correspondences) <= 92


def test_spots_that_are_found_twice_are_not_a_denser_cloud() -> None:
    rng = np.random.default_rng(3)
    fixed = rng.uniform(0, 100, (400, 3))
    twice = np.concatenate([fixed, fixed + 0.01]) + [3.0, 0.0, -5.0]
    assert crowding(fixed, twice) == 1.0
    assert crowding(fixed, rng.uniform(0, 100, (8000, 3))) < 0.5
    assert crowding(fixed, fixed[:5]) == 1.0
    assert match_spots(fixed, twice).is_ok


def test_thousands_of_spots_at_a_few_places() -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 40, (40, 3))
    fixed = places[rng.integers(0, 40, 6000)]
    match = match_spots(fixed, fixed + [3.0, 1.0, 2.0])
    assert match.is_ok
    assert np.abs(match.transform(fixed) - fixed - [3.0, 1.0, 2.0]).max() < 0.01


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_drift_follows_a_wide_bend_to_the_noise(ndim: int) -> None:
    """The solver of the field must not be the largest error."""
    rng = np.random.default_rng(0)
    fixed = rng.uniform(0, 5 * 300 ** (1 / ndim), (300, ndim))
    bend = 10.0 * np.sin(2 * np.pi * fixed / 400 + 1)
    noise = 0.01
    moving = fixed + bend + rng.normal(0, noise, fixed.shape)
    match = match_spots(fixed, moving, field="coherent")
    assert match.residual_sigma < 2 * noise
    error = np.linalg.norm(match.transform(fixed) - fixed - bend, axis=1)
    assert np.median(error) < 2 * noise


def test_many_pairs_are_judged_in_parts_of_the_whole() -> None:
    """Bent in the middle alone: blocks must lie there, too."""
    points = np.random.default_rng(1).uniform(0, 1, (90_000, 2)) * 300
    blocks = _blocks(points)
    assert sum(len(rows) for rows in blocks) <= 60_000
    centres = np.array([points[rows].mean(axis=0) for rows in blocks])
    assert (np.abs(centres - 150).max(axis=1) < 100).sum() >= 2
    widths = [np.ptp(points[rows], axis=0).max() for rows in blocks]
    assert max(widths) < 150


def test_a_second_drift_starts_where_the_first_has_ended() -> None:
    """On another lattice: a start that is off by half a spacing found nothing."""
    rng = np.random.default_rng(0)
    fixed = rng.uniform(0, 5 * 300 ** (1 / 3), (300, 3))
    bend = 8.0 * np.sin(2 * np.pi * fixed / 200 + 1)
    moving = fixed + bend + rng.normal(0, 0.0135, fixed.shape)
    match = match_spots(fixed, moving)
    assert match.is_ok
    assert all(match.details["iterations"])
    error = np.linalg.norm(match.transform(fixed) - fixed - bend, axis=1) / match.spacing
    assert np.median(error) < 0.01


def test_many_spots_need_one_drift_of_a_part_of_them() -> None:
    pair = make_pair(30_000, noise=0.2, width=250.0)
    match = match_spots(pair.fixed, pair.moving)
    assert match.is_ok
    assert len(match.details["iterations"]) == 1
    error = np.linalg.norm(match.transform(pair.fixed) - pair.true_map(pair.fixed), axis=1)
    assert np.percentile(error, 95) < 0.08
    assert match.w == pytest.approx(0.25, abs=0.08)
    assert len(match.correspondences) > 0.98 * 0.75 * 30_000
    # Its own field is not that of kriging, and is drifted to the end.
    own = match_spots(pair.fixed, pair.moving, field="coherent")
    assert len(own.details["iterations"]) == 2
