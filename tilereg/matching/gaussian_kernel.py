"""The Gaussian kernel of Coherent Point Drift: its matrix, its sums, and its low rank."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["kernel", "kernel_factor", "kernel_sum"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Entries of the matrix that are held at once, where only its sums are needed.
_BATCH = 4_000_000
_FIRST_RANK = 64


def kernel(points: Floats, others: Floats, beta: float) -> Floats:
    """Return exp(-|x_i - y_j|^2 / (2 beta^2)), (K, L), of (K, D) and (L, D) points."""
    centre = others.mean(axis=0)
    x, y = points - centre, others - centre
    G = x @ y.T
    G *= -2.0
    G += (x**2).sum(axis=1)[:, None]
    G += (y**2).sum(axis=1)
    np.maximum(G, 0.0, out=G)
    G *= -0.5 / beta**2
    return np.asarray(np.exp(G, out=G))


def kernel_sum(points: Floats, centres: Floats, weights: Floats, beta: float) -> Floats:
    """Return sum_m G(x, y_m) w_m, (K, C), at (K, D) points x: never all of G at once."""
    out = np.zeros((len(points), weights.shape[1]))
    if len(centres) == 0:
        return out
    rows = max(1, _BATCH // len(centres))
    for start in range(0, len(points), rows):
        part = slice(start, start + rows)
        out[part] = kernel(points[part], centres, beta) @ weights
    return out


def kernel_factor(points: Floats, beta: float, left_out: float) -> tuple[Floats, Rows]:
    """Return L (M, K) with G about L L', and the rows (K,) of its pivots.

    L L' is exact in the rows and columns of the pivots, and leaves out at most a share of the
    trace elsewhere. Each pivot is the point that those before tell least about.
    """
    rest = np.ones(len(points))
    factor = np.empty((min(len(points), _FIRST_RANK), len(points)))
    pivots: list[int] = []
    while rest.sum() > left_out * len(points) and len(pivots) < len(points):
        pivot, rank = int(rest.argmax()), len(pivots)
        if rank == len(factor):
            factor = np.concatenate([factor, np.empty_like(factor)])
        column = kernel(points, points[pivot : pivot + 1], beta)[:, 0]
        column -= factor[:rank, pivot] @ factor[:rank]
        column /= math.sqrt(rest[pivot])
        factor[rank] = column
        rest = np.maximum(rest - column**2, 0.0)
        rest[pivot] = 0.0
        pivots.append(pivot)
    return np.ascontiguousarray(factor[: len(pivots)].T), np.array(pivots, dtype=np.int64)
