"""What an image says beside its voxels is read, refused or carried over, never lost quietly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import zarr

from tilereg.errors import ImageError, InputError
from tilereg.grid import Grid
from tilereg.io.metadata import LENGTH_UNITS, micrometres
from tilereg.io.ome_zarr import OmeZarrImage, create_image, open_image

FLAT = Grid(shape=(21, 30), spacing=(0.3, 0.2), origin=(1.0, 2.0))


def put_image(path: Path, **options: Any) -> OmeZarrImage:
    """Write an image of one level."""
    arguments: dict[str, Any] = {"grid": FLAT, "dtype": "uint8", "levels": 1, **options}
    return create_image(path, **arguments).finish()


def edit(path: Path, change: dict[str, Any]) -> None:
    """Change the first multiscale image of a group."""
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["ome"]["multiscales"][0].update(change)
    (path / "zarr.json").write_text(json.dumps(document))


def with_scale(*scale: Any, translation: list[Any] | None = None) -> dict[str, Any]:
    """Return levels of one scale."""
    transforms: list[Any] = [{"type": "scale", "scale": list(scale)}]
    if translation is not None:
        transforms.append({"type": "translation", "translation": translation})
    return {"datasets": [{"path": "0", "coordinateTransformations": transforms}]}


def with_unit(unit: object) -> dict[str, Any]:
    """Return axes of one unit."""
    return {"axes": [{"name": n, "type": "space", "unit": unit} for n in "yx"]}


@pytest.mark.parametrize("text", ["{", '{"attributes": 5', "[]"])
def test_labels_that_cannot_be_read_are_noted(tmp_path: Path, text: str) -> None:
    put_image(tmp_path / "a")
    (tmp_path / "a/labels").mkdir()
    assert open_image(tmp_path / "a").notes == ()
    (tmp_path / "a/labels/zarr.json").write_text(text)
    image = open_image(tmp_path / "a")
    assert image.labels == ()
    (note,) = image.notes
    assert note.startswith("labels could not be read: '")
    assert "labels/zarr.json" in note


def test_labels_without_a_list_are_noted(tmp_path: Path) -> None:
    put_image(tmp_path / "a")
    zarr.open_group(tmp_path / "a/labels", mode="w", attributes={"ome": {"labels": "cells"}})
    assert "lists no names, but 'cells'" in open_image(tmp_path / "a").notes[0]


def colours(image: OmeZarrImage) -> list[str]:
    """Return the colours of the channels."""
    assert image.omero is not None
    return [channel["color"] for channel in image.omero["channels"]]


def test_display_settings_follow_the_channel(tmp_path: Path) -> None:
    omero = {
        "channels": [
            {"label": "spots", "color": "111111"},
            {"label": "DAPI", "color": "222222"},
            {"label": "spots", "color": "333333"},
        ]
    }

    def written(names: list[str], sources: list[int] | None) -> list[str]:
        image = create_image(
            tmp_path / "a",
            grid=FLAT,
            dtype="uint8",
            channels=names,
            omero=omero,
            omero_channels=sources,
            overwrite=True,
        ).finish()
        assert image.channels == tuple(names)
        return colours(image)

    # Names are not unique, and the number of channels says nothing.
    assert written(["spots"], [2]) == ["333333"]
    assert written(["a", "b", "c"], [2, 0, 1]) == ["333333", "111111", "222222"]
    assert written(["spots", "DAPI"], [2, 1]) == ["333333", "222222"]
    # A channel that the settings lack gets a colour of its own, as all others without.
    assert written(["more", "DAPI"], [3, 1]) == ["00FF00", "222222"]
    # Without numbers: in order where there are as many, else by a name that is one channel's.
    assert written(["a", "b", "c"], None) == ["111111", "222222", "333333"]
    assert written(["DAPI", "spots"], None) == ["222222", "FF00FF"]
    for wrong in ([0], [0, -1]):
        with pytest.raises(InputError, match=r"Invalid omero_channels \(0"):
            written(["a", "b"], wrong)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_times_are_carried_over(tmp_path: Path, version: str) -> None:
    image = put_image(
        tmp_path / "a", num_times=2, version=version, time_step=2.5, time_unit="minute"
    )
    assert (image.time_step, image.time_unit) == (2.5, "minute")
    assert image.grid == FLAT
    plain = put_image(tmp_path / "b", num_times=2, version=version)
    assert (plain.time_step, plain.time_unit) == (1.0, None)
    for wrong in (0.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="Invalid time_step"):
            put_image(tmp_path / "c", num_times=2, time_step=wrong)


def test_a_step_between_times_that_is_none_is_noted(tmp_path: Path) -> None:
    put_image(tmp_path / "a", num_times=2)
    for wrong in (0.0, -1.0, 1e-320):
        edit(tmp_path / "a", with_scale(wrong, 1.0, 1.0))
        image = open_image(tmp_path / "a")
        assert image.time_step == 1.0
        assert "no step between times; 1 is assumed" in image.notes[0]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_colours_of_labels_are_carried_over(tmp_path: Path, version: str) -> None:
    models = pytest.importorskip("ome_zarr_models")
    known = {
        "version": "0.4",
        "source": {"image": "elsewhere"},
        "colors": [{"label-value": 1, "rgba": [255, 0, 0, 255]}],
        "properties": [{"label-value": 1, "area": 7}],
    }
    path = tmp_path / "a/labels/cells"
    put_image(tmp_path / "a", version=version)
    options: dict[str, Any] = {"dtype": "int32", "is_label": True, "version": version}
    image = put_image(path, **options, label_metadata=known)
    assert image.label_metadata is not None
    assert image.label_metadata["colors"] == known["colors"]
    assert image.label_metadata["properties"] == known["properties"]
    assert image.label_metadata["source"] == {"image": "../../"}
    assert image.label_metadata.get("version") == ("0.4" if version == "0.4" else None)
    assert type(models.open_ome_zarr(zarr.open_group(path, mode="r"))).__name__ == "ImageLabel"
    assert known["source"] == {"image": "elsewhere"}
    assert put_image(tmp_path / "b", label_metadata=known).label_metadata is None


BAD_NUMBERS: list[tuple[dict[str, Any], str]] = [
    (with_scale(10**400, 1.0), r"no finite number for axis 'y': 1000.*\.\.\."),
    (with_scale(1.0, 1.0, translation=[0.0, -(10**400)]), "no finite number for axis 'x': -1000"),
    (with_scale(1.0, 1e-320), r"Invalid scale 9\.\d*e-321 or translation 0 .* 'x'"),
    (with_scale(1e300, 1.0), r"Invalid scale 1e\+300 .* axis 'y'\. .* from 1e-100 to 1e\+100"),
    (with_scale(1.0, 1.0, translation=[1e300, 0.0]), r"translation 1e\+300 .* axis 'y'"),
    ({**with_scale(1e300, 1.0), **with_unit("yottameter")}, "Invalid scale inf"),
]


@pytest.mark.parametrize(("change", "said"), BAD_NUMBERS)
def test_numbers_out_of_range(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    put_image(tmp_path / "a")
    edit(tmp_path / "a", change)
    with pytest.raises(ImageError, match=said) as caught:
        open_image(tmp_path / "a")
    assert len(str(caught.value)) < 500
    assert "level 0 of" in str(caught.value)


def test_huge_numbers_of_other_axes_do_no_harm(tmp_path: Path) -> None:
    put_image(tmp_path / "a", channels=["a"])
    edit(tmp_path / "a", with_scale(10**400, 0.3, 0.2))
    assert open_image(tmp_path / "a").grid.spacing == (0.3, 0.2)


@pytest.mark.parametrize("unit", ["furlong", "MM", "Um", "NM", "a.u.", "second", 5])
def test_unknown_units_are_refused(tmp_path: Path, unit: object) -> None:
    put_image(tmp_path / "a")
    edit(tmp_path / "a", with_unit(unit))
    with pytest.raises(ImageError, match=rf"Unknown unit '{unit}' of axis 'y' of .*") as caught:
        open_image(tmp_path / "a")
    assert all(known in str(caught.value) for known in LENGTH_UNITS)
    assert "or pixel" in str(caught.value)


@pytest.mark.parametrize("unit", ["pixel", "Pixels", "", " ", None])
def test_no_unit_is_noted(tmp_path: Path, unit: str | None) -> None:
    put_image(tmp_path / "a")
    edit(tmp_path / "a", with_unit(unit))
    image = open_image(tmp_path / "a")
    assert image.grid.spacing == (0.3, 0.2)
    assert "micrometre is assumed" in image.notes[0]


def test_symbols_are_told_by_their_case() -> None:
    assert [micrometres(u) for u in ("mm", "MM", "Mm", "nm", "NM")] == [1e3, None, None, 1e-3, None]
    assert [micrometres(u) for u in ("Millimeter", "METRE", "inches", "feet")] == [
        1e3, 1e6, 25400.0, 304800.0,
    ]  # fmt: skip
