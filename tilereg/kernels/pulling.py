"""Kernels that pull a volume through a map in closed form, voxel by voxel.

The map is evaluated at every voxel from its global index, so a voxel gets the same value in
every block that holds it. Everything is three-dimensional.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["PullArrays", "pull_linear"]

Array = NDArray[Any]


_FAR = 40.0  # exponent from which on a bump is below the rounding of an index
_RIM = 1e-9  # voxels; what is closer to the rim is on it, so that rounding does not decide


class PullArrays(NamedTuple):
    """A map from voxels of one volume to positions in another; see `tilereg.pulling.PullMap`.

    The voxel x of field of view f is at ``r = turn x + origins_f``, and comes from the index
    ``matrix r + offset`` + polynomials of r + Gaussian bumps at r. All arrays are of float64.

    Parameters
    ----------
    borders : (2,) ndarray, voxels
        Where the second field of view begins along y and x.
    turn : (3, 3) ndarray
    origins : (2, 2, 3) ndarray
        For each field of view.
    matrix, offset : (3, 3) and (3,) ndarray
    coefficients : (3, 6) ndarray, or (0, 6) without polynomials
        Of 1, x, y, z, x y, y z.
    scale, shift : (3,) ndarray
        ``r scale - shift`` is the argument of the polynomials.
    centres, amplitudes : (B, 3) ndarray
        Of the Gaussian bumps.
    sharpness : (B,) ndarray
        ``1 / 2 R^2`` of each bump.
    """

    borders: Array
    turn: Array
    origins: Array
    matrix: Array
    offset: Array
    coefficients: Array
    scale: Array
    shift: Array
    centres: Array
    amplitudes: Array
    sharpness: Array


@njit(cache=True, nogil=True, inline="always")
def _affine(matrix: Array, offset: Array, d: int, a: float, b: float, c: float) -> float:
    """Return one coordinate of an affine map."""
    return float(matrix[d, 0] * a + matrix[d, 1] * b + matrix[d, 2] * c + offset[d])


@njit(cache=True, nogil=True, inline="always")
def _pull(m: PullArrays, z: int, y: int, x: int) -> tuple[float, float, float]:
    """Return where a voxel comes from, in voxels."""
    origin = m.origins[1 if y >= m.borders[0] else 0, 1 if x >= m.borders[1] else 0]
    r0 = _affine(m.turn, origin, 0, z, y, x)
    r1 = _affine(m.turn, origin, 1, z, y, x)
    r2 = _affine(m.turn, origin, 2, z, y, x)
    p0 = _affine(m.matrix, m.offset, 0, r0, r1, r2)
    p1 = _affine(m.matrix, m.offset, 1, r0, r1, r2)
    p2 = _affine(m.matrix, m.offset, 2, r0, r1, r2)
    if m.coefficients.shape[0] > 0:
        c = m.coefficients
        w = r0 * m.scale[0] - m.shift[0]
        v = r1 * m.scale[1] - m.shift[1]
        u = r2 * m.scale[2] - m.shift[2]
        uv, vw = u * v, v * w
        p0 += c[0, 0] + c[0, 1] * u + c[0, 2] * v + c[0, 3] * w + c[0, 4] * uv + c[0, 5] * vw
        p1 += c[1, 0] + c[1, 1] * u + c[1, 2] * v + c[1, 3] * w + c[1, 4] * uv + c[1, 5] * vw
        p2 += c[2, 0] + c[2, 1] * u + c[2, 2] * v + c[2, 3] * w + c[2, 4] * uv + c[2, 5] * vw
    for k in range(m.sharpness.shape[0]):
        g0, g1, g2 = r0 - m.centres[k, 0], r1 - m.centres[k, 1], r2 - m.centres[k, 2]
        exponent = m.sharpness[k] * (g0 * g0 + g1 * g1 + g2 * g2)
        if exponent < _FAR:
            weight = math.exp(-exponent)
            p0 += weight * m.amplitudes[k, 0]
            p1 += weight * m.amplitudes[k, 1]
            p2 += weight * m.amplitudes[k, 2]
    return p0, p1, p2


@njit(cache=True, nogil=True)
def pull_linear(
    m: PullArrays, source: Array, first: Array, shape: Array, start: Array, out: Array
) -> int:
    """Write linear interpolations, rounded half to even; zero outside of the volume.

    Within 1e-9 voxels of the outermost voxels' centres a position is not outside.

    Parameters
    ----------
    m : PullArrays
    source : (s_z, s_y, s_x) ndarray
        The window of the volume that starts at `first`.
    first, shape : (3,) ndarrays of int64
        First index of the window, number of voxels of the whole volume.
    start : (3,) ndarray of int64
        Index of the first voxel of `out`.
    out : (n_z, n_y, n_x) ndarray of the type of `source`

    Returns
    -------
    int
        Number of voxels that needed a sample outside of the window.
    """
    missing = 0
    last0, last1, last2 = shape[0] - 1.0, shape[1] - 1.0, shape[2] - 1.0
    w0, w1, w2 = source.shape
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                p0, p1, p2 = _pull(m, start[0] + z, start[1] + y, start[2] + x)
                out[z, y, x] = 0
                if not (-_RIM <= p0 <= last0 + _RIM and -_RIM <= p1 <= last1 + _RIM):
                    continue
                if not -_RIM <= p2 <= last2 + _RIM:
                    continue
                p0 = min(max(p0, 0.0), last0)
                p1 = min(max(p1, 0.0), last1)
                p2 = min(max(p2, 0.0), last2)
                i, j, k = int(p0), int(p1), int(p2)
                f0, f1, f2 = p0 - i, p1 - j, p2 - k
                # At the last voxel the upper neighbour has no weight, and is not there.
                u = min(i + 1, shape[0] - 1) - first[0]
                v = min(j + 1, shape[1] - 1) - first[1]
                w = min(k + 1, shape[2] - 1) - first[2]
                i, j, k = i - first[0], j - first[1], k - first[2]
                if i < 0 or j < 0 or k < 0 or u >= w0 or v >= w1 or w >= w2:
                    missing += 1
                    continue
                a = float(source[i, j, k]) * (1 - f2) + float(source[i, j, w]) * f2
                b = float(source[i, v, k]) * (1 - f2) + float(source[i, v, w]) * f2
                c = float(source[u, j, k]) * (1 - f2) + float(source[u, j, w]) * f2
                d = float(source[u, v, k]) * (1 - f2) + float(source[u, v, w]) * f2
                value = (a * (1 - f1) + b * f1) * (1 - f0) + (c * (1 - f1) + d * f1) * f0
                out[z, y, x] = np.rint(value)
    return missing
