"""Coarser levels: means and labels stay where they are in the world."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tilereg.grid import Grid
from tilereg.io.ome_zarr import create_image
from tilereg.io.pyramid import most_common


@pytest.mark.parametrize(("shape", "factors"), [((5, 7), (2, 2)), ((3, 6, 5), (1, 2, 2))])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint64"])
def test_the_most_common_voxel_is_that_of_a_plain_count(
    shape: tuple[int, ...], factors: tuple[int, ...], dtype: str
) -> None:
    block = np.random.default_rng(0).integers(0, 3, shape).astype(dtype)
    found = most_common(block, factors)
    assert found.dtype == block.dtype
    assert found.shape == tuple(n // f for n, f in zip(shape, factors, strict=True))
    for index in np.ndindex(found.shape):
        corner = tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))
        counts = Counter(block[corner].ravel().tolist())
        most = max(counts.values())
        assert found[index] == min(value for value, n in counts.items() if n == most)


@pytest.mark.parametrize(("is_label", "height"), [(True, 1), (False, 1000)])
def test_a_ball_stays_in_its_place_on_every_level(
    tmp_path: Path, is_label: bool, height: int
) -> None:
    grid = Grid(shape=(64, 64, 64), spacing=(0.5, 0.5, 0.5), origin=(3.0, -2.0, 8.0))
    centre = np.mean(grid.bounds, axis=0)
    radius = np.linalg.norm(grid.to_world(np.indices(grid.shape).reshape(3, -1).T) - centre, axis=1)
    ball = (radius < 10).reshape(grid.shape).astype(np.uint32) * height
    writer = create_image(
        tmp_path / "a.zarr", grid=grid, dtype=np.uint32, levels=4, is_label=is_label
    )
    writer.write(grid.window, ball)
    for level in range(1, 4):
        for unit in writer.units(level):
            writer.downsample(level, unit.window)
    image = writer.finish()
    for number, level in enumerate(image.levels):
        block = image.reader(number).read(level.grid.window).astype(float)
        index = np.argwhere(block > 0)
        mean = np.average(index, axis=0, weights=block[block > 0])
        np.testing.assert_allclose(level.grid.to_world(mean), centre, atol=1e-3)
