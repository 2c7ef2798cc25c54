"""Transforms on disk: exact for tilereg, within a known error for other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from tilereg.errors import ImageError, InputError, OutputError
from tilereg.grid import Grid
from tilereg.io import scene
from tilereg.io.transforms import (
    read_affine,
    read_provenance,
    read_transform,
    write_affine,
    write_transform,
)
from tilereg.transform import Affine, DisplacementField, Transform


def fixed_grid(ndim: int, origin: float = 0.0) -> Grid:
    shape, spacing = (12, 40, 50), (0.5, 0.2, 0.25)
    return Grid(shape=shape[-ndim:], spacing=spacing[-ndim:], origin=(origin,) * ndim)


def random_affine(ndim: int, seed: int = 0) -> Affine:
    rng = np.random.default_rng(seed)
    return Affine(np.eye(ndim) + rng.normal(0, 0.02, (ndim, ndim)), rng.normal(0, 4, ndim))


def random_transform(ndim: int, origin: float = 0.0, amplitude: float = 0.5) -> Transform:
    rng = np.random.default_rng(ndim)
    nodes, spacing = (6, 7, 8)[-ndim:], np.array([3.0, 3.1, 3.3])[-ndim:]
    coefficients = rng.normal(0, amplitude, (*nodes, ndim))
    return Transform(
        random_affine(ndim), DisplacementField(coefficients, origin - spacing, spacing)
    )


def same(a: Transform, b: Transform) -> bool:
    """Tell whether two transforms hold the same bits."""

    def bits(transform: Transform) -> list[bytes]:
        arrays = [transform.affine.matrix, transform.affine.offset]
        if transform.field is not None:
            field = transform.field
            arrays += [field.coefficients, field.origin, field.spacing]
        return [np.int64(a.shape).tobytes() + a.tobytes() for a in arrays]

    return bits(a) == bits(b)


def follow_scene(location: Path, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map fixed points to the moving world as a reader of NGFF 0.6 does, knowing only its text."""
    root = zarr.open_group(location, mode="r")
    to_reference, _, field = root.attrs["ome"]["scene"]["coordinateTransformations"]
    reference = points + np.asarray(to_reference.get("translation", 0.0))
    assert field["interpolation"] == "linear"
    group = root[field["path"]]
    (dataset,) = group.attrs["ome"]["multiscales"][0]["datasets"]
    (scale,) = dataset["coordinateTransformations"]
    values = np.moveaxis(group[dataset["path"]][...].astype(np.float64), 0, -1)
    axes = [s * np.arange(n) for s, n in zip(scale["scale"][1:], values.shape, strict=False)]
    return reference + RegularGridInterpolator(axes, values)(reference)


def points_in(grid: Grid, count: int = 4000) -> NDArray[np.float64]:
    low, high = grid.bounds
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True)), -1).reshape(-1, grid.ndim)
    inside = np.random.default_rng(1).uniform(low, high, (count, grid.ndim))
    return np.concatenate([corners, inside])


def export_of(location: Path) -> dict[str, Any]:
    return dict(zarr.open_group(location, mode="r").attrs["tilereg"]["export"])


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("has_field", [False, True])
def test_round_trip_keeps_every_bit(tmp_path: Path, ndim: int, has_field: bool) -> None:
    transform = random_transform(ndim) if has_field else Transform(random_affine(ndim))
    place = tmp_path / "new" / "transform.ome.zarr"
    write_transform(place, transform, fixed_grid=fixed_grid(ndim))
    assert same(read_transform(place), transform)
    assert read_provenance(place) == {}
    assert [p.name for p in place.parent.iterdir()] == ["transform.ome.zarr"]


def test_round_trip_keeps_awkward_numbers(tmp_path: Path) -> None:
    matrix = [[1 / 3, -0.0], [5e-324, np.nextafter(1, 2)]]
    coefficients = np.full((1, 5, 2), -0.0)
    coefficients[0, 2] = [np.pi, 1e-300]
    field = DisplacementField(coefficients, np.array([0.1, -1e-17]), np.array([0.3, 1e5]))
    transform = Transform(Affine(matrix, [1e300, -0.1]), field)
    scaled = Transform(Affine(matrix, [1e9, -0.1]), field)
    for index, one in enumerate([transform, scaled]):
        place = tmp_path / f"{index}.zarr"
        write_transform(place, one, fixed_grid=fixed_grid(2))
        assert same(read_transform(place), one)


def test_lattice_of_many_chunks(tmp_path: Path) -> None:
    coefficients = np.random.default_rng(0).normal(size=(70, 66, 4, 3))
    field = DisplacementField(coefficients, -np.ones(3), np.ones(3))
    transform = Transform(Affine.identity(3), field)
    write_transform(tmp_path / "t.zarr", transform, fixed_grid=fixed_grid(3))
    assert same(read_transform(tmp_path / "t.zarr"), transform)


def test_provenance_is_kept(tmp_path: Path) -> None:
    made = {"settings": {"beta": 0.1 + 0.2, "none": None}, "inputs": ["ä", 2]}
    grid = fixed_grid(2)
    write_transform(tmp_path / "t.zarr", Transform.identity(2), fixed_grid=grid, provenance=made)
    assert read_provenance(tmp_path / "t.zarr") == made


def test_url(tmp_path: Path) -> None:
    url = "memory://test-transforms/run/transform.ome.zarr"
    transform, grid = random_transform(3), fixed_grid(3)
    write_transform(url, Transform(random_affine(3)), fixed_grid=grid, provenance={"run": 1})
    with pytest.raises(OutputError, match="exists already"):
        write_transform(url, transform, fixed_grid=grid)
    write_transform(url, transform, fixed_grid=grid, overwrite=True)
    assert same(read_transform(url), transform)
    assert read_provenance(url) == {}
    assert np.array_equal(read_affine(url).matrix, transform.affine.matrix)
    fsspec.filesystem("memory").rm("/test-transforms", recursive=True)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("origin", [0.0, -31.0])
@pytest.mark.parametrize("has_field", [False, True])
def test_scene_equals_transform_within_recorded_error(
    tmp_path: Path, ndim: int, origin: float, has_field: bool
) -> None:
    grid = fixed_grid(ndim, origin)
    transform = random_transform(ndim, origin) if has_field else Transform(random_affine(ndim))
    write_transform(tmp_path / "t.zarr", transform, fixed_grid=grid)
    points = points_in(grid)
    error = np.linalg.norm(follow_scene(tmp_path / "t.zarr", points) - transform(points), axis=1)
    export = export_of(tmp_path / "t.zarr")
    assert error.max() <= export["error_bound"] + 1e-12
    assert export["error_measured"] <= export["error_bound"]
    assert export["error_bound"] <= 0.0502 * min(grid.spacing)
    if has_field:
        assert error.max() > 0.02 * export["error_bound"], "The bound says nothing."


def test_scene_is_within_its_error_where_the_lattice_ends_inside(tmp_path: Path) -> None:
    grid = fixed_grid(2)
    field = random_transform(2).field
    assert field is not None
    short = DisplacementField(field.coefficients[:4, :4], field.origin + 3, field.spacing)
    assert (short.domain[0] > grid.bounds[0]).all()
    assert (short.domain[1] < grid.bounds[1]).all()
    transform = Transform(Affine.identity(2), short)
    write_transform(tmp_path / "t.zarr", transform, fixed_grid=grid)
    points = points_in(grid)
    error = np.linalg.norm(follow_scene(tmp_path / "t.zarr", points) - transform(points), axis=1)
    assert error.max() <= export_of(tmp_path / "t.zarr")["error_bound"]


def test_single_plane(tmp_path: Path) -> None:
    grid = Grid(shape=(1, 30, 40), spacing=(2.0, 0.5, 0.5), origin=(7.0, 0.0, 0.0))
    coefficients = np.random.default_rng(0).normal(size=(1, 6, 7, 3))
    field = DisplacementField(coefficients, np.array([7.0, -6, -6]), np.array([1.0, 6, 6]))
    transform = Transform(random_affine(3), field)
    write_transform(tmp_path / "t.zarr", transform, fixed_grid=grid)
    points = points_in(grid)
    error = np.linalg.norm(follow_scene(tmp_path / "t.zarr", points) - transform(points), axis=1)
    assert error.max() <= export_of(tmp_path / "t.zarr")["error_bound"]


def test_affine_needs_one_cell() -> None:
    sampled = scene.sample(Transform(random_affine(3)), fixed_grid(3))
    assert sampled.values.shape == (3, 2, 2, 2)


def test_changing_the_unit_changes_nothing_but_units() -> None:
    grid, transform = fixed_grid(2), random_transform(2)
    field = transform.field
    assert field is not None
    scale = 1024.0
    larger_grid = Grid(shape=grid.shape, spacing=tuple(scale * s for s in grid.spacing))
    larger = Transform(
        Affine(transform.affine.matrix, scale * transform.affine.offset),
        DisplacementField(scale * field.coefficients, scale * field.origin, scale * field.spacing),
    )
    small, large = scene.sample(transform, grid), scene.sample(larger, larger_grid)
    assert np.allclose(large.values, scale * small.values, rtol=1e-6)
    assert large.error_bound == pytest.approx(scale * small.error_bound)


def test_size_is_bounded_and_then_the_error_is_as_small_as_that_allows() -> None:
    grid, transform = fixed_grid(3), random_transform(3, amplitude=20.0)
    errors = []
    for max_bytes in (30_000, 240_000):
        sampled = scene.sample(transform, grid, max_bytes=max_bytes)
        assert 0.7 * max_bytes < sampled.values.nbytes <= max_bytes
        assert sampled.error_measured <= sampled.error_bound
        errors.append(sampled.error_bound)
    assert errors[0] > 0.05 * min(grid.spacing)
    # Twice as many nodes an axis: a quarter of the error.
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.3)


def test_far_away_from_the_origin_float64_is_used() -> None:
    near = scene.sample(random_transform(2), fixed_grid(2))
    far = scene.sample(Transform(Affine(np.eye(2), [1e7, 0.0])), fixed_grid(2))
    assert (near.values.dtype, far.values.dtype) == (np.float32, np.float64)
    assert far.error_measured < 1e-8


def test_affine_of_the_scene_is_the_inverse() -> None:
    grid, transform = fixed_grid(3, origin=10.0), Transform(random_affine(3))
    metadata = scene.scene_metadata(transform, grid)["scene"]
    shift, affine, field = metadata["coordinateTransformations"]
    assert [(e["input"]["name"], e["output"]["name"]) for e in (shift, affine, field)] == [
        ("fixed", "reference"),
        ("moving", "reference"),
        ("reference", "moving"),
    ]
    points = points_in(grid, 10)
    rows = np.asarray(affine["affine"])
    back = transform(points) @ rows[:, :3].T + rows[:, 3]
    assert np.allclose(back, points + shift["translation"])


def test_scene_is_written_as_the_specification_says(tmp_path: Path) -> None:
    write_transform(tmp_path / "t.zarr", random_transform(3), fixed_grid=fixed_grid(3))
    root = zarr.open_group(tmp_path / "t.zarr", mode="r")
    ome = root.attrs["ome"]
    first, _, field = ome["scene"]["coordinateTransformations"]
    assert (ome["version"], first["type"]) == ("0.6", "identity")
    assert ome["scene"]["coordinateSystems"][0]["name"] == "reference"
    assert ome["scene"]["coordinateSystems"][0]["axes"] == [
        {"name": axis, "type": "space", "unit": "micrometer", "discrete": False} for axis in "zyx"
    ]
    group = root[field["path"]]
    assert group.attrs["ome"]["version"] == "0.6"
    array = group["s0"]
    assert array.metadata.dimension_names == ("d", "z", "y", "x")
    (multiscale,) = group.attrs["ome"]["multiscales"]
    axis = {"name": "d", "type": "displacement", "discrete": True}
    assert multiscale["coordinateSystems"][0]["axes"][0] == axis
    (scale,) = multiscale["datasets"][0]["coordinateTransformations"]
    assert scale["scale"][0] == 1.0
    extent = (np.asarray(array.shape[1:]) - 1) * scale["scale"][1:]
    assert (extent >= fixed_grid(3).bounds[1]).all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_scene_is_valid(tmp_path: Path, ndim: int) -> None:
    models = pytest.importorskip(
        "ome_zarr_models.v06", reason="this ome-zarr-models has no model of NGFF 0.6 scenes"
    )
    write_transform(tmp_path / "t.zarr", random_transform(ndim), fixed_grid=fixed_grid(ndim, 3.0))
    root = zarr.open_group(tmp_path / "t.zarr", mode="r")
    parsed = models.Scene.from_zarr(root)
    assert len(parsed.ome_attributes.scene.coordinateTransformations) == 3
    models.Image.from_zarr(root[scene.FIELD_PATH])


def test_axes_must_agree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 axes, the fixed grid has 3"):
        write_transform(tmp_path / "t.zarr", Transform.identity(2), fixed_grid=fixed_grid(3))


@pytest.mark.parametrize("value", [np.float32(1), float("nan"), {1, 2}])
def test_provenance_must_fit_json(tmp_path: Path, value: object) -> None:
    with pytest.raises(InputError, match=r"Invalid provenance: .* It must fit JSON"):
        write_transform(
            tmp_path / "t.zarr",
            Transform.identity(2),
            fixed_grid=fixed_grid(2),
            provenance={"a": value},
        )
    assert not list(tmp_path.iterdir())


def test_existing_output_is_kept(tmp_path: Path) -> None:
    grid, place = fixed_grid(2), tmp_path / "t.zarr"
    first, second = random_transform(2), Transform.identity(2)
    write_transform(place, first, fixed_grid=grid)
    with pytest.raises(
        OutputError, match=r"t.zarr' exists already. Remove it, or use .*--overwrite"
    ):
        write_transform(place, second, fixed_grid=grid)
    assert same(read_transform(place), first)
    write_transform(place, second, fixed_grid=grid, overwrite=True)
    assert same(read_transform(place), second)
    assert not (place / "tilereg").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["t.zarr"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_not_a_zarr_group_is_never_replaced(tmp_path: Path, kind: str) -> None:
    dear = tmp_path / "thesis" / "chapter.txt"
    dear.parent.mkdir()
    dear.write_text("dear")
    place = dear.parent if kind == "folder" else dear
    with pytest.raises(OutputError, match="is not a Zarr group, so it is not overwritten"):
        write_transform(place, Transform.identity(2), fixed_grid=fixed_grid(2), overwrite=True)
    assert dear.read_text() == "dear"


def test_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, place, first = fixed_grid(2), tmp_path / "t.zarr", random_transform(2)
    write_transform(place, first, fixed_grid=grid)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tilereg.io.transforms._create_array", fail)
    with pytest.raises(OutputError, match=r"Cannot write '.*t.zarr' .*No space left .* Free some"):
        write_transform(place, Transform.identity(2), fixed_grid=grid, overwrite=True)
    assert same(read_transform(place), first)
    assert [p.name for p in tmp_path.iterdir()] == ["t.zarr"]


def test_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        write_transform(
            tmp_path / "file" / "t.zarr", Transform.identity(2), fixed_grid=fixed_grid(2)
        )


def test_transform_out_of_reach() -> None:
    with pytest.raises(
        ImageError, match=r"Cannot read the transform at 'http://127.0.0.1:9/t.zarr'"
    ):
        read_transform("http://127.0.0.1:9/t.zarr")


def test_missing_transform(tmp_path: Path) -> None:
    for read in (read_transform, read_provenance, read_affine):
        with pytest.raises(ImageError, match=r"No transform at '.*none.zarr'"):
            read(tmp_path / "none.zarr")


def test_other_groups_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a").write_text("")
    with pytest.raises(ImageError, match="is not a transform of tilereg: it is no Zarr group"):
        read_transform(tmp_path / "plain")
    zarr.create_group(tmp_path / "image.zarr", attributes={"ome": {"version": "0.5"}})
    with pytest.raises(ImageError, match="is not a transform of tilereg: its attribute"):
        read_transform(tmp_path / "image.zarr")


def edit(place: Path, change: dict[str, Any]) -> None:
    """Change keys of the attribute 'tilereg' of a transform."""
    text = json.loads((place / "zarr.json").read_text())
    text["attributes"]["tilereg"] |= change
    (place / "zarr.json").write_text(json.dumps(text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "is a transform of format 2, this version of tilereg reads format 1"),
        ({"affine": {"matrix": [[1, 0], [0, 1]]}}, "is damaged: KeyError"),
        ({"affine": {"matrix": [[1, 0], [0, 0]], "offset": [0, 0]}}, "is damaged: .* singular"),
        ({"field": {"path": "gone", "origin": [0, 0], "spacing": [1, 1]}}, "KeyError: 'gone'"),
        ({"field": 5}, "is damaged"),
        ({"provenance": 5}, "is damaged"),
    ],
)
def test_damaged_attributes(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    place = tmp_path / "t.zarr"
    write_transform(place, random_transform(2), fixed_grid=fixed_grid(2))
    edit(place, change)
    read = read_provenance if "provenance" in change else read_transform
    with pytest.raises(ImageError, match=message) as caught:
        read(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["lost", "cut", "flipped", "metadata"])
def test_damaged_coefficients(tmp_path: Path, damage: str) -> None:
    place = tmp_path / "t.zarr"
    write_transform(place, random_transform(3), fixed_grid=fixed_grid(3))
    chunk = place / "tilereg" / "coefficients" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    if damage == "lost":
        chunk.unlink()
    elif damage == "cut":
        chunk.write_bytes(data[:-40])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)
    else:
        (place / "tilereg" / "coefficients" / "zarr.json").write_text("{")
    with pytest.raises(ImageError, match="is damaged") as caught:
        read_transform(place)
    assert "\n" not in str(caught.value)


ROWS = [[1.5, 0.25, 0.1, 7.0], [0.0, 0.5, 0.0, -8.0], [0.125, 0.0, 2.0, 1 / 3]]
HOMOGENEOUS = [*ROWS, [0.0, 0.0, 0.0, 1.0]]
SPLIT = {"matrix": [row[:3] for row in ROWS], "offset": [row[3] for row in ROWS]}


def as_text(rows: list[list[float]], mark: str) -> str:
    return "".join(mark.join(map(repr, row)) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(SPLIT)),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(HOMOGENEOUS)),
        ("a.json", json.dumps({"affine": ROWS, "axes": ["z", "y", "x"], "unit": "um"})),
        ("a.json", json.dumps({"affine": SPLIT})),
        ("a.json", json.dumps({"matrix": HOMOGENEOUS})),
        ("a.csv", as_text(ROWS, ",")),
        ("a.csv", as_text(HOMOGENEOUS, "; ")),
        ("a.TXT", "\ufeff# from a colleague\n\n" + as_text(ROWS, "  ")),
    ],
)
def test_affine_in_every_form(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    affine = read_affine(tmp_path / name)
    assert affine.matrix.tolist() == SPLIT["matrix"]
    assert affine.offset.tolist() == SPLIT["offset"]


@pytest.mark.parametrize("ndim", [2, 3])
def test_affine_round_trip(tmp_path: Path, ndim: int) -> None:
    affine = random_affine(ndim)
    write_affine(tmp_path / "a.json", affine)
    write_transform(tmp_path / "t.zarr", random_transform(ndim), fixed_grid=fixed_grid(ndim))
    for place in (tmp_path / "a.json", tmp_path / "t.zarr"):
        back = read_affine(place)
        assert back.matrix.tobytes() == affine.matrix.tobytes()
        assert back.offset.tobytes() == affine.offset.tobytes()


def test_affine_output_is_checked(tmp_path: Path) -> None:
    place = tmp_path / "a.json"
    write_affine(place, Affine.identity(2))
    with pytest.raises(OutputError, match="exists already"):
        write_affine(place, random_affine(2))
    write_affine(place, random_affine(2), overwrite=True)
    assert read_affine(place).matrix.tolist() == random_affine(2).matrix.tolist()
    with pytest.raises(InputError, match=r"'.*a.txt' of an affine. It must end in .json"):
        write_affine(tmp_path / "a.txt", Affine.identity(2))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "Invalid JSON: Expecting property name"),
        ("a.json", "5", r"Invalid shape \(\) of an affine"),
        ("a.json", '{"rows": 1}', "Missing key 'matrix'. Present are: rows"),
        ("a.json", "[[1, 0, 0], [0, 1]]", "rows differ in length, or hold something"),
        ("a.json", '[[1, 0, "b"], [0, 1, 0]]', "rows differ in length, or hold something"),
        ("a.json", "[[1, 0, null], [0, 1, 0]]", "not finite"),
        ("a.json", "[[1, 0, NaN], [0, 1, 0]]", "not finite"),
        ("a.json", "[[1, 2, 0], [2, 4, 0]]", "singular"),
        ("a.json", "[[1, 0], [0, 1]]", r"Invalid shape \(2, 2\) of an affine. In 3D it is"),
        ("a.json", '{"matrix": [[1, 0], [0, 1]], "offset": [1]}', "Invalid affine of matrix"),
        ("a.json", "[[1, 0, 0], [0, 1, 0], [0, 1, 1]]", r"Invalid last row \[0.0, 1.0, 1.0\]"),
        ("a.json", '{"affine": [[1, 0, 0], [0, 1, 0]], "axes": ["x", "y"]}', "Invalid axes"),
        ("a.json", '{"affine": [[1, 0, 0], [0, 1, 0]], "axes": 3}', "Invalid axes 3"),
        ("a.json", '{"affine": [[1, 0, 0], [0, 1, 0]], "unit": "px"}', "Invalid unit 'px'"),
        ("a.json", '{"matrix": [], "direction": "back"}', "Invalid direction 'back'"),
        ("a.csv", "1,0,a\n0,1,0\n", "could not convert string to float: 'a'"),
        ("a.csv", "1,0,0\n0,1\n", "rows differ in length"),
        ("a.csv", "", r"Invalid shape \(0,\) of an affine"),
    ],
)
def test_affine_errors(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_affine(tmp_path / name)
    assert str(caught.value).endswith(f"Read from '{tmp_path / name}'.")
    assert "\n" not in str(caught.value)


def test_affine_locations(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Invalid suffix '.yaml' of 'a.yaml'. An affine is in"):
        read_affine("a.yaml")
    with pytest.raises(InputError, match=r"No affine at '.*a.json': no such file"):
        read_affine(tmp_path / "a.json")
    (tmp_path / "b.json").mkdir()
    with pytest.raises(InputError, match=r"b\.json' is a folder, not a file"):
        read_affine(tmp_path / "b.json")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=r"c\.txt' is not text"):
        read_affine(tmp_path / "c.txt")
