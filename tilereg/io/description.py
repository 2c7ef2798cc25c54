"""The OME metadata that tilereg writes: multiscales, omero, labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilereg.grid import AXES, Grid

__all__ = ["group_document", "ome_attributes"]

_HEX = re.compile("[0-9A-Fa-f]{6}")
_KINDS = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
_POSITIONS = ("defaultZ", "defaultT")
_COLOURS = ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")


def group_document(
    version: str, attributes: Mapping[str, Any], others: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the metadata documents of a zarr group: file name -> JSON object.

    `attributes` are what NGFF keeps in the group; none for a group that is no image yet.
    `others` are what a 0.5 group keeps beside them.
    """
    if version == "0.5":
        content = {**others, "ome": dict(attributes)} if attributes else dict(others)
        return {"zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": content}}
    documents: dict[str, dict[str, Any]] = {".zgroup": {"zarr_format": 2}}
    if attributes:
        documents[".zattrs"] = dict(attributes)
    return documents


def ome_attributes(
    *,
    name: str,
    version: str,
    axes: tuple[str, ...],
    dtype: np.dtype[Any],
    channels: tuple[str, ...],
    levels: Sequence[tuple[str, Grid]],
    omero: Mapping[str, Any] | None,
    omero_channels: Sequence[int] | None,
    is_label: bool,
    label_metadata: Mapping[str, Any] | None,
    time_step: float,
    time_unit: str | None,
) -> dict[str, Any]:
    """Return what NGFF keeps in the group of an image."""
    lead = axes[: len(axes) - levels[0][1].ndim]
    steps = [time_step if axis == "t" else 1.0 for axis in lead]
    multiscale: dict[str, Any] = {
        "name": name,
        "axes": [_axis(axis, time_unit) for axis in axes],
        "datasets": [
            {
                "path": path,
                "coordinateTransformations": [
                    {"type": "scale", "scale": steps + list(grid.spacing)},
                    {"type": "translation", "translation": [0.0] * len(lead) + [*grid.origin]},
                ],
            }
            for path, grid in levels
        ],
        "type": "mode" if is_label else "mean",
    }
    if version == "0.4":
        multiscale["version"] = version
    attributes: dict[str, Any] = {"version": version} if version == "0.5" else {}
    attributes["multiscales"] = [multiscale]
    if is_label:
        attributes["image-label"] = {**(label_metadata or {}), "source": {"image": "../../"}}
        attributes["image-label"].pop("version", None)
        attributes["image-label"] |= {"version": version} if version == "0.4" else {}
    elif "c" in axes or omero or channels != ("0",):
        attributes["omero"] = _omero(omero, omero_channels, channels, dtype)
    return attributes


def _axis(axis: str, time_unit: str | None) -> dict[str, str]:
    """Return the description of one axis."""
    unit = "micrometer" if axis in AXES else time_unit if axis == "t" else None
    return {"name": axis, "type": _KINDS[axis], **({"unit": unit} if unit else {})}


def _omero(
    omero: Mapping[str, Any] | None,
    sources: Sequence[int] | None,
    channels: tuple[str, ...],
    dtype: np.dtype[Any],
) -> dict[str, Any]:
    """Return display settings: those given, what they lack filled in."""
    given = dict(omero or {})
    listed = given.get("channels")
    old = [e if isinstance(e, dict) else {} for e in listed] if isinstance(listed, list) else []
    if sources is not None:
        old = [old[source] if source < len(old) else {} for source in sources]
    elif len(old) != len(channels):
        # Some channels of an image were taken: their names tell which, where each is another.
        labels = [entry.get("label") for entry in old]
        old = [old[labels.index(name)] if labels.count(name) == 1 else {} for name in channels]
    given["channels"] = [
        _channel(number, name, entry, dtype)
        for number, (name, entry) in enumerate(zip(channels, old, strict=True))
    ]
    # The plane and time to show first may not exist in this image.
    if isinstance(given.get("rdefs"), dict):
        given["rdefs"] = {
            key: value for key, value in given["rdefs"].items() if key not in _POSITIONS
        }
    return given


def _channel(
    number: int, name: str, given: Mapping[str, Any], dtype: np.dtype[Any]
) -> dict[str, Any]:
    """Return the display settings of one channel."""
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    low = float(limits.min) if limits else 0.0
    high = float(limits.max) if limits else 1.0
    window = {"min": low, "max": high, "start": max(0.0, low), "end": high}
    kept = given.get("window")
    colour = str(given.get("color", "")).lstrip("#")
    return {
        "active": True,
        **given,
        "color": colour if _HEX.fullmatch(colour) else _COLOURS[number % len(_COLOURS)],
        "window": window | (kept if isinstance(kept, dict) else {}),
        "label": name,
    }
