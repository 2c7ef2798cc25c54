"""Normal equations of a cubic B-spline lattice as a stencil, and their product with a vector.

A node couples to the three nodes on either side along every axis, so a row of the matrix has at
most 7 x 7 x 7 entries. An axis with a single node couples to itself alone (the middle entry).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tilereg.kernels.bspline import locate

__all__ = ["assemble", "mirror", "multiply_planes"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Products of two of four weights are ten; twelve fill vector units.
_PAIRS = 12
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
    diagonals: Floats,
    right: Floats,
) -> None:
    """Add sum_i w_i b_i b_i^T to the stencil matrix and sum_i w_i b_i v_i to the right side.

    points (N, 3), weights (N,), values (N, D), order (N,) rows in an order in which points of one
    lattice cell are neighbours, diagonals (7, 7, 7, n0, n1, n2) the matrix by offset of a node's
    neighbour, right (n0, n1, n2, D).

    A product of two splines is one of three products of two, one an axis, and these do not
    depend on the order: 10 x 10 x 10 sums a cell are enough for its 64 x 64 entries. Points of a
    cell are added four at a time, so that the sums are read and written once for all four.
    Half of the symmetric matrix is added to; `mirror` completes it, after all points.
    """
    n0, n1, n2, num_components = right.shape
    s0, s1, s2 = min(n0, 4), min(n1, 4), min(n2, 4)
    w0, w1, w2 = np.empty(4), np.empty(4), np.empty(4)
    t0, t1 = s0 * (s0 + 1) // 2, s1 * (s1 + 1) // 2
    v0, v1 = np.empty(t0), np.empty(t1)
    outer, inner = np.zeros((4, t0, t1)), np.zeros((4, _PAIRS))
    sides, ends = np.zeros((4, s0, s1)), np.zeros((4, 4 * num_components))
    held = 0
    local = np.zeros((t0, t1, _PAIRS))
    local_right = np.zeros((s0, s1, 4 * num_components))
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
            outer[held:] = 0.0
            sides[held:] = 0.0
            _add_four(outer, inner, local)
            _add_four(sides, ends, local_right)
            held = 0
        if is_new and last_a >= 0:
            _scatter(local, local_right, last_a, last_b, last_c, s2, diagonals, right)
            local[:] = 0.0
            local_right[:] = 0.0
        last_a, last_b, last_c = a, b, c
        if step == count:
            break
        _products(w0, s0, weights[i], v0)
        _products(w1, s1, 1.0, v1)
        _products(w2, s2, 1.0, inner[held])
        _outer(v0, v1, 1.0, outer[held])
        _outer(w0, w1, weights[i], sides[held])
        end = ends[held]
        for d in range(num_components):
            for r in range(4):
                end[4 * d + r] = w2[r] * values[i, d] if r < s2 else 0.0
        held += 1


@njit(cache=True, nogil=True)
def _products(w: Floats, size: int, factor: float, out: Floats) -> None:
    """Write the products of two weights times a factor: of equal ones, of neighbours, .."""
    k = 0
    for apart in range(size):
        for p in range(size - apart):
            out[k] = w[p] * w[p + apart] * factor
            k += 1


@njit(cache=True, nogil=True)
def _place(p: int, q: int, size: int) -> int:
    """Return where the product of two weights is among those of `_products`."""
    apart = abs(p - q)
    return apart * size - apart * (apart - 1) // 2 + min(p, q)


@njit(cache=True, nogil=True)
def _outer(one: Floats, two: Floats, factor: float, out: Floats) -> None:
    """Write the outer product of the first entries times a factor."""
    for p in range(out.shape[0]):
        scaled = one[p] * factor
        for q in range(out.shape[1]):
            out[p, q] = scaled * two[q]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _add_four(outer: Floats, inner: Floats, local: Floats) -> None:
    """Add four outer products of (4, K, L) and (4, M) to (K, L, M) sums."""
    i0, i1, i2, i3 = inner[0], inner[1], inner[2], inner[3]
    for p in range(local.shape[0]):
        for q in range(local.shape[1]):
            f0, f1, f2, f3 = outer[0, p, q], outer[1, p, q], outer[2, p, q], outer[3, p, q]
            row = local[p, q]
            for r in range(row.size):
                row[r] += f0 * i0[r] + f1 * i1[r] + (f2 * i2[r] + f3 * i3[r])


@njit(cache=True, nogil=True)
def _scatter(
    local: Floats,
    local_right: Floats,
    a: int,
    b: int,
    c: int,
    s2: int,
    diagonals: Floats,
    right: Floats,
) -> None:
    """Add the sums of one lattice cell to the right side and half of the stencil matrix.

    Of two neighbours along the first two axes only the later one is told of the other.
    """
    s0, s1 = local_right.shape[:2]
    for pa in range(s0):
        for pb in range(s1):
            for d in range(right.shape[3]):
                for pc in range(s2):
                    right[a + pa, b + pb, c + pc, d] += local_right[pa, pb, 4 * d + pc]
            for qa in range(pa, s0):
                place = _place(pa, qa, s0)
                for qb in range(pb if qa == pa else 0, s1):
                    row = local[place, _place(pb, qb, s1)]
                    lines = diagonals[qa - pa + 3, qb - pb + 3, :, a + pa, b + pb, c : c + s2]
                    start = 0
                    for apart in range(s2):
                        later, earlier = lines[3 + apart], lines[3 - apart]
                        for pc in range(s2 - apart):
                            later[pc] += row[start + pc]
                            if apart > 0:
                                earlier[pc + apart] += row[start + pc]
                        start += s2 - apart


@njit(cache=True, nogil=True)
def mirror(diagonals: Floats) -> None:
    """Complete a symmetric stencil: what a node has of a later one, that has of the node."""
    n0, n1, n2 = diagonals.shape[3:]
    for p in range(min(4, n0)):
        for q in range(-min(3, n1 - 1), min(4, n1)):
            if p == 0 and q <= 0:
                continue
            for r in range(-min(3, n2 - 1), min(4, n2)):
                known = diagonals[3 + p, 3 + q, 3 + r]
                other = diagonals[3 - p, 3 - q, 3 - r]
                for a in range(n0 - p):
                    for b in range(max(0, -q), min(n1, n1 - q)):
                        for c in range(max(0, -r), min(n2, n2 - r)):
                            other[a + p, b + q, c + r] = known[a, b, c]


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
