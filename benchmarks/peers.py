"""Other programs to compare with: each in a venv of its own in `build/`, made when first needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving import ROOT

INSTALL_SECONDS = 900


def python_with(name: str, *packages: Sequence[str]) -> Path:
    """A Python that has what `uv pip install` makes of each of `packages`, one after the other.

    Raises OSError or subprocess.SubprocessError where that fails, as it does without a package
    index.
    """
    folder = ROOT / "build" / name
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"Installing into build/{name}, once", file=sys.stderr, flush=True)
        uv = str(Path(sys.executable).with_name("uv"))
        quiet: dict[str, Any] = {"check": True, "stdout": sys.stderr, "timeout": INSTALL_SECONDS}
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], **quiet)
        for wanted in packages:
            command = [uv, "pip", "install", "-q", "--python", str(python), *wanted]
            subprocess.run(command, **quiet)
        (folder / "installed").touch()
    return python
