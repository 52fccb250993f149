"""Cloud TPU is put together from the settings, and costs a service without it nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import preflight
from orchestrator.instance import CannotStart
from orchestrator.prices import price_per_hour
from orchestrator.settings import Settings, SettingsError, read_settings
from orchestrator.tpu_house import tpu_house
from worker.protocol import JobSpec

WITHOUT = """
import sys
for name in ("google.cloud.tpu_v2", "grpc", "google.auth", "paramiko"):
    sys.modules[name] = None
import orchestrator.app
from orchestrator.settings import Settings
from orchestrator.tpu_house import tpu_house
assert tpu_house(Settings(), "inst0001") is None
"""


def settings(folder: Path, **given: object) -> Settings:
    key = folder / "key"
    key.write_text("private")
    key.with_name("key.pub").write_text("ssh-ed25519 AAAA me\n")
    whole: dict[str, object] = {
        "data_dir": folder,
        "public_url": "https://longhaul.example.org",
        "tpu_project": "p1",
        "tpu_zones": ("us-central2-b",),
        "tpu_ssh_key": key,
        "tpu_endpoint": "127.0.0.1:1",
    }
    return read_settings(**(whole | given))


def test_without_a_project_neither_client_nor_paramiko_is_needed():
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)


def test_a_project_gives_the_provider(tmp_path: Path):
    made = tpu_house(settings(tmp_path), "inst0001")
    assert made is not None
    assert made.provider.name == "tpu"
    made.close()


@pytest.mark.parametrize("missing", ["tpu_zones", "tpu_ssh_key", "public_url"])
def test_what_a_project_needs_is_asked_for_by_name(tmp_path: Path, missing: str):
    empty: object = () if missing == "tpu_zones" else None
    with pytest.raises(SettingsError, match=f"tpu_project needs {missing}"):
        settings(tmp_path, **{missing: empty})


def test_a_zone_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match="no zone like"):
        settings(tmp_path, tpu_zones=("mars",))


def test_a_key_that_is_not_there_is_said_at_the_start(tmp_path: Path):
    lacking = settings(tmp_path, tpu_ssh_key=tmp_path / "other")
    with pytest.raises(CannotStart, match=r"other\.pub .*tpu_ssh_key"):
        tpu_house(lacking, "inst0001")


def job(*zones: str) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "t",
            "model": "demo-1m",
            "steps": 10,
            "batch": {"sequences": 16},
            "hosts": {
                "provider": "tpu",
                "tpu": {"type": "v4-32", "tier": "spot", "zones": zones or None},
            },
        }
    )


def test_a_zone_that_the_service_may_not_use_is_refused_at_submit(tmp_path: Path):
    made = settings(tmp_path)
    found = preflight.problems(job("us-east5-a"), made, lambda _: 1 << 40, {"tpu"}, frozenset())
    assert [(one.pointer, one.detail) for one in found if "tpu" in one.pointer] == [
        ("/hosts/tpu/zones", "This service may not use zone us-east5-a.")
    ]
    found = preflight.problems(job("us-central2-b"), made, lambda _: 1 << 40, {"tpu"}, frozenset())
    assert [one for one in found if "tpu" in one.pointer] == []


@pytest.mark.parametrize(
    ("prices", "price"),
    [
        ({"tpu/v4/spot": 1.0, "tpu/v4": 3.0, "tpu": 5.0}, 16.0),
        ({"tpu/v4": 3.0, "tpu": 5.0}, 48.0),
        ({"tpu/v5p": 3.0, "tpu": 5.0}, 80.0),
        ({"local": 1.0}, None),
    ],
)
def test_a_slice_costs_what_its_generation_and_tier_do(
    tmp_path: Path, prices: dict[str, float], price: float | None
):
    assert price_per_hour(job(), settings(tmp_path, prices=prices)) == price
