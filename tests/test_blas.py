"""Threads of the linear algebra are given back, however many hold them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from tilereg.blas import one_thread


def threads() -> set[int]:
    np.dot(np.ones((2, 2)), np.ones((2, 2)))
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_threads_are_given_back() -> None:
    def seen(_: int) -> set[int]:
        with one_thread(), one_thread():
            return threads()

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        with one_thread():
            assert threads() == {1}
        assert threads() == before
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(seen, range(40))) == [{1}] * 40


def test_threads_of_several_holders_are_given_back() -> None:
    before = threads()

    def hold(_: int) -> None:
        with one_thread():
            threads()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, range(200)))
    assert threads() == before
