"""The engines by name. Each is a function of a problem and a pose, in a module of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from tilereg.errors import InputError
from tilereg.matching.coarse import Coarse
from tilereg.matching.problem import Found, Problem

__all__ = ["METHODS", "Engine", "check_given", "check_installed", "engine"]

Engine = Callable[[Problem, Coarse], Found]

# Module and function; imported when asked for, as some need packages that may be missing.
_PLACES = {
    "cpd": "cpd.cpd",
    "cpd-dense": "cpd_dense.cpd_dense",
    "ransac": "ransac.ransac",
    "icp": "icp.icp",
    "transport": "transport.transport",
    "probreg": "probreg.probreg",
    "probreg-filterreg": "probreg.probreg_filterreg",
}

METHODS = tuple(_PLACES)

# Engines that need a package of an extra; their modules tell whether it is there.
_EXTRA = {"probreg", "probreg-filterreg"}

# What else an engine can use. What is not named here is refused, never ignored in silence.
_USED = {method: {"spot classes"} for method in ("cpd", "cpd-dense", "ransac", "icp", "transport")}
_USED["cpd"] |= {"landmarks", "spot weights"}


def engine(method: str) -> Engine:
    """Return an engine.

    Raises
    ------
    InputError
        If there is none of this name.
    """
    if method not in _PLACES:
        raise InputError(f"Invalid method '{method}'. Known methods: {', '.join(METHODS)}.")
    module, function = _PLACES[method].split(".")
    found: Engine = getattr(import_module(f"tilereg.matching.{module}"), function)
    return found


def check_installed(method: str) -> None:
    """Raise if an engine needs a package that cannot be imported, before any work is done.

    Raises
    ------
    InputError
        Saying what is missing, and what to do.
    """
    if method in _EXTRA:
        module = import_module(f"tilereg.matching.{_PLACES[method].split('.')[0]}")
        module.check_installed()


def check_given(method: str, given: Mapping[str, bool]) -> None:
    """Raise if an engine cannot use what is given.

    Parameters
    ----------
    method : str
    given : mapping of str to bool
        What there may be, and whether it is there.

    Raises
    ------
    InputError
        Naming the engines that can.
    """
    for what, is_there in given.items():
        if is_there and what not in _USED.get(method, set()):
            able = ", ".join(f"'{name}'" for name in METHODS if what in _USED.get(name, set()))
            raise InputError(
                f"Method '{method}' cannot use {what}. Use one of {able}, or leave them out."
            )
