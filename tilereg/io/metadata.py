"""The JSON of OME-Zarr (NGFF) 0.4 and 0.5: axes, units, scales, channels.

Plain dictionaries in, frozen records out; nothing is opened here. What a file leaves out is
assumed where a sensible value exists, and every assumption becomes a note.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilereg.errors import ImageError
from tilereg.grid import AXES

__all__ = [
    "Dataset",
    "Multiscale",
    "channel_names",
    "check_version",
    "micrometres",
    "parse_multiscale",
]

ALL_AXES = ("t", "c", "z", "y", "x")

#: The length units of NGFF, in micrometre.
LENGTH_UNITS = {
    "yoctometer": 1e-18,
    "zeptometer": 1e-15,
    "attometer": 1e-12,
    "femtometer": 1e-9,
    "picometer": 1e-6,
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "inch": 25400.0,
    "decimeter": 1e5,
    "foot": 304800.0,
    "yard": 914400.0,
    "meter": 1e6,
    "hectometer": 1e8,
    "kilometer": 1e9,
    "mile": 1609344000.0,
    "megameter": 1e12,
    "gigameter": 1e15,
    "terameter": 1e18,
    "petameter": 1e21,
    "parsec": 3.0856775814913673e22,
    "exameter": 1e24,
    "zettameter": 1e27,
    "yottameter": 1e30,
}
#: How other software writes them.
_SPELLINGS = {
    "nm": "nanometer",
    "um": "micrometer",
    "\N{MICRO SIGN}m": "micrometer",
    "\N{GREEK SMALL LETTER MU}m": "micrometer",
    "micron": "micrometer",
    "microns": "micrometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
    "\N{ANGSTROM SIGN}": "angstrom",
    "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}": "angstrom",
    "pm": "picometer",
    "dm": "decimeter",
    "km": "kilometer",
    "in": "inch",
    "inches": "inch",
    "ft": "foot",
    "feet": "foot",
}
#: What stands for no unit at all.
_NO_UNITS = ("pixel", "pixels")
#: Products of three numbers within are neither infinite nor without digits.
_SMALLEST, _LARGEST = 1e-100, 1e100


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One level as the metadata describe it.

    Parameters
    ----------
    path : str
        Where its array is, below the image.
    scale, translation : (num_axes,) tuple of float
        Of all axes as stored, those of space in micrometre.
    """

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Multiscale:
    """An image as the metadata describe it.

    Parameters
    ----------
    name : str
        Empty where the file has none.
    axes : tuple of str
        Out of t, c, z, y, x, in the order of the arrays.
    datasets : tuple of Dataset
        At least one.
    notes : tuple of str
        What was assumed.
    time_step : float
        Between two times, in `time_unit`; 1 where the file does not say.
    time_unit : str or None
        As it is written.
    """

    name: str
    axes: tuple[str, ...]
    datasets: tuple[Dataset, ...]
    notes: tuple[str, ...]
    time_step: float
    time_unit: str | None


def micrometres(unit: str) -> float | None:
    """Return the micrometres of a length unit, None for what is no length unit.

    Names may be written large or small, symbols may not: mm is a unit, MM is none.

    Examples
    --------
    >>> micrometres("nanometer"), micrometres("furlong")
    (0.001, None)
    """
    name = unit.strip()
    name = _SPELLINGS.get(name, name).lower().replace("metre", "meter")
    name = name if name in LENGTH_UNITS else name.removesuffix("s")
    return LENGTH_UNITS.get(name)


def check_version(version: object, *, zarr_format: int, place: str) -> str:
    """Return the version of the metadata as 'major.minor', "0.4" or "0.5".

    Raises
    ------
    ImageError
        If it is another one.
    """
    default = "0.4" if zarr_format == 2 else "0.5"
    text = default if version is None else str(version)
    short = ".".join(text.split("-")[0].split(".")[:2])
    if short in ("0.4", "0.5"):
        return short
    if short in ("0.1", "0.2", "0.3"):
        remedy = "These versions hold no scales. Convert it to 0.4 or 0.5 first."
    else:
        remedy = "Write it as 0.5, or use a newer tilereg."
    raise ImageError(f"'{place}' is OME-Zarr {text}; tilereg reads 0.4 and 0.5. {remedy}")


def parse_multiscale(attributes: Mapping[str, Any], *, place: str) -> Multiscale:
    """Read the first multiscale image of an OME metadata dictionary.

    Parameters
    ----------
    attributes : mapping
        What holds `multiscales`: the attributes of a 0.4 group, their `ome` of a 0.5 group.
    place : str
        The location, for messages.

    Raises
    ------
    ImageError
        If axes, paths or scales are missing or wrong.
    """
    multiscales = attributes.get("multiscales")
    if not (isinstance(multiscales, list) and multiscales and isinstance(multiscales[0], dict)):
        raise ImageError(f"The multiscales of '{place}' list no image. Write the image again.")
    content: dict[str, Any] = multiscales[0]
    notes = []
    if len(multiscales) > 1:
        notes.append(f"The metadata list {len(multiscales)} multiscale images; the first is used.")
    axes, units = _axes(content.get("axes"), place)
    factors = _factors(axes, units, notes, place)
    entries = content.get("datasets")
    if not (isinstance(entries, list) and entries):
        raise ImageError(f"The multiscales of '{place}' list no levels. Write the image again.")
    shared = content.get("coordinateTransformations") or []
    datasets = []
    for number, entry in enumerate(entries):
        if not (isinstance(entry, dict) and isinstance(entry.get("path"), str)):
            raise ImageError(f"Level {number} of '{place}' has no path. Write the image again.")
        own = entry.get("coordinateTransformations") or []
        where = f"level {number} of '{place}'"
        scale, translation = _chain(own, shared, axes, where)
        datasets.append(
            Dataset(
                path=entry["path"],
                scale=tuple(s * f for s, f in zip(scale, factors, strict=True)),
                translation=tuple(t * f for t, f in zip(translation, factors, strict=True)),
            )
        )
        _check_range(datasets[-1], axes, where)
    time_step, time_unit = _time(axes, units, datasets[0], notes)
    name = content.get("name")
    return Multiscale(
        name=name if isinstance(name, str) else "",
        axes=axes,
        datasets=tuple(datasets),
        notes=tuple(notes),
        time_step=time_step,
        time_unit=time_unit,
    )


def channel_names(
    omero: Mapping[str, Any] | None, num_channels: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of all channels, "0", "1" ... where none is given, and notes."""
    given = (omero or {}).get("channels") or []
    given = given if isinstance(given, list) else []
    notes: tuple[str, ...] = ()
    if given and len(given) != num_channels:
        notes = (
            f"The omero metadata describe {len(given)} channels, the arrays hold {num_channels}; "
            "channels without a name are called by their number.",
        )
    names = []
    for number in range(num_channels):
        entry = given[number] if number < len(given) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        names.append(str(label) if label not in (None, "") else str(number))
    return tuple(names), notes


def _axes(content: object, place: str) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    """Return the names of the axes in the order of the arrays, and their units."""
    if not (isinstance(content, list) and content):
        raise ImageError(
            f"The metadata of '{place}' have no axes, as before version 0.3. Convert it to 0.4 "
            "or 0.5 first."
        )
    entries = [axis if isinstance(axis, dict) else {"name": axis} for axis in content]
    names = tuple(str(entry.get("name")).lower() for entry in entries)
    unknown = [name for name in names if name not in ALL_AXES]
    if unknown or len(set(names)) != len(names) or not {"y", "x"} <= set(names):
        raise ImageError(
            f"The axes of '{place}' are {', '.join(names)}. They must be y and x, with any of "
            "t, c and z, each once. Remove or rename the others."
        )
    return names, tuple(_unit(entry.get("unit")) for entry in entries)


def _unit(content: object) -> str | None:
    """Return a unit as it is written, None where there is none."""
    if content is None or (isinstance(content, str) and not content.strip()):
        return None
    return content.strip() if isinstance(content, str) else reprlib.repr(content)


def _factors(
    axes: Sequence[str], units: Sequence[str | None], notes: list[str], place: str
) -> list[float]:
    """Return what brings each axis to micrometre, 1 for time and channels; append notes."""
    factors = [1.0] * len(axes)
    without: list[str] = []
    for i, (axis, unit) in enumerate(zip(axes, units, strict=True)):
        if axis not in AXES:
            continue
        factor = None if unit is None else micrometres(unit)
        if factor is not None:
            factors[i] = factor
        elif unit is None:
            without.append(axis)
        elif unit.lower() in _NO_UNITS:
            notes.append(f"The unit '{unit}' of axis {axis} is no length; micrometre is assumed.")
        else:
            raise ImageError(
                f"Unknown unit '{unit}' of axis '{axis}' of '{place}'. It must be one of "
                f"{', '.join(LENGTH_UNITS)}, a symbol such as um, nm or mm, or pixel. Correct the "
                "metadata."
            )
    if without:
        notes.append(f"No unit is given for {', '.join(without)}; micrometre is assumed.")
    return factors


def _time(
    axes: Sequence[str], units: Sequence[str | None], dataset: Dataset, notes: list[str]
) -> tuple[float, str | None]:
    """Return the step between times and its unit, 1 where it is none; append a note."""
    if "t" not in axes:
        return 1.0, None
    step, unit = dataset.scale[axes.index("t")], units[axes.index("t")]
    if not _SMALLEST <= step <= _LARGEST:
        notes.append(f"The scale {step:g} of axis t is no step between times; 1 is assumed.")
        step = 1.0
    return step, unit


def _check_range(dataset: Dataset, axes: Sequence[str], where: str) -> None:
    """Check that positions in micrometre can be computed with."""
    for axis, step, offset in zip(axes, dataset.scale, dataset.translation, strict=True):
        if axis in AXES and not (_SMALLEST <= step <= _LARGEST and abs(offset) <= _LARGEST):
            raise ImageError(
                f"Invalid scale {step:g} or translation {offset:g} \N{MICRO SIGN}m of axis "
                f"'{axis}'. A scale must be from {_SMALLEST:g} to {_LARGEST:g} \N{MICRO SIGN}m, a "
                f"translation at most {_LARGEST:g} \N{MICRO SIGN}m. Correct the metadata of "
                f"{where}."
            )


def _chain(
    own: object, shared: object, axes: Sequence[str], where: str
) -> tuple[list[float], list[float]]:
    """Return scale and translation of a level's transforms, then the image's, one an axis."""
    scale, translation = [1.0] * len(axes), [0.0] * len(axes)
    scaled = False
    for transform in [*_listed(own, where), *_listed(shared, where)]:
        kind = transform.get("type")
        if kind == "identity":
            continue
        if kind not in ("scale", "translation"):
            raise ImageError(
                f"A coordinate transformation of {where} is of type '{kind}'. Only scale and "
                "translation are read. Write the image with these."
            )
        values = _numbers(transform.get(kind), kind, axes, where)
        if kind == "scale":
            scaled = True
            scale = [a * b for a, b in zip(scale, values, strict=True)]
            translation = [a * b for a, b in zip(translation, values, strict=True)]
        else:
            translation = [a + b for a, b in zip(translation, values, strict=True)]
    if not scaled:
        raise ImageError(f"The metadata of {where} have no scale. Write the image again with one.")
    for axis, step in zip(axes, scale, strict=True):
        if axis in AXES and not (math.isfinite(step) and step > 0):
            raise ImageError(
                f"Invalid scale {tuple(scale)}. Every scale must be > 0 and finite; axis "
                f"'{axis}' is {step}. Correct the metadata of {where}."
            )
    return scale, translation


def _listed(content: object, where: str) -> list[dict[str, Any]]:
    """Return a list of transformations, checked to be one."""
    if not (isinstance(content, list) and all(isinstance(entry, dict) for entry in content)):
        raise ImageError(
            f"The coordinateTransformations of {where} are not a list of objects. Write the "
            "image again."
        )
    return content


def _numbers(content: object, kind: str, axes: Sequence[str], where: str) -> list[float]:
    """Return the numbers of one transformation, one an axis."""
    if not isinstance(content, list):
        raise ImageError(
            f"A {kind} of {where} is {reprlib.repr(content)}, not a list of one number an axis."
        )
    shown = reprlib.repr(content)
    if len(content) != len(axes):
        raise ImageError(
            f"The {kind} {shown} of {where} has {len(content)} entries for the {len(axes)} "
            f"axes {', '.join(axes)}. One an axis is needed; correct the metadata."
        )
    numbers = []
    for axis, value in zip(axes, content, strict=True):
        number = _number(value)
        # Time and channels place no voxel; what stands there may be anything.
        if axis in AXES and (number is None or not (kind == "scale" or math.isfinite(number))):
            raise ImageError(
                f"The {kind} {shown} of {where} is no finite number for axis '{axis}': "
                f"{reprlib.repr(value)}. Correct the metadata."
            )
        numbers.append(1.0 if number is None else number)
    return numbers


def _number(value: object) -> float | None:
    """Return a number of JSON, None for what is none or exceeds float64."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
