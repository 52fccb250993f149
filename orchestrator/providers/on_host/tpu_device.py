"""Runs on a TPU VM, read from standard input: is the TPU free, and what a dead trainer left of it.

Nothing may be removed while a process still holds a device, because the lock is that process's. The
answer is one line: empty where the TPU is free, else who holds which device.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

DEVICES = ("/dev/vfio/", "/dev/accel")
LOCK = Path("/tmp/libtpu_lockfile")  # noqa: S108 - libtpu's own name for it


def holders(devices: tuple[str, ...]) -> list[str]:
    """Who has one of them open, in words."""
    found: list[str] = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            opened = {str(file.readlink()) for file in (process / "fd").iterdir()}
            name = (process / "comm").read_text().strip()
        except OSError:  # it has ended, or is another user's
            continue
        held = sorted(one for one in opened if one.startswith(devices))
        if held:
            found.append(f"process {process.name} ({name}) holds {held[0]}")
    return found


def freed(devices: tuple[str, ...], lock: Path, seconds: float) -> str:
    """Waits so long; removes `lock` once nobody holds a device."""
    until = time.monotonic() + seconds
    while True:
        found = holders(devices)
        if not found:
            lock.unlink(missing_ok=True)
            return ""
        if time.monotonic() > until:
            return "; ".join(found)
        time.sleep(0.2)


if __name__ == "__main__":
    lock = Path(sys.argv[2]) if len(sys.argv) > 2 else LOCK
    devices = tuple(sys.argv[3:]) or DEVICES
    print(freed(devices, lock, float(sys.argv[1])))
