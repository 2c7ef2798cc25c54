"""Spots sorted into cells on disk."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tilereg import InputError, OutputError, Spots, spot_source
from tilereg.io import spot_cells
from tilereg.io.spot_cells import sliced, write_cells
from tilereg.io.tables import iter_spots, write_spots
from tilereg.spot_source import ArraySource, SpotPart

Floats = NDArray[np.float64]


@pytest.fixture(autouse=True)
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells, slices and flushes as there are of a hundred million spots."""
    for name, value in {"_A_CELL": 60, "_MOST_WAITING": 900, "_SLICE": 250}.items():
        monkeypatch.setattr(spot_cells, name, value)


def scattered(ndim: int, *, flat: bool = False) -> Spots:
    rng = np.random.default_rng(0)
    points = rng.normal(0, 30, (3000, ndim)) * [1, 4, 2][:ndim]
    if flat:
        points[:, 0] = 7.0
    return Spots.at(
        points,
        spot_class=np.array(["a", "gène", "c"])[rng.integers(0, 3, 3000)],
        weight=rng.random(3000),
    )


def same(ours: SpotPart, theirs: SpotPart) -> None:
    for name in ("rows", "positions", "spot_class", "weight"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("ndim", "flat"), [(2, False), (3, False), (3, True)])
def test_a_box_holds_what_lies_in_it(ndim: int, flat: bool, tmp_path: Path) -> None:
    spots = scattered(ndim, flat=flat)
    written = write_cells(str(tmp_path / "cells"), sliced(spots))
    assert np.prod(written.shape) > 20
    assert max(map(len, written.files.values())) > 1
    cells, plain = pickle.loads(pickle.dumps(written)), ArraySource(spots)
    assert cells.count == plain.count == 3000
    np.testing.assert_array_equal(cells.bounds, plain.bounds)
    rng = np.random.default_rng(1)
    for _ in range(20):
        low = rng.uniform(-80, 40, ndim)
        high = low + rng.uniform(0, 90, ndim)
        if flat:
            low[0], high[0] = 7.0, 7.1
        same(cells.read(low, high), plain.read(low, high))
    everything = np.full(ndim, np.inf)
    same(cells.read(-everything, everything), plain.read(-everything, everything))
    # Half open: a spot on an upper face is of the next box.
    at = spots.positions[5]
    assert 5 in cells.read(at, at + 1).rows
    assert 5 not in cells.read(at - 1, at).rows
    nothing = cells.read(everything, everything)
    assert nothing.positions.shape == (0, ndim)
    assert nothing.spot_class is not None


def test_the_sample_is_spread_as_all_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (spot_cells, spot_source):
        monkeypatch.setattr(module, "SAMPLED", 600)
    spots = Spots.at(scattered(3).positions)
    cells = write_cells(str(tmp_path / "cells"), sliced(spots))
    sample = cells.sample()
    assert 450 < len(sample) < 750
    same(sample, ArraySource(spots).sample())
    spread = sample.positions.std(axis=0)
    np.testing.assert_allclose(spread, spots.positions.std(axis=0), rtol=0.15)
    part = cells.read(*cells.bounds)
    assert part.spot_class is None
    assert part.weight is None


def test_what_was_there_is_replaced(tmp_path: Path) -> None:
    place = str(tmp_path / "cells")
    write_cells(place, sliced(scattered(3)))
    few = scattered(3).take(np.arange(100))
    cells = write_cells(place, sliced(few))
    assert cells.count == len(cells.sample()) == 100
    assert len(list((tmp_path / "cells").iterdir())) == 2 + sum(map(len, cells.files.values()))


def test_what_is_no_spots_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "raw.tif").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"holds 'raw\.tif'"):
        write_cells(str(tmp_path), sliced(scattered(3)))
    assert [path.name for path in tmp_path.iterdir()] == ["raw.tif"]


def test_spots_of_a_file_come_in_pieces(tmp_path: Path) -> None:
    spots = scattered(3)
    write_spots(tmp_path / "spots.parquet", Spots.at(spots.positions))
    pieces = list(iter_spots(tmp_path / "spots.parquet", most=700))
    assert [len(piece) for piece in pieces] == [700, 700, 700, 700, 200]
    np.testing.assert_array_equal(Spots.concatenate(pieces).positions, spots.positions)
    write_spots(tmp_path / "spots.csv", Spots.at(spots.positions))
    (whole,) = iter_spots(tmp_path / "spots.csv", most=700)
    np.testing.assert_allclose(whole.positions, spots.positions, rtol=1e-12)
    write_spots(tmp_path / "none.parquet", Spots.empty(3))
    assert [len(piece) for piece in iter_spots(tmp_path / "none.parquet")] == [0]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(InputError, match="not a Parquet file"):
        list(iter_spots(tmp_path / "bad.parquet"))


def test_no_spots_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no spots"):
        write_cells(str(tmp_path / "cells"), sliced(Spots.empty(3)))
    bad = Spots.at(np.array([[0.0, np.nan, 1.0]]))
    with pytest.raises(InputError, match="not finite"):
        write_cells(str(tmp_path / "cells"), sliced(bad))
