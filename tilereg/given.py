"""What a user gives beside the images: tables of spots and landmarks, as the settings say."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from tilereg.columns import Columns
from tilereg.config import Settings
from tilereg.errors import InputError, RegistrationError
from tilereg.grid import Grid
from tilereg.io.files import opened
from tilereg.io.landmarks import read_landmarks
from tilereg.io.tables import read_spots
from tilereg.points import Landmarks, Spots
from tilereg.stages import Source

__all__ = [
    "check",
    "columns_of",
    "files",
    "fingerprints",
    "landmarks_of",
    "read_back",
    "spots_in",
    "spots_of",
    "table_of",
]

_BLOCK = 1 << 20
_FEWEST_SPOTS = 4
# Fewer than this share of a table inside of its image are a mistake.
_LEAST_INSIDE = 0.1


def files(settings: Settings) -> dict[str, str]:
    """Return the files that the settings name, by what is in them."""
    named = {
        "fixed_spots": settings.spots.fixed,
        "moving_spots": settings.spots.moving,
        "landmarks": settings.match.landmarks,
    }
    return {name: file for name, file in named.items() if file is not None}


def check(settings: Settings) -> None:
    """Raise if settings of tables of spots are there, but no table.

    Raises
    ------
    InputError
        Naming them.
    """
    chosen = settings.spots
    if chosen.fixed is not None or chosen.moving is not None:
        return
    named = ("columns", "moving_columns", "spacing", "moving_spacing")
    idle = [f"spots.{name}" for name in named if getattr(chosen, name) is not None]
    idle += ["spots.unit"] if chosen.unit != "um" else []
    if idle:
        raise InputError(
            f"{', '.join(idle)} say how tables of spots are read, and none is given. Give "
            "spots.fixed or spots.moving (--fixed-spots, --moving-spots), or leave them out."
        )


def fingerprints(settings: Settings) -> dict[str, str]:
    """Return short texts that change with what the files hold that the settings name."""
    return {f"{name}_fingerprint": _content(file) for name, file in files(settings).items()}


def _content(location: str | Path) -> str:
    """Return a short text that changes with the content of a file."""
    digest = hashlib.sha256()
    with opened(location, "table") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()[:16]


def landmarks_of(settings: Settings) -> Landmarks | None:
    """Return the landmarks that the settings name; None where they name none.

    Raises
    ------
    InputError
        If the table cannot be used.
    """
    file = settings.match.landmarks
    return None if file is None else read_landmarks(file)


def columns_of(settings: Settings, role: str) -> Columns:
    """Return what the columns of the fixed or the moving table of spots are called."""
    chosen = settings.spots
    text = chosen.columns
    if role == "moving" and chosen.moving_columns is not None:
        text = chosen.moving_columns
    return Columns() if text is None else Columns.parse(text)


def table_of(settings: Settings, role: str) -> str | None:
    """Return the table of spots that takes the place of detection in an image, if there is one."""
    return settings.spots.fixed if role == "fixed" else settings.spots.moving


def read_back(location: str | Path, settings: Settings, role: str) -> Spots:
    """Read the spots of a run again, with the classes and weights that they were given with."""
    if table_of(settings, role) is None:
        return read_spots(location)
    given = columns_of(settings, role)
    return read_spots(
        location,
        Columns(
            spot_class="class" if given.spot_class else None,
            weight="weight" if given.weight else None,
        ),
    )


def spots_in(source: Source, location: str, settings: Settings, role: str) -> tuple[Spots, int]:
    """Return a user's own spots of an image, and how many of them lie outside of it.

    Raises
    ------
    InputError
        If the table cannot be used, or hardly any spot lies inside of the image.
    RegistrationError
        If there are too few spots to match.
    """
    spots = spots_of(location, settings, role, source.reader.grid)
    if len(spots) < _FEWEST_SPOTS:
        raise RegistrationError(
            f"Too few spots: {len(spots)} in '{location}', at least {_FEWEST_SPOTS} are needed."
        )
    grid = source.image.grid
    if spots.ndim != grid.ndim:
        raise InputError(
            f"Positions in '{location}' have {spots.ndim} axes, {source} has {grid.ndim}. Choose "
            "as many columns (--columns)."
        )
    inside = int(grid.contains(spots.positions).sum())
    if inside < _LEAST_INSIDE * len(spots):
        low, high = (side.round(3).tolist() for side in grid.bounds)
        raise InputError(
            f"{len(spots) - inside} of {len(spots)} spots in '{location}' lie outside of {source}, "
            f"which reaches from {low} to {high} um. Positions are in um, or voxels with --voxels "
            "(spots.unit); check the order of the columns too."
        )
    return spots, len(spots) - inside


def spots_of(
    location: str | Path, settings: Settings, role: str, voxels: Grid | None = None
) -> Spots:
    """Return a user's own spots of the fixed or the moving image, in micrometre.

    Parameters
    ----------
    location : str or Path
        CSV or Parquet file.
    settings : Settings
        The section `spots` says what its columns and its units are.
    role : str
        'fixed' or 'moving'.
    voxels : Grid, optional
        Of the image, where there is one.

    Raises
    ------
    InputError
        If the table cannot be used, or holds voxels of unknown size.
    """
    chosen = settings.spots
    spots = read_spots(location, columns_of(settings, role))
    spacing = chosen.spacing
    if role == "moving" and chosen.moving_spacing is not None:
        spacing = chosen.moving_spacing
    if spacing is not None:
        size = spacing if isinstance(spacing, tuple) else (spacing,) * spots.ndim
        if len(size) != spots.ndim:
            raise InputError(
                f"spots.spacing has {len(size)} numbers, positions in '{location}' have "
                f"{spots.ndim} axes. Give one number, or one an axis."
            )
        voxels = Grid(shape=(1,) * spots.ndim, spacing=size)
    elif chosen.unit == "um":
        return spots
    if voxels is None:
        raise InputError(
            f"Positions in '{location}' are voxels (spots.unit), and there is no image that says "
            "how large they are. Set spots.spacing (--spacing)."
        )
    if voxels.ndim != spots.ndim:
        raise InputError(
            f"Positions in '{location}' have {spots.ndim} axes, the {role} image has "
            f"{voxels.ndim}. Choose as many columns (spots.columns)."
        )
    # Lengths beside them are in voxels too, or not: nothing says which.
    unknown = np.full(len(spots), np.nan)
    return replace(
        spots, positions=voxels.to_world(spots.positions), sigma=unknown, localisation=unknown
    )
