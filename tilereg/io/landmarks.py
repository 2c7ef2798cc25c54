"""Tables of known pairs: landmarks that were set by hand, or found by another tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tilereg.errors import InputError
from tilereg.grid import AXES
from tilereg.io.columnar import (
    column_names,
    numbers_of,
    positions_of,
    read_table,
    write_table,
)
from tilereg.points import Landmarks

__all__ = ["read_landmarks", "write_landmarks"]

_SIDES = ("fixed", "moving")
# As a person writes them, and as a run writes its matches.
_STYLES = ("{side}_{axis}", "{axis}_{side}")


def read_landmarks(location: str | Path) -> Landmarks:
    """Read known pairs of a CSV or Parquet file.

    Columns are fixed_z, fixed_y, fixed_x, moving_z, .. in micrometre (no z in 2D), or z_fixed, ..
    as in a run's matches, and weight where there is one. Other columns are ignored.

    Raises
    ------
    InputError
        If there is no such file, its suffix is unknown, it is damaged or has no rows, a column is
        missing, a position is not finite, or a weight is negative.
    """
    table = read_table(location)
    if not len(table):
        raise InputError(f"'{location}' has no rows. A table of landmarks needs at least one.")
    names = _position_columns(table)
    fixed, moving = (positions_of(table, location, names[side]) for side in _SIDES)
    weight = numbers_of(table, "weight", location) if "weight" in column_names(table) else None
    try:
        return Landmarks.of(fixed, moving, weight)
    except InputError as error:
        raise InputError(f"In '{location}': {error}") from error


def write_landmarks(location: str | Path, landmarks: Landmarks, *, overwrite: bool = False) -> None:
    """Write landmarks and how a match obeys them, one a row.

    Columns are those that `read_landmarks` reads, residual, miss and is_contradicted.

    Raises
    ------
    InputError
        If the suffix is unknown.
    OutputError
        If there is a file already and `overwrite` is false, or it cannot be written.
    """
    axes = AXES[-landmarks.ndim :]
    columns: dict[str, NDArray[Any]] = {
        f"{side}_{axis}": getattr(landmarks, side)[:, i]
        for side in _SIDES
        for i, axis in enumerate(axes)
    }
    lengths = [*columns, "residual", "miss"]
    for name in ("weight", "residual", "miss", "is_contradicted"):
        columns[name] = getattr(landmarks, name)
    told = {"kind": "landmarks", "units": dict.fromkeys(lengths, "micrometer")}
    table = pa.table(columns).replace_schema_metadata({"tilereg": json.dumps(told)})
    write_table(location, table, overwrite=overwrite)


def _position_columns(table: pa.Table) -> dict[str, list[str]]:
    """Return the columns of either side in the order of the axes, in the style of the table."""
    present = set(column_names(table))
    found: list[tuple[int, dict[str, list[str]]]] = []
    for style in _STYLES:
        has_z = any(style.format(side=side, axis="z") in present for side in _SIDES)
        names = {
            side: [style.format(side=side, axis=axis) for axis in AXES[0 if has_z else 1 :]]
            for side in _SIDES
        }
        known = np.isin([name for side in _SIDES for name in names[side]], list(present))
        found.append((int(known.sum()), names))
    # Of equals the first: it is what an error asks for.
    return max(found, key=lambda entry: entry[0])[1]
