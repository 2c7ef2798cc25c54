"""Resample a moving volume onto a fixed grid, block by block.

Voxel i of the output lies at x in the world; the transform takes it to x_moving, where the
moving volume is interpolated. A block needs only its source window, which is known before
anything is read. Positions come from global indices in float64, so the result does not depend
on how the output is cut into blocks, to the last bit and for every order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tilereg.block_map import map_block, position_bounds
from tilereg.errors import InputError
from tilereg.grid import Grid
from tilereg.kernels.prefilter import PREFILTER_RADIUS
from tilereg.resampling import check_dtype, check_fill_value, resample, resampling_bytes
from tilereg.transform import Transform
from tilereg.windows import ChunkWindow, Window

__all__ = [
    "ORDERS",
    "WarpPlan",
    "WarpTask",
    "source_window",
    "warp_array",
    "warp_block",
]

ORDERS = (0, 1, 3)

# Rows, weights and small objects of one block; measured by the tests.
_OVERHEAD = 2**20
# Three float64 each: the lattice twice, and the bounds' shifted copies, points and sums.
_BYTES_A_NODE = 24 * 16


@dataclass(frozen=True)
class WarpTask:
    """One output block and what it reads.

    Parameters
    ----------
    index : tuple of int
        Position in the grid of output chunks.
    number : int
        Its rank in C order.
    window : Window
        Voxels of the output.
    source : Window
        Voxels of the moving volume; empty where the block lies outside of it.
    """

    index: tuple[int, ...]
    number: int
    window: Window
    source: Window


@dataclass(frozen=True, kw_only=True)
class WarpPlan:
    """Everything that all blocks of a warp have in common.

    Parameters
    ----------
    transform : Transform
        From the fixed to the moving world.
    grid : Grid
        Of the output.
    moving_grid : Grid
        Of the moving volume.
    dtype : dtype
        Of the moving volume and of the output.
    order : {0, 1, 3}
        Nearest voxel, linear, cubic B-spline. Default 1.
    fill_value : scalar
        Value outside of the moving volume. Default 0.

    Raises
    ------
    InputError
        If the numbers of axes differ, the order or the type is not supported, or the type
        cannot hold the fill value.
    """

    transform: Transform
    grid: Grid
    moving_grid: Grid
    dtype: np.dtype[Any]
    order: int = 1
    fill_value: float = 0

    def __post_init__(self) -> None:
        """Check all fields together."""
        object.__setattr__(self, "dtype", check_dtype(self.dtype))
        _check_order(self.order)
        _check_ndim(self.transform, self.grid, self.moving_grid)
        check_fill_value(self.fill_value, self.dtype)

    def source_window(self, window: Window) -> Window:
        """Return what the block at `window` reads."""
        return source_window(self.transform, self.grid, window, self.moving_grid, self.order)

    def task(self, chunk: ChunkWindow) -> WarpTask:
        """Return the work for one chunk of the output."""
        source = self.source_window(chunk.window)
        return WarpTask(chunk.index, chunk.number, chunk.window, source)

    def tasks(self, chunks: Iterable[ChunkWindow]) -> Iterator[WarpTask]:
        """Walk over the work for chunks of the output, lazily."""
        return map(self.task, chunks)

    def bytes_needed(self, source_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> int:
        """Return the most bytes that `warp` takes at once, its source and its result included."""
        arrays = resampling_bytes(source_shape, self.dtype, out_shape, self.dtype, self.order)
        return arrays + self._lattice_bytes(out_shape) + _OVERHEAD

    def _lattice_bytes(self, out_shape: tuple[int, ...]) -> int:
        """Return the bytes of the lattice nodes below a block and of what is made from them."""
        field = self.transform.field
        if field is None:
            return 0
        reach = np.asarray(out_shape) * np.asarray(self.grid.spacing) / field.spacing + 5
        num_nodes = np.maximum(np.minimum(reach, field.nodes), 4).prod()
        return int(_BYTES_A_NODE * num_nodes)

    def warp(self, source: NDArray[Any], source_window: Window, window: Window) -> NDArray[Any]:
        """Return the output block at `window` from the voxels in `source_window`."""
        return warp_block(
            source,
            source_window,
            self.transform,
            self.grid,
            window,
            self.moving_grid,
            order=self.order,
            fill_value=self.fill_value,
            out_dtype=self.dtype,
        )


def warp_array(
    image: ArrayLike,
    transform: Transform,
    *,
    like: Grid,
    grid: Grid | None = None,
    order: int = 1,
    fill_value: float = 0,
) -> NDArray[Any]:
    """Resample a whole array in memory onto another grid.

    Parameters
    ----------
    image : (Z, Y, X) or (Y, X) array_like
        The moving image.
    transform : Transform
        From the world of `like` to the world of `image`.
    like : Grid
        Of the output.
    grid : Grid, optional
        Of `image`. Default: spacing 1 and origin 0.
    order, fill_value
        As in `warp_block`.

    Returns
    -------
    ndarray of the shape of `like` and the type of `image`

    Examples
    --------
    >>> from tilereg.transform import Affine
    >>> shift = Transform(Affine(np.eye(2), [0.0, 1.0]))
    >>> warp_array([[1, 2, 3]], shift, like=Grid(shape=(1, 3)), fill_value=9)
    array([[2, 3, 9]])
    """
    array = np.asarray(image)
    moving_grid = Grid(shape=array.shape) if grid is None else grid
    if moving_grid.shape != array.shape:
        raise InputError(
            f"The image has shape {array.shape}, its grid has {moving_grid.shape}. They must be "
            "the same."
        )
    window = source_window(transform, like, like.window, moving_grid, order)
    return warp_block(
        array[window.slices],
        window,
        transform,
        like,
        like.window,
        moving_grid,
        order=order,
        fill_value=fill_value,
    )


def source_window(
    transform: Transform, output_grid: Grid, window: Window, moving_grid: Grid, order: int = 1
) -> Window:
    """Return which voxels of the moving volume a block of the output can need.

    A true bound, not a guess from corners or sides: in each cell of the lattice, the
    displacement lies between the spline's smallest and largest Bezier point, and the affine part
    is extreme at the corners of the cell's voxels. The box around all cells of the block, padded
    by the reach of the interpolation, is clipped to the volume.

    Parameters
    ----------
    transform : Transform
    output_grid : Grid
    window : Window
        The block, inside `output_grid`.
    moving_grid : Grid
    order : {0, 1, 3}
        Order 3 reads `PREFILTER_RADIUS` more voxels on every side for its prefilter.

    Returns
    -------
    Window
        Empty where the block lies outside of the moving volume.
    """
    _check_order(order)
    _check_ndim(transform, output_grid, moving_grid)
    nothing = Window((0,) * window.ndim, (0,) * window.ndim)
    if window.is_empty:
        return nothing
    low, high = position_bounds(map_block(transform, output_grid, window, moving_grid))
    low, high = low[3 - window.ndim :], high[3 - window.ndim :]
    last = np.asarray(moving_grid.shape) - 1.0
    if (high < -0.5).any() or (low > last + 0.5).any():
        return nothing
    low, high = np.clip(low, 0.0, last), np.clip(high, 0.0, last)
    if order == 0:
        first, stop = np.floor(low + 0.5), np.floor(high + 0.5) + 1
    else:
        reach = 0 if order == 1 else 1 + PREFILTER_RADIUS
        first, stop = np.floor(low) - reach, np.ceil(high) + 1 + reach
    found = Window(tuple(int(i) for i in first), tuple(int(i) for i in stop))
    return found.clip(moving_grid.shape)


def warp_block(
    source: NDArray[Any],
    source_window: Window,
    transform: Transform,
    grid: Grid,
    window: Window,
    moving_grid: Grid,
    *,
    order: int = 1,
    fill_value: float = 0,
    out_dtype: DTypeLike | None = None,
) -> NDArray[Any]:
    """Return one block of the warped volume.

    A voxel whose position in the moving volume lies outside of ``[-0.5, n - 0.5]`` voxels on any
    axis gets `fill_value`; inside, positions between the outermost voxel's centre and its rim
    take the value of the nearest position between centres. Integers round half to even and
    saturate. Order 0 moves values without touching them, so labels of any type stay exact; order
    1 and 3 pass 64-bit integers through float64. A NaN reaches the voxels that depend on it and
    no others: with order 3, those within 14 voxels.

    Parameters
    ----------
    source : ndarray
        The moving volume's voxels in `source_window`; any type of bool, integer or float.
    source_window : Window
        As the function `source_window` returns it, or larger.
    transform : Transform
        From the fixed to the moving world.
    grid : Grid
        Of the output.
    window : Window
        The output block.
    moving_grid : Grid
        Of the whole moving volume.
    order : {0, 1, 3}
        Nearest voxel, linear, cubic B-spline with prefilter and mirrored rims.
    fill_value : scalar
        Must be a value of `out_dtype`.
    out_dtype : dtype, optional
        Default: the type of `source`.

    Returns
    -------
    ndarray of the shape of `window`

    Raises
    ------
    InputError
        If shapes do not fit, the order or a type is not supported, or `source_window` lacks
        voxels that the block needs.
    """
    _check_order(order)
    _check_ndim(transform, grid, moving_grid)
    dtype = check_dtype(source.dtype if out_dtype is None else np.dtype(out_dtype))
    fill = check_fill_value(fill_value, dtype)
    if source.shape != source_window.shape:
        raise InputError(
            f"The source block has shape {source.shape}, its window has {source_window.shape}. "
            "Read exactly the source window."
        )
    if window.is_empty or source_window.is_empty:
        return np.full(window.shape, fill, dtype=dtype)
    lead = (1,) * (3 - window.ndim)
    out, missing = resample(
        source.reshape(lead + source.shape),
        _with_z(source_window),
        lead + moving_grid.shape,
        map_block(transform, grid, window, moving_grid),
        lead + window.shape,
        order=order,
        fill=fill,
    )
    if missing:
        raise InputError(
            f"{missing} voxels of output block {window.start}..{window.stop} need voxels outside "
            f"of source window {source_window.start}..{source_window.stop}. Read the window that "
            "source_window() returns."
        )
    return out.reshape(window.shape)


def _check_order(order: int) -> None:
    """Refuse orders that have no sampler."""
    if order not in ORDERS:
        raise InputError(
            f"Invalid order {order}. Use 0 (nearest voxel, for labels), 1 (linear) or 3 (cubic)."
        )


def _check_ndim(transform: Transform, grid: Grid, moving_grid: Grid) -> None:
    """Refuse a mix of two and three axes."""
    if not transform.ndim == grid.ndim == moving_grid.ndim:
        raise InputError(
            f"The transform has {transform.ndim} axes, the output grid {grid.ndim} and the moving "
            f"grid {moving_grid.ndim}. They must be the same."
        )


def _with_z(window: Window) -> Window:
    """Return the window with three axes."""
    lead = 3 - window.ndim
    return Window((0,) * lead + window.start, (1,) * lead + window.stop)
