"""What every engine is given, and what it gives back, in units of the mean spacing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tilereg.kriging import Kriging
from tilereg.matching.clouds import crowding, steps_aside
from tilereg.matching.drift import Known
from tilereg.matching.shelves import ALIKE, Shelves
from tilereg.points import Landmarks
from tilereg.transform import Transform

if TYPE_CHECKING:
    from tilereg.matching.extension import Extension

__all__ = ["FEWEST_PAIRS", "Found", "Problem"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

FEWEST_PAIRS = 4
"""Fewer pairs tell nothing about a map."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Two clouds in units of the mean spacing, and how they are to be matched.

    Parameters
    ----------
    fixed, moving : (N, D), (M, D) ndarrays
    low, high : (D,) ndarrays
        Corners of the box in which a field may vary.
    held : (N,) bool ndarray
        Fixed spots that judge: no engine may let them into a fit.
    w : float
        Share of moving spots without a partner to start from.
    beta : float, optional
        Coherence width that was asked for.
    field : str
        'auto', 'coherent' or 'kriging', see `match_spots`.
    max_iterations : int
        Most iterations of a stage.
    shelves : Shelves
        Which spots may be partners: where clouds lie while partners are sought.
    landmarks : Landmarks, optional
        Known pairs, which enter every fit.
    fixed_weight, moving_weight : (N,), (M,) ndarrays, optional
        Confidence in each spot, above 0 and up to 1. None: all are believed.
    """

    fixed: Floats
    moving: Floats
    low: Floats
    high: Floats
    held: NDArray[np.bool_]
    w: float
    beta: float | None
    field: str
    max_iterations: int
    shelves: Shelves = ALIKE
    landmarks: Landmarks | None = None
    fixed_weight: Floats | None = None
    moving_weight: Floats | None = None

    def on_shelves(self, numbers: tuple[Rows, Rows] | None) -> Problem:
        """Return the same problem with spots of these classes, where there are some."""
        return dataclasses.replace(self, shelves=Shelves.of(numbers, self.fixed, self.moving))

    @cached_property
    def fitted_rows(self) -> Rows:
        """Rows of the fixed spots that may enter a fit."""
        return np.flatnonzero(~self.held)

    @cached_property
    def fitted(self) -> Floats:
        """The fixed spots that may enter a fit."""
        return self.fixed[~self.held]

    @cached_property
    def targets(self) -> Floats:
        """The moving spots where partners are sought among them."""
        return self.shelves.targets(self.moving)

    def moved(self, map_: Callable[[Floats], Floats], rows: Rows | None = None) -> Floats:
        """Bring fixed spots, all or some, to where their partners are sought among `targets`."""
        return self.shelves.moved(map_(self.fixed if rows is None else self.fixed[rows]), rows)

    @cached_property
    def density(self) -> Floats:
        """Local density of the moving spots, of like ones."""
        return self.shelves.density(self.moving)

    @cached_property
    def crowding(self) -> float:
        """By how much nearer moving spots lie than fixed ones."""
        if not self.shelves.has_classes:
            return crowding(self.fixed, self.moving)
        return crowding(self.fixed, self.moving, (self.shelves.lifted(self.fixed), self.targets))

    @cached_property
    def aside(self) -> Floats:
        """Steps (S, D) that part all pairs: what is paired then is by chance."""
        return steps_aside(self.moving, max(1.0, self.crowding))

    def given(
        self, ours: Rows, theirs: Rows, *, is_last: bool = False
    ) -> tuple[Floats, Floats, Floats | None]:
        """Return what a fit to (K,) pairs is given: their spots, then the landmarks, and weights.

        No weights where all are alike. Until the last fit no landmark counts for more than a pair
        of spots: a heavy one that is wrong would lead all spots around it to wrong partners, and
        nothing would contradict it.
        """
        x, y, trust = self.fixed[ours], self.moving[theirs], self.confidence(ours, theirs)
        if self.landmarks is None:
            return x, y, trust
        x, y, weight = self.with_landmarks(x, y, np.ones(len(x)) if trust is None else trust)
        if is_last:
            weight[len(ours) :] = self.landmarks.weight
        return x, y, weight

    def confidence(self, ours: Rows, theirs: Rows) -> Floats | None:
        """Return the product of the weights of (K,) pairs of spots; None where all are 1."""
        parts = [
            weight[rows]
            for weight, rows in ((self.fixed_weight, ours), (self.moving_weight, theirs))
            if weight is not None
        ]
        return np.asarray(np.prod(parts, axis=0)) if parts else None

    def with_landmarks(self, x: Floats, y: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
        """Return (K, D) points, partners and (K,) weights with landmarks behind, weighing <= 1."""
        if self.landmarks is None:
            return x, y, weight
        known = self.landmarks
        return (
            np.concatenate([x, known.fixed]),
            np.concatenate([y, known.moving]),
            np.concatenate([weight, np.minimum(known.weight, 1.0)]),
        )

    def trust(self, rows: Rows) -> tuple[Floats | None, Floats | None]:
        """Return the weights of some fixed spots and of the moving ones."""
        ours = None if self.fixed_weight is None else self.fixed_weight[rows]
        return ours, self.moving_weight

    def known(self, base: Callable[[Floats], Floats]) -> Known | None:
        """Return what landmarks, weighing <= 1, say of the field on top of a map."""
        if self.landmarks is None:
            return None
        points, weight = self.landmarks.fixed, np.minimum(self.landmarks.weight, 1.0)
        return Known(points, self.landmarks.moving - base(points), weight)

    @property
    def box(self) -> tuple[Floats, Floats]:
        """Where a field may vary."""
        return self.low, self.high


@dataclass(frozen=True, kw_only=True)
class Found:
    """A map that has not seen the held-out spots.

    Parameters
    ----------
    map : Transform
    sigma : float
        Standard deviation of a pair an axis.
    model : str
        'translation', 'rigid', 'affine' or 'field'.
    beta : float
        Coherence width of the field; infinite for a spline, NaN for the other models.
    w : float
        Share of the moving spots without a partner.
    losses : dict
        Held-out residuals that the model was chosen by.
    iterations : list of int
        Of each stage.
    field : str, optional
        Kind of the field; None where the map is affine.
    num_compared : int
        Maps among which the held-out spots have chosen it.
    compared : dict
        Residuals of the held-out spots that the field was chosen by.
    extension : Extension, optional
        What the map was extended by.
    kriging : Kriging, optional
        The fit that made the map.
    """

    map: Transform
    sigma: float
    model: str
    beta: float
    w: float
    losses: dict[str, float]
    iterations: list[int]
    field: str | None
    num_compared: int = 1
    compared: dict[str, float] = dataclasses.field(default_factory=dict)
    extension: Extension | None = None
    kriging: Kriging | None = None

    @property
    def grown(self) -> tuple[Rows, Rows] | None:
        """The pairs of an extension: the map alone might not bring all of them together again."""
        if self.extension is None:
            return None
        return self.extension.fixed_rows, self.extension.moving_rows
