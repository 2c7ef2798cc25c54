"""How a benchmark pair differs from the published ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilereg.errors import InputError

__all__ = ["PUBLISHED", "BenchmarkVariant"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkVariant:
    """How a pair differs from the published benchmark; the defaults are that benchmark.

    Every option leaves what the others decide as it is: the spots of a denser tissue include
    those of a sparser one, a larger drop-out misses the same spots and more, and so on.

    Raises
    ------
    InputError
        If a number is out of range.
    """

    density: float = 1.0
    """Factor on the number of spots, above 0."""
    drop_out: float = 0.0
    """Share of the spots that an image does not show, drawn for either on its own, below 1."""
    spurious: float = 0.0
    """Spots that only one image shows, as a share of the tissue's, for either on its own."""
    jitter: float = 0.0
    """Gaussian error an axis of every spot's place in the moving image, in the reference's frame,
    in voxels of y and x."""
    amplitude_to_noise: float | None = None
    """200 / the noise's deviation; infinite without noise. None: as published, deviation 7.07."""
    own_noise: bool = False
    """Whether the moving image has noise of its own; as published it is the reference's, warped."""
    displacement: float | None = None
    """Largest displacement in median distances from a spot of the tissue to its nearest, in place
    of the preset's."""
    rotation: float = 0.0
    """Degrees about z through the volume's middle, on top of the deformation: from moving to
    reference x turns towards y."""
    z_step: float = 1.0
    """How much longer voxels are in z, at least 1: planes lie at 0, z_step, 2 z_step, ... of the
    same tissue."""
    jump: float = 0.0
    """Stitching error: each of 2 x 2 fields of view of the moving image is shifted by a random
    vector of this length in y and x, in voxels."""
    subpixel: bool = False
    """Whether the spots lie between voxels; as published they are at voxels."""

    def __post_init__(self) -> None:
        """Check all numbers."""
        rules = {
            "density": (self.density > 0, "above 0"),
            "drop_out": (0 <= self.drop_out < 1, "from 0 to below 1"),
            "spurious": (self.spurious >= 0, ">= 0"),
            "jitter": (self.jitter >= 0, ">= 0"),
            "displacement": (self.displacement is None or self.displacement >= 0, ">= 0"),
            "rotation": (True, "in degrees"),
            "z_step": (self.z_step >= 1, ">= 1"),
            "jump": (self.jump >= 0, ">= 0"),
        }
        wrong = [
            f"{name} {value} (must be {rule})"
            for name, (good, rule) in rules.items()
            if (value := getattr(self, name)) is not None and not (good and math.isfinite(value))
        ]
        ratio = self.amplitude_to_noise
        if ratio is not None and not ratio > 0:
            wrong.append(f"amplitude_to_noise {ratio} (must be above 0)")
        if wrong:
            raise InputError(
                f"Invalid variant of the benchmark: {', '.join(wrong)}. Use finite numbers in "
                "these ranges."
            )


PUBLISHED = BenchmarkVariant()
"""The benchmark as published."""
