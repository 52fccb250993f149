"""The values of secrets that runs name: a file for each in one folder, or a variable.

Owns where they are looked up, and nothing keeps them: they are read anew at each launch, handed to
the agent that asks, and stored nowhere. Only what an admin has put in one of the two places can be
named: a spec reaches no other file and no other variable of the service.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from orchestrator.settings import Settings

VARIABLE = "LONGHAUL_SECRET_"
LARGEST = 64 << 10


class NoSuchSecret(Exception):
    """The service keeps no value under this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the service keeps no secret {name}")
        self.name = name


def exists(settings: Settings, name: str) -> bool:
    path = _path(settings, name)
    return (path is not None and path.is_file()) or VARIABLE + name in os.environ


def values(settings: Settings, names: Iterable[str]) -> dict[str, str]:
    """By name, without the line end of a file; raises `NoSuchSecret`."""
    return {name: _value(settings, name) for name in names}


def _value(settings: Settings, name: str) -> str:
    path = _path(settings, name)
    try:
        if path is not None:
            with path.open("rb") as file:
                return file.read(LARGEST).decode().rstrip("\r\n")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError):
        raise NoSuchSecret(name) from None
    value = os.environ.get(VARIABLE + name)
    if value is None:
        raise NoSuchSecret(name)
    return value


def _path(settings: Settings, name: str) -> Path | None:
    """Names are checked with the spec: none holds a slash or a dot."""
    return None if settings.secrets_dir is None else settings.secrets_dir / name
