"""A program that knows nothing of Longhaul: it prints its steps, and keeps folders of checkpoints.

It begins with the newest that it finds. It dies of a SIGKILL after step DIE_AT, once.
"""

import os
import signal
import sys
from pathlib import Path

folder, steps = Path(sys.argv[1]) / "ckpt", int(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
found = sorted(path for path in folder.iterdir() if (path / "DONE").exists())
first, value = 0, 1.0
if found:
    first, value = int(found[-1].name.split("-")[1]), float((found[-1] / "value").read_text())
print(f"from step {first}")
for step in range(first + 1, steps + 1):
    value = value * 0.9 + 0.01 * (step % 7)
    print(f"step {step} loss {value!r}")
    if step % 10 == 0:
        place = folder / f"step-{step:06d}"
        place.mkdir()
        (place / "value").write_text(repr(value))
        (place / "DONE").touch()
    if first == 0 and step == int(os.environ.get("DIE_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
