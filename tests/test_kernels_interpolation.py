"""Tests of the compiled samplers and of the prefilter, by hand-made maps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tilereg.kernels.interpolation import (
    BlockMap,
    Scratch,
    sample_cubic,
    sample_linear,
    sample_nearest,
    tabulate,
)
from tilereg.kernels.prefilter import PREFILTER_RADIUS, filter_axis, mirrored, prefilter_weights

ROOT = Path(__file__).parents[1]


def shift_map(shape: tuple[int, ...], offset: Any, start: Any = (0, 0, 0)) -> BlockMap:
    """Return the map of a block that moves by `offset` voxels, without a lattice."""
    nodes = tuple(np.zeros(n, dtype=np.int64) for n in shape)
    weights = tuple(np.zeros((4, n)) for n in shape)
    return BlockMap(
        matrix=np.eye(3),
        offset=np.asarray(offset, dtype=np.float64),
        start=np.asarray(start, dtype=np.int64),
        coefficients=np.zeros((4, 4, 4, 3)),
        nodes=nodes,
        weights=weights,
        segments=np.zeros(1, dtype=np.int64),
    )


def lattice_map(shape: tuple[int, ...], coefficients: NDArray[np.float64]) -> BlockMap:
    """Return the map of a block whose voxels lie 8 to a lattice spacing."""
    nodes = tuple(np.zeros(n, dtype=np.int64) for n in shape)
    weights = tuple(np.zeros((4, n)) for n in shape)
    for axis, n in enumerate(shape):
        tabulate(1 + np.arange(n) / 8, coefficients.shape[axis], nodes[axis], weights[axis])
    changes = np.flatnonzero(np.diff(nodes[2])) + 1
    return BlockMap(
        matrix=np.eye(3),
        offset=np.zeros(3),
        start=np.zeros(3, dtype=np.int64),
        coefficients=coefficients,
        nodes=nodes,
        weights=weights,
        segments=np.concatenate([[0], changes, [shape[2]]]).astype(np.int64),
    )


def make_scratch(block: BlockMap) -> Scratch:
    """Return the rows that a sampler works in."""
    _, num_y, num_x, _ = block.coefficients.shape
    return Scratch(
        plane=np.full((num_y, num_x, 3), np.nan),
        row=np.full((num_x, 3), np.nan),
        positions=np.full((3, len(block.nodes[2])), np.nan),
        taps=np.zeros((3, 4), dtype=np.int64),
        weights=np.zeros((3, 4)),
    )


def sample(
    order: int,
    source: NDArray[np.float64],
    start: Any,
    shape: Any,
    block: BlockMap,
    out: NDArray[np.float64],
) -> int:
    """Call the sampler of an order; the fill value is -1."""
    frozen = source.view()
    frozen.setflags(write=False)
    given = (frozen, np.asarray(start), np.asarray(shape), block, make_scratch(block))
    if order == 0:
        bits = frozen.view(np.uint64)
        fill = np.float64(-1).view(np.uint64)
        return int(sample_nearest(bits, *given[1:], fill, out.view(np.uint64)))
    sampler = sample_linear if order == 1 else sample_cubic
    return int(sampler(*given, np.float64(-1), (-np.inf, np.inf), False, out))


@pytest.mark.parametrize("order", [0, 1, 3])
def test_shift_equals_scipy(order: int) -> None:
    source = np.random.default_rng(0).normal(size=(12, 13, 14))
    block = shift_map((6, 7, 8), (2.3, 3.7, 2.1))
    out = np.empty((6, 7, 8))
    assert sample(order, source, (0, 0, 0), source.shape, block, out) == 0
    index = np.indices(out.shape) + np.array([2.3, 3.7, 2.1])[:, None, None, None]
    # The samplers of order 3 take coefficients; so does scipy without its prefilter.
    expected = ndimage.map_coordinates(source, index, order=order, prefilter=False)
    np.testing.assert_allclose(out, expected, atol=1e-13)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_lattice_equals_scipy(order: int) -> None:
    rng = np.random.default_rng(1)
    source = rng.normal(size=(20, 30, 40))
    coefficients = 4 + rng.normal(0, 1, (5, 6, 7, 3))
    shape = (9, 17, 25)
    block = lattice_map(shape, coefficients)
    out = np.empty(shape)
    assert sample(order, source, (0, 0, 0), source.shape, block, out) == 0
    at = 1 + np.indices(shape) / 8
    move = [ndimage.map_coordinates(coefficients[..., d], at, prefilter=False) for d in range(3)]
    position = np.indices(shape) + np.stack(move)
    assert position.min() > 0
    expected = ndimage.map_coordinates(source, position, order=order, prefilter=False)
    np.testing.assert_allclose(out, expected, atol=1e-12)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_missing_samples_are_counted(order: int) -> None:
    source = np.ones((1, 1, 10))
    block = shift_map((1, 1, 20), (0, 0, 0.25))
    out = np.empty((1, 1, 20))
    # The window holds voxels 5..14 of 20; of a voxel outside of the volume nothing is missing.
    missing = sample(order, source, (0, 0, 5), (1, 1, 20), block, out)
    complete = {0: range(5, 15), 1: range(5, 14), 3: range(6, 13)}[order]
    assert missing == 20 - len(complete)
    np.testing.assert_array_equal(
        np.flatnonzero(out[0, 0] == -1), sorted({*range(20)} - {*complete})
    )
    np.testing.assert_allclose(out[0, 0, complete], 1)


@pytest.mark.parametrize("order", [0, 1])
def test_whole_positions_read_one_voxel(order: int) -> None:
    source = np.array([[[7.0]]])
    out = np.empty((1, 1, 1))
    block = shift_map((1, 1, 1), (0, 0, 0), start=(3, 4, 5))
    assert sample(order, source, (3, 4, 5), (9, 9, 9), block, out) == 0
    assert out[0, 0, 0] == 7


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("position", [np.nan, np.inf, -np.inf, 1e300, -0.5000001, 9.5000001])
def test_outside_is_fill(order: int, position: float) -> None:
    source = np.ones((10, 10, 10))
    out = np.empty((1, 1, 1))
    for axis in range(3):
        offset = np.full(3, 4.0)
        offset[axis] = position
        block = shift_map((1, 1, 1), offset)
        assert sample(order, source, (0, 0, 0), source.shape, block, out) == 0
        assert out[0, 0, 0] == -1


def test_tabulated_weights_sum_to_one_and_stay_on_the_lattice() -> None:
    t = np.linspace(-5, 15, 400)
    nodes, weights = np.empty(400, dtype=np.int64), np.empty((4, 400))
    tabulate(t, 9, nodes, weights)
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    assert weights.min() >= 0
    assert nodes.min() == 0
    assert nodes.max() == 9 - 4
    reached = (weights * (nodes + np.arange(4)[:, None])).sum(axis=0)
    np.testing.assert_allclose(reached, np.clip(t, 1, 7), atol=1e-12)
    tabulate(t, 1, nodes, weights)
    assert not nodes.any()
    np.testing.assert_array_equal(weights, np.array([[1.0], [0], [0], [0]]) * np.ones(400))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("length", [2, 3, 7, 30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prefilter_equals_scipy(axis: int, length: int, dtype: Any) -> None:
    shape = [4, 5, 6]
    shape[axis] = length
    source = np.random.default_rng(2).normal(size=shape).astype(dtype)
    out = np.empty_like(source)
    radius = PREFILTER_RADIUS
    rows = mirrored(-radius, length + radius, length)
    line = np.empty(len(rows), dtype=dtype)
    filter_axis(source, axis, rows, prefilter_weights().astype(dtype), line, out)
    expected = ndimage.spline_filter1d(source, 3, axis=axis, output=np.float64, mode="mirror")
    np.testing.assert_allclose(out, expected, atol=3e-6)


def test_prefilter_keeps_constants() -> None:
    half = prefilter_weights()
    assert len(half) == PREFILTER_RADIUS + 1
    assert half[0] + 2 * half[1:].sum() == pytest.approx(1, abs=1e-15)


def test_mirrored_indices() -> None:
    np.testing.assert_array_equal(mirrored(-3, 7, 4), [3, 2, 1, 0, 1, 2, 3, 2, 1, 0])
    np.testing.assert_array_equal(mirrored(-2, 3, 1), [0] * 5)
    np.testing.assert_array_equal(mirrored(-2, 3, 2), [0, 1, 0, 1, 0])


@pytest.mark.skipif("NUMBA_DISABLE_JIT" in os.environ, reason="The compiler is off already.")
def test_same_without_the_compiler() -> None:
    # In a process of its own: the compiler is switched off when numba is imported.
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
