"""OME-Zarr images, read and written: the public names of this room."""

from __future__ import annotations

from tilereg.io.creating import begin_image, create_image, plan_image
from tilereg.io.reading import Level, OmeZarrImage, ZarrReader, open_image
from tilereg.io.removing import remove_store
from tilereg.io.writing import ImageWriter

__all__ = [
    "ImageWriter",
    "Level",
    "OmeZarrImage",
    "ZarrReader",
    "begin_image",
    "create_image",
    "open_image",
    "plan_image",
    "remove_store",
]
