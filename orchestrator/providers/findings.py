"""What a look at a host found, in words for a person and a code for programs.

Pure: imports nothing of Longhaul. The codes are stable; words may change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """What was looked at. Scripts may rely on the names."""

    CONNECTION = "connection"
    PYTHON = "python"
    DISK = "disk"
    CLOCK = "clock"
    DEVICES = "devices"
    DEVICE_BUSY = "device-busy"
    PORTS = "ports"
    SHARED_STORAGE = "shared-storage"
    CONTROL_PLANE = "control-plane"
    ROUTE = "route"


class Level(StrEnum):
    WELL = "well"
    WARNING = "warning"  # it works, and perhaps not as meant
    PROBLEM = "problem"  # a run can not be started like this


@dataclass(frozen=True)
class Finding:
    """`where` is the host, with the place on it; `hint` says what to do where it is not well."""

    code: Code
    level: Level
    where: str
    what: str
    hint: str | None = None

    @property
    def well(self) -> bool:
        return self.level is Level.WELL

    def __str__(self) -> str:
        told = f"{self.where}: {self.what}"
        return f"{told}. {self.hint}" if self.hint and not self.well else told


def well(code: Code, where: str, what: str) -> Finding:
    return Finding(code, Level.WELL, where, what)


def warning(code: Code, where: str, what: str, hint: str) -> Finding:
    return Finding(code, Level.WARNING, where, what, hint)


def problem(code: Code, where: str, what: str, hint: str) -> Finding:
    return Finding(code, Level.PROBLEM, where, what, hint)


def problems(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(one for one in findings if one.level is Level.PROBLEM)


def refusal(findings: Iterable[Finding]) -> str:
    """The problems as the words of a `ProvisionRefused`, each with its code; "" where none is."""
    return "\n".join(f"{one} [{one.code}]" for one in problems(findings))
