"""What bigstream is asked to do with each input: the best of its settings that we found, and why.

The order of steps is that of its ``easifish_registration_pipeline`` and its tutorial: feature
points and RANSAC, then gradient descent, globally and then in blocks. Numbers are those of its
tutorials and its shipped configuration where an input allows it; `about` says what was changed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tilereg.synthetic import BENCHMARK_FIELDS

Steps = tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True, kw_only=True)
class BigstreamSettings:
    """The steps of both alignments, as bigstream's functions take them."""

    about: str
    inputs: tuple[str, ...]
    """Deformations, or the real pair, that they are for."""
    global_steps: Steps
    """Of the whole images, in memory."""
    local_steps: Steps
    """Of each block."""
    blocksize: tuple[int, int, int]
    """Voxels; half a block is added on every side, bigstream's default."""

    def job(self) -> dict[str, Any]:
        """Return what the runner reads."""
        return {
            "global_steps": self.global_steps,
            "local_steps": self.local_steps,
            "blocksize": self.blocksize,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


# Both from bigstream's configs/bigstream_config.yml.
_DEFORM = {
    "control_point_spacing": 50.0,
    "control_point_levels": (1,),
    "smooth_sigmas": (0.25,),
    "optimizer_args": {"learningRate": 2.5, "minStep": 0.0, "numberOfIterations": 25},
}
# From its introductory tutorial, which registers these very images.
_AFFINE = {
    "shrink_factors": (2,),
    "smooth_sigmas": (2.5,),
    "optimizer_args": {"learningRate": 0.25, "minStep": 0.0, "numberOfIterations": 400},
}

_CELLS = {"blob_sizes": (3, 10), "cc_radius": (6, 6, 6), "alignment_spacing": 4.0}

SETTINGS = {
    "bigstream": BigstreamSettings(
        about=(
            "Spots of radius 2-4 voxels. Its neighbourhoods of 12 voxels hold hardly any other "
            "spot here and leave planes out, so that it finds no affine: 4 x 40 x 40 globally, 4 "
            "x 16 x 16 in blocks, where partners are sought within 15 voxels. Blocks hold some "
            "hundred spots: 10 spots and 10 matches are enough for an affine, not 100 and 50. "
            "Deformation with the shipped configuration, alignment at every other voxel included "
            "(at every voxel it takes five times as long)."
        ),
        inputs=tuple(BENCHMARK_FIELDS),
        global_steps=(
            ("ransac", {"blob_sizes": (2, 4), "cc_radius": (4, 40, 40), "match_threshold": 0.5}),
        ),
        local_steps=(
            (
                "ransac",
                {
                    "blob_sizes": (2, 4),
                    "nspots": 1000,
                    "cc_radius": (4, 16, 16),
                    "match_threshold": 0.3,
                    "max_spot_match_distance": 15.0,
                    "fix_spots_count_threshold": 10,
                    "mov_spots_count_threshold": 10,
                    "point_matches_threshold": 10,
                },
            ),
            ("deform", {**_DEFORM, "alignment_spacing": 2.0}),
        ),
        blocksize=(32, 128, 128),
    ),
    "bigstream-easifish": BigstreamSettings(
        about=(
            "Its tutorial's own data, at the tutorial's lower resolution. Steps and numbers as in "
            "the tutorial, but the spots of RANSAC are sought at every other voxel (radius 3-10 "
            "there, neighbourhoods of 6), which finds them as well in an eighth of the time, and "
            "the deformation is that of the shipped configuration, aligned at every other voxel. "
            "The tutorial's blocks of 128 voxels, uncut along z, where the images have 149."
        ),
        inputs=("easifish",),
        global_steps=(("ransac", _CELLS), ("affine", _AFFINE)),
        local_steps=(
            ("ransac", {**_CELLS, "nspots": 1000}),
            ("deform", {**_DEFORM, "alignment_spacing": 4.0}),
        ),
        blocksize=(152, 128, 128),
    ),
}
