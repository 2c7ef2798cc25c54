"""Boxes of voxels: pad, clip, intersect, and the walk over chunks.

A window is a half-open box of voxel indices. Its *core* is what a task owns;
the core padded by a *halo* is what the task reads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tilereg.errors import InputError

__all__ = ["ChunkWindow", "Reader", "Window", "iter_windows", "num_windows"]


class Reader(Protocol):
    """What block functions read from: one spatial volume of one channel and time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels an axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""

    def read(self, window: Window) -> NDArray[Any]:
        """Read the voxels of a window, which lies inside the volume."""


@dataclass(frozen=True)
class Window:
    """Half-open box of voxel indices.

    Parameters
    ----------
    start, stop : tuple of int
        First index inside and first index behind, an axis each.
        A window is empty where ``stop <= start``.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that both corners have the same number of axes."""
        if len(self.start) != len(self.stop):
            raise InputError(
                f"Invalid window {self.start}..{self.stop}. Both corners must have the same "
                "number of axes."
            )

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Window:
        """Return the window of a whole array of this shape."""
        return cls((0,) * len(shape), tuple(int(n) for n in shape))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels an axis, never negative."""
        return tuple(max(0, b - a) for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def is_empty(self) -> bool:
        """Whether the window holds no voxel."""
        return self.size == 0

    @property
    def slices(self) -> tuple[slice, ...]:
        """The window as an index into an array."""
        return tuple(slice(a, max(a, b)) for a, b in zip(self.start, self.stop, strict=True))

    def pad(self, halo: int | Sequence[int]) -> Window:
        """Grow by `halo` voxels on every side (shrink where it is negative)."""
        grow = (halo,) * self.ndim if isinstance(halo, int) else tuple(halo)
        return Window(
            tuple(a - h for a, h in zip(self.start, grow, strict=True)),
            tuple(b + h for b, h in zip(self.stop, grow, strict=True)),
        )

    def intersect(self, other: Window) -> Window:
        """Return the part that lies in both windows; empty where there is none."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Window(start, tuple(max(a, b) for a, b in zip(start, stop, strict=True)))

    def clip(self, shape: Sequence[int]) -> Window:
        """Return the part that lies inside an array of this shape."""
        return self.intersect(Window.whole(shape))

    def shift(self, offset: Sequence[int]) -> Window:
        """Move by `offset` voxels."""
        return Window(
            tuple(a + o for a, o in zip(self.start, offset, strict=True)),
            tuple(b + o for b, o in zip(self.stop, offset, strict=True)),
        )

    def relative_to(self, outer: Window) -> Window:
        """Return this window in the indices of an array that holds `outer`."""
        return self.shift(tuple(-a for a in outer.start))

    def contains(self, points_index: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which points belong to the window.

        A point belongs to the window that holds its nearest voxel, halves rounding up, so
        that every point of a volume belongs to exactly one window of a partition.

        Parameters
        ----------
        points_index : (N, D) ndarray, voxels

        Returns
        -------
        (N,) ndarray of bool
        """
        nearest = np.floor(np.asarray(points_index) + 0.5)
        low, high = np.asarray(self.start), np.asarray(self.stop)
        return np.asarray(((nearest >= low) & (nearest < high)).all(axis=-1))


@dataclass(frozen=True)
class ChunkWindow:
    """One chunk of a chunked array.

    Parameters
    ----------
    index : tuple of int
        Position in the grid of chunks.
    number : int
        Its rank in C order.
    window : Window
        The voxels that it owns.
    """

    index: tuple[int, ...]
    number: int
    window: Window


def _edges(length: int, chunk: int | Sequence[int]) -> list[int]:
    """Return the chunk borders of one axis, first 0 and last `length`."""
    if isinstance(chunk, (int, np.integer)):
        if chunk < 1:
            raise InputError(f"Invalid chunk size {chunk}. A chunk must hold at least one voxel.")
        return [*range(0, length, int(chunk)), length]
    edges = [0, *itertools.accumulate(int(c) for c in chunk)]
    if edges[-1] != length:
        raise InputError(
            f"Chunks {tuple(chunk)} add up to {edges[-1]}, not to the {length} voxels."
        )
    return edges


def iter_windows(
    shape: Sequence[int], chunks: Sequence[int | Sequence[int]]
) -> Iterator[ChunkWindow]:
    """Walk over the chunks of an array in C order, lazily.

    Parameters
    ----------
    shape : (D,) ints
    chunks : (D,) ints or sequences of ints
        Chunk size an axis, or every chunk's size as in ``dask.array.Array.chunks``.
    """
    edges = [_edges(n, c) for n, c in zip(shape, chunks, strict=True)]
    ranges = [range(len(e) - 1) for e in edges]
    for number, index in enumerate(itertools.product(*ranges)):
        start = tuple(e[i] for e, i in zip(edges, index, strict=True))
        stop = tuple(e[i + 1] for e, i in zip(edges, index, strict=True))
        yield ChunkWindow(index, number, Window(start, stop))


def num_windows(shape: Sequence[int], chunks: Sequence[int | Sequence[int]]) -> int:
    """Return how many chunks `iter_windows` yields."""
    return math.prod(len(_edges(n, c)) - 1 for n, c in zip(shape, chunks, strict=True))
