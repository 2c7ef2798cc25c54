"""The published way of looking at a registration: overlays and differences of projections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.cases import Case
from benchmarks.results_files import save_figure
from benchmarks.running import Prepared
from benchmarks.summaries import grouped, middle, value, values
from benchmarks.worker import Reply

Floats = NDArray[np.float64]
Row = dict[str, Any]

SHOWN_FIELD = "polynomial_small"
"""Deformation that gets a figure a method; the others get one sheet."""


def keeper(folder: Path) -> Callable[[Case, str, Reply, Prepared], None]:
    """Return what keeps the maximum projections of the pairs of seed 0."""

    def keep(case: Case, method: str, reply: Reply, prepared: Prepared) -> None:
        if case.seed or reply.image is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        pair = prepared.pair
        np.savez_compressed(
            folder / f"{case.field}-{method}.npz",
            reference=pair.reference.max(axis=0),
            before=pair.moving.max(axis=0),
            after=np.asarray(reply.image.max(axis=0), dtype=np.float32),
        )

    return keep


def draw_errors(rows: list[Row], path: Path) -> None:
    """Draw the error at the spots: a panel a deformation, a line a method, a dot a seed."""
    fields = list(dict.fromkeys(row["field"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows if row["errors"]))
    size = (max(7.5, 3.1 * len(fields) + 1.6), 0.3 * len(methods) + 1.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(fields), sharey=True, sharex=True, squeeze=False)[0]
    for axis, field in zip(axes, fields, strict=True):
        for place, method in enumerate(methods):
            here = [r for r in rows if (r["field"], r["method"]) == (field, method)]
            for key, colour, marker in (("median", "tab:blue", "o"), ("p95", "tab:orange", "^")):
                # A perfect map has no place on a logarithmic axis: it stands at the left edge.
                found = np.maximum(values(here, f"errors.spots.{key}"), 5e-3)
                lines = [place] * len(found)
                axis.plot(found, lines, marker, color=colour, markersize=3.5, alpha=0.5)
        axis.axvline(0.12, color="tab:blue", linewidth=0.8, linestyle="--")
        axis.axvline(0.5, color="tab:orange", linewidth=0.8, linestyle="--")
        axis.set_xscale("log")
        axis.set_title(field, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].invert_yaxis()
    figure.supxlabel(
        "error of the field at the spots (voxel): median (blue) and 95th percentile (orange), "
        "a mark a seed, below 0.005 at the left edge; dashed: the goals",
        fontsize=9,
    )
    figure.savefig(path, dpi=120)


def draw_inspections(rows: list[Row], kept: Path, folder: Path) -> None:
    """Draw a figure a method for one deformation and a sheet of all methods for the others."""
    first = [row for row in rows if row["seed"] == 0]
    for (field,), group in grouped(first, "field").items():
        found = {r["method"]: r for r in group if (kept / f"{field}-{r['method']}.npz").exists()}
        if not found:
            continue
        _draw_sheet(field, found, kept, folder / f"seed_{field}.png")
        if field == SHOWN_FIELD:
            for method, row in found.items():
                _draw_one(row, _projections(kept, row), folder / f"seed_inspection_{method}.png")


def _projections(kept: Path, row: Row) -> dict[str, Floats]:
    """Load the projections of a run, each divided by its own maximum."""
    with np.load(kept / f"{row['field']}-{row['method']}.npz") as file:
        return {k: file[k] / max(float(file[k].max()), 1e-9) for k in file.files}


def overlay(reference: Floats, image: Floats) -> Floats:
    """Return an RGB image: reference green, image magenta, white where both are bright."""
    low = float(np.median(reference))
    shown = [np.clip((a - low) / max(1 - low, 1e-9), 0, 1) ** 0.7 for a in (reference, image)]
    return np.stack([shown[1], shown[0], shown[1]], axis=-1)


def _draw_one(row: Row, planes: dict[str, Floats], path: Path) -> None:
    """Draw overlays and differences before and after, two by two."""
    reference, before, after = planes["reference"], planes["before"], planes["after"]
    figure = Figure(figsize=(10.5, 10.6), layout="constrained")
    axes = figure.subplots(2, 2)
    axes[0, 0].imshow(overlay(reference, before))
    axes[0, 0].set_title("before: reference green, moving magenta", fontsize=11)
    axes[0, 1].imshow(overlay(reference, after))
    axes[0, 1].set_title("after: white where they coincide", fontsize=11)
    for axis, image, when in ((axes[1, 0], before, "before"), (axes[1, 1], after, "after")):
        picture = axis.imshow(reference - image, cmap="PiYG", vmin=-0.7, vmax=0.7)
        axis.set_title(f"reference - moving, {when}", fontsize=11)
    bar = figure.colorbar(picture, ax=axes[1, :], shrink=0.7, extend="both")
    bar.set_label("share of the brightest")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(
        f"{row['method']} on {row['field']}, seed {row['seed']} (maximum projections along z)\n"
        + _caption(row),
        fontsize=12,
    )
    save_figure(figure, path)


def _caption(row: Row) -> str:
    """Say how good the run is."""
    median, p95 = (value(row, f"errors.spots.{k}") for k in ("median", "p95"))
    score, iou = value(row, "image.ncc"), value(row, "image.iou_99")
    return (
        f"field error at the spots: median {_short(median)}, 95 % {_short(p95)} voxel; "
        f"NCC {_short(score)}, IoU {_short(iou)}"
    )


def _short(number: float | None) -> str:
    """Write a number with two decimals."""
    return "-" if number is None else f"{number:.2f}"


def _draw_sheet(field: str, found: dict[str, Row], kept: Path, path: Path) -> None:
    """Draw the overlay after registration by every method, the middle of the image enlarged."""
    names = list(found)
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.75 * lines + 0.6), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, name in zip(axes, names, strict=False):
        row = found[name]
        planes = {k: _middle(v) for k, v in _projections(kept, row).items()}
        axis.imshow(overlay(planes["reference"], planes["after"]))
        median, p95 = (value(row, f"errors.spots_moved.{k}") for k in ("median", "p95"))
        score = value(row, "image.ncc")
        axis.set_title(
            f"{name}\nerror {_short(median)} / {_short(p95)} voxel, NCC {_short(score)}", fontsize=9
        )
    figure.suptitle(
        f"{field}, seed 0: reference green, registered magenta, both white (middle of the maximum "
        "projection)\nerror of the field at the moved spots: median / 95th percentile",
        fontsize=11,
    )
    save_figure(figure, path)


def _middle(image: Floats) -> Floats:
    """Return the middle half of a plane, or all of a small one."""
    ny, nx = image.shape
    return image if min(ny, nx) < 256 else image[ny // 4 : -ny // 4, nx // 4 : -nx // 4]


__all__ = ["draw_errors", "draw_inspections", "keeper", "middle", "overlay"]
