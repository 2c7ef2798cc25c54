"""Where voxels are: shape, spacing and origin of a regular grid in the world.

The world is in micrometre, axes in the order z, y, x (y, x in 2D). A voxel's centre is at
its integer index, so ``world = origin + spacing * index``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.errors import InputError
from tilereg.windows import Window

__all__ = ["AXES", "Grid"]

AXES = ("z", "y", "x")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A regular grid of voxels in the world.

    Parameters
    ----------
    shape : tuple of int
        Number of voxels an axis; two or three axes.
    spacing : tuple of float, micrometre
        Distance of neighbouring voxels, above zero. Default 1.
    origin : tuple of float, micrometre
        World position of the centre of voxel (0, 0, 0). Default 0.

    Raises
    ------
    InputError
        If the lengths differ, a size is below one, a spacing is not above zero, or a number
        is not finite.

    Examples
    --------
    >>> grid = Grid(shape=(10, 20), spacing=(0.5, 0.2))
    >>> grid.to_world([[2, 5]])
    array([[1., 1.]])
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] = field(default=())
    origin: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        """Fill in the defaults and check every value."""
        shape = tuple(int(n) for n in self.shape)
        ndim = len(shape)
        spacing = tuple(float(s) for s in self.spacing) or (1.0,) * ndim
        origin = tuple(float(o) for o in self.origin) or (0.0,) * ndim
        if ndim not in (2, 3):
            raise InputError(f"Invalid shape {shape}. A grid has two or three axes, not {ndim}.")
        if len(spacing) != ndim or len(origin) != ndim:
            raise InputError(
                f"Shape {shape}, spacing {spacing} and origin {origin} must have one number "
                "an axis."
            )
        if min(shape) < 1:
            raise InputError(f"Invalid shape {shape}. Every axis must have at least one voxel.")
        for name, step in zip(AXES[-ndim:], spacing, strict=True):
            if not (np.isfinite(step) and step > 0):
                raise InputError(
                    f"Invalid spacing {spacing} um. Every spacing must be > 0 and finite; "
                    f"axis '{name}' is {step}."
                )
        if not np.isfinite(origin).all():
            raise InputError(f"Invalid origin {origin} um. Every number must be finite.")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "spacing", spacing)
        object.__setattr__(self, "origin", origin)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes, ('z', 'y', 'x') or ('y', 'x')."""
        return AXES[-self.ndim :]

    @property
    def size(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def window(self) -> Window:
        """The window of all voxels."""
        return Window.whole(self.shape)

    @property
    def extent(self) -> tuple[float, ...]:
        """Size of the box of all voxels an axis, their half voxels at the rim included, in um."""
        return tuple(n * s for n, s in zip(self.shape, self.spacing, strict=True))

    @property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """World positions of the centres of the first and the last voxel."""
        low = np.asarray(self.origin)
        return low, low + (np.asarray(self.shape) - 1) * np.asarray(self.spacing)

    def to_world(self, points_index: ArrayLike) -> NDArray[np.float64]:
        """Map (..., D) voxel indices to world positions in micrometre."""
        return np.asarray(points_index, dtype=np.float64) * self.spacing + self.origin

    def to_index(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (..., D) world positions in micrometre to (fractional) voxel indices."""
        return (np.asarray(points, dtype=np.float64) - self.origin) / self.spacing

    def crop(self, window: Window) -> Grid:
        """Return the grid of a window of this grid; voxels keep their places in the world."""
        return Grid(
            shape=window.shape,
            spacing=self.spacing,
            origin=tuple(self.to_world(np.asarray(window.start)).tolist()),
        )

    def coarsen(self, factor: int | Sequence[int]) -> Grid:
        """Return the grid of the means of `factor` voxels an axis.

        Odd sizes floor, but never below one voxel. The origin moves by
        ``(factor - 1) / 2`` spacings to the middle of the averaged voxels.
        """
        factors = (factor,) * self.ndim if isinstance(factor, int) else tuple(factor)
        if len(factors) != self.ndim or min(factors) < 1:
            raise InputError(f"Invalid factor {factor}. One integer above zero an axis is needed.")
        return Grid(
            shape=tuple(max(1, n // f) for n, f in zip(self.shape, factors, strict=True)),
            spacing=tuple(s * f for s, f in zip(self.spacing, factors, strict=True)),
            origin=tuple(
                o + (f - 1) / 2 * s
                for o, s, f in zip(self.origin, self.spacing, factors, strict=True)
            ),
        )

    def contains(self, points: ArrayLike) -> NDArray[np.bool_]:
        """Tell which (N, D) world points lie in the box of the voxels, half voxels included."""
        index = self.to_index(points)
        inside = (index >= -0.5) & (index < np.asarray(self.shape) - 0.5)
        return np.asarray(inside.all(axis=-1))
