"""Detection of spots: choose size and threshold from the image, then look for them.

`plan_detector` looks at a sample of blocks and gives a resolved `Detector`; `detect_array`
runs one over an array in memory. The volumes on disk are in `tilereg.lazy.detect`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.detector import Detector, Polarity, as_sigma, sort_spots
from tilereg.errors import InputError
from tilereg.grid import Grid
from tilereg.points import Spots
from tilereg.spot_sample import (
    FEWEST,
    LARGEST,
    Sample,
    num_threads,
    sample_bytes,
    sample_halo,
    sample_windows,
)
from tilereg.thresholds import ResponseStatistics
from tilereg.windows import Reader, Window

__all__ = [
    "ArrayReader",
    "Detector",
    "Polarity",
    "candidate_sigmas",
    "detect_array",
    "plan_detector",
    "sample_bytes",
    "sample_windows",
    "sort_spots",
]

# Of the automatic choice: in voxels of the finest axis.
SMALLEST, STEP = 1.0, math.sqrt(2)


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


def _choose_sigma(sample: Sample, false_share: float) -> tuple[float, ...]:
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
    with ThreadPoolExecutor(num_threads()) as pool:
        all_found = list(pool.map(sample.coarse_statistics, sigmas))
    for size, sigma, found in zip(sizes, sigmas, all_found, strict=True):
        threshold = sample.threshold(sigma, found, false_share)
        heights = found.maxima[found.maxima > threshold]
        if len(heights) < FEWEST:
            continue
        heights = np.minimum(heights, np.percentile(heights, 95))
        energy = float(heights.sum()) * size ** (long_axes / 2)
        if energy > best:
            best, chosen = energy, (size, threshold, found.noise, len(heights))
    if chosen is None:
        return as_sigma(min(sizes[-1], STEP * sizes[0]), grid)
    size, threshold, noise, count = chosen
    detector = Detector(sigmas=(as_sigma(size, grid),), thresholds=(threshold,), noise=(noise,))
    fitted = sample.fitted_size(detector, count)
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

    The sample is the whole image up to 24 million voxels, else up to a dozen blocks spread
    over it, with no more voxels together unless one block alone needs them; it depends on the
    image and the largest size alone. `sample_bytes` tells the memory.

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
        Keeps at most so many spots, those of highest response in the whole image. Where the
        sample tells that there are more, the threshold rises.

    Raises
    ------
    InputError
        If a setting is out of range or the shapes differ.
    ImageError
        If the sample holds a voxel that is not finite.
    """
    _check_settings(reader, grid, scales, threshold, polarity, false_share, max_spots)
    first = None if sigma is None else as_sigma(sigma, grid)
    sample = Sample.read(reader, grid, sample_halo(grid, first, scales), polarity)
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
        max_spots=max_spots,
        padding=sample.padding,
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
    """Return a response that at least so many spots of the whole image should exceed.

    With a margin of as many again, as the sample may hold more than its share, and a little
    below, as several may be equal.
    """
    count = 2 * math.ceil(max_spots * found.num_voxels / grid.size) + 1
    return 0.999 * float(found.maxima[-count - 1]) if count < len(found.maxima) else 0.0


def detect_array(
    array: ArrayLike, grid: Grid, *, detector: Detector | None = None, **settings: Any
) -> Spots:
    """Find the spots of an array in memory, as one block."""
    values = np.asarray(array)
    resolved = detector or plan_detector(ArrayReader(values), grid, **settings)
    return resolved.gather([resolved.detect(values, grid.window, grid.window, grid)])
