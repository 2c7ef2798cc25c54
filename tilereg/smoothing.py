"""Smooth fields from noisy values at points: two priors on one lattice, affine maps free in both.

`Coherent` is the prior of Coherent Point Drift, a Gaussian process with a Gaussian kernel;
`ThinPlate` is the bending energy of the smoothing thin-plate spline. Both are solved by conjugate
gradients without ever forming a dense matrix.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, solveh_banded

from tilereg.blas import one_thread
from tilereg.lattice import Lattice, NormalEquations

__all__ = ["Coherent", "Smoother", "Solution", "ThinPlate"]

Floats = NDArray[np.float64]

_RIDGE = 1e-9
_NODES_A_BETA = 2.0
_NEGLIGIBLE, _NO_ENERGY = 1e-6, 1e-12
# Multiplications up to which a direct solution is faster than an iterative one.
_MOST_BAND_WORK = 2e10


@dataclass(frozen=True, eq=False)
class Solution:
    """Lattice coefficients and what a next, similar solve can start from.

    Parameters
    ----------
    coefficients : (n_1, .., n_D, D) ndarray
    state : tuple of ndarray
        The unknowns as the solver holds them.
    num_iterations : int
    """

    coefficients: Floats
    state: tuple[Floats, ...]
    num_iterations: int


@dataclass(frozen=True)
class Coherent:
    """Gaussian process with covariance ``variance * exp(-r^2 / (2 beta^2))`` plus any affine map.

    Solved in whitened form: ``c = sqrt(variance) S z + Phi a``, where S is a Gaussian filter of
    width beta / sqrt(2) a side (two of them make the kernel), z is white noise and Phi a holds
    the affine maps, which a cubic B-spline represents exactly.

    Parameters
    ----------
    beta : float
        Coherence width (Myronenko & Song 2010), in the unit of the points.
    variance : float
        Variance of the non-affine displacement a component.
    """

    beta: float
    variance: float

    @property
    def spacing(self) -> float:
        """Largest lattice spacing that resolves the kernel."""
        return self.beta / _NODES_A_BETA

    def solve(
        self,
        equations: NormalEquations,
        *,
        start: Solution | None = None,
        tolerance: float = 1e-4,
        max_iterations: int = 400,
    ) -> Solution:
        """Minimise ``sum_i w_i |u(x_i) - v_i|^2 + |z|^2``.

        By conjugate gradients, preconditioned with what the system would be if the weight were
        spread evenly: that is a product of one matrix an axis, diagonal in the axes' eigenvectors.
        """
        lattice = equations.lattice
        sides, energies = _modes(lattice, self.beta)
        energies = equations.density * self.variance * energies
        amplitude = math.sqrt(self.variance)
        with one_thread():
            affine = _affine_basis(lattice, equations)
            shape = equations.right.shape[:3]

            def spread(x: tuple[Floats, ...]) -> Floats:
                rough = _apply(sides, amplitude * x[0].reshape(-1, *energies.shape))
                return rough + (x[1] @ affine).reshape(rough.shape)

            def gather(c: Floats) -> tuple[Floats, Floats]:
                z = amplitude * _apply([side.T for side in sides], c)
                return z.reshape(len(c), -1), c.reshape(len(c), -1) @ affine.T

            def operator(x: tuple[Floats, ...]) -> tuple[Floats, ...]:
                z, a = gather(equations.product(spread(x)))
                return z + x[0], a + 1e-12 * x[1]

            def precondition(x: tuple[Floats, ...]) -> tuple[Floats, ...]:
                return x[0] / (1.0 + energies.ravel()), x[1]

            right = gather(_first(equations.right))
            # The affine basis is orthonormal at the data: right[1] is the affine fit itself.
            plain = (np.zeros_like(right[0]), right[1])
            rest = [r - p for r, p in zip(right, operator(plain), strict=True)]
            goal = tolerance**2 * _dot(rest, rest)
            state: tuple[Floats, ...] = plain
            if start is not None and [s.shape for s in start.state] == [right[0].shape]:
                # What the earlier solution has of affine maps, in the basis of these data.
                known = (start.state[0], np.zeros_like(right[1]))
                left = _first(start.coefficients.reshape(*shape, -1)) - spread(known)
                state = (known[0], gather(equations.product(left))[1])
            state, count = _conjugate_gradients(
                operator, right, state, goal, max_iterations, precondition
            )
            coefficients = np.moveaxis(spread(state), 0, -1).reshape(*lattice.nodes, -1)
        return Solution(np.ascontiguousarray(coefficients), state[:1], count)


@dataclass(frozen=True)
class ThinPlate:
    """Bending energy ``smoothing * int |D^2 u|^2``: the smoothing thin-plate spline.

    Parameters
    ----------
    smoothing : float
        Weight of the bending energy against ``sum_i w_i |u(x_i) - v_i|^2``.
    spacing : float
        Largest lattice spacing to use.
    """

    smoothing: float
    spacing: float

    def solve(
        self,
        equations: NormalEquations,
        *,
        start: Solution | None = None,
        tolerance: float = 1e-4,
        max_iterations: int = 1000,
    ) -> Solution:
        """Minimise the weighted squares plus the bending energy."""
        matrix = equations.diagonals + self.smoothing * _bending(equations.lattice)
        diagonal = matrix[3, 3, 3]
        diagonal += _RIDGE * diagonal.max()
        if _band_work(equations.lattice) < _MOST_BAND_WORK:
            solved = _solve_banded(matrix, equations.right)
            return Solution(solved.reshape(*equations.lattice.nodes, -1), (solved,), 0)
        stiff = replace(equations, diagonals=matrix)
        root = np.sqrt(1.0 / diagonal)

        def operator(x: tuple[Floats, ...]) -> tuple[Floats, ...]:
            return (root * stiff.product(root * x[0]),)

        right = (root * _first(equations.right),)
        state: tuple[Floats, ...] = (np.zeros_like(right[0]),)
        if start is not None and start.coefficients.size == right[0].size:
            state = (_first(start.coefficients.reshape(equations.right.shape)) / root,)
        goal = tolerance**2 * _dot(right, right)
        state, count = _conjugate_gradients(operator, right, state, goal, max_iterations)
        coefficients = np.moveaxis(root * state[0], 0, -1)
        coefficients = np.ascontiguousarray(coefficients).reshape(*equations.lattice.nodes, -1)
        return Solution(coefficients, state, count)


Smoother = Coherent | ThinPlate


def _band_work(lattice: Lattice) -> float:
    """Return the multiplications of a banded Cholesky factorisation."""
    n = sorted(lattice.embedded()[2])
    return float(lattice.size) * (3.0 * n[0] * n[1]) ** 2


def _solve_banded(matrix: Floats, right: Floats) -> Floats:
    """Solve a stencil system by banded Cholesky, the longest axis outermost."""
    order = tuple(np.argsort(right.shape[:3], kind="stable")[::-1])
    turned = matrix.transpose(*order, *(3 + axis for axis in order))
    nodes = turned.shape[3:]
    num = math.prod(nodes)
    bands: dict[int, Floats] = {}
    for p, q, r in itertools.product(range(-3, 4), repeat=3):
        offset = (p * nodes[1] + q) * nodes[2] + r
        values = turned[p + 3, q + 3, r + 3].ravel()
        if 0 <= offset < num and values.any():
            bands[offset] = bands.get(offset, np.zeros(num - offset)) + values[: num - offset]
    table = np.zeros((max(bands) + 1, num))
    for offset, values in bands.items():
        table[offset, : num - offset] = values
    turned_right = right.transpose(*order, 3).reshape(num, -1)
    with one_thread():
        solved = solveh_banded(
            table, turned_right, lower=True, overwrite_ab=True, check_finite=False
        )
    back = np.argsort(order)
    return np.ascontiguousarray(solved.reshape(*nodes, -1).transpose(*back, 3))


def _first(values: Floats) -> Floats:
    """Return an array with the components first, one contiguous block each."""
    return np.ascontiguousarray(np.moveaxis(values, -1, 0))


def _same(x: tuple[Floats, ...]) -> tuple[Floats, ...]:
    """Precondition by nothing."""
    return x


def _conjugate_gradients(
    operator: Callable[[tuple[Floats, ...]], tuple[Floats, ...]],
    right: tuple[Floats, ...],
    state: tuple[Floats, ...],
    goal: Floats,
    max_iterations: int,
    precondition: Callable[[tuple[Floats, ...]], tuple[Floats, ...]] = _same,
) -> tuple[tuple[Floats, ...], int]:
    """Solve a positive definite system for every component, the first axis, at once.

    Until the square of the residual is below the goal.
    """
    x = [s.copy() for s in state]
    residual = tuple(r - p for r, p in zip(right, operator(tuple(x)), strict=True))
    better = precondition(residual)
    direction = tuple(b.copy() for b in better)
    energy = _dot(residual, better)
    count = 0
    while count < max_iterations and (_dot(residual, residual) > goal).any():
        product = operator(direction)
        curvature = _dot(direction, product)
        step = np.divide(energy, curvature, out=np.zeros_like(energy), where=curvature > 0)
        for part, along, through, rest in zip(x, direction, product, residual, strict=True):
            part += _each(step, part) * along
            rest -= _each(step, rest) * through
        better = precondition(residual)
        following = _dot(residual, better)
        ratio = np.divide(following, energy, out=np.zeros_like(energy), where=energy > 0)
        direction = tuple(b + _each(ratio, b) * d for b, d in zip(better, direction, strict=True))
        energy = following
        count += 1
    return tuple(x), count


def _each(factor: Floats, values: Floats) -> Floats:
    """Return one factor a component, in the shape that multiplies values."""
    return factor.reshape(-1, *(1,) * (values.ndim - 1))


def _dot(a: Sequence[Floats], b: Sequence[Floats]) -> Floats:
    """Return the inner product a component."""
    return np.asarray(
        sum(np.einsum("ij,ij->i", p.reshape(len(p), -1), q.reshape(len(q), -1))
            for p, q in zip(a, b, strict=True))
    )  # fmt: skip


def _apply(sides: Sequence[Floats], values: Floats) -> Floats:
    """Multiply the last three axes of (D, m0, m1, m2) values by one matrix each, the last first."""
    num, first, second, last = values.shape
    out = (values.reshape(-1, last) @ sides[2].T).reshape(num * first, second, -1)
    out = (sides[1] @ out).reshape(num, first, -1)
    return (sides[0] @ out).reshape(num, len(sides[0]), len(sides[1]), len(sides[2]))


@lru_cache(maxsize=8)
def _modes(lattice: Lattice, beta: float) -> tuple[tuple[Floats, ...], Floats]:
    """Return the filters in their eigenvectors, (n_d, m_d) each, and the energies (m0, m1, m2).

    The energy of a mode is the integral of its square over the lattice. Modes that are next to
    nothing there, beyond its ends for example, are left out.
    """
    _, spacing, nodes = lattice.embedded()
    sides, energies = [], []
    for side, h, n in zip(_filters(lattice, beta), spacing, nodes, strict=True):
        bands = _gram(n, h)[0]
        mass = np.zeros((n, n))
        for offset in range(-3, 4):
            rows = np.arange(max(0, -offset), min(n, n - offset))
            mass[rows, rows + offset] = bands[rows, offset + 3]
        with one_thread():
            energy, vectors = eigh(side.T @ mass @ side, driver="evd")
            kept = energy > _NO_ENERGY * energy.max()
            sides.append(np.ascontiguousarray(side @ vectors[:, kept]))
            energies.append(energy[kept])
    return tuple(sides), np.asarray(np.einsum("i,j,k->ijk", *energies))


@lru_cache(maxsize=8)
def _filters(lattice: Lattice, beta: float) -> tuple[Floats, ...]:
    """Return one (nodes, nodes + margin) Gaussian filter an axis, of unit field variance."""
    _, spacing, nodes = lattice.embedded()
    filters = []
    for h, n in zip(spacing, nodes, strict=True):
        if n == 1:
            filters.append(np.ones((1, 1)))
            continue
        # The spline itself blurs by h^2 / 3, so the filter is that much narrower.
        width = math.sqrt(max(beta**2 / 2 - h**2 / 3, 0.05 * beta**2)) / h
        margin = math.ceil(2.5 * width)
        gap = np.arange(n)[:, None] - (np.arange(n + 2 * margin)[None, :] - margin)
        row = np.exp(-0.5 * (gap / width) ** 2)
        filters.append(np.where(row > _NEGLIGIBLE, row, 0.0))
        middle = filters[-1][n // 2]
        blurred = np.convolve(middle, np.array([1.0, 4.0, 1.0]) / 6)
        filters[-1] /= math.sqrt(float((blurred**2).sum()))
    return tuple(filters)


def _affine_basis(lattice: Lattice, equations: NormalEquations) -> Floats:
    """Return coefficients (D + 1, nodes) of affine functions that are orthonormal at the data."""
    axes = [
        (np.arange(n) - (n - 1) / 2) * (h / max(lattice.spacing))
        for n, h in zip(lattice.nodes, lattice.spacing, strict=True)
    ]
    planes = np.stack([np.ones(lattice.nodes), *np.meshgrid(*axes, indexing="ij")])
    basis = planes.reshape(len(planes), -1)
    moved = equations.product(planes.reshape(len(planes), *equations.right.shape[:3]))
    moment = basis @ moved.reshape(basis.shape).T
    values, vectors = np.linalg.eigh(moment)
    keep = values > 1e-10 * max(values.max(), 1e-300)
    return np.asarray((vectors[:, keep] / np.sqrt(values[keep])).T @ basis)


@lru_cache(maxsize=2)
def _bending(lattice: Lattice) -> Floats:
    """Return the stencil of int |D^2 u|^2, (7, 7, 7, n0, n1, n2)."""
    _, spacing, nodes = lattice.embedded()
    gram = [_gram(n, h) for n, h in zip(nodes, spacing, strict=True)]
    out = np.zeros((7, 7, 7, *nodes))
    for i, j, k in ((2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (1, 0, 1), (0, 1, 1)):
        count = 1.0 if 2 in (i, j, k) else 2.0
        out += np.einsum("ap,bq,cr->pqrabc", count * gram[0][i], gram[1][j], gram[2][k])
    out.setflags(write=False)
    return out


def _gram(num_nodes: int, spacing: float) -> list[Floats]:
    """Return int B_i^(k) B_j^(k) over the domain for k = 0 .. 2, as (n, 7) bands."""
    if num_nodes == 1:
        bands = [np.zeros((1, 7)) for _ in range(3)]
        bands[0][0, 3] = 1.0
        return bands
    roots, weights = np.polynomial.legendre.leggauss(4)
    f, weights = (roots + 1) / 2, weights / 2
    g = 1 - f
    inner, outer = (3 * f**3 - 6 * f**2 + 4) / 6, (3 * g**3 - 6 * g**2 + 4) / 6
    cubic = np.stack([g**3 / 6, inner, outer, f**3 / 6])
    first = np.stack([-(g**2) / 2, 1.5 * f**2 - 2 * f, -1.5 * g**2 + 2 * g, f**2 / 2])
    second = np.stack([g, 3 * f - 2, 3 * g - 2, f])
    bands = []
    for order, basis in enumerate((cubic, first, second)):
        cell = (basis * weights) @ basis.T * spacing ** (1 - 2 * order)
        band = np.zeros((num_nodes, 7))
        for start in range(num_nodes - 3):
            for p in range(4):
                for q in range(4):
                    band[start + p, q - p + 3] += cell[p, q]
        bands.append(band)
    return bands
