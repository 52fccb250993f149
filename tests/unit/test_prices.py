"""Prices and peaks of devices, by provider and kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.prices import peak, price_per_hour
from orchestrator.settings import Settings, SettingsError, read_settings
from tests.unit.api_world import tiny_spec
from worker.protocol import JobSpec

TWO_BY_TWO = JobSpec.model_validate(tiny_spec(hosts={"count": 2, "devices": 2}))


@pytest.mark.parametrize(
    ("prices", "kind", "expected"),
    [
        ({}, None, None),
        ({"gcp": 3.0}, None, None),
        ({"local": 0.25}, None, 1.0),
        ({"local": 0.0}, None, 0.0),
        ({"local": 0.25, "local/big": 2.0}, "big", 8.0),
        ({"local": 0.25, "local/big": 2.0}, "small", 1.0),
    ],
)
def test_a_group_costs_its_devices(
    tmp_path: Path, prices: dict[str, float], kind: str | None, expected: float | None
) -> None:
    settings = Settings(data_dir=tmp_path, prices=prices)
    assert price_per_hour(TWO_BY_TWO, settings, kind) == expected


def test_prices_come_from_the_environment_and_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "longhaul.toml").write_text('currency = "EUR"\n[prices]\nlocal = 0.5\n')
    found = read_settings(data_dir=tmp_path)
    assert (found.prices, found.currency) == ({"local": 0.5}, "EUR")
    monkeypatch.setenv("LONGHAUL_PRICES", '{"local": 0.75}')
    assert read_settings(data_dir=tmp_path).prices == {"local": 0.75}


@pytest.mark.parametrize("text", ["prices = {local = -1}", "currency = 'Euro'", "prices = 3"])
def test_a_price_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "longhaul.toml").write_text(text)
    with pytest.raises(SettingsError):
        read_settings(data_dir=tmp_path)


def test_peaks(tmp_path: Path) -> None:
    plain = Settings(data_dir=tmp_path)
    found = peak("local", "NVIDIA H200", plain)
    assert found is not None
    assert found.flops == 989e12
    assert peak("local", "TPU v5 lite", plain) != peak("local", "TPU v4", plain)
    assert peak("local", "cpu", plain) is None
    told = peak("local", "NVIDIA H200", Settings(data_dir=tmp_path, device_flops={"local": 5e14}))
    assert told is not None
    assert told.flops == 5e14
