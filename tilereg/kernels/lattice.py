"""Normal equations of a cubic B-spline lattice as a stencil, and their product with a vector.

A node couples to the three nodes on either side along every axis, so a row of the matrix has at
most 7 x 7 x 7 entries. An axis with a single node couples to itself alone (the middle entry).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tilereg.kernels.bspline import locate

__all__ = ["assemble", "filter_axis", "multiply", "multiply_planes"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Nodes whose sums stay in a processor's nearest cache.
_NODES_AT_A_TIME = 1024


@njit(cache=True, nogil=True, fastmath={"contract"})
def assemble(
    points: Floats,
    weights: Floats,
    values: Floats,
    order: Ints,
    origin: Floats,
    inverse_spacing: Floats,
    matrix: Floats,
    right: Floats,
) -> None:
    """Add sum_i w_i b_i b_i^T to the stencil matrix and sum_i w_i b_i v_i to the right side.

    points (N, 3), weights (N,), values (N, D), order (N,) rows in an order in which points of one
    lattice cell are neighbours, matrix (n0, n1, n2, 7, 7, 7), right (n0, n1, n2, D).

    Points of a cell are added four at a time: the sums are read and written once for all four.
    """
    n0, n1, n2, num_components = right.shape
    s0, s1, s2 = min(n0, 4), min(n1, 4), min(n2, 4)
    size = s0 * s1 * s2
    w0, w1, w2 = np.empty(4), np.empty(4), np.empty(4)
    basis, scaled = np.zeros((4, size)), np.zeros((4, size))
    held = 0
    local = np.zeros((size, size))
    local_right = np.zeros((size, num_components))
    last_a, last_b, last_c = -1, -1, -1
    count = points.shape[0]
    for step in range(count + 1):
        a, b, c = -1, -1, -1
        i = 0
        if step < count:
            i = order[step]
            if weights[i] <= 0.0:
                continue
            a = locate((points[i, 0] - origin[0]) * inverse_spacing[0], n0, w0)
            b = locate((points[i, 1] - origin[1]) * inverse_spacing[1], n1, w1)
            c = locate((points[i, 2] - origin[2]) * inverse_spacing[2], n2, w2)
        is_new = a != last_a or b != last_b or c != last_c
        if held == 4 or (is_new and held > 0):
            basis[held:] = 0.0
            scaled[held:] = 0.0
            _add_four(basis, scaled, local)
            held = 0
        if is_new and last_a >= 0:
            _scatter(local, local_right, last_a, last_b, last_c, s0, s1, s2, matrix, right)
            local[:] = 0.0
            local_right[:] = 0.0
        last_a, last_b, last_c = a, b, c
        if step == count:
            break
        k = 0
        for p in range(s0):
            for q in range(s1):
                for r in range(s2):
                    basis[held, k] = w0[p] * w1[q] * w2[r]
                    scaled[held, k] = basis[held, k] * weights[i]
                    for d in range(num_components):
                        local_right[k, d] += scaled[held, k] * values[i, d]
                    k += 1
        held += 1


@njit(cache=True, nogil=True, fastmath={"contract"})
def _add_four(basis: Floats, scaled: Floats, local: Floats) -> None:
    """Add four outer products to the upper triangle of a matrix, in squares of eight."""
    size = local.shape[0]
    for p in range(size):
        f0, f1, f2, f3 = scaled[0, p], scaled[1, p], scaled[2, p], scaled[3, p]
        row = local[p]
        # From a multiple of eight on: what is below the diagonal is not read.
        for q in range(p - p % 8, size):
            row[q] += f0 * basis[0, q] + f1 * basis[1, q] + (f2 * basis[2, q] + f3 * basis[3, q])


@njit(cache=True, nogil=True)
def _scatter(
    local: Floats,
    local_right: Floats,
    a: int,
    b: int,
    c: int,
    s0: int,
    s1: int,
    s2: int,
    matrix: Floats,
    right: Floats,
) -> None:
    """Add the dense block of one lattice cell, its upper triangle, to the stencil matrix."""
    size = s0 * s1 * s2
    for p in range(size):
        for q in range(p):
            local[p, q] = local[q, p]
    p = 0
    for pa in range(s0):
        for pb in range(s1):
            for pc in range(s2):
                for d in range(local_right.shape[1]):
                    right[a + pa, b + pb, c + pc, d] += local_right[p, d]
                rows = matrix[a + pa, b + pb, c + pc]
                q = 0
                for qa in range(s0):
                    for qb in range(s1):
                        target = rows[qa - pa + 3, qb - pb + 3]
                        for qc in range(s2):
                            target[qc - pc + 3] += local[p, q + qc]
                        q += s2
                p += 1


@njit(cache=True, nogil=True)
def multiply(matrix: Floats, vector: Floats, out: Floats) -> None:
    """Write matrix @ vector; vector and out (n0, n1, n2, D)."""
    n0, n1, n2, num_components = vector.shape
    total = np.empty(num_components)
    for a in range(n0):
        for b in range(n1):
            for c in range(n2):
                total[:] = 0.0
                for p in range(max(-3, -a), min(3, n0 - 1 - a) + 1):
                    for q in range(max(-3, -b), min(3, n1 - 1 - b) + 1):
                        for r in range(max(-3, -c), min(3, n2 - 1 - c) + 1):
                            value = matrix[a, b, c, p + 3, q + 3, r + 3]
                            for d in range(num_components):
                                total[d] += value * vector[a + p, b + q, c + r, d]
                for d in range(num_components):
                    out[a, b, c, d] = total[d]


@njit(cache=True, nogil=True)
def multiply_planes(diagonals: Floats, nodes: Ints, vector: Floats, out: Floats) -> None:
    """Write matrix @ vector, with one component and one diagonal after the other in memory.

    diagonals (7, 7, 7, K) are the stencil's entries by offset over the K nodes in C order, zero
    where a neighbour does not exist; nodes (3,) their numbers an axis; vector and out (D, K).
    The innermost loop runs over neighbouring nodes, so it fills vector units.
    """
    num_components, size = vector.shape
    out[:] = 0.0
    for begin in range(0, size, _NODES_AT_A_TIME):
        end = min(begin + _NODES_AT_A_TIME, size)
        for p in range(max(-3, 1 - nodes[0]), min(3, nodes[0] - 1) + 1):
            for q in range(max(-3, 1 - nodes[1]), min(3, nodes[1] - 1) + 1):
                for r in range(max(-3, 1 - nodes[2]), min(3, nodes[2] - 1) + 1):
                    shift = (p * nodes[1] + q) * nodes[2] + r
                    first, last = max(begin, -shift), min(end, size - shift)
                    if last <= first:
                        continue
                    row = diagonals[p + 3, q + 3, r + 3, first:last]
                    for d in range(num_components):
                        source = vector[d, first + shift : last + shift]
                        target = out[d, first:last]
                        for k in range(row.size):
                            target[k] += row[k] * source[k]


@njit(cache=True, nogil=True)
def filter_axis(matrix: Floats, values: Floats, out: Floats) -> None:
    """Write the product of a banded matrix and the middle axis of an array.

    matrix (n, m), values (A, m, B), out (A, n, B); zeros of the matrix cost nothing.
    """
    for a in range(values.shape[0]):
        for i in range(matrix.shape[0]):
            target = out[a, i]
            target[:] = 0.0
            for j in range(matrix.shape[1]):
                weight = matrix[i, j]
                if weight != 0.0:
                    source = values[a, j]
                    for b in range(target.size):
                        target[b] += weight * source[b]
