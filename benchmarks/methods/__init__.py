"""Methods that recover the map from the fixed to the moving image, a module a family.

Every method is a function of a `Scene` that returns `Recovered`. `METHODS` lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from benchmarks.methods.scene import Recovered, Scene

__all__ = ["METHODS", "Method", "Recovered", "Scene", "choose"]


@dataclass(frozen=True)
class Method:
    """Where a method is, and what it needs."""

    place: str
    """Module and function below this package."""
    about: str
    """One line for tables."""
    needs: str = "spots"
    """'spots', 'images' or 'truth'; methods that need spots are charged for their detection."""
    is_slow: bool = False
    """Whether it takes minutes on `medium`."""

    def load(self) -> Callable[[Scene], Recovered]:
        """Import the method; raises ImportError where its package is missing."""
        module, function = self.place.rsplit(".", 1)
        loaded: Callable[[Scene], Recovered] = getattr(
            import_module(f"benchmarks.methods.{module}"), function
        )
        return loaded


METHODS: dict[str, Method] = {
    "identity": Method("oracles.identity", "nothing is moved", needs="truth"),
    "demons": Method(
        "demons.as_published",
        "SimpleITK diffeomorphic demons, exactly as published",
        needs="images",
        is_slow=True,
    ),
    "demons-pyramid": Method(
        "demons.in_a_pyramid",
        "the same, coarse to fine over four smoothed levels",
        needs="images",
        is_slow=True,
    ),
    "mutual-nn": Method(
        "neighbours.plain", "mutual nearest neighbours, smoothing thin-plate spline"
    ),
    "mutual-nn-affine": Method("neighbours.after_affine", "mutual-nn after a robust affine"),
    "ransac": Method("neighbours.ransac", "scikit-image RANSAC for an affine, then mutual-nn"),
    "icp": Method("neighbours.icp", "ICP: affine, then ever softer thin-plate splines"),
    "transport": Method(
        "assignment.transport", "optimal assignment with a cost of not matching, spline"
    ),
    "recipe": Method("drift.recipe", "farthest-point samples, CPD (pycpd), radial basis functions"),
    "pycpd": Method("drift.pycpd", "pycpd 2.0, affine then deformable"),
    "biocpd": Method("drift.biocpd", "biocpd 1.3, robust affine, then deformable"),
    "probreg": Method("drift.probreg", "probreg CPD, affine then nonrigid"),
    "tilereg": Method("ours.tilereg", "matching and field of `tilereg register`, defaults"),
    "spline-oracle": Method(
        "oracles.spline_oracle",
        "smoothing thin-plate spline through the true pairs, noise 0.05 voxel",
        needs="truth",
    ),
    "detected-oracle": Method(
        "oracles.detected_oracle",
        "smoothing thin-plate spline through the detected spots, truly paired",
    ),
    "true-field": Method("oracles.true_field", "the true map", needs="truth"),
}


def choose(wanted: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
    """Return the methods that were asked for, or the default ones."""
    unknown = [name for name in wanted if name not in METHODS]
    if unknown:
        raise SystemExit(f"Unknown method '{unknown[0]}'. Known: {', '.join(METHODS)}.")
    return wanted or default
