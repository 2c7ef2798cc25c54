"""Detection of blobs: a band-pass response, its maxima, and a sub-voxel fit.

The response is the Laplacian of a Gaussian, scaled so that it equals the height of a Gaussian
blob of the detector's size; constant and evenly sloping backgrounds vanish in it. A curved
background, wide against the spots, leaves a pedestal; what counts is the height above it. The
detector is fully resolved before any block is looked at, and nothing in `Detector.detect`
depends on where its block starts, so any chunking finds the same spots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.errors import ImageError, InputError
from tilereg.grid import Grid
from tilereg.kernels.filters import gaussian_taps, laplacian, matched_gain, smooth
from tilereg.kernels.peaks import baselines, find_peaks, quadratic_offsets, roundness
from tilereg.localisation import fit_peaks, neighbour_reach
from tilereg.padding import REACH, Padding, padded
from tilereg.points import Spots
from tilereg.windows import Window

__all__ = ["Detector", "Polarity", "as_sigma", "as_signal", "sort_spots"]

Polarity = Literal["bright", "dark"]

# No blob is narrower on the voxels than this, whatever its size in the world.
SIGMA_FLOOR = 0.5
# Where the pedestal of a peak is looked up: behind the dark ring around it, in sigma.
SHELL = 4.0
# A peak whose weakest curvature is a smaller share of its strongest lies on an edge or a ridge.
# A Gaussian blob of the filter's size across and four times that along has 0.12.
LEAST_ROUNDNESS = 0.1


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A fully resolved detector of blobs; `plan_detector` makes one from an image.

    Parameters
    ----------
    sigmas : tuple of tuples of float, micrometre
        Sizes of blob to look for, each one number an axis.
    thresholds : tuple of float
        A size each: the lowest response that is a spot, above zero, in the image's units.
    noise : tuple of float
        A size each: the standard deviation of the response where nothing is.
    offset : float
        Subtracted from the image for the sake of float32; a typical value of it.
    polarity : {"bright", "dark"}
        Whether spots are brighter or darker than their background.
    max_spots : int
        How many spots `gather` keeps. Default all.
    padding : Padding, optional
        What holds no data in the image. Default nothing.

    Raises
    ------
    InputError
        If a number is out of range or the lengths differ.
    """

    sigmas: tuple[tuple[float, ...], ...]
    thresholds: tuple[float, ...]
    noise: tuple[float, ...]
    offset: float = 0.0
    polarity: Polarity = "bright"
    max_spots: int | None = None
    padding: Padding | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        if not (0 < len(self.sigmas) == len(self.thresholds) == len(self.noise)):
            raise InputError(
                f"A detector needs as many thresholds ({len(self.thresholds)}) and noises "
                f"({len(self.noise)}) as sizes ({len(self.sigmas)}), and at least one."
            )
        for sigma in self.sigmas:
            if not all(math.isfinite(s) and s > 0 for s in sigma):
                raise InputError(f"Invalid sigma {sigma} um. Every number must be > 0.")
        for threshold in self.thresholds:
            if not (math.isfinite(threshold) and threshold > 0):
                raise InputError(f"Invalid threshold {threshold}. It must be > 0 and finite.")
        if self.polarity not in ("bright", "dark"):
            raise InputError(f"Invalid polarity {self.polarity!r}. Use 'bright' or 'dark'.")
        if self.max_spots is not None and self.max_spots < 1:
            raise InputError(f"Invalid max_spots {self.max_spots}. It must be at least 1.")

    def sigmas_index(self, grid: Grid) -> NDArray[np.float64]:
        """Return the (S, 3) sizes in voxels; 0 along an axis of one plane, z first in 2D too."""
        out = np.zeros((len(self.sigmas), 3))
        for row, sigma in zip(out, self.sigmas, strict=True):
            if len(sigma) != grid.ndim:
                raise InputError(
                    f"Invalid sigma {sigma} um for an image of {grid.ndim} axes. "
                    "Give one number, or one an axis."
                )
            row[3 - grid.ndim :] = np.maximum(np.divide(sigma, grid.spacing), SIGMA_FLOOR)
            row[3 - grid.ndim :][np.asarray(grid.shape) == 1] = 0.0
        return out

    def halo(self, grid: Grid) -> tuple[int, ...]:
        """Return how many voxels around its core a block must hold, an axis each.

        Enough for the filter, for the neighbours of a spot and for the window of its fit.
        """
        width = self.sigmas_index(grid).max(axis=0)
        taps = np.array([len(gaussian_taps(w)) - 1 for w in width])
        reach = 2 if self.padding is None else 2 + REACH
        halo = np.where(width > 0, taps + reach + neighbour_reach(width), 0)
        return tuple(int(h) for h in halo[3 - grid.ndim :])

    def bytes_needed(self, core_shape: tuple[int, ...], grid: Grid, dtype: Any) -> int:
        """Return the most memory in bytes that `detect` takes for a core, its block included.

        Holds for up to one spot in 200 voxels, far more than a threshold lets through.
        """
        block = [
            min(c + 2 * h, n)
            for c, h, n in zip(core_shape, self.halo(grid), grid.shape, strict=True)
        ]
        num_sizes = len(self.sigmas)
        arrays = 3 if num_sizes == 1 else 2 + num_sizes
        voxel = np.dtype(dtype).itemsize + 4 * arrays
        # Two bytes a voxel for the peaks: enough for a spot in each 200 voxels.
        return int(math.prod(block) * (voxel + 2)) + 2**20

    def response(self, signal: NDArray[np.float32], grid: Grid, scale: int) -> NDArray[np.float32]:
        """Return the response of one size, in the image's units.

        Parameters
        ----------
        signal : (Z, Y, X) float32 ndarray
            From `as_signal`.
        grid : Grid
            Of the whole image.
        scale : int
            Row of `sigmas`.
        """
        sigma = self.sigmas_index(grid)[scale]
        coefficients = sigma**2
        if sigma.any():
            coefficients /= matched_gain(sigma, coefficients)
        taps = [gaussian_taps(s) for s in sigma]
        out = np.empty_like(signal)
        smoothed = np.empty_like(signal)
        planes = np.empty((2, *signal.shape[1:]), dtype=np.float32)
        padded = np.empty(signal.shape[2] + 2 * len(taps[2]), dtype=np.float32)
        smooth(signal, taps[0], taps[1], taps[2], planes, padded, smoothed)
        laplacian(smoothed, coefficients.astype(np.float32), out)
        return out

    def detect(
        self, block: NDArray[Any], block_window: Window, core: Window, grid: Grid, chunk: int = 0
    ) -> Spots:
        """Find the spots whose peak voxel lies in a core.

        Parameters
        ----------
        block : (*block_window.shape) ndarray
            The voxels of `block_window`.
        block_window : Window
            Contains the core padded by `halo`, clipped at the image's faces.
        core : Window
        grid : Grid
            Of the whole image.
        chunk : int
            Written to the spots.

        Returns
        -------
        Spots
            Sorted by position. There are none within half a sigma of the image's faces along
            axes where sigma is a voxel or more: what is cut by a face has no centre.

        Raises
        ------
        ImageError
            If a voxel is not finite.
        """
        return sort_spots(self.find(block, block_window, core, grid, chunk)[0])

    def find(
        self, block: NDArray[Any], block_window: Window, core: Window, grid: Grid, chunk: int = 0
    ) -> tuple[Spots, NDArray[np.int64]]:
        """Find spots as `detect`, in the order of their peak voxels, and return these (N, D)."""
        signal = as_signal(block, block_window, self.offset, self.polarity, self.padding)
        excess = self._excess(signal, grid)
        score = excess[0] if len(excess) == 1 else excess[0].copy()
        for other in excess[1:]:
            np.maximum(score, other, out=score)
        peaks, num_core, pedestals = self._owned(
            excess, self._peaks(score, block_window, core, grid), block_window, core, grid
        )
        lead = 3 - grid.ndim
        voxels = peaks[:num_core, lead:] + np.asarray(block_window.start)
        if num_core == 0:
            return Spots.empty(grid.ndim), voxels
        starts = np.empty((len(peaks), 3))
        quadratic_offsets(score, peaks, starts)
        rows = _rows(excess, peaks)
        heights = score[tuple(peaks.T)] + np.asarray(self.thresholds)[rows]
        heights[:num_core] -= pedestals
        sigmas = self.sigmas_index(grid)
        fits = fit_peaks(signal, peaks, starts, heights, sigmas[rows], sigmas.max(axis=0), num_core)
        sizes = np.array([np.exp(np.mean(np.log(s))) for s in self.sigmas])[rows[:num_core]]
        errors = fits[:, 5 + lead :] * grid.spacing
        spots = Spots(
            positions=grid.to_world(voxels + fits[:, lead:3]),
            sigma=sizes * fits[:, 4],
            intensity=fits[:, 3].copy(),
            response=heights[:num_core],
            localisation=np.sqrt(_mean_of_long_axes(errors**2, grid)),
            chunk=np.full(num_core, chunk, dtype=np.int64),
        )
        return spots, voxels

    def gather(self, parts: Sequence[Spots]) -> Spots:
        """Join the spots of all blocks of an image, and keep the `max_spots` strongest.

        Sorted by position, which also decides among equal responses.
        """
        spots = sort_spots(Spots.concatenate(list(parts)))
        if self.max_spots is None or len(spots) <= self.max_spots:
            return spots
        order = np.argsort(-spots.response, kind="stable")
        return spots.take(np.sort(order[: self.max_spots]))

    def _excess(self, signal: NDArray[np.float32], grid: Grid) -> list[NDArray[np.float32]]:
        """Return the response less its threshold, a size each."""
        out = []
        for row, threshold in enumerate(self.thresholds):
            response = self.response(signal, grid, row)
            response -= np.float32(threshold)
            out.append(response)
        return out

    def _peaks(
        self, score: NDArray[np.float32], block_window: Window, core: Window, grid: Grid
    ) -> NDArray[np.int64]:
        """Return the (N, 3) peaks in the block: of the core and of its neighbourhood."""
        width = self.sigmas_index(grid).max(axis=0)[3 - grid.ndim :]
        inside = [rim_width(w, n) for w, n in zip(width, grid.shape, strict=True)]
        searched = core.pad(neighbour_reach(width).tolist()).intersect(
            grid.window.pad([-i for i in inside])
        )
        box = searched.relative_to(block_window)
        lead = 3 - grid.ndim
        start = np.array((0,) * lead + box.start, dtype=np.int64)
        stop = np.array((1,) * lead + box.stop, dtype=np.int64)
        found = np.empty((max(1024, searched.size // 512), 3), dtype=np.int64)
        count = find_peaks(score, start, stop, 0.0, found)
        if count > len(found):
            found = np.empty((count, 3), dtype=np.int64)
            find_peaks(score, start, stop, 0.0, found)
        return found[:count]

    def _owned(
        self,
        excess: list[NDArray[np.float32]],
        peaks: NDArray[np.int64],
        block_window: Window,
        core: Window,
        grid: Grid,
    ) -> tuple[NDArray[np.int64], int, NDArray[np.float64]]:
        """Return the peaks, first those of the core that are spots, their number and pedestals."""
        box = core.relative_to(block_window)
        own = peaks[:, 3 - core.ndim :]
        inside = ((own >= box.start) & (own < box.stop)).all(axis=1)
        mine, others = peaks[inside], peaks[~inside]
        rows = _rows(excess, mine)
        pedestals, kept = np.zeros(len(mine)), np.zeros(len(mine), dtype=np.bool_)
        for row, width in enumerate(self.sigmas_index(grid)):
            here = rows == row
            found = pedestals_of(excess[row], mine[here], width, self.thresholds[row])
            pedestals[here] = found
            kept[here] = excess[row][tuple(mine[here].T)] > found
            kept[here] &= is_round(excess[row], mine[here], width)
        return np.concatenate([mine[kept], others, mine[~kept]]), int(kept.sum()), pedestals[kept]


def rim_width(width: float, num_voxels: int) -> int:
    """Return how many voxels at a face of the image hold no peaks, along an axis.

    Parameters
    ----------
    width : float, voxels
        Size of the filter.
    num_voxels : int
        Length of the axis.
    """
    return math.ceil(0.5 * width) if width >= 1 and num_voxels > 2 * math.ceil(width) else 0


def shell_offsets(width: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the (K, 3) places around a peak where its pedestal is looked up.

    Parameters
    ----------
    width : (3,) ndarray, voxels
        Size of the filter, zero along an axis of one plane.
    """
    long_axes = np.flatnonzero(width > 0)
    if len(long_axes) == 3:
        steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        directions = steps[np.abs(steps).sum(axis=1) > 0].astype(np.float64)
        directions /= np.sqrt((directions**2).sum(axis=1, keepdims=True))
    elif len(long_axes) == 2:
        angles = np.arange(16) * (math.pi / 8)
        directions = np.zeros((16, 3))
        directions[:, long_axes] = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    else:
        directions = np.concatenate([np.eye(3)[long_axes], -np.eye(3)[long_axes]])
    return np.asarray(np.round(SHELL * width * directions), dtype=np.int64)


def pedestals_of(
    score: NDArray[np.float32],
    peaks: NDArray[np.int64],
    width: NDArray[np.float64],
    threshold: float,
) -> NDArray[np.float64]:
    """Return the (N,) pedestals of the response under peaks, zero where there is none.

    Parameters
    ----------
    score : (Z, Y, X) float32 ndarray
        Response less `threshold`.
    peaks : (N, 3) int64 ndarray
    width : (3,) ndarray, voxels
        Size of the filter.
    threshold : float
    """
    out = np.empty(len(peaks))
    baselines(score, peaks, shell_offsets(width), -threshold, out)
    return np.maximum(out + threshold, 0.0)


def is_round(
    score: NDArray[np.float32], peaks: NDArray[np.int64], width: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Tell which of (N, 3) peaks are of a blob, not of an edge or a ridge.

    On an edge, as around what was padded or cut out, noise makes peaks without end. The test
    is that of Lowe, IJCV 60 (2004) 91-110, section 4.1, for any number of axes.

    Parameters
    ----------
    score : (Z, Y, X) float32 ndarray
    peaks : (N, 3) int64 ndarray
    width : (3,) ndarray, voxels
        Size of the filter.
    """
    out = np.empty(len(peaks))
    roundness(score, peaks, width, out)
    return np.asarray(out >= LEAST_ROUNDNESS)


def _rows(excess: list[NDArray[np.float32]], peaks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row of the size that each of the (N, 3) peaks belongs to, the first if equal."""
    at_peak = tuple(peaks.T)
    return np.asarray(np.argmax(np.stack([values[at_peak] for values in excess]), axis=0))


def as_signal(
    block: NDArray[Any],
    window: Window,
    offset: float,
    polarity: Polarity,
    padding: Padding | None = None,
) -> NDArray[np.float32]:
    """Return a block as (Z, Y, X) float32, `offset` subtracted, with spots positive.

    What is padding gets the level of the image next to it.

    Raises
    ------
    ImageError
        If a voxel is not finite; names the first one by its index in the whole image.
    """
    values = np.asarray(block)
    wide = values.dtype.itemsize > 2
    with np.errstate(over="ignore", invalid="ignore"):
        if wide and values.dtype != np.float32:
            signal = np.subtract(values, offset, dtype=np.float64).astype(np.float32)
        else:
            signal = values.astype(np.float32)
            signal -= np.float32(offset)
    if values.dtype.kind == "f" and not np.isfinite(signal).all():
        where = np.argwhere(~np.isfinite(signal))[0]
        voxel = tuple(int(w + s) for w, s in zip(where, window.start, strict=True))
        raise ImageError(
            f"Voxel {voxel} of the image is {np.asarray(block)[tuple(where)]}. Detection needs "
            "finite numbers of at most 3e38; replace such voxels first, for example with the "
            "background's value."
        )
    hollow = None if padding is None else padded(values, padding.value)
    if padding is not None and hollow is not None:
        signal[hollow] = padding.level - offset
    if polarity == "dark":
        np.negative(signal, out=signal)
    return np.asarray(signal.reshape((1,) * (3 - signal.ndim) + signal.shape))


def sort_spots(spots: Spots) -> Spots:
    """Sort by position, z first: an order that no chunking changes."""
    keys = (spots.response, *spots.positions.T[::-1])
    return spots.take(np.lexsort(keys))


def _mean_of_long_axes(values: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Return the mean of (N, D) values over the axes of more than one voxel."""
    long_axes = np.asarray(grid.shape) > 1
    return np.asarray(values[:, long_axes].mean(axis=1)) if long_axes.any() else values.mean(axis=1)


def as_sigma(sigma: ArrayLike, grid: Grid) -> tuple[float, ...]:
    """Return a size in micrometre, one number or one an axis, as one an axis."""
    values = np.asarray(sigma, dtype=np.float64)
    if values.shape not in ((), (grid.ndim,)) or not (np.isfinite(values) & (values > 0)).all():
        raise InputError(
            f"Invalid sigma {sigma!r} um. Give one number > 0, or one for each of the axes "
            f"{', '.join(grid.axes)}."
        )
    return tuple(float(s) for s in np.broadcast_to(values, (grid.ndim,)))
