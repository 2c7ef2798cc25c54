"""A regular lattice of cubic B-splines: where its nodes are, and least squares on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilereg.kernels import lattice as kernels
from tilereg.transform import DisplacementField, embed

__all__ = ["Lattice", "NormalEquations"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lattice:
    """Where the nodes are.

    Parameters
    ----------
    origin, spacing : tuple of float
        Position of the first node and distance of the nodes, an axis each.
    nodes : tuple of int
        Number of nodes an axis: one, or at least four.
    """

    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    nodes: tuple[int, ...]

    @classmethod
    def cover(cls, low: Floats, high: Floats, spacing: float, margin: float = 1.0) -> Lattice:
        """Return a lattice whose domain covers a box and `margin` spacings around it.

        The spacing is adapted an axis so that whole cells fit; an axis without extent gets a
        single node.
        """
        origins, spacings, nodes = [], [], []
        for first, last in zip(low, high, strict=True):
            extent = float(last - first)
            if extent < 1e-9 * spacing:
                origins.append(float(first))
                spacings.append(float(spacing))
                nodes.append(1)
                continue
            reach = extent + 2 * margin * spacing
            cells = max(1, round(reach / spacing))
            step = reach / cells
            origins.append(float(first) - margin * spacing - step)
            spacings.append(step)
            nodes.append(cells + 3)
        return cls(tuple(origins), tuple(spacings), tuple(nodes))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.nodes)

    @property
    def size(self) -> int:
        """Number of nodes."""
        return math.prod(self.nodes)

    def embedded(self) -> tuple[Floats, Floats, tuple[int, ...]]:
        """Return origin, spacing and nodes with three axes."""
        lead = 3 - self.ndim
        return (
            np.array((0.0,) * lead + self.origin),
            np.array((1.0,) * lead + self.spacing),
            (1,) * lead + self.nodes,
        )

    def field(self, coefficients: Floats) -> DisplacementField:
        """Return the displacement field with these (n_1, .., n_D, D) coefficients."""
        return DisplacementField(coefficients, np.array(self.origin), np.array(self.spacing))

    def cell_order(self, points: Floats) -> NDArray[np.int64]:
        """Return the rows of (N, D) points sorted by the lattice cell that holds them."""
        rank = np.zeros(len(points), dtype=np.int64)
        for axis, num_nodes in enumerate(self.nodes):
            cell = np.floor((points[:, axis] - self.origin[axis]) / self.spacing[axis])
            last = max(1, num_nodes - 3)
            rank = rank * (last + 1) + np.clip(cell, min(1, last - 1), last).astype(np.int64)
        return np.argsort(rank, kind="stable")


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """``B' W B`` as a stencil and ``B' W v``, for splines B of a lattice at weighted points.

    Memory is 2.7 kB a node in 3D; work is linear in the points and in the nodes.

    Parameters
    ----------
    lattice : Lattice
    diagonals : (7, 7, 7, n0, n1, n2) ndarray
        Entries of all nodes by the offset of the neighbour; the middle ones are the diagonal.
    right : (n0, n1, n2, D) ndarray
    total : float
        Sum of all weights, which is that of all entries: splines sum to one.
    """

    lattice: Lattice
    diagonals: Floats
    right: Floats
    total: float

    @classmethod
    def assemble(
        cls, lattice: Lattice, points: Floats, weights: Floats, values: Floats
    ) -> NormalEquations:
        """Add up (N, D) values at (N, D) points with (N,) weights; weight zero leaves one out."""
        return cls.of_parts(lattice, values.shape[1], [(points, weights, values)])

    @classmethod
    def of_parts(
        cls, lattice: Lattice, num_values: int, parts: Iterable[tuple[Floats, Floats, Floats]]
    ) -> NormalEquations:
        """Add up parts of points (N, D), weights (N,) and values (N, num_values)."""
        origin, spacing, nodes = lattice.embedded()
        diagonals = np.zeros((7, 7, 7, *nodes))
        right = np.zeros((*nodes, num_values))
        total = 0.0
        for points, weights, values in parts:
            order = lattice.cell_order(points)
            kernels.assemble(
                embed(points), weights, values, order, origin, 1 / spacing, diagonals, right
            )
            total += float(weights.sum())
        kernels.mirror(diagonals)
        return cls(lattice, diagonals, right, total)

    @property
    def density(self) -> float:
        """Sum of all weights over the volume (area) that the splines cover."""
        sides = zip(self.lattice.nodes, self.lattice.spacing, strict=True)
        volume = math.prod((n - 3) * h for n, h in sides if n > 1)
        return self.total / volume

    def product(self, coefficients: Floats) -> Floats:
        """Return ``B' W B c`` for (D, n0, n1, n2) coefficients."""
        nodes = np.array(coefficients.shape[1:], dtype=np.int64)
        vector = np.ascontiguousarray(coefficients).reshape(len(coefficients), -1)
        out = np.empty_like(vector)
        kernels.multiply_planes(self.diagonals.reshape(7, 7, 7, -1), nodes, vector, out)
        return out.reshape(coefficients.shape)
