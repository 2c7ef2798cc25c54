"""The lattice, its stencil and its kernels against dense matrices and plain loops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tilereg.kernels import lattice as kernels
from tilereg.lattice import Lattice, NormalEquations
from tilereg.smoothing import Coherent
from tilereg.transform import DisplacementField

Floats = NDArray[np.float64]

BOXES = {
    "volume": ([0.0, -5.0, 100.0], [20.0, 30.0, 117.0], 6.0),
    "one cell": ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], 50.0),
    "one plane": ([3.0, 0.0, 0.0], [3.0, 25.0, 25.0], 6.0),
    "one line": ([3.0, 4.0, 0.0], [3.0, 4.0, 40.0], 6.0),
    "image": ([0.0, 0.0], [31.0, 17.0], 4.0),
    "row": ([1.0, 0.0], [1.0, 17.0], 4.0),
}


def cover(name: str) -> tuple[Lattice, Floats]:
    """Return a lattice over a box and points in the box, its corners included."""
    low, high, spacing = (np.array(v) for v in BOXES[name])
    inside = np.random.default_rng(0).uniform(low, high, (40, len(low)))
    lattice = Lattice.cover(low, high, float(spacing))
    return lattice, np.concatenate([inside, [low, high]])


def basis_of(lattice: Lattice, points: Floats) -> Floats:
    """Return the value of every node's spline at every point, (N, nodes)."""
    columns = []
    for k in range(lattice.size):
        unit = np.zeros(lattice.size)
        unit[k] = 1
        coefficients = np.repeat(unit.reshape(*lattice.nodes, 1), lattice.ndim, axis=-1)
        columns.append(lattice.field(coefficients)(points)[:, 0])
    return np.stack(columns, axis=1)


def _product(equations: NormalEquations, vector: np.ndarray) -> np.ndarray:
    """Multiply (n0, n1, n2, D) coefficients."""
    return np.moveaxis(equations.product(np.moveaxis(vector, -1, 0)), 0, -1)


def plain_product(diagonals: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Multiply offset by offset, (n0, n1, n2, D)."""
    padded = np.pad(vector, [(3, 3)] * 3 + [(0, 0)])
    out = np.zeros_like(vector)
    for offset in np.ndindex(7, 7, 7):
        part = tuple(slice(o, o + n) for o, n in zip(offset, vector.shape[:3], strict=True))
        out += diagonals[offset][..., None] * padded[part]
    return out


@pytest.mark.parametrize("name", BOXES)
def test_the_domain_covers_the_box_and_its_margin(name: str) -> None:
    low, high, spacing = (np.array(v) for v in BOXES[name])
    lattice, _ = cover(name)
    wide = high > low
    assert all((n >= 4) == w and (n == 1) != w for n, w in zip(lattice.nodes, wide, strict=True))
    first, last = lattice.field(np.zeros((*lattice.nodes, len(low)))).domain
    reach = spacing * wide
    assert (first <= low - reach + 1e-9).all()
    assert (last >= high + reach - 1e-9).all()
    np.testing.assert_allclose(np.array(lattice.spacing)[wide], spacing, rtol=0.35)


@pytest.mark.parametrize("name", BOXES)
def test_stencil_equals_the_dense_normal_equations(name: str) -> None:
    lattice, points = cover(name)
    rng = np.random.default_rng(1)
    weights, values = rng.uniform(0, 2, len(points)), rng.normal(size=(len(points), 3))
    weights[::5] = 0
    equations = NormalEquations.assemble(lattice, points, weights, values)
    basis = basis_of(lattice, points)
    dense = basis.T @ (weights[:, None] * basis)
    np.testing.assert_allclose(
        equations.right.reshape(-1, 3), basis.T @ (weights[:, None] * values), atol=1e-11
    )
    vector = rng.normal(size=(*equations.right.shape[:3], 2))
    expected = (dense @ vector.reshape(-1, 2)).reshape(vector.shape)
    np.testing.assert_allclose(_product(equations, vector), expected, atol=1e-10)
    plain = plain_product(equations.diagonals, vector)
    np.testing.assert_allclose(plain, expected, atol=1e-10)


def test_the_order_of_points_changes_nothing() -> None:
    lattice, points = cover("volume")
    rng = np.random.default_rng(2)
    weights, values = rng.uniform(0, 2, len(points)), rng.normal(size=points.shape)
    rows = rng.permutation(len(points))
    one = NormalEquations.assemble(lattice, points, weights, values)
    two = NormalEquations.assemble(lattice, points[rows], weights[rows], values[rows])
    np.testing.assert_allclose(one.diagonals, two.diagonals, atol=1e-13)
    np.testing.assert_allclose(one.right, two.right, atol=1e-12)


def test_products_in_long_rows_equal_the_plain_one() -> None:
    """More nodes than are multiplied at a time, so blocks meet."""
    rng = np.random.default_rng(3)
    lattice = Lattice.cover(np.zeros(3), np.array([60.0, 70.0, 80.0]), 6.0)
    assert lattice.size > 3 * kernels._NODES_AT_A_TIME
    points = rng.uniform(0, 60, (500, 3))
    equations = NormalEquations.assemble(lattice, points, np.ones(500), points)
    vector = rng.normal(size=(*lattice.nodes, 3))
    plain = plain_product(equations.diagonals, vector)
    np.testing.assert_allclose(_product(equations, vector), plain, atol=1e-12)


@pytest.mark.parametrize("name", BOXES)
def test_cell_order_brings_points_of_a_cell_together(name: str) -> None:
    lattice, points = cover(name)
    order = lattice.cell_order(points)
    assert sorted(order) == list(range(len(points)))
    cells = np.floor((points - lattice.origin) / lattice.spacing)[order]
    last = np.maximum(1, np.array(lattice.nodes) - 3)
    cells = np.clip(cells, np.minimum(1, last - 1), last)
    changes = 1 + (np.diff(cells, axis=0) != 0).any(axis=1).sum()
    assert changes == len(np.unique(cells, axis=0))


def test_a_field_keeps_its_lattice() -> None:
    lattice, _ = cover("volume")
    field = lattice.field(np.zeros((*lattice.nodes, 3)))
    assert isinstance(field, DisplacementField)
    np.testing.assert_array_equal(field.origin, lattice.origin)
    np.testing.assert_array_equal(field.spacing, lattice.spacing)
    assert lattice.embedded()[2] == lattice.nodes
    assert cover("image")[0].embedded()[2][0] == 1


SCRIPT = """
import sys, numpy as np
from tilereg.lattice import Lattice, NormalEquations
from tilereg.smoothing import Coherent
rng = np.random.default_rng(0)
points = rng.uniform(0, 10, (25, 2))
lattice = Lattice.cover(points.min(axis=0), points.max(axis=0), 5.0)
equations = NormalEquations.assemble(lattice, points, np.ones(25), np.sin(points))
np.save(sys.argv[1], Coherent(10.0, 1.0).solve(equations).coefficients)
"""


def test_kernels_equal_their_uncompiled_selves(tmp_path: Path) -> None:
    out = tmp_path / "plain.npy"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", SCRIPT, str(out)], env=environment, check=True)
    points = np.random.default_rng(0).uniform(0, 10, (25, 2))
    lattice = Lattice.cover(points.min(axis=0), points.max(axis=0), 5.0)
    equations = NormalEquations.assemble(lattice, points, np.ones(25), np.sin(points))
    compiled = Coherent(10.0, 1.0).solve(equations).coefficients
    np.testing.assert_allclose(np.load(out), compiled, atol=1e-6)
