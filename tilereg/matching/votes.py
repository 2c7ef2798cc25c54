"""Local displacements by voting: what brings a neighbourhood of spots onto the other cloud.

For a block of neighbouring fixed spots the histogram of all differences to nearby moving spots
has a peak at the block's displacement, whatever share of the spots has no partner. It is how a
field starts where the error of the affine pose is as large as the distance of spots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from tilereg.lattice import Lattice, NormalEquations
from tilereg.matching.cells import CellList
from tilereg.sampling import farthest_points
from tilereg.smoothing import Coherent, Solution
from tilereg.transform import DisplacementField

__all__ = ["CLEAR", "VOTE_CELL", "Ballot", "Predict", "Votes", "fit_votes", "known_votes"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

Predict = Callable[[DisplacementField | None], Floats]
"""Where the pose and a field on top of it bring the fixed spots, among the moving ones."""

VOTE_CELL = 2.5
"""Size of the cells in which moving spots are sought, in spacings."""

_REACH = 2.5
_BIN = 0.2
# Deviation of the Gaussian that smooths a histogram, in bins.
_SMOOTHED = 1.2
# Blocks of a size, and so many where those do not agree.
_MOST_BLOCKS, _MANY_BLOCKS = 1000, 10_000
_BATCH = 32
_BLOCK_SIZES = (150, 50)
CLEAR = 5.0
"""Score from which on a vote tells something."""

_ROUNDS = 6
_NOISE = 0.15
# Blocks vote again unless this share of the clear votes agrees, until so many of all blocks do, or
# no more than this more do than before.
_ALL, _MORE, _MOST_BALLOTS = 0.95, 0.01, 10
# Fewer wide blocks than this are too few to agree for all.
_FEWEST_BLOCKS = 50


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
    blocks : (B,) ndarray
        Which block has voted; -1 for a displacement that is known.
    """

    centres: Floats
    shifts: Floats
    scores: Floats
    blocks: Rows

    def on_top_of(self, field: Callable[[Floats], Floats] | None) -> Votes:
        """Return the votes of spots that a field had moved already, from where they were."""
        if field is None:
            return self
        return replace(self, shifts=self.shifts + field(self.centres))

    def take(self, which: NDArray[np.bool_]) -> Votes:
        """Return some of the votes."""
        return Votes(*(getattr(self, f.name)[which] for f in fields(self)))

    @classmethod
    def none(cls, ndim: int) -> Votes:
        """Return no votes."""
        return cls(np.empty((0, ndim)), np.empty((0, ndim)), np.empty(0), np.empty(0, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Votes]) -> Votes:
        """Return the votes of several counts."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))


def known_votes(points: Floats, shifts: Floats, weight: Floats) -> Votes:
    """Return known displacements (L, D) as votes, as clear as a clear one from a weight of 1 on."""
    return Votes(points, shifts, CLEAR * (1.0 + weight), np.full(len(points), -1))


@dataclass(frozen=True, eq=False)
class Ballot:
    """Blocks of neighbouring spots that vote; units of the mean spacing.

    Parameters
    ----------
    fixed : (N, D) ndarray
    moving : CellList
        The moving cloud.
    crowding : float
        By how much nearer moving spots lie than fixed ones: what is looked at is that much nearer.
    most : int
        Blocks of a size.
    """

    fixed: Floats
    moving: CellList
    crowding: float = 1.0
    most: int = _MOST_BLOCKS

    @cached_property
    def blocks(self) -> tuple[Rows, ...]:
        """Rows (B, S) of the spots of the blocks, of each size; wide ones first."""
        found = []
        for size in dict.fromkeys(min(s, len(self.fixed)) for s in _BLOCK_SIZES):
            picked = _spread(self.fixed, self._number_of(size))
            found.append(self.around(picked, size))
        return tuple(found)

    @property
    def is_part(self) -> bool:
        """Whether there might be more blocks."""
        return self._number_of(_BLOCK_SIZES[0]) == self.most < _MANY_BLOCKS

    def _number_of(self, size: int) -> int:
        """Return how many blocks of a size there are."""
        return int(np.clip(3 * len(self.fixed) / size, 1, self.most))

    def around(self, rows: Rows, size: int = _BLOCK_SIZES[0]) -> Rows:
        """Return the rows (B, S) of the spots nearest to each of some."""
        size = min(size, len(self.fixed))
        found = self._tree.query(self.fixed[rows], k=size)[1]
        return np.asarray(found.reshape(len(rows), size), dtype=np.int64)

    @cached_property
    def _tree(self) -> cKDTree:
        """The fixed spots as a tree."""
        return cKDTree(self.fixed)

    def count(self, predicted: Floats, which: Rows | None = None) -> Votes:
        """Count the votes of some blocks, or of the wide ones.

        Parameters
        ----------
        predicted : (N, D) ndarray
            Where partners are sought.
        which : (B,) ndarray, optional
            Numbers of the blocks.
        """
        chosen = np.arange(len(self.blocks[0])) if which is None else which
        parts, first = [], 0
        for blocks in self.blocks:
            here = chosen[(chosen >= first) & (chosen < first + len(blocks))]
            parts.append(self.count_of(predicted, blocks[here - first], here))
            first += len(blocks)
        return Votes.joined(parts)

    def count_of(self, predicted: Floats, blocks: Rows, numbers: Rows) -> Votes:
        """Count the votes of blocks (B, S) of one size."""
        parts = [Votes.none(self.fixed.shape[1])]
        for start in range(0, len(blocks), _BATCH):
            part = slice(start, start + _BATCH)
            parts.append(self._counted(predicted, blocks[part], numbers[part]))
        return Votes.joined(parts)

    def _counted(self, predicted: Floats, blocks: Rows, numbers: Rows) -> Votes:
        """Count the votes of a few blocks (B, S) at a time."""
        ndim = self.fixed.shape[1]
        reach, bin_size = np.full(ndim, self.crowding * _REACH), self.crowding * _BIN
        histograms = np.stack(
            [self.moving.vote(predicted[block], -reach, reach, bin_size) for block in blocks]
        )
        smooth = (0.0, *(_SMOOTHED,) * ndim)
        peaks, heights = _peaks(gaussian_filter(histograms, smooth, truncate=3.0))
        shifts = peaks * bin_size - reach
        return Votes(self.fixed[blocks].mean(axis=1), shifts, heights, numbers)

    def hold(
        self,
        lattice: Lattice,
        prior: Coherent,
        predict: Predict,
        starts: Sequence[DisplacementField | None] = (None,),
        known: Votes | None = None,
    ) -> DisplacementField:
        """Return the field that blocks agree on.

        Parameters
        ----------
        lattice : Lattice
        prior : Coherent
            Of the field.
        predict : callable
        starts : sequence of DisplacementField or None
            Fields from which all wide blocks vote; None stands for the pose alone.
        known : Votes, optional
            That need no count.
        """
        votes = [self.count(predict(field)).on_top_of(field) for field in starts]
        every = Votes.joined([*votes, *([] if known is None else [known])])
        field, agrees = fit_votes(every, lattice, prior)
        # Blocks in regions without partners have no clear vote, and need none.
        clear = every.scores > CLEAR
        share = _share(every, agrees, max(1, len(np.unique(every.blocks[clear]))))
        if share >= _ALL and len(self.blocks[0]) >= _FEWEST_BLOCKS:
            return field
        if self.is_part:
            more, every = replace(self, most=_MANY_BLOCKS), every.take(every.blocks < 0)
            return more._held(lattice, prior, predict, field, every)
        return self._held(lattice, prior, predict, field, every.take(agrees | (every.blocks < 0)))

    def _held(
        self,
        lattice: Lattice,
        prior: Coherent,
        predict: Predict,
        field: DisplacementField,
        kept: Votes,
    ) -> DisplacementField:
        """Let all blocks vote that do not agree, again and again."""
        numbers = np.arange(sum(map(len, self.blocks)))
        before = 0.0
        for _ in range(_MOST_BALLOTS):
            again = self.count(predict(field), np.setdiff1d(numbers, kept.blocks))
            every = Votes.joined([kept, again.on_top_of(field)])
            following, agrees = fit_votes(every, lattice, prior)
            share = _share(every, agrees, len(numbers))
            if share < before:
                break
            field, kept = following, every.take(agrees | (every.blocks < 0))
            if share >= _ALL or share < before + _MORE:
                break
            before = share
        return field


def _share(votes: Votes, agrees: NDArray[np.bool_], num_blocks: int) -> float:
    """Return the share of so many blocks one of whose votes agrees with all others."""
    return len(np.unique(votes.blocks[agrees & (votes.blocks >= 0)])) / num_blocks


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


def fit_votes(
    votes: Votes, lattice: Lattice, prior: Coherent
) -> tuple[DisplacementField, NDArray[np.bool_]]:
    """Fit a smooth field to the clear votes, the contradictory ones weighted down.

    Returns the field and which of the votes are clear and agree with it.
    """
    trust = np.clip((votes.scores - CLEAR) / CLEAR, 0.0, 1.0)
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
    return field, (residual < 3 * _NOISE) & (trust > 0)
