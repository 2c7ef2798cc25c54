"""What goes wrong ends in one line that says what to do, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from scenes import contents, rounds, voxels, write_image, write_rounds
from zarr.storage import LocalStore

from tilereg.config import Settings
from tilereg.errors import (
    ImageError,
    InputError,
    OutputError,
    RegistrationError,
    ResourceError,
    TileregError,
)
from tilereg.pipeline import Run, register
from tilereg.transform import Affine

Refuse = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path) -> Refuse:
    """Return a function that expects a run to fail, and returns the line."""

    def attempt(
        fixed: Any, moving: Any, error: type[TileregError], *words: str, **options: Any
    ) -> str:
        output = tmp_path / "output" / "run"
        with pytest.raises(error) as caught:
            register(fixed, moving, options.pop("output", output), **options)
        line = str(caught.value)
        assert "\n" not in line
        assert line.endswith((".", "?"))
        for word in words:
            assert word in line
        assert not output.exists()
        return line

    return attempt


def settings(*assignments: str) -> Settings:
    return Settings().with_overrides(assignments)


@pytest.fixture
def copies(flat_pair: tuple[str, str], tmp_path: Path) -> tuple[Path, Path]:
    """Return copies of the two planes, to be spoilt."""
    places = tmp_path / "fixed.zarr", tmp_path / "moving.zarr"
    for source, place in zip(flat_pair, places, strict=True):
        shutil.copytree(source, place)
    return places


def test_nothing_there(flat_pair: tuple[str, str], refuse: Refuse, tmp_path: Path) -> None:
    refuse(tmp_path / "nothing", flat_pair[1], ImageError, "Nothing is at", "nothing", "Check")
    refuse(flat_pair[0], tmp_path / "nothing", ImageError, "Nothing is at")


def test_no_image(flat_pair: tuple[str, str], refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "text.zarr").write_text("not an image")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("not an image")
    for name in ("text.zarr", "folder"):
        refuse(flat_pair[0], tmp_path / name, ImageError, name, "not a Zarr group", "Give")


def test_no_metadata(copies: tuple[Path, Path], refuse: Refuse) -> None:
    document = copies[1] / "zarr.json"
    document.write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    refuse(*copies, ImageError, "moving.zarr", "without OME metadata", "give")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("input.moving_channel=7", ("No channel 7", "It has 0 '0'")),
        ("input.channel=DAPI", ("No channel 'DAPI'", "It has 0 '0'")),
        ("input.level=3", ("No level 3", "It has 1 levels")),
        ("input.time=2", ("No time 2", "It has 1 times")),
        ("warp.channels=[4]", ("No channel 4", "It has 0 '0'")),
        ("warp.channels=[]", ("warp.channels", "empty", "'all'")),
        ("warp.fill_value=-1", ("-1", "uint16", "0 to 65535")),
        ("output.chunks=[8,8,8]", ("(8, 8, 8)", "2 axes")),
    ],
)
def test_settings_that_do_not_fit(
    flat_pair: tuple[str, str], refuse: Refuse, assignment: str, words: tuple[str, ...]
) -> None:
    refuse(*flat_pair, InputError, *words, settings=settings(assignment))


@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_scales_must_be_positive(copies: tuple[Path, Path], refuse: Refuse, scale: float) -> None:
    document = copies[0] / "zarr.json"
    content = json.loads(document.read_text())
    dataset = content["attributes"]["ome"]["multiscales"][0]["datasets"][0]
    dataset["coordinateTransformations"][0]["scale"] = [scale, 0.3]
    document.write_text(json.dumps(content))
    refuse(*copies, ImageError, "fixed.zarr", str(scale), "> 0")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_must_be_finite(refuse: Refuse, tmp_path: Path, value: float) -> None:
    both = rounds(2)
    spoilt = voxels(both.moving).astype(np.float32)
    spoilt[31, 17] = value
    fixed = write_image(tmp_path / "fixed.zarr", voxels(both.fixed), both.fixed_grid)
    moving = write_image(tmp_path / "moving.zarr", spoilt, both.moving_grid)
    words = "moving.zarr", "Voxel (31, 17)", str(value), "finite", "replace"
    refuse(fixed, moving, ImageError, *words)


def test_planes_and_volumes(
    flat_pair: tuple[str, str], pair: tuple[str, str], refuse: Refuse
) -> None:
    refuse(flat_pair[0], pair[1], InputError, "no common axes", "y, x", "z, y, x", "both")


def test_damaged_chunk(tmp_path: Path, refuse: Refuse) -> None:
    places = write_rounds(tmp_path, 2, chunks=(20, 20))
    chunk = Path(places[1]) / "0" / "c" / "3" / "3"
    chunk.write_bytes(chunk.read_bytes()[:100])
    refuse(*places, ImageError, "c/3/3", "moving.ome.zarr", "damaged", "Copy")


def test_damaged_chunk_on_workers(tmp_path: Path, refuse: Refuse, client: Client) -> None:
    places = write_rounds(tmp_path, 2, chunks=(20, 20))
    chunk = Path(places[1]) / "0" / "c" / "3" / "3"
    chunk.write_bytes(chunk.read_bytes()[:100])
    # The sample that finds the size of the spots is read here, the voxels there.
    refuse(*places, ImageError, "c/3/3", "damaged", client=client)


def test_another_run_is_there(flat_pair: tuple[str, str], finished: Run, refuse: Refuse) -> None:
    before = contents(Path(finished.output))
    refuse(
        *flat_pair, OutputError, finished.output, "--resume", "--overwrite", output=finished.output
    )
    assert contents(Path(finished.output)) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_something_else_is_there(
    flat_pair: tuple[str, str], refuse: Refuse, tmp_path: Path, overwrite: bool
) -> None:
    folder, file, pipe = tmp_path / "thesis", tmp_path / "file", tmp_path / "pipe"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("dear")
    file.write_text("dear")
    os.mkfifo(pipe)
    for place in (folder, file, pipe):
        refuse(
            *flat_pair, OutputError, str(place), "not the folder of a run", "Choose another place",
            output=place, overwrite=overwrite,
        )  # fmt: skip
    assert (folder / "chapter1.tex").read_text() == file.read_text() == "dear"
    assert pipe.is_fifo()


def test_inputs_are_not_written_over(
    flat_pair: tuple[str, str], finished: Run, refuse: Refuse, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.output, run)
    (tmp_path / "link").symlink_to(run)
    before = contents(run)
    for place in (run, tmp_path / "link"):
        refuse(
            flat_pair[0], place / "registered.ome.zarr", InputError, "no common axes",
            output=run, overwrite=True,
        )  # fmt: skip
        refuse(
            place / "registered.ome.zarr", place / "registered.ome.zarr", OutputError,
            "lies in the output", "Choose another output", output=run, overwrite=True,
        )  # fmt: skip
    assert contents(run) == before


def test_a_place_that_cannot_be(flat_pair: tuple[str, str], refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("dear")
    refuse(*flat_pair, OutputError, "file/run", "another place", output=tmp_path / "file" / "run")
    refuse(*flat_pair, OutputError, "/dev/full/run", "another place", output="/dev/full/run")
    assert (tmp_path / "file").read_text() == "dear"
    assert Path("/dev/full").is_char_device()


def test_full_disk(
    flat_pair: tuple[str, str], refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LocalStore.set

    async def no_room(store: LocalStore, *arguments: Any) -> None:
        if "registered" in str(store.root):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await write(store, *arguments)

    monkeypatch.setattr(LocalStore, "set", no_room)
    refuse(*flat_pair, OutputError, "registered", "No space left on device", "Free some space")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return a function that mounts a disk of so many bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            subprocess.run(command, capture_output=True, check=True)
        except (FileNotFoundError, subprocess.CalledProcessError):
            pytest.skip("a file system may not be mounted here")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(
    flat_pair: tuple[str, str],
    refuse: Refuse,
    tmp_path: Path,
    disk: Callable[[int], Path],
) -> None:
    # A page a chunk, so that the voxels take most of the room.
    chosen = settings("output.chunks=[8,8]", "output.compression=none")
    register(*flat_pair, tmp_path / "roomy", settings=chosen)
    sizes = {name: -(-len(data) // 4096) for name, data in contents(tmp_path / "roomy").items()}
    voxels_only = sum(n for name, n in sizes.items() if name.startswith("registered"))
    assert voxels_only > 300
    output = disk(4096 * (sum(sizes.values()) - voxels_only // 2)) / "run"
    refuse(
        *flat_pair, OutputError, "registered.ome.zarr", "No space left on device",
        "Free some space", output=output, settings=chosen,
    )  # fmt: skip
    assert not output.exists()


def test_unrelated_images(refuse: Refuse, tmp_path: Path) -> None:
    fixed, moving = rounds(2).fixed, rounds(2, seed=5).moving
    places = [
        write_image(tmp_path / name, voxels(volume), volume.grid)
        for name, volume in (("fixed.zarr", fixed), ("moving.zarr", moving))
    ]
    refuse(*places, RegistrationError, "No registration was found", "Check", "initial transform")


def test_images_without_spots(flat_pair: tuple[str, str], refuse: Refuse, tmp_path: Path) -> None:
    both = rounds(2)
    empty = np.zeros(both.moving.shape, dtype=np.uint16)
    dark = write_image(tmp_path / "dark.zarr", empty, both.moving_grid)
    refuse(flat_pair[0], dark, RegistrationError, "Too few spots: 0", "dark.zarr", "Choose")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("start.json", None, ("start.json",)),
        ("start.json", "{", ("start.json",)),
        ("start.json", '{"matrix": [[1, 0], [0, 0]], "offset": [0, 0]}', ("singular",)),
        ("start.txt", "1 0 0 0\n0 1 0 0\n0 0 1 0\n", ("start.txt", "3 axes", "2 axes")),
        ("start.doc", "1 0 0", ("start.doc",)),
    ],
)
def test_a_start_that_is_none(
    flat_pair: tuple[str, str],
    refuse: Refuse,
    tmp_path: Path,
    name: str,
    text: str | None,
    words: tuple[str, ...],
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    refuse(*flat_pair, InputError, *words, initial=tmp_path / name)
    chosen = settings("initial.method=file", f"initial.file='{tmp_path / name}'")
    refuse(*flat_pair, InputError, *words, settings=chosen)


def test_a_start_of_other_axes(flat_pair: tuple[str, str], refuse: Refuse) -> None:
    refuse(*flat_pair, InputError, "3 axes", "2 axes", initial=Affine.identity(3))


def test_resume_and_overwrite(flat_pair: tuple[str, str], refuse: Refuse) -> None:
    refuse(*flat_pair, InputError, "resume or overwrite", resume=True, overwrite=True)


def test_too_little_memory(flat_pair: tuple[str, str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(ResourceError) as caught:
        register(*flat_pair, output, settings=settings("compute.memory=1MB"))
    line = str(caught.value)
    for word in ("One warp task needs", "0 B", "smaller chunks", "more memory", "--resume"):
        assert word in line
    # What is found is kept: the run goes on where there is more memory.
    assert not (output / "registered.ome.zarr").exists()
    run = register(*flat_pair, output, settings=settings("compute.memory=8GB"), resume=True)
    assert run.registered.grid == rounds(2).fixed_grid
