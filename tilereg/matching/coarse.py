"""Find the pose of one cloud in another without a starting guess.

Everything here is in units of the mean distance of nearest neighbours of the fixed cloud.
Candidates come from three sources, cheapest first: votes of all differences between a compact
block of fixed spots and the moving cloud (any shift, small rotation), constellations of
neighbours (any rotation, see `constellations`), and votes under a set of rotations. Every
candidate is grown from its block over the cloud by affine fits to nearest neighbours, and is
judged by how many spots find a partner compared with what the same spots find when they are
moved aside, so chance is measured on the data themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from tilereg.affine import fit_affine, fit_rigid, fit_translation, num_parameters
from tilereg.matching.clouds import crowding
from tilereg.matching.constellations import match_constellations
from tilereg.matching.evidence import Chance
from tilereg.matching.shelves import ALIKE, Shelves
from tilereg.matching.turns import followed
from tilereg.sampling import farthest_points
from tilereg.transform import Affine

__all__ = ["Candidate", "Coarse", "find_pose"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Spots are fitted to their neighbours within these distances, one after the other.
_TOLERANCES = (0.6, 0.6, 0.35)
_BLOCK_SIZES = (400, 120)
_NUM_BLOCKS = 6
_MOST_BINS = 8_000_000
_FIRST_REACH = 24.0
_BIN = 0.4
_PEAKS_A_BLOCK = 4
# Under rotations, by the number of axes: the plane has few of them.
_NUM_TURNED_BLOCKS = {2: 6, 3: 3}
_FIRST_RING = 40
_MOST_GROWN = 4000
_MOST_TURNED = {2: 200, 3: 40}
_MOST_TURNED_BINS = 200_000
_MOST_FIXED_SAMPLED = 20_000
# Log10 of the chance that a pose found among all that were tried is an accident.
_CLEAR = -12.0
_ENOUGH = -7.0
# Clouds of so few spots are looked at as a whole, unless a pose is this certain, a spot.
_SMALL, _CLEAR_A_SPOT, _NUM_FOLLOWED = 600, -0.3, 3000
# A pose of such a share of the cloud, or of so many spots, is enough: the rest is followed from
# there.
_PARTIAL, _MANY_COVERED = 0.1, 2000
# Candidates looked at after one that is clear, for a map of more of the cloud.
_PATIENCE = 12
# Sizes of the moving cloud that are tried where its own finds nothing; each finds others within
# about a tenth of it.
_SCALES = (0.83, 1.2)
# A map that stretches or shrinks an axis by more is no pose: fitted to nearest neighbours, the
# matrix of a wrong one collapses onto a plane of spots.
_MOST_STRETCH, _MOST_PAIRED_STRETCH = 1.5, 3.0


@dataclass(frozen=True)
class Candidate:
    """A local guess: an affine map believed around one fixed spot.

    Parameters
    ----------
    affine : Affine
    centre : int
        Row of the fixed spot.
    source : str
        What proposed it: 'vote', 'constellation' or 'rotation'.
    """

    affine: Affine
    centre: int
    source: str


@dataclass(frozen=True)
class Coarse:
    """The best pose found.

    Parameters
    ----------
    affine : Affine
    evidence : float
        Log10 of the probability that chance gives as many partners, corrected for the number
        of poses that were tried. Not found where it is above -7.
    source : str
        Where the candidate came from.
    num_tried : int
        How many candidates were grown.
    coverage : float
        Share of the fixed spots over which the map could be extended.
    centre : int
        Row of the fixed spot around which it was found.
    """

    affine: Affine
    evidence: float
    source: str
    num_tried: int
    coverage: float = 0.0
    centre: int = 0

    @property
    def is_found(self) -> bool:
        """Whether chance is excluded."""
        return self.evidence < _ENOUGH

    def allows(self, affine: Affine, *, one_to_one: bool = False) -> bool:
        """Whether a map that was fitted from here on stretches no axis much more than this.

        Nor may it be a mirror image. More is believed where nearly all spots with a partner
        have one of their own.
        """
        most = _MOST_PAIRED_STRETCH if one_to_one else _MOST_STRETCH
        change = affine.compose(self.affine.inverse)
        return bool(np.linalg.det(change.matrix) > 0) and change.stretch <= most


def find_pose(
    fixed: Floats,
    moving: Floats,
    *,
    max_rotation: float = 180.0,
    shelves: Shelves = ALIKE,
) -> Coarse:
    """Find the affine map that brings the fixed cloud onto the moving one.

    Parameters
    ----------
    fixed, moving : (N, D), (M, D) ndarray
        Clouds in units of the mean spacing of the fixed one.
    max_rotation : float, degrees
        Poses that rotate further are not searched for.
    shelves : Shelves, optional
        Which spots may be partners. Constellations are blind to it, what they find is not.

    Returns
    -------
    Coarse
        Its evidence says whether it is more than chance.

    Notes
    -----
    Sizes that differ by a tenth are found with those that do not. Only where nothing is found
    clouds are looked at that are smaller or larger by more.
    """
    best = _find(fixed, moving, max_rotation, shelves)
    paid = math.log10(1 + len(_SCALES))
    for scale in _SCALES:
        if best.is_found:
            break
        found = _find(fixed, moving / scale, max_rotation, shelves, is_last=False)
        tried = best.num_tried + found.num_tried
        best = replace(best, num_tried=tried)
        if found.evidence + paid < best.evidence:
            affine = Affine(scale * found.affine.matrix, scale * found.affine.offset)
            best = replace(found, affine=affine, evidence=found.evidence + paid, num_tried=tried)
    return best


def _find(
    fixed: Floats,
    moving: Floats,
    max_rotation: float,
    shelves: Shelves,
    *,
    is_last: bool = True,
) -> Coarse:
    """Find the pose of clouds of about the same size; without the last resorts unless asked to."""
    search = _Search(fixed, moving, shelves)
    best = Coarse(Affine.identity(fixed.shape[1]), 0.0, "none", 0)
    is_small = len(fixed) <= _SMALL
    # Shapes of small clouds that are alike bring many spots near to others, in wrong poses too.
    clear = min(_CLEAR, _CLEAR_A_SPOT * len(fixed)) if is_small else _CLEAR
    partial = min(_PARTIAL, _MANY_COVERED / max(1, len(fixed)))
    for group in _candidate_groups(search, max_rotation, is_last=is_last):
        waiting = 0
        for candidate in group:
            known = best
            best = search.better(known, candidate)
            if best.evidence < clear and best.coverage == 1:
                return search.polish(best)
            waiting = waiting + 1 if best.coverage == known.coverage else 0
            if best.evidence < clear and best.coverage > partial and waiting >= _PATIENCE:
                break
        if best.evidence < clear and best.coverage > partial:
            return best
    if is_small and is_last and max_rotation > 0:
        for affine in followed(fixed, moving, max_rotation, shelves):
            best = search.closer(best, affine)
    return search.polish(best)


def _candidate_groups(
    search: _Search, max_rotation: float, *, is_last: bool
) -> Iterator[Iterator[Candidate]]:
    """Yield the sources of candidates, cheapest first."""
    ndim = search.fixed.shape[1]
    yield search.vote_candidates()
    if max_rotation > 0:
        if ndim == 3:
            yield search.constellation_candidates()
        if ndim == 2 or is_last:
            # In space the last resort: few angles, at a high price.
            yield search.rotation_candidates(max_rotation)


def _rotations(ndim: int, max_rotation: float) -> list[Floats]:
    """Return rotations that cover all directions up to an angle, small ones first.

    The plane is covered up to 180 degrees; in space the search ends at 30 degrees, since the
    number of rotations grows with the cube of the angle.
    """
    if ndim == 2:
        step = 4.0
        angles = sorted(np.arange(-180.0, 180.0, step), key=abs)
        return [
            Rotation.from_euler("z", a, degrees=True).as_matrix()[:2, :2]
            for a in angles
            if step / 2 < abs(a) <= max_rotation
        ]
    step, most = 7.5, min(max_rotation, 30.0)
    line = np.arange(-math.floor(most / step), math.floor(most / step) + 1) * step
    vectors = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    size = np.linalg.norm(vectors, axis=1)
    keep = np.flatnonzero((size > 0) & (size <= most + 1e-9))
    keep = keep[np.argsort(size[keep], kind="stable")]
    return list(Rotation.from_rotvec(vectors[keep], degrees=True).as_matrix())


class _Search:
    """The two clouds with their trees, and what has been tried so far."""

    def __init__(self, fixed: Floats, moving: Floats, shelves: Shelves) -> None:
        """Sort both clouds."""
        self.fixed, self.moving, self.shelves = fixed, moving, shelves
        targets = shelves.targets(moving)
        self.fixed_tree, self.targets_tree = cKDTree(fixed), cKDTree(targets)
        on_shelves = (shelves.lifted(fixed), targets) if shelves.has_classes else None
        self.near = crowding(fixed, moving, on_shelves)
        self.chance = Chance.of(moving, shelves, self.near)
        self.num_tried = 0
        self.num_poses = 1.0
        rows = np.arange(len(fixed))
        if len(rows) > _MOST_FIXED_SAMPLED:
            rows = np.random.default_rng(0).choice(rows, _MOST_FIXED_SAMPLED, replace=False)
        picked = farthest_points(fixed[rows], min(_NUM_BLOCKS, len(rows)))
        self.centres = rows[picked]

    def vote_candidates(self) -> Iterator[Candidate]:
        """Yield the peaks of the votes of compact blocks, block by block.

        Of large clouds shifts that leave the middles near each other are looked at first.
        """
        eye = np.eye(self.fixed.shape[1])
        extent = np.ptp(self.fixed, axis=0) + np.ptp(self.moving, axis=0)
        is_large = float(extent.prod()) > _MOST_BINS * (self.near * _BIN) ** len(extent)
        for reach in (_FIRST_REACH, math.inf) if is_large else (math.inf,):
            for size in dict.fromkeys(min(s, len(self.fixed)) for s in _BLOCK_SIZES):
                for centre in self.centres[: 1 if size == len(self.fixed) else None]:
                    rows = self._block(centre, size)
                    for _, shift in self._peaks(
                        self.fixed[rows], rows, self.near * _BIN, _MOST_BINS, reach
                    ):
                        yield Candidate(Affine(eye, shift), int(centre), "vote")

    def rotation_candidates(self, max_rotation: float) -> Iterator[Candidate]:
        """Yield the highest of the peaks of small blocks under many rotations."""
        size = min(_BLOCK_SIZES[-1], len(self.fixed))
        ndim = self.fixed.shape[1]
        centres = self.centres[: 1 if size == len(self.fixed) else _NUM_TURNED_BLOCKS[ndim]]
        peaks = []
        for rotation in _rotations(ndim, max_rotation):
            for centre in centres:
                block = self._block(centre, size)
                for height, shift in self._peaks(
                    self.fixed[block] @ rotation.T, block, 2 * self.near * _BIN, _MOST_TURNED_BINS
                ):
                    candidate = Candidate(Affine(rotation, shift), int(centre), "rotation")
                    peaks.append((height, candidate))
        peaks.sort(key=lambda entry: -entry[0])
        yield from (candidate for _, candidate in peaks[: _MOST_TURNED[ndim]])

    def _block(self, centre: int, size: int) -> Rows:
        """Return the rows of the `size` fixed spots nearest to one of them."""
        _, rows = self.fixed_tree.query(self.fixed[centre], k=size)
        return np.atleast_1d(rows).astype(np.int64)

    def _peaks(
        self,
        block: Floats,
        rows: Rows,
        bin_size: float,
        most_bins: int,
        reach: float = math.inf,
    ) -> list[tuple[float, Floats]]:
        """Return (height, shift) of the highest peaks of all differences to a block of rows."""
        low = np.maximum(self.moving.min(axis=0) - block.max(axis=0) - bin_size, -reach)
        high = np.minimum(self.moving.max(axis=0) - block.min(axis=0) + bin_size, reach)
        if not (low < high).all():
            return []
        bin_size = max(bin_size, float((np.prod(high - low) / most_bins) ** (1 / len(low))))
        lifted = self.shelves.lifted(block, rows)
        histogram = uniform_filter(self.chance.cells.vote(lifted, low, high, bin_size), 2)
        self.num_poses += min(histogram.size, len(block) * len(self.moving))
        background = uniform_filter(histogram, 11)
        height = (histogram - background) / np.sqrt(background + 0.02 * histogram.max() + 1e-9)
        peaks = []
        for _ in range(_PEAKS_A_BLOCK):
            top = np.unravel_index(int(height.argmax()), height.shape)
            if height[top] <= 0:
                break
            # A window of two bins is centred on the border between them.
            peaks.append((float(height[top]), low + np.asarray(top) * bin_size))
            height[tuple(slice(max(0, t - 3), t + 4) for t in top)] = 0
        return peaks

    def constellation_candidates(self) -> Iterator[Candidate]:
        """Yield rigid maps from matching tetrahedra of neighbours, best match first."""
        has_classes = self.shelves.has_classes
        moving_tree = cKDTree(self.moving) if has_classes else self.targets_tree
        for affine, centre in match_constellations(
            self.fixed, self.moving, self.fixed_tree, moving_tree, self.shelves
        ):
            self.num_poses += 1
            yield Candidate(affine, centre, "constellation")

    def better(self, best: Coarse, candidate: Candidate) -> Coarse:
        """Grow a candidate and return it if it beats the best so far."""
        self.num_tried += 1
        affine, evidence, coverage = self.grow(candidate)
        evidence += math.log10(self.num_poses)
        grown = Coarse(
            affine, evidence, candidate.source, self.num_tried, coverage, candidate.centre
        )
        is_better = (grown.coverage, -grown.evidence) > (best.coverage, -best.evidence)
        if grown.is_found and (is_better or not best.is_found):
            return grown
        if grown.evidence < best.evidence and not best.is_found:
            return grown
        return replace(best, num_tried=self.num_tried)

    def closer(self, best: Coarse, affine: Affine) -> Coarse:
        """Judge a map of the whole cloud and return it if it beats the best so far."""
        self.num_tried += 1
        evidence, fitted = self.refine(np.arange(len(self.fixed)), affine)
        evidence += math.log10(self.num_poses + _NUM_FOLLOWED)
        if evidence < best.evidence:
            return Coarse(fitted, evidence, "rotation", self.num_tried, 1.0)
        return replace(best, num_tried=self.num_tried)

    def grow(self, candidate: Candidate) -> tuple[Affine, float, float]:
        """Extend a local map over the cloud, ring by ring; stop where chance explains it.

        Returns the map, log10 of its chance and the share of the cloud that it covers.
        """
        affine, evidence, coverage = candidate.affine, 0.0, 0.0
        size = min(_FIRST_RING, len(self.fixed))
        while True:
            rows = self._block(candidate.centre, size)
            if len(rows) > _MOST_GROWN:
                picked = np.linspace(0, len(rows) - 1, _MOST_GROWN)
                rows = rows[picked.astype(np.int64)]
            found, fitted = self.refine(rows, affine)
            if found > -2.0 or (evidence < -8 and found > evidence / 2):
                return affine, evidence, coverage
            affine, evidence = fitted, min(evidence, found)
            coverage = size / len(self.fixed)
            if coverage == 1:
                return affine, evidence, coverage
            size = min(2 * size, len(self.fixed))

    def refine(self, rows: Rows, affine: Affine) -> tuple[float, Affine]:
        """Fit fixed spots to nearest neighbours; return the evidence and the fitted map."""
        for tolerance in _TOLERANCES:
            pairs = self._pairs(rows, affine, self.near * tolerance)
            if len(pairs[0]) < 3:
                return 0.0, affine
            fitted = _fit(*pairs)
            if fitted.stretch > _MOST_STRETCH:
                return 0.0, affine
            affine = fitted
        ndim = self.fixed.shape[1]
        parameters = num_parameters(_model(len(pairs[0]), ndim), ndim)
        return self.chance.evidence(self._moved(rows, affine), parameters), affine

    def _pairs(self, rows: Rows, affine: Affine, tolerance: float) -> tuple[Floats, Floats]:
        """Return the fixed spots that have a moving neighbour within the tolerance, and those."""
        distance, theirs = self.targets_tree.query(
            self._moved(rows, affine), distance_upper_bound=tolerance
        )
        near = np.isfinite(distance)
        return self.fixed[rows[near]], self.moving[theirs[near]]

    def _moved(self, rows: Rows, affine: Affine) -> Floats:
        """Return where a map brings fixed spots, on their shelves."""
        return self.shelves.moved(affine(self.fixed[rows]), rows)

    def polish(self, best: Coarse) -> Coarse:
        """Refit the best map to spots spread over the whole cloud."""
        if not best.is_found:
            return best
        rows = np.linspace(0, len(self.fixed) - 1, min(len(self.fixed), 8000)).astype(np.int64)
        found, fitted = self.refine(rows, best.affine)
        found += math.log10(self.num_poses)
        return replace(best, affine=fitted, evidence=found) if found < best.evidence else best


def _model(num_pairs: int, ndim: int) -> str:
    """Return the model that so many pairs can carry."""
    if num_pairs < 3 * ndim:
        return "translation"
    return "rigid" if num_pairs < 6 * (ndim + 1) else "affine"


def _fit(source: Floats, target: Floats) -> Affine:
    """Fit the model that the number of pairs can carry."""
    model = _model(len(source), source.shape[1])
    if model == "translation":
        return fit_translation(source, target)
    if model == "rigid":
        return fit_rigid(source, target)
    # Residuals of about 0.2 spacings and matrix entries within 0.05 of a rotation.
    return fit_affine(source, target, prior=(0.2 / 0.05) ** 2)
