"""Volumes that are pulled from others through a map in closed form, window by window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from tilereg.deformations import GaussianBumps, PolynomialField, invert
from tilereg.errors import InputError
from tilereg.grid import Grid
from tilereg.kernels.pulling import PullArrays, pull_linear
from tilereg.rendering import SyntheticVolume, check_window
from tilereg.windows import Window, iter_windows

__all__ = ["PullInverse", "PullMap", "PulledVolume"]

_BLOCK = (64, 256, 256)  # voxels of a pulled volume that are computed at once
_STARTS = 48  # places an axis from which the inverse sets out, at most


@dataclass(frozen=True, kw_only=True, eq=False)
class PullMap:
    """Where the voxels of a moving image come from: fields of view, turn, deformation.

    A voxel of index x in field of view f, which was shifted by ``s_f``, comes from the index
    ``D(turn (x - s_f) * spacing + middle) / spacing``, D the deformation.

    Parameters
    ----------
    field : PolynomialField or GaussianBumps
        D, in the world.
    grid : Grid
        Of both images; its origin is zero.
    turn, middle : (3, 3) and (3,) ndarray
        A rotation, in the world.
    jumps : (2, 2, 2) ndarray, voxels
        Shift in y and x of each field of view, of which there are 2 x 2 in y and x.
    """

    field: PolynomialField | GaussianBumps
    grid: Grid
    turn: NDArray[np.float64]
    middle: NDArray[np.float64]
    jumps: NDArray[np.float64]

    def __call__(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (N, 3) voxel indices, moving to reference."""
        return self.field(self._turned(points)) / self.grid.spacing

    def jacobian(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the (N, 3, 3) derivatives at (N, 3) voxel indices."""
        inner = self.turn * self.grid.spacing
        slope = self.field.jacobian(self._turned(points)) @ inner
        return np.asarray(slope / np.asarray(self.grid.spacing)[:, None])

    def _turned(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return where (N, 3) voxel indices are before the deformation, in the world."""
        index = np.array(points, dtype=np.float64).reshape(-1, 3)
        index[:, 1:] -= self.jumps[self.field_of_view(index)]
        return np.asarray(index * self.grid.spacing @ self.turn.T + self.middle)

    def turned_back(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the voxel indices that `_turned` sends to (N, 3) places; NaN for none.

        At a seam between fields of view a place can be shown twice; the answer is then in the
        field of view where it would be without jumps.
        """
        index = (places - self.middle) @ np.linalg.inv(self.turn).T / self.grid.spacing
        result = np.full_like(index, np.nan)
        row, column = self.field_of_view(index)
        for flip in ((0, 0), (0, 1), (1, 0), (1, 1)):
            view = row ^ flip[0], column ^ flip[1]
            trial = index.copy()
            trial[:, 1:] += self.jumps[view]
            shown = np.stack(self.field_of_view(trial)) == np.stack(view)
            free = shown.all(axis=0) & np.isnan(result).any(axis=1)
            result[free] = trial[free]
        return result

    def field_of_view(
        self, index: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return row and column, (N,) each, of the field of view that shows voxel indices."""
        upper = index[:, 1:] >= self._borders
        return upper[:, 0].astype(np.int64), upper[:, 1].astype(np.int64)

    @property
    def _borders(self) -> NDArray[np.float64]:
        """Where the second field of view begins along y and x, in voxels."""
        return (np.array(self.grid.shape[1:]) - 1) / 2

    @cached_property
    def arrays(self) -> PullArrays:
        """The map as the kernels take it."""
        polynomial, bumps = self.field, self.field
        none = np.zeros((0, 3))
        if isinstance(bumps, GaussianBumps):
            matrix, offset = bumps.matrix, bumps.offset
            coefficients, scale, shift = np.zeros((0, 6)), np.zeros(3), np.zeros(3)
            centres, amplitudes = bumps.centres, bumps.amplitudes
            sharpness = 0.5 / bumps.widths**2
        if isinstance(polynomial, PolynomialField):
            matrix, offset = np.eye(3), np.zeros(3)
            coefficients = polynomial.coefficients
            scale, shift = polynomial.scale, polynomial.shift
            centres, amplitudes, sharpness = none, none, np.zeros(0)
        spacing = np.array(self.grid.spacing)
        inner, outer = self.turn * spacing, 1 / spacing[:, None]
        jumps = np.concatenate([np.zeros((2, 2, 1)), self.jumps], axis=-1)
        parts = (
            self._borders, inner, self.middle - jumps @ inner.T,
            matrix * outer, offset / spacing, coefficients * outer[: len(coefficients)],
            scale, shift, centres, amplitudes / spacing, sharpness,
        )  # fmt: skip
        return PullArrays(*(np.ascontiguousarray(part, dtype=np.float64) for part in parts))

    def bounds(self, window: Window) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a box of voxel indices (two corners) that holds where a window comes from."""
        lows, highs = [], []
        edges = [
            sorted({a, min(max(math.ceil(border), a), b), b})
            for border, a, b in zip(self._borders, window.start[1:], window.stop[1:], strict=True)
        ]
        for rows, columns in product(*(pairwise(edge) for edge in edges)):
            part = [(window.start[0], window.stop[0]), rows, columns]
            corners = np.array(list(product(*((a, b - 1) for a, b in part))), dtype=np.float64)
            turned = self._turned(corners)
            low, high = self.field.bounds(turned.min(axis=0), turned.max(axis=0))
            lows.append(low / self.grid.spacing)
            highs.append(high / self.grid.spacing)
        return np.min(lows, axis=0), np.max(highs, axis=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class PullInverse:
    """The inverse of a `PullMap`: reference to moving.

    Parameters
    ----------
    pull : PullMap
    """

    pull: PullMap

    def __call__(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (N, 3) voxel indices of the reference to the moving image.

        NaN where nothing of the moving image's surroundings (a quarter of its size) comes from
        there, and where the search does not get there. Where the map folds, or a seam shows a
        place twice, the result is one of several, inside the moving image if one was found
        there. Memory is some 500 bytes a point.
        """
        index = np.array(points, dtype=np.float64).reshape(-1, 3)
        result = np.full_like(index, np.nan)
        finite = np.isfinite(index).all(axis=1)
        targets = index * self.pull.grid.spacing
        last = np.asarray(self.pull.grid.shape) - 1
        for places, tree in self._starts:
            todo = np.flatnonzero(finite & ~((result >= 0) & (result <= last)).all(axis=1))
            if todo.size == 0:
                break
            guess = places[tree.query(targets[todo])[1]]
            found = self.pull.turned_back(invert(self.pull.field, targets[todo], guess))
            inside = ((found >= 0) & (found <= last)).all(axis=1)
            better = inside | np.isnan(result[todo]).any(axis=1)
            result[todo[better]] = found[better]
        return result

    @cached_property
    def _starts(self) -> tuple[tuple[NDArray[np.float64], cKDTree], ...]:
        """Places before the deformation, and where it sends them: inside, and all around."""
        grid = self.pull.grid
        starts = []
        for rim in (0.0, 0.25):
            axes = [
                np.linspace(-rim * n, n - 1 + rim * n, min(max(n, 2), _STARTS)) * step
                for n, step in zip(grid.shape, grid.spacing, strict=True)
            ]
            box = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
            places = box @ self.pull.turn.T + self.pull.middle
            starts.append((places, cKDTree(self.pull.field(places))))
        return tuple(starts)


@dataclass(frozen=True, kw_only=True, eq=False)
class PulledVolume:
    """A volume whose voxels come from another, computed where it is read.

    The source is interpolated linearly; what comes from outside of it, by more than 1e-9 voxels,
    is zero. Any chunking gives the same voxels. Beside the result a read holds a block of up to
    64 x 256 x 256 voxels, what this comes from, and some 20 MB.

    Parameters
    ----------
    source : SyntheticVolume
        Of an integer type.
    pull : PullMap
        Where the voxels of this volume come from in the source.
    """

    source: SyntheticVolume
    pull: PullMap

    @property
    def grid(self) -> Grid:
        """Where the voxels are."""
        return self.pull.grid

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels an axis."""
        return self.grid.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""
        return self.source.dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Compute the voxels of a window, which lies inside the volume."""
        check_window(window, self.shape)
        values = np.zeros(window.shape, dtype=self.dtype)
        for unit in iter_windows(window.shape, _BLOCK):
            block = np.empty(unit.window.shape, dtype=self.dtype)
            self._fill(block, unit.window.shift(window.start))
            values[unit.window.slices] = block
        return values

    def source_window(self, window: Window) -> Window:
        """Return the voxels of the source that a window needs; empty if it comes from outside."""
        low, high = self.pull.bounds(window)
        # The kernel rounds otherwise than this; and far away is outside, however far.
        low = np.clip(np.floor(low - 1e-6), -1e9, 1e9)
        high = np.clip(np.floor(high + 1e-6) + 2, -1e9, 1e9)
        first, behind = (tuple(int(i) for i in side) for side in (low, high))
        return Window(first, behind).clip(self.source.shape)

    def _fill(self, block: NDArray[Any], window: Window) -> None:
        """Write the voxels of a window."""
        needed = self.source_window(window)
        if needed.is_empty:
            block[...] = 0
            return
        missing = pull_linear(
            self.pull.arrays,
            self.source.read(needed),
            np.array(needed.start),
            np.array(self.source.shape),
            np.array(window.start),
            block,
        )
        if missing:
            raise InputError(
                f"Window {window.start}..{window.stop} needed {missing} voxels from outside of "
                f"{needed.start}..{needed.stop}. The map must give the same result each time."
            )
