"""Pairs as a field model sees them: checked, and in an order and a unit of their own.

Both follow from the points alone, so neither the order of the rows of a table nor the unit of
the world changes what is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.affine import fit_affine
from tilereg.agreement import agreement
from tilereg.errors import InputError
from tilereg.field import mean_spacing
from tilereg.points import canonical_order, check_points
from tilereg.transform import Affine

__all__ = ["Pairs", "check_pairs", "in_order"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs in units of the mean spacing of their fixed points, less an affine map.

    Parameters
    ----------
    points : (K, D) ndarray
        Fixed points in mean spacings, centred; each place once.
    values : (K, D) ndarray
        Where they are moved, less the affine map.
    weight : (K,) ndarray
        Above zero.
    affine : Affine
        In mean spacings, from centred fixed to centred moving points.
    unit : float, micrometre
        Mean spacing.
    centre : (D,) ndarray, micrometre
        What both clouds are centred by.
    trusted : (N,) ndarray
        Weight of each pair as given, zero for those that are left out.
    """

    points: Floats
    values: Floats
    weight: Floats
    affine: Affine
    unit: float
    centre: Floats
    trusted: Floats

    @classmethod
    def of(
        cls,
        fixed: ArrayLike,
        moving: ArrayLike,
        weight: ArrayLike | None = None,
        *,
        robust: bool = False,
    ) -> Pairs:
        """Check pairs, leave out those of weight zero, and join those at one place.

        Least squares, penalised or not, see several pairs at one place as one at their weighted
        mean with the sum of their weights.

        Parameters
        ----------
        fixed, moving : (N, D) array_like, micrometre
        weight : (N,) array_like, optional
            Confidence in each pair. Default 1.
        robust : bool
            Whether pairs that contradict their neighbours are weighted down.

        Raises
        ------
        InputError
            If the shapes differ, a number is not finite or out of range, or fewer than D + 2
            places have a weight.
        """
        x, y, trust = check_pairs(fixed, moving, weight)
        ndim = x.shape[1]
        kept = in_order(x, y, trust)
        num_places = len(np.unique(x[kept], axis=0))
        if num_places < ndim + 2:
            raise InputError(
                f"Cannot fit a field to pairs at {num_places} places. At least {ndim + 2} places "
                "with a weight above zero are needed; use an affine map for fewer."
            )
        unit, centre = mean_spacing(x[kept]), x[kept].mean(axis=0)
        points, targets = (x[kept] - centre) / unit, (y[kept] - centre) / unit
        known = trust[kept]
        if robust:
            agreed = known * agreement(points, targets, known)
            known = agreed if (agreed > 0).sum() > ndim + 1 else known
        trusted = np.zeros(len(x))
        trusted[kept] = known
        points, targets, known = _joined(points[known > 0], targets[known > 0], known[known > 0])
        affine = fit_affine(points, targets, known, prior=1e-6)
        return cls(
            points=points,
            values=targets - affine(points),
            weight=known,
            affine=affine,
            unit=unit,
            centre=centre,
            trusted=trusted,
        )

    def __len__(self) -> int:
        """Return the number of places."""
        return len(self.points)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.points.shape[1])

    @property
    def world_affine(self) -> Affine:
        """The affine map in micrometre."""
        matrix = self.affine.matrix
        return Affine(matrix, self.unit * self.affine.offset + self.centre - matrix @ self.centre)

    def inward(self, points: Floats) -> Floats:
        """Change fixed points (N, D) from micrometre."""
        return np.asarray((points - self.centre) / self.unit)

    def outward(self, points: Floats) -> Floats:
        """Change points (N, D) to micrometre."""
        return np.asarray(points * self.unit + self.centre)


def check_pairs(
    fixed: ArrayLike, moving: ArrayLike, weight: ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    """Return valid arrays of fixed and moving points and of weights.

    Raises
    ------
    InputError
        If the shapes differ, or a number is not finite or out of range.
    """
    x, y = check_points(fixed, "fixed points"), check_points(moving, "moving points")
    if x.shape != y.shape:
        raise InputError(
            f"Cannot fit a field to {x.shape} fixed and {y.shape} moving points. Pairs need as "
            "many of either, of the same dimension."
        )
    trust = np.ones(len(x)) if weight is None else np.asarray(weight, dtype=np.float64)
    if trust.shape != (len(x),) or not (np.isfinite(trust) & (trust >= 0)).all():
        raise InputError(
            f"Invalid weights of shape {trust.shape} for {len(x)} pairs. One finite number >= 0 a "
            "pair is needed; 0 leaves a pair out."
        )
    return x, y, trust


def in_order(fixed: Floats, moving: Floats, weight: Floats) -> Rows:
    """Return the rows of pairs with a weight, in an order that is that of the pairs."""
    kept = np.flatnonzero(weight)
    # First by all that is known of them: of points at one place any may come first.
    kept = kept[np.lexsort((weight[kept], *moving[kept].T[::-1], *fixed[kept].T[::-1]))]
    return kept[canonical_order(fixed[kept])]


def _joined(points: Floats, targets: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Return each place once, in the order of the first pair there."""
    first, place = np.unique(points, axis=0, return_index=True, return_inverse=True)[1:]
    if len(first) == len(points):
        return points, targets, weight
    order = np.argsort(first)
    rank = np.empty(len(first), dtype=np.int64)
    rank[order] = np.arange(len(first))
    total = np.bincount(rank[place.ravel()], weight)
    sums = [np.bincount(rank[place.ravel()], weight * column) for column in targets.T]
    mean: Floats = np.stack(sums, axis=1) / total[:, None]
    return points[first[order]], mean, np.asarray(total, dtype=np.float64)
