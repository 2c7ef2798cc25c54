"""Affine maps as text: JSON, or rows of numbers. Fixed -> moving, micrometre, axes z, y, x."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilereg.errors import InputError
from tilereg.grid import AXES
from tilereg.transform import Affine

__all__ = ["DIRECTION", "UNIT", "parse_json", "parse_rows", "to_json"]

DIRECTION = "fixed to moving"
UNIT = "micrometer"
_UNITS = (UNIT, "micrometre", "um", "\N{MICRO SIGN}m", "\N{GREEK SMALL LETTER MU}m")


def to_json(affine: Affine) -> str:
    """Return an affine as a JSON text that `parse_json` reads to the bit."""
    record = {
        "direction": DIRECTION,
        "unit": UNIT,
        "axes": list(AXES[-affine.ndim :]),
        "matrix": affine.matrix.tolist(),
        "offset": affine.offset.tolist(),
    }
    return json.dumps(record, indent=2) + "\n"


def parse_json(text: str) -> Affine:
    """Return the affine of a JSON text.

    Raises
    ------
    InputError
        If the text is not JSON, or holds no affine, or one in other axes or units.
    """
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"Invalid JSON: {error}.") from error
    if isinstance(record, dict):
        _check_conventions(record)
    if isinstance(record, dict) and "affine" in record:
        record = record["affine"]
    if not isinstance(record, dict):
        return _from_rows(record)
    _check_conventions(record)
    if "matrix" not in record:
        raise InputError(
            f"Missing key 'matrix'. Present are: {', '.join(record) or 'none'}. An affine is "
            '{"matrix": .., "offset": ..}, or the rows of a matrix.'
        )
    if "offset" not in record:
        return _from_rows(record["matrix"])
    return Affine(_numbers(record["matrix"]), _numbers(record["offset"]))


def _check_conventions(record: dict[str, Any]) -> None:
    """Raise if a file says that it is in other axes, another unit or another direction."""
    axes = record.get("axes", list(AXES))
    if axes not in (list(AXES), list(AXES[1:])):
        raise InputError(f"Invalid axes {axes}. They must be z, y, x (y, x in 2D), in this order.")
    unit = record.get("unit", UNIT)
    if unit not in _UNITS:
        raise InputError(f"Invalid unit '{unit}'. It must be micrometer.")
    direction = record.get("direction", DIRECTION)
    if direction != DIRECTION:
        raise InputError(f"Invalid direction '{direction}'. It must be '{DIRECTION}'.")


def parse_rows(text: str) -> Affine:
    """Return the affine of a text of rows of numbers; what follows a # is left out.

    Raises
    ------
    InputError
        If the text holds anything else, or the numbers are not an affine.
    """
    lines = [line.partition("#")[0] for line in text.splitlines()]
    rows = [line.replace(",", " ").replace(";", " ").split() for line in lines]
    try:
        numbers = [[float(entry) for entry in row] for row in rows if row]
    except ValueError as error:
        raise InputError(f"Invalid affine: {error}.") from error
    return _from_rows(numbers)


def _numbers(value: Any) -> NDArray[np.float64]:
    """Return nested lists as an array of float64."""
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            "Invalid affine: its rows differ in length, or hold something that is not a number."
        ) from error


def _from_rows(rows: Any) -> Affine:
    """Return the affine of a (D, D + 1) or (D + 1, D + 1) matrix."""
    matrix = _numbers(rows)
    if matrix.shape not in ((2, 3), (3, 3), (3, 4), (4, 4)):
        raise InputError(
            f"Invalid shape {matrix.shape} of an affine. In 3D it is (3, 4) or (4, 4), in 2D "
            "(2, 3) or (3, 3), the offset in the last column."
        )
    ndim = matrix.shape[1] - 1
    if matrix.shape[0] > ndim and matrix[-1].tolist() != [0.0] * ndim + [1.0]:
        raise InputError(
            f"Invalid last row {matrix[-1].tolist()} of a square affine. It must be "
            f"{[0.0] * ndim + [1.0]}; the offset is in the last column."
        )
    return Affine(matrix[:ndim, :ndim], matrix[:ndim, ndim])
