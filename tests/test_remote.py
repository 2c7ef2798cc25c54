"""Nothing depends on where images and runs lie: object stores by their URLs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from distributed import Client, LocalCluster
from scenes import RUN_FILES, read_image, rounds, voxels, write_image

from tilereg import Spots, match_tiles, steps
from tilereg.config import Settings
from tilereg.errors import ImageError, OutputError
from tilereg.io.run_folder import RunFolder
from tilereg.io.spot_cells import sliced, write_cells
from tilereg.io.stores import Location
from tilereg.io.tables import read_points, write_spots
from tilereg.lazy import volume
from tilereg.pipeline import plan, register


@pytest.fixture(scope="module")
def _s3() -> Iterator[None]:
    """Start an S3 server that the environment leads to, as it does on a user's machine."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "user")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("rounds")
        yield
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a URL below which nothing is."""
    if request.param == "s3":
        request.getfixturevalue("_s3")
    return f"{request.param}://rounds/{tmp_path.name}"


def settings(*assignments: str) -> Settings:
    return Settings().with_overrides(["output.chunks=[80,80]", "output.levels=2", *assignments])


def test_everything_may_be_remote(
    root: str, flat_pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, places = rounds(2), []
    for name, image in (("fixed", both.fixed), ("moving", both.moving)):
        places.append(write_image(f"{root}/{name}.ome.zarr", voxels(image), image.grid))
    fixed, moving = places
    output = f"{root}/run"
    assert plan(fixed, moving, output).num_warp_tasks == 1

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(volume, "_downsample_unit", stop)
        with pytest.raises(KeyboardInterrupt):
            register(fixed, moving, output, settings=settings())
    assert RunFolder.at(output).marked("match") is not None
    with pytest.raises(OutputError, match="holds a run already"):
        register(fixed, moving, output, settings=settings())
    run = register(fixed, moving, output, settings=settings(), resume=True)
    assert run.output == output
    assert set(Location.of(output).listing()) == RUN_FILES

    local = register(*flat_pair, tmp_path / "run", settings=settings())
    for level in range(2):
        assert np.array_equal(
            read_image(run.registered, level), read_image(local.registered, level)
        )
    points = both.fixed_points
    assert np.array_equal(run.transform(points), local.transform(points))

    warped = steps.warp(moving, output, f"{root}/again.ome.zarr", like=fixed, settings=settings())
    assert np.array_equal(read_image(warped), read_image(run.registered))
    steps.detect(fixed, f"{root}/spots.parquet")
    steps.match(f"{root}/spots.parquet", f"{output}/spots_moving.parquet", f"{root}/match")
    found = steps.points(f"{root}/spots.parquet", f"{root}/match", f"{root}/moved.csv")
    assert found.count == len(read_points(f"{root}/moved.csv")) > 50

    RunFolder.at(output).remove()
    assert set(Location.of(root).listing()) == {
        "again.ome.zarr", "fixed.ome.zarr", "match", "moved.csv", "moving.ome.zarr",
        "spots.parquet",
    }  # fmt: skip


def test_remote_failures_leave_nothing(root: str, flat_pair: tuple[str, str]) -> None:
    with pytest.raises(ImageError, match="Nothing is at"):
        register(flat_pair[0], f"{root}/nothing.ome.zarr", f"{root}/run")
    both = rounds(2)
    empty = np.zeros(both.moving.shape, dtype=np.uint16)
    moving = write_image(f"{root}/empty.ome.zarr", empty, both.moving_grid)
    with pytest.raises(Exception, match="Too few spots"):
        register(flat_pair[0], moving, f"{root}/run")
    assert Location.of(root).listing() == ["empty.ome.zarr"]


def test_tiles_are_read_from_where_they_lie(root: str) -> None:
    rng = np.random.default_rng(0)
    fixed = rng.uniform(0, 120, (6000, 2))
    moving = fixed + [3.0, -2.0] + rng.normal(0, 0.05, fixed.shape)
    places = []
    for role, points in (("one", fixed), ("two", moving)):
        places.append(f"{root}/{role}.parquet")
        write_spots(places[-1], Spots.at(points))
    match = match_tiles(*places, f"{root}/sorted", tile_spots=2000)
    assert match.is_ok
    assert len(match.details["tiles"]) == 4
    again = match_tiles(*places, f"{root}/sorted", tile_spots=2000)
    np.testing.assert_array_equal(match.transform(fixed), again.transform(fixed))
    with pytest.raises(OutputError, match=r"holds 'one\.parquet'"):
        write_cells(root, sliced(Spots.at(fixed)))
    assert set(Location.of(root).listing()) == {"one.parquet", "two.parquet", "sorted"}


@pytest.fixture
def workers_with_s3(_s3: None) -> Iterator[Client]:
    """Return a client of workers that know the S3 server."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_workers_read_their_tiles_from_s3(workers_with_s3: Client, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fixed = rng.uniform(0, 60, (4000, 2))
    moving = fixed + [3.0, -2.0] + rng.normal(0, 0.02, fixed.shape)
    clouds = Spots.at(fixed), Spots.at(moving)
    place = f"s3://rounds/{tmp_path.name}/cells"
    found = match_tiles(*clouds, place, tile_spots=2000, client=workers_with_s3)
    here = match_tiles(*clouds, tmp_path / "cells", tile_spots=2000)
    assert found.is_ok
    np.testing.assert_array_equal(found.transform(fixed), here.transform(fixed))


@pytest.mark.usefixtures("_s3")
def test_a_bucket_that_is_not_there(flat_pair: tuple[str, str]) -> None:
    with pytest.raises(OutputError, match="no-such-bucket") as caught:
        register(*flat_pair, "s3://no-such-bucket/run")
    assert "\n" not in str(caught.value)
