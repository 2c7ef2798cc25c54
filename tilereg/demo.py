"""Two synthetic rounds with a known deformation, registered by the same path as real data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tilereg.errors import InputError, OutputError
from tilereg.io.ome_zarr import create_image, remove_store
from tilereg.io.run_folder import RunFolder
from tilereg.io.stores import Location, outputs
from tilereg.metrics import FieldError, field_error, inside_hull
from tilereg.pipeline import Run, register
from tilereg.progress import Progress, Silent
from tilereg.synthetic import SyntheticRounds, SyntheticVolume, demo_rounds

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["DemoResult", "demo", "write_round"]

_ROUNDS = ("round1.ome.zarr", "round2.ome.zarr")
_RUN = "run"


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """A registered demo and how close it came.

    Parameters
    ----------
    run : Run
    error : FieldError
        Error of the field at the fixed spots inside the hull of the matched ones.
    initial_error : FieldError
        The same before registration.
    rounds : SyntheticRounds
        The truth.
    """

    run: Run
    error: FieldError
    initial_error: FieldError
    rounds: SyntheticRounds

    def rows(self) -> list[tuple[str, str]]:
        """Return what a person wants to know, as (name, text)."""
        rows = [("output", self.run.output)]
        for name, error in (
            ("field error before", self.initial_error),
            ("field error after", self.error),
        ):
            rows.append(
                (
                    name,
                    f"median {error.median_voxels:.3g} voxel ({error.median:.3g} um), "
                    f"95 % below {error.p95_voxels:.3g} voxel ({error.p95:.3g} um)",
                )
            )
        return rows


def demo(
    output: str | Path = "tilereg-demo",
    *,
    seed: int = 0,
    client: Client | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DemoResult:
    """Make two rounds, write them as OME-Zarr, register them, and compare with the truth.

    Parameters
    ----------
    output : str or Path
        Local folder; the rounds are written to ``round1.ome.zarr`` and ``round2.ome.zarr`` in
        it, the run to ``run``.
    seed : int
        Of spots, deformation and noise.
    client : distributed.Client, optional
    overwrite : bool
        Whether an earlier demo in the folder is removed.
    progress : Progress, optional

    Raises
    ------
    InputError
        If the folder is a URL.
    OutputError
        If the folder exists and `overwrite` is false, or holds something else than a demo.
    """
    report = Silent() if progress is None else progress
    folder = Path(output)
    if Location.of(output).is_remote:
        raise InputError(f"Invalid folder '{output}' of a demo. Give a local path.")
    _make_room(folder, overwrite=overwrite)
    rounds = demo_rounds(seed=seed)
    for name, volume in zip(_ROUNDS, (rounds.fixed, rounds.moving), strict=True):
        write_round(folder / name, volume, report)
    run = register(*(folder / n for n in (*_ROUNDS, _RUN)), client=client, progress=report)
    points = rounds.fixed_points[inside_hull(rounds.fixed_points, run.matches.fixed)]
    spacing = rounds.moving_grid.spacing
    return DemoResult(
        run=run,
        error=field_error(run.transform, rounds.true_map, points, spacing),
        initial_error=field_error(lambda p: p, rounds.true_map, points, spacing),
        rounds=rounds,
    )


def _make_room(folder: Path, *, overwrite: bool) -> None:
    """Make sure that the demo can write its folder; remove only what a demo writes."""
    with outputs("use", f"'{folder}'"):
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        strange = [name for name in found if name not in (*_ROUNDS, _RUN)]
        if strange or (folder.exists() and not folder.is_dir()):
            raise OutputError(
                f"'{folder}' holds something that is not of a demo"
                f"{f' ({strange[0]})' if strange else ''}. Choose another folder."
            )
        if not found:
            return
        if not overwrite:
            raise OutputError(f"'{folder}' exists already. Choose another folder, or --overwrite.")
        run = RunFolder.at(folder / _RUN)
        run.check_free(overwrite=True)
        for name in _ROUNDS:
            remove_store(folder / name)
        run.remove()


def write_round(location: str | Path, volume: SyntheticVolume, progress: Progress) -> None:
    """Write a synthetic volume as OME-Zarr, block by block."""
    writer = create_image(
        location,
        grid=volume.grid,
        dtype=volume.dtype,
        axes=volume.grid.axes,
        channels=(),
        num_times=1,
        name=Path(location).name.split(".")[0],
    )
    with progress.stage(f"make {Path(location).name}"):
        for unit in writer.units(0):
            writer.write(unit.window, volume.read(unit.window))
        for level in range(1, len(writer.level_grids)):
            for unit in writer.units(level):
                writer.downsample(level, unit.window)
    writer.finish()
