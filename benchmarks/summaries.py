"""Many runs in few numbers: medians over seeds, and the tables that show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.results_files import number, table

Row = dict[str, Any]

RAN = ("ok", "no registration", "few spots")
"""Statuses of runs that gave a map; the identity stands in where a method says it has none."""


def value(row: Row, path: str) -> float | None:
    """Look up a figure of a run: ``value(row, 'errors.spots.median')``; None where it is not."""
    found: Any = row
    for name in path.split("."):
        if not isinstance(found, dict) or found.get(name) is None:
            return None
        found = found[name]
    return float(found)


def values(rows: Iterable[Row], path: str) -> list[float]:
    """Return a figure of all runs that have it."""
    return [v for row in rows if (v := value(row, path)) is not None]


def middle(rows: Iterable[Row], path: str) -> float | None:
    """Return the median of a figure over runs."""
    found = values(rows, path)
    return float(np.median(found)) if found else None


def worst(rows: Iterable[Row], path: str) -> float | None:
    """Return the largest of a figure over runs."""
    return max(values(rows, path), default=None)


def spread(rows: Sequence[Row], path: str, digits: int = 3) -> str:
    """Write a figure's median over runs and, where there are several, the smallest and largest."""
    found = values(rows, path)
    if not found:
        return "-"
    text = number(float(np.median(found)), digits)
    if len(found) > 1:
        text += f" ({number(min(found), digits)} - {number(max(found), digits)})"
    return text


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Return the runs by the values of some of their entries, in the order of first sight."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def in_words(rows: Sequence[Row]) -> str:
    """Say how many runs there are and what became of those that are not 'ok'."""
    text = str(len(rows))
    others: dict[str, int] = {}
    for row in rows:
        if row["status"] != "ok":
            others[row["status"]] = others.get(row["status"], 0) + 1
    return text + "".join(f", {count} {status}" for status, count in others.items())


def reasons(rows: Iterable[Row]) -> str:
    """List why runs are not 'ok', each reason of a method once."""
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        if row["status"] != "ok":
            why = row["reason"] or str(row["details"].get("message", row["status"]))
            kind = (row["method"], f"{row['status']}: {why}")
            if row["status"] in RAN:  # Their messages differ by their figures only.
                kind = (row["method"], row["status"])
            seen[kind] = seen.get(kind, 0) + 1
    return "".join(f"* `{name}`, {count} x {why}\n" for (name, why), count in seen.items())


def field_table(rows: Sequence[Row]) -> str:
    """Return the errors of the recovered field, a line a method."""
    columns: list[tuple[str, Callable[[list[Row]], str]]] = [
        ("runs", in_words),
        ("spots: median", lambda r: spread(r, "errors.spots.median")),
        ("95 %", lambda r: spread(r, "errors.spots.p95")),
        ("max", lambda r: number(worst(r, "errors.spots.max"))),
        ("moved spots: median", lambda r: spread(r, "errors.spots_moved.median")),
        ("grid inside: median", lambda r: spread(r, "errors.grid_inside.median")),
        ("95 %", lambda r: spread(r, "errors.grid_inside.p95")),
        ("grid outside: median", lambda r: spread(r, "errors.grid_outside.median")),
        ("95 %", lambda r: number(middle(r, "errors.grid_outside.p95"))),
        ("found", lambda r: number(middle(r, "errors.found"))),
    ]
    return _by_method(rows, columns)


def image_table(rows: Sequence[Row]) -> str:
    """Return the image similarities and the costs, a line a method."""
    names = {"ncc": "NCC", "ssim": "SSIM", "iou_99": "IoU 99", "iou_995": "IoU 99.5"}
    names |= {"mad_bright": "MAD", "match_rate": "match rate"}
    columns: list[tuple[str, Callable[[list[Row]], str]]] = [
        (title, lambda r, key=key: spread(r, f"image.{key}", 2))  # type: ignore[misc]
        for key, title in names.items()
    ]
    return _by_method(rows, [*columns, *COSTS])


def _megabytes(rows: Sequence[Row]) -> str:
    """Write the largest peak memory."""
    largest = worst(rows, "memory_bytes")
    return "-" if largest is None else f"{largest / 1e6:.0f}"


COSTS: list[tuple[str, Callable[[list[Row]], str]]] = [
    ("seconds", lambda r: number(middle(r, "total_seconds"))),
    ("CPU s", lambda r: number(middle(r, "total_cpu_seconds"))),
    ("MB", _megabytes),
]


def _by_method(
    rows: Sequence[Row], columns: Sequence[tuple[str, Callable[[list[Row]], str]]]
) -> str:
    """Return a table with a line a method."""
    lines = [
        [f"`{name}`", *[write(group) for _, write in columns]]
        for (name,), group in grouped(rows, "method").items()
    ]
    return table(["method", *[title for title, _ in columns]], lines)
