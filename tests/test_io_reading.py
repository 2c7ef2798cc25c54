"""OME-Zarr images written by hand or by other software are read as what they are."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tilereg.errors import ImageError, InputError
from tilereg.grid import Grid
from tilereg.io.metadata import LENGTH_UNITS, micrometres
from tilereg.io.ome_zarr import create_image, open_image
from tilereg.io.stores import Location
from tilereg.windows import Window

DATA = Path(os.environ.get("TILEREG_DATA", Path(__file__).parents[1] / "../shared/data"))
SIZES = {"t": 2, "c": 3, "z": 4, "y": 9, "x": 10}
LAYOUTS = ["yx", "zyx", "cyx", "czyx", "tyx", "tzyx", "tcyx", "tczyx"]
KINDS = {"t": "time", "c": "channel"}

needs_data = pytest.mark.skipif(
    not (DATA / "omezarr").is_dir(), reason="the real images are not here (set TILEREG_DATA)"
)


def axes_of(names: str, unit: str | None = "micrometer") -> list[dict[str, str]]:
    """Return the description of axes."""
    space = {"unit": unit} if unit else {}
    return [
        {"name": n, "type": KINDS.get(n, "space"), **({} if n in KINDS else space)} for n in names
    ]


def dataset(path: str, scale: list[float], translation: list[float] | None = None) -> Any:
    """Return the description of a level."""
    transforms: list[Any] = [{"type": "scale", "scale": scale}]
    if translation is not None:
        transforms.append({"type": "translation", "translation": translation})
    return {"path": path, "coordinateTransformations": transforms}


def put_group(path: Path, attributes: dict[str, Any], version: str = "0.4") -> None:
    """Write a group by hand."""
    path.mkdir(parents=True, exist_ok=True)
    if version == "0.4":
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / ".zattrs").write_text(json.dumps(attributes))
    else:
        document = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": attributes}}
        (path / "zarr.json").write_text(json.dumps(document))


def put_array(path: Path, array: np.ndarray, version: str = "0.4", **options: Any) -> None:
    """Write an array with zarr."""
    target = zarr.create_array(
        str(path),
        shape=array.shape,
        dtype=array.dtype,
        zarr_format=2 if version == "0.4" else 3,
        chunks=options.pop("chunks", tuple(min(4, n) for n in array.shape)),
        **options,
    )
    target[...] = array


def put_image(
    path: Path,
    array: np.ndarray,
    axes: str,
    version: str = "0.4",
    *,
    unit: str | None = "micrometer",
    scale: list[float] | None = None,
    multiscale: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write an image of one level by hand."""
    content = {
        "axes": axes_of(axes, unit),
        "datasets": [dataset("0", [1.0] * len(axes) if scale is None else scale)],
        **(multiscale or {}),
    }
    attributes = {"multiscales": [content], **(extra or {})}
    if version == "0.4":
        content.setdefault("version", "0.4")
    else:
        attributes.setdefault("version", "0.5")
    put_group(path, attributes, version)
    put_array(path / "0", array, version)
    return path


def ramp(axes: str, dtype: str = "uint16") -> np.ndarray:
    """Return an array whose voxels are all different."""
    shape = tuple(SIZES[axis] for axis in axes)
    return np.arange(1, 1 + np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", LAYOUTS)
def test_every_layout_of_axes(tmp_path: Path, axes: str, version: str) -> None:
    array = ramp(axes)
    image = open_image(put_image(tmp_path / "a.ome.zarr", array, axes, version))
    assert image.axes == tuple(axes)
    assert image.version == version
    assert image.name == "a"
    assert image.num_times == (2 if "t" in axes else 1)
    assert image.channels == (("0", "1", "2") if "c" in axes else ("0",))
    assert image.spatial_axes == tuple(a for a in axes if a in "zyx")
    assert image.levels[0].shape == array.shape
    assert image.notes == ()
    for time in range(image.num_times):
        for channel in range(len(image.channels)):
            index = tuple({"t": time, "c": channel}[a] for a in axes if a in "tc")
            reader = image.reader(channel=channel, time=time)
            window = Window((1,) * image.ndim, tuple(n - 1 for n in image.grid.shape))
            np.testing.assert_array_equal(reader.read(image.grid.window), array[index])
            np.testing.assert_array_equal(reader.read(window), array[index][window.slices])


def test_axes_in_another_order_are_turned(tmp_path: Path) -> None:
    array = ramp("xzyc")
    path = put_image(tmp_path / "a.zarr", array, "xzyc", scale=[0.1, 3.0, 0.2, 1.0])
    image = open_image(path)
    assert image.grid == Grid(shape=(4, 9, 10), spacing=(3.0, 0.2, 0.1))
    block = image.reader(channel=1).read(image.grid.window)
    np.testing.assert_array_equal(block, array[..., 1].transpose(1, 2, 0))
    assert block.flags.c_contiguous


@pytest.mark.parametrize("unit", LENGTH_UNITS)
def test_units_become_micrometres(tmp_path: Path, unit: str) -> None:
    path = put_image(tmp_path / "a.zarr", ramp("yx"), "yx", unit=unit, scale=[2.0, 0.5])
    grid = open_image(path).grid
    factor = LENGTH_UNITS[unit]
    assert grid.spacing == pytest.approx((2 * factor, factor / 2))


def test_lengths_of_units() -> None:
    # Each against another one, not against the table itself.
    assert micrometres("meter") == 1e6
    assert micrometres("inch") == pytest.approx(2.54 * LENGTH_UNITS["centimeter"])
    assert LENGTH_UNITS["foot"] == pytest.approx(12 * LENGTH_UNITS["inch"])
    assert LENGTH_UNITS["yard"] == pytest.approx(3 * LENGTH_UNITS["foot"])
    assert LENGTH_UNITS["mile"] == pytest.approx(1760 * LENGTH_UNITS["yard"])
    assert LENGTH_UNITS["nanometer"] == pytest.approx(10 * LENGTH_UNITS["angstrom"])
    assert LENGTH_UNITS["parsec"] == pytest.approx(3.0857e16 * LENGTH_UNITS["meter"], rel=1e-4)
    assert len(LENGTH_UNITS) == 26
    assert [micrometres(u) for u in ("µm", "um", "Micrometre", "micrometers", "nm")] == [
        1, 1, 1, 1, 1e-3,
    ]  # fmt: skip
    assert micrometres("second") is None


@pytest.mark.parametrize(
    ("unit", "said"), [(None, "No unit is given for z, y, x"), ("pixel", "pi")]
)
def test_missing_units_are_noted(tmp_path: Path, unit: str | None, said: str) -> None:
    image = open_image(put_image(tmp_path / "a.zarr", ramp("zyx"), "zyx", unit=unit))
    assert said in image.notes[0]
    assert "micrometre is assumed" in image.notes[0]


def test_transforms_of_the_image_come_after_those_of_the_level(tmp_path: Path) -> None:
    after = [
        {"type": "scale", "scale": [10.0, 2.0, 4.0]},
        {"type": "translation", "translation": [5.0, 100.0, 200.0]},
    ]
    content = {
        "coordinateTransformations": after,
        "datasets": [
            dataset("0", [1.0, 0.5, 0.25]),
            dataset("1", [1.0, 1.0, 0.5], [0.0, 0.25, 0.125]),
        ],
    }
    path = put_image(tmp_path / "a.zarr", ramp("cyx"), "cyx", unit="nanometer", multiscale=content)
    put_array(path / "1", ramp("cyx")[:, :4, :5])
    image = open_image(path)
    assert image.levels[0].grid.spacing == pytest.approx((0.001, 0.001))
    assert image.levels[0].grid.origin == pytest.approx((0.1, 0.2))
    assert image.levels[1].grid.shape == (4, 5)
    assert image.levels[1].grid.spacing == pytest.approx((0.002, 0.002))
    assert image.levels[1].grid.origin == pytest.approx((0.1005, 0.2005))


def test_channels_by_number_and_name(tmp_path: Path) -> None:
    omero = {"channels": [{"label": "DAPI"}, {"label": "spots"}, {"label": "spots"}]}
    path = put_image(tmp_path / "a.zarr", ramp("cyx"), "cyx", extra={"omero": omero})
    image = open_image(path)
    assert image.channels == ("DAPI", "spots", "spots")
    assert [image.channel_index(c) for c in (None, 2, "2", "DAPI")] == [0, 2, 2, 0]
    with pytest.raises(ImageError, match=r"2 channels .* are named 'spots'"):
        image.channel_index("spots")
    for wrong in ("GFP", 3, -1):
        with pytest.raises(ImageError, match=r"No channel .* It has 0 'DAPI', 1 'spots'"):
            image.reader(channel=wrong)
    with pytest.raises(ImageError, match=r"No level 4 .* It has 1 levels"):
        image.reader(4)
    with pytest.raises(ImageError, match=r"No time 1 .* It has 1 times"):
        image.reader(time=1)
    with pytest.raises(InputError, match="does not lie inside level '0'"):
        image.reader().read(Window((0, 0), (9, 11)))
    assert image.reader().read(Window((3, 3), (3, 5))).shape == (0, 2)


def test_names_of_channels_that_the_metadata_lack(tmp_path: Path) -> None:
    omero = {"channels": [{"label": "DAPI"}, {"color": "00FF00"}]}
    path = put_image(tmp_path / "a.zarr", ramp("cyx"), "cyx", extra={"omero": omero})
    image = open_image(path)
    assert image.channels == ("DAPI", "1", "2")
    assert "describe 2 channels, the arrays hold 3" in image.notes[0]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels(tmp_path: Path, version: str) -> None:
    path = put_image(tmp_path / "a.zarr", ramp("zyx"), "zyx", version)
    put_group(path / "labels", {"labels": ["cells"]}, version)
    put_image(
        path / "labels/cells", ramp("zyx", "int32"), "zyx", version, extra={"image-label": {}}
    )
    image = open_image(path)
    assert image.labels == ("cells",)
    assert image.label("cells").is_label
    assert image.label("cells").dtype == np.int32
    with pytest.raises(ImageError, match=r"No label image 'nuclei' .* It has 'cells'"):
        image.label("nuclei")
    with pytest.raises(ImageError, match=r"group of label images.*labels/cells'"):
        open_image(path / "labels")


@pytest.mark.parametrize("listed", [True, False])
def test_bioformats2raw_layout(tmp_path: Path, listed: bool) -> None:
    put_group(tmp_path, {"bioformats2raw.layout": 3})
    put_image(tmp_path / "0", ramp("tczyx"), "tczyx")
    if listed:
        put_group(tmp_path / "OME", {"series": ["0"]})
    assert open_image(tmp_path).location == str(tmp_path / "0")
    put_image(tmp_path / "1", ramp("tczyx"), "tczyx")
    if listed:
        put_group(tmp_path / "OME", {"series": ["0", "1"]})
    with pytest.raises(ImageError, match=r"holds 2 images\. Open one of them: '.*/0', '.*/1'"):
        open_image(tmp_path)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_plates_are_refused_with_advice(tmp_path: Path, version: str) -> None:
    plate = {"plate": {"wells": [{"path": "B/3"}]}, "bioformats2raw.layout": 3}
    put_group(tmp_path, plate, version)
    put_group(tmp_path / "B/3", {"well": {"images": [{"path": "7"}]}}, version)
    with pytest.raises(ImageError, match=r"is a plate of many images.*'.*/B/3/7'"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match=r"is a well of many images.*'.*/B/3/7'"):
        open_image(tmp_path / "B/3")


@pytest.mark.parametrize("version", ["0.1", "0.2", "0.3", "0.6", "0.6rc0", "1.0"])
def test_other_versions_are_named(tmp_path: Path, version: str) -> None:
    kind = "0.4" if version < "0.4" else "0.5"
    path = put_image(
        tmp_path / "a.zarr",
        ramp("yx"),
        "yx",
        kind,
        multiscale={"version": version},
        extra={} if kind == "0.4" else {"version": version},
    )
    with pytest.raises(ImageError, match=rf"is OME-Zarr {version}; tilereg reads 0\.4 and 0\.5"):
        open_image(path)


def test_a_group_of_a_later_version_is_named(tmp_path: Path) -> None:
    put_group(tmp_path, {"version": "0.6", "scene": {}}, "0.5")
    with pytest.raises(ImageError, match=r"is OME-Zarr 0\.6"):
        open_image(tmp_path)


def test_a_version_that_is_not_written_is_that_of_the_zarr(tmp_path: Path) -> None:
    image = open_image(put_image(tmp_path / "a", ramp("yx"), "yx", multiscale={"version": None}))
    assert image.version == "0.4"
    assert (
        open_image(
            put_image(tmp_path / "b", ramp("yx"), "yx", "0.5", extra={"version": "0.5.2"})
        ).version
        == "0.5"
    )


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        ([1.0, 0.0, 1.0], r"axis 'y' is 0\.0.*level 0"),
        ([1.0, 1.0, -0.5], r"axis 'x' is -0\.5.*level 0"),
        ([float("nan"), 1.0, 1.0], "axis 'z' is nan.*level 0"),
        ([1.0, 1.0, float("inf")], "axis 'x' is inf.*level 0"),
        ([1.0, 1.0], "level 0 .* has 2 entries for the 3 axes z, y, x"),
        ([1.0, "a", 1.0], "no finite number for axis 'y': 'a'"),
        ("a", "a scale of level 0 .* is 'a', not a list"),
    ],
)
def test_wrong_scales_name_level_and_axis(tmp_path: Path, scale: Any, said: str) -> None:
    path = put_image(tmp_path / "a.zarr", ramp("zyx"), "zyx", scale=scale)
    with pytest.raises(ImageError, match=f"(?i){said}") as caught:
        open_image(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"axes": None}, "have no axes"),
    ({"axes": axes_of("zyx")[:2]}, "axes of .* are z, y. They must be y and x"),
    ({"axes": axes_of("zyq")}, "are z, y, q"),
    ({"axes": axes_of("yyx")}, "are y, y, x"),
    (
        {"axes": axes_of("yx"), "datasets": [dataset("0", [1, 1])]},
        "has 3 axes, the metadata name 2",
    ),
    ({"datasets": []}, "list no levels"),
    ({"datasets": [{"coordinateTransformations": []}]}, "Level 0 .* has no path"),
    ({"datasets": [{"path": "0"}]}, "level 0 .* have no scale"),
    (
        {"datasets": [dataset("s7", [1, 1, 1])]},
        r"Level 0 .* has no array: there is no 's7/\.zarray'",
    ),
    ({"datasets": [dataset("../a", [1, 1, 1])]}, r"Level 0 .* has the path '\.\./a'"),
    ({"datasets": [dataset(".", [1, 1, 1])]}, r"Level 0 .* has the path '\.'"),
    ({"coordinateTransformations": [{"type": "affine"}]}, "level 0 .* is of type 'affine'"),
    ({"coordinateTransformations": "scale"}, "not a list of objects"),
]


@pytest.mark.parametrize(("content", "said"), BROKEN)
def test_broken_metadata(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    path = put_image(tmp_path / "a.zarr", ramp("zyx"), "zyx", multiscale=content)
    with pytest.raises(ImageError, match=said) as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_image(tmp_path: Path) -> None:
    def refused(name: str, said: str) -> None:
        with pytest.raises(ImageError, match=said):
            open_image(tmp_path / name)

    refused("absent", "Nothing is at '.*absent'. Check the path")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file.tif").write_text("")
    refused("folder", "is not a Zarr group")
    refused("folder/file.tif", "is not a Zarr group")
    put_group(tmp_path / "group", {"a": 1})
    refused("group", "Zarr group without OME metadata")
    put_array(tmp_path / "array", ramp("yx"))
    refused("array", "single Zarr array without OME metadata")
    put_group(tmp_path / "list", {"multiscales": []})
    refused("list", "list no image")
    put_group(tmp_path / "text", {})
    (tmp_path / "text/.zattrs").write_text('{"multiscales": [')
    refused("text", r"text/\.zattrs' is not JSON")
    (tmp_path / "text/.zattrs").write_text("[]")
    refused("text", "holds no JSON object")
    with pytest.raises(InputError, match="location is empty"):
        open_image("")
    with pytest.raises(InputError, match="'nosuch://a' cannot be opened"):
        open_image("nosuch://a")


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    path = put_image(tmp_path / "a.zarr", ramp("yx"), "yx")
    file = path / "0/.zarray"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole | {"compressor": {"id": "nosuch"}}))
    with pytest.raises(ImageError, match=r"array '0' of '.*' cannot be understood .*nosuch"):
        open_image(path)
    file.write_text(json.dumps(whole | {"dtype": "|S4", "fill_value": ""}))
    with pytest.raises(ImageError, match="Voxels must be real numbers"):
        open_image(path)
    file.write_text(json.dumps({"zarr_format": 2}))
    with pytest.raises(ImageError, match="cannot be understood"):
        open_image(path)


def test_levels_must_agree(tmp_path: Path) -> None:
    content = {"datasets": [dataset("0", [1, 1, 1]), dataset("1", [1, 2, 2])]}
    path = put_image(tmp_path / "a.zarr", ramp("cyx"), "cyx", multiscale=content)
    put_array(path / "1", ramp("cyx")[:2, ::2, ::2])
    with pytest.raises(ImageError, match=r"have \[3, 2\] voxels along axis 'c'"):
        open_image(path)


def test_levels_from_coarse_to_fine_are_turned(tmp_path: Path) -> None:
    content = {"datasets": [dataset("1", [2, 2]), dataset("0", [1, 1])]}
    path = put_image(tmp_path / "a.zarr", ramp("yx"), "yx", multiscale=content)
    put_array(path / "1", ramp("yx")[::2, ::2])
    image = open_image(path)
    assert [level.path for level in image.levels] == ["0", "1"]
    assert "from fine to coarse" in image.notes[0]


def test_refused_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Location, key: str) -> str | None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Location, "read_text", refuse)
    with pytest.raises(ImageError, match=r"may not be read .*Permission denied.*permissions"):
        open_image(tmp_path)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_chunks_that_are_not_stored_are_the_fill_value(tmp_path: Path, version: str) -> None:
    array = ramp("yx")
    path = put_image(tmp_path / "a.zarr", array, "yx", version)
    (path / ("0/1.1" if version == "0.4" else "0/c/1/1")).unlink()
    array[4:8, 4:8] = 0
    image = open_image(path)
    np.testing.assert_array_equal(image.reader().read(image.grid.window), array)


def test_fill_value_null_is_zero(tmp_path: Path) -> None:
    path = put_image(tmp_path / "a.zarr", ramp("yx"), "yx")
    file = path / "0/.zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fill_value": None}))
    (path / "0/0.0").unlink()
    assert open_image(path).reader().read(Window((0, 0), (4, 4))).max() == 0


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("left", [0, 11])
def test_a_damaged_chunk_is_named(tmp_path: Path, version: str, left: int) -> None:
    path = put_image(tmp_path / "a.zarr", ramp("yx"), "yx", version)
    key = "1.2" if version == "0.4" else "c/1/2"
    file = path / "0" / key
    file.write_bytes(file.read_bytes()[:left])
    reader = open_image(path).reader()
    reader.read(Window((0, 0), (4, 10)))
    with pytest.raises(ImageError) as caught:
        reader.read(Window((0, 0), (9, 10)))
    message = str(caught.value)
    assert f"Chunk file '{key}' of array '0' in '{path}' is damaged" in message
    assert "Copy the image again." in message
    assert "\n" not in message


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    path = put_image(tmp_path / "a.zarr", ramp("yx"), "yx", "0.5")
    options = {"shape": (9, 10), "dtype": "uint16", "chunks": (2, 2), "shards": (4, 4)}
    target = zarr.create_array(str(path / "0"), overwrite=True, **options)
    target[...] = ramp("yx")
    image = open_image(path)
    assert (image.levels[0].chunks, image.levels[0].shards) == ((2, 2), (4, 4))
    file = path / "0/c/0/1"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ImageError, match="Chunk file 'c/0/1' of array '0'"):
        image.reader().read(Window((0, 0), (2, 6)))


def test_a_chunk_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = open_image(put_image(tmp_path / "a.zarr", ramp("yx"), "yx"))

    async def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zarr.storage.LocalStore, "get", refuse)
    with pytest.raises(ImageError, match=r"File '0\.0' .* cannot be read .*Check permissions"):
        image.reader().read(image.grid.window)


def test_voxels_come_in_this_machines_byte_order(tmp_path: Path) -> None:
    array = ramp("yx").astype(">u2")
    image = open_image(put_image(tmp_path / "a.zarr", array, "yx"))
    assert image.dtype == np.dtype("uint16")
    block = image.reader().read(image.grid.window)
    assert block.dtype.isnative
    np.testing.assert_array_equal(block, array)


def test_images_and_readers_are_pickled_small_and_read_in_threads(tmp_path: Path) -> None:
    array = ramp("czyx")
    image = open_image(put_image(tmp_path / "a.zarr", array, "czyx", "0.5"))
    reader = image.reader(channel=2)
    reader.read(image.grid.window)
    assert pickle.loads(pickle.dumps(image)) == image
    text = pickle.dumps(reader)
    assert len(text) < 4000
    again = pickle.loads(text)
    assert (again.shape, again.dtype, again.grid, again.chunks) == (
        (4, 9, 10), np.dtype("uint16"), image.grid, (4, 4, 4),
    )  # fmt: skip
    with ThreadPoolExecutor(8) as pool:
        blocks = list(pool.map(again.read, [image.grid.window] * 40))
    for block in blocks:
        np.testing.assert_array_equal(block, array[2])


def test_an_image_that_was_replaced_is_not_mixed_with_the_old_one(tmp_path: Path) -> None:
    path = put_image(tmp_path / "a.zarr", ramp("yx"), "yx")
    image = open_image(path)
    image.reader().read(image.grid.window)
    shutil.rmtree(path)
    array = ramp("zyx", "float32")
    image = open_image(put_image(path, array, "zyx", "0.5"))
    np.testing.assert_array_equal(image.reader().read(image.grid.window), array)


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and writes no log."""

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


class Forbidding(QuietHandler):
    """Refuses everything."""

    def do_GET(self) -> None:
        self.send_error(403)

    do_HEAD = do_GET


@pytest.fixture
def serve() -> Iterator[Callable[[type[QuietHandler], Path], str]]:
    servers = []

    def start(handler: type[QuietHandler], folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_over_http(
    tmp_path: Path, serve: Callable[[type[QuietHandler], Path], str], version: str
) -> None:
    pytest.importorskip("aiohttp")
    array = ramp("czyx")
    put_image(tmp_path / "a.zarr", array, "czyx", version)
    url = serve(QuietHandler, tmp_path)
    image = open_image(f"{url}/a.zarr/")
    assert image.location == f"{url}/a.zarr"
    np.testing.assert_array_equal(image.reader(channel=1).read(image.grid.window), array[1])
    with pytest.raises(ImageError, match=r"Nothing is at 'http.*/b\.zarr'"):
        open_image(f"{url}/b.zarr")
    with pytest.raises(ImageError, match=r"may not be read .*403"):
        open_image(f"{serve(Forbidding, tmp_path)}/a.zarr")


def test_a_host_that_does_not_answer() -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(ImageError, match=r"cannot be read .*connection"):
        open_image("http://127.0.0.1:9/a.zarr")


@needs_data
@pytest.mark.parametrize("version", ["v04", "v05"])
@pytest.mark.parametrize(
    "axes", ["yx", "cyx", "tyx", "zyx", "c1yx", "czyx", "tcyx", "tzyx", "tczyx"]
)
def test_images_of_ngio(axes: str, version: str) -> None:
    image = open_image(DATA / f"omezarr/ngio/{version}/test_image_{axes}.zarr")
    assert image.axes == tuple(axes.replace("1", "z"))
    assert image.version == {"v04": "0.4", "v05": "0.5"}[version]
    depth = {"z": (10,), "1": (1,)}.get(next((a for a in axes if a in "z1"), ""), ())
    assert image.grid.shape == (*depth, 64, 64)
    assert image.grid.spacing == (1.0, 0.5, 0.5)[-image.ndim :]
    assert image.levels[1].grid.spacing == (1.0, 1.0, 1.0)[-image.ndim :]
    assert image.channels[0] == "channel_0"
    assert image.labels == ("label",)
    assert image.label("label").is_label
    for level in range(len(image.levels)):
        reader = image.reader(level)
        assert reader.read(reader.grid.window).max() == 0


@needs_data
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_images_of_neuroglancer(version: str) -> None:
    image = open_image(DATA / f"omezarr/neuroglancer/simple_{version}")
    assert image.name == "image"
    assert [level.path for level in image.levels] == [f"scale{i}/image" for i in range(3)]
    spacing = np.array([0.004, 0.030])
    for number, level in enumerate(image.levels):
        factor = 2**number
        np.testing.assert_allclose(level.grid.spacing, factor * spacing)
        np.testing.assert_allclose(level.grid.origin, (factor - 1) / 2 * spacing)
        assert level.grid.shape == ((10, 10), (5, 5), (2, 2))[number]
    finest = image.reader().read(image.grid.window)
    assert finest.std() > 0


@needs_data
def test_images_of_the_ngff_challenge() -> None:
    folder = DATA / "omezarr/ngff_challenge"
    image = open_image(folder / "2d.zarr")
    assert image.channels == ("Channel 0", "Channel 1", "Channel 2")
    assert image.notes == ("No unit is given for z, y, x; micrometre is assumed.",)
    assert image.reader(channel="Channel 2").read(image.grid.window).shape == (1, 64, 64)
    with pytest.raises(ImageError, match=r"2 images\. Open one of them: '.*/0', '.*/1'"):
        open_image(folder / "bf2raw.zarr")
    for number in (0, 1):
        inner = open_image(folder / f"bf2raw.zarr/{number}")
        assert inner.name == ("bf2raw", "bf2raw 2")[number]
        assert inner.reader().read(inner.grid.window).ndim == 3
    with pytest.raises(ImageError, match=r"plate of many images.*hcs\.zarr/A/1/0'"):
        open_image(folder / "hcs.zarr")
    with pytest.raises(ImageError, match=r"well of many images.*hcs\.zarr/B/2/0'"):
        open_image(folder / "hcs.zarr/B/2")
    field = open_image(folder / "hcs.zarr/A/1/0")
    assert field.channels == ("Name", "Channel 1", "Channel 2")
    assert field.notes == ()


@needs_data
def test_other_real_images() -> None:
    image = open_image(DATA / "easifish/round1.ome.zarr")
    assert image.version == "0.5"
    assert image.grid == Grid(shape=(149, 241, 456), spacing=(1.68, 1.84, 1.84))
    assert len(image.levels) == 3
    image = open_image(DATA / "merfish/round3.ome.zarr")
    assert image.channels == ("bit_750", "bit_650", "beads_561", "cell_488", "405")
    assert image.grid.spacing == (0.108, 0.108)
    block = image.reader(channel="beads_561").read(Window((10, 20), (30, 50)))
    assert block.shape == (20, 30)
    assert block.dtype == np.uint16
    assert block.std() > 0


def test_a_channel_may_be_named_by_a_number(tmp_path: Path) -> None:
    writer = create_image(
        tmp_path / "image.zarr", grid=Grid(shape=(4, 4)), dtype="u1", channels=("750", "405")
    )
    image = writer.finish()
    assert image.channel_index("405") == image.channel_index(405) == image.channel_index(1) == 1
