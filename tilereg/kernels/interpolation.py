"""Resample a block through an affine map plus a B-spline lattice, one row at a time.

Everything is three-dimensional: a plane is a volume with one z. Positions are in voxels of the
moving volume and are computed from global indices, so they do not depend on the block:
``p_d = offset_d + sum_e matrix_de i_e + u_d(i)``. Along a row the lattice is contracted over z
and y first; four multiplications a component are left a voxel, and no field is ever stored.

At the rim: a voxel whose position lies outside of ``[-0.5, n - 0.5]`` on any axis gets the fill
value, every other position is clamped to ``[0, n - 1]``. A NaN touches only voxels whose value
depends on it: a weight of zero reads nothing.

Every sampler returns how many voxels needed a sample that the block lacks; it is 0 unless the
window that was read is too small.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tilereg.kernels.bspline import locate

__all__ = [
    "BlockMap",
    "Scratch",
    "sample_cubic",
    "sample_linear",
    "sample_nearest",
    "tabulate",
]

Array = NDArray[Any]


class BlockMap(NamedTuple):
    """The map from the voxels of an output block to positions in the moving volume.

    Parameters
    ----------
    matrix : (3, 3) ndarray of float64
    offset : (3,) ndarray of float64, voxels
    start : (3,) ndarray of int64
        Global index of the block's first voxel.
    coefficients : (k_z, k_y, k_x, 3) ndarray of float64, voxels
        The lattice nodes that support the block.
    nodes : three (n,) ndarrays of int64
        First of the four nodes of every output plane, row and column.
    weights : three (4, n) ndarrays of float64
        Their weights.
    segments : (s + 1,) ndarray of int64
        Where the columns' first node changes, from 0 to n_x. Without a field it is (1,), and
        nothing is added.
    """

    matrix: Array
    offset: Array
    start: Array
    coefficients: Array
    nodes: tuple[Array, Array, Array]
    weights: tuple[Array, Array, Array]
    segments: Array


class Scratch(NamedTuple):
    """What a sampler needs beside its block: a few rows.

    Parameters
    ----------
    plane : (k_y, k_x, 3) ndarray of float64
        The lattice contracted over z.
    row : (k_x, 3) ndarray of float64
        The lattice contracted over z and y.
    positions : (3, n_x) ndarray of float64
        Positions of one output row.
    taps : (3, 4) ndarray of int64
        Indices that one voxel reads.
    weights : (3, 4) ndarray of float64
        Their weights.
    """

    plane: Array
    row: Array
    positions: Array
    taps: Array
    weights: Array


@njit(cache=True, nogil=True)
def tabulate(t: Array, num_nodes: int, nodes: Array, weights: Array) -> None:
    """Write the first node (n,) and the weights (4, n) at lattice positions t (n,)."""
    for i in range(t.shape[0]):
        for a in range(4):
            weights[a, i] = 0.0
        nodes[i] = locate(t[i], num_nodes, weights[:, i])


@njit(cache=True, nogil=True)
def _contract_plane(block: BlockMap, z: int, plane: Array) -> None:
    """Write the lattice (k_y, k_x, 3) at output plane z."""
    c, k, w = block.coefficients, block.nodes[0][z], block.weights[0]
    w0, w1, w2, w3 = w[0, z], w[1, z], w[2, z], w[3, z]
    for i in range(plane.shape[0]):
        for j in range(plane.shape[1]):
            for d in range(3):
                plane[i, j, d] = (w0 * c[k, i, j, d] + w1 * c[k + 1, i, j, d]) + (
                    w2 * c[k + 2, i, j, d] + w3 * c[k + 3, i, j, d]
                )


@njit(cache=True, nogil=True)
def _contract_row(block: BlockMap, y: int, plane: Array, row: Array) -> None:
    """Write the lattice (k_x, 3) at output row y of the plane."""
    k, w = block.nodes[1][y], block.weights[1]
    w0, w1, w2, w3 = w[0, y], w[1, y], w[2, y], w[3, y]
    for j in range(row.shape[0]):
        for d in range(3):
            row[j, d] = (w0 * plane[k, j, d] + w1 * plane[k + 1, j, d]) + (
                w2 * plane[k + 2, j, d] + w3 * plane[k + 3, j, d]
            )


@njit(cache=True, nogil=True)
def _locate_row(block: BlockMap, z: int, y: int, row: Array, positions: Array) -> None:
    """Write the positions (3, n_x) of output row (z, y)."""
    w = block.weights[2]
    first = block.start[2]
    for d in range(3):
        base = block.offset[d] + block.matrix[d, 0] * (block.start[0] + z)
        base += block.matrix[d, 1] * (block.start[1] + y)
        step = block.matrix[d, 2]
        for x in range(positions.shape[1]):
            positions[d, x] = base + step * (first + x)
        for s in range(block.segments.shape[0] - 1):
            begin, end = block.segments[s], block.segments[s + 1]
            k = block.nodes[2][begin]
            c0, c1, c2, c3 = row[k, d], row[k + 1, d], row[k + 2, d], row[k + 3, d]
            for x in range(begin, end):
                positions[d, x] += (w[0, x] * c0 + w[1, x] * c1) + (w[2, x] * c2 + w[3, x] * c3)


@njit(cache=True, nogil=True, inline="always")
def _prepare_row(block: BlockMap, z: int, y: int, scratch: Scratch) -> None:
    """Write the positions of output row (z, y); rows of a plane must start with y = 0."""
    if block.segments.shape[0] > 1:
        if y == 0:
            _contract_plane(block, z, scratch.plane)
        _contract_row(block, y, scratch.plane, scratch.row)
    _locate_row(block, z, y, scratch.row, scratch.positions)


@njit(cache=True, nogil=True)
def sample_nearest(
    source: Array,
    start: Array,
    shape: Array,
    block: BlockMap,
    scratch: Scratch,
    fill: Any,
    out: Array,
) -> int:
    """Write the nearest voxels, halves rounding up, without any arithmetic on values.

    Parameters
    ----------
    source : (s_z, s_y, s_x) ndarray
        The window of the moving volume that starts at `start`.
    start, shape : (3,) ndarrays of int64
        First index of the window, number of voxels of the whole moving volume.
    block : BlockMap
    scratch : Scratch
    fill : scalar of the type of `out`
    out : (n_z, n_y, n_x) ndarray of the type of `source`

    Returns
    -------
    int
        Number of voxels that needed a sample outside of the window.
    """
    missing = 0
    n0, n1, n2 = shape[0], shape[1], shape[2]
    p = scratch.positions
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            _prepare_row(block, z, y, scratch)
            for x in range(out.shape[2]):
                out[z, y, x] = fill
                if not (-0.5 <= p[0, x] <= n0 - 0.5 and -0.5 <= p[1, x] <= n1 - 0.5):
                    continue
                if not -0.5 <= p[2, x] <= n2 - 0.5:
                    continue
                i = min(int(p[0, x] + 0.5), n0 - 1) - start[0]
                j = min(int(p[1, x] + 0.5), n1 - 1) - start[1]
                k = min(int(p[2, x] + 0.5), n2 - 1) - start[2]
                if min(i, j, k) < 0 or not (
                    i < source.shape[0] and j < source.shape[1] and k < source.shape[2]
                ):
                    missing += 1
                    continue
                out[z, y, x] = source[i, j, k]
    return missing


@njit(cache=True, nogil=True, inline="always")
def _between(a: Any, b: Any, f: float) -> Any:
    """Interpolate; a weight of zero does not touch b, which may be NaN or infinite."""
    return a if f == 0.0 else a + f * (b - a)


@njit(cache=True, nogil=True)
def sample_linear(
    source: Array,
    start: Array,
    shape: Array,
    block: BlockMap,
    scratch: Scratch,
    fill: Any,
    limits: tuple[float, float],
    rounded: bool,
    out: Array,
) -> int:
    """Write linear interpolations; integers round half to even and saturate.

    Arguments and result as in `sample_nearest`; besides, `rounded` tells that `out` holds
    integers, and `limits` are the smallest and the largest of them.
    """
    missing = 0
    p = scratch.positions
    s0, s1, s2 = start[0], start[1], start[2]
    w0, w1, w2 = source.shape
    last0, last1, last2 = shape[0] - 1.0, shape[1] - 1.0, shape[2] - 1.0
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            _prepare_row(block, z, y, scratch)
            for x in range(out.shape[2]):
                p0, p1, p2 = p[0, x], p[1, x], p[2, x]
                out[z, y, x] = fill
                if not (-0.5 <= p0 <= last0 + 0.5 and -0.5 <= p1 <= last1 + 0.5):
                    continue
                if not -0.5 <= p2 <= last2 + 0.5:
                    continue
                p0 = min(max(p0, 0.0), last0)
                p1 = min(max(p1, 0.0), last1)
                p2 = min(max(p2, 0.0), last2)
                i, j, k = int(p0), int(p1), int(p2)
                f0, f1, f2 = p0 - i, p1 - j, p2 - k
                i, j, k = i - s0, j - s1, k - s2
                # The upper neighbour is read only where it has a weight.
                u, v, w = i + (f0 > 0.0), j + (f1 > 0.0), k + (f2 > 0.0)
                if i < 0 or j < 0 or k < 0 or u >= w0 or v >= w1 or w >= w2:
                    missing += 1
                    continue
                a = _between(float(source[i, j, k]), float(source[i, j, w]), f2)
                b = _between(float(source[i, v, k]), float(source[i, v, w]), f2)
                c = _between(float(source[u, j, k]), float(source[u, j, w]), f2)
                d = _between(float(source[u, v, k]), float(source[u, v, w]), f2)
                value = _between(_between(a, b, f1), _between(c, d, f1), f0)
                if rounded:
                    value = np.rint(min(max(value, limits[0]), limits[1]))
                out[z, y, x] = value
    return missing


@njit(cache=True, nogil=True)
def _mirror(i: int, n: int) -> int:
    """Fold an index into 0..n-1; the outermost voxels are not repeated."""
    if n == 1:
        return 0
    i = abs(i) % (2 * n - 2)
    return i if i < n else 2 * n - 2 - i


@njit(cache=True, nogil=True, inline="always")
def _find_taps(
    p: float, n: int, start: int, size: int, axis: int, taps: Array, weights: Array
) -> bool:
    """Write four indices and weights at position p, clamped to 0..n-1; False if one is missing."""
    p = min(max(p, 0.0), n - 1.0)
    i = int(p)
    f = p - i
    g = 1.0 - f
    weights[axis, 0] = g * g * g / 6.0
    weights[axis, 1] = (3.0 * f * f * f - 6.0 * f * f + 4.0) / 6.0
    weights[axis, 2] = (3.0 * g * g * g - 6.0 * g * g + 4.0) / 6.0
    weights[axis, 3] = f * f * f / 6.0
    complete = True
    for a in range(4):
        tap = i - 1 + a
        if tap < 0 or tap >= n:
            tap = _mirror(tap, n)
        tap -= start
        if tap < 0 or tap >= size:
            # What has no weight, right of a whole position, need not be there.
            complete = complete and weights[axis, a] == 0.0
            tap = 0
        taps[axis, a] = tap
    return complete


@njit(cache=True, nogil=True)
def sample_cubic(
    source: Array,
    start: Array,
    shape: Array,
    block: BlockMap,
    scratch: Scratch,
    fill: Any,
    limits: tuple[float, float],
    rounded: bool,
    out: Array,
) -> int:
    """Write cubic B-spline interpolations; integers round half to even and saturate.

    Arguments and result as in `sample_linear`, but `source` holds the coefficients that
    `tilereg.kernels.prefilter` makes.
    """
    missing = 0
    p, taps, w = scratch.positions, scratch.taps, scratch.weights
    size0, size1, size2 = source.shape
    n0, n1, n2 = shape[0], shape[1], shape[2]
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            _prepare_row(block, z, y, scratch)
            for x in range(out.shape[2]):
                p0, p1, p2 = p[0, x], p[1, x], p[2, x]
                out[z, y, x] = fill
                if not (-0.5 <= p0 <= n0 - 0.5 and -0.5 <= p1 <= n1 - 0.5):
                    continue
                if not -0.5 <= p2 <= n2 - 0.5:
                    continue
                complete0 = _find_taps(p0, n0, start[0], size0, 0, taps, w)
                complete1 = _find_taps(p1, n1, start[1], size1, 1, taps, w)
                complete2 = _find_taps(p2, n2, start[2], size2, 2, taps, w)
                if not (complete0 and complete1 and complete2):
                    missing += 1
                    continue
                k0, k1, k2, k3 = taps[2, 0], taps[2, 1], taps[2, 2], taps[2, 3]
                w0, w1, w2, w3 = w[2, 0], w[2, 1], w[2, 2], w[2, 3]
                value = 0.0
                for a in range(4):
                    i = taps[0, a]
                    for b in range(4):
                        j = taps[1, b]
                        value += (w[0, a] * w[1, b]) * (
                            (w0 * source[i, j, k0] + w1 * source[i, j, k1])
                            + (w2 * source[i, j, k2] + w3 * source[i, j, k3])
                        )
                if rounded:
                    value = np.rint(min(max(value, limits[0]), limits[1]))
                out[z, y, x] = value
    return missing
