"""Seams: planes across which the displacement jumps, as fields of view that were stitched badly.

A smooth field cannot follow a jump: it bends over a wide strip, and gives its stiffness up for
the whole image. So jumps are sought in the displacements of the pairs, taken out of the cloud
that was stitched, and put back after the match. An image is stitched along its own axes, so the
planes are those of the fixed or of the moving image, in whichever they are sharper.

Near a plane, a piece of it at a time, the displacements are fitted with a cubic along its
normal and a slope across, with and without a step. What the step explains, compared with what it
explains at all other planes, tells seams from bends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import spline_filter1d

from tilereg.kernels import steps as kernels
from tilereg.lattice import Lattice
from tilereg.matching.clouds import Unit
from tilereg.matching.pairing import GATE, mutual_neighbours
from tilereg.matching.problem import Problem
from tilereg.transform import Transform

__all__ = ["Seam", "Tear", "find_tear"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Pairs from which seams are sought, and of how many.
_FEWEST, _MOST = 500, 60_000
# Half the width of the strip along a plane, the size of a piece of it and the distance of the
# planes that are looked at, in spacings; pairs that tell of a step.
_HALF, _STRIDE, _ENOUGH = 5.0, 1.0, 25
_PIECE = {2: 20.0, 3: 10.0}
# How certain a step is, in deviations of what it explains elsewhere; how large it is, in
# standard deviations of a pair.
_CERTAIN, _LARGE = 12.0, 2.0
# A strip that holds a clearer plane, this many times as wide, is not another one.
_APART = 1.2
# Next to a plane a first map misses partners by more than anywhere: sought so far, in spacings.
_REACH = 0.6
# How closely a plane is found, in spacings.
_CLOSELY = 0.1
# Nodes of a field with seams: as near as this, and at most so many.
_NODE, _MOST_NODES, _BEYOND = 0.5, 400_000, 4


@dataclass(frozen=True)
class Seam:
    """One plane.

    Parameters
    ----------
    image : str
        'fixed' or 'moving': in which it is a plane.
    axis : int
    position : float
    jump : (D,) ndarray
        Median, over the pieces of the plane, of what is added to the displacement beyond it.
    largest : float
        The largest jump of a piece.
    """

    image: str
    axis: int
    position: float
    jump: Floats
    largest: float


@dataclass(frozen=True, eq=False)
class Tear:
    """The planes in one image, and the displacement of every field of view between them.

    Parameters
    ----------
    image : str
        'fixed' or 'moving'.
    planes : sequence of (P,) ndarrays
        Positions along each axis, sorted.
    shifts : (n_1, .., n_D, D) ndarray
        Added to the displacement in each field of view.
    back : (D, D) ndarray
        From displacements in the moving to those in the fixed image.
    seams : tuple of Seam
    """

    image: str
    planes: Sequence[Floats]
    shifts: Floats
    back: Floats
    seams: tuple[Seam, ...]

    def shift(self, points: Floats) -> Floats:
        """Return the displacement (N, D) of the field of view that holds each point."""
        return np.asarray(self.shifts[_cells(points, self.planes)])

    def healed(self, problem: Problem) -> Problem:
        """Return the problem with the clouds as they were before the stitching."""
        known = problem.landmarks
        if self.image == "moving":
            if known is not None:
                known = replace(known, moving=known.moving - self.shift(known.moving))
            moving = problem.moving - self.shift(problem.moving)
            return replace(problem, moving=moving, landmarks=known)
        if known is not None:
            known = replace(known, fixed=known.fixed + self.shift(known.fixed) @ self.back.T)
        fixed = problem.fixed + self.shift(problem.fixed) @ self.back.T
        return replace(problem, fixed=fixed, landmarks=known)

    def corrected(self, problem: Problem, map_: Transform, sigma: float) -> Tear:
        """Return the same planes with the jumps that a map of the healed clouds leaves added.

        A first map loses pairs next to a plane, those that are farthest off.
        """
        healed = self.healed(problem)
        ours, theirs = _pairs(healed, map_, sigma)
        points = problem.fixed[ours] if self.image == "fixed" else problem.moving[theirs]
        values = healed.moving[theirs] - map_.affine(healed.fixed[ours])
        left = _Side(self.image, points, values, sigma).tear(list(self.planes), self.back)
        seams = tuple(
            replace(mine, jump=mine.jump + more.jump, largest=self._largest(mine, left))
            for mine, more in zip(self.seams, left.seams, strict=True)
        )
        return replace(self, shifts=self.shifts + left.shifts, seams=seams)

    def _largest(self, seam: Seam, left: Tear) -> float:
        """Return the largest jump of a plane between fields of view."""
        place = int(np.searchsorted(self.planes[seam.axis], seam.position))
        both = np.moveaxis(self.shifts + left.shifts, seam.axis, 0)
        return float(np.linalg.norm(both[place + 1] - both[place], axis=-1).max())

    def torn(self, map_: Transform, box: tuple[Floats, Floats]) -> Transform:
        """Return the map of the clouds as they are, from that of the healed ones.

        Parameters
        ----------
        map_ : Transform
            Fitted to healed clouds.
        box : pair of (D,) ndarrays
            Where the field varies.
        """
        lattice = _fine_lattice(*box)
        axes = [
            o + h * np.arange(-_BEYOND, n + _BEYOND) if n > 1 else np.array([o])
            for o, h, n in zip(lattice.origin, lattice.spacing, lattice.nodes, strict=True)
        ]
        nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        flat = nodes.reshape(-1, nodes.shape[-1])
        smooth = np.zeros_like(flat) if map_.field is None else map_.field(flat)
        if self.image == "moving":
            # A point of the healed image lies in the field of view that brings it there.
            jump = self.shift(map_(flat))
            jump = self.shift(map_(flat) + jump)
        else:
            moved = flat + self.shift(flat) @ self.back.T
            jump = map_(moved) - map_(flat)
        values = smooth.reshape(nodes.shape)
        for axis, num_nodes in enumerate(lattice.nodes):
            if num_nodes > 1:
                values = np.asarray(spline_filter1d(values, 3, axis=axis, mode="mirror"))
        # Splines through a jump would ring: its values at the nodes are their coefficients.
        values = values + jump.reshape(nodes.shape)
        inner = tuple(slice(_BEYOND, _BEYOND + n) if n > 1 else slice(0, 1) for n in lattice.nodes)
        return Transform(map_.affine, lattice.field(np.ascontiguousarray(values[inner])))

    def rows(self, unit: Unit) -> list[dict[str, Any]]:
        """Return the seams as plain data, micrometre."""
        ndim = len(self.back)
        return [
            {
                "image": seam.image,
                "axis": "zyx"[3 - ndim + seam.axis],
                "position_um": unit.place_out(seam.image, seam.axis, seam.position),
                "jump_um": (unit.scale * seam.jump).tolist(),
                "largest_um": unit.scale * seam.largest,
            }
            for seam in self.seams
        ]

    def message(self, unit: Unit) -> str:
        """Return the seams in a sentence."""
        rows = self.rows(unit)
        places = ", ".join(f"{row['axis']} = {row['position_um']:.4g} um" for row in rows)
        largest = max(row["largest_um"] for row in rows)
        return (
            f"The {self.image} image seems to be stitched with an error: displacements jump by up "
            f"to {largest:.3g} um across {places}."
        )


def find_tear(problem: Problem, map_: Transform, sigma: float) -> Tear | None:
    """Find the planes across which the pairs of a map jump; None where there are none.

    Parameters
    ----------
    problem : Problem
    map_ : Transform
    sigma : float
        Standard deviation of a pair an axis.
    """
    ours, theirs = _pairs(problem, map_, sigma, _REACH)
    if len(ours) < _FEWEST:
        return None
    x, y = problem.fixed[ours], problem.moving[theirs]
    values = y - map_.affine(x)
    sides = [_Side("fixed", x, values, sigma), _Side("moving", y, values, sigma)]
    clearness, planes, side = max(
        ((*side.planes(), side) for side in sides), key=lambda found: found[0]
    )
    back = np.asarray(np.linalg.inv(map_.affine.matrix), dtype=np.float64)
    return None if clearness == 0 else side.tear(planes, back)


def _pairs(
    problem: Problem, map_: Transform, sigma: float, reach: float = 0.0
) -> tuple[Rows, Rows]:
    """Return rows of pairs within three deviations, or a reach, of which none is held out."""
    reach = max(GATE * math.sqrt(problem.fixed.shape[1]) * sigma, reach)
    ours, theirs = mutual_neighbours(problem.moved(map_), problem.targets, reach)
    used = np.flatnonzero(~problem.held[ours])
    used = used[:: -(-len(used) // _MOST)] if len(used) else used
    return ours[used], theirs[used]


@dataclass(frozen=True)
class _Steps:
    """Steps of the displacement across a plane, piece by piece.

    jump (G, D); weight (G,), one over its variance in that of a pair; middle (G, D) of the pieces.
    """

    jump: Floats
    weight: Floats
    middle: Floats

    @property
    def gain(self) -> float:
        """What the steps explain of the sum of squares."""
        return float((self.weight * (self.jump**2).sum(axis=1)).sum())

    @property
    def size(self) -> float:
        """Root mean square of the steps."""
        return math.sqrt(self.gain / max(float(self.weight.sum()), 1e-300))


@dataclass(frozen=True)
class _Side:
    """The pairs at their places in one of the images, and their displacements."""

    image: str
    points: Floats
    values: Floats
    sigma: float

    def planes(self) -> tuple[float, list[Floats]]:
        """Return how clear all planes are together, and where they are along each axis."""
        tried = [self._tried(axis) for axis in range(self.points.shape[1])]
        gains = np.array([s.gain / max(1, s.jump.size) for _, steps in tried for s in steps])
        if not gains.any():
            return 0.0, []
        # What a step explains of noise, and of a field that bends.
        usual = max(float(np.median(gains[gains > 0])), self.sigma**2)
        total, planes = 0.0, []
        for axis, (places, steps) in enumerate(tried):
            scores = np.array(
                [(s.gain / usual - s.jump.size) / math.sqrt(2 * max(1, s.jump.size)) for s in steps]
            )
            is_large = np.array([s.size > _LARGE * self.sigma for s in steps], dtype=bool)
            kept: list[float] = []
            for k in np.argsort(-scores, kind="stable"):
                apart = all(abs(places[k] - other) > _APART * _HALF for other in kept)
                if scores[k] > _CERTAIN and is_large[k] and apart:
                    kept.append(self._closer(axis, places[k]))
                    total += float(scores[k])
            planes.append(np.sort(np.array(kept)))
        return total, planes

    def _tried(self, axis: int) -> tuple[Floats, list[_Steps]]:
        """Return the planes that are looked at along an axis, and the steps across each."""
        along = self.points[:, axis]
        low, high = float(along.min()) + _HALF / 2, float(along.max()) - _HALF / 2
        places = np.arange(low, high + 1e-9, _STRIDE)
        return places, [self._steps(axis, place) for place in places]

    def _closer(self, axis: int, place: float) -> float:
        """Return where near a plane the step explains most."""
        near = place + np.arange(-_STRIDE, _STRIDE + 1e-9, _CLOSELY)
        return float(max(near, key=lambda p: self._steps(axis, float(p)).gain))

    def _steps(self, axis: int, place: float) -> _Steps:
        """Fit the steps across a plane, in every piece that has enough pairs on both sides."""
        ndim = self.points.shape[1]
        side = _PIECE[ndim]
        rows = np.flatnonzero(np.abs(self.points[:, axis] - place) < _HALF)
        others = [a for a in range(ndim) if a != axis]
        pieces = np.floor(self.points[:, others] / side).astype(np.int64)[rows]
        distinct, groups = np.unique(pieces, axis=0, return_inverse=True)
        middle = np.full((len(distinct), ndim), place)
        middle[:, others] = (distinct + 0.5) * side
        groups = groups.reshape(-1).astype(np.int64)
        size, num = 5 + len(others), len(distinct)
        gram, right = np.zeros((num, size, size)), np.zeros((num, size, ndim))
        square, count = np.zeros(num), np.zeros(num, dtype=np.int64)
        points = self.points[rows]
        across = (points[:, others] - middle[groups][:, others]) / side
        kernels.add_up(
            np.arange(len(rows)), groups, np.ascontiguousarray(points[:, axis]), across,
            self.values[rows], place, _HALF, gram, right, square, count,
        )  # fmt: skip
        lower = np.tril(gram, -1)
        gram += lower.transpose(0, 2, 1)
        told = count >= _ENOUGH
        gram, right, middle = gram[told], right[told], middle[told]
        ridge = 1e-9 * np.trace(gram, axis1=1, axis2=2)[:, None] * np.ones(size - 1)
        inner = gram[:, :-1, :-1] + ridge[..., None] * np.eye(size - 1)
        rest = np.linalg.solve(inner, np.concatenate([gram[:, :-1, -1:], right[:, :-1]], axis=2))
        column = gram[:, -1:, :-1]
        weight = gram[:, -1, -1] - (column @ rest[:, :, :1])[:, 0, 0]
        step = right[:, -1] - (column @ rest[:, :, 1:])[:, 0]
        good = weight > 1e-3 * gram[:, 0, 0]
        return _Steps(step[good] / weight[good, None], weight[good], middle[good])

    def tear(self, planes: list[Floats], back: Floats) -> Tear:
        """Return the displacements of the fields of view between planes."""
        ndim = self.points.shape[1]
        shape = tuple(len(p) + 1 for p in planes)
        numbers = np.arange(math.prod(shape)).reshape(shape)
        equations, right, listed = [], [], []
        for axis, places in enumerate(planes):
            for k, place in enumerate(places):
                steps = self._steps(axis, float(place))
                listed.append(self._seam(axis, float(place), steps))
                cells = list(_cells(steps.middle, planes))
                for beyond, sign in ((k + 1, 1.0), (k, -1.0)):
                    cells[axis] = np.full(len(steps.middle), beyond)
                    rows = np.zeros((len(steps.middle), numbers.size))
                    rows[np.arange(len(rows)), numbers[tuple(cells)]] = sign
                    if sign > 0:
                        ahead = rows
                # A piece that another plane cuts tells little.
                is_cut = self._is_cut(steps.middle, planes, axis)
                weight = np.sqrt(steps.weight) * np.where(is_cut, 1e-3, 1.0)
                equations.append((ahead + rows) * weight[:, None])
                right.append(steps.jump * weight[:, None])
        matrix = np.concatenate(equations)
        shifts = np.linalg.lstsq(matrix, np.concatenate(right), rcond=1e-9)[0]
        shifts = np.asarray(shifts).reshape(*shape, ndim)
        mean = shifts[_cells(self.points, planes)].mean(axis=0)
        return Tear(self.image, planes, shifts - mean, back, tuple(listed))

    def _is_cut(self, middle: Floats, planes: list[Floats], axis: int) -> NDArray[np.bool_]:
        """Tell through which pieces planes of other axes go."""
        cut = np.zeros(len(middle), dtype=bool)
        for other, places in enumerate(planes):
            if other != axis and len(places):
                gap = np.abs(middle[:, other, None] - places).min(axis=1)
                cut |= gap < _PIECE[middle.shape[1]] / 2
        return cut

    def _seam(self, axis: int, place: float, steps: _Steps) -> Seam:
        """Return a plane with its jumps."""
        length = np.linalg.norm(steps.jump, axis=1)
        largest = float(np.percentile(length, 95))
        return Seam(self.image, axis, place, np.median(steps.jump, axis=0), largest)


def _cells(points: Floats, planes: Sequence[Floats]) -> tuple[Rows, ...]:
    """Return the field of view of each point, an index an axis."""
    return tuple(np.searchsorted(p, points[:, a], side="right") for a, p in enumerate(planes))


def _fine_lattice(low: Floats, high: Floats) -> Lattice:
    """Return a lattice over a box, as fine as it may be."""
    spacing = _NODE
    lattice = Lattice.cover(low, high, spacing)
    while lattice.size > _MOST_NODES:
        spacing *= 1.1
        lattice = Lattice.cover(low, high, spacing)
    return lattice
