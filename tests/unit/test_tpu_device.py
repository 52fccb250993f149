"""What a dead trainer left of a TPU is removed only once nobody holds the device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.providers.on_host import tpu_device

HOLD = "import sys; held = open(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def device(tmp_path: Path) -> Path:
    (tmp_path / "vfio").mkdir()
    made = tmp_path / "vfio" / "0"
    made.touch()
    (tmp_path / "lock").touch()
    return made


def test_a_free_device_loses_its_lock(device: Path, tmp_path: Path):
    assert tpu_device.freed((str(device.parent),), tmp_path / "lock", 0) == ""
    assert not (tmp_path / "lock").exists()
    assert tpu_device.freed((str(device.parent),), tmp_path / "lock", 0) == ""


def test_the_lock_stays_while_somebody_holds_the_device(device: Path, tmp_path: Path):
    argv = (sys.executable, "-c", HOLD, str(device))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        words = tpu_device.freed((str(device.parent),), tmp_path / "lock", 0)
        assert f"process {holder.pid}" in words
        assert str(device) in words
        assert (tmp_path / "lock").exists()
        holder.communicate()
    assert tpu_device.freed((str(device.parent),), tmp_path / "lock", 5) == ""
    assert not (tmp_path / "lock").exists()
