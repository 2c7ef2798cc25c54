from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from scenes import contents

from tilereg.errors import InputError, OutputError, ResourceError
from tilereg.io import run_folder
from tilereg.io.run_folder import RunFolder, check_apart
from tilereg.io.stores import Location

INPUTS = '\n[run_inputs]\nfixed_location = "a"\n\n[run_versions]\ntilereg = "1"\n'
RECORD = "[match]\nseed = 1\n\n[compute]\nworkers = 2\n" + INPUTS


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    """Return a folder that does not exist, on a disk and in an object store."""
    if request.param == "local":
        return RunFolder.at(tmp_path / "new" / "run")
    return RunFolder.at(f"memory://{tmp_path.name}/run")


def start(folder: RunFolder, record: str = RECORD) -> None:
    """Leave a run in the folder."""
    with folder.prepared(record, overwrite=False, resume=False):
        folder.mark("detect", {"spots": 3})


def fail(folder: RunFolder, error: BaseException) -> None:
    """Fail after a stage of a run."""
    with folder.prepared(RECORD, overwrite=False, resume=False):
        folder.mark("detect")
        raise error


def test_a_run_claims_its_folder(folder: RunFolder) -> None:
    with folder.prepared(RECORD, overwrite=False, resume=False) as resumed:
        assert not resumed
        assert folder.location.listing() == ["run.toml"]
    with (
        pytest.raises(OutputError, match="holds a run already"),
        folder.prepared(RECORD, overwrite=False, resume=False),
    ):
        pass


def test_marks(folder: RunFolder) -> None:
    assert folder.marked("warp") is None
    folder.mark("warp")
    folder.mark("match", {"pairs": 7})
    assert folder.marked("warp") == {}
    assert folder.marked("match") == {"pairs": 7}
    assert folder.read_json("qc.json") == {}
    folder.location.write_json("qc.json", {"a": 1})
    assert folder.read_json("qc.json") == {"a": 1}


def test_the_same_run_goes_on(folder: RunFolder) -> None:
    start(folder)
    elsewhere = RECORD.replace("workers = 2", "memory = '4GB'")
    with folder.prepared(elsewhere, overwrite=False, resume=True) as resumed:
        assert resumed
        assert folder.marked("detect") == {"spots": 3}


def test_another_run_does_not_go_on(folder: RunFolder) -> None:
    start(folder)
    other = RECORD.replace("seed = 1", "seed = 2\nw = 0.5")
    message = r"match\.seed was 1, is 2; match\.w was not set, is 0\.5\. .*--overwrite"
    with (
        pytest.raises(OutputError, match=message),
        folder.prepared(other, overwrite=False, resume=True),
    ):
        pass
    assert folder.marked("detect") == {"spots": 3}
    with folder.prepared(other, overwrite=True, resume=False) as resumed:
        assert not resumed
        assert folder.marked("detect") is None


@pytest.mark.parametrize("error", [OutputError("No."), OSError(errno.ENOSPC, "No space left")])
def test_an_error_removes_the_folder(folder: RunFolder, error: Exception) -> None:
    with pytest.raises(OutputError) as caught:
        fail(folder, error)
    assert not folder.location.exists()
    if isinstance(error, OSError):
        assert str(caught.value).endswith("Free some space, or choose another place.")
        assert "\n" not in str(caught.value)


def test_an_error_keeps_work_of_an_earlier_start(folder: RunFolder) -> None:
    start(folder)
    with (
        pytest.raises(OutputError, match="No"),
        folder.prepared(RECORD, overwrite=False, resume=True),
    ):
        raise OutputError("No.")
    assert folder.marked("detect") == {"spots": 3}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), MemoryError()])
def test_an_interrupt_keeps_the_folder(folder: RunFolder, error: BaseException) -> None:
    with pytest.raises(type(error)):
        fail(folder, error)
    assert folder.marked("detect") == {}


def test_too_little_memory_keeps_what_is_done(folder: RunFolder) -> None:
    with pytest.raises(ResourceError, match="run'; --resume goes on"):
        fail(folder, ResourceError("Too large."))
    assert folder.marked("detect") == {}


def test_too_little_memory_at_once_leaves_nothing(folder: RunFolder) -> None:
    with (
        pytest.raises(ResourceError, match=r"^Too large\.$"),
        folder.prepared(RECORD, overwrite=False, resume=False),
    ):
        raise ResourceError("Too large.")
    assert not folder.location.exists()


def test_a_failing_removal_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Location, "remove", fail)
    with (
        pytest.raises(OutputError, match="The reason"),
        RunFolder.at(tmp_path / "run").prepared(RECORD, overwrite=False, resume=False),
    ):
        raise OutputError("The reason.")


def test_the_mark_of_a_run_is_removed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.at(tmp_path / "run")
    start(folder)
    remove = Location.remove

    def stop(place: Location) -> None:
        remove(place)
        if place.name == "progress":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Location, "remove", stop)
        with pytest.raises(KeyboardInterrupt):
            folder.remove()
    # What is left still counts as a run, which may be removed.
    assert contents(tmp_path / "run").keys() == {"run.toml"}
    folder.check_free(overwrite=True)
    folder.remove()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Location, "exists", refuse)
    with pytest.raises(OutputError, match=r"Cannot use .*Permission denied.* Check permissions"):
        RunFolder.at(tmp_path / "run").check_free()


def test_only_runs_are_replaced(folder: RunFolder) -> None:
    folder.location.write_text("chapter1.tex", "dear")
    for how in ({"overwrite": True}, {"resume": True}, {}):
        with pytest.raises(OutputError, match=r"no run\.toml"):
            folder.check_free(**how)
    assert folder.location.read_text("chapter1.tex") == "dear"


def test_inputs_lie_elsewhere(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "link").symlink_to(run)
    check_apart(run, [tmp_path / "run2", tmp_path, "memory://run", tmp_path / "runner" / "a"])
    for place in (run, run / "a.zarr", tmp_path / "link" / "a.zarr", f"file://{run}/a.zarr"):
        with pytest.raises(OutputError, match="lies in the output"):
            check_apart(run, [tmp_path / "other", place])
    with pytest.raises(OutputError, match="lies in the output"):
        check_apart("memory://b/run/", ["memory://b/run/registered.ome.zarr"])


def test_finished_units_are_noted_in_batches(folder: RunFolder) -> None:
    finished = folder.finished("units")
    assert finished.read() == set()
    for number in range(100):
        finished.add(number)
    assert len(folder.finished("units").read()) == 64
    finished.flush()
    finished.flush()
    assert folder.finished("units").read() == set(range(100))
    assert len(finished.location.listing()) == 2


def test_finished_units_are_noted_in_time(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(run_folder.time, "monotonic", lambda: now[0])
    finished = folder.finished("units")
    for number in range(3):
        finished.add(number)
    assert folder.finished("units").read() == set()
    now[0] = 6.0
    finished.add(3)
    assert folder.finished("units").read() == {0, 1, 2, 3}
    finished.add(4)
    assert folder.finished("units").read() == {0, 1, 2, 3}


def test_half_a_note_is_not_read(tmp_path: Path) -> None:
    # Notes are renamed into place, so a kill leaves at most a file of another name.
    finished = RunFolder.at(tmp_path / "run").finished("units")
    finished.add(1)
    finished.flush()
    (tmp_path / "run/progress/units/x.json.7.part").write_text('{"uni')
    assert finished.read() == {1}
    assert len(os.listdir(tmp_path / "run/progress/units")) == 2


def test_an_unknown_protocol_is_told() -> None:
    with pytest.raises(InputError, match="protocol"):
        RunFolder.at("nowhere://run").check_free()


def test_foreign_files_are_never_removed(tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path / "run")
    start(folder)
    (tmp_path / "run" / "thesis.txt").write_text("dear")
    with (
        pytest.raises(OutputError, match=r"thesis\.txt"),
        folder.prepared(RECORD, overwrite=True, resume=False),
    ):
        pass
    assert (tmp_path / "run" / "thesis.txt").read_text() == "dear"
    other = tmp_path / "project"
    other.mkdir()
    (other / "run.toml").write_text('name = "something else"')
    with (
        pytest.raises(OutputError, match="something else"),
        RunFolder.at(other).prepared(RECORD, overwrite=True, resume=False),
    ):
        pass
    assert (other / "run.toml").exists()


def _fail_anew(folder: RunFolder) -> None:
    with folder.prepared(RECORD, overwrite=True, resume=False):
        folder.mark("other")
        raise InputError("wrong")


def test_the_old_run_comes_back_after_an_error(tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path / "run")
    start(folder)
    with pytest.raises(InputError, match="wrong"):
        _fail_anew(folder)
    assert folder.marked("detect") == {"spots": 3}
    assert folder.marked("other") is None
    with folder.prepared(RECORD, overwrite=True, resume=False):
        folder.mark("other")
    assert folder.marked("detect") is None
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
