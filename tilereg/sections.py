"""The sections of the settings.

Where a default is None, the value is worked out from the data.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tilereg.errors import SettingsError
from tilereg.fields.model import PARAMETERS, FieldModel, misuse
from tilereg.setting import (
    CHANNEL_RULE,
    COLUMNS_RULE,
    LENGTHS_RULE,
    MASK_RULE,
    REGION_RULE,
    TABLE_RULE,
    VOXELS_RULE,
    ByteSize,
    Channel,
    Channels,
    ColumnsText,
    Count,
    Index,
    NotNegative,
    PerAxis,
    Positive,
    Region,
    Text,
    VoxelsPerAxis,
    explain,
    setting,
)
from tilereg.toml import dump_value

__all__ = [
    "SECTIONS",
    "ComputeSettings",
    "DetectSettings",
    "FieldSettings",
    "InitialSettings",
    "InputSettings",
    "MatchSettings",
    "OutputSettings",
    "SpotsSettings",
    "Table",
    "WarpSettings",
]


class Table(BaseModel):
    """A table of settings that explains what is wrong with it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    section: ClassVar[str] = ""

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(" ".join(explain(error, self.section, values, SECTIONS))) from None


class InputSettings(Table):
    """What is read of the two images."""

    section: ClassVar[str] = "input"
    channel: Channel | None = setting(
        None,
        CHANNEL_RULE,
        "Channel in which both images show the same spots. Default: the first.",
    )
    fixed_channel: Channel | None = setting(
        None, CHANNEL_RULE, "The same for the fixed image alone; goes before `channel`."
    )
    moving_channel: Channel | None = setting(
        None, CHANNEL_RULE, "The same for the moving image alone; goes before `channel`."
    )
    level: Index = setting(
        0, "an integer >= 0", "Pyramid level in which spots are sought; 0 is the finest."
    )
    time: Index = setting(0, "an integer >= 0", "Time point that is registered.")


class DetectSettings(Table):
    """How spots are found."""

    section: ClassVar[str] = "detect"
    sigma: Positive | PerAxis | None = setting(
        None,
        LENGTHS_RULE,
        "Scale of the spots in um: the deviation of a Gaussian. Default: chosen from the data.",
    )
    threshold: Positive | None = setting(
        None,
        "a number > 0",
        "Least response of a spot. Default: estimated once for the whole image.",
    )
    polarity: Literal["bright", "dark"] = setting(
        "bright", "'bright' or 'dark'", "Whether spots are brighter or darker than around them."
    )
    max_spots: Count | None = setting(
        None, "an integer >= 1", "Keep at most this many spots, the strongest. Default: all."
    )


class SpotsSettings(Table):
    """Tables of spots that were found by other means."""

    section: ClassVar[str] = "spots"
    fixed: Text | None = setting(
        None,
        TABLE_RULE,
        "Table of the spots of the fixed image, in which none are sought then.",
    )
    moving: Text | None = setting(None, TABLE_RULE, "The same of the moving image.")
    columns: ColumnsText | None = setting(
        None,
        COLUMNS_RULE,
        "What the columns of the tables are called: those of the positions, the class of a spot "
        "(only like spots are matched), and its weight. Default: z, y, x alone.",
    )
    moving_columns: ColumnsText | None = setting(
        None, COLUMNS_RULE, "The same for the moving table alone; goes before `columns`."
    )
    unit: Literal["um", "voxel"] = setting(
        "um",
        "'um' or 'voxel'",
        "Whether positions are micrometre, or voxels of the image at `input.level`.",
    )
    spacing: Positive | PerAxis | None = setting(
        None,
        LENGTHS_RULE,
        "Size in um of the unit of the tables: positions are multiplied by it.",
    )
    moving_spacing: Positive | PerAxis | None = setting(
        None, LENGTHS_RULE, "The same for the moving table alone; goes before `spacing`."
    )


class InitialSettings(Table):
    """Where matching starts."""

    section: ClassVar[str] = "initial"
    method: Literal["auto", "none", "file"] = setting(
        "auto",
        "'auto', 'none' or 'file'",
        "Search for a first transform, start from the images' own coordinates, or read `file`.",
    )
    file: Text | None = setting(
        None,
        "the location of a transform that tilereg wrote",
        "First transform, fixed to moving; needs method 'file'.",
    )
    max_rotation: Annotated[float, Field(ge=0, le=180)] | None = setting(
        None, "a number from 0 to 180 (degrees)", "Largest rotation in degrees. Default: any."
    )

    @model_validator(mode="after")
    def _check_file(self) -> Self:
        if (self.method == "file") != (self.file is not None):
            raise ValueError(
                f"initial.method = '{self.method}' and initial.file = {dump_value(self.file)} "
                "contradict each other. Method 'file' needs a file, and only it uses one."
            )
        return self


class MatchSettings(Table):
    """How spots are matched."""

    section: ClassVar[str] = "match"
    method: Literal[
        "cpd", "cpd-dense", "ransac", "icp", "transport", "probreg", "probreg-filterreg"
    ] = setting(
        "cpd",
        "'cpd', 'cpd-dense', 'ransac', 'icp', 'transport', 'probreg' or 'probreg-filterreg'",
        "The matching engine: Coherent Point Drift over all spots, the same as published for small "
        "clouds, or another to compare with; the last two need the extra tilereg[probreg].",
    )
    w: Annotated[float, Field(gt=0, lt=1)] | None = setting(
        None,
        "a number between 0 and 1",
        "Share of spots without a partner to start from; it is always re-estimated. Default: 0.9. "
        "Methods icp, ransac and transport have no use for it.",
    )
    beta: Positive | None = setting(
        None,
        "a number > 0 (um)",
        "Coherence width in um: spots closer than this move together. Default: from the density.",
    )
    max_iterations: Count = setting(100, "an integer >= 1", "Most iterations of a pass.")
    held_out: Annotated[float, Field(ge=0, lt=0.5)] = setting(
        0.05,
        "a number from 0 up to, but not including, 0.5",
        "Share of the fixed spots that only judge the fit: at least 50 of them, or a fifth; none "
        "of fewer than 60 spots.",
    )
    seed: Index = setting(0, "an integer >= 0", "Seed of every random choice.")
    seams: bool = setting(
        True,
        "true or false",
        "Whether jumps between badly stitched fields of view are sought, named and followed.",
    )
    tile_spots: Literal["auto", "none"] | Annotated[int, Field(ge=1000)] = setting(
        "auto",
        "'auto', 'none' or an integer >= 1000",
        "How many fixed spots a tile owns where clouds are matched tile by tile; 'none' matches "
        "them in one piece, and 'auto' does so up to two million spots, else in tiles of 200000.",
    )
    landmarks: Text | None = setting(
        None,
        TABLE_RULE,
        "Table of known pairs in um: columns fixed_z, fixed_y, fixed_x, moving_z, .. and, where "
        "they differ, weight. They give the first transform and pull the field.",
    )
    region: Region | None = setting(
        None,
        REGION_RULE,
        "Box of the fixed image, in um, outside of which spots take no part in the match.",
    )
    moving_region: Region | None = setting(None, REGION_RULE, "The same of the moving image.")
    mask: Text | None = setting(
        None,
        MASK_RULE,
        "Mask in the world of the fixed image: spots where it is zero take no part in the match.",
    )
    moving_mask: Text | None = setting(
        None, MASK_RULE, "The same in the world of the moving image."
    )


class FieldSettings(Table):
    """How the field is fitted to the matches."""

    section: ClassVar[str] = "field"
    model: Literal["auto", "coherent", "kriging", "thin-plate", "radial", "polynomial"] = setting(
        "auto",
        "'auto', 'coherent', 'kriging', 'thin-plate', 'radial' or 'polynomial'",
        "The field of the drift itself (coherent), one through the matched pairs whose stiffness "
        "is chosen by predicting each pair from the others (kriging), a robust thin-plate spline "
        "on a lattice, an exact sum of radial functions around control points, a polynomial of "
        "low degree, or 'auto': kriging, unless held-out pairs clearly prefer the first.",
    )
    spacing: Positive | None = setting(
        None,
        "a number > 0 (um)",
        "Distance of the nodes of the thin-plate spline in um. Default: from the density of pairs.",
    )
    smoothing: NotNegative | None = setting(
        None,
        "a number >= 0",
        "Weight of the bending energy of the models thin-plate (in mean spacings of the pairs) and "
        "radial (as scipy's RBFInterpolator has it, in um). Default: chosen by cross-validation.",
    )
    kernel: Literal["thin_plate_spline", "linear", "cubic", "quintic", "gaussian"] | None = setting(
        None,
        "'thin_plate_spline', 'linear', 'cubic', 'quintic' or 'gaussian'",
        "Function of the model radial. Default: thin_plate_spline.",
    )
    degree: Annotated[int, Field(ge=1, le=3)] | None = setting(
        None,
        "1, 2 or 3",
        "Degree of the model polynomial (default: chosen by cross-validation), and of the "
        "polynomial beside the functions of the model radial (default: the least).",
    )
    beta: Positive | None = setting(
        None,
        "a number > 0 (um)",
        "Width of the gaussian kernel in um. Default: chosen by cross-validation.",
    )
    control_points: Annotated[int, Field(ge=25, le=5000)] | None = setting(
        None,
        "an integer from 25 to 5000",
        "Most centres of the model radial, farthest apart among the pairs. Default: 2000.",
    )
    tolerance: Positive | None = setting(
        None,
        "a number > 0 (um)",
        "Largest error in um of the lattice that holds the model radial. Default: a hundredth of "
        "the mean spacing of the pairs.",
    )

    @property
    def fitted(self) -> FieldModel | None:
        """The model that is fitted to the pairs; None where the matching has fitted its own."""
        given = {key: getattr(self, key) for key in PARAMETERS}
        if self.model == "auto" and (self.smoothing is not None or self.spacing is not None):
            return FieldModel(name="thin-plate", **given)
        if self.model in ("auto", "coherent", "kriging"):
            return None
        return FieldModel(name=self.model, **given)

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        given = [key for key in PARAMETERS if getattr(self, key) is not None]
        # Of the thin-plate spline alone, two say that it is wanted.
        is_plate = self.model == "auto" and not set(given) - {"smoothing", "spacing"}
        name = "thin-plate" if is_plate else self.model
        problem = misuse(name, given, self.kernel, self.degree, prefix="field.")
        if problem is not None:
            raise ValueError(problem)
        return self


class WarpSettings(Table):
    """How the moving image is resampled."""

    section: ClassVar[str] = "warp"
    order: Literal[0, 1, 3] = setting(
        1, "0 (nearest), 1 (linear) or 3 (cubic)", "Order of the interpolation; labels use 0."
    )
    fill_value: float = setting(0.0, "a finite number", "Value outside the moving image.")
    channels: Literal["all"] | Channels = setting(
        "all",
        "'all', or a list of channels' numbers or names",
        "Channels of the moving image that are written.",
    )


class OutputSettings(Table):
    """How the registered image is stored."""

    section: ClassVar[str] = "output"
    version: Literal["0.5", "0.4"] = setting("0.5", "'0.5' or '0.4'", "Version of OME-Zarr.")
    chunks: VoxelsPerAxis | None = setting(
        None, VOXELS_RULE, "Chunk in voxels. Default: chosen by size."
    )
    shards: VoxelsPerAxis | None = setting(
        None,
        VOXELS_RULE,
        "Shard in voxels, a multiple of the chunk; needs version 0.5. Default: no shards.",
    )
    levels: Count | None = setting(
        None, "an integer >= 1", "Number of pyramid levels. Default: until one is small."
    )
    compression: Literal["zstd", "blosc-lz4", "blosc-zstd", "gzip", "none"] = setting(
        "zstd", "'zstd', 'blosc-lz4', 'blosc-zstd', 'gzip' or 'none'", "Compression of the chunks."
    )

    @model_validator(mode="after")
    def _check_shards(self) -> Self:
        if self.shards is not None and self.version == "0.4":
            raise ValueError(
                f"output.shards = {dump_value(self.shards)} needs output.version = '0.5', "
                "not '0.4'. Leave the shards out, or write version 0.5."
            )
        return self


class ComputeSettings(Table):
    """Where the work is done."""

    section: ClassVar[str] = "compute"
    workers: Count | None = setting(
        None,
        "an integer >= 1",
        "Worker processes on this machine. Default: threads of this process.",
    )
    memory: ByteSize | None = setting(
        None, "a size such as '4GB' or '512MiB'", "Memory of one worker. Default: an equal share."
    )
    scheduler: Text | None = setting(
        None,
        "an address such as 'tcp://host:8786', or 'dask' for the one in Dask's configuration",
        "Dask scheduler that does the work.",
    )
    scheduler_file: Text | None = setting(
        None, "the path of a file that a scheduler wrote", "Scheduler file of a Dask cluster."
    )

    @model_validator(mode="after")
    def _check_one_place(self) -> Self:
        places = ("workers", "scheduler", "scheduler_file")
        given = [f"compute.{key}" for key in places if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} are given together. "
                "Only one place can do the work: keep one of them."
            )
        return self


SECTIONS: dict[str, type[Table]] = {
    table.section: table
    for table in (
        InputSettings,
        DetectSettings,
        SpotsSettings,
        InitialSettings,
        MatchSettings,
        FieldSettings,
        WarpSettings,
        OutputSettings,
        ComputeSettings,
    )
}
