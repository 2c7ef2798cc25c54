"""The fit of a Gaussian blob on a sloping background around a peak.

Variable projection: around the present centre and size every column of the model (blob, its
derivatives, background, neighbours) is a product of one function an axis, so the normal
equations come from sums along single axes. All arithmetic is relative to the peak voxel;
where a block starts does not change a bit of the result.
"""

from __future__ import annotations

import math

import numba
import numpy as np

__all__ = ["MAX_NEIGHBOURS", "fit_blobs"]

MAX_NEIGHBOURS = 6
# Functions of one axis: blob e, u e, u^2 e, constant, linear, then one e a neighbour.
AXIS_FUNCTIONS = 5 + MAX_NEIGHBOURS
# Columns: blob, its shift along 3 axes, its size, constant, 3 slopes, then the neighbours.
COLUMNS = 9 + MAX_NEIGHBOURS
SIZE = 4
MAX_ITERATIONS = 10
# In sigma; Gauss-Newton's next step is far smaller.
CONVERGED = 1e-3
# Prior standard deviations: of the centre in sigma, of the logarithm of the size.
PRIOR_SHIFT = 1.0
PRIOR_SIZE = 0.3
MAX_LOG_SIZE = math.log(2.0)


@numba.njit(cache=True, nogil=True)
def _tabulate(low, high, centre, width, others, num_others, table):  # type: ignore[no-untyped-def]
    """Fill table (3, AXIS_FUNCTIONS, n): the functions of each axis at its voxels."""
    for axis in range(3):
        middle = 0.5 * (low[axis] + high[axis] - 1)
        half = max(0.5 * (high[axis] - 1 - low[axis]), 1.0)
        for i in range(high[axis] - low[axis]):
            place = low[axis] + i
            u = (place - centre[axis]) / width[axis]
            value = math.exp(-0.5 * u * u)
            table[axis, 0, i] = value
            table[axis, 1, i] = u * value
            table[axis, 2, i] = u * u * value
            table[axis, 3, i] = 1.0
            table[axis, 4, i] = (place - middle) / half
            for n in range(num_others):
                v = (place - others[n, axis]) / others[n, 3 + axis]
                table[axis, 5 + n, i] = math.exp(-0.5 * v * v)


@numba.njit(cache=True, nogil=True)
def _contract(data, low, high, level, table, count, rows, sheets, sums):  # type: ignore[no-untyped-def]
    """Sum the data times every product of axis functions over the window.

    rows (count,) and sheets (count, count) are scratch; sums (count, count, count) is the
    result, indexed by the function of z, y and x. Returns the sum of squares.
    """
    squares = 0.0
    sums[:count, :count, :count] = 0.0
    for z in range(high[0] - low[0]):
        sheets[:count, :count] = 0.0
        for y in range(high[1] - low[1]):
            rows[:count] = 0.0
            for x in range(high[2] - low[2]):
                value = np.float64(data[low[0] + z, low[1] + y, low[2] + x]) - level
                squares += value * value
                for f in range(count):
                    rows[f] += value * table[2, f, x]
            for g in range(count):
                for f in range(count):
                    sheets[g, f] += table[1, g, y] * rows[f]
        for h in range(count):
            for g in range(count):
                for f in range(count):
                    sums[h, g, f] += table[0, h, z] * sheets[g, f]
    return squares


@numba.njit(cache=True, nogil=True)
def _function(column, part, axis):  # type: ignore[no-untyped-def]
    """Return the axis function of a column; the size column has three parts."""
    if column == 0:
        return 0
    if column < 4:
        return 1 if axis == column - 1 else 0
    if column == SIZE:
        return 2 if axis == part else 0
    if column == 5:
        return 3
    if column < 9:
        return 4 if axis == column - 6 else 3
    return column - 4


@numba.njit(cache=True, nogil=True)
def _normal_equations(size, table, dots, sums, count, matrix, right):  # type: ignore[no-untyped-def]
    """Fill the normal equations of `count` columns; size (3,) is the window's.

    dots (3, AXIS_FUNCTIONS, AXIS_FUNCTIONS) is scratch.
    """
    for axis in range(3):
        for f in range(count - 4):
            for g in range(f + 1):
                total = 0.0
                for i in range(size[axis]):
                    total += table[axis, f, i] * table[axis, g, i]
                dots[axis, f, g] = total
                dots[axis, g, f] = total
    for p in range(count):
        right[p] = 0.0
        for part in range(3 if p == SIZE else 1):
            right[p] += sums[_function(p, part, 0), _function(p, part, 1), _function(p, part, 2)]
        for q in range(p + 1):
            total = 0.0
            for part in range(3 if p == SIZE else 1):
                for other in range(3 if q == SIZE else 1):
                    product = 1.0
                    for axis in range(3):
                        product *= dots[axis, _function(p, part, axis), _function(q, other, axis)]
                    total += product
            matrix[p, q] = total
            matrix[q, p] = total


@numba.njit(cache=True, nogil=True)
def _factorise(matrix, count):  # type: ignore[no-untyped-def]
    """Replace the lower triangle by its Cholesky factor; False where it is not positive."""
    for p in range(count):
        for q in range(p + 1):
            total = matrix[p, q]
            for k in range(q):
                total -= matrix[p, k] * matrix[q, k]
            if p == q:
                if total <= 0.0:
                    return False
                matrix[p, p] = math.sqrt(total)
            else:
                matrix[p, q] = total / matrix[q, q]
    return True


@numba.njit(cache=True, nogil=True)
def _solve(factor, count, right, out):  # type: ignore[no-untyped-def]
    """Solve with the Cholesky factor of `_factorise`."""
    for p in range(count):
        total = right[p]
        for k in range(p):
            total -= factor[p, k] * out[k]
        out[p] = total / factor[p, p]
    for p in range(count - 1, -1, -1):
        total = out[p]
        for k in range(p + 1, count):
            total -= factor[k, p] * out[k]
        out[p] = total / factor[p, p]


@numba.njit(cache=True, nogil=True)
def _freeze(matrix, right, count, column):  # type: ignore[no-untyped-def]
    """Take a column out of the equations: its answer becomes zero."""
    for q in range(count):
        matrix[column, q] = 0.0
        matrix[q, column] = 0.0
    matrix[column, column] = 1.0
    right[column] = 0.0


@numba.njit(cache=True, nogil=True)
def _equations(data, peak, low, high, level, state, sigma, others, num_others, work):  # type: ignore[no-untyped-def]
    """Fill the normal equations at state (centre 3, log size); return the sum of squares."""
    table, rows, sheets, sums, dots, matrix, right = work
    widths = sigma * math.exp(state[3])
    _tabulate(low, high, state, widths, others, num_others, table)
    squares = _contract(
        data, peak + low, peak + high, level, table, 5 + num_others, rows, sheets, sums
    )
    _normal_equations(high - low, table, dots, sums, 9 + num_others, matrix, right)
    for axis in range(3):
        if high[axis] - low[axis] < 3:
            _freeze(matrix, right, 9 + num_others, 1 + axis)
            _freeze(matrix, right, 9 + num_others, 6 + axis)
    return squares


@numba.njit(cache=True, nogil=True)
def _add_priors(state, start, sigma, height, variance, matrix, right):  # type: ignore[no-untyped-def]
    """Pull the centre and the size to where they began; return the cost at no step."""
    cost = 0.0
    for column in range(1, 5):
        spread = PRIOR_SIZE if column == SIZE else PRIOR_SHIFT
        weight = variance / (height * spread) ** 2
        if column == SIZE:
            target = -height * state[3]
        else:
            axis = column - 1
            target = height * (start[axis] - state[axis]) / (sigma[axis] * math.exp(state[3]))
        matrix[column, column] += weight
        right[column] += weight * target
        cost += weight * target * target
    return cost


@numba.njit(cache=True, nogil=True)
def _step(state, answer, sigma):  # type: ignore[no-untyped-def]
    """Move centre and log size by a bounded Gauss-Newton step; return its size in sigma."""
    largest = 0.0
    size = math.exp(state[3])
    for axis in range(3):
        move = min(0.5, max(-0.5, answer[1 + axis] / answer[0]))
        state[axis] += move * sigma[axis] * size
        largest = max(largest, abs(move))
    move = min(0.3, max(-0.3, answer[SIZE] / answer[0]))
    state[3] = min(MAX_LOG_SIZE, max(-MAX_LOG_SIZE, state[3] + move))
    return max(largest, abs(move))


@numba.njit(cache=True, nogil=True)
def _errors(matrix, count, variance, height, widths, unit, answer, out):  # type: ignore[no-untyped-def]
    """Write the standard errors of the centre (3,) in voxels; `matrix` is a Cholesky factor."""
    for axis in range(3):
        unit[:count] = 0.0
        unit[1 + axis] = 1.0
        _solve(matrix, count, unit, answer)
        out[axis] = widths[axis] * math.sqrt(variance * answer[1 + axis]) / abs(height)


@numba.njit(cache=True, nogil=True)
def _mean(data, low, high):  # type: ignore[no-untyped-def]
    """Return the mean of a box of the data."""
    total = 0.0
    for z in range(low[0], high[0]):
        for y in range(low[1], high[1]):
            for x in range(low[2], high[2]):
                total += data[z, y, x]
    return total / ((high[0] - low[0]) * (high[1] - low[1]) * (high[2] - low[2]))


@numba.njit(cache=True, nogil=True)
def _remainder(squares, answer, right, count):  # type: ignore[no-untyped-def]
    """Return the sum of squares that the solved equations leave."""
    for column in range(count):
        squares -= answer[column] * right[column]
    return max(squares, 0.0)


@numba.njit(cache=True, nogil=True)
def _fit_one(data, peak, start, height, sigma, half, reach, others, num_others, work, vectors, out):  # type: ignore[no-untyped-def]
    """Fit one blob; see `fit_blobs` for the columns of out (8,). True if the fit held."""
    low = np.maximum(-half, -peak)
    high = np.minimum(half + 1, np.array(data.shape) - peak)
    state, answer, unit = vectors
    matrix, right = work[5], work[6]
    count = 9 + num_others
    level = _mean(data, peak + low, peak + high)
    freedom = max(1, (high[0] - low[0]) * (high[1] - low[1]) * (high[2] - low[2]) - count)
    state[:3] = start
    state[3] = 0.0
    squares = _equations(data, peak, low, high, level, state, sigma, others, num_others, work)
    for column in range(1, 5):
        _freeze(matrix, right, count, column)
    variance = squares / freedom
    if _factorise(matrix, count):
        _solve(matrix, count, right, answer)
        variance = _remainder(squares, answer, right, count) / freedom
        if answer[0] > 0.0:
            height = answer[0]
    out[:3] = start
    out[3], out[4] = height, 1.0
    # Of the plain fit: the limit for white noise and a known size.
    volume = math.pi**1.5 * sigma[0] * sigma[1] * sigma[2]
    out[5:] = sigma * math.sqrt(2.0 * variance / volume) / height
    for _ in range(MAX_ITERATIONS):
        squares = _equations(data, peak, low, high, level, state, sigma, others, num_others, work)
        squares += _add_priors(state, start, sigma, height, variance, matrix, right)
        if not _factorise(matrix, count):
            return False
        _solve(matrix, count, right, answer)
        if not answer[0] > 0.0:
            return False
        height = answer[0]
        variance = _remainder(squares, answer, right, count) / freedom
        move = _step(state, answer, sigma)
        for axis in range(3):
            if abs(state[axis] - start[axis]) > reach[axis]:
                return False
        if move < CONVERGED:
            break
    out[:3] = state[:3]
    out[3], out[4] = height, math.exp(state[3])
    widths = sigma * out[4]
    _errors(matrix, count, variance, height, widths, unit, answer, out[5:])
    return True


@numba.njit(cache=True, nogil=True)
def fit_blobs(data, peaks, starts, heights, sigmas, halves, neighbours, out, fitted):  # type: ignore[no-untyped-def]
    """Fit a Gaussian blob, a constant and a slope around each peak.

    A blob near others is fitted together with the heights of those others, which keep the
    places and sizes that they have in `starts` and `sigmas`. Where the fit fails or leaves the
    neighbourhood of its peak, the start and the height that fits best there are kept.

    Parameters
    ----------
    data : (Z, Y, X) float32 ndarray
    peaks : (N, 3) int64 ndarray
    starts : (N, 3) float64 ndarray, voxels
        Offsets from the peak voxels.
    heights : (N,) float64 ndarray
        Expected heights, above zero.
    sigmas : (N, 3) float64 ndarray, voxels
    halves : (N, 3) int64 ndarray, voxels
        Half sizes of the windows, clipped at the faces of `data`.
    neighbours : (K, MAX_NEIGHBOURS) int64 ndarray
        Rows of the neighbours of the first K peaks, which are fitted; -1 fills up.
    out : (K, 8) float64 ndarray
        Offset from the peak voxel (3), height, size as a factor of sigma, standard errors of
        the offset (3); all but height and factor in voxels.
    fitted : (K,) bool ndarray
        False where the start was kept.
    """
    others = np.empty((MAX_NEIGHBOURS, 6))
    longest = 2 * halves.max() + 1
    work = (
        np.empty((3, AXIS_FUNCTIONS, longest)),
        np.empty(AXIS_FUNCTIONS),
        np.empty((AXIS_FUNCTIONS, AXIS_FUNCTIONS)),
        np.empty((AXIS_FUNCTIONS, AXIS_FUNCTIONS, AXIS_FUNCTIONS)),
        np.empty((3, AXIS_FUNCTIONS, AXIS_FUNCTIONS)),
        np.empty((COLUMNS, COLUMNS)),
        np.empty(COLUMNS),
    )
    vectors = (np.empty(4), np.empty(COLUMNS), np.empty(COLUMNS))
    for n in range(neighbours.shape[0]):
        num_others = 0
        while num_others < MAX_NEIGHBOURS and neighbours[n, num_others] >= 0:
            other = neighbours[n, num_others]
            others[num_others, :3] = (peaks[other] - peaks[n]) + starts[other]
            others[num_others, 3:] = sigmas[other]
            num_others += 1
        reach = np.maximum(1.0, sigmas[n])
        fitted[n] = _fit_one(
            data,
            peaks[n],
            starts[n],
            heights[n],
            sigmas[n],
            halves[n],
            reach,
            others,
            num_others,
            work,
            vectors,
            out[n],
        )
