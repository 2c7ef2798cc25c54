"""What a user gives beside the images: tables of spots and landmarks, as the settings say."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from tilereg.columns import Columns
from tilereg.config import Settings
from tilereg.errors import InputError
from tilereg.grid import Grid
from tilereg.io.files import opened
from tilereg.io.landmarks import read_landmarks
from tilereg.io.tables import read_spots
from tilereg.points import Landmarks, Spots

__all__ = ["columns_of", "fingerprints", "landmarks_of", "spots_of"]

_BLOCK = 1 << 20


def fingerprints(settings: Settings) -> dict[str, str]:
    """Return short texts that change with what the files hold that the settings name."""
    files = {"landmarks": settings.match.landmarks}
    return {f"{name}_fingerprint": _content(file) for name, file in files.items() if file}


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
