"""How much memory one task may take, wherever it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psutil
from dask.utils import parse_bytes
from distributed.system import MEMORY_LIMIT

from tilereg.lazy.execute import num_cpus

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["num_threads", "task_budget"]

# A Dask worker pauses at this share of its memory; the rest is for what Python does not return.
_SHARE = 0.8
# A process that has read and warped next to nothing.
_PROCESS = 250_000_000


def num_threads(client: Client | None = None, workers: int | None = None) -> int:
    """Return how many tasks run at a time: on a cluster, on workers to be started, or here."""
    if client is not None:
        return max(1, int(sum(client.nthreads().values())))
    return num_cpus() if workers is None else workers


def task_budget(client: Client | None = None, memory: str | None = None) -> int:
    """Return the bytes that one task may take, zero where there is no room at all.

    Parameters
    ----------
    client : distributed.Client, optional
        Where the tasks run. Default: threads of this process.
    memory : str, optional
        Memory of a worker, such as ``4GB``; of this process where there is no client. Default:
        what the cluster says of its workers, or what is available on this machine.
    """
    if client is not None:
        return min(_worker_budgets(client, memory), default=_here(None))
    return _here(memory)


def _here(memory: str | None) -> int:
    """Return the share of one thread of this process."""
    if memory is None:
        # What is available is beside what this process holds already.
        room = _SHARE * min(psutil.virtual_memory().available, MEMORY_LIMIT)
    else:
        room = _SHARE * parse_bytes(memory) - _PROCESS
    return max(0, int(room / num_cpus()))


def _worker_budgets(client: Client, memory: str | None) -> list[int]:
    """Return the share of one thread of every worker that has a limit."""
    # All workers: by default distributed describes five of them.
    described: dict[str, dict[str, Any]] = client.scheduler_info(n_workers=-1)["workers"]
    budgets = []
    for worker in described.values():
        limit = worker["memory_limit"] if memory is None else parse_bytes(memory)
        if limit:
            room = _SHARE * limit - _PROCESS
            budgets.append(max(0, int(room / worker["nthreads"])))
    return budgets
