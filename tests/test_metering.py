"""Costs of stages, and the report of progress that nobody sees."""

from __future__ import annotations

import json

import numpy as np
import psutil
import pytest

from tilereg.metering import Meter
from tilereg.progress import Silent


def test_stages_are_kept_in_order_with_their_costs() -> None:
    meter = Meter()
    for name in ("read", "match", "read"):
        with meter.stage(name):
            pass
    assert [row["name"] for row in meter.as_rows()] == ["read", "match", "read"]
    for stage in meter.stages:
        assert stage.seconds >= 0
        assert stage.peak_memory_bytes > 2**20
    assert meter.peak_memory_bytes == max(stage.peak_memory_bytes for stage in meter.stages)
    assert json.loads(json.dumps(meter.as_rows())) == meter.as_rows()


def test_memory_that_is_held_at_the_end_of_a_stage_counts() -> None:
    meter = Meter()
    before = psutil.Process().memory_info().rss
    with meter.stage("hold"):
        block = np.ones(2**26, dtype=np.uint8)
    assert block.all()
    assert meter.peak_memory_bytes > before + 2**25


def test_a_stage_that_fails_is_metered_and_fails() -> None:
    meter = Meter()
    with pytest.raises(KeyError), meter.stage("broken"):
        raise KeyError("lost")
    assert [stage.name for stage in meter.stages] == ["broken"]


def test_stages_nest() -> None:
    meter = Meter()
    with meter.stage("whole"), meter.stage("part"):
        pass
    assert [stage.name for stage in meter.stages] == ["part", "whole"]
    assert meter.stages[1].seconds >= meter.stages[0].seconds


def test_nothing_has_cost_nothing() -> None:
    assert Meter().peak_memory_bytes == 0
    assert Meter().as_rows() == []


def test_silence_follows_the_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Silent()
    progress.note("a word")
    with progress.stage("work", 3) as stage:
        stage.advance()
        stage.advance(2)
    assert capsys.readouterr() == ("", "")
