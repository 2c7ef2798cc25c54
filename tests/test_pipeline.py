from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client
from numpy.typing import NDArray
from scenes import (
    RUN_FILES,
    Recorder,
    on_grid,
    read_image,
    rounds,
    voxels,
    write_image,
    write_rounds,
)

from tilereg import steps
from tilereg.config import Settings
from tilereg.grid import Grid
from tilereg.io.ome_zarr import open_image
from tilereg.io.tables import read_matches, read_spots
from tilereg.io.transforms import read_transform, write_affine
from tilereg.metrics import FieldError, field_error, inside_hull
from tilereg.pipeline import Run, register
from tilereg.transform import Affine, Transform
from tilereg.warping import warp_array

Arrays = NDArray[Any]


def settings(*assignments: str) -> Settings:
    return Settings().with_overrides(assignments)


def error_of(run: Run, ndim: int = 3, shift: Any = 0.0) -> FieldError:
    """Return the error of the field inside the hull of the pairs; `shift` moved the moving round.

    Voxels are those of the fixed round.
    """
    truth = rounds(ndim)
    points = truth.fixed_points[inside_hull(truth.fixed_points, run.matches.fixed)]
    spacing = truth.fixed_grid.spacing
    return field_error(run.transform, lambda p: truth.true_map(p) + shift, points, spacing)


def same_transform(a: Transform, b: Transform) -> bool:
    """Tell whether two transforms are the same to the last bit."""
    assert a.field is not None
    assert b.field is not None
    pairs = [
        (a.affine.matrix, b.affine.matrix),
        (a.affine.offset, b.affine.offset),
        (a.field.coefficients, b.field.coefficients),
        (a.field.origin, b.field.origin),
        (a.field.spacing, b.field.spacing),
    ]
    return all(np.array_equal(x, y) for x, y in pairs)


def check_same(run: Run, other: Run) -> None:
    """Check that two runs gave the same transform, pairs and voxels of all levels."""
    assert same_transform(run.transform, other.transform)
    assert np.array_equal(run.matches.fixed, other.matches.fixed)
    assert np.array_equal(run.matches.moving, other.matches.moving)
    assert len(run.registered.levels) == len(other.registered.levels)
    for level in range(len(run.registered.levels)):
        assert np.array_equal(
            read_image(run.registered, level), read_image(other.registered, level)
        )


def strict_json(path: Path) -> dict[str, Any]:
    """Read JSON that holds neither NaN nor infinity."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON.")

    return dict(json.loads(path.read_text(), parse_constant=refuse))


def check_model(location: str, version: str = "0.5") -> None:
    """Check an image with the models of the specification, and its labels."""
    models = pytest.importorskip("ome_zarr_models")
    version_models = models.v05 if version == "0.5" else models.v04
    version_models.Image.from_zarr(zarr.open_group(location, mode="r"))
    for name in open_image(location).labels:
        label = zarr.open_group(f"{location}/labels/{name}", mode="r")
        version_models.ImageLabel.from_zarr(label)


def test_the_folder_of_a_run(finished: Run) -> None:
    folder = Path(finished.output)
    assert {path.name for path in folder.iterdir()} == RUN_FILES
    assert same_transform(read_transform(folder / "transform.ome.zarr"), finished.transform)
    matches = read_matches(folder / "matches.parquet")
    assert np.array_equal(matches.fixed, finished.matches.fixed)
    for role, count in (("fixed", "num_fixed"), ("moving", "num_moving")):
        found = read_spots(folder / f"spots_{role}.parquet")
        assert len(found) == finished.qc["matches"][count]
    restored = Settings.from_mapping(
        {
            name: table
            for name, table in _toml(folder / "run.toml").items()
            if not name.startswith("run_")
        }
    )
    assert restored == Settings()
    check_model(finished.registered.location)


def _toml(path: Path) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(path.read_text())


def test_the_field_is_close_to_the_truth(finished: Run) -> None:
    error = error_of(finished)
    assert error.count > 50
    assert error.median_voxels < 0.3
    assert error.p95_voxels < 0.8


def test_the_report_has_its_figures(finished: Run) -> None:
    qc = strict_json(Path(finished.output) / "qc.json")
    assert qc == finished.qc
    assert qc["status"] == "ok"
    assert qc["spots"]["fixed"] > 80
    assert qc["spots"]["fixed_sigma_um"] == pytest.approx(0.5, rel=0.4)
    assert qc["matches"]["pairs"] == len(finished.matches) > 50
    assert qc["matches"]["share_matched"] > 0.4 > 0.1 > qc["matches"]["share_chance"]
    held_out = qc["residual"]["held_out"]
    assert held_out["count"] > 0
    assert 0 < held_out["median_um"] <= held_out["p95_um"] < 0.5
    assert held_out["median_voxel"] < held_out["p95_voxel"]
    assert 0 < qc["residual"]["floor_um"] < 0.2
    assert qc["ncc"]["before"] + 0.2 < qc["ncc"]["after"]
    assert qc["field"]["fold_share"] == 0
    names = [stage["name"] for stage in qc["stages"]]
    assert names == ["detect fixed", "detect moving", "match", "fit", "warp", "judge"]
    assert all(s["seconds"] > 0 and s["peak_memory_bytes"] > 10**7 for s in qc["stages"])
    assert qc["peak_memory_bytes"] == max(s["peak_memory_bytes"] for s in qc["stages"])


def test_registered_voxels_are_those_of_the_transform(finished: Run, pair: tuple[str, str]) -> None:
    fixed, moving = map(open_image, pair)
    want = warp_array(read_image(moving), finished.transform, like=fixed.grid, grid=moving.grid)
    assert np.array_equal(read_image(finished.registered), want)
    assert finished.registered.grid == fixed.grid


def test_progress_is_told(flat_pair: tuple[str, str], tmp_path: Path) -> None:
    told = Recorder()
    chosen = settings("output.chunks=[80,60]", "output.levels=2")
    register(*flat_pair, tmp_path / "run", settings=chosen, progress=told)
    names = ("detect fixed", "detect moving")
    detection = [stage for name in names for stage in (f"{name}, size and threshold", name)]
    assert list(told.totals) == [*detection, "match", "fit", "warp", "pyramid, level 1", "judge"]
    assert told.totals["warp"] == 2 * 3
    for name, total in told.totals.items():
        assert total is None or sum(told.steps[name]) == total
    assert any("spots of sigma" in note for note in told.notes)


def test_images_may_differ_in_everything(tmp_path: Path) -> None:
    both, shift = rounds(), np.array([100.0, -50.0, 20.0])
    fixed = write_image(
        tmp_path / "fixed.zarr",
        voxels(both.fixed)[None].astype(np.float32),
        both.fixed_grid,
        axes="czyx",
        chunks=(7, 33, 88),
    )
    grid = Grid(shape=(26, 78, 84), spacing=(0.5, 0.35, 0.33), origin=(99.5, -50.4, 19.0))
    moving = voxels(on_grid(both.moving, grid, shift))
    other = np.arange(moving.size, dtype=np.uint16).reshape(moving.shape)
    movie = np.stack([np.stack([other, moving]), np.stack([other[::-1], moving[:, ::-1]])])
    label = np.zeros(grid.shape, dtype=np.uint32)
    label[5:20, 20:50, 20:60] = 70_000
    omero = {
        "channels": [
            {"label": "DAPI", "color": "0000FF", "window": {"min": 0, "max": 9, "start": 1}},
            {"label": "spots", "color": "FF8000"},
        ]
    }
    place = write_image(
        tmp_path / "moving.zarr",
        movie,
        grid,
        axes="tczyx",
        channels=("DAPI", "spots"),
        labels={"cells": label, "image": label // 7},
        omero=omero,
        version="0.4",
        chunks=(26, 16, 30),
    )
    chosen = settings(
        "input.moving_channel=spots", "output.shards=[16,32,64]", "output.chunks=[8,16,32]",
        "output.levels=3", "warp.fill_value=7",
    )  # fmt: skip
    run = register(fixed, place, tmp_path / "run", settings=chosen)

    error = error_of(run, shift=shift)
    assert error.median_voxels < 0.3
    result = run.registered
    check_model(result.location)
    assert result.version == "0.5"
    assert result.axes == tuple("tczyx")
    assert result.channels == ("DAPI", "spots")
    assert result.num_times == 2
    assert result.grid == both.fixed_grid
    assert result.dtype == np.uint16
    shapes = [level.grid.shape for level in result.levels]
    assert shapes == [(20, 88, 88), (20, 44, 44), (10, 22, 22)]
    assert result.levels[0].shards == (16, 32, 64)
    assert result.omero is not None
    assert [c["color"] for c in result.omero["channels"]] == ["0000FF", "FF8000"]
    assert result.omero["channels"][0]["window"]["start"] == 1

    how = {"like": result.grid, "grid": grid}
    for time in range(2):
        for channel in range(2):
            want = warp_array(movie[time, channel], run.transform, fill_value=7, **how)
            assert np.array_equal(read_image(result, 0, channel, time), want)
    assert set(result.labels) == {"cells", "image"}
    for name, values in (("cells", label), ("image", label // 7)):
        warped = read_image(result.label(name))
        assert np.array_equal(warped, warp_array(values, run.transform, order=0, **how))
        assert set(np.unique(warped)) == {0, values.max()}
        assert read_image(result.label(name), 2).max() == values.max()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_planes(flat_pair: tuple[str, str], tmp_path: Path, version: str) -> None:
    chosen = settings(f"output.version='{version}'", "output.chunks=[50,60]", "output.levels=2")
    run = register(*flat_pair, tmp_path / "run", settings=chosen)
    assert error_of(run, 2).median_voxels < 0.3
    assert run.registered.axes == ("y", "x")
    assert run.registered.version == version
    assert run.registered.levels[1].grid.shape == (80, 80)
    check_model(run.registered.location, version)
    want = warp_array(
        voxels(rounds(2).moving), run.transform,
        like=rounds(2).fixed_grid, grid=rounds(2).moving_grid,
    )  # fmt: skip
    assert np.array_equal(read_image(run.registered), want)
    strict_json(Path(run.output) / "qc.json")


def test_a_volume_of_one_plane(tmp_path: Path) -> None:
    both, places = rounds(2), []
    for name, volume in (("fixed", both.fixed), ("moving", both.moving)):
        grid = Grid(shape=(1, *volume.shape), spacing=(2.0, *volume.grid.spacing))
        places.append(write_image(tmp_path / name, voxels(volume)[None], grid))
    run = register(*places, tmp_path / "run")
    points = np.insert(both.fixed_points, 0, 0.0, axis=1)
    points = points[inside_hull(points, run.matches.fixed)]
    assert len(points) > 50
    truth = np.insert(both.true_map(points[:, 1:]), 0, 0.0, axis=1)
    assert np.median(np.linalg.norm(run.transform(points) - truth, axis=1)) < 0.1
    assert run.registered.grid.shape == (1, *both.fixed.shape)


def test_chunks_of_the_input_change_nothing(finished: Run, tmp_path: Path) -> None:
    # Those of the finished run are one chunk each.
    check_same(register(*write_rounds(tmp_path, chunks=(7, 23, 30)), tmp_path / "run"), finished)


def test_chunks_of_planes_change_nothing(flat_pair: tuple[str, str], tmp_path: Path) -> None:
    one = register(*flat_pair, tmp_path / "one")
    lines = write_rounds(tmp_path, 2, chunks=(1, 170))
    check_same(register(*lines, tmp_path / "lines"), one)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_chunks_of_the_output_change_nothing(
    finished: Run, pair: tuple[str, str], tmp_path: Path, order: int
) -> None:
    layouts = [
        ["output.chunks=[20,88,88]"],
        ["output.chunks=[3,17,88]"],
        ["output.chunks=[5,8,8]", "output.shards=[10,16,32]"],
    ]
    images = []
    for number, layout in enumerate(layouts):
        chosen = settings(f"warp.order={order}", "output.levels=2", *layout)
        place = tmp_path / str(number)
        images.append(steps.warp(pair[1], finished.output, place, like=pair[0], settings=chosen))
    for image in images[1:]:
        for level in range(2):
            assert np.array_equal(read_image(image, level), read_image(images[0], level))
    if order == 1:
        assert np.array_equal(read_image(images[0]), read_image(finished.registered))


def test_worker_processes_change_nothing(
    finished: Run, pair: tuple[str, str], tmp_path: Path, client: Client
) -> None:
    chosen = settings("output.chunks=[8,44,44]")
    check_same(register(*pair, tmp_path / "run", settings=chosen, client=client), finished)


def test_some_channels(tmp_path: Path) -> None:
    both = rounds(2)
    moving = voxels(both.moving)
    place = write_image(
        tmp_path / "moving.zarr",
        np.stack([moving // 3, moving, moving // 2]),
        both.moving_grid,
        axes="cyx",
        channels=("a", "b", "c"),
    )
    fixed = write_image(tmp_path / "fixed.zarr", voxels(both.fixed), both.fixed_grid)
    chosen = settings("input.moving_channel=1", "warp.channels=['c', 0]")
    run = register(fixed, place, tmp_path / "run", settings=chosen)
    assert run.registered.channels == ("c", "a")
    for channel, values in enumerate((moving // 2, moving // 3)):
        want = warp_array(values, run.transform, like=both.fixed_grid, grid=both.moving_grid)
        assert np.array_equal(read_image(run.registered, 0, channel), want)


@pytest.mark.parametrize("kind", ["affine", "json", "setting", "none"])
def test_a_given_start(flat_pair: tuple[str, str], tmp_path: Path, kind: str) -> None:
    truth = rounds(2).true_map
    affine = Affine(truth.matrix, truth.offset)
    file = tmp_path / "start.json"
    write_affine(file, affine)
    start: dict[str, Any] = {
        "affine": {"initial": affine},
        "json": {"initial": file},
        "setting": {"settings": settings("initial.method=file", f"initial.file='{file}'")},
        "none": {"settings": settings("initial.method=none")},
    }[kind]
    fixed, moving = flat_pair
    if kind == "none":
        # The same image twice, so that nothing needs to be searched for.
        moving = fixed
    run = register(fixed, moving, tmp_path / "run", **start)
    assert run.qc["matches"]["details"]["pose"]["source"] == "given"
    if kind == "none":
        points = rounds(2).fixed_points
        assert np.abs(run.transform(points) - points).max() < 1e-3
    else:
        assert error_of(run, 2).median_voxels < 0.3


def test_a_coarser_level(tmp_path: Path) -> None:
    places = write_rounds(tmp_path, 2, levels=2)
    chosen = settings("input.level=1")
    run = register(*places, tmp_path / "run", settings=chosen)
    assert run.registered.grid == rounds(2).fixed_grid
    assert error_of(run, 2).median_voxels < 0.6
