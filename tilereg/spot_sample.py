"""The sample of an image from which size and threshold of its spots are chosen."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.detector import Detector, Polarity, as_sigma, as_signal, rim_width
from tilereg.grid import Grid
from tilereg.kernels.filters import TRUNCATE
from tilereg.padding import Padding, find_padding, padded
from tilereg.points import Spots
from tilereg.thresholds import (
    ResponseStatistics,
    find_threshold,
    response_statistics,
    white_noise,
)
from tilereg.windows import Reader, Window

__all__ = [
    "FEWEST",
    "LARGEST",
    "Sample",
    "num_threads",
    "sample_bytes",
    "sample_halo",
    "sample_windows",
]

# An image up to this size is its own sample; a larger one is sampled in blocks of at most as
# many voxels together, more only where a single block of the smallest useful size has more.
WHOLE_SAMPLE = 24_000_000
NUM_BLOCKS = 12
# Where memory is short, blocks become smaller before they become fewer than this.
FEW_BLOCKS = 4
BLOCK_SIDE = {2: 1024, 3: 128}
# The largest size of the automatic choice, in voxels of the finest axis.
LARGEST = 8.0
FEWEST = 4
# So many fitted spots tell the typical size.
ENOUGH_FITS = 800

# Sizes that are measured at a time: each holds a response as large as a block.
_MOST_THREADS = 4
_MEDIAN_VOXELS = 2**20
# Means of blocks of voxels leave a size at least this wide, in blocks.
_COARSE_WIDTH = 1.4


def num_threads() -> int:
    """Return how many sizes are measured at a time."""
    return min(_MOST_THREADS, os.cpu_count() or 1)


def sample_halo(
    grid: Grid, sigma: ArrayLike | None = None, scales: Sequence[float] = (1.0,)
) -> tuple[int, ...]:
    """Return what a block of the sample loses at each side; without sigma, for any choice."""
    first = as_sigma(LARGEST * min(grid.spacing) if sigma is None else sigma, grid)
    widest = tuple(max(scales) * s for s in first)
    return Detector(sigmas=(widest,), thresholds=(1.0,), noise=(0.0,)).halo(grid)


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
    shape, most = _block_shape(grid, halo)
    # As even a lattice as the image's shape allows: refine where the gaps are widest.
    counts = [1] * grid.ndim
    while True:
        gaps = [n / (c * s) for n, c, s in zip(grid.shape, counts, shape, strict=True)]
        total = math.prod(counts)
        open_axes = [
            a for a, c in enumerate(counts) if gaps[a] > 1 and total // c * (c + 1) <= most
        ]
        if not open_axes:
            break
        counts[max(open_axes, key=lambda a: gaps[a])] += 1
    starts = [
        sorted({(2 * k + 1) * (n - s) // (2 * c) for k in range(c)})
        for n, s, c in zip(grid.shape, shape, counts, strict=True)
    ]
    return [
        Window(start, tuple(a + s for a, s in zip(start, shape, strict=True)))
        for start in itertools.product(*starts)
    ]


def _block_shape(grid: Grid, halo: Sequence[int]) -> tuple[list[int], int]:
    """Return the shape of the sample's blocks, and how many of them there may be."""
    side = BLOCK_SIDE[grid.ndim]
    shape = [min(n, max(side, 4 * h)) for n, h in zip(grid.shape, halo, strict=True)]
    least = [min(n, 2 * h + 1) for n, h in zip(grid.shape, halo, strict=True)]
    most = min(NUM_BLOCKS, max(FEW_BLOCKS, WHOLE_SAMPLE // math.prod(shape)))
    while most * math.prod(shape) > WHOLE_SAMPLE:
        free = [a for a in range(grid.ndim) if shape[a] > least[a]]
        if not free:
            break
        shape[max(free, key=lambda a: shape[a])] -= 1
    return shape, max(1, min(most, WHOLE_SAMPLE // math.prod(shape)))


def sample_bytes(
    grid: Grid, dtype: Any, sigma: ArrayLike | None = None, scales: Sequence[float] = (1.0,)
) -> int:
    """Return the most memory in bytes that `plan_detector` holds for an image.

    Parameters
    ----------
    grid : Grid
    dtype : dtype
        Of the image.
    sigma : float or (D,) floats, micrometre
        Size of the spots; None where it is chosen, which measures several sizes at a time.
    scales : sequence of float
    """
    sizes = [window.size for window in sample_windows(grid, sample_halo(grid, sigma, scales))]
    total, largest, item = sum(sizes), max(sizes), int(np.dtype(dtype).itemsize)
    # Blocks as read, and one of them as float64 on the way to a signal; masks of the padding.
    reading = (item + 1) * total + (9 if item > 2 else 4) * largest
    # The second differences of `white_noise`; a response and its negative, and what lies there,
    # a thread; a detection, in one thread.
    looking = (13 if sigma is not None else max(14, 10 * num_threads())) * largest
    return 4 * total + max(reading, total + looking) + 2**20


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Blocks of an image as signals, and the grid of the whole image.

    `valid` tells which voxels hold data, a mask a block, or None where all do.
    """

    grid: Grid
    windows: list[Window]
    signals: list[NDArray[np.float32]]
    offset: float
    white: float
    polarity: Polarity
    padding: Padding | None
    valid: list[NDArray[np.bool_] | None]

    @classmethod
    def read(cls, reader: Reader, grid: Grid, halo: Sequence[int], polarity: Polarity) -> Sample:
        """Read the sample of an image."""
        windows = sample_windows(grid, halo)
        blocks = [np.asarray(reader.read(window)) for window in windows]
        padding = find_padding(blocks)
        valid = [None if padding is None else _valid(block, padding) for block in blocks]
        # The median of what is finite; `as_signal` reports what is not.
        medians = [m for m in map(_median, blocks) if math.isfinite(m)]
        offset = float(np.median(medians)) if medians else 0.0
        signals = [
            as_signal(block, window, offset, polarity, padding)
            for block, window in zip(blocks, windows, strict=True)
        ]
        del blocks
        return cls(
            grid=grid,
            windows=windows,
            signals=signals,
            offset=offset,
            white=white_noise(signals, valid),
            polarity=polarity,
            padding=padding,
            valid=valid,
        )

    def statistics(self, sigma: tuple[float, ...]) -> ResponseStatistics:
        """Measure the response of one size."""
        return response_statistics(
            self.signals,
            self._boxes(self._width(sigma), self.signals),
            sigma,
            self.grid,
            self.white,
            self.valid,
        )

    def coarse_statistics(self, sigma: tuple[float, ...]) -> ResponseStatistics:
        """Measure the response of one size, a wide one on means of blocks of voxels.

        The filter is narrowed by as much as the means blur; the result is in terms of the
        voxels of the image.
        """
        width = self._width(sigma)[3 - self.grid.ndim :]
        factors = [2 ** max(0, math.floor(math.log2(max(w, 1.0) / _COARSE_WIDTH))) for w in width]
        fewest = np.min([window.shape for window in self.windows], axis=0)
        factors = [f if n >= 8 * f else 1 for f, n in zip(factors, fewest, strict=True)]
        if max(factors) == 1:
            return self.statistics(sigma)
        steps = np.array(factors)
        grid = Grid(
            shape=tuple(int(n) for n in self.grid.shape // steps),
            spacing=tuple(float(s) for s in self.grid.spacing * steps),
        )
        narrow = np.sqrt(np.maximum(width**2 - (steps**2 - 1) / 12, 0))
        long_axes = width > 0
        gain = float(np.mean((narrow[long_axes] / width[long_axes]) ** 2))
        signals = [block_means(signal, factors) for signal in self.signals]
        coarse = np.zeros(3)
        coarse[3 - grid.ndim :] = narrow / steps
        found = response_statistics(
            signals,
            self._boxes(coarse, signals),
            tuple(float(s) for s in np.where(long_axes, narrow, 1.0) * self.grid.spacing),
            grid,
            self.white / math.sqrt(math.prod(factors)),
            [_coarse_mask(mask, factors) for mask in self.valid],
        )
        return ResponseStatistics(
            maxima=found.maxima / gain,
            minima=found.minima / gain,
            spread=found.spread / gain,
            noise=found.noise / gain,
            num_voxels=found.num_voxels * math.prod(factors),
        )

    def threshold(self, sigma: tuple[float, ...], found: ResponseStatistics, share: float) -> float:
        """Return the threshold of one size."""
        return find_threshold(found, self._width(sigma), self.grid, share)

    def _width(self, sigma: tuple[float, ...]) -> NDArray[np.float64]:
        """Return a size in voxels, (3,)."""
        detector = Detector(sigmas=(sigma,), thresholds=(1.0,), noise=(0.0,))
        return np.asarray(detector.sigmas_index(self.grid)[0])

    def _boxes(
        self, width: NDArray[np.float64], signals: list[NDArray[np.float32]]
    ) -> list[Window]:
        """Return the part of each block where the response is that of the whole image.

        The image's rim, where no spots are looked for, does not count either.
        """
        lead = 3 - self.grid.ndim
        reach = np.ceil(TRUNCATE * width).astype(int) + 2
        boxes = []
        for window, signal in zip(self.windows, signals, strict=True):
            start, stop = [0] * lead, [1] * lead
            for axis, n in enumerate(self.grid.shape):
                size = signal.shape[lead + axis]
                margin = min(int(reach[lead + axis]), (size - 1) // 3)
                rim = rim_width(float(width[lead + axis]), n)
                start.append(margin if window.start[axis] > 0 else rim)
                stop.append(size - (margin if window.stop[axis] < n else rim))
            boxes.append(Window(tuple(start), tuple(stop)))
        return boxes

    def fitted_size(self, detector: Detector, expected: int) -> float | None:
        """Return the typical size of the spots that a detector finds, in um; None if too few.

        Where many are `expected`, the middle of the blocks along their longest axis is enough.
        """
        share = max(0.25, ENOUGH_FITS / max(1, expected))
        found = Spots.empty(self.grid.ndim)
        for part in (share, 1.0) if share < 1 else (1.0,):
            found = Spots.concatenate(
                [
                    self._detect(signal, window, detector, part)
                    for signal, window in zip(self.signals, self.windows, strict=True)
                ]
            )
            if len(found) >= ENOUGH_FITS // 4:
                break
        if len(found) < FEWEST:
            return None
        order = np.argsort(found.sigma, kind="stable")
        # Clear spots say more about their size than faint ones.
        weight = np.minimum(found.response, np.percentile(found.response, 95))[order].cumsum()
        return float(found.sigma[order][np.searchsorted(weight, 0.5 * weight[-1])])

    def _detect(
        self, signal: NDArray[np.float32], window: Window, detector: Detector, share: float
    ) -> Spots:
        """Find the spots of the middle of one block, seen as an image of its own."""
        plain = replace(detector, offset=0.0, polarity="bright", padding=None)
        axis = int(np.argmax(window.shape))
        cut = int(0.5 * (1 - share) * window.shape[axis])
        middle = window.pad([-cut if a == axis else 0 for a in range(window.ndim)])
        grid = self.grid.crop(middle)
        block = signal.reshape(window.shape)[middle.relative_to(window).slices]
        return plain.detect(block, grid.window, grid.window, grid)


def block_means(signal: NDArray[np.float32], factors: Sequence[int]) -> NDArray[np.float32]:
    """Return the means of blocks of voxels, what does not fill a block left out.

    Parameters
    ----------
    signal : (Z, Y, X) float32 ndarray
    factors : (D,) ints
        Size of a block along the last D axes, powers of two.
    """
    out = signal
    for axis, factor in enumerate(factors, start=3 - len(factors)):
        count = out.shape[axis] // factor * factor
        for _ in range(factor.bit_length() - 1):
            even, odd = [slice(None)] * 3, [slice(None)] * 3
            even[axis], odd[axis] = slice(0, count, 2), slice(1, count, 2)
            out = out[tuple(even)] + out[tuple(odd)]
            out *= np.float32(0.5)
            count //= 2
    return out


def _valid(block: NDArray[Any], padding: Padding) -> NDArray[np.bool_] | None:
    """Return which voxels of a block hold data, (Z, Y, X); None where all do."""
    hollow = padded(block, padding.value)
    return None if hollow is None else ~hollow.reshape((1,) * (3 - block.ndim) + block.shape)


def _coarse_mask(mask: NDArray[np.bool_] | None, factors: Sequence[int]) -> Any:
    """Return every so many-th voxel of a mask, what does not fill a block left out."""
    if mask is None:
        return None
    steps = (1,) * (3 - len(factors)) + tuple(factors)
    cut = tuple(slice(0, n // f * f, f) for n, f in zip(mask.shape, steps, strict=True))
    return mask[cut]


def _median(block: NDArray[Any]) -> float:
    """Return the median of what is finite of a million voxels; nan where nothing is."""
    values = np.asarray(block.flat[:: block.size // _MEDIAN_VOXELS + 1])
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else math.nan
