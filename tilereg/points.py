"""Records of points: detected spots and correspondences between two clouds."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.errors import InputError

__all__ = ["Correspondences", "Landmarks", "Spots", "canonical_order", "check_points"]


def check_points(points: ArrayLike, name: str = "points") -> NDArray[np.float64]:
    """Return points as a contiguous (N, D) float64 array, or say what is wrong with them.

    Raises
    ------
    InputError
        If the array is not (N, 2) or (N, 3), or holds a number that is not finite.
    """
    array = np.ascontiguousarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] not in (2, 3):
        raise InputError(
            f"Invalid shape {array.shape} of {name}. Points are an (N, 2) or (N, 3) array, "
            "axes in the order z, y, x."
        )
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"{int(bad.sum())} of {len(array)} {name} are not finite, the first in row {row}: "
            f"{array[row].tolist()}. Remove them first."
        )
    return array


def canonical_order(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the rows of (N, D) points by distance from their mean, then by coordinates.

    The order is that of the points, whatever the order of the rows; a rotation or a change of
    unit keeps it, except where distances are equal up to rounding.
    """
    # A plain mean depends on the order of the rows in its last digits.
    centre = np.array([math.fsum(column.tolist()) / max(1, len(column)) for column in points.T])
    square = ((points - centre) ** 2).sum(axis=1)
    return np.lexsort((*points.T[::-1], square)).astype(np.int64)


def _check_rows(record: Any, lengths: dict[str, int]) -> None:
    """Raise unless all columns of a record have the same number of rows."""
    if len(set(lengths.values())) > 1:
        raise InputError(f"Columns of {type(record).__name__} differ in length: {lengths}.")


@dataclass(frozen=True, kw_only=True)
class Spots:
    """Detected spots, one a row.

    Parameters
    ----------
    positions : (N, D) float64 ndarray, micrometre
        Sub-voxel centres in the world, axes z, y, x (y, x in 2D).
    sigma : (N,) float64 ndarray, micrometre
        Standard deviation of the blob, the same along every axis of the world.
    intensity : (N,) float64 ndarray
        Height above the local background, in the image's units.
    response : (N,) float64 ndarray
        Scale-normalised response of the detector; larger is clearer.
    localisation : (N,) float64 ndarray, micrometre
        Standard error of the position an axis, as noise and height imply it.
    chunk : (N,) int64 ndarray
        Rank, in C order, of the chunk that owns the spot.
    spot_class : (N,) ndarray of int or str, optional
        Class, such as a gene: only like spots are matched. None: all are alike.
    weight : (N,) float64 ndarray, optional
        Confidence, 0 to 1. None: all are believed.
    """

    positions: NDArray[np.float64]
    sigma: NDArray[np.float64]
    intensity: NDArray[np.float64]
    response: NDArray[np.float64]
    localisation: NDArray[np.float64]
    chunk: NDArray[np.int64]
    spot_class: NDArray[Any] | None = None
    weight: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Check that all columns have the same number of rows."""
        _check_rows(self, {name: len(column) for name, column in self._columns().items()})

    def _columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns that are there."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: column for name, column in columns.items() if column is not None}

    def __len__(self) -> int:
        """Return the number of spots."""
        return len(self.positions)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.positions.shape[1])

    @classmethod
    def empty(cls, ndim: int) -> Spots:
        """Return a record of no spots in `ndim` axes."""
        none = np.empty(0)
        return cls(
            positions=np.empty((0, ndim)),
            sigma=none,
            intensity=none,
            response=none,
            localisation=none,
            chunk=np.empty(0, dtype=np.int64),
        )

    @classmethod
    def at(
        cls,
        positions: NDArray[np.float64],
        *,
        spot_class: NDArray[Any] | None = None,
        weight: NDArray[np.float64] | None = None,
    ) -> Spots:
        """Return spots of which only the places are known, (N, D), and perhaps class and weight."""
        unknown = np.full(len(positions), np.nan)
        return cls(
            positions=positions,
            sigma=unknown,
            intensity=unknown,
            response=unknown,
            localisation=unknown,
            chunk=np.zeros(len(positions), dtype=np.int64),
            spot_class=spot_class,
            weight=weight,
        )

    def take(self, rows: NDArray[Any]) -> Spots:
        """Return the spots of these rows, given as indices or as a mask."""
        return Spots(**{name: column[rows] for name, column in self._columns().items()})

    @classmethod
    def concatenate(cls, parts: list[Spots]) -> Spots:
        """Return the spots of all parts, in their order; at least one part is needed.

        All parts have the same columns.
        """
        columns = [part._columns() for part in parts]
        return cls(**{name: np.concatenate([c[name] for c in columns]) for name in columns[0]})


@dataclass(frozen=True, kw_only=True)
class Correspondences:
    """Pairs of a fixed and a moving point, one a row.

    Parameters
    ----------
    fixed, moving : (K, D) float64 ndarray, micrometre
        Positions in the two clouds.
    fixed_index, moving_index : (K,) int64 ndarray
        Rows in the two clouds that were matched.
    weight : (K,) float64 ndarray
        Posterior probability of the pair, 0 to 1, times the confidence in its spots; 0 for a pair
        that entered nothing.
    residual : (K,) float64 ndarray, micrometre
        Distance of the transformed fixed from the moving point; of held-out pairs by the map
        that was fitted without them.
    held_out : (K,) bool ndarray
        Whether the pair was kept out of a first fit of the field, and so can judge it.
    tile : (K,) int64 ndarray
        The tile that owns the pair, 0 where there is but one.
    """

    fixed: NDArray[np.float64]
    moving: NDArray[np.float64]
    fixed_index: NDArray[np.int64]
    moving_index: NDArray[np.int64]
    weight: NDArray[np.float64]
    residual: NDArray[np.float64]
    held_out: NDArray[np.bool_]
    tile: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check that all columns have the same number of rows."""
        _check_rows(self, {f.name: len(getattr(self, f.name)) for f in fields(self)})

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.fixed)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.fixed.shape[1])

    def take(self, rows: NDArray[Any]) -> Correspondences:
        """Return the pairs of these rows, given as indices or as a mask."""
        return Correspondences(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def beside(self, others: Correspondences) -> Correspondences:
        """Return these pairs with others behind them."""
        return Correspondences(
            **{
                f.name: np.concatenate([getattr(self, f.name), getattr(others, f.name)])
                for f in fields(self)
            }
        )


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """Known pairs of a fixed and a moving point, one a row, and how a match obeys them.

    Parameters
    ----------
    fixed, moving : (L, D) float64 ndarray, micrometre
        What belongs together.
    weight : (L,) float64 ndarray
        Relative to a matched pair of spots: 1 is as good as one, 0 takes no part.
    residual : (L,) float64 ndarray, micrometre
        Distance from where the transform brings the fixed point to the moving one; NaN before a
        match.
    miss : (L,) float64 ndarray, micrometre
        Distance from where the pairs of spots around it say that the moving point is; NaN before
        a match, or where there are hardly any pairs.
    is_contradicted : (L,) bool ndarray
        Whether that is far more than pairs of spots miss one another.
    """

    fixed: NDArray[np.float64]
    moving: NDArray[np.float64]
    weight: NDArray[np.float64]
    residual: NDArray[np.float64]
    miss: NDArray[np.float64]
    is_contradicted: NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Check that all columns have the same number of rows."""
        _check_rows(self, {f.name: len(getattr(self, f.name)) for f in fields(self)})

    def __len__(self) -> int:
        """Return the number of landmarks."""
        return len(self.fixed)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.fixed.shape[1])

    def as_pairs(self) -> Correspondences:
        """Return the landmarks as pairs that are rows of no cloud: their indices are -1."""
        rows = np.full(len(self), -1, dtype=np.int64)
        return Correspondences(
            fixed=self.fixed,
            moving=self.moving,
            fixed_index=rows,
            moving_index=rows,
            weight=self.weight,
            residual=self.residual,
            held_out=np.zeros(len(self), dtype=bool),
            tile=np.zeros(len(self), dtype=np.int64),
        )

    @classmethod
    def of(cls, fixed: ArrayLike, moving: ArrayLike, weight: ArrayLike | None = None) -> Landmarks:
        """Return landmarks that no match has seen yet.

        Raises
        ------
        InputError
            If the points are not as many on both sides or of the same dimension, a number is not
            finite, or the weights are not one number >= 0 a landmark.
        """
        x, y = check_points(fixed, "fixed landmarks"), check_points(moving, "moving landmarks")
        if x.shape != y.shape:
            raise InputError(
                f"Landmarks are {x.shape} fixed and {y.shape} moving points. Every landmark needs "
                "one point on either side, with the same axes."
            )
        trust = np.ones(len(x)) if weight is None else np.asarray(weight, dtype=np.float64)
        if trust.shape != (len(x),):
            raise InputError(
                f"Invalid shape {trust.shape} of the weights of {len(x)} landmarks. One number a "
                "landmark is needed."
            )
        bad = ~(np.isfinite(trust) & (trust >= 0))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"Invalid weight {trust[row]} of landmark {row}, counted from 0. A weight is a "
                "finite number >= 0: 1 is as good as a matched pair of spots."
            )
        unknown = np.full(len(x), np.nan)
        return cls(
            fixed=x,
            moving=y,
            weight=trust,
            residual=unknown,
            miss=unknown,
            is_contradicted=np.zeros(len(x), dtype=bool),
        )

    def take(self, rows: NDArray[Any]) -> Landmarks:
        """Return the landmarks of these rows, given as indices or as a mask."""
        return Landmarks(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})
