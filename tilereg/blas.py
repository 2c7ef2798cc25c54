"""Threads of the linear algebra library."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache

from threadpoolctl import ThreadpoolController

__all__ = ["one_thread"]


def one_thread() -> AbstractContextManager[object]:
    """Hold the linear algebra to one thread.

    Matrices of a few hundred rows gain little from more, and the waiting threads spin: on a busy
    machine that costs many times what the work does.
    """
    limit: AbstractContextManager[object] = _blas().limit(limits=1, user_api="blas")
    return limit


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """Return the control of the linear algebra's threads."""
    return ThreadpoolController()
