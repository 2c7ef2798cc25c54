"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from distributed import Client, LocalCluster

# The pipeline is imported where it is needed: most tests look at one module and start at once.
if TYPE_CHECKING:
    from tilereg.pipeline import Run


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """Return a client of two worker processes with one thread each."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the locations of a small fixed and a small moving volume; do not change them."""
    from scenes import write_rounds

    return write_rounds(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def flat_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the same in two dimensions."""
    from scenes import write_rounds

    return write_rounds(tmp_path_factory.mktemp("flat"), 2)


@pytest.fixture(scope="session")
def finished(pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the run of the small volumes with all defaults; do not change its folder."""
    from tilereg.pipeline import register

    return register(*pair, tmp_path_factory.mktemp("run") / "run")
