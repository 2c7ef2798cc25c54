"""Seams: planes across which the displacement jumps, as fields of view that were stitched badly.

A smooth field cannot follow a jump: it bends over a wide strip, and gives its stiffness up for
the whole image. So jumps are sought in the displacements of the pairs, taken out of the cloud
that was stitched, and put back after the match. An image is stitched along its own axes, so the
planes are those of the fixed or of the moving image, in whichever they are sharper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import spline_filter1d

from tilereg.lattice import Lattice
from tilereg.matching.clouds import Unit
from tilereg.matching.pairing import GATE, mutual_neighbours
from tilereg.matching.planes import Side, cells
from tilereg.matching.problem import Problem
from tilereg.transform import Transform

__all__ = ["Seam", "Tear", "find_tear", "num_near"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Pairs from which seams are sought.
_FEWEST = 500
# Next to a plane a first map misses partners by more than anywhere: sought so far, in spacings;
# later by less.
_REACH, _LATER_REACH = 0.6, 0.2
# Nodes of a field with seams: as near as this, and at most so many; how far around the spots.
_NODE, _MOST_NODES, _BEYOND, _AROUND = 0.5, 400_000, 4, 10.0


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
        What is added to the displacement beyond it, in the mean over the fields of view.
    largest : float
        Length of the largest jump between two fields of view.
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
    """

    image: str
    planes: Sequence[Floats]
    shifts: Floats
    back: Floats

    @property
    def seams(self) -> tuple[Seam, ...]:
        """The planes with their jumps."""
        found = []
        for axis, places in enumerate(self.planes):
            jumps = np.diff(np.moveaxis(self.shifts, axis, 0), axis=0)
            for place, jump in zip(places, jumps, strict=True):
                every = jump.reshape(-1, jump.shape[-1])
                largest = float(np.linalg.norm(every, axis=1).max())
                found.append(Seam(self.image, axis, float(place), every.mean(axis=0), largest))
        return tuple(found)

    def shift(self, points: Floats) -> Floats:
        """Return the displacement (N, D) of the field of view that holds each point."""
        return np.asarray(self.shifts[cells(points, self.planes)])

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
        ours, theirs = _pairs(healed, map_, sigma, _LATER_REACH)
        points = problem.fixed[ours] if self.image == "fixed" else problem.moving[theirs]
        values = healed.moving[theirs] - map_.affine(healed.fixed[ours])
        left = Side(points, values, sigma).shifts(self.planes)
        return replace(self, shifts=self.shifts + left)

    def torn(self, map_: Transform, problem: Problem) -> Transform:
        """Return the map of the clouds as they are, from that of the healed ones.

        Parameters
        ----------
        map_ : Transform
            Fitted to healed clouds.
        problem : Problem
            Where the field varies: its box, but not far beyond the spots.
        """
        lattice = _fine_lattice(
            np.maximum(problem.low, problem.fixed.min(axis=0) - _AROUND),
            np.minimum(problem.high, problem.fixed.max(axis=0) + _AROUND),
        )
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
    sides = {"fixed": Side(x, values, sigma), "moving": Side(y, values, sigma)}
    found = {image: side.planes() for image, side in sides.items()}
    image = max(found, key=lambda name: found[name][0])
    clearness, planes = found[image]
    if clearness == 0:
        return None
    back = np.asarray(np.linalg.inv(map_.affine.matrix), dtype=np.float64)
    return Tear(image, planes, sides[image].shifts(planes), back)


def num_near(problem: Problem, map_: Transform, sigma: float) -> int:
    """Return how many pairs within three deviations a map makes, held-out spots or not."""
    reach = GATE * math.sqrt(problem.fixed.shape[1]) * sigma
    return len(mutual_neighbours(problem.moved(map_), problem.targets, reach)[0])


def _pairs(problem: Problem, map_: Transform, sigma: float, reach: float) -> tuple[Rows, Rows]:
    """Return rows of pairs within three deviations, or a reach, of which none is held out."""
    reach = max(GATE * math.sqrt(problem.fixed.shape[1]) * sigma, reach)
    ours, theirs = mutual_neighbours(problem.moved(map_), problem.targets, reach)
    used = ~problem.held[ours]
    return ours[used], theirs[used]


def _fine_lattice(low: Floats, high: Floats) -> Lattice:
    """Return a lattice over a box, as fine as it may be."""
    spacing = _NODE
    lattice = Lattice.cover(low, high, spacing)
    while lattice.size > _MOST_NODES:
        spacing *= 1.1
        lattice = Lattice.cover(low, high, spacing)
    return lattice
