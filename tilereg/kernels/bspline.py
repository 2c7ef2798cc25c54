"""Cubic B-splines on a regular lattice of up to three axes.

Everything is three-dimensional here: a plane has one node along z. An axis with a single node
is constant along it; every other axis has at least four nodes. With ``t = (x - origin) / spacing``
the spline is ``u(t) = sum_k B3(t - k) c_k``; ``t`` is clamped to the domain ``[1, n - 2]``.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["evaluate", "evaluate_jacobian", "locate", "locate_derivative"]

Floats = NDArray[np.float64]


@njit(cache=True, nogil=True, inline="always")
def _weights(f: float, out: Floats) -> None:
    """Write the four cubic B-spline weights at fraction `f` of a cell."""
    g = 1.0 - f
    out[0] = g * g * g / 6.0
    out[1] = (3.0 * f * f * f - 6.0 * f * f + 4.0) / 6.0
    out[2] = (3.0 * g * g * g - 6.0 * g * g + 4.0) / 6.0
    out[3] = f * f * f / 6.0


@njit(cache=True, nogil=True)
def locate(t: float, num_nodes: int, out: Floats) -> int:
    """Write the weights at lattice position `t` and return the first node that they belong to.

    A single node gets weight one; the caller knows from ``num_nodes == 1`` that it is alone.
    """
    if num_nodes == 1:
        out[0] = 1.0
        return 0
    t = min(max(t, 1.0), num_nodes - 2.0)
    first = min(math.floor(t), num_nodes - 3)
    _weights(t - first, out)
    return first - 1


@njit(cache=True, nogil=True)
def locate_derivative(t: float, num_nodes: int, out: Floats) -> None:
    """Write the weights' derivatives by `t`; zero along a single node and outside the domain."""
    if num_nodes == 1 or t < 1.0 or t > num_nodes - 2.0:
        out[:] = 0.0
        return
    f = t - min(math.floor(t), num_nodes - 3)
    g = 1.0 - f
    out[0] = -0.5 * g * g
    out[1] = 1.5 * f * f - 2.0 * f
    out[2] = -1.5 * g * g + 2.0 * g
    out[3] = 0.5 * f * f


@njit(cache=True, nogil=True)
def evaluate(
    points: Floats, origin: Floats, inverse_spacing: Floats, coefficients: Floats, out: Floats
) -> None:
    """Write u at every point.

    points (N, 3), origin (3,), inverse_spacing (3,), coefficients (n0, n1, n2, D), out (N, D).
    """
    n0, n1, n2, num_components = coefficients.shape
    s0, s1, s2 = min(n0, 4), min(n1, 4), min(n2, 4)
    w0, w1, w2 = np.empty(4), np.empty(4), np.empty(4)
    for i in range(points.shape[0]):
        a = locate((points[i, 0] - origin[0]) * inverse_spacing[0], n0, w0)
        b = locate((points[i, 1] - origin[1]) * inverse_spacing[1], n1, w1)
        c = locate((points[i, 2] - origin[2]) * inverse_spacing[2], n2, w2)
        for d in range(num_components):
            out[i, d] = 0.0
        for p in range(s0):
            for q in range(s1):
                wpq = w0[p] * w1[q]
                for r in range(s2):
                    weight = wpq * w2[r]
                    for d in range(num_components):
                        out[i, d] += weight * coefficients[a + p, b + q, c + r, d]


@njit(cache=True, nogil=True)
def evaluate_jacobian(
    points: Floats, origin: Floats, inverse_spacing: Floats, coefficients: Floats, out: Floats
) -> None:
    """Write du_d / dx_e at every point; out (N, D, 3), other arguments as in `evaluate`."""
    n0, n1, n2, num_components = coefficients.shape
    s0, s1, s2 = min(n0, 4), min(n1, 4), min(n2, 4)
    w0, w1, w2 = np.empty(4), np.empty(4), np.empty(4)
    d0, d1, d2 = np.empty(4), np.empty(4), np.empty(4)
    for i in range(points.shape[0]):
        t0 = (points[i, 0] - origin[0]) * inverse_spacing[0]
        t1 = (points[i, 1] - origin[1]) * inverse_spacing[1]
        t2 = (points[i, 2] - origin[2]) * inverse_spacing[2]
        a, b, c = locate(t0, n0, w0), locate(t1, n1, w1), locate(t2, n2, w2)
        locate_derivative(t0, n0, d0)
        locate_derivative(t1, n1, d1)
        locate_derivative(t2, n2, d2)
        out[i] = 0.0
        for p in range(s0):
            for q in range(s1):
                for r in range(s2):
                    g0 = d0[p] * w1[q] * w2[r] * inverse_spacing[0]
                    g1 = w0[p] * d1[q] * w2[r] * inverse_spacing[1]
                    g2 = w0[p] * w1[q] * d2[r] * inverse_spacing[2]
                    for d in range(num_components):
                        value = coefficients[a + p, b + q, c + r, d]
                        out[i, d, 0] += g0 * value
                        out[i, d, 1] += g1 * value
                        out[i, d, 2] += g2 * value
