"""The options that several sub-commands share, and the settings that they make.

Typer has no groups of options: here a group is a frozen dataclass, and `grouped` gives a
command the fields of its groups as options of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from tilereg.config import Settings

__all__ = [
    "Channel",
    "Choice",
    "DryRun",
    "FixedChannel",
    "Image",
    "Known",
    "Level",
    "MovingChannel",
    "Overwrite",
    "OwnSpots",
    "Place",
    "Resume",
    "Tables",
    "Talk",
    "Transform",
    "argument",
    "channel_setting",
    "grouped",
    "joined",
    "refuse_together",
    "resolve_settings",
]

Image = Annotated[str, typer.Argument(metavar="IMAGE", show_default=False, help="OME-Zarr image.")]
Transform = Annotated[
    str,
    typer.Argument(
        metavar="TRANSFORM", show_default=False, help="Folder of a run, or its transform.ome.zarr."
    ),
]
Channel = Annotated[
    str | None,
    typer.Option(metavar="CHANNEL", help="Channel with the spots: its number, from 0, or name."),
]
FixedChannel = Annotated[
    str | None, typer.Option(metavar="CHANNEL", help="The same for FIXED alone.")
]
MovingChannel = Annotated[
    str | None, typer.Option(metavar="CHANNEL", help="The same for MOVING alone.")
]
Level = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", help="Pyramid level in which spots are sought; 0 is the finest."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the work and the memory it needs; do nothing.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run into OUTPUT stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]

_REPLACED = {
    "input.channel": ("input.fixed_channel", "input.moving_channel"),
    "compute.workers": ("compute.scheduler", "compute.scheduler_file"),
    "compute.scheduler": ("compute.workers", "compute.scheduler_file"),
    "compute.scheduler_file": ("compute.workers", "compute.scheduler"),
}
"""What an option takes out of the settings, so that it is never overruled by less."""


@dataclass(frozen=True, kw_only=True)
class Talk:
    """What is said, and how."""

    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where in the code an error comes from.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Where settings come from."""

    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.toml",
            help="Read settings from this file; 'tilereg settings --toml' prints a template.",
        ),
    ] = None
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="Change one setting, as in detect.sigma=0.4; may be repeated. 'tilereg settings' "
            "lists all. Overrides --config; an option such as --level overrides both.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Tables:
    """How tables of spots are read."""

    columns: Annotated[
        str | None,
        typer.Option(
            metavar="ROLE=NAME,...",
            help="What the columns of the tables are called, as in z=centroid-0,y=centroid-1,"
            "x=centroid-2,class=gene.",
        ),
    ] = None
    moving_columns: Annotated[
        str | None, typer.Option(metavar="ROLE=NAME,...", help="The same for the moving table.")
    ] = None
    spacing: Annotated[
        str | None,
        typer.Option(
            metavar="UM[,UM,UM]",
            help="Size of a voxel where positions are voxels: one number, or one an axis.",
        ),
    ] = None
    moving_spacing: Annotated[
        str | None, typer.Option(metavar="UM[,UM,UM]", help="The same for the moving table.")
    ] = None

    def chosen(self) -> dict[str, Any]:
        """Return the settings that these options stand for."""
        return {
            "spots.columns": self.columns,
            "spots.moving_columns": self.moving_columns,
            "spots.spacing": _lengths(self.spacing, "--spacing"),
            "spots.moving_spacing": _lengths(self.moving_spacing, "--moving-spacing"),
        }


@dataclass(frozen=True, kw_only=True)
class OwnSpots:
    """Tables that take the place of detection."""

    fixed_spots: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="CSV or Parquet table of spots of FIXED; none are sought there."
        ),
    ] = None
    moving_spots: Annotated[
        str | None, typer.Option(metavar="FILE", help="The same of MOVING.")
    ] = None
    voxels: Annotated[
        bool,
        typer.Option("--voxels", help="Positions in these tables are voxels of the image."),
    ] = False

    def chosen(self) -> dict[str, Any]:
        """Return the settings that these options stand for."""
        return {
            "spots.fixed": self.fixed_spots,
            "spots.moving": self.moving_spots,
            "spots.unit": "voxel" if self.voxels else None,
        }


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known before the match."""

    initial: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Start from this transform instead of searching."),
    ] = None
    landmarks: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="CSV or Parquet table of known pairs in um: fixed_z, .., moving_z, .., weight.",
        ),
    ] = None

    mask: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE",
            help="OME-Zarr mask or labels in the world of the fixed image: spots where it is zero "
            "take no part.",
        ),
    ] = None
    moving_mask: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="The same in the world of the moving image."),
    ] = None

    def chosen(self) -> dict[str, Any]:
        """Return the settings that these options stand for."""
        start = {"initial.method": "file", "initial.file": self.initial} if self.initial else {}
        masks = {"match.mask": self.mask, "match.moving_mask": self.moving_mask}
        return {"match.landmarks": self.landmarks, **masks, **start}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the work is done. Without any of these: threads of this process."""

    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Start N worker processes on this machine."),
    ] = None
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of each of these workers, for example 4GB."),
    ] = None
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Use a Dask cluster that runs already: tcp://host:8786."
        ),
    ] = None
    scheduler_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The same, by the file that its scheduler wrote."),
    ] = None

    def chosen(self) -> dict[str, Any]:
        """Return the settings that these options stand for."""
        refuse_together(
            {
                "--workers": self.workers,
                "--scheduler": self.scheduler,
                "--scheduler-file": self.scheduler_file,
            },
            "Only one place can do the work",
        )
        return {
            "compute.workers": self.workers,
            "compute.memory": self.memory,
            "compute.scheduler": self.scheduler,
            "compute.scheduler_file": self.scheduler_file,
        }


def argument(help: str, metavar: str) -> Any:
    """Return an argument for a file, a folder or an image."""
    return typer.Argument(metavar=metavar, show_default=False, help=help)


def refuse_together(options: Mapping[str, Any], rule: str) -> None:
    """Stop with a usage error where more than one of these options is given."""
    given = [name for name, value in options.items() if value]
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)} are given together. {rule}: keep one.")


def channel_setting(text: str | None) -> int | str | None:
    """Return a channel's number where digits are given, else its name."""
    return int(text) if text is not None and text.isdecimal() else text


def joined(*groups: OwnSpots | Tables | Known | Place) -> dict[str, Any]:
    """Return the settings that groups of options stand for."""
    chosen: dict[str, Any] = {}
    for group in groups:
        chosen |= group.chosen()
    return chosen


def _lengths(text: str | None, option: str) -> float | tuple[float, ...] | None:
    """Return the numbers of an option: one, or one an axis."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{option} {text}: one number is needed, or one an axis with commas between them."
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


def resolve_settings(choice: Choice, chosen: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of a command.

    Parameters
    ----------
    choice : Choice
        The file, and the single settings that go before it.
    chosen : mapping of str to object, optional
        ``section.key`` and value of what options of their own say; these go before both.
        None: not given.

    Raises
    ------
    SettingsError
        If a setting is unknown or has a value that is not allowed.
    """
    from tilereg.config import Settings

    settings = Settings() if choice.config is None else Settings.from_toml(choice.config)
    settings = settings.with_overrides(choice.assignments or ())
    given = {name: value for name, value in (chosen or {}).items() if value is not None}
    tables = settings.model_dump(exclude_none=True)
    for name in (other for option in given for other in _REPLACED.get(option, ())):
        section, _, key = name.partition(".")
        tables[section].pop(key, None)
    for name, value in given.items():
        section, _, key = name.partition(".")
        tables[section][key] = value
    settings = Settings.from_mapping(tables, place="the options")
    if "compute.memory" in given and settings.compute.workers is None:
        raise typer.BadParameter(
            "--memory is that of the workers which --workers starts. Give --workers as well."
        )
    return settings


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose dataclass parameters are spread into one option a field."""
    groups: dict[str, type[Any]] = {}
    parameters: list[Parameter] = []
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in signature(function).parameters.items():
        kind = hints[name]
        if isinstance(kind, type) and is_dataclass(kind):
            groups[name] = kind
            parameters += _options(kind)
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=kind))

    @wraps(function)
    def command(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        function(**values)

    # Typer reads both.
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _options(group: type[Any]) -> list[Parameter]:
    """Return the fields of a group as parameters."""
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]
