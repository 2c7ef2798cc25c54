"""Types of voxels around the compiled samplers: what is converted, how, and at what cost.

Order 0 moves bit patterns, so any type stays exact. The others compute in float64; they read
and write the common types themselves, and the rest passes through a block of floats.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilereg.block_map import make_scratch
from tilereg.errors import InputError
from tilereg.kernels.interpolation import BlockMap, sample_cubic, sample_linear, sample_nearest
from tilereg.kernels.prefilter import PREFILTER_RADIUS, filter_axis, mirrored, prefilter_weights
from tilereg.windows import Window

__all__ = ["check_dtype", "check_fill_value", "resample", "resampling_bytes"]

Array = NDArray[Any]

# Types that the samplers read and write themselves; each is compiled when it first comes.
_DIRECT = tuple(np.dtype(t) for t in ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"))
# Types whose every value float32 holds exactly.
_IN_FLOAT32 = tuple(np.dtype(t) for t in ("?", "u1", "i1", "u2", "i2", "f2", "f4"))
# Voxels converted at a time, so that conversions need no memory worth counting.
_SLAB = 2**14


def check_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in this machine's byte order.

    Raises
    ------
    InputError
        If it is not bool, integer or float of up to 64 bits.
    """
    native = np.dtype(dtype).newbyteorder("=")
    if native.kind not in "biuf" or native.itemsize > 8:
        raise InputError(
            f"Invalid type {dtype} of voxels. Bool, integers and floats of up to 64 bits can be "
            "warped."
        )
    return native


def check_fill_value(fill_value: float, dtype: np.dtype[Any]) -> Any:
    """Return the fill value as a scalar of `dtype`.

    Raises
    ------
    InputError
        If the type cannot hold it: a fraction, NaN or a number out of range for integers.
    """
    if dtype.kind == "f":
        return dtype.type(fill_value)
    low, high = _limits(dtype)
    whole = math.isfinite(fill_value) and int(fill_value) == fill_value
    if not (whole and low <= fill_value <= high):
        raise InputError(
            f"Invalid fill_value {fill_value}. An image of type {dtype} holds whole numbers from "
            f"{low} to {high}."
        )
    return dtype.type(int(fill_value))


def resample(
    source: Array,
    window: Window,
    shape: tuple[int, ...],
    block: BlockMap,
    out_shape: tuple[int, ...],
    *,
    order: int,
    fill: Any,
) -> tuple[Array, int]:
    """Return the block that `block` maps and how many of its voxels lacked samples.

    Parameters
    ----------
    source : (s_z, s_y, s_x) ndarray
        Voxels of the moving volume in `window`.
    window : Window
        With three axes, as all shapes here.
    shape : (3,) ints
        Of the whole moving volume.
    block : BlockMap
    out_shape : (3,) ints
    order : {0, 1, 3}
    fill : scalar of the type of the result

    Returns
    -------
    ndarray of the type of `fill`, int
    """
    source = source.astype(check_dtype(source.dtype), copy=False)
    dtype = fill.dtype
    sizes = np.asarray(shape, dtype=np.int64)
    scratch = make_scratch(block)
    if order == 0:
        bits = np.dtype(f"u{dtype.itemsize}")
        out = np.empty(out_shape, dtype=dtype)
        values = _frozen(_convert(source, fill)).view(bits)
        start = np.asarray(window.start, dtype=np.int64)
        missing = sample_nearest(
            values, start, sizes, block, scratch, fill.view(bits), out.view(bits)
        )
        return out, missing
    read, write = _sampled_dtypes(source.dtype, dtype, order)
    sample = sample_linear if order == 1 else sample_cubic
    if order == 3:
        source, window = _prefilter(source, window, shape, read)
    values = _frozen(source.astype(read, copy=False))
    start = np.asarray(window.start, dtype=np.int64)
    out = np.empty(out_shape, dtype=write)
    # Integers that pass through floats are marked by NaN where they get the fill value.
    exact = write == dtype or dtype.kind == "f"
    blank = write.type(fill if exact else np.nan)
    rounded = write.kind in "iu"
    limits = _limits(write) if rounded else (-math.inf, math.inf)
    bounds = (float(limits[0]), float(limits[1]))
    missing = sample(values, start, sizes, block, scratch, blank, bounds, rounded, out)
    return _convert(out, fill), missing


def resampling_bytes(
    source_shape: tuple[int, ...],
    source_dtype: np.dtype[Any],
    out_shape: tuple[int, ...],
    out_dtype: np.dtype[Any],
    order: int,
) -> int:
    """Return the most bytes that source, result and all between them take at once.

    Parameters
    ----------
    source_shape, out_shape : (D,) ints
    source_dtype, out_dtype : dtype
    order : {0, 1, 3}
    """
    num_read, num_written = math.prod(source_shape), math.prod(out_shape)
    bytes_read, bytes_written = (
        num_read * source_dtype.itemsize,
        num_written * out_dtype.itemsize,
    )
    if order == 0:
        converted = num_read * out_dtype.itemsize if source_dtype != out_dtype else 0
        return bytes_read + converted + bytes_written
    read, write = _sampled_dtypes(source_dtype, out_dtype, order)
    sampled = num_written * write.itemsize
    total = sampled + (bytes_written if write != out_dtype else 0)
    if order == 3:
        # Two blocks of coefficients, one axis filtered and the next; one is left to sample.
        return bytes_read + max(2 * num_read * read.itemsize, num_read * read.itemsize + total)
    return bytes_read + total + (num_read * read.itemsize if read != source_dtype else 0)


def _sampled_dtypes(
    source_dtype: np.dtype[Any], out_dtype: np.dtype[Any], order: int
) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Return the types that the sampler of order 1 or 3 reads and writes."""
    work = np.dtype(np.float32 if source_dtype in _IN_FLOAT32 else np.float64)
    read = source_dtype if order == 1 and source_dtype in _DIRECT else work
    # The samplers cannot turn NaN into an integer.
    may_be_nan = source_dtype.kind == "f" and out_dtype.kind != "f"
    return read, out_dtype if out_dtype in _DIRECT and not may_be_nan else work


def _prefilter(
    source: Array, window: Window, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[Array, Window]:
    """Return spline coefficients and their window, which is smaller by the filter's radius."""
    half = prefilter_weights().astype(dtype)
    start, stop = list(window.start), list(window.stop)
    for axis, length in enumerate(shape):
        start[axis] += PREFILTER_RADIUS if start[axis] > 0 else 0
        stop[axis] -= PREFILTER_RADIUS if stop[axis] < length else 0
    found = Window(tuple(start), tuple(stop))
    values = source.astype(dtype)
    if found.is_empty:
        return np.empty(found.shape, dtype=dtype), found
    for axis, length in enumerate(shape):
        if length == 1:
            continue
        first, last = start[axis] - PREFILTER_RADIUS, stop[axis] + PREFILTER_RADIUS
        rows = mirrored(first, last, length) - window.start[axis]
        out_shape = [*values.shape]
        out_shape[axis] = found.shape[axis]
        out = np.empty(out_shape, dtype=dtype)
        line = np.empty(len(rows), dtype=dtype)
        filter_axis(values, axis, rows, half, line, out)
        values = out
    return values, found


def _frozen(array: Array) -> Array:
    """Return a contiguous read-only view: one type for the compiler, whatever comes in."""
    view = np.ascontiguousarray(array).view()
    view.setflags(write=False)
    return view


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the smallest and the largest value of bool or an integer type."""
    if dtype.kind == "b":
        return 0, 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _convert(array: Array, fill: Any) -> Array:
    """Return the array in the type of `fill`: rounded, saturated, NaN as the fill value."""
    dtype = fill.dtype
    if array.dtype == dtype:
        return array
    out = np.empty(array.shape, dtype=dtype)
    flat, target = array.reshape(-1), out.reshape(-1)
    for begin in range(0, flat.size, _SLAB):
        part = flat[begin : begin + _SLAB]
        with np.errstate(over="ignore"):
            target[begin : begin + _SLAB] = part if dtype.kind == "f" else _whole(part, fill)
    return out


def _whole(part: Array, fill: Any) -> Array:
    """Return numbers as bools or integers of the type of `fill`."""
    low, high = _limits(fill.dtype)
    if part.dtype.kind == "b":
        part = part.astype(np.uint8)
    if part.dtype.kind in "iu":
        own_low, own_high = _limits(part.dtype)
        return np.clip(part, max(low, own_low), min(high, own_high)).astype(fill.dtype)
    # The limits as floats must not lie beyond the type's own: the conversion would wrap round.
    largest = part.dtype.type(high)
    if int(largest) > high:
        largest = np.nextafter(largest, part.dtype.type(0))
    blank = np.isnan(part)
    clipped = np.clip(np.rint(np.where(blank, 0, part)), part.dtype.type(low), largest)
    converted = clipped.astype(fill.dtype)
    converted[blank] = fill
    return converted
