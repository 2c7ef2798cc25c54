"""A setting: what it may be, and what is said about a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from tilereg.columns import Columns
from tilereg.toml import dump_value

__all__ = [
    "CHANNEL_RULE",
    "COLUMNS_RULE",
    "LENGTHS_RULE",
    "MASK_RULE",
    "REGION_RULE",
    "TABLE_RULE",
    "VOXELS_RULE",
    "ByteSize",
    "Channel",
    "Channels",
    "ColumnsText",
    "Count",
    "Index",
    "NotNegative",
    "PerAxis",
    "Positive",
    "Region",
    "Text",
    "VoxelsPerAxis",
    "explain",
    "rule_of",
    "setting",
]


def _as_tuple(value: Any) -> Any:
    """Make TOML's arrays the tuples of the models; leave anything else alone."""
    return tuple(value) if isinstance(value, list) else value


def _as_corners(value: Any) -> Any:
    """Make TOML's nested arrays the tuples of the models; leave anything else alone."""
    return tuple(_as_tuple(corner) for corner in value) if isinstance(value, list) else value


def _checked_region(value: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    """Return the corners of a box, if they are."""
    low, high = value
    if len(low) not in (2, 3) or len(low) != len(high):
        raise PydanticCustomError("region", "Two corners of as many axes are needed.")
    if any(a >= b for a, b in zip(low, high, strict=True)):
        raise PydanticCustomError("region", "The lower corner comes first.")
    return value


def _as_columns(value: str) -> str:
    """Return what the columns of a table are called, if it is understood."""
    Columns.parse(value)
    return value


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
TwoOrThree = Field(min_length=2, max_length=3)
PerAxis = Annotated[tuple[Positive, ...], BeforeValidator(_as_tuple), TwoOrThree]
VoxelsPerAxis = Annotated[tuple[Count, ...], BeforeValidator(_as_tuple), TwoOrThree]
Region = Annotated[
    tuple[tuple[float, ...], tuple[float, ...]],
    BeforeValidator(_as_corners),
    AfterValidator(_checked_region),
]
Index = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Channel = Index | Text
Channels = Annotated[tuple[Channel, ...], BeforeValidator(_as_tuple)]
ColumnsText = Annotated[str, AfterValidator(_as_columns)]
ByteSize = Annotated[str, Field(pattern=r"^\d+(\.\d+)?\s?([kMGT]i?)?B$")]

CHANNEL_RULE = "a channel's number (from 0) or its name"
COLUMNS_RULE = "columns by role, as in z=centroid-0,y=centroid-1,x=centroid-2,class=gene"
MASK_RULE = "the location of an OME-Zarr image or label image"
TABLE_RULE = "the location of a .csv or .parquet table"
LENGTHS_RULE = "a number > 0 (um), or one an axis in the order z, y, x"
REGION_RULE = "the lower and the upper corner of a box in um, as in [[0, 0, 0], [30, 500, 500]]"
VOXELS_RULE = "two or three integers >= 1, in the order z, y, x"


def setting(default: Any, rule: str, description: str) -> Any:
    """Return a field with the rule that its error message quotes."""
    return Field(default, description=description, json_schema_extra={"rule": rule})


def rule_of(info: FieldInfo) -> str:
    """Return what values a setting may have."""
    extra = info.json_schema_extra
    return str(extra["rule"]) if isinstance(extra, dict) else ""


def _unknown(section: str, key: str, sections: Mapping[str, type[BaseModel]]) -> str:
    """Say that a section or a key is unknown, and what was perhaps meant."""
    if not section:
        known = list(sections)
        close = difflib.get_close_matches(key, known, n=1)
        hint = f" Did you mean [{close[0]}]?" if close else ""
        return f"Section [{key}] is unknown.{hint} Known: {', '.join(known)}."
    known = list(sections[section].model_fields)
    elsewhere = [f"{name}.{key}" for name, table in sections.items() if key in table.model_fields]
    close = elsewhere[:1] or [f"{section}.{k}" for k in difflib.get_close_matches(key, known, n=1)]
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{section}.{key} is unknown.{hint} Known in [{section}]: {', '.join(known)}."


def explain(
    error: ValidationError,
    section: str,
    values: Mapping[str, Any],
    sections: Mapping[str, type[BaseModel]],
) -> list[str]:
    """Return one sentence or two an offender.

    Parameters
    ----------
    error : pydantic.ValidationError
    section : str
        Of the table that was to be made; empty for that of all sections.
    values : mapping
        What it was to be made of.
    sections : mapping of str to model
        All that there are.
    """
    lines: dict[str, str] = {}
    for item in error.errors(include_url=False):
        key = str(item["loc"][0]) if item["loc"] else ""
        reason = item.get("ctx", {}).get("error")
        if isinstance(reason, ValueError):
            # A section's own explanation, or a rule that joins several settings.
            lines[key] = str(reason)
        elif item["type"] == "extra_forbidden":
            lines[key] = _unknown(section, key, sections)
        elif not section:
            lines[key] = f"{key} is not a table. Write a section [{key}] with settings below."
        else:
            # A union reports each of its members; the whole value and one rule say it once.
            rule = rule_of(sections[section].model_fields[key])
            value = dump_value(values[key])
            lines[key] = f"{section}.{key} = {value} is not allowed. It must be {rule}."
    return list(lines.values())
