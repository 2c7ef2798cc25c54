"""Smooth fields from noisy values at points: two priors on one lattice, affine maps free in both.

`Coherent` is the prior of Coherent Point Drift, a Gaussian process with a Gaussian kernel;
`ThinPlate` is the bending energy of the smoothing thin-plate spline. Both are solved by conjugate
gradients without ever forming a dense matrix.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solveh_banded

from tilereg.blas import one_thread
from tilereg.kernels import lattice as kernels
from tilereg.lattice import Lattice, NormalEquations

__all__ = ["Coherent", "Smoother", "Solution", "ThinPlate"]

Floats = NDArray[np.float64]

_RIDGE = 1e-9
_NODES_A_BETA = 2.0
_NEGLIGIBLE = 1e-6
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
        """Minimise ``sum_i w_i |u(x_i) - v_i|^2 + |z|^2``."""
        lattice = equations.lattice
        filters = _filters(lattice, self.beta)
        affine = _affine_basis(lattice, equations)
        amplitude = math.sqrt(self.variance)

        def spread(z: Floats, a: Floats) -> Floats:
            return amplitude * _apply(filters, z, transpose=False) + affine @ a

        def gather(c: Floats) -> tuple[Floats, Floats]:
            return (
                amplitude * _apply(filters, c, transpose=True),
                np.tensordot(affine, c, axes=((0, 1, 2), (0, 1, 2))),
            )

        def operator(x: tuple[Floats, ...]) -> tuple[Floats, ...]:
            z, a = gather(equations.multiply(spread(x[0], x[1])))
            return z + x[0], a + 1e-12 * x[1]

        right = gather(equations.right)
        # The affine basis is orthonormal at the data: right[1] is the affine fit itself.
        plain = (np.zeros_like(right[0]), right[1])
        rest = [r - p for r, p in zip(right, operator(plain), strict=True)]
        state = plain if start is None else start.state
        if [s.shape for s in state] != [r.shape for r in right]:
            state = plain
        goal = tolerance**2 * _dot(rest, rest)
        state, count = _conjugate_gradients(operator, right, state, goal, max_iterations)
        coefficients = spread(state[0], state[1]).reshape(*lattice.nodes, -1)
        return Solution(coefficients, state, count)


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
        matrix = equations.matrix + self.smoothing * _bending(equations.lattice)
        diagonal = matrix[..., 3, 3, 3]
        diagonal += _RIDGE * diagonal.max()
        if _band_work(equations.lattice) < _MOST_BAND_WORK:
            solved = _solve_banded(matrix, equations.right)
            return Solution(solved.reshape(*equations.lattice.nodes, -1), (solved,), 0)
        root = np.sqrt(1.0 / diagonal)[..., None]

        def operator(x: tuple[Floats, ...]) -> tuple[Floats, ...]:
            out = np.empty_like(x[0])
            kernels.multiply(matrix, root * x[0], out)
            return (root * out,)

        right = (root * equations.right,)
        state: tuple[Floats, ...] = (np.zeros_like(right[0]),)
        if start is not None and start.coefficients.size == right[0].size:
            state = (start.coefficients.reshape(right[0].shape) / root,)
        goal = tolerance**2 * _dot(list(right), list(right))
        state, count = _conjugate_gradients(operator, right, state, goal, max_iterations)
        coefficients = (root * state[0]).reshape(*equations.lattice.nodes, -1)
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
    nodes = turned.shape[:3]
    num = math.prod(nodes)
    bands: dict[int, Floats] = {}
    for p, q, r in itertools.product(range(-3, 4), repeat=3):
        offset = (p * nodes[1] + q) * nodes[2] + r
        values = turned[..., p + 3, q + 3, r + 3].ravel()
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


def _conjugate_gradients(
    operator: Callable[[tuple[Floats, ...]], tuple[Floats, ...]],
    right: tuple[Floats, ...],
    state: tuple[Floats, ...],
    goal: Floats,
    max_iterations: int,
) -> tuple[tuple[Floats, ...], int]:
    """Solve a positive definite system for every component (last axis) at once."""
    x = [s.copy() for s in state]
    residual = [r - p for r, p in zip(right, operator(tuple(x)), strict=True)]
    direction = [r.copy() for r in residual]
    energy = _dot(residual, residual)
    count = 0
    while count < max_iterations and (energy > goal).any():
        product = operator(tuple(direction))
        curvature = _dot(direction, list(product))
        step = np.divide(energy, curvature, out=np.zeros_like(energy), where=curvature > 0)
        for part, along, through, rest in zip(x, direction, product, residual, strict=True):
            part += step * along
            rest -= step * through
        following = _dot(residual, residual)
        ratio = np.divide(following, energy, out=np.zeros_like(energy), where=energy > 0)
        direction = [r + ratio * d for r, d in zip(residual, direction, strict=True)]
        energy = following
        count += 1
    return tuple(x), count


def _dot(a: list[Floats], b: list[Floats]) -> Floats:
    """Return the inner product a component."""
    return np.asarray(
        sum(np.einsum("ij,ij->j", p.reshape(-1, p.shape[-1]), q.reshape(-1, q.shape[-1]))
            for p, q in zip(a, b, strict=True))
    )  # fmt: skip


def _apply(filters: tuple[Floats, ...], values: Floats, *, transpose: bool) -> Floats:
    """Apply one matrix along each of the first three axes."""
    for axis, matrix in enumerate(filters):
        side = matrix.T if transpose else matrix
        shape = list(values.shape)
        before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        shape[axis] = len(side)
        out = np.empty(shape)
        kernels.filter_axis(side, values.reshape(before, -1, after), out.reshape(before, -1, after))
        values = out
    return values


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
    """Return coefficients (n0, n1, n2, D + 1) of orthonormal affine functions at the data."""
    axes = [
        (np.arange(n) - (n - 1) / 2) * (h / max(lattice.spacing))
        for n, h in zip(lattice.nodes, lattice.spacing, strict=True)
    ]
    planes = np.stack([np.ones(lattice.nodes), *np.meshgrid(*axes, indexing="ij")], axis=-1)
    basis = planes.reshape(*equations.right.shape[:3], -1)
    moved = equations.multiply(np.ascontiguousarray(basis))
    moment = np.tensordot(basis, moved, axes=((0, 1, 2), (0, 1, 2)))
    values, vectors = np.linalg.eigh(moment)
    keep = values > 1e-10 * max(values.max(), 1e-300)
    return np.asarray(basis @ (vectors[:, keep] / np.sqrt(values[keep])))


@lru_cache(maxsize=2)
def _bending(lattice: Lattice) -> Floats:
    """Return the stencil of int |D^2 u|^2, (n0, n1, n2, 7, 7, 7)."""
    _, spacing, nodes = lattice.embedded()
    gram = [_gram(n, h) for n, h in zip(nodes, spacing, strict=True)]
    out = np.zeros((*nodes, 7, 7, 7))
    for i, j, k in ((2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (1, 0, 1), (0, 1, 1)):
        count = 1.0 if 2 in (i, j, k) else 2.0
        out += np.einsum("ap,bq,cr->abcpqr", count * gram[0][i], gram[1][j], gram[2][k])
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
