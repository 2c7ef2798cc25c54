"""Percentiles block by block are those of numpy, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tilereg.errors import InputError
from tilereg.percentiles import RankSearch, percentile_ranks, percentile_value

TYPES = ["bool", "u1", "i1", "<u2", ">u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", ">f4", "f8"]


def draw(dtype: str, size: int) -> NDArray[Any]:
    """Return values over the whole range of a type, many of them equal."""
    rng, kind = np.random.default_rng(0), np.dtype(dtype)
    if kind.kind == "f":
        values = rng.normal(size=size) * 10.0 ** rng.integers(-4, 4, size)
        values[::7] = np.round(values[::7])
        values[::11] *= 0.0  # zeros of both signs
        return values.astype(kind)
    if kind.kind == "b":
        return rng.uniform(size=size) < 0.3
    limits = np.iinfo(kind)
    wide = rng.integers(limits.min, limits.max, size, dtype=kind.newbyteorder("="), endpoint=True)
    wide[::3] = wide[0]
    return wide.astype(kind)


def search(values: NDArray[Any], ranks: list[int], cuts: list[int]) -> tuple[NDArray[Any], int]:
    """Return the values of ranks, and how often the blocks between cuts were read."""
    state, readings = RankSearch.begin(values.dtype, ranks), 0
    while not state.is_done:
        counts = state.counts()
        for block in np.split(values, cuts):
            state.add(block, counts)
        state, readings = state.narrow(counts), readings + 1
    return state.values, readings


@pytest.mark.parametrize("dtype", TYPES)
def test_ranks_are_those_of_the_sorted_values(dtype: str) -> None:
    values = draw(dtype, 3001)
    ranks = [0, 1, 17, 1500, 2999, 3000, 3000]
    found, readings = search(values, ranks, [0, 1, 700, 2000])
    np.testing.assert_array_equal(found, np.sort(values)[ranks].astype(np.float64))
    assert readings == max(1, values.dtype.itemsize // 2)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 101, 777, 2000])
@pytest.mark.parametrize("percentile", [0, 12.5, 50, 90, 99, 99.5, 100])
def test_percentiles_are_those_of_numpy(size: int, percentile: float) -> None:
    for dtype in ("u1", "i2", "f4", "f8"):
        values = draw(dtype, size)
        ends, _ = search(values, list(percentile_ranks(size, percentile)), [])
        ours = percentile_value(size, percentile, *ends.tolist())
        assert ours == np.percentile(values.astype(np.float64), percentile)


def test_types_without_order_are_refused() -> None:
    for dtype in ("c8", "U3", "f16"):
        with pytest.raises(InputError, match="Cannot tell percentiles"):
            RankSearch.begin(dtype, [0])
