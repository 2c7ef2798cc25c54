"""Tables as they are in CSV and Parquet files: columns by name, of numbers or of text.

Every table appears under its name only when it is complete. Locations are local paths or URLs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from tilereg.errors import InputError, OutputError
from tilereg.grid import AXES
from tilereg.io.files import opened, replaced, suffix_of
from tilereg.io.stores import one_line

__all__ = [
    "axis_columns",
    "check_columns",
    "check_suffix",
    "column_names",
    "iter_tables",
    "labels_of",
    "numbers_of",
    "positions_of",
    "read_table",
    "values_of",
    "write_table",
]


def read_table(location: str | Path) -> pa.Table:
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


def iter_tables(location: str | Path, most: int) -> Iterator[pa.Table]:
    """Yield a Parquet file in tables of at most so many rows; an empty one once."""
    with opened(location, "table") as stream:
        try:
            file = pa.parquet.ParquetFile(stream)
            empty = file.metadata.num_rows == 0
            for batch in file.iter_batches(batch_size=most):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"'{location}' is not a Parquet file, or is damaged: {one_line(error)}."
            ) from error
        if empty:
            yield file.schema_arrow.empty_table()


def _read_csv(stream: BinaryIO) -> pa.Table:
    """Return the columns of a CSV file as text."""
    return pa.csv.read_csv(
        stream,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(default_column_type=pa.string()),
    )


def write_table(location: str | Path, table: pa.Table, *, overwrite: bool) -> None:
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


def column_names(table: pa.Table) -> list[str]:
    """Return the names of the columns without blanks around them, as in 'z, y, x'."""
    return [name.strip() for name in table.column_names]


def check_columns(table: pa.Table, needed: list[str], location: str | Path) -> None:
    """Raise unless every column is there, once."""
    present = column_names(table)
    missing = [name for name in needed if name not in present]
    if missing:
        raise InputError(
            f"Missing column{'s' * (len(missing) > 1)} {', '.join(missing)} in '{location}'. "
            f"Present are: {', '.join(present) or 'none'}."
        )
    double = [name for name in needed if present.count(name) > 1]
    if double:
        raise InputError(f"Column {double[0]} is in '{location}' more than once.")


def axis_columns(table: pa.Table, ending: str = "", ndim: int | None = None) -> list[str]:
    """Return the columns z, y, x, or y, x, each with an ending; 3D where there is a z."""
    if ndim is None:
        ndim = 3 if f"z{ending}" in column_names(table) else 2
    return [axis + ending for axis in AXES[-ndim:]]


def positions_of(table: pa.Table, location: str | Path, names: list[str]) -> NDArray[np.float64]:
    """Return the columns of positions, in the order of their axes, as (N, D)."""
    check_columns(table, names, location)
    points = np.empty((len(table), len(names)))
    for axis, name in enumerate(names):
        points[:, axis] = numbers_of(table, name, location)
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"{int(bad.sum())} of {len(table)} positions in '{location}' are not finite, the first "
            f"in row {row}, counted from 0: {points[row].tolist()}. Remove them first."
        )
    return points


def numbers_of(table: pa.Table, name: str, location: str | Path) -> NDArray[np.float64]:
    """Return a column as float64; an empty entry is NaN."""
    return values_of(table, name, np.dtype(np.float64), location)


def values_of(
    table: pa.Table, name: str, dtype: np.dtype[Any], location: str | Path
) -> NDArray[Any]:
    """Return a column as numbers of a type, or raise and name the first entry that is none."""
    column = table.column(column_names(table).index(name))
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


def labels_of(table: pa.Table, name: str, location: str | Path) -> NDArray[np.str_]:
    """Return a column of integers or text as text, without blanks around it.

    The same class is the same text, whether a CSV file or a Parquet file holds it.
    """
    column = table.column(column_names(table).index(name))
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (_is_text(column) or pa.types.is_integer(column.type)):
        raise InputError(
            f"Column {name} of '{location}' holds {column.type}. Classes are integers or text."
        )
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    empty = pc.fill_null(pc.equal(text, ""), True).to_numpy()
    if empty.any():
        raise InputError(
            f"Column {name} of '{location}' has {int(empty.sum())} empty rows, the first is row "
            f"{int(np.flatnonzero(empty)[0])}, counted from 0. Every spot needs a class: remove "
            "those without one."
        )
    return np.asarray(text.to_pylist(), dtype=np.str_)


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
