"""Farthest-point sampling against the plain method, and its theorems."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.errors import InputError
from tilereg.sampling import farthest_points


def plain_farthest_points(points: NDArray[np.float64], count: int, start: int) -> list[int]:
    """Choose by the definition, all distances at every step."""
    chosen = [start]
    squared = np.full(len(points), np.inf)
    while len(chosen) < count:
        gap = points[chosen[-1]] - points
        total = gap[:, 0] * gap[:, 0]
        for axis in range(1, points.shape[1]):
            total = total + gap[:, axis] * gap[:, axis]
        squared = np.minimum(squared, total)
        squared[chosen[-1]] = -1.0
        chosen.append(int(np.argmax(squared)))
    return chosen


def clouds() -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(7)
    clustered = rng.normal(size=(40, 3))[rng.integers(0, 40, 900)] * 1e3
    return {
        "uniform 3D": rng.uniform(0, 100, (1000, 3)),
        "uniform 2D": rng.uniform(0, 100, (777, 2)),
        "clustered, with an outlier": np.vstack(
            [clustered + rng.normal(size=(900, 3)), [[1e7] * 3]]
        ),
        "lattice full of ties": np.argwhere(np.ones((9, 9, 9))).astype(float),
        "one plane": rng.uniform(0, 50, (500, 3)) * [0, 1, 1],
        "duplicates": np.repeat(rng.uniform(0, 9, (30, 3)), 10, axis=0),
        "all the same": np.ones((70, 3)),
        "one point": np.zeros((1, 3)),
    }


@pytest.mark.parametrize("name", clouds())
def test_equals_the_plain_method(name: str) -> None:
    points = clouds()[name]
    count = min(len(points), 200)
    for start in (0, len(points) - 1):
        found = farthest_points(points, count, start=start)
        assert found.tolist() == plain_farthest_points(points, count, start)


def test_all_points_are_a_permutation() -> None:
    points = clouds()["duplicates"]
    assert sorted(farthest_points(points, len(points))) == list(range(len(points)))


def test_covers_and_separates() -> None:
    points = clouds()["uniform 3D"]
    sample = farthest_points(points, 101)
    tree = cKDTree(points[sample[:-1]])
    radius = tree.query(points[sample[-1]])[0]
    assert tree.query(points)[0].max() == pytest.approx(radius)
    assert cKDTree(points[sample]).query(points[sample], k=2)[0][:, 1].min() >= radius - 1e-9


def test_unit_and_shorter_samples_do_not_matter() -> None:
    points = clouds()["clustered, with an outlier"]
    sample = farthest_points(points, 50, start=3)
    # A power of two scales every distance exactly.
    assert (farthest_points(points * 2.0**-40, 50, start=3) == sample).all()
    assert (farthest_points(points, 20, start=3) == sample[:20]).all()


@pytest.mark.parametrize(
    ("count", "start", "words"), [(0, 0, "choose 0"), (4, 0, "choose 4 of 3"), (1, 3, "start 3")]
)
def test_refuses_what_is_out_of_range(count: int, start: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        farthest_points(np.zeros((3, 2)), count, start=start)
