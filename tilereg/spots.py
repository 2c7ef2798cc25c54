"""Detection of spots: choose size and threshold from the image, then look for them.

`plan_detector` looks at a sample of blocks and gives a resolved `Detector`; `detect_array`
runs one over an array in memory. The volumes on disk are in `tilereg.lazy.detect`.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.detector import Detector, Polarity, as_sigma, as_signal, rim_width, sort_spots
from tilereg.errors import InputError
from tilereg.grid import Grid
from tilereg.kernels.filters import TRUNCATE
from tilereg.points import Spots
from tilereg.thresholds import (
    ResponseStatistics,
    find_threshold,
    response_statistics,
    white_noise,
)
from tilereg.windows import Reader, Window

__all__ = [
    "ArrayReader",
    "Detector",
    "Polarity",
    "candidate_sigmas",
    "detect_array",
    "plan_detector",
    "sort_spots",
]

# An image up to this size is its own sample; a larger one is sampled in blocks.
WHOLE_SAMPLE = 24_000_000
NUM_BLOCKS = 12
BLOCK_SIDE = {2: 1024, 3: 128}
# Of the automatic choice: in voxels of the finest axis.
SMALLEST, LARGEST, STEP = 1.0, 8.0, math.sqrt(2)
FEWEST = 4

# Sizes that are measured at a time: each holds a response as large as the sample.
_MOST_THREADS = 4

@dataclass(frozen=True)
class ArrayReader:
    """An array in memory, read by windows.

    Parameters
    ----------
    array : ndarray
    """

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels an axis."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""
        return self.array.dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Read the voxels of a window."""
        return self.array[window.slices]


def candidate_sigmas(
    grid: Grid,
    *,
    smallest: float | None = None,
    largest: float | None = None,
    step: float = STEP,
) -> tuple[float, ...]:
    """Return a geometric series of sizes to try, ascending.

    Parameters
    ----------
    grid : Grid
    smallest, largest : float, micrometre
        Default: 1 and 8 voxels of the finest axis; at most an eighth of the shortest axis of
        more than one voxel that is not thinner than the smallest size allows.
    step : float
        Ratio of neighbouring sizes, above 1.

    Raises
    ------
    InputError
        If the numbers make no series.
    """
    finest = min(grid.spacing)
    low = SMALLEST * finest if smallest is None else float(smallest)
    if largest is None:
        long_axes = [e for e in grid.extent if e >= 8 * low] or [8 * low]
        high = min(LARGEST * finest, min(long_axes) / 8)
    else:
        high = float(largest)
    if not (0 < low < math.inf and 1 < step < math.inf and high < math.inf):
        raise InputError(
            f"Invalid sizes from {low} to {high} um by {step}. Sizes must be > 0, the step > 1."
        )
    count = max(0, math.floor(math.log(high / low) / math.log(step) + 1e-9)) + 1
    return tuple(low * step**k for k in range(count))


def sample_windows(grid: Grid, halo: Sequence[int]) -> list[Window]:
    """Return the windows of the sample: the whole image, or blocks spread over it.

    Parameters
    ----------
    grid : Grid
    halo : (D,) ints
        What a block loses at each side.
    """
    if grid.size <= WHOLE_SAMPLE:
        return [grid.window]
    side = BLOCK_SIDE[grid.ndim]
    shape = [min(n, max(side, 4 * h)) for n, h in zip(grid.shape, halo, strict=True)]
    # As even a lattice as the image's shape allows: refine where the gaps are widest.
    counts = [1] * grid.ndim
    while math.prod(counts) < NUM_BLOCKS:
        gaps = [n / (c * s) for n, c, s in zip(grid.shape, counts, shape, strict=True)]
        axis = int(np.argmax(gaps))
        if gaps[axis] <= 1:
            break
        counts[axis] += 1
    starts = [
        sorted({(2 * k + 1) * (n - s) // (2 * c) for k in range(c)})
        for n, s, c in zip(grid.shape, shape, counts, strict=True)
    ]
    return [
        Window(start, tuple(a + s for a, s in zip(start, shape, strict=True)))
        for start in itertools.product(*starts)
    ]


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """Blocks of an image as signals, and the grid of the whole image."""

    grid: Grid
    windows: list[Window]
    signals: list[NDArray[np.float32]]
    offset: float
    white: float
    polarity: Polarity

    @classmethod
    def read(cls, reader: Reader, grid: Grid, halo: Sequence[int], polarity: Polarity) -> _Sample:
        """Read the sample of an image."""
        windows = sample_windows(grid, halo)
        blocks = [np.asarray(reader.read(window)) for window in windows]
        # The median of what is finite; `as_signal` reports what is not.
        medians = [float(np.median(b[np.isfinite(b)])) for b in blocks if np.isfinite(b).any()]
        offset = float(np.median(medians)) if medians else 0.0
        signals = [
            as_signal(block, window, offset, polarity)
            for block, window in zip(blocks, windows, strict=True)
        ]
        return cls(
            grid=grid,
            windows=windows,
            signals=signals,
            offset=offset,
            white=white_noise(signals),
            polarity=polarity,
        )

    def statistics(self, sigma: tuple[float, ...]) -> ResponseStatistics:
        """Measure the response of one size."""
        return response_statistics(
            self.signals, self._boxes(self._width(sigma)), sigma, self.grid, self.white
        )

    def threshold(self, sigma: tuple[float, ...], found: ResponseStatistics, share: float) -> float:
        """Return the threshold of one size."""
        return find_threshold(found, self._width(sigma), self.grid, share)

    def _width(self, sigma: tuple[float, ...]) -> NDArray[np.float64]:
        """Return a size in voxels, (3,)."""
        detector = Detector(sigmas=(sigma,), thresholds=(1.0,), noise=(0.0,))
        return np.asarray(detector.sigmas_index(self.grid)[0])

    def _boxes(self, width: NDArray[np.float64]) -> list[Window]:
        """Return the part of each block where the response is that of the whole image.

        The image's rim, where no spots are looked for, does not count either.
        """
        lead = 3 - self.grid.ndim
        reach = np.ceil(TRUNCATE * width).astype(int) + 2
        boxes = []
        for window in self.windows:
            start, stop = [0] * lead, [1] * lead
            for axis, n in enumerate(self.grid.shape):
                size = window.shape[axis]
                margin = min(int(reach[lead + axis]), (size - 1) // 3)
                rim = rim_width(float(width[lead + axis]), n)
                start.append(margin if window.start[axis] > 0 else rim)
                stop.append(size - (margin if window.stop[axis] < n else rim))
            boxes.append(Window(tuple(start), tuple(stop)))
        return boxes

    def fitted_size(self, detector: Detector) -> float | None:
        """Return the typical size of the spots that a detector finds, in um; None if too few."""
        found = Spots.concatenate(
            [self._detect(s, w, detector) for s, w in zip(self.signals, self.windows, strict=True)]
        )
        if len(found) < FEWEST:
            return None
        order = np.argsort(found.sigma, kind="stable")
        # Clear spots say more about their size than faint ones.
        weight = np.minimum(found.response, np.percentile(found.response, 95))[order].cumsum()
        return float(found.sigma[order][np.searchsorted(weight, 0.5 * weight[-1])])

    def _detect(self, signal: NDArray[np.float32], window: Window, detector: Detector) -> Spots:
        """Find the spots of one block, seen as an image of its own."""
        plain = replace(detector, offset=0.0, polarity="bright")
        grid = self.grid.crop(window)
        block = signal.reshape(window.shape)
        return plain.detect(block, grid.window, grid.window, grid)


def _choose_sigma(sample: _Sample, false_share: float) -> tuple[float, ...]:
    """Return the size whose blobs hold most of the image's contrast.

    Among the candidates the one with the largest sum of ``height * sigma**(D / 2)`` over the
    maxima above threshold, the square root of a blob's energy: texture is numerous but small,
    background large but rare. The blobs found there are then fitted, and the typical fitted
    size is taken: a filter larger than the blob collects more of its contrast.
    """
    grid = sample.grid
    sizes = candidate_sigmas(grid)
    long_axes = sum(n > 1 for n in grid.shape)
    best, chosen = 0.0, None
    sigmas = [as_sigma(size, grid) for size in sizes]
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        all_found = list(pool.map(sample.statistics, sigmas))
    for size, sigma, found in zip(sizes, sigmas, all_found, strict=True):
        threshold = sample.threshold(sigma, found, false_share)
        heights = found.maxima[found.maxima > threshold]
        if len(heights) < FEWEST:
            continue
        heights = np.minimum(heights, np.percentile(heights, 95))
        energy = float(heights.sum()) * size ** (long_axes / 2)
        if energy > best:
            best, chosen = energy, (size, threshold, found.noise)
    if chosen is None:
        return as_sigma(min(sizes[-1], STEP * sizes[0]), grid)
    size, threshold, noise = chosen
    detector = Detector(sigmas=(as_sigma(size, grid),), thresholds=(threshold,), noise=(noise,))
    fitted = sample.fitted_size(detector)
    if fitted is not None:
        size = min(max(fitted, size / 2, sizes[0]), size)
    return as_sigma(size, grid)


def plan_detector(
    reader: Reader,
    grid: Grid,
    *,
    sigma: ArrayLike | None = None,
    scales: Sequence[float] = (1.0,),
    threshold: float | None = None,
    polarity: Polarity = "bright",
    false_share: float = 0.05,
    max_spots: int | None = None,
) -> Detector:
    """Resolve a detector from a sample of an image.

    The sample is the whole image up to 24 million voxels, else about a dozen blocks spread
    over it; it depends on the image alone.

    Parameters
    ----------
    reader : Reader
        The volume; its shape is the grid's.
    grid : Grid
    sigma : float or (D,) floats, micrometre
        Size of the spots (standard deviation). Default: found from the image, between 1 and 8
        voxels of the finest axis.
    scales : sequence of float
        Factors on `sigma` to look for together. Default one size.
    threshold : float
        Lowest response that is a spot: the height, in the image's units, of the faintest blob
        of the size looked for. Default: found from the image, one for all of it.
    polarity : {"bright", "dark"}
    false_share : float
        Share of false spots that the automatic threshold allows, 0 to 1.
    max_spots : int
        Raises the threshold until the sample promises at most so many in the whole image.

    Raises
    ------
    InputError
        If a setting is out of range or the shapes differ.
    ImageError
        If the sample holds a voxel that is not finite.
    """
    _check_settings(reader, grid, scales, threshold, polarity, false_share, max_spots)
    first = None if sigma is None else as_sigma(sigma, grid)
    largest = as_sigma(LARGEST * min(grid.spacing), grid) if first is None else first
    widest = tuple(max(scales) * s for s in largest)
    halo = Detector(sigmas=(widest,), thresholds=(1.0,), noise=(0.0,)).halo(grid)
    sample = _Sample.read(reader, grid, halo, polarity)
    first = _choose_sigma(sample, false_share) if first is None else first
    sigmas = tuple(tuple(f * s for s in first) for f in scales)
    found = [sample.statistics(s) for s in sigmas]
    thresholds = [
        sample.threshold(s, f, false_share) if threshold is None else float(threshold)
        for s, f in zip(sigmas, found, strict=True)
    ]
    if max_spots is not None:
        thresholds = [
            max(t, _level_of(f, max_spots, grid)) for t, f in zip(thresholds, found, strict=True)
        ]
    return Detector(
        sigmas=sigmas,
        thresholds=tuple(thresholds),
        noise=tuple(f.noise for f in found),
        offset=sample.offset,
        polarity=polarity,
    )


def _check_settings(
    reader: Reader,
    grid: Grid,
    scales: Sequence[float],
    threshold: float | None,
    polarity: str,
    false_share: float,
    max_spots: int | None,
) -> None:
    """Raise where a setting of `plan_detector` is out of range."""
    if tuple(reader.shape) != grid.shape:
        raise InputError(f"The image's shape {tuple(reader.shape)} is not the grid's {grid.shape}.")
    if not scales or not all(math.isfinite(s) and s > 0 for s in scales):
        raise InputError(f"Invalid scales {tuple(scales)}. At least one factor > 0 is needed.")
    if threshold is not None and not (math.isfinite(threshold) and threshold > 0):
        raise InputError(f"Invalid threshold {threshold}. It must be > 0 and finite.")
    if polarity not in ("bright", "dark"):
        raise InputError(f"Invalid polarity {polarity!r}. Use 'bright' or 'dark'.")
    if not 0 < false_share < 1:
        raise InputError(f"Invalid false_share {false_share}. It must lie between 0 and 1.")
    if max_spots is not None and max_spots < 1:
        raise InputError(f"Invalid max_spots {max_spots}. It must be at least 1.")


def _level_of(found: ResponseStatistics, max_spots: int, grid: Grid) -> float:
    """Return the response that so many maxima of the whole image exceed."""
    count = int(max_spots * found.num_voxels / grid.size)
    return float(found.maxima[-count - 1]) if count < len(found.maxima) else 0.0


def detect_array(
    array: ArrayLike, grid: Grid, *, detector: Detector | None = None, **settings: Any
) -> Spots:
    """Find the spots of an array in memory, as one block."""
    values = np.asarray(array)
    resolved = detector or plan_detector(ArrayReader(values), grid, **settings)
    return resolved.detect(values, grid.window, grid.window, grid)
