"""Writing TOML, which the standard library only reads."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

__all__ = ["dump_tables", "dump_value", "parse_value"]


def dump_tables(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one level of tables as TOML; empty tables are left out.

    Parameters
    ----------
    tables : mapping of str to mapping
        Keys are bare: letters, digits, dashes and underscores. Values as in `dump_value`.

    Examples
    --------
    >>> print(dump_tables({"detect": {"sigma": (0.8, 0.4), "polarity": "bright"}}), end="")
    [detect]
    sigma = [0.8, 0.4]
    polarity = "bright"
    """
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {dump_value(value)}\n" for key, value in table.items())
        for name, table in tables.items()
        if table
    )


def dump_value(value: Any) -> str:
    """Return a value as TOML.

    Parameters
    ----------
    value : bool, int, float, str, or a list or tuple of them
        Anything else comes back as Python writes it, which is good for messages only.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + re.sub(r'[\x00-\x1f\x7f"\\]', _escape, value) + '"'
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(dump_value(item) for item in value) + "]"
    return repr(value)


def _escape(match: re.Match[str]) -> str:
    """Return the TOML escape of one character."""
    character = match.group()
    return f"\\{character}" if character in '"\\' else f"\\u{ord(character):04x}"


def parse_value(text: str) -> Any:
    """Read a boolean, number, text or array; anything else is text without quotes."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # A line break would smuggle in more keys; dates and inline tables are no values here.
    value = table["value"]
    return value if len(table) == 1 and isinstance(value, (bool, int, float, str, list)) else text
