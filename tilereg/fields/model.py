"""What a field is made of, by name, and which parameters each kind has."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tilereg.errors import InputError

__all__ = ["KERNELS", "MODELS", "MOST_DEGREE", "PARAMETERS", "FieldModel", "Kernel", "misuse"]

MOST_DEGREE = 3
"""A lattice of cubic B-splines holds polynomials of this degree exactly."""


@dataclass(frozen=True)
class Kernel:
    """What is known of a radial function, named as in `scipy.interpolate.RBFInterpolator`.

    Parameters
    ----------
    least_degree : int
        Of the polynomial beside it, so that the fit has one solution and affine maps are free.
    power : int
        In a unit that is c times smaller, the same smoothing is the c-th power of this as large.
    """

    least_degree: int
    power: int


KERNELS = {
    "linear": Kernel(1, 1),
    "thin_plate_spline": Kernel(1, 2),
    "cubic": Kernel(1, 3),
    "quintic": Kernel(2, 5),
    "gaussian": Kernel(1, 0),
}
"""Known radial functions."""

MODELS: dict[str, frozenset[str]] = {
    "thin-plate": frozenset({"smoothing", "spacing"}),
    "kriging": frozenset(),
    "radial": frozenset({"kernel", "smoothing", "degree", "beta", "control_points", "tolerance"}),
    "polynomial": frozenset({"degree"}),
}
"""Parameters of each model."""

PARAMETERS = ("kernel", "smoothing", "degree", "beta", "control_points", "spacing", "tolerance")
"""Those of any model."""


@dataclass(frozen=True, kw_only=True)
class FieldModel:
    """A kind of field, and its parameters; what is None is chosen from the pairs.

    Parameters
    ----------
    name : str
        'thin-plate': a thin-plate spline on a lattice, robust, linear in the pairs. 'kriging':
        the prior that predicts each pair from the others (`tilereg.kriging`). 'radial': an exact
        sum of radial functions around control points. 'polynomial': of degree 1 to 3.
    kernel : str, optional
        Of 'radial': one of `KERNELS`. Default 'thin_plate_spline'.
    smoothing : float, optional
        Of 'radial', as `scipy.interpolate.RBFInterpolator` has it for coordinates in micrometre;
        of 'thin-plate', as `tilereg.fit_field` has it.
    degree : int, optional
        Of 'polynomial', and of the polynomial beside the functions of 'radial'; 1 to 3.
    beta : float, micrometre, optional
        Of 'radial' with the kernel 'gaussian': its width.
    control_points : int, optional
        Of 'radial': most centres. Default 2000.
    spacing : float, micrometre, optional
        Of 'thin-plate': distance of the nodes.
    tolerance : float, micrometre, optional
        Of 'radial': largest error of the lattice that holds it. Default a hundredth of the mean
        spacing of the pairs.
    robust : bool
        Whether pairs that contradict their neighbours are weighted down.

    Raises
    ------
    InputError
        If a name is unknown, or a parameter is given that the model does not have.
    """

    name: str = "thin-plate"
    kernel: str | None = None
    smoothing: float | None = None
    degree: int | None = None
    beta: float | None = None
    control_points: int | None = None
    spacing: float | None = None
    tolerance: float | None = None
    robust: bool = True

    def __post_init__(self) -> None:
        """Check that the parameters are the model's."""
        if self.name not in MODELS:
            raise InputError(f"Invalid model '{self.name}'. Known models: {', '.join(MODELS)}.")
        if self.kernel is not None and self.kernel not in KERNELS:
            raise InputError(
                f"Invalid kernel '{self.kernel}'. Known kernels: {', '.join(KERNELS)}."
            )
        problem = misuse(self.name, self.given, self.kernel, self.degree)
        if problem is None and self.name == "kriging" and not self.robust:
            problem = (
                "The model 'kriging' always leaves out pairs that contradict their neighbours: "
                "leave robust=False out, or use another model."
            )
        if problem is not None:
            raise InputError(problem)

    @property
    def given(self) -> dict[str, Any]:
        """The parameters that are not None."""
        return {key: getattr(self, key) for key in PARAMETERS if getattr(self, key) is not None}


def misuse(
    name: str,
    given: Collection[str],
    kernel: str | None,
    degree: int | None,
    *,
    prefix: str = "",
) -> str | None:
    """Say which parameters a model has no use for; None where all are its own.

    Parameters
    ----------
    name : str
        A model; one that is not in `MODELS` has no parameters.
    given : collection of str
        Names of the parameters that are given.
    kernel, degree : optional
        Those two, as they are given.
    prefix : str
        What parameters are called by, such as 'field.'.
    """
    for key in given:
        owners = [f"'{model}'" for model, its in MODELS.items() if key in its]
        if key not in MODELS.get(name, ()):
            return (
                f"{prefix}{key} and the model '{name}' contradict each other: it is a parameter of "
                f"{' and '.join(owners)}. Leave it out, or set {prefix}model to one of these."
            )
    if "beta" in given and kernel != "gaussian":
        return (
            f"{prefix}beta is the width of the kernel 'gaussian', not of "
            f"'{kernel or 'thin_plate_spline'}'. Leave it out, or set {prefix}kernel to 'gaussian'."
        )
    if kernel is not None and degree is not None and degree < KERNELS[kernel].least_degree:
        return (
            f"{prefix}degree = {degree} is too low for the kernel '{kernel}'. It must be "
            f"{KERNELS[kernel].least_degree} or more."
        )
    return None
