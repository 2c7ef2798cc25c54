"""Memory of a warp: what a task takes, and how a task too large for it is cut or refused.

All of it follows from the transform and the shapes, so it is known before anything is read. It
depends on the block and on how much the displacement varies inside of it, never on the volume.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilereg.errors import ResourceError
from tilereg.grid import Grid
from tilereg.kernels.prefilter import PREFILTER_RADIUS
from tilereg.summary import format_size
from tilereg.warping import WarpPlan
from tilereg.windows import ChunkWindow, Reader, Window

__all__ = ["check_memory", "cut_to_fit", "task_bytes", "warp_window"]

# Smaller parts would read more halo than block.
_SMALLEST_SIDE = 16


def task_bytes(plan: WarpPlan, window: Window) -> int:
    """Return the most bytes that warping a window at once takes, source and result included."""
    return plan.bytes_needed(plan.source_window(window).shape, window.shape)


def warp_window(
    plan: WarpPlan, reader: Reader, window: Window, *, limit: int | None = None
) -> NDArray[Any]:
    """Read, warp and return one block of the output, in parts if its memory asks for them.

    Parameters
    ----------
    plan : WarpPlan
    reader : Reader
        Of the moving volume.
    window : Window
        The output block.
    limit : int, optional
        Bytes that may be taken at once, the result included. Default: no limit.

    Returns
    -------
    ndarray of the window's shape; the same, to the last bit, whatever the limit

    Raises
    ------
    ResourceError
        If not even small parts fit.
    """
    parts = [window] if limit is None else cut_to_fit(plan, window, limit)
    if len(parts) == 1:
        return _warp_part(plan, reader, window)
    out = np.empty(window.shape, dtype=plan.dtype)
    for part in parts:
        out[part.relative_to(window).slices] = _warp_part(plan, reader, part)
    return out


def _warp_part(plan: WarpPlan, reader: Reader, window: Window) -> NDArray[Any]:
    """Read and warp a window at once; one that lies outside of the volume reads nothing."""
    source = plan.source_window(window)
    if source.is_empty:
        return np.full(window.shape, plan.fill_value, dtype=plan.dtype)
    return plan.warp(reader.read(source), source, window)


def cut_to_fit(plan: WarpPlan, window: Window, limit: int) -> list[Window]:
    """Return parts of a window that can be warped one after the other within a limit.

    The longest side is halved until what the part takes and the result of the whole window
    fit together.

    Raises
    ------
    ResourceError
        If parts of 16 voxels a side are still too large.
    """
    if task_bytes(plan, window) <= limit:
        return [window]
    result = window.size * plan.dtype.itemsize
    return _cut(plan, window, limit - result)


def _cut(plan: WarpPlan, window: Window, room: int) -> list[Window]:
    """Return parts of a window that take at most `room` bytes each."""
    needed = task_bytes(plan, window)
    if needed <= room:
        return [window]
    axis = int(np.argmax(window.shape))
    if window.shape[axis] <= _SMALLEST_SIDE:
        raise ResourceError(f"A part of {window.shape} voxels needs {format_size(needed)}.")
    middle = (window.start[axis] + window.stop[axis]) // 2
    halves = (
        Window(window.start, _replaced(window.stop, axis, middle)),
        Window(_replaced(window.start, axis, middle), window.stop),
    )
    return [part for half in halves for part in _cut(plan, half, room)]


def _replaced(corner: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    """Return a corner with one coordinate changed."""
    return (*corner[:axis], value, *corner[axis + 1 :])


def check_memory(plan: WarpPlan, units: Iterable[ChunkWindow], limit: int) -> int:
    """Refuse a plan that has a task that cannot be done within a limit, before anything runs.

    Parameters
    ----------
    plan : WarpPlan
    units : iterable of ChunkWindow
        The output blocks of the tasks; looked at one by one only where a bound for all blocks
        of their shape does not settle it.
    limit : int
        Bytes that one task may take.

    Returns
    -------
    int
        Bytes that no task exceeds, at most `limit`.

    Raises
    ------
    ResourceError
        Naming the first output block that does not fit.
    """
    most = 0
    bounds: dict[tuple[int, ...], int] = {}
    for unit in units:
        shape = unit.window.shape
        if shape not in bounds:
            bounds[shape] = plan.bytes_needed(_largest_source(plan, shape), shape)
        needed = bounds[shape]
        if needed > limit:
            needed = task_bytes(plan, unit.window)
        if needed > limit:
            _check_parts(plan, unit, limit, needed)
        most = max(most, min(needed, limit))
    return most


def _check_parts(plan: WarpPlan, unit: ChunkWindow, limit: int, needed: int) -> None:
    """Raise if a block does not even fit in parts."""
    try:
        cut_to_fit(plan, unit.window, limit)
    except ResourceError as error:
        raise ResourceError(
            f"One warp task needs {format_size(needed)}, more than the {format_size(limit)} of a "
            f"worker, and does not fit in parts either. {_reason(plan, unit)} Use smaller chunks "
            "or give workers more memory."
        ) from error


def _reason(plan: WarpPlan, unit: ChunkWindow) -> str:
    """Say what makes the source window of a block large."""
    low, high = _corners(plan.grid, unit.window)
    if plan.transform.field is None:
        shape = plan.source_window(unit.window).shape
        return f"Output chunk {unit.index} reads {shape} voxels of the moving volume."
    extremes = plan.transform.field.bounds(low, high)
    largest = float(np.max(np.abs(extremes)))
    return f"The largest |u| in output chunk {unit.index} is {largest:.3g} um."


def _corners(grid: Grid, window: Window) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the world positions of the first and the last voxel of a window."""
    return grid.to_world(window.start), grid.to_world(np.asarray(window.stop) - 1)


def _largest_source(plan: WarpPlan, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape that holds the source window of any block of a shape, wherever it lies."""
    spacing = np.asarray(plan.moving_grid.spacing)
    extent = (np.asarray(shape) - 1) * np.asarray(plan.grid.spacing)
    reach = np.abs(plan.transform.affine.matrix) @ extent
    if plan.transform.field is not None:
        coefficients = plan.transform.field.coefficients
        axes = tuple(range(coefficients.ndim - 1))
        reach = reach + np.ptp(coefficients, axis=axes)
    halo = 2 * (1 + PREFILTER_RADIUS) if plan.order == 3 else 0
    voxels = np.minimum(np.ceil(reach / spacing) + 3 + halo, plan.moving_grid.shape)
    return tuple(int(n) for n in voxels)
