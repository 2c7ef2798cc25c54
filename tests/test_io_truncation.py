"""Truncated chunks: whatever the codec, an error and never other voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tilereg.errors import ImageError
from tilereg.grid import Grid
from tilereg.io.layout import COMPRESSIONS
from tilereg.io.ome_zarr import create_image
from tilereg.io.truncation import is_blosc

GRID = Grid(shape=(8, 64, 64))
VOXELS = np.random.default_rng(0).integers(1, 200, GRID.shape).astype(np.uint16)


@pytest.mark.parametrize("missing", [1, 64, 512, 1500, 0.999, 1.0])
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(("version", "shards"), [("0.4", None), ("0.5", None), ("0.5", GRID.shape)])
def test_a_chunk_that_was_cut_short_is_named(
    tmp_path: Path,
    version: str,
    shards: tuple[int, ...] | None,
    compression: str,
    missing: float,
) -> None:
    chunks = GRID.shape if shards is None else (4, 32, 32)
    writer = create_image(
        tmp_path / "a.zarr",
        grid=GRID,
        dtype=np.uint16,
        version=version,
        chunks=chunks,
        shards=shards,
        compression=compression,
    )
    writer.write(GRID.window, VOXELS)
    image = writer.finish()
    key = "0/0/0/0" if version == "0.4" else "0/c/0/0/0"
    file = tmp_path / "a.zarr" / key
    content = file.read_bytes()
    cut = missing if isinstance(missing, int) else round(missing * len(content))
    file.write_bytes(content[: len(content) - cut])
    # Blosc reads behind the end, so what it finds there changes: once proves nothing.
    for _ in range(3):
        with pytest.raises(ImageError, match=r"0/0/0' of array '0' .* is damaged"):
            image.reader().read(GRID.window)


def test_a_whole_chunk_that_is_not_stored_is_the_fill_value(tmp_path: Path) -> None:
    writer = create_image(tmp_path / "a.zarr", grid=GRID, dtype="u2", compression="blosc-lz4")
    image = writer.finish()
    assert not image.reader().read(GRID.window).any()


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"zarr_format": 2, "compressor": None}, False),
        ({"zarr_format": 2, "compressor": {"id": "zstd"}}, False),
        ({"zarr_format": 2, "compressor": {"id": "blosc"}}, True),
        ({"zarr_format": 3, "codecs": [{"name": "bytes"}, {"name": "blosc"}]}, True),
        ({"zarr_format": 3, "codecs": [{"name": "blosc"}, {"name": "crc32c"}]}, False),
        ({"zarr_format": 3, "codecs": [{"name": "sharding_indexed"}]}, False),
        ({"zarr_format": 3, "codecs": ["bytes"]}, False),
    ],
)
def test_blosc_is_told_from_the_metadata(document: dict[str, object], expected: bool) -> None:
    assert is_blosc(document) is expected
