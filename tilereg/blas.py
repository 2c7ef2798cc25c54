"""Threads of the linear algebra library."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from threadpoolctl import ThreadpoolController

__all__ = ["one_thread"]

# The limit is the process's: two threads that hold it at once would each restore what they saw.
_LOCK = threading.RLock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold the linear algebra of this process to one thread; another holder waits.

    Matrices of a few hundred rows gain little from more, and the waiting threads spin: on a busy
    machine that costs many times what the work does.
    """
    with _LOCK, _blas().limit(limits=1, user_api="blas"):
        yield


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """Return the control of the linear algebra's threads."""
    return ThreadpoolController()
