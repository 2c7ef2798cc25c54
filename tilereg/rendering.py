"""Volumes of Gaussian spots that are computed window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.errors import InputError
from tilereg.grid import Grid
from tilereg.kernels.rendering import add_gaussians, add_noise
from tilereg.windows import Window, iter_windows

__all__ = ["CUT", "SyntheticVolume", "check_window", "render_spots"]

CUT = 5.0  # sigmas from its centre at which a spot ends; 4e-6 of its height is left there
_BLOCK = {2: (1024, 1024), 3: (32, 128, 256)}  # voxels that are computed at once


def render_spots(
    positions_index: ArrayLike,
    amplitudes: ArrayLike,
    sigma_voxels: ArrayLike,
    window: Window,
) -> NDArray[np.float64]:
    """Draw Gaussian spots into a window of a volume.

    A voxel gets the same value, to the last bit, from every window that holds it.

    Parameters
    ----------
    positions_index : (N, D) ndarray, voxels
        Centres, which need not be at voxels nor inside the window.
    amplitudes : (N,) ndarray
        Heights of the peaks.
    sigma_voxels : float or (D,) floats, voxels
    window : Window

    Returns
    -------
    ndarray of the window's shape
    """
    ndim = window.ndim
    positions = np.asarray(positions_index, dtype=np.float64).reshape(-1, ndim)
    heights = np.asarray(amplitudes, dtype=np.float64)
    sigma = np.broadcast_to(np.asarray(sigma_voxels, dtype=np.float64), (ndim,))
    if len(positions) != len(heights) or not (sigma > 0).all():
        raise InputError(
            f"Cannot draw {len(positions)} spots of {len(heights)} amplitudes with sigma "
            f"{sigma.tolist()} voxels. Each spot needs one amplitude, and sigma must be > 0."
        )
    block = np.zeros(window.shape)
    volume, start = _as_volume(block, window)
    # In the plane that a 2D image is, every spot is centred.
    add_gaussians(
        volume,
        start,
        np.ascontiguousarray(np.hstack([np.zeros((len(positions), 3 - ndim)), positions])),
        heights,
        np.concatenate([np.ones(3 - ndim), sigma]),
        CUT,
        np.empty((3, int(2 * CUT * max(1.0, sigma.max())) + 3)),
    )
    return block


def _as_volume(
    block: NDArray[np.float64], window: Window
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return a view of a block with three axes, and the index of its first voxel."""
    missing = 3 - window.ndim
    start = np.array((0,) * missing + window.start, dtype=np.int64)
    return block.reshape((1,) * missing + block.shape), start


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticVolume:
    """A volume of spots that is computed where it is read; any chunking gives the same voxels.

    Parameters
    ----------
    grid : Grid
    positions_index : (N, D) ndarray, voxels
        Centres of the spots.
    amplitudes : (N,) ndarray
    sigma_voxels : (D,) tuple of float, voxels
    background : float
        Value at the middle of the volume.
    gradient : float
        Share of the background by which it grows from one corner to the opposite one.
    noise : float
        Standard deviation of the white noise.
    seed : tuple of int
        Names the noise.
    dtype : dtype
        An integer type; values are rounded and clipped.
    truncated : bool
        Whether values are rounded down, not to the nearest.
    """

    grid: Grid
    positions_index: NDArray[np.float64]
    amplitudes: NDArray[np.float64]
    sigma_voxels: tuple[float, ...]
    background: float = 200.0
    gradient: float = 0.2
    noise: float = 20.0
    seed: tuple[int, ...] = (0,)
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint16))
    truncated: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels an axis."""
        return self.grid.shape

    @cached_property
    def _sorted(self) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
        """The longest axis, and positions and amplitudes sorted along it."""
        axis = int(np.argmax(self.shape))
        order = np.argsort(self.positions_index[:, axis], kind="stable")
        return axis, self.positions_index[order], self.amplitudes[order]

    @cached_property
    def _key(self) -> np.uint64:
        """What names the noise in the kernel."""
        return np.uint64(np.random.SeedSequence(list(self.seed)).generate_state(1, np.uint64)[0])

    def read(self, window: Window) -> NDArray[Any]:
        """Compute the voxels of a window, which lies inside the volume."""
        check_window(window, self.shape)
        values = np.empty(window.shape, dtype=self.dtype)
        for unit in iter_windows(window.shape, _BLOCK[window.ndim]):
            values[unit.window.slices] = self._read_block(unit.window.shift(window.start))
        return values

    def _read_block(self, window: Window) -> NDArray[np.float64]:
        """Return the voxels of a window, whole numbers within the range of the type."""
        axis, positions, amplitudes = self._sorted
        reach = CUT * self.sigma_voxels[axis] + 1
        near = slice(
            *np.searchsorted(
                positions[:, axis], [window.start[axis] - reach, window.stop[axis] + reach]
            )
        )
        block = render_spots(positions[near], amplitudes[near], self.sigma_voxels, window)
        block += self._background(window)
        if self.noise > 0:
            volume, start = _as_volume(block, window)
            add_noise(volume, start, self._key, self.noise)
        (np.floor if self.truncated else np.rint)(block, out=block)
        limits = np.iinfo(self.dtype)
        return np.clip(block, limits.min, limits.max, out=block)

    def _background(self, window: Window) -> NDArray[np.float64]:
        """Return the background of a window, to be broadcast."""
        if self.gradient == 0:
            return np.array(self.background)
        slope = self.gradient / len(self.shape)
        total = np.array(1.0)
        for axis, n in enumerate(self.shape):
            place = np.arange(window.start[axis], window.stop[axis]) / max(1, n - 1) - 0.5
            shape = tuple(-1 if a == axis else 1 for a in range(len(self.shape)))
            total = total + slope * place.reshape(shape)
        return np.asarray(self.background * total)


def check_window(window: Window, shape: Sequence[int]) -> None:
    """Raise unless a window holds voxels and lies inside a volume."""
    if window.is_empty or window.clip(shape) != window:
        raise InputError(
            f"Cannot read {window.start}..{window.stop} of a volume of shape {tuple(shape)}. "
            "The window must hold voxels and lie inside the volume."
        )
