"""Registration of rounds of large fluorescence volumes by their spots.

Everything is in micrometre, axes in the order z, y, x (y, x in 2D). The fixed image defines the
output grid; a transform maps fixed to moving, ``x_moving = A x_fixed + b + u(x_fixed)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilereg.config import Settings
    from tilereg.errors import (
        ImageError,
        InputError,
        OutputError,
        RegistrationError,
        ResourceError,
        SettingsError,
        TileregError,
    )
    from tilereg.field import fit_field
    from tilereg.fields.fit import ModelFit, fit_model
    from tilereg.fields.model import FieldModel
    from tilereg.grid import Grid
    from tilereg.io.ome_zarr import create_image, open_image
    from tilereg.io.transforms import read_transform, write_transform
    from tilereg.lazy.detect import detect_spots
    from tilereg.lazy.warp import warp
    from tilereg.matching import Match, match_spots
    from tilereg.pipeline import Run, register
    from tilereg.points import Correspondences, Spots
    from tilereg.sampling import farthest_points
    from tilereg.tiled import match_tiles
    from tilereg.transform import Affine, DisplacementField, Transform

__version__ = "0.1.0"

# Where each public name lives: importing tilereg is quick, and what is not used is not loaded.
_PLACES = {
    "Affine": "tilereg.transform",
    "Correspondences": "tilereg.points",
    "DisplacementField": "tilereg.transform",
    "FieldModel": "tilereg.fields.model",
    "Grid": "tilereg.grid",
    "ImageError": "tilereg.errors",
    "InputError": "tilereg.errors",
    "Match": "tilereg.matching",
    "ModelFit": "tilereg.fields.fit",
    "OutputError": "tilereg.errors",
    "RegistrationError": "tilereg.errors",
    "ResourceError": "tilereg.errors",
    "Run": "tilereg.pipeline",
    "Settings": "tilereg.config",
    "SettingsError": "tilereg.errors",
    "Spots": "tilereg.points",
    "TileregError": "tilereg.errors",
    "Transform": "tilereg.transform",
    "create_image": "tilereg.io.ome_zarr",
    "detect_spots": "tilereg.lazy.detect",
    "farthest_points": "tilereg.sampling",
    "fit_field": "tilereg.field",
    "fit_model": "tilereg.fields.fit",
    "match_spots": "tilereg.matching",
    "match_tiles": "tilereg.tiled",
    "open_image": "tilereg.io.ome_zarr",
    "read_transform": "tilereg.io.transforms",
    "register": "tilereg.pipeline",
    "warp": "tilereg.lazy.warp",
    "write_transform": "tilereg.io.transforms",
}

__all__ = [
    "Affine",
    "Correspondences",
    "DisplacementField",
    "FieldModel",
    "Grid",
    "ImageError",
    "InputError",
    "Match",
    "ModelFit",
    "OutputError",
    "RegistrationError",
    "ResourceError",
    "Run",
    "Settings",
    "SettingsError",
    "Spots",
    "TileregError",
    "Transform",
    "create_image",
    "detect_spots",
    "farthest_points",
    "fit_field",
    "fit_model",
    "match_spots",
    "match_tiles",
    "open_image",
    "read_transform",
    "register",
    "warp",
    "write_transform",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'tilereg' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value
