"""How unlikely it is that chance gives as many partners as a map does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from tilereg.matching.cells import CellList
from tilereg.matching.clouds import steps_aside
from tilereg.matching.shelves import Shelves

__all__ = ["Chance"]

Floats = NDArray[np.float64]

_TOLERANCES = (0.6, 0.35, 0.2, 0.1, 0.05, 0.02, 0.01)
# How much denser than on average the surroundings of a spot are taken to be.
_CLUSTERING = 3.0
_FEWEST_HITS = 10
_CELL = 2.0


@dataclass(frozen=True, eq=False)
class Chance:
    """What chance is measured with: the moving spots, and steps that part all pairs.

    Parameters
    ----------
    cells : CellList
        The moving spots where partners are sought.
    aside : (S, D) ndarray
    density : float
        Moving spots that a fixed one might be paired with, in a unit volume.
    wider : float
        How many times as far as usual partners are sought: 1, or more where like spots are sparse.
    """

    cells: CellList
    aside: Floats
    density: float
    wider: float

    @classmethod
    def of(cls, moving: Floats, shelves: Shelves, near: float) -> Chance:
        """Gather it for a moving cloud in units of the mean spacing; `near` as by `crowding`."""
        wider = max(1.0, near)
        volume = float(np.prod(np.ptp(moving, axis=0) + 1.0))
        return cls(
            CellList.build(shelves.targets(moving), _CELL),
            steps_aside(moving, wider),
            shelves.num_alike(moving) / volume,
            wider,
        )

    def evidence(self, moved: Floats, parameters: int) -> float:
        """Return log10 of the chance of as many partners, the best of several tolerances.

        Parameters
        ----------
        moved : (N, D) ndarray
            Where a map brings fixed spots, on their shelves.
        parameters : int
            Of the map: the spots that they could have placed do not count.
        """
        num, ndim = moved.shape
        ball = math.pi if ndim == 2 else 4 / 3 * math.pi
        spent = math.ceil(parameters / ndim)
        best = 0.0
        for tolerance in (self.wider * t for t in _TOLERANCES):
            count = int((self.cells.count_within(moved, tolerance) > 0).sum())
            hits = sum(
                int((self.cells.count_within(moved + a, tolerance) > 0).sum()) for a in self.aside
            )
            chance = hits / (num * len(self.aside))
            if hits < _FEWEST_HITS:
                # Few spots moved aside may all miss: the density says what many would find.
                expected = _CLUSTERING * self.density * ball * tolerance**ndim
                chance = min(1.0, max(chance, expected))
            log_chance = binom.logsf(count - spent - 1, max(1, num - spent), chance)
            best = min(best, float(log_chance) / math.log(10) + math.log10(len(_TOLERANCES)))
        return best
