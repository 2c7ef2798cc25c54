"""Transforms on disk: a Zarr group that tilereg reads back to the bit, and affines as text.

`transform.ome.zarr` holds the transform twice. The attribute 'tilereg' and the array
``tilereg/coefficients`` are the transform itself: every number of it, and where it came from. The
attribute 'ome' and ``coordinateTransformations/`` are the same map for other tools, sampled, in
the form of OME-NGFF 0.6; tilereg never reads them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from tilereg.errors import ImageError, InputError, OutputError
from tilereg.grid import Grid
from tilereg.io import affines, scene
from tilereg.io.files import check_free, opened, replaced, suffix_of
from tilereg.io.nodes import read_document
from tilereg.io.stores import Location, one_line, outputs
from tilereg.transform import Affine, DisplacementField, Transform

__all__ = [
    "read_affine",
    "read_provenance",
    "read_transform",
    "write_affine",
    "write_transform",
]

_FORMAT = 1
_COEFFICIENTS = "tilereg/coefficients"


def write_transform(
    location: str | Path,
    transform: Transform,
    *,
    fixed_grid: Grid,
    provenance: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a transform, and the same as a scene of OME-NGFF 0.6 for other tools.

    The group appears under its name only when it is complete; at a URL its root is written last.

    Parameters
    ----------
    location : str or Path
        A folder, conventionally named transform.ome.zarr, or a URL.
    transform : Transform
        The pull-back, fixed -> moving.
    fixed_grid : Grid
        Where the sampled displacements are to be good: the grid of the fixed image.
    provenance : dict, optional
        What a reader should know of the transform's making, anything that JSON can hold.
    overwrite : bool
        Whether a group at the location is replaced. Default False.

    Raises
    ------
    InputError
        If transform and grid differ in their number of axes, or JSON cannot hold the provenance.
    OutputError
        If something is at the location and `overwrite` is false, or it is not a Zarr group, or
        the location cannot be written.

    Notes
    -----
    In the scene, ``moving -> reference`` is the inverse of the affine part, and ``reference ->
    moving`` the whole map, affine part included, as displacements: output = input + d. The field's
    error against the exact map is in the attribute 'tilereg', below 'export'.
    """
    if transform.ndim != fixed_grid.ndim:
        raise InputError(
            f"The transform has {transform.ndim} axes, the fixed grid has {fixed_grid.ndim}."
        )
    _check_json(provenance)
    check_free(location, overwrite=overwrite)
    sampled = scene.sample(transform, fixed_grid)
    attributes: dict[str, Any] = {
        "ome": scene.scene_metadata(transform, fixed_grid),
        "tilereg": _model(transform, fixed_grid, sampled) | {"provenance": provenance or {}},
    }
    with _published(location, overwrite=overwrite) as folder:
        root = zarr.open_group(folder, mode="w", zarr_format=3, attributes=attributes)
        root.create_group("coordinateTransformations")
        field = root.create_group(
            scene.FIELD_PATH, attributes={"ome": scene.field_metadata(sampled.grid)}
        )
        axes = fixed_grid.axes
        _create_array(field, "s0", sampled.values, ("d", *axes), vector_axis=0)
        if transform.field is not None:
            model = root.create_group("tilereg")
            coefficients = transform.field.coefficients
            _create_array(model, "coefficients", coefficients, (*axes, "component"), vector_axis=-1)


def read_transform(location: str | Path) -> Transform:
    """Read a transform that `write_transform` wrote, exact to the bit.

    Raises
    ------
    ImageError
        If there is none, it is not tilereg's, or it is damaged.
    """
    group, model = _open(location)
    with _damage(location):
        affine = Affine(model["affine"]["matrix"], model["affine"]["offset"])
        field = model["field"]
        if field is None:
            return Transform(affine)
        array: Any = group[field["path"]]
        coefficients = np.asarray(array[...])
        return Transform(affine, DisplacementField(coefficients, field["origin"], field["spacing"]))


def read_provenance(location: str | Path) -> dict[str, Any]:
    """Read what was written beside a transform about its making.

    Raises
    ------
    ImageError
        If there is no transform, it is not tilereg's, or it is damaged.
    """
    _, model = _open(location)
    with _damage(location):
        return dict(model["provenance"])


def read_affine(location: str | Path) -> Affine:
    """Read an affine map, fixed -> moving in micrometre, axes z, y, x (y, x in 2D).

    Parameters
    ----------
    location : str or Path
        One of three, told apart by the suffix:

        * .json: ``{"matrix": .., "offset": ..}``, the rows of a matrix, or either of these
          below the key ``affine``
        * .csv or .txt: the rows of a matrix, numbers parted by commas, semicolons or blanks;
          what follows a # is left out
        * .zarr: a transform that tilereg wrote, of which the affine part is taken

        A matrix is (D, D + 1), its last column the offset, or (D + 1, D + 1), its last row
        0, .., 0, 1.

    Raises
    ------
    InputError
        If there is no such file or group, its suffix is unknown, its numbers are not such a
        matrix, one is not finite, or the matrix is singular.
    """
    suffix = suffix_of(location)
    if suffix == ".zarr":
        return read_transform(location).affine
    if suffix not in (".json", ".csv", ".txt"):
        raise InputError(
            f"Invalid suffix '{suffix}' of '{location}'. An affine is in a .json, .csv, .txt or "
            ".zarr."
        )
    with opened(location, "affine") as stream:
        try:
            text = stream.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"'{location}' is not text: {one_line(error)}.") from error
    try:
        return affines.parse_json(text) if suffix == ".json" else affines.parse_rows(text)
    except InputError as error:
        raise InputError(f"{error} Read from '{location}'.") from error


def write_affine(location: str | Path, affine: Affine, *, overwrite: bool = False) -> None:
    """Write an affine map, fixed -> moving in micrometre, as JSON that `read_affine` reads.

    Raises
    ------
    InputError
        If the location does not end in .json.
    OutputError
        If there is a file already and `overwrite` is false, or it cannot be written.
    """
    if suffix_of(location) != ".json":
        raise InputError(f"Invalid name '{location}' of an affine. It must end in .json.")
    with replaced(location, overwrite=overwrite) as stream:
        stream.write(affines.to_json(affine).encode())


def _check_json(provenance: dict[str, Any] | None) -> None:
    """Raise unless JSON can hold the provenance."""
    try:
        json.dumps(provenance, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"Invalid provenance: {one_line(error)}. It must fit JSON.") from error


def _model(transform: Transform, fixed_grid: Grid, sampled: scene.Displacements) -> dict[str, Any]:
    """Return the transform as attributes, but for the coefficients of its field.

    JSON keeps every float64 to the bit: the shortest text that reads back as the same number.
    """
    field = None
    if transform.field is not None:
        field = {
            "path": _COEFFICIENTS,
            "origin": transform.field.origin.tolist(),
            "spacing": transform.field.spacing.tolist(),
        }
    return {
        "format": _FORMAT,
        "direction": affines.DIRECTION,
        "unit": affines.UNIT,
        "axes": list(fixed_grid.axes),
        "affine": {
            "matrix": transform.affine.matrix.tolist(),
            "offset": transform.affine.offset.tolist(),
        },
        "field": field,
        "fixed_grid": {
            "shape": list(fixed_grid.shape),
            "spacing": list(fixed_grid.spacing),
            "origin": list(fixed_grid.origin),
        },
        "export": {
            "path": scene.FIELD_PATH,
            "error_bound": sampled.error_bound,
            "error_measured": sampled.error_measured,
        },
    }


def _create_array(
    group: zarr.Group,
    name: str,
    values: NDArray[Any],
    dimension_names: tuple[str, ...],
    *,
    vector_axis: int,
) -> None:
    """Write an array; a chunk that is lost reads as NaN, one that is damaged as an error."""
    edge = 64 if values.ndim == 4 else 512
    chunks = [min(edge, n) for n in values.shape]
    chunks[vector_axis] = values.shape[vector_axis]
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=tuple(chunks),
        compressors=[ZstdCodec(level=5, checksum=True)],
        fill_value=np.nan,
        dimension_names=dimension_names,
    )
    array[...] = values


@contextmanager
def _published(location: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder to fill, which then appears at the location as a whole."""
    place = Location.of(location)
    _check_replaceable(place)
    with outputs("write", f"'{location}'"):
        parent = None
        if not place.is_remote:
            parent = Path(place.url).parent
            parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=f".{place.name}.") as temporary:
            folder = Path(temporary) / "group"
            yield folder
            check_free(location, overwrite=overwrite)
            if place.is_remote:
                _upload(folder, place)
            else:
                _move(folder, Path(place.url))


def _check_replaceable(place: Location) -> None:
    """Raise unless nothing but one transform of tilereg is at a location, or nothing at all."""
    if not place.exists():
        return
    names = set(place.listing())
    advice = "so it is not overwritten. Remove it, or choose another place."
    if "zarr.json" not in names:
        raise OutputError(f"'{place}' is not a Zarr group, {advice}")
    try:
        document = read_document(place, "zarr.json") or {}
    except ImageError as error:
        raise OutputError(f"It cannot be told what '{place}' is, {advice} {error}") from error
    attributes = document.get("attributes")
    model = attributes.get("tilereg") if isinstance(attributes, dict) else None
    if not isinstance(model, dict) or "affine" not in model:
        raise OutputError(
            f"'{place}' is a Zarr {document.get('node_type', 'group')} but no transform of "
            f"tilereg, {advice}"
        )
    others = sorted(names - {"zarr.json", "tilereg", "coordinateTransformations"})
    if others:
        raise OutputError(f"'{place}' is a transform that also holds '{others[0]}', {advice}")


def _move(folder: Path, path: Path) -> None:
    """Put a folder in its place; what was there goes when the new one is in."""
    old = folder.with_name("old")
    if path.exists():
        path.rename(old)
    try:
        folder.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise


def _upload(folder: Path, place: Location) -> None:
    """Copy a folder to a URL, its root metadata last: without them it is not a group."""
    if place.exists():
        place.remove()
    system, path = place.filesystem()
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda f: (f.parent == folder, f)):
        system.put_file(str(file), f"{path}/{file.relative_to(folder).as_posix()}")
    system.invalidate_cache()


def _open(location: str | Path) -> tuple[zarr.Group, dict[str, Any]]:
    """Return the group and the attribute 'tilereg' of a transform."""
    place = Location.of(location)
    with _damage(location):
        try:
            group = zarr.open_group(place.store(read_only=True), mode="r", zarr_format=3)
        except FileNotFoundError as error:
            if not place.exists():
                raise ImageError(f"No transform at '{location}': there is nothing.") from error
            raise ImageError(
                f"'{location}' is not a transform of tilereg: it is no Zarr group of version 3."
            ) from error
        model: Any = group.attrs.get("tilereg")
    if not isinstance(model, dict) or "affine" not in model:
        raise ImageError(
            f"'{location}' is not a transform of tilereg: its attribute 'tilereg' holds none."
        )
    if model.get("format") != _FORMAT:
        raise ImageError(
            f"'{location}' is a transform of format {model.get('format')}, this version of tilereg "
            f"reads format {_FORMAT}."
        )
    return group, model


@contextmanager
def _damage(location: str | Path) -> Iterator[None]:
    """Turn whatever a damaged group lets fail into one error."""
    try:
        yield
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(
            f"Cannot read the transform at '{location}': {one_line(error)}."
        ) from error
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ImageError(f"The transform at '{location}' is damaged: {one_line(error)}.") from error
