"""How an image to be written is laid out: axes, chunks, shards, codecs, array documents."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import DTypeLike
from zarr.storage import MemoryStore

from tilereg.errors import InputError
from tilereg.grid import AXES, Grid
from tilereg.io.reading import Level

__all__ = [
    "COMPRESSIONS",
    "ArrayStyle",
    "check_axes",
    "check_dtype",
    "check_fill_value",
    "chunk_sizes",
    "plan_level",
]

COMPRESSIONS = ("zstd", "none", "gzip", "blosc-lz4", "blosc-zstd")

_CHUNKS_2D = (512, 512)
_CHUNKS_3D = (64, 128, 128)


def check_axes(
    axes: Sequence[str] | None, grid: Grid, num_channels: int, num_times: int
) -> tuple[str, ...]:
    """Return the axes of the arrays, by default those that are needed.

    Raises
    ------
    InputError
        If they are not in the order t, c, z, y, x, do not end with the axes of the grid, or
        have no room for the channels or times.
    """
    needed = ("t",) * (num_times > 1) + ("c",) * (num_channels > 0) + grid.axes
    if axes is None:
        return needed
    given = tuple(axes)
    allowed = [lead + grid.axes for lead in ((), ("c",), ("t",), ("t", "c"))]
    if given not in allowed:
        raise InputError(
            f"Invalid axes {given}. They must be {grid.axes}, as in the grid, with any of t and c "
            "in front, in this order."
        )
    if ("t" not in given and num_times > 1) or ("c" not in given and num_channels > 1):
        raise InputError(
            f"Axes {given} have no room for {num_times} times and {max(1, num_channels)} "
            f"channels. Use {needed}."
        )
    return given


def check_dtype(dtype: DTypeLike, *, is_label: bool) -> np.dtype[Any]:
    """Return the type of a voxel in this machine's byte order.

    Raises
    ------
    InputError
        If it is no real number, or for labels no integer.
    """
    kind = np.dtype(dtype)
    allowed = "iu" if is_label else "biuf"
    if kind.kind not in allowed or kind.itemsize > 8:
        rule = "Labels must be integers" if is_label else "Voxels must be real numbers"
        raise InputError(f"Invalid dtype {kind}. {rule} of at most 64 bits.")
    return kind.newbyteorder("=")


def check_fill_value(fill_value: float, dtype: np.dtype[Any]) -> None:
    """Check that voxels can have this value.

    Raises
    ------
    InputError
        If they cannot.
    """
    if dtype.kind == "f":
        return
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not (low <= fill_value <= high and fill_value == int(fill_value)):
        raise InputError(
            f"Invalid fill value {fill_value}. Voxels of {dtype} are whole numbers from {low} to "
            f"{high}."
        )


def chunk_sizes(
    shape: tuple[int, ...],
    chunks: Sequence[int] | None,
    shards: Sequence[int] | None,
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return the spatial chunks and shards of a level: as asked, clipped to its shape.

    Raises
    ------
    InputError
        If a size is below one, an axis is missing, or a shard is not a multiple of a chunk.
    """
    if chunks is None:
        flat = len(shape) == 2 or shape[0] == 1
        chunks = (1, *_CHUNKS_2D)[-len(shape) :] if flat else _CHUNKS_3D
    _check_sizes("chunks", chunks, shape)
    clipped = tuple(min(int(c), n) for c, n in zip(chunks, shape, strict=True))
    if shards is None:
        return clipped, None
    _check_sizes("shards", shards, shape)
    if any(s % c for s, c in zip(shards, chunks, strict=True)):
        raise InputError(
            f"Invalid shards {tuple(shards)}. Every axis must be a multiple of the chunks "
            f"{tuple(chunks)}."
        )
    counts = [
        min(int(s) // int(c), math.ceil(n / k))
        for s, c, n, k in zip(shards, chunks, shape, clipped, strict=True)
    ]
    return clipped, tuple(k * count for k, count in zip(clipped, counts, strict=True))


def _check_sizes(name: str, sizes: Sequence[int], shape: tuple[int, ...]) -> None:
    """Check that sizes are whole numbers above zero, one an axis."""
    whole = all(isinstance(n, (int, np.integer)) and n > 0 for n in sizes)
    if not whole or len(sizes) != len(shape):
        raise InputError(
            f"Invalid {name} {tuple(sizes)}. One whole number above zero for each of the "
            f"{len(shape)} axes {AXES[-len(shape) :]} is needed."
        )


@dataclass(frozen=True, kw_only=True)
class ArrayStyle:
    """What the arrays of all levels have in common.

    Parameters
    ----------
    axes : tuple of str
        In the order of the arrays; the spatial ones are last.
    lead_shape : tuple of int
        Numbers of times and channels, where they are axes.
    dtype : dtype
        Of a voxel.
    chunks, shards : tuple of int or None
        Of the spatial axes, as asked for.
    compression : str
        One of `COMPRESSIONS`.
    fill_value : float
        Of voxels that are not stored.
    zarr_format : {2, 3}
        Of the documents.
    """

    axes: tuple[str, ...]
    lead_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None
    shards: tuple[int, ...] | None
    compression: str
    fill_value: float
    zarr_format: Literal[2, 3]


def plan_level(path: str, grid: Grid, style: ArrayStyle) -> Level:
    """Return the level of a grid with its array's document, as zarr itself would write it."""
    chunks, shards = chunk_sizes(grid.shape, style.chunks, style.shards)
    ones = (1,) * len(style.lead_shape)
    documents: dict[str, Any] = {}
    v3 = style.zarr_format == 3
    zarr.create_array(
        MemoryStore(store_dict=documents),
        shape=style.lead_shape + grid.shape,
        dtype=style.dtype,
        chunks=ones + chunks,
        shards=None if shards is None else ones + shards,
        compressors=_compressors(style.compression, style.zarr_format, style.dtype),
        filters=None,
        fill_value=style.dtype.type(style.fill_value).item(),
        zarr_format=style.zarr_format,
        chunk_key_encoding={"name": "default" if v3 else "v2", "separator": "/"},
        dimension_names=style.axes if v3 else None,
    )
    text = documents["zarr.json" if v3 else ".zarray"].to_bytes().decode()
    return Level(
        path=path,
        grid=grid,
        shape=style.lead_shape + grid.shape,
        dtype=style.dtype,
        chunks=chunks,
        shards=shards,
        document=json.dumps(json.loads(text), sort_keys=True),
    )


def _compressors(name: str, zarr_format: int, dtype: np.dtype[Any]) -> dict[str, Any] | None:
    """Return the codec of a compression in the words of zarr 2 or 3."""
    if name == "none":
        return None
    shuffles = dtype.itemsize > 1
    if zarr_format == 2:
        if name in ("zstd", "gzip"):
            return {"id": name, "level": 1 if name == "zstd" else 5}
        cname = name.removeprefix("blosc-")
        return {"id": "blosc", "cname": cname, "clevel": 5, "shuffle": int(shuffles)}
    if name == "zstd":
        # The checksum tells a damaged chunk from a good one.
        return {"name": "zstd", "configuration": {"level": 1, "checksum": True}}
    if name == "gzip":
        return {"name": "gzip", "configuration": {"level": 5}}
    return {
        "name": "blosc",
        "configuration": {
            "cname": name.removeprefix("blosc-"),
            "clevel": 5,
            "shuffle": "shuffle" if shuffles else "noshuffle",
            "typesize": dtype.itemsize,
            "blocksize": 0,
        },
    }
