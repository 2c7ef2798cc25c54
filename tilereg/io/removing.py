"""Removing an image: only what is one image, and nothing that merely looks like a Zarr store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilereg.errors import ImageError, OutputError
from tilereg.io.nodes import Node, read_document, read_node
from tilereg.io.stores import MARKERS, Location, outputs

__all__ = ["remove_store"]

_ADVICE = "so it is not removed. Choose another output, or remove it by hand."


def remove_store(location: str | Path, storage_options: Mapping[str, Any] | None = None) -> None:
    """Remove one OME-Zarr image, finished or not; nothing happens where there is nothing.

    Parameters
    ----------
    location : str or Path
        Path or fsspec URL.
    storage_options : mapping, optional
        Options for fsspec.

    Raises
    ------
    OutputError
        If anything but one image is there (it may hold something dear), or it cannot be removed.
    """
    place = Location.of(location, storage_options)
    with outputs("remove", f"'{place}'"):
        if place.exists():
            _check_one_image(place)
            place.remove()


def _check_one_image(place: Location) -> None:
    """Raise unless one image is at a location, with its levels and labels and no more."""
    names = place.listing()
    if not set(MARKERS) & set(names):
        raise OutputError(f"'{place}' is not a Zarr store, {_ADVICE}")
    try:
        node = read_node(place)
        if node is None:
            raise OutputError(f"'{place}' is not a Zarr store, {_ADVICE}")
        if node.is_array or "multiscales" not in node.ome:
            others = _not_begun(node, names)
            if others:
                raise OutputError(f"'{place}' is {_kind(node, others)}, not one image, {_ADVICE}")
            return
        own = _level_folders(node.ome["multiscales"]) | {"labels", "OME"}
        nodes = [n for n in sorted(set(names) - own) if _is_node(place.child(n))]
        if nodes:
            raise OutputError(f"'{place}' is an image that also holds {_listed(nodes)}, {_ADVICE}")
    except ImageError as error:
        raise OutputError(f"It cannot be told what '{place}' is, {_ADVICE} {error}") from error


def _level_folders(multiscales: object) -> set[str]:
    """Return the names below an image that the paths of its levels begin with."""
    entries = multiscales if isinstance(multiscales, list) else []
    listed = [e.get("datasets") for e in entries if isinstance(e, dict)]
    datasets = [d for some in listed if isinstance(some, list) for d in some]
    return {str(d.get("path")).strip("/").split("/")[0] for d in datasets if isinstance(d, dict)}


def _is_node(place: Location) -> bool:
    """Tell whether a zarr group or array is at a location."""
    return bool(set(MARKERS) & set(place.listing()))


def _not_begun(node: Node, names: list[str]) -> list[str]:
    """Return what keeps a group from being an image that tilereg began: names, or `attributes`."""
    if node.is_array or node.ome:
        return ["attributes"]
    return [
        name
        for name in sorted(names)
        if name not in (*MARKERS, "labels")
        and not name.endswith(".part")
        and not _is_begun_level(node, name)
    ]


def _is_begun_level(node: Node, name: str) -> bool:
    """Tell whether an array is a level as tilereg writes it."""
    place = node.place.child(name)
    if not name.isdecimal():
        return False
    if node.zarr_format == 2:
        document = read_document(place, ".zarray") or {}
        return document.get("dimension_separator") == "/" and not place.read_text(".zattrs")
    document = read_document(place, "zarr.json") or {}
    axes = document.get("dimension_names")
    return (
        document.get("node_type") == "array"
        and isinstance(axes, list)
        and axes[-2:] == ["y", "x"]
        and not document.get("attributes")
    )


def _kind(node: Node, others: list[str]) -> str:
    """Return in words what a node is that is no image."""
    if node.is_array:
        return "a single Zarr array"
    if "plate" in node.ome:
        return "a plate of many images"
    if "well" in node.ome:
        return "a well of many images"
    if "bioformats2raw.layout" in node.ome:
        series = [n for n in sorted(node.place.listing()) if n.isdecimal()]
        return f"a bioformats2raw folder of {len(series)} images"
    if isinstance(node.ome.get("labels"), list):
        return "a group of label images"
    if "scene" in node.ome or "tilereg" in node.ome:
        return "a transform"
    if others == ["attributes"]:
        return f"a Zarr group with attributes ({_listed(sorted(map(str, node.ome)))})"
    return f"a Zarr group with {_listed(others)}"


def _listed(names: list[str]) -> str:
    """Return the first names of a list in words."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(json.dumps(name, ensure_ascii=False) for name in names[:3]) + more
