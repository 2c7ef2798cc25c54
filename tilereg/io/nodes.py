"""Zarr groups as plain JSON: what lies at a location, and which image it leads to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tilereg.errors import ImageError, TileregError
from tilereg.io.metadata import check_version
from tilereg.io.stores import Location, one_line

__all__ = ["Node", "find_image", "label_names", "read_document", "read_node"]

#: How many images of a bioformats2raw folder are looked for, and listed in a message.
_MOST_SERIES = 20


@dataclass(frozen=True, kw_only=True)
class Node:
    """A zarr group or array.

    Parameters
    ----------
    place : Location
        Where it is.
    zarr_format : int
        2 or 3.
    is_array : bool
        Whether it is an array, not a group.
    ome : mapping
        What NGFF keeps in it: the attributes (0.4), or their `ome` (0.5).
    """

    place: Location
    zarr_format: int
    is_array: bool
    ome: Mapping[str, Any] = field(repr=False)

    @property
    def version(self) -> object:
        """The NGFF version as it is written, None where it is not."""
        if "version" in self.ome:
            return self.ome["version"]
        for key in ("multiscales", "plate", "well"):
            content = self.ome.get(key)
            content = content[0] if isinstance(content, list) and content else content
            if isinstance(content, dict) and "version" in content:
                return content["version"]
        return None


def read_document(place: Location, key: str) -> dict[str, Any] | None:
    """Read a JSON object, None where the file is not.

    Raises
    ------
    ImageError
        If it cannot be read or is not a JSON object.
    """
    try:
        text = place.read_text(key)
    except (PermissionError, TileregError):
        raise
    except Exception as error:
        # Storage backends raise classes of their own for a host that does not answer.
        raise ImageError(
            f"'{place}/{key}' cannot be read ({one_line(error)}). Check the location, the "
            "storage options and the connection."
        ) from error
    if text is None:
        return None
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ImageError(
            f"'{place}/{key}' is not JSON ({one_line(error)}). Copy the image again."
        ) from error
    if not isinstance(content, dict):
        raise ImageError(f"'{place}/{key}' holds no JSON object. Copy the image again.")
    return content


def read_node(place: Location) -> Node | None:
    """Read the zarr group or array at a location, None where there is neither.

    Raises
    ------
    ImageError
        If it may not be read, or its metadata are damaged.
    """
    found: dict[str, dict[str, Any]] = {}
    refused: PermissionError | None = None
    for key in ("zarr.json", ".zattrs", ".zgroup", ".zarray"):
        try:
            document = read_document(place, key)
        except PermissionError as error:
            # A bucket that may not be listed answers so where there is nothing.
            refused = refused or error
            continue
        if document is not None:
            found[key] = document
        if key == "zarr.json" and found:
            break
        if key == ".zattrs" and "multiscales" in found.get(key, {}):
            break
    if not found:
        if refused is not None:
            raise ImageError(
                f"'{place}' may not be read ({one_line(refused)}). Check its permissions and the "
                "storage options."
            ) from refused
        return None
    document = found.get("zarr.json")
    if document is not None:
        attributes = document.get("attributes")
        is_array = document.get("node_type") == "array"
    else:
        attributes = found.get(".zattrs")
        is_array = ".zarray" in found
    attributes = attributes if isinstance(attributes, dict) else {}
    ome = attributes.get("ome")
    return Node(
        place=place,
        zarr_format=2 if document is None else 3,
        is_array=is_array,
        ome=ome if isinstance(ome, dict) else attributes,
    )


def find_image(place: Location) -> Node:
    """Return the group with the multiscales at a location, or the only one just below it.

    Raises
    ------
    ImageError
        If there is none; says what is there instead and what to open.
    """
    node = read_node(place)
    if node is None:
        if not _is_there(place):
            raise ImageError(f"Nothing is at '{place}'. Check the path.")
        raise ImageError(
            f"'{place}' is not a Zarr group: it holds neither zarr.json nor .zgroup. Give the "
            "folder of the image itself."
        )
    if "multiscales" in node.ome:
        return node
    if node.is_array:
        raise ImageError(
            f"'{place}' is a single Zarr array without OME metadata. Give the group above it, "
            "or write OME-Zarr metadata."
        )
    for kind in ("plate", "well"):
        if kind in node.ome:
            raise ImageError(
                f"'{place}' is a {kind} of many images. Open one of them, for example "
                f"'{_example(node, kind)}'."
            )
    # A plate of bioformats2raw has its layout too, so this comes after the plate.
    if "bioformats2raw.layout" in node.ome:
        return _only_series(node)
    labels = node.ome.get("labels")
    if isinstance(labels, list) and labels:
        raise ImageError(
            f"'{place}' is a group of label images. Open one of them, for example "
            f"'{place}/{labels[0]}'."
        )
    if node.version is not None:
        check_version(node.version, zarr_format=node.zarr_format, place=str(place))
    raise ImageError(
        f"'{place}' is a Zarr group without OME metadata (multiscales). It is another kind of "
        "group, or an image whose writing never ended; give the group of a finished image."
    )


def label_names(place: Location) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of an image's label images, and a note where they cannot be read."""
    try:
        node = read_node(place.child("labels"))
    except ImageError as error:
        # Labels that may not be read do not keep the image from being opened.
        return (), (f"labels could not be read: {error}",)
    names = None if node is None else node.ome.get("labels")
    if isinstance(names, list):
        return tuple(str(name) for name in names), ()
    if names is None:
        return (), ()
    return (), (f"labels could not be read: '{place}/labels' lists no names, but {names!r:.80}.",)


def _is_there(place: Location) -> bool:
    """Tell whether anything is at a location; what cannot be asked counts as nothing."""
    try:
        return place.exists()
    except Exception as error:
        # Servers without listings answer as they please; the message is for the user.
        raise ImageError(
            f"'{place}' cannot be read ({one_line(error)}). Check the path and the permissions."
        ) from error


def _only_series(node: Node) -> Node:
    """Return the one image of a bioformats2raw folder."""
    listed = read_node(node.place.child("OME"))
    series = listed.ome.get("series") if listed else None
    names = [str(name) for name in series] if isinstance(series, list) else []
    if not names:
        for number in range(_MOST_SERIES):
            if read_node(node.place.child(str(number))) is None:
                break
            names.append(str(number))
    if len(names) == 1:
        return find_image(node.place.child(names[0]))
    if not names:
        raise ImageError(
            f"'{node.place}' has the layout of bioformats2raw, but no image '0' in it. Copy it "
            "again."
        )
    paths = ", ".join(f"'{node.place}/{name}'" for name in names[:_MOST_SERIES])
    more = f" and {len(names) - _MOST_SERIES} more" if len(names) > _MOST_SERIES else ""
    raise ImageError(f"'{node.place}' holds {len(names)} images. Open one of them: {paths}{more}.")


def _example(node: Node, kind: str) -> str:
    """Return the location of one image of a plate or well."""
    place = node.place
    if kind == "plate":
        well = _first_path(node.ome.get("plate"), "wells") or "A/1"
        place = place.child(well)
        inner = read_node(place)
        content = inner.ome.get("well") if inner else None
    else:
        content = node.ome.get("well")
    return str(place.child(_first_path(content, "images") or "0"))


def _first_path(content: object, key: str) -> str | None:
    """Return the path of the first entry of a list in a JSON object."""
    entries = content.get(key) if isinstance(content, dict) else None
    first = entries[0] if isinstance(entries, list) and entries else None
    path = first.get("path") if isinstance(first, dict) else None
    return path if isinstance(path, str) else None
