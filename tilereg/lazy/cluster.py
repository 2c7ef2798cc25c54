"""Which Dask does the work: threads of this process, worker processes, or a cluster."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
from dask.utils import format_bytes, parse_bytes
from distributed import Client, LocalCluster
from distributed.system import MEMORY_LIMIT

from tilereg.errors import InputError, ResourceError

__all__ = ["SCHEDULER_TIMEOUT", "connect"]

SCHEDULER_TIMEOUT = 10.0
"""Seconds in which a scheduler must answer."""


@contextmanager
def connect(
    *,
    scheduler: str | None = None,
    scheduler_file: str | Path | None = None,
    workers: int | None = None,
    memory: str | None = None,
    timeout: float = SCHEDULER_TIMEOUT,
) -> Iterator[Client | None]:
    """Connect to the Dask that was asked for, and leave it at the end of the block.

    At most one of `scheduler`, `scheduler_file` and `workers` is given. Without any, the work
    is done by threads of this process: a scheduler that Dask's own configuration names is
    used only where ``scheduler="dask"`` asks for it.

    Parameters
    ----------
    scheduler : str, optional
        Address such as ``tcp://host:8786``, or ``dask`` for the address in Dask's
        configuration (``DASK_SCHEDULER_ADDRESS``).
    scheduler_file : str or Path, optional
        File that a scheduler wrote, as job queues use.
    workers : int, optional
        Number of worker processes to start on this machine, with one thread each.
    memory : str, optional
        Memory of each of these workers, such as ``4GB``. Default: an equal share.
    timeout : float, seconds

    Yields
    ------
    distributed.Client or None
        None where threads of this process are meant.

    Raises
    ------
    InputError
        If more than one place is given, or an address, file or number is not valid.
    ResourceError
        If the scheduler does not answer, or the workers need more memory than there is.
    """
    given = {"scheduler": scheduler, "scheduler_file": scheduler_file, "workers": workers}
    asked = [name for name, value in given.items() if value is not None]
    if len(asked) > 1:
        raise InputError(
            f"{' and '.join(asked)} are given together. Only one place can do the work: keep one."
        )
    if workers is not None:
        with _local_cluster(workers, memory) as cluster, Client(cluster) as client:
            yield client
        return
    address = _read_scheduler_file(Path(scheduler_file)) if scheduler_file else scheduler
    if address is None:
        yield None
        return
    if address == "dask":
        address = _configured_address()
    with _remote_client(address, timeout) as client:
        yield client


def _local_cluster(workers: int, memory: str | None) -> LocalCluster:
    """Start worker processes on this machine."""
    if workers < 1:
        raise InputError(f"Invalid number of workers {workers}. At least one is needed.")
    limit = MEMORY_LIMIT // workers if memory is None else _parse_memory(memory)
    if limit * workers > MEMORY_LIMIT:
        raise ResourceError(
            f"{workers} workers of {format_bytes(limit)} need {format_bytes(limit * workers)}, "
            f"more than the {format_bytes(MEMORY_LIMIT)} of this machine. Use fewer workers or "
            "give them less memory."
        )
    # Any free port for the status page: the usual one is taken where two runs share a machine.
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=limit,
        dashboard_address=":0",
        # A failing task is reported once, by its own error, and not by every worker as well.
        silence_logs=logging.CRITICAL,
    )


def _parse_memory(memory: str) -> int:
    """Return a size in bytes."""
    try:
        size = int(parse_bytes(memory))
    except ValueError as error:
        raise InputError(
            f"Invalid memory '{memory}'. Write a number and a unit, such as 4GB or 512MiB."
        ) from error
    if size <= 0:
        raise InputError(f"Invalid memory '{memory}'. It must be above zero.")
    return size


def _read_scheduler_file(path: Path) -> str:
    """Return the address in a scheduler file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"Cannot read the scheduler file '{path}': {error.strerror or error}. Start a "
            f"scheduler first: dask scheduler --scheduler-file {path}"
        ) from error
    try:
        return str(json.loads(text)["address"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{path}' is not a scheduler file: it holds no address. Give the file that "
            "'dask scheduler --scheduler-file' wrote."
        ) from error


def _configured_address() -> str:
    """Return the address in Dask's own configuration."""
    address = dask.config.get("scheduler-address", None)
    if not address:
        raise InputError(
            "Scheduler 'dask' means the one in Dask's configuration, and that names none. Set "
            "DASK_SCHEDULER_ADDRESS, or give an address."
        )
    return str(address)


def _remote_client(address: str, timeout: float) -> Client:
    """Connect to a scheduler that runs already."""
    try:
        return Client(address, timeout=timeout)
    except OSError as error:
        raise ResourceError(
            f"No scheduler answers at '{address}' within {timeout:g} s. Check that it runs, that "
            "the address is right, and that this machine may reach it."
        ) from error
    except (ValueError, TypeError) as error:
        raise InputError(
            f"Invalid scheduler address '{address}': {error}. Write it like tcp://host:8786."
        ) from error
