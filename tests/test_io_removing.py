"""Only what was asked for is removed: one image, one transform, and nothing beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr

from tilereg.errors import OutputError
from tilereg.grid import Grid
from tilereg.io.ome_zarr import create_image, open_image, remove_store
from tilereg.io.stores import Location, one_line
from tilereg.io.transforms import read_transform, write_transform
from tilereg.transform import Transform

FLAT = Grid(shape=(21, 30), spacing=(0.3, 0.2), origin=(1.0, 2.0))


def put_image(place: str | Path, version: str = "0.5") -> None:
    """Write an image of two levels with something in it."""
    writer = create_image(place, grid=FLAT, dtype="uint8", version=version, levels=2)
    writer.write(FLAT.window, np.ones(FLAT.shape, "uint8"))
    writer.finish()


@pytest.mark.parametrize("name", ["run[1A]", "run*", "run?", "[!a]*"])
@pytest.mark.parametrize("remote", [True, False])
def test_names_are_no_patterns(tmp_path: Path, remote: bool, name: str) -> None:
    root = f"memory://{tmp_path.name}" if remote else str(tmp_path)
    for folder in (name, "run1", "runA"):
        put_image(f"{root}/{folder}/a.zarr")
        Location.of(f"{root}/{folder}").write_text("run.toml", "dear")
    remove_store(f"{root}/{name}/a.zarr")
    Location.of(f"{root}/{name}").remove()
    assert not Location.of(f"{root}/{name}").exists()
    assert sorted(Location.of(root).listing()) == ["run1", "runA"]
    for folder in ("run1", "runA"):
        assert Location.of(f"{root}/{folder}").read_text("run.toml") == "dear"
        image = open_image(f"{root}/{folder}/a.zarr")
        assert image.reader().read(FLAT.window).min() == 1


def test_names_like_chunks_are_no_patterns() -> None:
    system = fsspec.filesystem("memory")
    for key in ("x/a*/zarr.json", "x/a*/c/0", "x/abc", "x/a*b", "y"):
        system.pipe_file(f"/exact/{key}", b"")
    Location.of("memory://exact/x/a*").remove()
    assert system.find("/exact") == ["/exact/x/a*b", "/exact/x/abc", "/exact/y"]
    # A single file is removed alone.
    Location.of("memory://exact/x/a*b").remove()
    assert system.find("/exact") == ["/exact/x/abc", "/exact/y"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    dear = tmp_path / "dear"
    dear.mkdir()
    (dear / "file").write_text("")
    put_image(tmp_path / "a")
    (tmp_path / "a/0/link").symlink_to(dear)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    remove_store(tmp_path / "b")
    assert (dear / "file").exists()
    assert (tmp_path / "b").is_symlink()
    assert not list((tmp_path / "a").iterdir())


def put_group(place: Path, attributes: dict[str, Any], **arrays: tuple[str, ...] | None) -> None:
    """Write a group with arrays."""
    group = zarr.open_group(place, mode="w", attributes=attributes)
    for name, axes in arrays.items():
        group.create_array(name, shape=(4, 4), dtype="uint8", dimension_names=axes)


def series(path: Path) -> None:
    """Write a bioformats2raw folder of two images."""
    put_group(path, {"ome": {"version": "0.5", "bioformats2raw.layout": 3}})
    put_image(path / "0")
    put_image(path / "1")


def nested(path: Path) -> None:
    """Write an image with another one in it."""
    put_image(path)
    put_image(path / "other.zarr")


def damaged(path: Path) -> None:
    """Write an image and damage its metadata."""
    put_image(path)
    (path / "zarr.json").write_text("{")


KINDS: list[tuple[Callable[[Path], object], str]] = [
    (lambda p: put_group(p, {}, raw=None), 'a Zarr group with "raw", not one image'),
    (lambda p: put_group(p, {}, **{"0": None}), 'a Zarr group with "0"'),
    (lambda p: put_group(p, {}, **{"0": ("y", "x"), "mask": ("y", "x")}), 'group with "mask"'),
    (lambda p: put_group(p, {"mine": 1}), r'a Zarr group with attributes \("mine"\)'),
    (lambda p: put_group(p, {"ome": {"plate": {}}}), "a plate of many images"),
    (lambda p: put_group(p, {"ome": {"well": {}}}), "a well of many images"),
    (lambda p: put_group(p, {"ome": {"labels": ["a"]}}), "a group of label images"),
    (series, "a bioformats2raw folder of 2 images"),
    (nested, 'an image that also holds "other.zarr"'),
    (damaged, "cannot be told what"),
    (lambda p: zarr.create_array(p, shape=(3, 3), dtype="uint8"), "a single Zarr array"),
    (lambda p: write_transform(p, Transform.identity(2), fixed_grid=FLAT), "is a transform"),
]


@pytest.mark.parametrize(("make", "said"), KINDS)
def test_only_one_image_is_removed(
    tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    path = tmp_path / "a"
    make(path)
    before = sorted(path.rglob("*"))
    for remove in (
        lambda: remove_store(path),
        lambda: create_image(path, grid=FLAT, dtype="uint8", overwrite=True),
    ):
        with pytest.raises(OutputError, match=f"{said}.*is not removed. Choose") as caught:
            remove()
        assert "\n" not in str(caught.value)
    assert sorted(path.rglob("*")) == before


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_unfinished_images_are_removed(tmp_path: Path, version: str) -> None:
    path = tmp_path / "a"
    options: dict[str, Any] = {"grid": FLAT, "dtype": "uint8", "version": version, "levels": 3}
    writer = create_image(path, **options)
    writer.write(FLAT.window, np.ones(FLAT.shape, "uint8"))
    # As a removal, or a beginning, that was cut short leaves it.
    Location.of(path / "0").remove()
    (path / "zarr.json.77.part").write_text("{")
    create_image(path, **options, overwrite=True)
    remove_store(path)
    assert not path.exists()
    put_image(path, version)
    create_image(path / "labels/cells", **{**options, "dtype": "int32", "is_label": True}).finish()
    remove_store(path)
    assert not path.exists()


TRANSFORMS: list[tuple[Callable[[Path], object], str]] = [
    (put_image, "a Zarr group but no transform of tilereg"),
    (lambda p: put_group(p, {}), "a Zarr group but no transform of tilereg"),
    (damaged, "cannot be told what"),
    (lambda p: zarr.create_array(p, shape=(3, 3), dtype="uint8"), "a Zarr array but no transform"),
]


@pytest.mark.parametrize(("make", "said"), TRANSFORMS)
def test_only_a_transform_is_replaced_by_one(
    tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    path = tmp_path / "a"
    make(path)
    before = sorted(path.rglob("*"))
    with pytest.raises(OutputError, match=f"{said}.*is not overwritten"):
        write_transform(path, Transform.identity(2), fixed_grid=FLAT, overwrite=True)
    assert sorted(path.rglob("*")) == before


def test_a_transform_with_more_in_it_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.zarr"
    write_transform(path, Transform.identity(2), fixed_grid=FLAT)
    write_transform(path, Transform.identity(2), fixed_grid=FLAT, overwrite=True)
    (path / "notes.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"a transform that also holds 'notes.txt'"):
        write_transform(path, Transform.identity(2), fixed_grid=FLAT, overwrite=True)
    assert read_transform(path).field is None


def test_the_way_out_is_named(tmp_path: Path) -> None:
    put_image(tmp_path / "a")
    with pytest.raises(OutputError, match=r"or use overwrite \(--overwrite\)\.$"):
        put_image(tmp_path / "a")
    with pytest.raises(OutputError, match=r"or use overwrite \(--overwrite\)\.$"):
        write_transform(tmp_path / "a", Transform.identity(2), fixed_grid=FLAT)
    document = json.loads((tmp_path / "a/zarr.json").read_text())
    assert document["node_type"] == "group"


def test_errors_in_one_line() -> None:
    assert one_line(ValueError("a\n b.")) == "ValueError: a b"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("x" * 300), 10) == "ValueError: xxxxxxx..."
