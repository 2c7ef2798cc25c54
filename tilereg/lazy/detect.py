"""Detection on volumes larger than memory: on disk by chunks, or as a dask array.

Both call `Detector.detect`, the block function of the in-memory path, with the same resolved
detector; the spots are the same to the last bit on every path and for every chunking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.detector import Detector, Polarity
from tilereg.grid import Grid
from tilereg.lazy.execute import run_tasks
from tilereg.points import Spots
from tilereg.spots import ArrayReader, detect_array, plan_detector
from tilereg.windows import ChunkWindow, Reader, Window, iter_windows

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["DaskReader", "detect_chunk", "detect_spots", "detect_volume"]

Chunks = Sequence[int | Sequence[int]]


@dataclass(frozen=True)
class DaskReader:
    """A dask array, read by windows.

    Parameters
    ----------
    array : dask.array.Array
    """

    array: da.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels an axis."""
        return tuple(int(n) for n in self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Compute the voxels of a window."""
        return np.asarray(self.array[window.slices].compute())


def detect_chunk(reader: Reader, grid: Grid, detector: Detector, chunk: ChunkWindow) -> Spots:
    """Read a chunk with its halo and find the chunk's spots."""
    window = chunk.window.pad(detector.halo(grid)).clip(grid.shape)
    return detector.detect(reader.read(window), window, chunk.window, grid, chunk.number)


def detect_volume(
    reader: Reader,
    grid: Grid,
    detector: Detector,
    chunks: Chunks,
    *,
    client: Client | None = None,
    num_workers: int | None = None,
    progress: Callable[[ChunkWindow, Spots], None] | None = None,
) -> Spots:
    """Find the spots of a volume on disk, one task a chunk.

    Parameters
    ----------
    reader : Reader
        Safe to read from several threads; picklable where `client` is given.
    grid : Grid
        Of the volume.
    detector : Detector
        From `plan_detector`.
    chunks : (D,) ints or sequences of ints
        Chunk size an axis, or every chunk's size. Storage chunks or multiples of them read
        least.
    client : distributed.Client
        Where to run. Default: threads in this process.
    num_workers : int
        Threads in this process. Default: one a CPU.
    progress : callable
        Called in this process with each finished chunk and its spots, before `max_spots` of
        the detector drops any.

    Returns
    -------
    Spots
        Sorted by position; `chunk` is the rank of the owning chunk in `chunks`.

    Raises
    ------
    ImageError
        If a voxel is not finite or the volume cannot be read.

    Notes
    -----
    A task holds ``detector.bytes_needed(chunk_shape, grid, dtype)`` bytes.
    """
    detect = partial(detect_chunk, reader, grid, detector)
    parts = [Spots.empty(grid.ndim)]
    tasks = iter_windows(grid.shape, chunks)
    for chunk, spots in run_tasks(detect, tasks, client=client, num_workers=num_workers):
        parts.append(spots)
        if progress is not None:
            progress(chunk, spots)
    return detector.gather(parts)


def detect_spots(
    array: ArrayLike | da.Array,
    grid: Grid,
    *,
    sigma: ArrayLike | None = None,
    scales: Sequence[float] = (1.0,),
    threshold: float | None = None,
    polarity: Polarity = "bright",
    false_share: float = 0.05,
    max_spots: int | None = None,
) -> Spots:
    """Find the spots of an array: blobs darker or brighter than their surroundings.

    Parameters
    ----------
    array : (Z, Y, X) or (Y, X) ndarray or dask.array.Array
        Any integer or real floating type. A dask array is never in memory as a whole.
    grid : Grid
        Shape, spacing and origin of the array in micrometre.
    sigma : float or (D,) floats, micrometre
        Size of the spots (standard deviation). Default: found from the image.
    scales : sequence of float
        Factors on `sigma` to look for together. Default one size.
    threshold : float
        Height, in the image's units, of the faintest spot of the size looked for. Default:
        found from the image, one for all of it.
    polarity : {"bright", "dark"}
    false_share : float
        Share of false spots that the automatic threshold allows, 0 to 1.
    max_spots : int
        Keeps at most so many spots, those of highest response.

    Returns
    -------
    Spots
        Sorted by position. `chunk` is the rank of the owning dask chunk, 0 for other arrays.

    Raises
    ------
    InputError
        If a setting is out of range or the grid's shape is not the array's.
    ImageError
        If a voxel is not finite.

    Examples
    --------
    >>> z, y, x = np.ogrid[:20, :30, :30]
    >>> blob = 100 * np.exp(-((z - 9) ** 2 + (y - 12.25) ** 2 + (x - 20) ** 2) / 4.5)
    >>> spots = detect_spots(blob, Grid(shape=blob.shape, spacing=(2, 1, 1)), sigma=(3, 1.5, 1.5))
    >>> spots.positions.round(3)
    array([[18.  , 12.25, 20.  ]])
    """
    values = array if isinstance(array, da.Array) else np.asarray(array)
    detector = plan_detector(
        DaskReader(values) if isinstance(values, da.Array) else ArrayReader(values),
        grid,
        sigma=sigma,
        scales=scales,
        threshold=threshold,
        polarity=polarity,
        false_share=false_share,
        max_spots=max_spots,
    )
    if isinstance(values, da.Array):
        return _detect_dask(values, grid, detector)
    return detect_array(values, grid, detector=detector)


def _detect_dask(array: da.Array, grid: Grid, detector: Detector) -> Spots:
    """Find the spots of a dask array with ``map_overlap``; chunks smaller than the halo grow."""
    lazy: Any = da  # dask's functions carry no types
    overlap: Any = da.overlap
    chunks = tuple(
        ((n,) if h >= n else overlap.ensure_minimum_chunksize(h, sizes)) if h else sizes
        for h, n, sizes in zip(detector.halo(grid), grid.shape, array.chunks, strict=True)
    )
    found = lazy.map_overlap(
        partial(_detect_block, detector=detector, grid=grid, chunks=chunks, owners=array.chunks),
        lazy.rechunk(array, chunks),
        depth=dict(enumerate(_depth(detector, grid, chunks))),
        # No padding: at the image's faces the block ends and the filter repeats its voxels.
        boundary="none",
        trim=False,
        allow_rechunk=False,
        dtype=object,
        chunks=tuple((1,) * len(sizes) for sizes in chunks),
        meta=np.empty((0,) * grid.ndim, dtype=object),
    ).compute()
    return detector.gather([Spots.empty(grid.ndim), *found.ravel().tolist()])


def _depth(detector: Detector, grid: Grid, chunks: tuple[tuple[int, ...], ...]) -> list[int]:
    """Return the overlap of blocks, none along an axis of one chunk."""
    halo = detector.halo(grid)
    return [h if len(sizes) > 1 else 0 for h, sizes in zip(halo, chunks, strict=True)]


def _detect_block(
    block: NDArray[Any],
    block_id: tuple[int, ...],
    *,
    detector: Detector,
    grid: Grid,
    chunks: tuple[tuple[int, ...], ...],
    owners: tuple[tuple[int, ...], ...],
) -> NDArray[Any]:
    """Find the spots of one overlapping block; returns them in an object array of one item.

    `chunks` are those of the work, `owners` those of the caller's array.
    """
    start = tuple(sum(sizes[:i]) for sizes, i in zip(chunks, block_id, strict=True))
    shape = tuple(sizes[i] for sizes, i in zip(chunks, block_id, strict=True))
    core = Window(start, tuple(a + n for a, n in zip(start, shape, strict=True)))
    window = core.pad(_depth(detector, grid, chunks)).clip(grid.shape)
    spots, voxels = detector.find(block, window, core, grid)
    index = [
        np.searchsorted(np.cumsum(sizes), places, side="right")
        for sizes, places in zip(owners, voxels.T, strict=True)
    ]
    rank = np.ravel_multi_index(index, [len(sizes) for sizes in owners])
    out = np.empty((1,) * block.ndim, dtype=object)
    out[(0,) * block.ndim] = replace(spots, chunk=rank.astype(np.int64))
    return out
