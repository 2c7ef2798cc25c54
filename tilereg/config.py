"""The settings of a run: validated, read from and written to TOML.

A setting is found under ``section.key``. Where a default is None, nothing is written to
TOML and the value is worked out from the data.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from tilereg.errors import SettingsError
from tilereg.sections import (
    SECTIONS,
    ComputeSettings,
    DetectSettings,
    FieldSettings,
    InitialSettings,
    InputSettings,
    MatchSettings,
    OutputSettings,
    SpotsSettings,
    Table,
    WarpSettings,
)
from tilereg.setting import rule_of
from tilereg.toml import dump_tables, dump_value, parse_value

__all__ = [
    "ComputeSettings",
    "DetectSettings",
    "FieldSettings",
    "InitialSettings",
    "InputSettings",
    "MatchSettings",
    "OutputSettings",
    "SettingInfo",
    "Settings",
    "SpotsSettings",
    "WarpSettings",
]


@dataclass(frozen=True, kw_only=True)
class SettingInfo:
    """One row of the table of all settings."""

    name: str
    """Full name, ``section.key``."""
    default: str
    """The default as it is written in TOML; '(automatic)' where there is none."""
    rule: str
    """What values are allowed."""
    description: str
    """What it does, with its unit."""


class Settings(Table):
    """Every setting of a run.

    Raises
    ------
    SettingsError
        If a section, a key or a value is not allowed; all offenders are named.

    Examples
    --------
    >>> settings = Settings().with_overrides(["detect.sigma=0.4", "warp.order=0"])
    >>> settings.detect.sigma, settings.warp.order
    (0.4, 0)
    """

    input: InputSettings = Field(default_factory=InputSettings)
    detect: DetectSettings = Field(default_factory=DetectSettings)
    spots: SpotsSettings = Field(default_factory=SpotsSettings)
    initial: InitialSettings = Field(default_factory=InitialSettings)
    match: MatchSettings = Field(default_factory=MatchSettings)
    field: FieldSettings = Field(default_factory=FieldSettings)
    warp: WarpSettings = Field(default_factory=WarpSettings)
    output: OutputSettings = Field(default_factory=OutputSettings)
    compute: ComputeSettings = Field(default_factory=ComputeSettings)

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.field.model == "kriging" and self.match.beta is not None:
            raise ValueError(
                f"field.model = 'kriging' and match.beta = {dump_value(self.match.beta)} "
                "contradict each other: kriging chooses its own width. Leave one out."
            )
        return self

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, place: str = "the settings") -> Settings:
        """Make settings of nested tables, as `tomllib` returns them.

        Parameters
        ----------
        values : mapping of str to mapping
        place : str
            Where the values come from, for error messages.

        Raises
        ------
        SettingsError
            If a section, a key or a value is not allowed; all offenders are named.
        """
        try:
            return _settings(values)
        except SettingsError as error:
            raise SettingsError(f"Invalid settings in {place}: {error}") from None

    @classmethod
    def from_toml(cls, path: str | Path) -> Settings:
        """Read settings from a TOML file; what is not in it keeps its default.

        Raises
        ------
        SettingsError
            If the file cannot be read, is not TOML, or holds a setting that is not allowed.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(
                f"Cannot read the settings in '{path}': {error.strerror or error}. "
                "Give the path of a TOML file."
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"The settings in '{path}' are not valid TOML: {error}. "
                "Write sections as [detect] and settings as sigma = 0.4, text in quotes."
            ) from error
        return cls.from_mapping(values, place=f"'{path}'")

    def with_overrides(self, assignments: Iterable[str]) -> Settings:
        """Return settings with some replaced.

        Parameters
        ----------
        assignments : iterable of str
            Each ``section.key=value``, the value as in TOML; text needs no quotes unless it
            looks like a number. An empty value brings the default back.

        Raises
        ------
        SettingsError
            If an assignment is not of this form, or is not allowed; all offenders are named.
        """
        tables = self._tables()
        problems = []
        for text in assignments:
            name, equals, value = text.partition("=")
            section, dot, key = name.strip().partition(".")
            if not (equals and dot and section and key):
                problems.append(f"'{text}' is not of the form section.key=value.")
                continue
            table = tables.setdefault(section, {})
            known = section in SECTIONS and key in SECTIONS[section].model_fields
            if known and not value.strip():
                table.pop(key, None)
            else:
                table[key] = parse_value(value.strip())
        try:
            result = _settings(tables)
        except SettingsError as error:
            problems.append(str(error))
        if problems:
            raise SettingsError(f"Invalid settings in --set: {' '.join(problems)}")
        return result

    def to_toml(self) -> str:
        """Return the settings as TOML that `from_toml` reads back to the same.

        Settings that are None are left out: their absence means the same.
        """
        return dump_tables(self._tables())

    @classmethod
    def describe(cls) -> tuple[SettingInfo, ...]:
        """Return one row a setting, for help texts."""
        return tuple(
            SettingInfo(
                name=f"{section}.{key}",
                default="(automatic)" if info.default is None else dump_value(info.default),
                rule=rule_of(info),
                description=info.description or "",
            )
            for section, table in SECTIONS.items()
            for key, info in table.model_fields.items()
        )

    def _tables(self) -> dict[str, dict[str, Any]]:
        """Return what is not None, as nested dictionaries."""
        return {
            section: {key: value for key, value in getattr(self, section) if value is not None}
            for section in type(self).model_fields
        }


def _settings(values: Mapping[str, Any]) -> Settings:
    """Make settings of tables that nothing is known of yet."""
    return Settings(**values)
