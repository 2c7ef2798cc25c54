"""Matching tile by tile: equal to the whole, whoever does it, and honest where it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from numpy.typing import NDArray

from benchmarks.spot_clouds import CloudSpec, SpotClouds, make_clouds
from tilereg import (
    Affine,
    InputError,
    Match,
    OutputError,
    Settings,
    Spots,
    match_spots,
    match_tiles,
    spot_source,
    steps,
)
from tilereg.io import spot_cells
from tilereg.io.spot_cells import sliced, write_cells
from tilereg.io.tables import write_spots
from tilereg.kriging import fit_kriging, parts
from tilereg.kriging.parts import PairPart, fit_parts, plan_parts_model
from tilereg.lazy.match import match_sources
from tilereg.matching import local_pose
from tilereg.matching.tiles import TileMatch, plan_tiles
from tilereg.spot_source import ArraySource, is_picked
from tilereg.tiled import tile_spots_of

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def clouds() -> SpotClouds:
    return make_clouds(CloudSpec(8000))


@pytest.fixture(scope="module")
def tiled(clouds: SpotClouds) -> Match:
    return in_tiles(clouds.fixed, clouds.moving)


def in_tiles(fixed: Floats, moving: Floats, size: int = 2000, **options: object) -> Match:
    sources = ArraySource(Spots.at(fixed)), ArraySource(Spots.at(moving))
    return match_sources(*sources, tile_spots=size, **options)


def rms(clouds: SpotClouds, match: Match) -> float:
    error = match.transform(clouds.fixed) - clouds.map(clouds.fixed)
    return float(np.sqrt((error**2).sum(axis=1).mean()))


def test_tiles_are_as_good_as_the_whole(clouds: SpotClouds, tiled: Match) -> None:
    whole = match_spots(clouds.fixed, clouds.moving)
    assert tiled.is_ok
    assert not tiled.warnings
    assert len(tiled.details["tiles"]) == 4
    assert rms(clouds, tiled) < 1.05 * rms(clouds, whole)
    apart = np.linalg.norm(tiled.transform(clouds.fixed) - whole.transform(clouds.fixed), axis=1)
    # They differ by less than either is off: widths are chosen from other pairs.
    assert np.sqrt((apart**2).mean()) < 0.7 * rms(clouds, whole)
    assert abs(len(tiled.correspondences) - len(whole.correspondences)) < 20
    assert tiled.residual_sigma == pytest.approx(whole.residual_sigma, rel=0.03)
    assert tiled.share_matched == pytest.approx(whole.share_matched, abs=0.01)


def test_pairs_belong_to_the_tile_that_owns_their_fixed_spot(
    clouds: SpotClouds, tiled: Match
) -> None:
    pairs = tiled.correspondences
    for row in tiled.details["tiles"]:
        own = pairs.fixed[pairs.tile == row["tile"]]
        assert len(own) == row["pairs"] > 1000
        assert (own >= row["low_um"]).all()
        assert (own <= row["high_um"]).all()
    assert len(np.unique(pairs.fixed_index)) == len(np.unique(pairs.moving_index)) == len(pairs)
    assert (np.diff(pairs.fixed_index) > 0).all()
    assert (clouds.partner[pairs.fixed_index] == pairs.moving_index).mean() > 0.98
    np.testing.assert_array_equal(clouds.fixed[pairs.fixed_index], pairs.fixed)
    np.testing.assert_array_equal(clouds.moving[pairs.moving_index], pairs.moving)
    held = pairs.held_out
    assert 0.02 < held.mean() < 0.1
    miss = np.linalg.norm(tiled.judge(pairs.fixed[held]) - pairs.moving[held], axis=1)
    np.testing.assert_allclose(miss, pairs.residual[held], rtol=1e-9)


def test_a_cluster_gives_the_same_bits_and_no_worker_sees_all(
    clouds: SpotClouds, tiled: Match, client: Client, tmp_path: Path
) -> None:
    tables = []
    for role, points in (("fixed", clouds.fixed), ("moving", clouds.moving)):
        tables.append(tmp_path / f"{role}.parquet")
        write_spots(tables[-1], Spots.at(points))
    seen: list[TileMatch] = []
    found = match_tiles(
        *tables, tmp_path / "cells", tile_spots=2000, client=client, progress=seen.append
    )
    for name in ("fixed_index", "moving_index", "residual", "weight", "tile", "held_out"):
        np.testing.assert_array_equal(
            getattr(found.correspondences, name), getattr(tiled.correspondences, name)
        )
    at = clouds.fixed[::50]
    np.testing.assert_array_equal(found.transform(at), tiled.transform(at))
    assert sorted(match.tile.number for match in seen) == [0, 1, 2, 3]
    assert max(match.seen for match in seen) < 0.75 * 2 * len(clouds.fixed)


def test_what_has_no_partner_is_named(clouds: SpotClouds) -> None:
    """A quarter of the moving cloud is replaced by strangers, a quarter is not there."""
    x = clouds.moving[:, 0]
    ends = np.quantile(x, [0.3, 0.7])
    rng = np.random.default_rng(0)
    strangers = clouds.moving[x < ends[0]]
    strangers = strangers[rng.permutation(len(strangers))] + rng.normal(0, 8.0, strangers.shape)
    moving = np.concatenate([strangers, clouds.moving[(x >= ends[0]) & (x < ends[1])]])
    match = in_tiles(clouds.fixed, moving, 500)
    assert match.is_ok
    told = match.details["tiles"]
    bad = [row for row in told if row["status"] != "ok"]
    assert {row["status"] for row in bad} <= {"sparse", "few spots", "no registration", "lost"}
    assert len(bad) == 8
    assert sum(row["pairs"] for row in bad) < 100
    assert "8 of 16 tiles with 50 % of the fixed spots" in match.warnings[0]
    assert f"{bad[0]['tile']} ({bad[0]['status']})" in match.warnings[0]
    inside = (clouds.map(clouds.fixed)[:, 0] > ends[0]) & (clouds.map(clouds.fixed)[:, 0] < ends[1])
    error = match.transform(clouds.fixed) - clouds.map(clouds.fixed)
    assert np.median(np.linalg.norm(error[inside], axis=1)) < 0.15


def test_bends_are_followed_from_tile_to_tile() -> None:
    """In the middle the pose is right; at the ends it is off by many spacings."""
    clouds = make_clouds(CloudSpec(9000, bump=40.0, width=100.0, depth=60.0))
    match = in_tiles(clouds.fixed, clouds.moving, 1500)
    assert {row["status"] for row in match.details["tiles"]} == {"ok"}
    error = np.linalg.norm(match.transform(clouds.fixed) - clouds.map(clouds.fixed), axis=1)
    assert np.percentile(error, 99) < 1.0


def test_strangers_do_not_match(clouds: SpotClouds) -> None:
    other = make_clouds(CloudSpec(4000, seed=9)).moving
    match = in_tiles(clouds.fixed[:4000], other, 1000)
    assert match.status == "no registration"
    assert not len(match.correspondences)
    # Nor where somebody says where they are: then no tile finds its like.
    pose = match_spots(clouds.fixed, clouds.moving).transform.affine
    given = in_tiles(clouds.fixed[:4000], other, 1000, initial=pose)
    assert given.status == "no registration"


@pytest.mark.parametrize("ndim", [2, 3])
def test_only_like_spots_of_some_weight_are_paired(ndim: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    fixed = rng.uniform(0, 300 if ndim == 2 else 60, (4000, ndim))
    moving = fixed + np.array([1.5, -2.0, 0.7])[:ndim] + rng.normal(0, 0.05, fixed.shape)
    names = np.array(["Gad1", "Sst"])[rng.integers(0, 2, 4000)]
    weight = np.where(rng.random(4000) < 0.1, 0.0, 0.8)
    order = rng.permutation(4000)
    match = match_tiles(
        Spots.at(fixed, spot_class=names, weight=weight),
        Spots.at(moving[order], spot_class=names[order]),
        tmp_path / "cells",
        tile_spots=1500,
    )
    pairs = match.correspondences
    assert match.is_ok
    assert (names[pairs.fixed_index] == names[order][pairs.moving_index]).all()
    assert (order[pairs.moving_index] == pairs.fixed_index).mean() > 0.99
    assert (weight[pairs.fixed_index] > 0).all()
    assert len(pairs) > 3400
    assert pairs.weight.max() <= 0.8


def test_the_order_of_rows_and_the_unit_change_nothing(clouds: SpotClouds) -> None:
    fixed, moving = clouds.fixed[:3000], clouds.moving
    plain = in_tiles(fixed, moving, 1000)
    # Rows of the fixed cloud stay: they say which spots are held out.
    order = np.random.default_rng(0).permutation(len(moving))
    mixed = in_tiles(fixed, moving[order], 1000)
    np.testing.assert_array_equal(
        order[mixed.correspondences.moving_index], plain.correspondences.moving_index
    )
    np.testing.assert_allclose(mixed.transform(fixed), plain.transform(fixed), atol=1e-6)
    large = in_tiles(1024 * fixed, 1024 * moving, 1000)
    np.testing.assert_allclose(
        large.transform(1024 * fixed) / 1024, plain.transform(fixed), atol=1e-6
    )


@pytest.mark.parametrize("count", [1, 7, 5000])
def test_every_spot_has_one_tile(count: int) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(0, 1, (count, 3)) ** 3
    points[: count // 3] = points[0]
    tiles = plan_tiles(points, 10 * count, 5000)
    owners = np.sum([tile.owns(points) for tile in tiles], axis=0)
    assert (owners == 1).all()
    far = np.array([[1e9, -1e9, 0.0]])
    assert sum(tile.owns(far)[0] for tile in tiles) == 1
    sizes = [10 * tile.owns(points).sum() for tile in tiles]
    assert max(sizes) <= max(5000, 10 * (count // 3) + 5000)
    assert [tile.number for tile in tiles] == list(range(len(tiles)))


def test_rows_are_held_out_wherever_they_are_read() -> None:
    rows = np.arange(100_000)
    held = is_picked(rows, 0.05, 3)
    assert held.mean() == pytest.approx(0.05, abs=0.004)
    np.testing.assert_array_equal(is_picked(rows[500:900], 0.05, 3), held[500:900])
    assert not np.array_equal(held, is_picked(rows, 0.05, 4))
    assert not is_picked(rows, 0.0, 0).any()


def test_a_field_of_parts_is_that_of_all_pairs() -> None:
    clouds = make_clouds(CloudSpec(5000))
    ours = np.flatnonzero(clouds.partner >= 0)
    x, y = clouds.fixed[ours], clouds.moving[clouds.partner[ours]]
    ones = np.ones(len(x))
    pieces = [PairPart(x[i::3], y[i::3], ones[i::3]) for i in range(3)]
    whole = fit_kriging(x, y)
    prior = (whole.prior.beta * whole.unit, whole.prior.noise, len(x))
    model = plan_parts_model(pieces, [prior])
    found = fit_parts(lambda: pieces, model, (x.min(axis=0), x.max(axis=0)), len(x))
    apart = np.linalg.norm(found(x) - whole.transform(x), axis=1)
    error = np.linalg.norm(whole.transform(x) - clouds.map(x), axis=1)
    assert np.median(apart) < 0.1 * np.median(error)
    chosen = plan_parts_model(pieces, [(np.inf, 1.0, 5)])
    assert 0.5 < chosen.prior.beta * chosen.unit / prior[0] < 2


def test_the_step_matches_in_tiles(clouds: SpotClouds, client: Client, tmp_path: Path) -> None:
    tables = []
    for role, points in (("fixed", clouds.fixed), ("moving", clouds.moving)):
        tables.append(tmp_path / f"{role}.parquet")
        write_spots(tables[-1], Spots.at(points))
    settings = Settings().with_overrides(["match.tile_spots=2000"])
    output = tmp_path / "matched"
    found = steps.match(*tables, output, settings=settings, client=client)
    assert set(found.correspondences.tile) == {0, 1, 2, 3}
    assert sorted(p.name for p in output.iterdir()) == [
        "matches.parquet", "qc.json", "transform.ome.zarr"
    ]  # fmt: skip
    assert rms(clouds, found) < 0.2


def test_which_clouds_are_tiled() -> None:
    def size(*settings: str, count: int = 100) -> int | None:
        return tile_spots_of(Settings().with_overrides(list(settings)), count, 100)

    assert size() is None
    assert size(count=3_000_000) == 200_000
    assert size("match.tile_spots=none", count=3_000_000) is None
    assert size("match.tile_spots=5000") == 5000
    assert size("match.method=icp", count=3_000_000) is None
    with pytest.raises(InputError, match=r"'icp'.*Set match.tile_spots to 'none'"):
        size("match.tile_spots=5000", "match.method=icp")
    with pytest.raises(InputError, match=r"match\.beta"):
        size("match.tile_spots=5000", "match.beta=5")


def test_clouds_of_other_axes_are_refused(clouds: SpotClouds) -> None:
    with pytest.raises(InputError, match="3 axes, moving points have 2"):
        in_tiles(clouds.fixed, clouds.moving[:, 1:])


def test_few_spots_are_no_tile(clouds: SpotClouds) -> None:
    few = in_tiles(clouds.fixed[:20], clouds.moving[:20])
    assert few.status == "no registration"
    assert not len(few.correspondences)
    none = in_tiles(clouds.fixed[:0], clouds.moving)
    assert none.status == "few spots"
    assert "0 fixed and 8000 moving spots" in none.message


@pytest.mark.parametrize("side", [0.35])
def test_an_overlap_at_one_side_is_found(
    side: float, clouds: SpotClouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The middle of the fixed cloud has no partners."""
    monkeypatch.setattr(local_pose, "_BOX_SPOTS", 800)
    x = clouds.moving[:, 0]
    at = np.quantile(x, abs(side) if side > 0 else 1 + side)
    moving = clouds.moving[x < at if side > 0 else x > at] + [500.0, 0.0, 0.0]
    match = in_tiles(clouds.fixed, moving, 1000)
    assert match.is_ok
    pairs = match.correspondences
    assert len(pairs) > 1900
    told = match.details["tiles"]
    assert len(told) == 8
    assert sum(row["spots"] for row in told) == len(clouds.fixed)
    assert match.share_matched < 0.3


def test_without_held_out_spots_the_tiles_tell(clouds: SpotClouds) -> None:
    match = in_tiles(clouds.fixed[:4000], clouds.moving, 2000, held_out=0.0)
    assert match.is_ok
    assert not match.correspondences.held_out.any()
    np.testing.assert_array_equal(match.transform(clouds.fixed[:9]), match.judge(clouds.fixed[:9]))


def test_a_field_that_cannot_hold_the_deformation_is_told(
    clouds: SpotClouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_MOST_NODES", 80)
    match = in_tiles(clouds.fixed, clouds.moving)
    assert "finer than the field can hold" in match.warnings[-1]
    assert match.residual_sigma > 0.6
    assert match.share_matched < 0.7


@pytest.mark.parametrize(("ndim", "flat"), [(2, ()), (3, (0,)), (3, (0, 2))])
def test_spots_of_a_plane_or_a_line(ndim: int, flat: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    fixed = rng.uniform(0, 600 if len(flat) < 2 else 6000, (3000, ndim))
    fixed[:, flat] = 5.0
    moving = fixed + 3.0 + rng.normal(0, 0.02, fixed.shape)
    match = in_tiles(fixed, moving, 1000, max_rotation=0.0)
    assert match.is_ok
    assert np.median(match.correspondences.weight) > 0.9
    # Off a plane, noise alone tells of the field.
    assert np.median(np.abs(match.transform(fixed) - fixed - 3.0)) < 0.05


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"w": 1.0}, "Invalid w"),
        ({"held_out": 0.9}, "Invalid held_out"),
        ({"seed": -5}, "Invalid seed"),
        ({"max_iterations": 0}, "Invalid max_iterations"),
        ({"initial": Affine.identity(2)}, "initial affine has 2 axes"),
    ],
)
def test_wrong_settings_are_explained(
    options: dict[str, object], words: str, clouds: SpotClouds
) -> None:
    with pytest.raises(InputError, match=words):
        in_tiles(clouds.fixed, clouds.moving, **options)


def test_wrong_clouds_are_explained(clouds: SpotClouds, tmp_path: Path) -> None:
    few = clouds.fixed[:100]
    named = Spots.at(few, spot_class=np.array(["a"] * 100))
    with pytest.raises(InputError, match="fixed spots have classes"):
        match_tiles(named, Spots.at(few), tmp_path / "a")
    numbered = Spots.at(few, spot_class=np.arange(100))
    with pytest.raises(InputError, match="are text"):
        match_tiles(named, numbered, tmp_path / "b")
    with pytest.raises(InputError, match="At least 1000"):
        match_tiles(named, named, tmp_path / "c", tile_spots=3)
    precious = tmp_path / "d" / "fixed"
    precious.mkdir(parents=True)
    write_spots(precious / "spots.parquet", Spots.at(few))
    with pytest.raises(OutputError, match="no part of sorted spots"):
        match_tiles(precious / "spots.parquet", named, tmp_path / "d")
    assert (precious / "spots.parquet").exists()


def test_threads_and_cells_plan_the_same_tiles(
    clouds: SpotClouds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more spots than a sample has."""
    for module in (spot_source, spot_cells):
        monkeypatch.setattr(module, "SAMPLED", 1000)
    spots = Spots.at(clouds.fixed)
    cells = write_cells(str(tmp_path / "cells"), sliced(spots))
    plans = [plan_tiles(s.sample().positions, s.count, 1000) for s in (cells, ArraySource(spots))]
    assert len(plans[0]) >= 8
    assert plans[0] == plans[1]
