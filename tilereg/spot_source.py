"""Spots that are read window by window, because no process need hold all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tilereg.points import Spots

__all__ = ["ArraySource", "SpotPart", "SpotSource"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


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

    def sample(self) -> Floats:
        """Return the positions (S, D) of some spots, spread as all are."""

    def read(self, low: Floats, high: Floats) -> SpotPart:
        """Return the spots x of a box, low <= x < high, in the order of their rows."""


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Spots in the memory of this process.

    Parameters
    ----------
    spots : Spots
        At least one.
    most : int
        Spots of the sample.
    """

    spots: Spots
    most: int = 100_000

    @property
    def count(self) -> int:
        """Number of spots."""
        return len(self.spots)

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        """Least and largest coordinates (D,), micrometre."""
        return self.spots.positions.min(axis=0), self.spots.positions.max(axis=0)

    def sample(self) -> Floats:
        """Return the positions (S, D) of some spots, spread as all are."""
        if self.count <= self.most:
            return self.spots.positions
        rows = np.random.default_rng(0).choice(self.count, self.most, replace=False)
        return self.spots.positions[np.sort(rows)]

    def read(self, low: Floats, high: Floats) -> SpotPart:
        """Return the spots x of a box, low <= x < high, in the order of their rows."""
        inside = ((self.spots.positions >= low) & (self.spots.positions < high)).all(axis=1)
        rows = np.flatnonzero(inside)
        part = self.spots.take(rows)
        return SpotPart(
            positions=part.positions, rows=rows, spot_class=part.spot_class, weight=part.weight
        )
