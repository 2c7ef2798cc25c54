"""Warp an array lazily: one Dask task an output chunk."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
from dask._task_spec import DataNode, Task, TaskRef
from dask.array.core import normalize_chunks
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import ArrayLike, NDArray

from tilereg.errors import InputError
from tilereg.grid import Grid
from tilereg.transform import Transform
from tilereg.warping import WarpPlan, WarpTask
from tilereg.windows import Window, iter_windows

__all__ = ["warp"]

Chunks = tuple[tuple[int, ...], ...]


def warp(
    image: ArrayLike | da.Array,
    transform: Transform,
    *,
    like: Grid,
    grid: Grid | None = None,
    order: int = 1,
    fill_value: float = 0,
    chunks: Any = "auto",
) -> da.Array:
    """Resample an image onto another grid, lazily.

    Every output chunk is one task. It takes the chunks of `image` that its source window meets
    and copies no more of them than that window.

    Parameters
    ----------
    image : (Z, Y, X) or (Y, X) ndarray or dask.array.Array
        The moving image. Anything else that has a shape and a type, such as an array on disk,
        is read by chunks as ``dask.array.from_array`` does.
    transform : Transform
        From the world of `like` to the world of `image`, micrometre.
    like : Grid
        Of the output.
    grid : Grid, optional
        Of `image`. Default: spacing 1 and origin 0.
    order : {0, 1, 3}
        Nearest voxel, linear, cubic B-spline. Default 1.
    fill_value : scalar
        Value outside of the image. Default 0.
    chunks : as in Dask
        Of the output. Default: Dask's own choice.

    Returns
    -------
    dask.array.Array of the shape of `like` and the type of `image`
        The same, to the last bit, for any chunks of image and output.

    Raises
    ------
    InputError
        If numbers of axes or shapes differ, or a setting is not valid.

    Notes
    -----
    All tasks are planned at once, in about a millisecond each. Volumes on disk of more than some
    ten thousand chunks are better warped by `tilereg.register` or ``tilereg warp``, which plan
    as they go.

    Examples
    --------
    >>> shift = Transform.identity(2)
    >>> warp(np.eye(3), shift, like=Grid(shape=(2, 2), origin=(1, 0))).compute()
    array([[0., 1.],
           [0., 0.]])
    """
    source = _as_dask(image)
    moving_grid = Grid(shape=source.shape) if grid is None else grid
    if moving_grid.shape != source.shape:
        raise InputError(
            f"The image has shape {source.shape}, its grid has {moving_grid.shape}. They must be "
            "the same."
        )
    plan = WarpPlan(
        transform=transform,
        grid=like,
        moving_grid=moving_grid,
        dtype=source.dtype,
        order=order,
        fill_value=fill_value,
    )
    out_chunks = normalize_chunks(chunks, shape=like.shape, dtype=plan.dtype)
    name = f"warp-{tokenize(source.name, plan, out_chunks)}"
    layer = _tasks(name, source, plan, out_chunks)
    below: list[Any] = [source]  # An array is no collection to a checker of types.
    graph = HighLevelGraph.from_collections(name, layer, dependencies=below)
    meta = np.empty((0,) * like.ndim, dtype=plan.dtype)
    return da.Array(graph, name, out_chunks, meta=meta)


def _as_dask(image: ArrayLike | da.Array) -> da.Array:
    """Return the image as a dask array with known chunks."""
    plain = image if hasattr(image, "shape") else np.asarray(image)
    array = image if isinstance(image, da.Array) else da.from_array(plain)
    if any(np.isnan(n) for sizes in array.chunks for n in sizes):
        raise InputError(
            "The image has chunks of unknown size. Call its compute_chunk_sizes() first."
        )
    return array


def _tasks(
    name: str, source: da.Array, plan: WarpPlan, chunks: Chunks
) -> dict[Any, DataNode | Task]:
    """Return the graph's layer: the plan once, and one task an output chunk."""
    shared = f"{name}-plan"
    layer: dict[Any, DataNode | Task] = {shared: DataNode(shared, plan)}
    edges = [list(itertools.accumulate(sizes, initial=0)) for sizes in source.chunks]
    for task in plan.tasks(iter_windows(plan.grid.shape, chunks)):
        key = (name, *task.index)
        met = list(_meeting(task.source, edges))
        blocks = [TaskRef((source.name, *index)) for index, _ in met]
        windows = [window for _, window in met]
        layer[key] = Task(key, _warp_chunk, TaskRef(shared), task, windows, *blocks)
    return layer


def _meeting(window: Window, edges: list[list[int]]) -> Iterator[tuple[tuple[int, ...], Window]]:
    """Walk over the chunks that a window meets: index and window of each."""
    if window.is_empty:
        return
    ranges = [
        range(bisect_right(e, a) - 1, bisect_right(e, b - 1))
        for e, a, b in zip(edges, window.start, window.stop, strict=True)
    ]
    for index in itertools.product(*ranges):
        start = tuple(e[i] for e, i in zip(edges, index, strict=True))
        stop = tuple(e[i + 1] for e, i in zip(edges, index, strict=True))
        yield index, Window(start, stop)


def _warp_chunk(
    plan: WarpPlan, task: WarpTask, windows: list[Window], *blocks: NDArray[Any]
) -> NDArray[Any]:
    """Put the source window together from the chunks that it meets, and warp it."""
    source = np.empty(task.source.shape, dtype=plan.dtype)
    for window, block in zip(windows, blocks, strict=True):
        part = window.intersect(task.source)
        inside = np.asarray(block)[part.relative_to(window).slices]
        source[part.relative_to(task.source).slices] = inside
    return plan.warp(source, task.source, task.window)
