"""Windows of a volume and boxes of its array, which has more axes, in any order."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from tilereg.errors import InputError
from tilereg.grid import AXES
from tilereg.windows import Window

__all__ = ["check_inside", "full_box", "spatial_block"]


def check_inside(window: Window, shape: tuple[int, ...], what: str) -> None:
    """Check that a window has the axes of a volume and lies inside it."""
    inside = window.ndim == len(shape) and all(
        a >= 0 and b <= n for a, b, n in zip(window.start, window.stop, shape, strict=True)
    )
    if not inside:
        raise InputError(
            f"Window {window.start}..{window.stop} does not lie inside {what}, whose shape is "
            f"{shape}. Clip the window."
        )


def full_box(
    axes: tuple[str, ...], window: Window, *, channel: int, time: int
) -> tuple[tuple[int, int], ...]:
    """Return the box of all axes, in their order, of a window of one channel and time."""
    spatial = [axis for axis in AXES if axis in axes]
    ranges = dict(zip(spatial, zip(window.start, window.stop, strict=True), strict=True))
    ranges |= {"c": (channel, channel + 1), "t": (time, time + 1)}
    return tuple(ranges[axis] for axis in axes)


def spatial_block(block: NDArray[Any], axes: tuple[str, ...]) -> NDArray[Any]:
    """Return a block of all axes as (z, y, x) or (y, x); time and channel have one element."""
    spatial = [axis for axis in AXES if axis in axes]
    others = [axis for axis in axes if axis not in spatial]
    order = [axes.index(axis) for axis in [*others, *spatial]]
    ordered: NDArray[Any] = block.transpose(order)[(0,) * len(others)]
    return ordered
