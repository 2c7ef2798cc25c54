"""Local displacements by voting: what brings a neighbourhood of spots onto the other cloud.

For a block of neighbouring fixed spots the histogram of all differences to nearby moving spots
has a peak at the block's displacement, whatever share of the spots has no partner. It is how a
field starts where the error of the affine pose is as large as the distance of spots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from tilereg.lattice import Lattice, NormalEquations
from tilereg.matching.cells import CellList
from tilereg.sampling import farthest_points
from tilereg.smoothing import Coherent, Solution

__all__ = ["Votes", "count_votes", "fit_votes", "known_votes"]

Floats = NDArray[np.float64]

_REACH = 2.5
_BIN = 0.2
# Deviation of the Gaussian that smooths a histogram, in bins.
_SMOOTHED = 1.2
_MOST_BLOCKS = 1000
_BATCH = 32
_BLOCK_SIZES = (150, 50)
_CLEAR = 5.0
_ROUNDS = 6
_NOISE = 0.15


@dataclass(frozen=True, eq=False)
class Votes:
    """Displacements of blocks.

    Parameters
    ----------
    centres : (B, D) ndarray
        Mean fixed position of each block.
    shifts : (B, D) ndarray
        Displacement that most of its differences vote for.
    scores : (B,) ndarray
        Height of the peak over the background, in deviations of the background.
    """

    centres: Floats
    shifts: Floats
    scores: Floats

    def on_top_of(self, field: Callable[[Floats], Floats]) -> Votes:
        """Return the votes of spots that a field had moved already, from where they were."""
        return Votes(self.centres, self.shifts + field(self.centres), self.scores)

    @classmethod
    def joined(cls, parts: list[Votes]) -> Votes:
        """Return the votes of several counts."""
        return cls(
            np.concatenate([part.centres for part in parts]),
            np.concatenate([part.shifts for part in parts]),
            np.concatenate([part.scores for part in parts]),
        )


def known_votes(points: Floats, shifts: Floats, weight: Floats) -> Votes:
    """Return known displacements (L, D) as votes, as clear as a clear one from a weight of 1 on."""
    return Votes(points, shifts, _CLEAR * (1.0 + weight))


def count_votes(fixed: Floats, predicted: Floats, moving: CellList, crowding: float = 1.0) -> Votes:
    """Vote in blocks of spots spread over the cloud; units of the mean spacing.

    Parameters
    ----------
    fixed, predicted : (N, D) ndarray
        Fixed spots and where the pose brings them.
    moving : CellList
        The moving cloud.
    crowding : float
        By how much nearer moving spots lie than fixed ones: what is looked at is that much nearer.
    """
    tree = cKDTree(fixed)
    reach, bin_size = np.full(fixed.shape[1], crowding * _REACH), crowding * _BIN
    centres, shifts, scores = [], [], []
    for size in dict.fromkeys(min(s, len(fixed)) for s in _BLOCK_SIZES):
        num_blocks = int(np.clip(3 * len(fixed) / size, 1, _MOST_BLOCKS))
        picked = _spread(fixed, num_blocks)
        blocks = tree.query(fixed[picked], k=size)[1].reshape(num_blocks, size)
        for first in range(0, num_blocks, _BATCH):
            batch = blocks[first : first + _BATCH]
            histograms = np.stack(
                [moving.vote(predicted[block], -reach, reach, bin_size) for block in batch]
            )
            smooth = (0.0, *(_SMOOTHED,) * fixed.shape[1])
            peaks, heights = _peaks(gaussian_filter(histograms, smooth, truncate=3.0))
            centres.append(fixed[batch].mean(axis=1))
            shifts.append(peaks * bin_size - reach)
            scores.append(heights)
    return Votes(np.concatenate(centres), np.concatenate(shifts), np.concatenate(scores))


def _spread(points: Floats, count: int) -> NDArray[np.int64]:
    """Return rows of points spread over the cloud; of very large clouds a part is looked at."""
    rows = np.arange(len(points))
    if len(rows) > 40 * count:
        rows = rows[:: len(rows) // (40 * count)]
    return rows[farthest_points(points[rows], count)]


def _peaks(histograms: Floats) -> tuple[Floats, Floats]:
    """Return the centres (B, D) of the highest peaks in bins and their heights in deviations."""
    shape = histograms.shape[1:]
    flat = histograms.reshape(len(histograms), -1)
    tops = np.stack(np.unravel_index(flat.argmax(axis=1), shape), axis=1)
    # Every other bin tells the background: neighbours are alike after the smoothing.
    some = histograms[(slice(None), *(slice(None, None, 2),) * len(shape))].reshape(len(flat), -1)
    median = np.median(some, axis=1, keepdims=True)
    spread = 1.4826 * np.median(np.abs(some - median), axis=1) + 0.02
    # Bins around the peak; those beyond the histogram weigh nothing.
    step = np.stack(np.meshgrid(*(np.arange(-2, 3),) * len(shape), indexing="ij"), axis=-1)
    bins = tops[:, None] + step.reshape(-1, len(shape))
    inside = ((bins >= 0) & (bins < shape)).all(axis=2)
    places = np.ravel_multi_index(tuple(np.moveaxis(bins, 2, 0)), shape, mode="clip")
    mass = np.maximum(np.take_along_axis(flat, places, axis=1) - median, 0.0) * inside
    total = np.maximum(mass.sum(axis=1, keepdims=True), 1e-12)
    centres = ((bins + 0.5) * (mass / total)[..., None]).sum(axis=1)
    return centres, (flat.max(axis=1) - median[:, 0]) / spread


def fit_votes(votes: Votes, lattice: Lattice, prior: Coherent) -> tuple[Solution, float]:
    """Fit a smooth field to the clear votes, the contradictory ones weighted down.

    Returns the solution and the share of the blocks that agree with it.
    """
    trust = np.clip((votes.scores - _CLEAR) / _CLEAR, 0.0, 1.0)
    weights = trust.copy()
    solution: Solution | None = None
    for step in range(_ROUNDS):
        equations = NormalEquations.assemble(
            lattice, votes.centres, weights / _NOISE**2, votes.shifts
        )
        solution = prior.solve(equations, start=solution, tolerance=1e-3)
        field = lattice.field(solution.coefficients)
        residual = np.linalg.norm(field(votes.centres) - votes.shifts, axis=1)
        scale = max(2 * _NOISE, 0.8 * 0.7**step)
        weights = trust / (1 + (residual / scale) ** 2) ** 2
    assert solution is not None
    agreeing = (residual < 3 * _NOISE) & (trust > 0)
    return solution, float(agreeing.mean())
