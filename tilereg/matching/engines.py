"""The engines by name. Each is a function of a problem and a pose, in a module of its own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from tilereg.errors import InputError
from tilereg.matching.coarse import Coarse
from tilereg.matching.problem import Found, Problem

__all__ = ["METHODS", "Engine", "engine"]

Engine = Callable[[Problem, Coarse], Found]

# Module and function; imported when asked for, as some need packages that may be missing.
_PLACES = {"cpd": "cpd.cpd"}

METHODS = tuple(_PLACES)


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
