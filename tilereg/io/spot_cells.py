"""Spots on disk, sorted into cells of space: a box of them is read without the rest.

A folder of Parquet files, a few a cell, and ``cells.json``, which is written last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from tilereg.errors import InputError, OutputError
from tilereg.grid import AXES
from tilereg.io.files import opened, replaced
from tilereg.io.stores import Location
from tilereg.points import Spots
from tilereg.spot_source import SAMPLED, SpotPart, is_picked

__all__ = ["SpotCells", "sliced", "write_cells"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

INDEX, _SAMPLE = "cells.json", "sample.parquet"
_PART = re.compile(r"\d+-\d+\.parquet")
# Spots of a cell, if all cells had as many; spots that wait in memory to be written; of a slice.
_A_CELL, _MOST_WAITING, _SLICE = 25_000, 4_000_000, 1_000_000
_MOST_CELLS = 20_000


@dataclass(frozen=True, eq=False, kw_only=True)
class SpotCells:
    """A cloud of spots in cells. Picklable; opens nothing by itself.

    Parameters
    ----------
    location : Location
    count : int
        Number of spots.
    low, high : tuples of float, micrometre
        Least and largest coordinates.
    shape : tuple of int
        Cells an axis.
    files : dict of int to list of str
        Of each cell that holds spots, by its rank in C order.
    """

    location: Location
    count: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...]
    files: dict[int, list[str]]

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        """Least and largest coordinates (D,), micrometre."""
        return np.array(self.low), np.array(self.high)

    def sample(self) -> SpotPart:
        """Return about `SAMPLED` of the spots, or all: the share that `is_picked` with seed 0."""
        return _part(_read(self.location, _SAMPLE), len(self.low))

    def read(self, low: Floats, high: Floats) -> SpotPart:
        """Return the spots x of a box, low <= x < high, in the order of their rows."""
        ends = np.stack([np.asarray(low), np.asarray(high)])
        corners = _cells_of(ends, *self.bounds, self.shape)
        ranges = [range(a, b + 1) for a, b in zip(*corners, strict=True)]
        tables = [
            _read(self.location, name)
            for index in product(*ranges)
            for name in self.files.get(int(np.ravel_multi_index(index, self.shape)), ())
        ]
        if not tables:
            # One that is there tells which columns there are.
            tables = [_read(self.location, next(iter(self.files.values()))[0]).slice(0, 0)]
        every = _part(pa.concat_tables(tables), len(self.low))
        inside = ((every.positions >= low) & (every.positions < high)).all(axis=1)
        order = np.flatnonzero(inside)
        return every.take(order[np.argsort(every.rows[order], kind="stable")])


def sliced(spots: Spots) -> Callable[[], Iterator[Spots]]:
    """Return spots in memory as `write_cells` takes them."""
    starts = range(0, max(1, len(spots)), _SLICE)
    return lambda: (spots.take(np.arange(s, min(s + _SLICE, len(spots)))) for s in starts)


def write_cells(location: str, parts: Callable[[], Iterable[Spots]]) -> SpotCells:
    """Sort spots into cells, in bounded memory.

    Parameters
    ----------
    location : str
        Folder. Spots that were written there before are replaced, anything else is not.
    parts : callable
        Returns the spots in parts, in the order of their rows, the same every time: they are
        walked through twice.

    Raises
    ------
    InputError
        If there is no spot, or a position is not finite.
    OutputError
        If the folder holds anything else, or cannot be written.
    """
    folder = Location.of(location)
    count, low, high = _extent(parts())
    _clear(folder)
    shape = _shape(count, low, high)
    writer, first = _Writer(folder, low, high, shape), 0
    sampled = []
    for spots in parts():
        rows = np.arange(first, first + len(spots))
        writer.add(spots, rows)
        sampled.append(_columns(spots, rows, is_picked(rows, SAMPLED / count, 0)))
        first += len(spots)
    writer.flush()
    _write(folder, _SAMPLE, pa.concat_tables(sampled))
    cells = SpotCells(
        location=folder,
        count=count,
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        shape=shape,
        files=writer.files,
    )
    folder.write_json(
        INDEX,
        {
            "kind": "spots in cells",
            "unit": "micrometer",
            "count": count,
            "low": cells.low,
            "high": cells.high,
            "shape": shape,
            "files": writer.files,
        },
    )
    return cells


def _clear(folder: Location) -> None:
    """Remove spots that were written before."""
    names = folder.listing()
    others = [name for name in names if not (name in (INDEX, _SAMPLE) or _PART.fullmatch(name))]
    if others:
        raise OutputError(
            f"'{folder}' holds '{others[0]}', which is no part of sorted spots. Choose a folder "
            "that is new or empty."
        )
    if names:
        folder.remove()


class _Writer:
    """Spots that wait to be written, and the files of each cell so far."""

    def __init__(self, folder: Location, low: Floats, high: Floats, shape: tuple[int, ...]) -> None:
        """Start with none."""
        self._folder, self._box, self._shape = folder, (low, high), shape
        self._waiting: list[tuple[Rows, pa.Table]] = []
        self._count = 0
        self.files: dict[int, list[str]] = {}

    def add(self, spots: Spots, rows: Rows) -> None:
        """Take some spots."""
        index = _cells_of(spots.positions, *self._box, self._shape)
        cells = np.ravel_multi_index(tuple(index.T), self._shape)
        self._waiting.append((cells, _columns(spots, rows)))
        self._count += len(spots)
        if self._count >= _MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Write what waits, a file a cell."""
        if not self._count:
            return
        cells = np.concatenate([cells for cells, _ in self._waiting])
        table = pa.concat_tables([table for _, table in self._waiting])
        order = np.argsort(cells, kind="stable")
        table, cells = table.take(order), cells[order]
        names, starts = np.unique(cells, return_index=True)
        for cell, start, end in zip(names, starts, [*starts[1:], len(cells)], strict=True):
            files = self.files.setdefault(int(cell), [])
            files.append(f"{int(cell):05d}-{len(files)}.parquet")
            _write(self._folder, files[-1], table.slice(start, end - start))
        self._waiting.clear()
        self._count = 0


def _extent(parts: Iterable[Spots]) -> tuple[int, Floats, Floats]:
    """Return number, least and largest coordinates of spots."""
    count, low, high = 0, None, None
    for spots in parts:
        if not len(spots):
            continue
        if not np.isfinite(spots.positions).all():
            raise InputError("A position is not finite. Remove it first.")
        ends = spots.positions.min(axis=0), spots.positions.max(axis=0)
        low = ends[0] if low is None else np.minimum(low, ends[0])
        high = ends[1] if high is None else np.maximum(high, ends[1])
        count += len(spots)
    if low is None or high is None:
        raise InputError("There are no spots. At least one is needed.")
    return count, low, high


def _shape(count: int, low: Floats, high: Floats) -> tuple[int, ...]:
    """Return how many cells an axis: about equally long sides."""
    extent = high - low
    wanted = min(_MOST_CELLS, max(1, count // _A_CELL))
    axes = np.flatnonzero(extent > 0)
    shape = np.ones(len(extent), dtype=np.int64)
    while len(axes):
        side = (float(np.prod(extent[axes])) / wanted) ** (1 / len(axes))
        long = extent[axes] >= side
        if long.all():
            shape[axes] = np.maximum(1, np.round(extent[axes] / side))
            break
        axes = axes[long]
    return tuple(int(n) for n in shape)


def _cells_of(points: Floats, low: Floats, high: Floats, shape: tuple[int, ...]) -> Rows:
    """Return the index (N, D) of the cell of each place; beyond the ends that at the end."""
    side = np.where(high > low, (high - low) / shape, 1.0)
    index = np.floor(np.clip((points - low) / side, 0, np.array(shape)))
    return np.asarray(np.minimum(index.astype(np.int64), np.array(shape) - 1), dtype=np.int64)


def _columns(spots: Spots, rows: Rows, which: NDArray[np.bool_] | None = None) -> pa.Table:
    """Return what is kept of spots as a table."""
    columns: dict[str, Any] = dict(
        zip(AXES[-spots.ndim :], spots.positions.T, strict=True), row=rows
    )
    if spots.spot_class is not None:
        columns["class"] = spots.spot_class
    if spots.weight is not None:
        columns["weight"] = spots.weight
    if which is not None:
        columns = {name: column[which] for name, column in columns.items()}
    return pa.table(columns)


def _part(table: pa.Table, ndim: int) -> SpotPart:
    """Return the spots of a table."""
    names = table.column_names

    def numbers(name: str) -> NDArray[Any]:
        return np.asarray(table.column(name).to_numpy())

    labels = None
    if "class" in names:
        column = table.column("class")
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        labels = np.asarray(column.to_pylist(), np.str_) if is_text else numbers("class")
    return SpotPart(
        positions=np.column_stack([numbers(axis) for axis in AXES[-ndim:]]).astype(np.float64),
        rows=numbers("row").astype(np.int64),
        spot_class=labels,
        weight=numbers("weight") if "weight" in names else None,
    )


def _read(folder: Location, name: str) -> pa.Table:
    """Read one file."""
    with opened(folder.child(name).url, "part of a table of spots") as stream:
        return pa.parquet.read_table(stream)


def _write(folder: Location, name: str, table: pa.Table) -> None:
    """Write one file."""
    with replaced(folder.child(name).url, overwrite=True) as stream:
        pa.parquet.write_table(table, stream, compression="zstd")
