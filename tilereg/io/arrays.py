"""Zarr arrays made from their metadata alone, once a process, and the errors of reading them."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.storage import StorePath

from tilereg.errors import ImageError
from tilereg.io.stores import Location, one_line
from tilereg.io.truncation import WholeChunks, is_blosc

__all__ = ["array_of", "parse_array", "read_box"]

Box = tuple[tuple[int, int], ...]


@functools.lru_cache(maxsize=32)
def _store(location: Location, read_only: bool, process: int) -> Store:
    """Return the zarr store of a location; a forked process gets its own connections."""
    return location.store(read_only=read_only)


@functools.lru_cache(maxsize=128)
def _array(
    location: Location, path: str, metadata: str, read_only: bool, process: int
) -> zarr.Array[Any]:
    """Return the array that `array_of` keeps for this process."""
    document = json.loads(metadata)
    store = _store(location, read_only, process)
    if read_only:
        store = WholeChunks(store, blosc=is_blosc(document))
    return zarr.Array.from_dict(StorePath(store, path), document)


def array_of(location: Location, path: str, metadata: str, *, read_only: bool) -> zarr.Array[Any]:
    """Return the array at `path`, described by its metadata document; nothing is read.

    The document is part of the key, so an array that was replaced by another one is never
    taken for it.
    """
    return _array(location, path, metadata, read_only, os.getpid())


def parse_array(document: Mapping[str, Any], *, path: str, place: str) -> zarr.Array[Any]:
    """Return an array, only to look at its shape, type and chunks.

    Raises
    ------
    ImageError
        If zarr does not understand the document.
    """
    content = {key: value for key, value in document.items() if key != "consolidated_metadata"}
    try:
        return zarr.Array.from_dict(StorePath(zarr.storage.MemoryStore(), path), content)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise ImageError(
            f"The array '{path}' of '{place}' cannot be understood ({one_line(error)}). Its "
            "metadata are damaged, or of a kind that this version of zarr does not read."
        ) from error


def read_box(array: zarr.Array[Any], box: Box, *, place: str) -> NDArray[Any]:
    """Read a half-open box of all axes.

    Raises
    ------
    ImageError
        If a chunk is damaged or cannot be reached; names the first such chunk.
    """
    try:
        return np.asarray(array[tuple(slice(a, b) for a, b in box)])
    except MemoryError:
        raise
    except Exception as error:
        # Codecs and storage backends raise classes of their own.
        raise _broken(array, box, place, error) from error


def _broken(array: zarr.Array[Any], box: Box, place: str, error: Exception) -> ImageError:
    """Return the error that names the first file in the box that cannot be read."""
    name = array.path or "/"
    for key, part in _files(array, box):
        try:
            array[tuple(slice(a, b) for a, b in part)]
        except Exception as one:
            if _is_transport(one):
                return ImageError(
                    f"File '{key}' of array '{name}' in '{place}' cannot be read "
                    f"({one_line(one)}). Check permissions and connection."
                )
            return ImageError(
                f"Chunk file '{key}' of array '{name}' in '{place}' is damaged "
                f"({one_line(one)}). Copy the image again."
            )
    return ImageError(
        f"Array '{name}' in '{place}' could not be read the first time ({one_line(error)}), but "
        "could be the second time. Check the connection and try again."
    )


def _is_transport(error: Exception) -> bool:
    """Tell a disk's or network's refusal from a damaged chunk."""
    # gzip's BadGzipFile is an OSError without a number.
    if isinstance(error, OSError):
        return error.errno is not None or isinstance(error, (PermissionError, TimeoutError))
    module = type(error).__module__.split(".")[0]
    return module in ("aiohttp", "botocore", "aiobotocore", "s3fs", "gcsfs", "fsspec")


def _files(array: zarr.Array[Any], box: Box) -> Iterator[tuple[str, Box]]:
    """Walk over the files (chunks, or shards) that a box touches: key, and box inside it."""
    sizes = array.shards or array.chunks
    ranges = [range(a // n, -(-b // n)) for (a, b), n in zip(box, sizes, strict=True)]
    for index in itertools.product(*ranges):
        part = tuple(
            (max(a, i * n), min(b, (i + 1) * n))
            for (a, b), i, n in zip(box, index, sizes, strict=True)
        )
        yield array.metadata.encode_chunk_key(index), part
