"""Hours and cost of a run, and where the numbers are from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.forecast import Forecast, Known, Speed, forecast
from orchestrator.settings import Settings
from tests.unit.api_world import tiny_spec
from worker.protocol import JobSpec

JOB = JobSpec.model_validate(tiny_spec(hosts={"count": 2, "devices": 2}))
TOKENS = 100 * 4 * 32
H200 = Known(kind="NVIDIA H200")


def told(known: Known, tmp_path: Path, **settings: Any) -> Forecast:
    return forecast(JOB, Settings(data_dir=tmp_path, **settings), known, cores=2)


def test_a_measured_speed_goes_before_every_assumption(tmp_path: Path) -> None:
    seen = Known(Speed(640.0, "older", 100), "NVIDIA H200")
    found = told(seen, tmp_path, prices={"local": 0.25})
    assert (found.source, found.hours) == ("measured", TOKENS / 640 / 3600)
    assert "older on such devices, its last 100 steps" in found.hours_words
    assert "12,800 tokens / 640 tokens/s" in found.hours_words
    assert found.price_per_hour == 1.0
    assert found.cost == found.hours
    assert "4 devices x 0.25 USD a device hour" in found.cost_words


def test_a_known_device_is_priced_by_its_peak(tmp_path: Path) -> None:
    found = told(H200, tmp_path)
    speed = 4 * 989e12 * 0.4 / JOB.model.flops_per_token
    assert (found.source, found.tokens_per_second) == ("assumed", speed)
    assert "4 devices of 989 TFLOP/s" in found.hours_words
    assert "40% is reached" in found.hours_words
    assert f"{JOB.model.flops_per_token:,} FLOPs a token" in found.hours_words
    faster = told(H200, tmp_path, device_flops={"local": 2 * 989e12})
    assert faster.tokens_per_second == pytest.approx(2 * speed)
    assert "device_flops" in faster.hours_words


@pytest.mark.parametrize("kind", [None, "cpu x86_64 0123abcd"])
def test_cpu_devices_share_the_cores_of_the_machine(tmp_path: Path, kind: str | None) -> None:
    found = told(Known(kind=kind), tmp_path)
    assert found.tokens_per_second == 2 * 100e9 * 0.4 / JOB.model.flops_per_token
    assert "2 cores" in found.hours_words


def test_an_unknown_device_has_no_hours_and_says_what_to_set(tmp_path: Path) -> None:
    found = told(Known(kind="Novel 9"), tmp_path, prices={"local": 1.0})
    assert (found.source, found.hours, found.cost) == (None, None, None)
    assert "set device_flops" in found.hours_words
    assert "the hours are not known" in found.cost_words


def test_without_a_price_the_cost_is_not_known(tmp_path: Path) -> None:
    found = told(H200, tmp_path)
    assert found.cost is None
    assert "has none for 'local'" in found.cost_words
    free = told(H200, tmp_path, prices={"local": 0})
    assert free.cost == 0
