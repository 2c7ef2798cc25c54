"""Diffeomorphic demons of SimpleITK (Vercauteren et al. 2009), on the images' intensity.

Points and fields are in voxels, "unit spacing" as published; the world comes in only at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.methods.scene import Floats, Recovered, Scene

ITERATIONS = 50
_LEVELS = (8, 4, 2, 1)
_FEWEST_VOXELS = 16


def as_published(scene: Scene) -> Recovered:
    """Run 50 iterations at full resolution, with the published calls.

    Of its two smoothings only that of the field takes place: `SetUpdateFieldStandardDeviations`
    has no effect unless `SmoothUpdateFieldOn` is called.
    """
    fixed, moving = _images(scene)
    return _recovered(scene, _filter().Execute(fixed, moving))


def in_a_pyramid(scene: Scene) -> Recovered:
    """Run 50 iterations at every level of an anti-aliased pyramid, coarse to fine.

    Images are smoothed with half the shrink factor before they are sampled, axes of few voxels
    are shrunk less, and the field of a level starts the next.
    """
    fixed, moving = _images(scene)
    field = None
    for factor in _LEVELS:
        small_fixed, small_moving = (_shrunk(image, factor) for image in (fixed, moving))
        demons = _filter()
        if field is None:
            field = demons.Execute(small_fixed, small_moving)
        else:
            start = sitk.Resample(
                field, small_fixed, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID(), True
            )
            field = demons.Execute(small_fixed, small_moving, start)
    return _recovered(scene, field)


def _images(scene: Scene) -> tuple[Any, Any]:
    """Return both images as float32, spacing one."""
    fixed, moving = (
        sitk.GetImageFromArray(np.asarray(image, dtype=np.float32))
        for image in (scene.reference, scene.moving)
    )
    return fixed, moving


def _filter() -> Any:
    """Return the filter as published."""
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfIterations(ITERATIONS)
    demons.SetStandardDeviations(1.0)
    demons.SetUpdateFieldStandardDeviations(0.5)
    return demons


def _shrunk(image: Any, factor: int) -> Any:
    """Return an image smoothed and sampled at every `factor`-th voxel, where it has enough."""
    factors = [max(1, min(factor, n // _FEWEST_VOXELS)) for n in image.GetSize()]
    for axis, shrink in enumerate(factors):
        if shrink > 1:
            smooth = sitk.RecursiveGaussianImageFilter()
            smooth.SetSigma(0.5 * shrink)
            smooth.SetDirection(axis)
            image = smooth.Execute(image)
    return sitk.Shrink(sitk.Cast(image, sitk.sitkFloat32), factors)


def _recovered(scene: Scene, field: Any) -> Recovered:
    """Return the map of a displacement field and the image that it registers."""
    # SimpleITK's components are x, y, z; the array's axes are z, y, x already.
    voxels: Floats = np.moveaxis(sitk.GetArrayFromImage(field)[..., ::-1], -1, 0)

    def map_(points: Floats) -> Floats:
        index = points / scene.spacing
        shift = [ndimage.map_coordinates(u, index.T, order=1, mode="nearest") for u in voxels]
        return np.asarray((index + np.stack(shift, axis=1)) * scene.spacing)

    return Recovered(map=map_, image=_warped(scene, voxels), details={"iterations": ITERATIONS})


def _warped(scene: Scene, voxels: Floats) -> NDArray[np.float32]:
    """Return the moving image at every voxel plus its displacement, zero outside."""
    image = np.asarray(scene.moving, dtype=np.float32)
    out = np.empty(image.shape, dtype=np.float32)
    plane = np.indices(image.shape[1:])
    for z in range(len(image)):
        at = np.stack([np.full(plane[0].shape, z), *plane]) + voxels[:, z]
        ndimage.map_coordinates(image, at, output=out[z], order=1, cval=0.0)
    return out
