"""What a trainer's process is started with. Must not import JAX."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# XLA takes its buffers from malloc and gives them back, a step at a time: with huge pages a CPU
# training step of 51 million parameters takes three quarters of the time.
HUGE_PAGES = "glibc.malloc.hugetlb=1"


@dataclass(frozen=True)
class Launch:
    """How a trainer's process is started."""

    argv: tuple[str, ...]
    cwd: Path
    environment: Mapping[str, str] = field(repr=False)


class NotLaunched(Exception):
    """The trainer is not started at all; `code` is the exit that this is told as, if it is one."""

    def __init__(self, why: str, code: int | None = None) -> None:
        super().__init__(why)
        self.code = code


def trainer_environment() -> dict[str, str]:
    """The agent's own environment without Longhaul's settings, over the same source tree."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LONGHAUL_")}
    source = str(Path(__file__).resolve().parent.parent)
    path = [source, *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    own = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path)), "PYTHONUNBUFFERED": "1"}
    return kept | own | {"GLIBC_TUNABLES": kept.get("GLIBC_TUNABLES", HUGE_PAGES)}
