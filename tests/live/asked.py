"""What a person says of the real thing that is to be tried: variables that begin with LIVE_."""

from __future__ import annotations

import os

import pytest


def asked(name: str, what: str) -> str:
    """Fails with the words for whoever has not said it."""
    value = os.environ.get(name, "").strip()
    if not value:
        pytest.fail(f"Set {name}: {what}. docs/development.md has all of them.", pytrace=False)
    return value


def told(name: str, default: str) -> str:
    return os.environ.get(name, "").strip() or default


def number(name: str, default: float) -> float:
    text = told(name, str(default))
    try:
        return float(text)
    except ValueError:
        pytest.fail(f"{name} is no number: {text!r}", pytrace=False)
