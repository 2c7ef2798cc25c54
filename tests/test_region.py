"""Regions of interest: spots outside of a box or a mask take no part in the match."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scenes import rounds, write_image
from test_growth import bent, scattered
from typer.testing import CliRunner, Result

from tilereg import steps
from tilereg.cli import app
from tilereg.config import Settings
from tilereg.errors import ImageError, InputError
from tilereg.given import clouds_of, fingerprints
from tilereg.grid import Grid
from tilereg.io.masks import is_inside
from tilereg.io.ome_zarr import open_image
from tilereg.io.reading import ZarrReader
from tilereg.io.tables import read_matches, write_spots
from tilereg.io.transforms import read_transform
from tilereg.pipeline import register
from tilereg.points import Spots
from tilereg.windows import Window

Floats = NDArray[np.float64]


def settings(**values: Any) -> Settings:
    names = (f"{name.replace('__', '.')}={value}" for name, value in values.items())
    return Settings().with_overrides(names)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--quiet"])


def read_at(array: NDArray[Any], grid: Grid, points: Floats) -> NDArray[np.bool_]:
    """Return what a mask in memory says, point by point."""
    found = []
    for point in points:
        index = np.round((point - grid.origin) / grid.spacing).astype(int)
        is_there = (index >= 0).all() and (index < array.shape).all()
        found.append(bool(is_there and array[tuple(index)] != 0))
    return np.array(found)


@pytest.mark.parametrize("kind", ["label", "image", "sharded"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_mask_equals_a_look_at_every_point(tmp_path: Path, ndim: int, kind: str) -> None:
    """On a grid of its own, over uneven chunks, with points outside."""
    rng = np.random.default_rng(ndim)
    shape = (13, 30, 41)[-ndim:]
    grid = Grid(shape=shape, spacing=(2.0, 0.7, 0.3)[-ndim:], origin=(-3.0, 5.0, 1.0)[-ndim:])
    array = (rng.uniform(0, 1, shape) < 0.4) * rng.integers(1, 9, shape)
    options: dict[str, Any] = {"chunks": (4, 8, 16)[-ndim:], "levels": 1}
    if kind == "sharded":
        options["shards"] = (8, 16, 32)[-ndim:]
    if kind == "label":
        options["is_label"] = True
    place = write_image(tmp_path / "mask", array.astype(np.uint16), grid, **options)
    low, high = grid.bounds
    points = rng.uniform(low - 3, high + 3, (500, ndim))
    found = is_inside(open_image(place), points)
    np.testing.assert_array_equal(found, read_at(array, grid, points))
    assert 0.05 < found.mean() < 0.6
    assert is_inside(open_image(place), points[:0]).shape == (0,)


def test_only_chunks_with_spots_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(shape=(64, 64), spacing=(1.0, 1.0))
    place = write_image(
        tmp_path / "mask", np.ones((64, 64), np.uint8), grid, chunks=(8, 8), levels=1
    )
    read: list[Window] = []
    plain = ZarrReader.read

    def spy(self: ZarrReader, window: Window) -> NDArray[Any]:
        read.append(window)
        return plain(self, window)

    monkeypatch.setattr(ZarrReader, "read", spy)
    points = np.array([[3.0, 3.0], [4.0, 5.0], [60.0, 9.0], [900.0, 0.0]])
    assert is_inside(open_image(place), points).tolist() == [True, True, True, False]
    assert sorted(window.start for window in read) == [(0, 0), (56, 8)]
    assert {window.shape for window in read} == {(8, 8)}


def test_no_data_is_outside(tmp_path: Path) -> None:
    grid = Grid(shape=(4, 4), spacing=(1.0, 1.0))
    array = np.array([[0, 1, np.nan, -2]] * 4, dtype=np.float32)
    place = write_image(tmp_path / "mask", array, grid, levels=1)
    points = np.stack([np.zeros(4), np.arange(4.0)], axis=1)
    assert is_inside(open_image(place), points).tolist() == [False, True, False, True]


def test_masks_that_cannot_be_used(tmp_path: Path) -> None:
    grid = Grid(shape=(4, 4), spacing=(1.0, 1.0))
    array = np.ones((2, 4, 4), np.uint8)
    two = write_image(tmp_path / "two", array, grid, axes="cyx", levels=1)
    with pytest.raises(ImageError, match=r"has 2 channels\. A mask has one"):
        is_inside(open_image(two), np.ones((3, 2)))
    one = write_image(tmp_path / "one", array[0], grid, levels=1)
    with pytest.raises(InputError, match="has 2 spatial axes, the spots have 3"):
        is_inside(open_image(one), np.ones((3, 3)))
    times = write_image(tmp_path / "times", array * [[[0]], [[1]]], grid, axes="tyx", levels=1)
    assert not is_inside(open_image(times), np.ones((1, 2))).any()
    assert is_inside(open_image(times), np.ones((1, 2)), time=1).all()


@pytest.fixture
def tables(tmp_path: Path) -> tuple[list[Path], Floats, Floats]:
    """Return tables of two clouds: on the left they fit, on the right everything is strange."""
    fixed = scattered(600, 3)
    middle = float(np.median(fixed[:, 2]))
    moving = bent(fixed, 0.4, 5.0)
    is_right = fixed[:, 2] > middle
    rng = np.random.default_rng(0)
    moving[is_right] = rng.uniform([0, 0, middle], fixed.max(axis=0), (is_right.sum(), 3))
    places = []
    for name, cloud in (("fixed", fixed), ("moving", moving)):
        places.append(tmp_path / f"{name}.parquet")
        write_spots(places[-1], Spots.at(cloud))
    return places, fixed, moving


def test_spots_outside_of_a_box_take_no_part(
    tables: tuple[list[Path], Floats, Floats], tmp_path: Path
) -> None:
    """Pairs are rows of all spots, and the match is that of the spots inside."""
    places, fixed, moving = tables
    low, high = fixed.min(axis=0) - 1, fixed.max(axis=0) + 1
    high[2] = np.median(fixed[:, 2])
    region = [low.tolist(), high.tolist()]
    chosen = settings(match__region=region, match__moving_region=region)
    found = steps.match(*places, tmp_path / "out", settings=chosen)
    pairs = found.correspondences
    assert (fixed[pairs.fixed_index] <= high).all()
    np.testing.assert_array_equal(fixed[pairs.fixed_index], pairs.fixed)
    np.testing.assert_array_equal(moving[pairs.moving_index], pairs.moving)
    assert (pairs.fixed_index == pairs.moving_index).mean() > 0.98
    assert found.share_matched > 0.85
    whole = steps.match(*places, tmp_path / "whole")
    assert whole.share_matched < 0.7
    inside = [((c >= low) & (c <= high)).all(axis=1) for c in (fixed, moving)]
    qc = json.loads((tmp_path / "out" / "qc.json").read_text())
    assert qc["spots"] == {
        "fixed": 600,
        "moving": 600,
        "left_out": {
            "fixed": int((~inside[0]).sum()),
            "moving": int((~inside[1]).sum()),
        },
    }
    assert qc["matches"]["num_fixed"] == inside[0].sum()
    less = []
    for name, cloud, rows in zip(("f", "m"), (fixed, moving), inside, strict=True):
        less.append(tmp_path / f"{name}.parquet")
        write_spots(less[-1], Spots.at(cloud[rows]))
    same = steps.match(*less, tmp_path / "same")
    np.testing.assert_array_equal(same.transform(fixed), found.transform(fixed))


def test_a_mask_from_the_command_line(
    tables: tuple[list[Path], Floats, Floats], tmp_path: Path
) -> None:
    """The same box, as labels of coarse voxels; of the fixed image alone."""
    places, fixed, _ = tables
    low, high = fixed.min(axis=0) - 1, fixed.max(axis=0) + 1
    shape = tuple(int(n) for n in np.ceil((high - low) / 0.5))
    grid = Grid(shape=shape, spacing=(0.5,) * 3, origin=tuple(low.tolist()))
    array = np.zeros(shape, np.uint8)
    array[:, :, : shape[2] // 2] = 3
    mask = write_image(tmp_path / "mask", array, grid, is_label=True, levels=1, chunks=(8, 8, 8))
    result = run("match", *places, tmp_path / "out", "--mask", mask)
    assert result.exit_code == 0, result.stderr
    pairs = read_matches(tmp_path / "out" / "matches.parquet")
    inside = is_inside(open_image(mask), fixed)
    assert inside[pairs.fixed_index].all()
    assert (pairs.fixed_index == pairs.moving_index).mean() > 0.98
    qc = json.loads((tmp_path / "out" / "qc.json").read_text())
    assert qc["spots"]["left_out"] == {"fixed": int((~inside).sum()), "moving": 0}
    transform = read_transform(tmp_path / "out" / "transform.ome.zarr")
    gap = np.linalg.norm(transform(fixed) - bent(fixed, 0.4, 5.0), axis=1)
    assert np.median(gap[inside]) < 0.05


def test_a_run_with_a_region_and_a_mask(flat_pair: tuple[str, str], tmp_path: Path) -> None:
    truth = rounds(2)
    low, high = truth.fixed_grid.bounds
    region = [(low - 1).tolist(), [float(high[0]) + 1, float(0.2 * low[1] + 0.8 * high[1])]]
    mask = write_image(
        tmp_path / "mask", np.ones(truth.moving_grid.shape, np.uint8), truth.moving_grid, levels=1
    )
    chosen = settings(match__region=region, match__moving_mask=mask)
    found = register(*flat_pair, tmp_path / "run", settings=chosen)
    assert (found.matches.fixed <= region[1]).all()
    left_out = found.qc["spots"]["left_out"]
    assert left_out["moving"] == 0
    assert 0.1 < left_out["fixed"] / found.qc["spots"]["fixed"] < 0.3
    # Where spots take no part nobody misses their partners.
    assert found.qc["support"]["spots_inside"] <= found.qc["matches"]["num_fixed"]
    assert found.qc["support"]["share_with_partner"] > 0.5
    assert found.qc["given"] == {"moving_mask": mask}
    (tmp_path / "run" / "progress" / "judge.json").unlink()
    again = register(*flat_pair, tmp_path / "run", settings=chosen, resume=True)
    assert again.qc["support"] == found.qc["support"]


def test_a_mask_is_part_of_what_makes_a_run(tmp_path: Path) -> None:
    grid = Grid(shape=(4, 4), spacing=(1.0, 1.0))
    chosen = settings(match__mask=tmp_path / "mask", match__moving_mask=tmp_path / "other")
    prints = []
    for value in (1, 2):
        for name in ("mask", "other"):
            place = tmp_path / name
            if not place.exists():
                write_image(place, np.full((4, 4), value, np.uint8), grid, levels=1)
        prints.append(fingerprints(chosen))
        shutil.rmtree(tmp_path / "mask")
    assert set(prints[0]) == {"fixed_mask_fingerprint", "moving_mask_fingerprint"}
    assert prints[0]["fixed_mask_fingerprint"] != prints[1]["fixed_mask_fingerprint"]
    assert prints[0]["moving_mask_fingerprint"] == prints[1]["moving_mask_fingerprint"]


def test_without_a_region_all_spots_take_part() -> None:
    spots = Spots.at(scattered(20, 3))
    clouds = clouds_of(spots, spots, Settings())
    assert clouds.num_used == (20, 20)
    assert clouds.note == ""
    some = clouds_of(spots, spots, settings(match__moving_region=[[0, 0, 0], [3, 3, 3]]))
    count = int(((spots.positions >= 0) & (spots.positions <= 3)).all(axis=1).sum())
    assert some.num_used == (20, count)
    assert some.note.startswith(f"{20 - count} of 20 moving spots lie outside")


def test_no_spot_is_left(tmp_path: Path) -> None:
    spots = Spots.at(scattered(20, 3))
    with pytest.raises(InputError, match=r"No moving spot lies inside of the region from \[90"):
        clouds_of(spots, spots, settings(match__moving_region=[[90, 0, 0], [91, 3, 3]]))
    with pytest.raises(InputError, match="region of the fixed image has 2 axes"):
        clouds_of(spots, spots, settings(match__region=[[0, 0], [3, 3]]))
    grid = Grid(shape=(4, 4, 4), spacing=(1.0, 1.0, 1.0))
    mask = write_image(tmp_path / "mask", np.zeros((4, 4, 4), np.uint8), grid, levels=1)
    region = [[0, 0, 0], [99, 99, 99]]
    with pytest.raises(InputError, match=r"region from .* and the mask '.*mask'\. The spots"):
        clouds_of(spots, spots, settings(match__region=region, match__mask=mask))
    with pytest.raises(ImageError, match="nowhere"):
        clouds_of(spots, spots, settings(match__mask=tmp_path / "nowhere"))
