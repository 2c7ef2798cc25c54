"""The command line: each sub-command parses, calls one function, and prints.

What takes long to import is imported inside the commands, so that help comes at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilereg import __version__
from tilereg.failures import Commands
from tilereg.options import (
    Channel,
    Choice,
    DryRun,
    FixedChannel,
    Image,
    Known,
    Level,
    MovingChannel,
    Overwrite,
    OwnSpots,
    Place,
    Resume,
    Tables,
    Talk,
    Transform,
    argument,
    channel_setting,
    grouped,
    joined,
    refuse_together,
    resolve_settings,
)
from tilereg.summary import (
    error_rows,
    image_record,
    image_rows,
    level_table,
    run_rows,
    settings_template,
    settings_text,
    stage_table,
)
from tilereg.terminal import open_progress, print_json, print_rows, print_table, print_text

if TYPE_CHECKING:
    from distributed import Client

    from tilereg.config import Settings

__all__ = ["app", "main"]

_FIGURES = ("status", "message", "model", "share_matched", "share_chance")

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> None:
    """Run the command line."""
    app(prog_name="tilereg")


def _show_version(is_wanted: bool) -> None:
    """Print the version and stop."""
    if is_wanted:
        print_text(f"tilereg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Register rounds of large fluorescence volumes by their spots.

    Images are OME-Zarr: local paths, s3:// or https:// addresses. Lengths are in
    micrometre, axes in the order z, y, x.

    Help on one command: tilereg COMMAND --help
    """


@app.command()
@grouped
def demo(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder to make.")] = (
        "tilereg-demo"
    ),
    *,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another number, other data.")] = 0,
    overwrite: Overwrite = False,
    place: Place,
    talk: Talk,
) -> None:
    """Register two synthetic rounds and compare with the truth.

    The rounds are made with a known deformation, so the error of the registration is known.
    """
    from tilereg.demo import demo as run_demo

    settings = resolve_settings(Choice(), place.chosen())
    with open_progress(quiet=talk.quiet) as progress, _connection(settings) as client:
        result = run_demo(output, seed=seed, client=client, overwrite=overwrite, progress=progress)
    qc, before, after = result.run.qc, result.initial_error, result.error
    record = {"output": output, "error_before": asdict(before), "error": asdict(after), "qc": qc}
    _show(talk, record, [("output", result.run.output), *run_rows(qc)])
    if not talk.as_json:
        print_text()
        print_table(*stage_table(qc))
        print_text("\nDistance from where the known deformation puts the spots:")
        print_rows(error_rows(before, after))


@app.command()
@grouped
def info(image: Image, *, talk: Talk) -> None:
    """Show what tilereg understands of an image.

    Axes, channels, the levels with their voxels, and what was assumed where the image does
    not say.
    """
    from tilereg.io.ome_zarr import open_image

    _show_image(talk, image_record(open_image(image)))


@app.command()
@grouped
def register(
    fixed: Annotated[str, argument("OME-Zarr image that stays as it is.", "FIXED")],
    moving: Annotated[str, argument("OME-Zarr image that is brought onto it.", "MOVING")],
    output: Annotated[str, argument("Folder to make.", "OUTPUT")],
    *,
    channel: Channel = None,
    fixed_channel: FixedChannel = None,
    moving_channel: MovingChannel = None,
    level: Level = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    own: OwnSpots,
    tables: Tables,
    known: Known,
    choice: Choice,
    place: Place,
    talk: Talk,
) -> None:
    """Register MOVING onto FIXED.

    OUTPUT gets the registered image with all channels and levels, the transform, the spots
    and matches, every setting, and figures on how good the registration is (qc.json).
    """
    refuse_together({"--resume": resume, "--overwrite": overwrite}, "They contradict each other")
    chosen = {
        "input.channel": channel_setting(channel),
        "input.fixed_channel": channel_setting(fixed_channel),
        "input.moving_channel": channel_setting(moving_channel),
        "input.level": level,
    }
    settings = resolve_settings(choice, chosen | joined(own, tables, known, place))
    from tilereg import pipeline

    if dry_run:
        plan = pipeline.plan(
            fixed, moving, output, settings=settings, overwrite=overwrite, resume=resume
        )
        _show(talk, plan.as_dict(), plan.rows())
        return
    with open_progress(quiet=talk.quiet) as progress, _connection(settings) as client:
        run = pipeline.register(
            fixed,
            moving,
            output,
            settings=settings,
            client=client,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
        )
    _show(talk, {"output": run.output, **run.qc}, [("output", run.output), *run_rows(run.qc)])
    if not talk.as_json:
        print_text()
        print_table(*stage_table(run.qc))


@app.command()
@grouped
def detect(
    image: Image,
    spots: Annotated[str, argument("Parquet table to write.", "SPOTS")],
    *,
    channel: Channel = None,
    level: Level = None,
    overwrite: Overwrite = False,
    choice: Choice,
    place: Place,
    talk: Talk,
) -> None:
    """Find the spots of an image.

    SPOTS gets one row a spot: position and size in um, intensity, response.
    """
    from tilereg import steps

    chosen = {"input.channel": channel_setting(channel), "input.level": level}
    settings = resolve_settings(choice, chosen | place.chosen())
    with open_progress(quiet=talk.quiet) as progress, _connection(settings) as client:
        found = steps.detect(
            image, spots, settings=settings, client=client, overwrite=overwrite, progress=progress
        )
    rows = [("output", spots), ("spots", f"{len(found):,}")]
    _show(talk, {"output": spots, "count": len(found)}, rows)


@app.command()
@grouped
def match(
    fixed_spots: Annotated[str, argument("Parquet or CSV table of points.", "FIXED_SPOTS")],
    moving_spots: Annotated[str, argument("The same of the moving image.", "MOVING_SPOTS")],
    output: Annotated[str, argument("Folder to make.", "OUTPUT")],
    *,
    overwrite: Overwrite = False,
    tables: Tables,
    known: Known,
    choice: Choice,
    place: Place,
    talk: Talk,
) -> None:
    """Match two tables of spots.

    OUTPUT gets the transform between them, the matches, and figures on how good they are.
    """
    from tilereg import steps

    settings = resolve_settings(choice, joined(tables, known, place))
    with open_progress(quiet=talk.quiet) as progress, _connection(settings) as client:
        found = steps.match(
            fixed_spots,
            moving_spots,
            output,
            settings=settings,
            client=client,
            overwrite=overwrite,
            progress=progress,
        )
    pairs = len(found.correspondences)
    record = {name: getattr(found, name) for name in _FIGURES} | {"pairs": pairs}
    rows = [("output", output), *run_rows({"matches": record, "warnings": found.warnings})]
    _show(talk, {"output": output, **record, "warnings": list(found.warnings)}, rows)


@app.command()
@grouped
def warp(
    image: Image,
    transform: Transform,
    output: Annotated[str, argument("OME-Zarr image to write.", "OUTPUT")],
    *,
    like: Annotated[
        str,
        typer.Option(metavar="FIXED", show_default=False, help="Image whose voxels OUTPUT gets."),
    ],
    overwrite: Overwrite = False,
    choice: Choice,
    place: Place,
    talk: Talk,
) -> None:
    """Resample an image with a transform.

    All channels and levels are brought onto the voxels of another image.
    """
    from tilereg import steps

    settings = resolve_settings(choice, place.chosen())
    with open_progress(quiet=talk.quiet) as progress, _connection(settings) as client:
        written = steps.warp(
            image,
            transform,
            output,
            like=like,
            settings=settings,
            client=client,
            overwrite=overwrite,
            progress=progress,
        )
    _show_image(talk, image_record(written))


@app.command()
@grouped
def points(
    table: Annotated[str, argument("CSV or Parquet with columns z, y, x in um.", "POINTS")],
    transform: Transform,
    output: Annotated[str, argument("CSV or Parquet table to write.", "OUTPUT")],
    *,
    inverse: Annotated[
        bool, typer.Option("--inverse", help="From the moving to the fixed image.")
    ] = False,
    overwrite: Overwrite = False,
    talk: Talk,
) -> None:
    """Move a table of points with a transform.

    From the fixed to the moving image, or back with --inverse. Rows keep their order, and
    other columns are carried along.
    """
    from tilereg import steps

    result = steps.points(table, transform, output, inverse=inverse, overwrite=overwrite)
    rows = [("output", output), ("points", f"{result.count:,}")]
    if result.num_failed:
        rows.append(("failed", f"{result.num_failed:,} have no inverse; their positions are NaN"))
    record = {"output": output, "count": result.count, "num_failed": result.num_failed}
    _show(talk, record, rows)


@app.command("settings")
@grouped
def show_settings(
    section: Annotated[
        str | None, typer.Argument(metavar="SECTION", show_default=False, help="Only this one.")
    ] = None,
    *,
    toml: Annotated[bool, typer.Option("--toml", help="Print a template for --config.")] = False,
    talk: Talk,
) -> None:
    """List all settings: what they do and their defaults."""
    from tilereg.config import Settings

    infos = [i for i in Settings.describe() if section in (None, i.name.partition(".")[0])]
    if not infos:
        known = ", ".join(Settings.model_fields)
        raise typer.BadParameter(f"Section '{section}' is unknown. Known: {known}")
    if talk.as_json:
        print_json([asdict(info) for info in infos])
    elif toml:
        print_text(settings_template(infos))
    else:
        for heading, text in settings_text(infos):
            print_rows([("  ", text)], title=heading)


@contextmanager
def _connection(settings: Settings) -> Iterator[Client | None]:
    """Connect to the Dask that the settings name; None means threads of this process."""
    place = settings.compute
    if (place.workers, place.scheduler, place.scheduler_file) == (None, None, None):
        yield None
        return
    from tilereg.lazy.cluster import connect

    with ExitStack() as stack:
        # A terminal sends Ctrl-C to all processes; workers are to be ended by this one, quietly.
        with _ignored_interrupt() if place.workers else nullcontext():
            client = stack.enter_context(connect(**place.model_dump()))
        yield client


@contextmanager
def _ignored_interrupt() -> Iterator[None]:
    """Ignore Ctrl-C for a moment; processes that start meanwhile ignore it for good."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _show(talk: Talk, record: dict[str, Any], rows: Iterable[tuple[str, str]]) -> None:
    """Print a result, as JSON or as rows."""
    if talk.as_json:
        print_json(record)
    else:
        print_rows(rows)


def _show_image(talk: Talk, record: dict[str, Any]) -> None:
    """Print what is known of an image."""
    _show(talk, record, image_rows(record))
    if not talk.as_json:
        print_text()
        print_table(*level_table(record))
    if record["notes"] and not talk.as_json:
        print_text()
        print_rows([("note", note) for note in record["notes"]])
