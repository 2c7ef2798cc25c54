"""Tables of points: spots and matches in Parquet, anyone's points in CSV or Parquet.

Positions are columns z, y, x in micrometre (y, x in 2D). Every table appears under its name only
when it is complete. Locations are local paths or URLs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from tilereg.columns import Columns
from tilereg.errors import InputError
from tilereg.grid import AXES
from tilereg.io.columnar import (
    axis_columns,
    check_columns,
    check_suffix,
    column_names,
    iter_tables,
    labels_of,
    numbers_of,
    positions_of,
    read_table,
    values_of,
    write_table,
)
from tilereg.io.files import suffix_of
from tilereg.points import Correspondences, Spots

__all__ = [
    "PointTable",
    "check_suffix",
    "iter_spots",
    "read_matches",
    "read_points",
    "read_spots",
    "write_matches",
    "write_points",
    "write_spots",
]

_UNIT = "micrometer"
_SPOT_NUMBERS = ("sigma", "intensity", "response", "localisation")
_MATCH_COLUMNS = {
    "fixed_index": np.dtype(np.int64),
    "moving_index": np.dtype(np.int64),
    "weight": np.dtype(np.float64),
    "residual": np.dtype(np.float64),
    "held_out": np.dtype(np.bool_),
    "tile": np.dtype(np.int64),
}
_LENGTHS = {"sigma", "localisation", "residual"}
# Of scikit-image's region properties, and of napari's points.
_KNOWN_AXES = (
    ("centroid-0", "centroid-1", "centroid-2"),
    ("centroid-0", "centroid-1"),
    ("axis-0", "axis-1", "axis-2"),
    ("axis-0", "axis-1"),
)


@dataclass(frozen=True, eq=False)
class PointTable:
    """Points as they were read, with all the columns that they came with.

    Parameters
    ----------
    positions : (N, D) float64 ndarray, micrometre
        The columns z, y, x (y, x in 2D).
    table : pyarrow.Table
        Every column in its order, positions included. The columns of a CSV file are kept as the
        text that they are, so that they can be written again letter by letter.
    location : str
        Where the points came from.
    """

    positions: NDArray[np.float64]
    table: pa.Table
    location: str

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.positions)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.positions.shape[1])


def read_points(location: str | Path) -> PointTable:
    """Read points of a CSV or Parquet file, told apart by the suffix.

    Points are 3D where there is a column z, else 2D. All other columns are carried along.

    Parameters
    ----------
    location : str or Path
        A file that ends in .csv or .parquet, local or a URL.

    Raises
    ------
    InputError
        If there is no such file, its suffix is unknown, it is damaged or has no rows, a column
        is missing, or a position is not a finite number.
    """
    table = read_table(location)
    positions = positions_of(table, location, axis_columns(table))
    if not len(positions):
        raise InputError(f"'{location}' has no rows. A table of points needs at least one.")
    return PointTable(positions, table, str(location))


def write_points(
    location: str | Path, table: PointTable, positions: ArrayLike, *, overwrite: bool = False
) -> None:
    """Write points that have moved: other positions, the same rows and other columns.

    Parameters
    ----------
    location : str or Path
        A file that ends in .csv or .parquet, local or a URL.
    table : PointTable
        The points as they were read.
    positions : (N, D) array_like, micrometre
        The new positions, in the order of the rows; NaN where there is none.
    overwrite : bool
        Whether a file at the location is replaced. Default False.

    Raises
    ------
    InputError
        If the positions do not fit the table, or the suffix is unknown.
    OutputError
        If there is a file already, or it cannot be written.

    Notes
    -----
    From CSV to CSV and from Parquet to Parquet the other columns stay as they are. From CSV to
    Parquet a column becomes int64 or float64 where all its text says so, else it stays text;
    numbers with leading zeros, such as identifiers, stay text too.
    """
    moved = np.asarray(positions, dtype=np.float64)
    if moved.shape != table.positions.shape:
        raise InputError(
            f"Invalid shape {moved.shape} of positions for '{location}'. The table has "
            f"{len(table)} points of {table.ndim} axes."
        )
    columns = table.table
    if suffix_of(table.location) == ".csv" and suffix_of(location) == ".parquet":
        columns = _typed(columns)
    for axis, name in enumerate(AXES[-table.ndim :]):
        index = column_names(columns).index(name)
        written = columns.column_names[index]
        columns = columns.set_column(index, pa.field(written, pa.float64()), [moved[:, axis]])
    write_table(location, columns, overwrite=overwrite)


def write_spots(location: str | Path, spots: Spots, *, overwrite: bool = False) -> None:
    """Write spots to a Parquet (or CSV) file, one a row.

    Columns are z, y, x (y, x in 2D), sigma, intensity, response, localisation and chunk, and class
    and weight where the spots have them.

    Raises
    ------
    InputError
        If the suffix is unknown.
    OutputError
        If there is a file already and `overwrite` is false, or it cannot be written.
    """
    columns = _split(spots.positions)
    columns |= {name: getattr(spots, name) for name in (*_SPOT_NUMBERS, "chunk")}
    if spots.spot_class is not None:
        columns["class"] = spots.spot_class
    if spots.weight is not None:
        columns["weight"] = spots.weight
    write_table(location, _table(columns, "spots"), overwrite=overwrite)


def read_spots(location: str | Path, columns: Columns | None = None) -> Spots:
    """Read spots of a Parquet or CSV file; a table without rows gives no spots.

    Only positions are needed, so that the spots of any other detector can be matched: sigma,
    intensity, response and localisation are NaN where there is no such column, for they are not
    known, and chunk is 0, for all came from one place. Other columns are ignored.

    Parameters
    ----------
    location : str or Path
        A file that ends in .csv or .parquet, local or a URL.
    columns : Columns, optional
        What the columns of positions are called, and those of class and weight. Default: z, y, x,
        and neither class nor weight.

    Raises
    ------
    InputError
        If there is no such file, its suffix is unknown, it is damaged, a column is missing, a
        number is none, a class is empty, or a weight is not from 0 to 1.
    """
    return _spots_of(read_table(location), Columns() if columns is None else columns, location)


def iter_spots(
    location: str | Path, columns: Columns | None = None, *, most: int = 1_000_000
) -> Iterator[Spots]:
    """Read spots of a Parquet file piece by piece, `most` rows at a time.

    Parameters, columns and errors are those of `read_spots`. A CSV file, whose numbers are text,
    is read as a whole and handed out in one piece.
    """
    wanted = Columns() if columns is None else columns
    if suffix_of(location) != ".parquet":
        yield read_spots(location, wanted)
        return
    for table in iter_tables(location, most):
        yield _spots_of(table, wanted, location)


def _spots_of(table: pa.Table, wanted: Columns, location: str | Path) -> Spots:
    """Return the spots of a table."""
    names = axis_columns(table) if wanted.axes is None else list(wanted.axes)
    _check_chosen(table, names, wanted, location)
    positions = positions_of(table, location, names)
    present = set(column_names(table))
    numbers = {
        name: numbers_of(table, name, location) if name in present else np.full(len(table), np.nan)
        for name in _SPOT_NUMBERS
    }
    chunk = np.zeros(len(table), dtype=np.int64)
    if "chunk" in present:
        chunk = values_of(table, "chunk", np.dtype(np.int64), location)
    return Spots(
        positions=positions,
        chunk=chunk,
        spot_class=None if not wanted.spot_class else labels_of(table, wanted.spot_class, location),
        weight=None if not wanted.weight else _weights(table, wanted.weight, location),
        **numbers,
    )


def _check_chosen(
    table: pa.Table, names: list[str], columns: Columns, location: str | Path
) -> None:
    """Raise unless the chosen columns are there; say how others are chosen."""
    chosen = [*names, *(name for name in (columns.spot_class, columns.weight) if name)]
    try:
        check_columns(table, chosen, location)
    except InputError as error:
        present = set(column_names(table))
        known = [axes for axes in _KNOWN_AXES if set(axes) <= present]
        axes = known[0] if known else _KNOWN_AXES[0]
        pairs = zip(AXES[-len(axes) :], axes, strict=True)
        example = ",".join(f"{axis}={name}" for axis, name in pairs)
        raise InputError(f"{error} Choose the right ones, as in --columns {example}.") from None


def _weights(table: pa.Table, name: str, location: str | Path) -> NDArray[np.float64]:
    """Return a column of weights."""
    weights = numbers_of(table, name, location)
    bad = ~((weights >= 0) & (weights <= 1))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"Column {name} of '{location}' holds {weights[row]} in row {row}, counted from 0. A "
            "weight is a number from 0 to 1."
        )
    return weights


def write_matches(
    location: str | Path, matches: Correspondences, *, overwrite: bool = False
) -> None:
    """Write matches to a Parquet (or CSV) file, one a row.

    Columns are z_fixed, y_fixed, x_fixed, z_moving, .. (no z in 2D), fixed_index, moving_index,
    weight, residual, held_out and tile.

    Raises
    ------
    InputError
        If the suffix is unknown.
    OutputError
        If there is a file already and `overwrite` is false, or it cannot be written.
    """
    columns = _split(matches.fixed, "_fixed") | _split(matches.moving, "_moving")
    columns |= {name: getattr(matches, name) for name in _MATCH_COLUMNS}
    write_table(location, _table(columns, "matches"), overwrite=overwrite)


def read_matches(location: str | Path) -> Correspondences:
    """Read matches that `write_matches` wrote.

    Raises
    ------
    InputError
        If there is no such file, its suffix is unknown, it is damaged, or a column is missing.
    """
    table = read_table(location)
    fixed = positions_of(table, location, axis_columns(table, "_fixed"))
    names = axis_columns(table, "_moving", fixed.shape[1])
    moving = positions_of(table, location, names)
    check_columns(table, list(_MATCH_COLUMNS), location)
    others = {
        name: values_of(table, name, dtype, location) for name, dtype in _MATCH_COLUMNS.items()
    }
    return Correspondences(fixed=fixed, moving=moving, **others)


def _split(positions: NDArray[np.float64], ending: str = "") -> dict[str, NDArray[Any]]:
    """Return (N, D) positions as one column an axis."""
    axes = AXES[-positions.shape[1] :]
    return {axis + ending: positions[:, i] for i, axis in enumerate(axes)}


def _table(columns: dict[str, NDArray[Any]], kind: str) -> pa.Table:
    """Return a table whose metadata tell its kind and its units."""
    axes = {a + ending for a in AXES for ending in ("", "_fixed", "_moving")}
    units = {name: _UNIT for name in columns if name in axes | _LENGTHS}
    metadata = {"tilereg": json.dumps({"kind": kind, "units": units})}
    return pa.table(columns).replace_schema_metadata(metadata)


def _typed(table: pa.Table) -> pa.Table:
    """Return a table of text with its columns of whole and of real numbers as such."""
    for index, name in enumerate(table.column_names):
        table = table.set_column(index, name, _as_numbers(table.column(index)))
    return table


def _as_numbers(text: Any) -> Any:
    """Return a column of text as int64 or float64 where every entry is such a number."""
    bare = pc.utf8_trim_whitespace(text)
    values = pc.if_else(pc.equal(bare, ""), pa.scalar(None, bare.type), bare)
    leading_zero = pc.any(pc.match_substring_regex(values, r"^[+-]?0[0-9]")).as_py()
    if values.null_count == len(values) or leading_zero:
        return text
    for kind in (pa.int64(), pa.float64()):
        try:
            return values.cast(kind)
        except pa.ArrowInvalid:
            continue
    return text
