"""The errors that tilereg raises, all below one base class.

A message names the value, the rule, the place and the remedy; the command line
prints it as one line and exits with 1.
"""

from __future__ import annotations

__all__ = [
    "ImageError",
    "InputError",
    "OutputError",
    "RegistrationError",
    "ResourceError",
    "SettingsError",
    "TileregError",
]


class TileregError(Exception):
    """Base of every error that tilereg raises on purpose."""


class InputError(TileregError, ValueError):
    """An argument (an array, a table, a number) breaks a rule."""


class ImageError(InputError):
    """An image on disk is missing, is not what it claims to be, or is damaged."""


class SettingsError(InputError):
    """A setting is unknown or has a value that is not allowed."""


class OutputError(TileregError):
    """An output exists already, belongs to another run, or cannot be written."""


class ResourceError(TileregError):
    """A task needs more memory or disk than there is."""


class RegistrationError(TileregError):
    """No registration that chance could not explain was found."""
