"""Spots of different classes lie on different shelves wherever partners are sought.

Only like spots may be paired: of one gene, of one channel. Partners are sought in many places, in
cell lists and trees that know distances alone: sums of the drift, votes, mutual neighbours,
growth, and what chance gives. None of them is told of classes. Instead every class has a shelf
along the longest axis of the moving cloud, so far from the next that any two like spots are nearer
to each other than any two unlike ones, while differences of like spots are what they were.

What is found among clouds on their shelves are rows and differences; maps are fitted to the spots
where they are. So a search takes what `Problem.moved` and `Problem.targets` give, a fit takes
`Problem.fixed` and `Problem.moving`. Without classes these are the same arrays, bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tilereg.matching.drift import local_density

__all__ = ["ALIKE", "Shelves"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# A spot that a map throws so many spacings out of the moving cloud stays there: farther than
# partners are ever sought, also from where spots are moved aside.
_MARGIN = 24.0


@dataclass(frozen=True, eq=False)
class Shelves:
    """Where spots lie while partners are sought; without classes where they are.

    Parameters
    ----------
    fixed, moving : (N,), (M,) int ndarrays, optional
        Number of each spot's class. None: all spots are alike.
    step : (D,) ndarray
        From one shelf to the next.
    low, high : (D,) ndarrays
        Box in which spots are kept on their shelves.
    """

    fixed: Rows | None = None
    moving: Rows | None = None
    step: Floats | None = None
    low: Floats | None = None
    high: Floats | None = None

    @classmethod
    def of(cls, numbers: tuple[Rows, Rows] | None, fixed: Floats, moving: Floats) -> Shelves:
        """Put up shelves for two clouds in units of the mean spacing.

        Parameters
        ----------
        numbers : pair of (N,), (M,) int ndarrays, optional
            Class of each spot, counted from 0.
        fixed, moving : (N, D), (M, D) ndarrays
        """
        if numbers is None or max(int(n.max(initial=0)) for n in numbers) == 0:
            return cls()
        low, high = moving.min(axis=0) - _MARGIN, moving.max(axis=0) + _MARGIN
        # Within the box like spots are no farther apart than its diagonal. Votes look at all
        # differences between the clouds.
        diagonal = float(np.linalg.norm(high - low))
        step = np.zeros(len(low))
        step[int(np.argmax(high - low))] = 2 * diagonal + float(
            np.linalg.norm(np.ptp(fixed, axis=0))
        )
        return cls(*numbers, step, low, high)

    @property
    def has_classes(self) -> bool:
        """Whether some spots may not be paired with some others."""
        return self.step is not None

    def classes(self, rows: Rows) -> Rows | None:
        """Return the classes of some fixed spots."""
        return None if self.fixed is None else self.fixed[rows]

    def take(self, rows: NDArray[np.bool_] | Rows) -> Shelves:
        """Return the same shelves for some of the fixed spots."""
        return self if self.fixed is None else replace(self, fixed=self.fixed[rows])

    def moved(self, points: Floats, rows: Rows | None = None) -> Floats:
        """Put fixed spots, all or some, that a map has brought to these points on their shelves."""
        if self.low is None or self.high is None:
            return points
        return self.lifted(np.clip(points, self.low, self.high), rows)

    def lifted(self, points: Floats, rows: Rows | None = None) -> Floats:
        """Put fixed spots on their shelves wherever they are, outside of the box too."""
        if self.fixed is None or self.step is None:
            return points
        numbers = self.fixed if rows is None else self.fixed[rows]
        return np.asarray(points + numbers[:, None] * self.step)

    def lowered(self, points: Floats, rows: Rows | NDArray[np.bool_]) -> Floats:
        """Take some fixed spots from their shelves."""
        if self.fixed is None or self.step is None:
            return points
        return np.asarray(points - self.fixed[rows][:, None] * self.step)

    def targets(self, moving: Floats) -> Floats:
        """Put the moving spots on their shelves."""
        if self.moving is None or self.step is None:
            return moving
        return np.asarray(moving + self.moving[:, None] * self.step)

    def num_alike(self, moving: Floats) -> float:
        """Return how many moving spots a fixed one might be paired with, in the mean."""
        if self.fixed is None or self.moving is None:
            return len(moving)
        ours, theirs = (np.bincount(n) for n in (self.fixed, self.moving))
        count = min(len(ours), len(theirs))
        return float(ours[:count] @ theirs[:count]) / len(self.fixed)

    def density(self, moving: Floats) -> Floats:
        """Return the local density (M,) of like spots around each moving spot."""
        if self.moving is None:
            return local_density(moving)
        out = np.empty(len(moving))
        order = np.argsort(self.moving, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(self.moving[order])) + 1):
            # One alone has no neighbour to measure by: it is as rare as one in the whole cloud.
            is_alone = len(rows) == 1
            out[rows] = _alone(moving) if is_alone else local_density(moving[rows])
        return out


ALIKE = Shelves()
"""Every spot may be the partner of every other."""


def _alone(moving: Floats) -> float:
    """Return the density of one spot in a cloud."""
    return float(local_density(moving).mean()) / len(moving)
