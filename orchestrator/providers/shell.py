"""A host on which programs can be run: what bootstrap and doctor need of it, and no more.

Imports nothing of Longhaul. SSH implements it; tests run it on this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Completed:
    code: int | None  # None: the connection was lost, so nobody knows
    out: bytes
    err: bytes


class Shell(Protocol):
    """A host on which programs can be run, as the user that Longhaul was given there."""

    def run(self, argv: Sequence[str], stdin: bytes = b"", seconds: float = 60.0) -> Completed: ...

    def put(self, source: Path, path: str, mode: int = 0o600) -> None:
        """Whole or not at all: under another name, synced, renamed."""
        ...
