"""What is said of an image and of a run, as rows of a name and a value.

Figures that are missing are left out, and what is unknown says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilereg.config import SettingInfo
    from tilereg.io.ome_zarr import OmeZarrImage
    from tilereg.metrics import FieldError

__all__ = [
    "error_rows",
    "format_seconds",
    "format_size",
    "image_record",
    "image_rows",
    "level_table",
    "run_rows",
    "settings_template",
    "settings_text",
    "stage_table",
]

Rows = list[tuple[str, str]]


def format_seconds(seconds: float) -> str:
    """Return a duration: ``0.4 s``, ``2 min 5 s``, ``3 h 12 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def format_size(size: float) -> str:
    """Return a number of bytes: ``1.5 GB``, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"


def image_record(image: OmeZarrImage) -> dict[str, Any]:
    """Return what tilereg understands of an image, as plain data."""
    return {
        "location": str(image.location),
        "name": image.name,
        "version": image.version,
        "axes": list(image.axes),
        "shape": list(image.levels[0].shape),
        "dtype": str(image.dtype),
        "channels": list(image.channels),
        "num_times": image.num_times,
        "labels": list(image.labels),
        "levels": [
            {
                "path": level.path,
                "shape": list(level.grid.shape),
                "spacing_um": list(level.grid.spacing),
                "origin_um": list(level.grid.origin),
                "chunks": list(level.chunks),
                "shards": None if level.shards is None else list(level.shards),
            }
            for level in image.levels
        ],
        "notes": list(image.notes),
    }


def image_rows(record: Mapping[str, Any]) -> Rows:
    """Return the rows on an image as a whole; `record` is that of `image_record`."""
    axes = record["axes"]
    rows = [
        ("image", record["location"]),
        ("name", record["name"] or "none"),
        ("format", f"OME-Zarr {record['version']}"),
        ("axes", ", ".join(axes)),
        ("shape", _times(record["shape"])),
        ("type", record["dtype"]),
        ("extent", _extent(record["levels"][0])),
    ]
    names = [
        name if name == str(number) else f"{number}: {name}"
        for number, name in enumerate(record["channels"])
    ]
    rows.append(("channels", ", ".join(names) if "c" in axes else "one, without a name"))
    if "t" in axes:
        rows.append(("time points", str(record["num_times"])))
    rows.append(("labels", ", ".join(record["labels"]) or "none"))
    return rows


def level_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of an image's levels."""
    levels = record["levels"]
    columns = ["level", "shape", "spacing (um)", "origin (um)", "chunks"]
    rows = [
        [
            str(number),
            _times(level["shape"]),
            _numbers(level["spacing_um"]),
            _numbers(level["origin_um"]),
            _times(level["chunks"]),
        ]
        for number, level in enumerate(levels)
    ]
    if any(level["shards"] for level in levels):
        columns.append("shards")
        for row, level in zip(rows, levels, strict=True):
            row.append(_times(level["shards"] or ()) or "none")
    return columns, rows


def run_rows(qc: Mapping[str, Any]) -> Rows:
    """Return what a run found, and how good it is, from the contents of ``qc.json``."""
    matches = qc.get("matches", {})
    status = str(qc.get("status", matches.get("status", "unknown")))
    message = matches.get("message", "")
    rows = [
        ("status", f"{status}: {message}" if message and status != "ok" else status),
        ("spots", _spots(qc.get("spots", {}), qc.get("given", {}))),
        ("matched", _matches(matches)),
        ("residual", _residual(qc.get("residual", {}))),
        ("localisation", _floor(qc.get("residual", {}))),
        ("image NCC", _ncc(qc.get("ncc", {}))),
        ("deformation", _field(qc.get("field", {}))),
        ("time", _time(qc.get("stages", ()))),
    ]
    rows += [("warning", line) for line in qc.get("warnings", ())]
    # Both images often lack the same.
    rows += [("assumed", note) for note in dict.fromkeys(qc.get("assumed", ()))]
    return [(name, text) for name, text in rows if text]


def error_rows(before: FieldError, after: FieldError) -> Rows:
    """Return how far the field is from the truth, without and with the registration."""
    return [
        ("before", _error(before)),
        ("after", f"{_error(after)}, at {after.count:,} points"),
    ]


def _error(error: FieldError) -> str:
    """Return a field error in both units."""
    return (
        f"median {error.median_voxels:.3g} voxels = {error.median:.3g} um, "
        f"95 % below {error.p95_voxels:.3g} voxels = {error.p95:.3g} um"
    )


def stage_table(qc: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of the stages of a run."""
    rows = [
        [
            str(stage["name"]),
            format_seconds(stage["seconds"]) if _known(stage.get("seconds")) else "",
            format_size(stage["peak_memory_bytes"])
            if _known(stage.get("peak_memory_bytes"))
            else "",
        ]
        for stage in qc.get("stages", ())
    ]
    return ["stage", ">time", ">peak memory"], rows


def settings_text(infos: Iterable[SettingInfo]) -> Iterator[tuple[str, str]]:
    """Yield the heading and the explanation of every setting."""
    for info in infos:
        yield f"{info.name} = {info.default}", f"{info.description} Allowed: {info.rule}."


def settings_template(infos: Sequence[SettingInfo]) -> str:
    """Return a TOML file with all settings, commented out, at their defaults."""
    lines: list[str] = []
    section = ""
    for info in infos:
        here, _, key = info.name.partition(".")
        if here != section:
            lines += ["", f"[{here}]"] if section else [f"[{here}]"]
            section = here
        value = "" if info.default == "(automatic)" else info.default
        lines += [
            f"# {info.description}",
            f"# Allowed: {info.rule}.",
            f"# {key} = {value}".rstrip(),
        ]
    return "\n".join(lines)


def _spots(spots: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return how many spots were found or given."""
    counts = [
        f"{spots[key]:,} {key}{' (given)' if f'{key}_spots' in given else ''}"
        for key in ("fixed", "moving")
        if _known(spots.get(key))
    ]
    sigmas = [spots.get("fixed_sigma_um"), spots.get("moving_sigma_um")]
    sizes = " and ".join(f"{sigma:.3g}" for sigma in sigmas if _known(sigma))
    return ", ".join(counts) + (f"; sigma {sizes} um" if sizes else "")


def _matches(matches: Mapping[str, Any]) -> str:
    """Return how many spots were matched, beside what chance would match."""
    parts = [f"{matches['pairs']:,} pairs"] if _known(matches.get("pairs")) else []
    if _known(matches.get("share_matched")):
        chance = matches.get("share_chance")
        beside = f" (by chance: {_percent(chance)})" if chance is not None else ""
        share = _percent(matches["share_matched"])
        parts.append(f"{share} of the fixed spots lie at a moving one{beside}")
    return "; ".join(parts)


def _residual(residual: Mapping[str, Any]) -> str:
    """Return the distances of the pairs that were kept out of the fit."""
    held_out = residual.get("held_out")
    if held_out is None:
        return ""
    if not held_out.get("count"):
        return "unknown: no pair was held out of the fit"
    parts = []
    for name, key in (("median", "median"), ("95 % below", "p95")):
        voxel, length = held_out.get(f"{key}_voxel"), held_out.get(f"{key}_um")
        texts = [f"{voxel:.2f} voxels"] if _known(voxel) else []
        texts += [f"{length:.3g} um"] if _known(length) else []
        if texts:
            parts.append(f"{name} {' = '.join(texts)}")
    return f"{', '.join(parts)} ({held_out['count']:,} pairs held out of the judged fit)"


def _floor(residual: Mapping[str, Any]) -> str:
    """Return what the spots' own uncertainty allows."""
    floor = residual.get("floor_um")
    return f"explains a median of {floor:.3g} um" if _known(floor) else ""


def _ncc(ncc: Mapping[str, Any]) -> str:
    """Return the correlation of the images before and after."""
    values = [f"{ncc[key]:.3f} {key}" for key in ("before", "after") if _known(ncc.get(key))]
    return ", ".join(values)


def _field(field: Mapping[str, Any]) -> str:
    """Return how far the field moves and whether it folds."""
    parts = []
    if _known(field.get("max_displacement_um")):
        parts.append(f"up to {field['max_displacement_um']:.3g} um")
    if _known(field.get("fold_share")):
        share = field["fold_share"]
        parts.append("no folds" if share == 0 else f"FOLDS in {_percent(share)} of the volume")
    return ", ".join(parts)


def _time(stages: Sequence[Mapping[str, Any]]) -> str:
    """Return the time of all stages and the most memory."""
    seconds = [stage["seconds"] for stage in stages if _known(stage.get("seconds"))]
    memory = [s["peak_memory_bytes"] for s in stages if _known(s.get("peak_memory_bytes"))]
    parts = [format_seconds(sum(seconds))] if seconds else []
    parts += [f"peak memory {format_size(max(memory))}"] if memory else []
    return ", ".join(parts)


def _percent(share: float) -> str:
    """Return a share: 44.0 %; never 0 % where it is not zero."""
    return "below 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def _known(value: Any) -> bool:
    """Tell whether a figure is there: neither None nor NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _times(shape: Sequence[int]) -> str:
    """Return a shape: 149x241x456."""
    return "x".join(str(size) for size in shape)


def _numbers(values: Sequence[float]) -> str:
    """Return numbers, once where all are the same and there are several."""
    texts = [f"{value:.5g}" for value in values]
    return ", ".join(texts)


def _extent(level: Mapping[str, Any]) -> str:
    """Return the size of the volume in micrometre."""
    sizes = [n * s for n, s in zip(level["shape"], level["spacing_um"], strict=True)]
    return f"{' x '.join(f'{size:.5g}' for size in sizes)} um"
