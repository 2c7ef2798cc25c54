"""What a user gives beside the images: tables of spots and landmarks, as the settings say."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilereg.columns import Columns
from tilereg.config import Settings
from tilereg.errors import InputError, RegistrationError
from tilereg.grid import Grid
from tilereg.io.files import opened
from tilereg.io.landmarks import read_landmarks
from tilereg.io.masks import is_inside
from tilereg.io.ome_zarr import open_image
from tilereg.io.tables import read_spots
from tilereg.matching import Match
from tilereg.points import Correspondences, Landmarks, Spots
from tilereg.stages import Source, fingerprint, match_clouds
from tilereg.transform import Affine

__all__ = [
    "Clouds",
    "check",
    "clouds_of",
    "columns_of",
    "files",
    "fingerprints",
    "landmarks_of",
    "match_used",
    "read_back",
    "spots_in",
    "spots_of",
    "table_of",
]

_ROLES = ("fixed", "moving")
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
        **{f"{role}_mask": _mask(settings, role) for role in _ROLES},
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
    return {
        f"{name}_fingerprint": (
            fingerprint(open_image(file)) if name.endswith("mask") else _content(file)
        )
        for name, file in files(settings).items()
    }


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


@dataclass(frozen=True, eq=False)
class Clouds:
    """The spots of both images, and which of them take part in the match.

    Parameters
    ----------
    fixed, moving : Spots
    inside : pair of (N,), (M,) bool ndarrays
        False for spots outside of a region or mask.
    """

    fixed: Spots
    moving: Spots
    inside: tuple[NDArray[np.bool_], NDArray[np.bool_]]

    @property
    def used(self) -> tuple[Spots, Spots]:
        """The spots that take part."""
        return self.fixed.take(self.inside[0]), self.moving.take(self.inside[1])

    @property
    def num_used(self) -> tuple[int, int]:
        """How many spots of either image take part."""
        return int(self.inside[0].sum()), int(self.inside[1].sum())

    @property
    def num_outside(self) -> dict[str, int]:
        """How many spots of either image take no part."""
        return {
            role: int((~inside).sum()) for role, inside in zip(_ROLES, self.inside, strict=True)
        }

    def rows(self, pairs: Correspondences) -> Correspondences:
        """Return pairs of the spots that take part as rows of all spots."""
        fixed, moving = (np.flatnonzero(inside) for inside in self.inside)
        return replace(
            pairs, fixed_index=fixed[pairs.fixed_index], moving_index=moving[pairs.moving_index]
        )

    @property
    def note(self) -> str:
        """How many spots take no part, in words; nothing where all do."""
        parts = [
            f"{count:,} of {len(spots):,} {role} spots"
            for (role, count), spots in zip(
                self.num_outside.items(), (self.fixed, self.moving), strict=True
            )
            if count
        ]
        return f"{' and '.join(parts)} lie outside of the region and take no part" if parts else ""


def clouds_of(fixed: Spots, moving: Spots, settings: Settings) -> Clouds:
    """Choose the spots inside of the regions and masks that the settings name.

    Raises
    ------
    ImageError, InputError
        If a mask cannot be used, a region or mask has other axes than the spots, or no spot is
        left.
    """
    inside = [
        _inside(spots, settings, role) for spots, role in zip((fixed, moving), _ROLES, strict=True)
    ]
    return Clouds(fixed, moving, (inside[0], inside[1]))


def match_used(
    clouds: Clouds, settings: Settings, start: Affine | None, domain: Grid | None
) -> Match:
    """Match the spots that take part, with the landmarks; pairs are rows of all spots."""
    match = match_clouds(*clouds.used, settings, start, domain, landmarks_of(settings))
    return replace(match, correspondences=clouds.rows(match.correspondences))


def _inside(spots: Spots, settings: Settings, role: str) -> NDArray[np.bool_]:
    """Tell which spots lie inside of region and mask."""
    chosen = settings.match
    region = chosen.region if role == "fixed" else chosen.moving_region
    inside = np.ones(len(spots), dtype=bool)
    named = []
    if region is not None:
        low, high = np.asarray(region)
        if len(low) != spots.ndim:
            raise InputError(
                f"The region of the {role} image has {len(low)} axes, the spots have {spots.ndim}. "
                "Give corners of as many axes."
            )
        inside &= ((spots.positions >= low) & (spots.positions <= high)).all(axis=1)
        named.append(f"the region from {list(region[0])} to {list(region[1])} um")
    if (mask := _mask(settings, role)) is not None:
        inside &= is_inside(open_image(mask), spots.positions, time=settings.input.time)
        named.append(f"the mask '{mask}'")
    if len(spots) and not inside.any():
        low, high = spots.positions.min(axis=0), spots.positions.max(axis=0)
        raise InputError(
            f"No {role} spot lies inside of {' and '.join(named)}. The spots reach from "
            f"{low.round(3).tolist()} to {high.round(3).tolist()} um; regions are in um, masks in "
            "the world of the image. Choose another."
        )
    return inside


def _mask(settings: Settings, role: str) -> str | None:
    """Return the mask of an image, if there is one."""
    return settings.match.mask if role == "fixed" else settings.match.moving_mask
