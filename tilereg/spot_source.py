"""Spots that are read window by window, because no process need hold all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tilereg.points import Spots

__all__ = ["SAMPLED", "ArraySource", "SpotPart", "SpotSource", "is_picked"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

SAMPLED = 100_000
"""Spots of a sample, about."""


def is_picked(rows: Rows, share: float, seed: int) -> NDArray[np.bool_]:
    """Tell which rows belong to a random share: the same ones wherever they are read.

    By the hash of Steele, Lea & Flood, Fast splittable pseudorandom number generators (2014).
    """
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        # 53 bits, as many as a float has.
        z = (z ^ (z >> np.uint64(31))) >> np.uint64(11)
    return np.asarray(z < share * 2.0**53)


@dataclass(frozen=True, eq=False, kw_only=True)
class SpotPart:
    """Some of the spots of a cloud.

    Parameters
    ----------
    positions : (K, D) ndarray, micrometre
    rows : (K,) ndarray
        Of the cloud.
    spot_class, weight : (K,) ndarrays, optional
        As `Spots` has them.
    """

    positions: Floats
    rows: Rows
    spot_class: NDArray[Any] | None = None
    weight: Floats | None = None

    def __len__(self) -> int:
        """Return the number of spots."""
        return len(self.rows)

    def take(self, which: NDArray[Any]) -> SpotPart:
        """Return the spots of these places in the part, given as indices or as a mask."""
        return SpotPart(
            positions=self.positions[which],
            rows=self.rows[which],
            spot_class=None if self.spot_class is None else self.spot_class[which],
            weight=None if self.weight is None else self.weight[which],
        )


class SpotSource(Protocol):
    """A cloud of spots. Picklable, if it is to be read by other processes."""

    @property
    def count(self) -> int:
        """Number of spots."""

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        """Least and largest coordinates (D,), micrometre."""

    def sample(self) -> SpotPart:
        """Return about `SAMPLED` of the spots, or all: the share that `is_picked` with seed 0."""

    def read(self, low: Floats, high: Floats) -> SpotPart:
        """Return the spots x of a box, low <= x < high, in the order of their rows."""


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Spots in the memory of this process.

    Parameters
    ----------
    spots : Spots
    """

    spots: Spots

    @property
    def count(self) -> int:
        """Number of spots."""
        return len(self.spots)

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        """Least and largest coordinates (D,), micrometre."""
        return self.spots.positions.min(axis=0), self.spots.positions.max(axis=0)

    def sample(self) -> SpotPart:
        """Return about `SAMPLED` of the spots, or all: the share that `is_picked` with seed 0."""
        rows = np.arange(self.count)
        return self._part(rows[is_picked(rows, SAMPLED / max(1, self.count), 0)])

    def read(self, low: Floats, high: Floats) -> SpotPart:
        """Return the spots x of a box, low <= x < high, in the order of their rows."""
        inside = ((self.spots.positions >= low) & (self.spots.positions < high)).all(axis=1)
        return self._part(np.flatnonzero(inside))

    def _part(self, rows: Rows) -> SpotPart:
        """Return the spots of these rows."""
        part = self.spots.take(rows)
        return SpotPart(
            positions=part.positions, rows=rows, spot_class=part.spot_class, weight=part.weight
        )
