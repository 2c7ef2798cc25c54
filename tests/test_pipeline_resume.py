"""Runs that were killed or interrupted go on, to the same result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenes import (
    RUN_FILES,
    Recorder,
    contents,
    read_image,
    rounds,
    voxels,
    write_image,
)

from tilereg import pipeline, registered
from tilereg.config import Settings
from tilereg.errors import ImageError, OutputError, RegistrationError, ResourceError
from tilereg.io.ome_zarr import open_image
from tilereg.lazy import volume
from tilereg.pipeline import Run, register
from tilereg.transform import Transform

CHOSEN = ["output.chunks=[16,16]", "output.levels=3"]
NUM_UNITS = {"warp": 100, "pyramid, level 1": 25, "pyramid, level 2": 9}

# A run whose every unit takes a while, so that it can be killed in the middle.
SLOW = """
import sys, time
from tilereg.config import Settings
from tilereg.lazy import volume
from tilereg.pipeline import register

work = volume._warp_unit
def slow(*arguments):
    time.sleep(0.02)
    return work(*arguments)
volume._warp_unit = slow
fixed, moving, output, *assignments = sys.argv[1:]
register(fixed, moving, output, settings=Settings().with_overrides(assignments))
"""


def settings(*assignments: str) -> Settings:
    return Settings().with_overrides([*CHOSEN, *assignments])


@pytest.fixture(scope="module")
def whole(flat_pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run that nothing stopped."""
    return register(*flat_pair, tmp_path_factory.mktemp("whole") / "run", settings=settings())


def check_same(run: Run, other: Run) -> None:
    """Check that two runs wrote the same voxels, metadata, tables and transform."""
    ours, theirs = contents(Path(run.output)), contents(Path(other.output))
    skipped = ("progress/", "qc.json", "run.toml")
    names = {name for name in ours if not name.startswith(skipped)}
    assert names == {name for name in theirs if not name.startswith(skipped)}
    for name in names:
        assert ours[name] == theirs[name], name
    for key in ("matches", "residual", "field", "ncc", "spots"):
        assert run.qc[key] == other.qc[key]


class Stopper:
    """Stands in for a function and raises in place of its n-th call."""

    def __init__(self, function: Callable[..., Any], calls: int, error: BaseException) -> None:
        self.function, self.left, self.error = function, calls, error

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.function(*arguments, **options)


def test_a_killed_run_goes_on(flat_pair: tuple[str, str], whole: Run, tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-c", SLOW, *flat_pair, str(output), *CHOSEN]
    process = subprocess.Popen(command)
    notes = output / "progress" / "units_image"
    until = time.monotonic() + 60
    while not list(notes.glob("*.json")) and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = sum(len(json.loads(path.read_text())["units"]) for path in notes.glob("*.json"))
    assert 0 < done < NUM_UNITS["warp"]
    assert not (output / "qc.json").exists()
    with pytest.raises(ImageError, match="without OME metadata"):
        open_image(output / "registered.ome.zarr")

    told = Recorder()
    run = register(*flat_pair, output, settings=settings(), resume=True, progress=told)
    check_same(run, whole)
    assert "detect fixed" not in told.totals
    assert told.steps["warp"][0] == done
    assert len(told.steps["warp"]) - 1 == NUM_UNITS["warp"] - done
    assert {path.name for path in output.iterdir()} == RUN_FILES
    names = [stage["name"] for stage in run.qc["stages"]]
    assert names == ["detect fixed", "detect moving", "match", "fit", "warp", "judge"]


@pytest.mark.parametrize(
    ("module", "function", "calls"),
    [
        (pipeline, "write_spots", 1),
        (pipeline, "write_matches", 0),
        (pipeline, "write_transform", 0),
        (registered, "begin_image", 0),
        (volume, "_warp_unit", 70),
        (volume, "_downsample_unit", 32),
        (pipeline, "correlation", 0),
    ],
)
def test_an_interrupted_run_goes_on(
    flat_pair: tuple[str, str],
    whole: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    function: str,
    calls: int,
) -> None:
    stopper = Stopper(getattr(module, function), calls, KeyboardInterrupt())
    with monkeypatch.context() as patch:
        patch.setattr(module, function, stopper)
        with pytest.raises(KeyboardInterrupt):
            register(*flat_pair, tmp_path / "run", settings=settings())
    told = Recorder()
    run = register(*flat_pair, tmp_path / "run", settings=settings(), resume=True, progress=told)
    check_same(run, whole)
    if function == "_downsample_unit":
        assert "warp" in told.totals
        assert sum(told.steps["warp"]) == told.steps["warp"][0] == NUM_UNITS["warp"]
        assert told.steps["pyramid, level 1"] == [25]
        # Units of other threads may have ended without being noted; they are done again.
        assert told.steps["pyramid, level 2"][0] >= 1
    for name, total in told.totals.items():
        assert total is None or sum(told.steps[name]) == total


def test_a_start_that_ended_while_arrays_were_made(
    flat_pair: tuple[str, str], whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(registered, "begin_image", Stopper(lambda: None, 0, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            register(*flat_pair, tmp_path / "run", settings=settings())
    half = tmp_path / "run" / "registered.ome.zarr"
    half.mkdir()
    (half / "zarr.json.7.part").write_text("{")
    check_same(register(*flat_pair, tmp_path / "run", settings=settings(), resume=True), whole)


def test_labels_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = rounds(2)
    fixed = write_image(tmp_path / "fixed", voxels(both.fixed), both.fixed_grid)
    label = (voxels(both.moving) > 300).astype(np.uint8)
    # A label image named as the image itself is in the notes of what is finished.
    moving = write_image(
        tmp_path / "moving", voxels(both.moving), both.moving_grid, labels={"image": label}
    )
    whole = register(fixed, moving, tmp_path / "whole", settings=settings())
    with monkeypatch.context() as patch:
        patch.setattr(volume, "_warp_unit", Stopper(volume._warp_unit, 150, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            register(fixed, moving, tmp_path / "run", settings=settings())
    with pytest.raises(ImageError, match="without OME metadata"):
        open_image(tmp_path / "run" / "registered.ome.zarr")
    run = register(fixed, moving, tmp_path / "run", settings=settings(), resume=True)
    check_same(run, whole)
    assert read_image(run.registered.label("image")).any()


def test_a_finished_run_is_read(
    flat_pair: tuple[str, str], whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.output, tmp_path / "run")
    before = contents(tmp_path / "run")
    told = Recorder()
    run = register(*flat_pair, tmp_path / "run", settings=settings(), resume=True, progress=told)
    assert run.qc == whole.qc
    assert told.totals == {}
    assert contents(tmp_path / "run") == before


def test_resume_where_nothing_is_just_runs(
    flat_pair: tuple[str, str], whole: Run, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    run = register(*flat_pair, tmp_path / "run", settings=settings(), resume=True)
    check_same(run, whole)


def test_overwrite_starts_anew(flat_pair: tuple[str, str], whole: Run, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(whole.output, output)
    (output / "qc.json").write_text("old")
    check_same(register(*flat_pair, output, settings=settings(), overwrite=True), whole)
    assert {path.name for path in output.iterdir()} == RUN_FILES


def test_a_lost_image_is_not_resumed(
    flat_pair: tuple[str, str], whole: Run, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(whole.output, output)
    shutil.rmtree(output / "registered.ome.zarr")
    (output / "progress" / "warp.json").unlink()
    with pytest.raises(OutputError, match="is gone"):
        register(*flat_pair, output, settings=settings(), resume=True)


def test_a_failed_replacement_keeps_the_old_run(
    flat_pair: tuple[str, str], whole: Run, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(whole.output, output)
    before = contents(output)
    with pytest.raises(RegistrationError):
        register(*flat_pair, output, settings=settings("detect.threshold=1e9"), overwrite=True)
    assert contents(output) == before


@pytest.mark.parametrize(
    ("assignment", "difference"),
    [
        ("detect.sigma=0.5", "detect.sigma was not set, is 0.5"),
        ("match.seed=4", "match.seed was 0, is 4"),
        ("output.chunks=[8,8]", "output.chunks was [16, 16], is [8, 8]"),
    ],
)
def test_other_settings_are_refused(
    flat_pair: tuple[str, str], whole: Run, assignment: str, difference: str
) -> None:
    before = contents(Path(whole.output))
    with pytest.raises(OutputError) as caught:
        register(*flat_pair, whole.output, settings=settings(assignment), resume=True)
    assert difference in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert contents(Path(whole.output)) == before


def test_where_the_work_is_done_may_differ(flat_pair: tuple[str, str], whole: Run) -> None:
    chosen = settings("compute.memory=5GB")
    register(*flat_pair, whole.output, settings=chosen, resume=True)


def test_other_inputs_are_refused(
    flat_pair: tuple[str, str], pair: tuple[str, str], whole: Run, tmp_path: Path
) -> None:
    both = rounds(2)
    with pytest.raises(OutputError, match=r"fixed_location was .*, is .*moving_location was"):
        register(*flat_pair[::-1], whole.output, settings=settings(), resume=True)
    # The same place, size and metadata, but other voxels.
    moving = write_image(tmp_path / "moving", voxels(both.moving), both.moving_grid)
    register(flat_pair[0], moving, tmp_path / "run", settings=settings())
    shutil.rmtree(moving)
    write_image(moving, voxels(both.moving) + np.uint16(1), both.moving_grid)
    with pytest.raises(OutputError, match="moving_fingerprint was"):
        register(flat_pair[0], moving, tmp_path / "run", settings=settings(), resume=True)
    initial = Transform.identity(2).affine
    with pytest.raises(OutputError, match="initial_fingerprint was not set"):
        register(*flat_pair, whole.output, settings=settings(), resume=True, initial=initial)


def test_a_damaged_record_is_told(flat_pair: tuple[str, str], whole: Run, tmp_path: Path) -> None:
    shutil.copytree(whole.output, tmp_path / "run")
    (tmp_path / "run" / "run.toml").write_text("[[")
    with pytest.raises(OutputError, match=r"run.toml' is damaged"):
        register(*flat_pair, tmp_path / "run", settings=settings(), resume=True)


def test_an_error_keeps_what_an_earlier_start_did(
    flat_pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(volume, "_warp_unit", Stopper(volume._warp_unit, 70, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            register(*flat_pair, output, settings=settings())
    broken = Stopper(volume._warp_unit, 3, OutputError("No room."))
    with monkeypatch.context() as patch:
        patch.setattr(volume, "_warp_unit", broken)
        with pytest.raises(OutputError, match="No room"):
            register(*flat_pair, output, settings=settings(), resume=True)
    assert (output / "progress" / "match.json").exists()


def test_a_cluster_that_gives_out_keeps_the_folder(
    flat_pair: tuple[str, str], whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    lost = Stopper(volume._warp_unit, 30, ResourceError("The workers are gone."))
    with monkeypatch.context() as patch:
        patch.setattr(volume, "_warp_unit", lost)
        with pytest.raises(ResourceError, match=r"workers are gone\. .*--resume goes on"):
            register(*flat_pair, output, settings=settings())
    check_same(register(*flat_pair, output, settings=settings(), resume=True), whole)
    failed = Stopper(pipeline.write_spots, 0, ResourceError("The workers are gone."))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_spots", failed)
        with pytest.raises(ResourceError, match="gone"):
            register(*flat_pair, tmp_path / "other", settings=settings())
    assert not (tmp_path / "other").exists()


def test_no_registration_leaves_nothing(
    flat_pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Stopper(pipeline.require, 0, RegistrationError("Nothing was found."))
    monkeypatch.setattr(pipeline, "require", failed)
    with pytest.raises(RegistrationError):
        register(*flat_pair, tmp_path / "deep" / "run", settings=settings())
    assert not os.listdir(tmp_path / "deep")
