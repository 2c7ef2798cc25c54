"""How far pairs agree with their neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tilereg import agreement as module
from tilereg.agreement import agreement

Floats = NDArray[np.float64]


def make_pairs(count: int, ndim: int, seed: int = 0) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1.8 * count ** (1 / ndim), (count, ndim))
    return points, 1.02 * points + np.sin(points / 9) + rng.normal(0, 0.05, points.shape)


@pytest.mark.parametrize("ndim", [2, 3])
def test_wrong_pairs_are_told_from_right_ones(ndim: int) -> None:
    points, targets = make_pairs(400, ndim)
    rng = np.random.default_rng(1)
    wrong = rng.random(400) < 0.15
    targets[wrong] += rng.normal(0, 2, (int(wrong.sum()), ndim))
    found = agreement(points, targets, np.ones(400))
    assert found[wrong].mean() < 0.1
    assert found[~wrong].mean() > 0.85
    assert (found[~wrong] < 0.1).mean() < 0.02


def test_a_bump_is_no_contradiction() -> None:
    points, targets = make_pairs(1000, 3)
    square = ((points - points.mean(axis=0)) ** 2).sum(axis=1, keepdims=True)
    targets += np.exp(-0.5 * square / 3**2)
    found = agreement(points, targets, np.ones(1000))
    assert (found < 0.1).mean() < 0.005
    assert found[square[:, 0] < 3**2].min() > 0.1


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_affine_map_agrees(ndim: int) -> None:
    points = make_pairs(100, ndim)[0]
    targets = points @ np.random.default_rng(2).normal(size=(ndim, ndim)) + 7
    np.testing.assert_allclose(agreement(points, targets, np.ones(100)), 1.0, atol=1e-4)


def test_neighbours_without_weight_are_not_heard() -> None:
    points, targets = make_pairs(300, 3)
    weight = np.ones(300)
    weight[::3] = 0.0
    spoiled = targets.copy()
    spoiled[::3] += 30.0
    heard = weight > 0
    clean = agreement(points, targets, weight)[heard]
    # What they are missed by is still looked at, so limits move a little where they are many.
    assert (agreement(points, spoiled, weight)[heard] > 0.3).mean() > 0.95
    assert clean.min() >= 0


def test_order_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points, targets = make_pairs(300, 3)
    weight = np.random.default_rng(3).uniform(0.1, 1, 300)
    plain = agreement(points, targets, weight)
    order = np.random.default_rng(4).permutation(300)
    shuffled = agreement(points[order], targets[order], weight[order])
    np.testing.assert_allclose(shuffled, plain[order], atol=1e-9)
    monkeypatch.setattr(module, "_CHUNK", 7)
    np.testing.assert_array_equal(agreement(points, targets, weight), plain)


def test_hard_layouts() -> None:
    rng = np.random.default_rng(5)
    line = np.outer(np.arange(40.0), [1, 2, 3])
    twice = np.repeat(rng.uniform(0, 9, (20, 3)), 2, axis=0)
    for points in (line, twice, np.ones((30, 3)), rng.uniform(0, 9, (5, 3))):
        found = agreement(points, points + 1.0, np.ones(len(points)))
        np.testing.assert_allclose(found, 1.0, atol=1e-4)
