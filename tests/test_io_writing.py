"""OME-Zarr images are written so that tilereg and other software read the same."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr

from tilereg.errors import ImageError, InputError, OutputError
from tilereg.grid import Grid
from tilereg.io.ome_zarr import ImageWriter, OmeZarrImage, create_image, open_image, remove_store
from tilereg.io.pyramid import block_mean, most_common, plan_levels
from tilereg.windows import Window

GRID = Grid(shape=(5, 21, 30), spacing=(1.0, 0.3, 0.3), origin=(7.0, -2.0, 0.5))
FLAT = Grid(shape=(21, 30), spacing=(0.3, 0.2), origin=(1.0, 2.0))
LAYOUTS = ["yx", "zyx", "cyx", "czyx", "tyx", "tzyx", "tcyx", "tczyx"]


def grid_of(axes: str) -> Grid:
    """Return a grid with the spatial axes of a layout."""
    return GRID if "z" in axes else FLAT


def voxels(grid: Grid, seed: int = 0, dtype: str = "uint16") -> np.ndarray:
    """Return random voxels."""
    return np.random.default_rng(seed).integers(0, 200, grid.shape).astype(dtype)


def write_all(writer: ImageWriter, array: np.ndarray, channel: int = 0, time: int = 0) -> None:
    """Write a volume unit by unit, then its coarser levels."""
    for unit in writer.units(0):
        writer.write(unit.window, array[unit.window.slices], channel=channel, time=time)
    for level in range(1, len(writer.levels)):
        for unit in writer.units(level):
            writer.downsample(level, unit.window, channel, time)


def read_all(image: OmeZarrImage, level: int = 0, channel: int = 0, time: int = 0) -> np.ndarray:
    """Read a whole volume."""
    reader = image.reader(level, channel, time)
    return reader.read(reader.grid.window)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", LAYOUTS)
def test_round_trip_of_every_layout(tmp_path: Path, axes: str, version: str) -> None:
    grid = grid_of(axes)
    writer = create_image(
        tmp_path / "a.ome.zarr",
        grid=grid,
        dtype="uint16",
        channels=["DAPI", "spots"] if "c" in axes else (),
        num_times=3 if "t" in axes else 1,
        version=version,
        chunks=(2, 8, 16)[-grid.ndim :],
        levels=3,
    )
    assert writer.axes == tuple(axes)
    channel, time = int("c" in axes), 2 * int("t" in axes)
    array = voxels(grid)
    write_all(writer, array, channel, time)
    with pytest.raises(ImageError, match="without OME metadata"):
        open_image(tmp_path / "a.ome.zarr")
    image = writer.finish()
    assert image == open_image(tmp_path / "a.ome.zarr")
    assert (image.name, image.version, image.axes) == ("a", version, tuple(axes))
    assert image.channels == (("DAPI", "spots") if "c" in axes else ("0",))
    assert image.notes == ()
    assert tuple(level.grid for level in image.levels) == writer.level_grids
    np.testing.assert_array_equal(read_all(image, 0, channel, time), array)
    if "t" in axes or "c" in axes:
        assert read_all(image).max() == 0
    expected = array
    for level, factors in enumerate(writer.factors, 1):
        expected = block_mean(expected, factors)
        np.testing.assert_array_equal(read_all(image, level, channel, time), expected)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", LAYOUTS)
def test_other_software_accepts_what_is_written(tmp_path: Path, axes: str, version: str) -> None:
    models = pytest.importorskip("ome_zarr_models")
    reader = pytest.importorskip("ome_zarr.reader")
    parse_url = pytest.importorskip("ome_zarr.io").parse_url
    grid = grid_of(axes)
    path = tmp_path / "a.ome.zarr"
    writer = create_image(
        path,
        grid=grid,
        dtype="float32",
        axes=tuple(axes),
        version=version,
        levels=2,
        chunks=(2, 8, 8)[-grid.ndim :],
        shards=(4, 16, 16)[-grid.ndim :] if version == "0.5" else None,
    )
    array = voxels(grid, dtype="float32")
    write_all(writer, array)
    writer.finish()
    model = models.open_ome_zarr(zarr.open_group(path, mode="r"))
    assert model.ome_zarr_version == version
    node = next(iter(reader.Reader(parse_url(str(path)))()))
    assert [axis["name"] for axis in node.metadata["axes"]] == list(axes)
    assert len(node.data) == 2
    np.testing.assert_array_equal(np.squeeze(node.data[0].compute()), array)
    scale, translation = node.metadata["coordinateTransformations"][1]
    assert scale["scale"][-grid.ndim :] == list(writer.level_grids[1].spacing)
    assert translation["translation"][-grid.ndim :] == list(writer.level_grids[1].origin)


@pytest.mark.parametrize("compression", ["zstd", "none", "gzip", "blosc-lz4", "blosc-zstd"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", "float32", "float64", "bool"])
def test_every_compression_and_dtype(
    tmp_path: Path, compression: str, version: str, dtype: str
) -> None:
    writer = create_image(
        tmp_path / "a", grid=FLAT, dtype=dtype, version=version, compression=compression
    )
    array = voxels(FLAT, dtype=dtype)
    write_all(writer, array)
    image = writer.finish()
    assert image.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read_all(image), array)


def test_zstd_is_the_default_and_makes_files_smaller(tmp_path: Path) -> None:
    sizes = {}
    for compression in ("default", "none"):
        options = {} if compression == "default" else {"compression": compression}
        path = tmp_path / compression
        writer = create_image(path, grid=FLAT, dtype="uint16", **options)
        writer.write(FLAT.window, np.full(FLAT.shape, 7, "uint16"))
        sizes[compression] = (path / "0/c/0/0").stat().st_size
    assert sizes["none"] == 21 * 30 * 2
    assert sizes["default"] < 100


@pytest.mark.parametrize(("chunks", "shards"), [((2, 8, 8), None), ((2, 8, 8), (4, 16, 8))])
def test_units_partition_every_level(
    tmp_path: Path, chunks: tuple[int, ...], shards: tuple[int, ...] | None
) -> None:
    writer = create_image(
        tmp_path / "a", grid=GRID, dtype="uint8", chunks=chunks, shards=shards, levels=4
    )
    for level, grid in enumerate(writer.level_grids):
        count = np.zeros(grid.shape, dtype=int)
        for unit in writer.units(level):
            count[unit.window.slices] += 1
            assert all(
                a % u == 0 for a, u in zip(unit.window.start, writer.unit_shape(level), strict=True)
            )
        assert (count == 1).all()
    units = create_image(
        tmp_path / "b", grid=Grid(shape=(10**5,) * 3), dtype="uint8", chunks=(1, 1, 1), levels=1
    ).units()
    assert next(units).index == (0, 0, 0)
    assert isinstance(units, Iterator)


def test_default_chunks(tmp_path: Path) -> None:
    def chunks(name: str, *shape: int, **options: Any) -> Any:
        writer = create_image(tmp_path / name, grid=Grid(shape=shape), dtype="uint8", **options)
        return [(level.chunks, level.shards) for level in writer.levels]

    assert chunks("a", 100, 200, 300) == [((64, 128, 128), None), ((50, 100, 128), None)]
    assert chunks("b", 1000, 900) == [((512, 512), None), ((500, 450), None), ((250, 225), None)]
    assert chunks("c", 1, 100, 600)[0] == ((1, 100, 512), None)
    sharded = chunks("d", 50, 300, 300, chunks=(64, 64, 64), shards=(128, 128, 128))
    assert sharded == [((50, 64, 64), (50, 128, 128)), ((25, 64, 64), (25, 128, 128))]


def test_a_sharded_image_has_one_file_a_unit(tmp_path: Path) -> None:
    writer = create_image(
        tmp_path / "a", grid=GRID, dtype="uint16", chunks=(2, 8, 8), shards=(4, 16, 16), levels=1
    )
    array = voxels(GRID) + 1
    write_all(writer, array)
    files = [path for path in (tmp_path / "a/0/c").rglob("*") if path.is_file()]
    assert len(files) == len(list(writer.units()))
    image = writer.finish()
    assert image.levels[0].shards == (4, 16, 16)
    np.testing.assert_array_equal(read_all(image), array)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a/0", mode="r")[...], array)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_empty_chunks_are_not_stored(tmp_path: Path, version: str) -> None:
    path = tmp_path / "a"
    writer = create_image(
        path, grid=FLAT, dtype="float32", version=version, chunks=(8, 8), fill_value=np.nan
    )
    array = np.full(FLAT.shape, np.nan, "float32")
    array[9, 9] = 3
    write_all(writer, array)
    write_all(writer, array)
    files = [
        p for p in (path / "0").rglob("*") if p.is_file() and not p.name.startswith((".z", "z"))
    ]
    assert len(files) == 1
    assert files[0].relative_to(path / "0").as_posix() == ("1/1" if version == "0.4" else "c/1/1")
    np.testing.assert_array_equal(read_all(writer.finish()), array)


def test_levels_have_true_origins(tmp_path: Path) -> None:
    # A linear ramp of the world keeps its value at every voxel's centre under averaging.
    grid = Grid(shape=(16, 32, 40), spacing=(0.8, 0.4, 0.5), origin=(5.0, -3.0, 11.0))
    writer = create_image(tmp_path / "a", grid=grid, dtype="float64", levels=4, chunks=(4, 8, 8))

    def ramp(grid: Grid) -> np.ndarray:
        index = np.stack(np.indices(grid.shape), axis=-1)
        return grid.to_world(index) @ np.array([1.0, 0.1, -0.3])

    write_all(writer, ramp(grid))
    image = writer.finish()
    assert [level.grid.shape for level in image.levels] == [
        (16, 32, 40), (16, 16, 20), (8, 8, 10), (4, 4, 5),
    ]  # fmt: skip
    for number, level in enumerate(image.levels):
        np.testing.assert_allclose(read_all(image, number), ramp(level.grid), atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "spacing", "factors"),
    [
        ((50, 800, 800), (1.0, 0.3, 0.3), [(1, 2, 2), (1, 2, 2)]),
        ((300, 800, 800), (1.0, 0.9, 0.9), [(2, 2, 2), (2, 2, 2)]),
        ((50, 1100, 1100), (2.0, 1.0, 1.0), [(1, 2, 2), (2, 2, 2), (2, 2, 2)]),
        ((1, 600, 600), (0.001, 0.3, 0.3), [(1, 2, 2), (1, 2, 2)]),
        ((3, 600, 600), (0.2, 0.5, 0.5), [(2, 1, 1), (1, 2, 2), (1, 2, 2)]),
        ((256, 256), (1.0, 1.0), []),
        ((257, 10), (1.0, 1.0), [(2, 2)]),
    ],
)
def test_axes_are_halved_towards_cubes(
    shape: tuple[int, ...], spacing: tuple[float, ...], factors: list[tuple[int, ...]]
) -> None:
    grids, planned = plan_levels(Grid(shape=shape, spacing=spacing))
    assert list(planned) == factors
    assert max(grids[-1].shape) <= 256
    # A change of the world's unit changes nothing but units.
    assert plan_levels(Grid(shape=shape, spacing=tuple(1e-9 * s for s in spacing)))[1] == planned


def test_no_more_levels_than_voxels() -> None:
    grids, _ = plan_levels(Grid(shape=(3, 5)), 10)
    assert [grid.shape for grid in grids] == [(3, 5), (1, 2), (1, 1)]
    assert len(plan_levels(Grid(shape=(3000, 3000)), 1)[0]) == 1


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 2, 2), (2, 1, 1), (1, 1, 1)])
def test_means_of_integers_are_exact(dtype: str, factors: tuple[int, ...]) -> None:
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(1)
    block = rng.integers(limits.min, limits.max, (5, 6, 7), dtype=dtype, endpoint=True)
    block[:2] = rng.integers(0, 4, (2, 6, 7))  # many halves
    block[-2:] = limits.max
    found = block_mean(block, factors)
    assert found.dtype == block.dtype
    count = int(np.prod(factors))
    for index in np.ndindex(found.shape):
        window = tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))
        quotient, rest = divmod(sum(int(v) for v in block[window].ravel()), count)
        up = 2 * rest > count or (2 * rest == count and quotient % 2 == 1)
        assert int(found[index]) == quotient + up


def test_means_of_floats() -> None:
    block = np.random.default_rng(2).normal(size=(4, 6, 7)).astype("float32")
    expected = block[:, :, :6].reshape(2, 2, 3, 2, 3, 2).astype("float64").mean(axis=(1, 3, 5))
    np.testing.assert_array_equal(block_mean(block, (2, 2, 2)), expected.astype("float32"))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_are_entered_and_keep_their_values(tmp_path: Path, version: str) -> None:
    models = pytest.importorskip("ome_zarr_models")
    path = tmp_path / "a.ome.zarr"
    image = create_image(path, grid=GRID, dtype="uint16", version=version, levels=2)
    image.finish()
    array = voxels(GRID, dtype="int32")
    for name in ("cells", "nuclei", "cells"):
        writer = create_image(
            path / "labels" / name,
            grid=GRID,
            dtype="int32",
            version=version,
            levels=2,
            is_label=True,
            overwrite=True,
            compression="none",
        )
        write_all(writer, array)
        writer.finish()
    found = open_image(path)
    assert found.labels == ("cells", "nuclei")
    label = found.label("cells")
    assert label.is_label
    np.testing.assert_array_equal(read_all(label, 1), most_common(array, (1, 2, 2)))
    model = models.open_ome_zarr(zarr.open_group(path / "labels/cells", mode="r"))
    assert type(model).__name__ == "ImageLabel"
    attributes = models.open_ome_zarr(zarr.open_group(path, mode="r")).labels.attributes
    listed = attributes.labels if version == "0.4" else attributes.ome.labels
    assert list(listed) == ["cells", "nuclei"]
    if version == "0.5":
        # Attributes of others in the group of labels survive the next label.
        document = json.loads((path / "labels/zarr.json").read_text())
        document["attributes"]["theirs"] = 1
        (path / "labels/zarr.json").write_text(json.dumps(document))
        create_image(path / "labels/more", grid=GRID, dtype="int32", is_label=True).finish()
        assert zarr.open_group(path / "labels", mode="r").attrs["theirs"] == 1
        assert open_image(path).labels == ("cells", "nuclei", "more")
    other = {"0.4": "0.5", "0.5": "0.4"}[version]
    with pytest.raises(InputError, match=r"Invalid version .* must be that of the image"):
        create_image(path / "labels/c", grid=GRID, dtype="int32", version=other, is_label=True)


def test_display_settings_are_carried_over(tmp_path: Path) -> None:
    models = pytest.importorskip("ome_zarr_models")
    window = {"min": 0.0, "max": 4095.0, "start": 100.0, "end": 900.0}
    omero = {
        "name": "old",
        "rdefs": {"model": "color", "defaultZ": 40},
        "channels": [
            {"label": "DAPI", "color": "0000FF", "window": window, "family": "linear"},
            {"label": "spots", "color": "#ff8000", "active": False},
        ],
    }

    def written(name: str, channels: list[str]) -> Any:
        create_image(
            tmp_path / name, grid=FLAT, dtype="uint16", channels=channels, omero=omero
        ).finish()
        models.open_ome_zarr(zarr.open_group(tmp_path / name, mode="r"))
        return open_image(tmp_path / name).omero

    both = written("a", ["DAPI", "spots"])
    assert both["channels"][0] == {**omero["channels"][0], "active": True}
    assert both["channels"][1]["color"] == "ff8000"
    assert both["channels"][1]["active"] is False
    assert both["channels"][1]["window"]["max"] == 65535
    assert both["rdefs"] == {"model": "color"}
    # One channel of two is found by its name.
    assert written("b", ["spots"])["channels"][0]["color"] == "ff8000"
    assert omero["rdefs"]["defaultZ"] == 40


def test_a_channel_name_without_a_channel_axis(tmp_path: Path) -> None:
    writer = create_image(
        tmp_path / "a", grid=FLAT, dtype="uint8", axes=("y", "x"), channels=["DAPI"]
    )
    assert writer.finish().channels == ("DAPI",)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"version": "0.3"}, "version '0.3'"),
    ({"compression": "lzma"}, "compression 'lzma'. It must be one of zstd, none"),
    ({"version": "0.4", "shards": (8, 16, 16)}, "need version 0.5"),
    ({"shards": (100, 128, 128)}, r"shards \(100, 128, 128\). Every axis must be a multiple"),
    ({"chunks": (8, 8)}, r"chunks \(8, 8\)"),
    ({"chunks": (8, 0, 8)}, r"chunks \(8, 0, 8\)"),
    ({"dtype": "complex64"}, "dtype complex64. Voxels must be real"),
    ({"dtype": "float32", "is_label": True}, "dtype float32. Labels must be integers"),
    ({"axes": ("c", "t", "z", "y", "x")}, "Invalid axes"),
    ({"axes": ("y", "x")}, "Invalid axes"),
    ({"axes": ("z", "y", "x"), "channels": ["a", "b"]}, "no room for 1 times and 2 channels"),
    ({"num_times": 0}, "number of times 0"),
    ({"levels": 0}, "levels 0"),
    ({"fill_value": -1}, "fill value -1. Voxels of uint16"),
    ({"fill_value": float("nan")}, "fill value nan"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_wrong_arguments_leave_nothing_behind(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        create_image(tmp_path / "a", **({"grid": GRID, "dtype": "uint16"} | options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_only_whole_units_of_the_right_type_are_written(tmp_path: Path) -> None:
    writer = create_image(
        tmp_path / "a", grid=FLAT, dtype="uint16", chunks=(8, 8), shards=(16, 16), levels=2
    )
    block = np.ones((16, 16), "uint16")
    writer.write(Window((0, 0), (16, 16)), block.astype("uint8"))
    writer.write(Window((0, 16), (21, 30)), np.ones((21, 14), "uint16"))
    for start, stop in [((0, 0), (8, 16)), ((8, 0), (21, 16)), ((0, 0), (16, 29))]:
        window = Window(start, stop)
        with pytest.raises(InputError, match="not made of whole units of"):
            writer.write(window, np.ones(window.shape, "uint16"))
    window = Window((0, 0), (16, 16))
    for wrong in ("int16", "uint32", "float32"):
        with pytest.raises(InputError, match=f"block of {wrong} does not fit into"):
            writer.write(window, block.astype(wrong))
    with pytest.raises(InputError, match=r"block of shape \(1, 16, 16\) does not fit"):
        writer.write(window, block[None])
    with pytest.raises(InputError, match="does not lie inside level '0'"):
        writer.write(Window((0, 0), (16, 32)), np.ones((16, 32), "uint16"))
    with pytest.raises(InputError, match="No level 2"):
        writer.write(window, block, level=2)
    with pytest.raises(InputError, match="No channel 1 at time 0"):
        writer.write(window, block, channel=1)
    with pytest.raises(InputError, match="No channel 0 at time 1"):
        writer.read_level(0, 0, 1)
    with pytest.raises(InputError, match="Level 0 is made from no other level"):
        writer.downsample(0, window)


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    options: dict[str, Any] = {"grid": FLAT, "dtype": "uint16", "levels": 2}
    write_all(create_image(path, **options), voxels(FLAT))
    with pytest.raises(OutputError, match="exists already"):
        create_image(path, **options)
    writer = create_image(path, **options, resume=True)
    np.testing.assert_array_equal(read_all(writer.finish()), voxels(FLAT))
    with pytest.raises(OutputError, match=r"Level '0' .* was begun with other settings"):
        create_image(path, **{**options, "dtype": "uint8"}, resume=True)
    image = create_image(path, **{**options, "dtype": "uint8"}, overwrite=True).finish()
    assert read_all(image).max() == 0
    (tmp_path / "empty").mkdir()
    create_image(tmp_path / "empty", **options)


def test_only_zarr_stores_are_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("")
    for remove in (
        lambda: remove_store(precious),
        lambda: create_image(precious, grid=FLAT, dtype="uint8", overwrite=True),
        lambda: remove_store(precious / "thesis.tex"),
    ):
        with pytest.raises(OutputError, match="not a Zarr store, so it is not removed"):
            remove()
    assert (precious / "thesis.tex").exists()
    create_image(tmp_path / "a", grid=FLAT, dtype="uint8")
    remove_store(tmp_path / "a")
    remove_store(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = create_image(tmp_path / "a", grid=FLAT, dtype="uint16", levels=1)

    async def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zarr.storage.LocalStore, "set", full)
    with pytest.raises(
        OutputError, match=r"level '0' of .*No space left.*Free some space"
    ) as caught:
        writer.write(FLAT.window, voxels(FLAT) + 1)
    assert "\n" not in str(caught.value)


def test_a_place_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"Cannot write '.*file/a.zarr' .*Check permissions"):
        create_image(tmp_path / "file/a.zarr", grid=FLAT, dtype="uint8")
    with pytest.raises(OutputError, match="Cannot write 'http://"):
        create_image("http://127.0.0.1:9/a.zarr", grid=FLAT, dtype="uint8")


def test_metadata_come_last(tmp_path: Path) -> None:
    writer = create_image(tmp_path / "a", grid=FLAT, dtype="uint8", version="0.4")
    write_all(writer, voxels(FLAT, dtype="uint8"))
    assert not (tmp_path / "a/.zattrs").exists()
    writer.finish()
    writer.finish()
    content = json.loads((tmp_path / "a/.zattrs").read_text())
    assert content["multiscales"][0]["version"] == "0.4"
    assert json.loads((tmp_path / "a/0/.zarray").read_text())["dimension_separator"] == "/"
    assert list((tmp_path / "a").glob("*.part")) == []


def test_writers_work_in_threads(tmp_path: Path) -> None:
    writer = create_image(
        tmp_path / "a", grid=GRID, dtype="uint16", chunks=(2, 4, 4), levels=2, channels=["a", "b"]
    )
    arrays = [voxels(GRID, seed) for seed in (0, 1)]
    with ThreadPoolExecutor(8) as pool:
        for channel, unit in itertools.product((0, 1), list(writer.units())):
            block = arrays[channel][unit.window.slices]
            pool.submit(writer.write, unit.window, block, channel=channel)
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(writer.downsample, 1, unit.window, channel)
            for channel, unit in itertools.product((0, 1), writer.units(1))
        ]
    assert [job.result() for job in jobs] == [None] * len(jobs)
    image = writer.finish()
    for channel in (0, 1):
        np.testing.assert_array_equal(read_all(image, 0, channel), arrays[channel])
        expected = block_mean(arrays[channel], writer.factors[0])
        np.testing.assert_array_equal(read_all(image, 1, channel), expected)


def write_some(writer: ImageWriter, first: int, step: int) -> int:
    """Write every `step`-th unit of the random voxels, in a process of its own."""
    array = voxels(GRID)
    units = list(itertools.islice(writer.units(), first, None, step))
    for unit in units:
        writer.write(unit.window, array[unit.window.slices])
        np.testing.assert_array_equal(
            writer.read_level(0).read(unit.window), array[unit.window.slices]
        )
    return len(units)


def test_two_spawned_processes_write_neighbouring_shards(tmp_path: Path) -> None:
    writer = create_image(
        tmp_path / "a", grid=GRID, dtype="uint16", chunks=(2, 4, 4), shards=(4, 8, 8), levels=1
    )
    # This process has used its event loop already: nothing of it may travel.
    write_some(writer, 0, 100)
    assert len(pickle.dumps(writer)) < 5000
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(write_some, writer, first, 2) for first in (0, 1)]
        assert sum(job.result(timeout=60) for job in jobs) == len(list(writer.units()))
    np.testing.assert_array_equal(read_all(writer.finish()), voxels(GRID))


def test_images_in_memory() -> None:
    writer = create_image("memory://room/a.zarr", grid=GRID, dtype="uint16", shards=(64, 128, 128))
    write_all(writer, voxels(GRID))
    image = writer.finish()
    np.testing.assert_array_equal(read_all(image), voxels(GRID))
    with pytest.raises(OutputError, match="exists already"):
        create_image("memory://room/a.zarr", grid=GRID, dtype="uint16")
    create_image("memory://room/a.zarr", grid=FLAT, dtype="uint16", overwrite=True)
    remove_store("memory://room/a.zarr")
    with pytest.raises(ImageError, match=r"Nothing is at 'memory://room/a.zarr'"):
        open_image("memory://room/a.zarr")


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[str, dict[str, Any]]]:
    """Return a bucket of an S3 server of this process, and the options to reach it."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "key": "user",
        "secret": "hidden",
        "client_kwargs": {"endpoint_url": f"http://{host}:{port}", "region_name": "eu-west-1"},
    }
    fsspec.filesystem("s3", **options).mkdir("bucket")
    yield "s3://bucket", options
    server.stop()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_images_on_s3(bucket: tuple[str, dict[str, Any]], version: str) -> None:
    root, options = bucket
    place = f"{root}/run/{version}.ome.zarr"
    arguments: dict[str, Any] = {
        "grid": GRID,
        "dtype": "uint16",
        "channels": ["a", "b"],
        "version": version,
        "chunks": (2, 8, 8),
        "shards": (4, 16, 16) if version == "0.5" else None,
        "levels": 2,
        "storage_options": options,
    }
    with pytest.raises(ImageError, match="Nothing is at 's3://"):
        open_image(place, options)
    writer = pickle.loads(pickle.dumps(create_image(place, **arguments)))
    write_all(writer, voxels(GRID), channel=1)
    image = pickle.loads(pickle.dumps(writer.finish()))
    assert image.location == place
    np.testing.assert_array_equal(read_all(image, channel=1), voxels(GRID))
    assert "hidden" not in repr(image) + repr(writer)
    with ThreadPoolExecutor(4) as pool:
        for block in pool.map(image.reader(channel=1).read, [GRID.window] * 8):
            np.testing.assert_array_equal(block, voxels(GRID))
    with pytest.raises(OutputError, match="exists already"):
        create_image(place, **arguments)
    labels = create_image(
        f"{place}/labels/cells", **(arguments | {"channels": (), "is_label": True})
    )
    labels.finish()
    assert open_image(place, options).labels == ("cells",)
    remove_store(place, options)
    with pytest.raises(ImageError, match="Nothing is at"):
        open_image(place, options)


def test_s3_from_a_spawned_process(bucket: tuple[str, dict[str, Any]]) -> None:
    root, options = bucket
    writer = create_image(
        f"{root}/spawned.zarr",
        grid=GRID,
        dtype="uint16",
        chunks=(2, 8, 8),
        shards=(4, 16, 16),
        storage_options=options,
    )
    write_some(writer, 0, 100)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(write_some, writer, first, 2) for first in (0, 1)]
        assert sum(job.result(timeout=60) for job in jobs) == len(list(writer.units()))
    np.testing.assert_array_equal(read_all(writer.finish()), voxels(GRID))


def test_s3_problems_are_one_line(bucket: tuple[str, dict[str, Any]]) -> None:
    _, options = bucket
    with pytest.raises(OutputError, match=r"Cannot write .*nosuchbucket") as caught:
        create_image("s3://nosuchbucket/a", grid=FLAT, dtype="uint8", storage_options=options)
    assert "\n" not in str(caught.value)
    away = {**options, "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}}
    away["config_kwargs"] = {"retries": {"max_attempts": 0}, "connect_timeout": 1}
    with pytest.raises(ImageError, match="cannot be read") as refused:
        open_image("s3://bucket/a", away)
    assert "\n" not in str(refused.value)


def test_names_on_s3_are_no_patterns(bucket: tuple[str, dict[str, Any]]) -> None:
    root, options = bucket
    for name in ("run[1A]", "run1", "run*"):
        create_image(
            f"{root}/magic/{name}/a", grid=FLAT, dtype="uint8", levels=2, storage_options=options
        ).finish()
    for name in ("run[1A]", "run*"):
        remove_store(f"{root}/magic/{name}/a", options)
    with pytest.raises(ImageError, match="Nothing is at"):
        open_image(f"{root}/magic/run[1A]/a", options)
    assert fsspec.filesystem("s3", **options).ls("bucket/magic", refresh=True) == [
        "bucket/magic/run1"
    ]
    assert len(open_image(f"{root}/magic/run1/a", options).levels) == 2
