"""The map from the voxels of one output block to positions in the moving volume.

It is prepared here for the compiled samplers, always with three axes: a plane is a volume with
one z. Its bounds tell, before anything is read, where a block's positions can lie.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tilereg.grid import Grid
from tilereg.kernels.interpolation import BlockMap, Scratch, tabulate
from tilereg.transform import DisplacementField, Transform
from tilereg.windows import Window

__all__ = ["make_scratch", "map_block", "position_bounds"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Largest share by which a sum of weighted coefficients can leave their range in float64.
_ROUNDING = 1e-12
# Positions further away than this many voxels count as this far: integers can hold it.
_FAR = 2.0**40


def map_block(transform: Transform, grid: Grid, window: Window, moving_grid: Grid) -> BlockMap:
    """Return the map of the block at `window` of `grid`, in voxels of `moving_grid`."""
    ndim, affine = grid.ndim, transform.affine
    spacing = np.asarray(moving_grid.spacing)
    matrix, offset = np.eye(3), np.zeros(3)
    matrix[-ndim:, -ndim:] = affine.matrix * np.asarray(grid.spacing) / spacing[:, None]
    world = affine.matrix @ np.asarray(grid.origin) + affine.offset
    offset[-ndim:] = (world - moving_grid.origin) / spacing
    num_z, num_y, num_x = (1,) * (3 - ndim) + window.shape
    nodes = (_zeros(num_z), _zeros(num_y), _zeros(num_x))
    weights = (np.zeros((4, num_z)), np.zeros((4, num_y)), np.zeros((4, num_x)))
    coefficients, segments = np.zeros((4, 4, 4, 3)), np.zeros(1, dtype=np.int64)
    if transform.field is not None:
        coefficients = _crop_lattice(transform.field, grid, window, nodes, weights)
        coefficients[..., -ndim:] /= spacing
        segments = _segments(nodes[2])
    start = np.array((0,) * (3 - ndim) + window.start, dtype=np.int64)
    return BlockMap(matrix, offset, start, coefficients, nodes, weights, segments)


def _zeros(length: int) -> Integers:
    """Return (length,) zeros."""
    return np.zeros(length, dtype=np.int64)


def _crop_lattice(
    field: DisplacementField,
    grid: Grid,
    window: Window,
    nodes: tuple[Integers, ...],
    weights: tuple[Floats, ...],
) -> Floats:
    """Fill in nodes and weights an axis; return the supporting coefficients (.., 3), in um."""
    missing = 3 - field.ndim
    region = [slice(0, 1)] * missing
    weights[0][0] = 1.0
    for axis, num_nodes in enumerate(field.nodes):
        first_node = nodes[missing + axis]
        index = np.arange(window.start[axis], window.stop[axis], dtype=np.float64)
        world = index * grid.spacing[axis] + grid.origin[axis]
        t = (world - field.origin[axis]) * (1.0 / field.spacing[axis])
        tabulate(t, num_nodes, first_node, weights[missing + axis])
        low, high = int(first_node.min()), int(first_node.max())
        first_node -= low
        region.append(slice(low, high + 4))
    lattice = field.coefficients[(None,) * missing]
    cropped = lattice[tuple(region)]
    # A single node has all the weight; copies of it stand where the other three are read.
    for axis in range(3):
        if cropped.shape[axis] == 1:
            cropped = np.repeat(cropped, 4, axis=axis)
    out = np.zeros((*cropped.shape[:3], 3))
    out[..., missing:] = cropped
    return out


def _segments(nodes: Integers) -> Integers:
    """Return where the first node changes, with 0 first and the length last."""
    changes = np.flatnonzero(np.diff(nodes)) + 1
    return np.concatenate([[0], changes, [len(nodes)]]).astype(np.int64)


def position_bounds(block: BlockMap) -> tuple[Floats, Floats]:
    """Return the smallest and the largest position (3,) that a block's voxels can have.

    In each cell of the lattice the affine part is extreme at the corners of the cell's voxels,
    and the displacement lies between Bezier points. The box around all cells of the block is a
    true bound, and tighter than one of the block as a whole.
    """
    axes = (0, 1, 2)
    edges = [_segments(n) for n in block.nodes]
    firsts = [start + e[:-1] for start, e in zip(block.start, edges, strict=True)]
    lasts = [start + e[1:] - 1 for start, e in zip(block.start, edges, strict=True)]
    cells = [n[e[:-1]] for n, e in zip(block.nodes, edges, strict=True)]
    low = _affine_extremes(block, firsts, lasts)
    high = _affine_extremes(block, lasts, firsts)
    if len(block.segments) > 1:
        margin = _ROUNDING * np.abs(block.coefficients).max(axis=axes)
        low += _extreme_displacements(block.coefficients, cells, np.minimum) - margin
        high += _extreme_displacements(block.coefficients, cells, np.maximum) + margin
    return np.clip(low.min(axis=axes), -_FAR, _FAR), np.clip(high.max(axis=axes), -_FAR, _FAR)


def _affine_extremes(block: BlockMap, rising: list[Integers], falling: list[Integers]) -> Floats:
    """Return the affine part (.., 3) with one index a cell and axis.

    `rising` where the position grows along the axis and `falling` where it shrinks. Additions
    come in the samplers' order; each of them is monotone even when rounded, so the bound holds
    to the last bit.
    """
    position = np.empty((*(len(ends) for ends in rising), 3))
    position[:] = block.offset
    for axis in range(3):
        along = [1, 1, 1]
        along[axis] = -1
        for d in range(3):
            step = block.matrix[d, axis]
            ends = rising[axis] if step >= 0 else falling[axis]
            position[..., d] += (step * ends).reshape(along)
    return position


def _extreme_displacements(
    coefficients: Floats, cells: list[Integers], extreme: np.ufunc
) -> Floats:
    """Return a lower or an upper bound (.., 3) of the displacement in each cell.

    Axis by axis: the spline's Bezier points in a cell enclose it, more tightly than its
    coefficients do. The weights of the axes that are left are positive, so bounds of their
    coefficients bound the whole.
    """
    for axis, first in enumerate(cells):
        a, b, c, d = (np.take(coefficients, first + k, axis=axis) for k in range(4))
        points = [(a + 4 * b + c) / 6, (2 * b + c) / 3, (b + 2 * c) / 3, (b + 4 * c + d) / 6]
        coefficients = extreme.reduce(points)
    return coefficients


def make_scratch(block: BlockMap) -> Scratch:
    """Return the rows that a sampler works in."""
    num_y, num_x = block.coefficients.shape[1:3]
    return Scratch(
        plane=np.empty((num_y, num_x, 3)),
        row=np.empty((num_x, 3)),
        positions=np.empty((3, len(block.nodes[2]))),
        taps=np.empty((3, 4), dtype=np.int64),
        weights=np.empty((3, 4)),
    )
