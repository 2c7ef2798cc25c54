"""Tables of points: spots and matches in Parquet, anyone's points in CSV or Parquet.

Positions are columns z, y, x in micrometre (y, x in 2D). Every table appears under its name only
when it is complete. Locations are local paths or URLs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import ArrayLike, NDArray

from tilereg.errors import InputError, OutputError
from tilereg.grid import AXES
from tilereg.io.files import opened, replaced, suffix_of
from tilereg.io.stores import one_line
from tilereg.points import Correspondences, Spots

__all__ = [
    "PointTable",
    "check_suffix",
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
    table = _read_table(location)
    positions = _positions(table, location)
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
        index = _column_names(columns).index(name)
        written = columns.column_names[index]
        columns = columns.set_column(index, pa.field(written, pa.float64()), [moved[:, axis]])
    _write_table(location, columns, overwrite=overwrite)


def write_spots(location: str | Path, spots: Spots, *, overwrite: bool = False) -> None:
    """Write spots to a Parquet (or CSV) file, one a row.

    Columns are z, y, x (y, x in 2D), sigma, intensity, response, localisation and chunk.

    Raises
    ------
    InputError
        If the suffix is unknown.
    OutputError
        If there is a file already and `overwrite` is false, or it cannot be written.
    """
    columns = _split(spots.positions)
    columns |= {name: getattr(spots, name) for name in (*_SPOT_NUMBERS, "chunk")}
    _write_table(location, _table(columns, "spots"), overwrite=overwrite)


def read_spots(location: str | Path) -> Spots:
    """Read spots of a Parquet or CSV file; a table without rows gives no spots.

    Only positions are needed, so that the spots of any other detector can be matched: sigma,
    intensity, response and localisation are NaN where there is no such column, for they are not
    known, and chunk is 0, for all came from one place. Other columns are ignored.

    Raises
    ------
    InputError
        If there is no such file, its suffix is unknown, it is damaged, a column of positions is
        missing, or a number is none.
    """
    table = _read_table(location)
    positions = _positions(table, location)
    present = set(_column_names(table))
    numbers = {
        name: _numbers(table, name, location) if name in present else np.full(len(table), np.nan)
        for name in _SPOT_NUMBERS
    }
    chunk = np.zeros(len(table), dtype=np.int64)
    if "chunk" in present:
        chunk = _values(table, "chunk", np.dtype(np.int64), location)
    return Spots(positions=positions, chunk=chunk, **numbers)


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
    _write_table(location, _table(columns, "matches"), overwrite=overwrite)


def read_matches(location: str | Path) -> Correspondences:
    """Read matches that `write_matches` wrote.

    Raises
    ------
    InputError
        If there is no such file, its suffix is unknown, it is damaged, or a column is missing.
    """
    table = _read_table(location)
    fixed = _positions(table, location, "_fixed")
    moving = _positions(table, location, "_moving", ndim=fixed.shape[1])
    _check_columns(table, list(_MATCH_COLUMNS), location)
    others = {name: _values(table, name, dtype, location) for name, dtype in _MATCH_COLUMNS.items()}
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


def _read_table(location: str | Path) -> pa.Table:
    """Return a table; all columns of a CSV file as text."""
    suffix = check_suffix(location)
    with opened(location, "table") as stream:
        try:
            return _read_csv(stream) if suffix == ".csv" else pa.parquet.read_table(stream)
        except (pa.ArrowException, OSError) as error:
            kind = "CSV" if suffix == ".csv" else "Parquet"
            raise InputError(
                f"'{location}' is not a {kind} file, or is damaged: {one_line(error)}."
            ) from error


def _read_csv(stream: BinaryIO) -> pa.Table:
    """Return the columns of a CSV file as text."""
    return pa.csv.read_csv(
        stream,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(default_column_type=pa.string()),
    )


def _write_table(location: str | Path, table: pa.Table, *, overwrite: bool) -> None:
    """Write a table in the format of the suffix."""
    suffix = check_suffix(location)
    with replaced(location, overwrite=overwrite) as stream:
        if suffix == ".parquet":
            pa.parquet.write_table(table, stream, compression="zstd")
            return
        try:
            _write_csv(table, stream)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise OutputError(
                f"Cannot write '{location}' as CSV: {one_line(error)}. Write .parquet."
            ) from error


def _write_csv(table: pa.Table, stream: BinaryIO) -> None:
    """Write a table as CSV, with quotation marks only where some text needs them."""
    special = r'[",\r\n]'
    texts = [column for column in table.columns if _is_text(column)]
    names = pa.array(table.column_names)
    quoted = any(pc.any(pc.match_substring_regex(c, special)).as_py() for c in [*texts, names])
    style = "needed" if quoted else "none"
    options = pa.csv.WriteOptions(quoting_style=style, quoting_header=style)
    pa.csv.write_csv(table, stream, options)


def _is_text(column: Any) -> bool:
    """Tell whether a column holds text."""
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def check_suffix(location: str | Path) -> str:
    """Return the suffix of a table, '.csv' or '.parquet'.

    Raises
    ------
    InputError
        If it names neither.
    """
    suffix = suffix_of(location)
    if suffix not in (".csv", ".parquet"):
        raise InputError(
            f"Invalid suffix '{suffix}' of '{location}'. A table ends in .csv or .parquet."
        )
    return suffix


def _column_names(table: pa.Table) -> list[str]:
    """Return the names of the columns without blanks around them, as in 'z, y, x'."""
    return [name.strip() for name in table.column_names]


def _check_columns(table: pa.Table, needed: list[str], location: str | Path) -> None:
    """Raise unless every column is there, once."""
    present = _column_names(table)
    missing = [name for name in needed if name not in present]
    if missing:
        raise InputError(
            f"Missing column{'s' * (len(missing) > 1)} {', '.join(missing)} in '{location}'. "
            f"Present are: {', '.join(present) or 'none'}."
        )
    double = [name for name in needed if present.count(name) > 1]
    if double:
        raise InputError(f"Column {double[0]} is in '{location}' more than once.")


def _positions(
    table: pa.Table, location: str | Path, ending: str = "", ndim: int | None = None
) -> NDArray[np.float64]:
    """Return the columns of positions as (N, D); 3D where there is a z."""
    if ndim is None:
        ndim = 3 if f"z{ending}" in _column_names(table) else 2
    names = [axis + ending for axis in AXES[-ndim:]]
    _check_columns(table, names, location)
    positions = np.empty((len(table), ndim))
    for axis, name in enumerate(names):
        positions[:, axis] = _numbers(table, name, location)
    bad = ~np.isfinite(positions).all(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"{int(bad.sum())} of {len(table)} positions in '{location}' are not finite, the first "
            f"in row {row}, counted from 0: {positions[row].tolist()}. Remove them first."
        )
    return positions


def _numbers(table: pa.Table, name: str, location: str | Path) -> NDArray[np.float64]:
    """Return a column as float64; an empty entry is NaN."""
    return _values(table, name, np.dtype(np.float64), location)


def _values(table: pa.Table, name: str, dtype: np.dtype[Any], location: str | Path) -> NDArray[Any]:
    """Return a column as numbers of a type, or raise and name the first entry that is none."""
    column = table.column(_column_names(table).index(name))
    kind = pa.from_numpy_dtype(dtype)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if _is_text(column):
        text = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)
    try:
        column = column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(_misfit(column, name, kind, location)) from error
    if column.null_count:
        if dtype.kind != "f":
            raise InputError(f"Column {name} of '{location}' has {column.null_count} empty rows.")
        column = pc.fill_null(column, np.nan)
    return np.asarray(column.to_numpy(), dtype=dtype)


def _misfit(column: Any, name: str, kind: Any, location: str | Path) -> str:
    """Return what is wrong with a column that cannot be cast."""
    for row, value in enumerate(column):
        try:
            value.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return (
                f"Column {name} of '{location}' holds {value.as_py()!r} in row {row}, counted "
                f"from 0. It must hold numbers ({kind})."
            )
    return f"Column {name} of '{location}' holds {column.type}. It must hold numbers ({kind})."


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
