"""Secrets that a program prints are not shown. Must not import JAX."""

from __future__ import annotations

from collections.abc import Mapping

SHORTEST_SECRET = 6  # shorter ones can not be told from other words
HIDDEN = "[secret]"


def hide(text: str, parts: tuple[str, ...]) -> str:
    for part in parts:
        text = text.replace(part, HIDDEN)
    return text


def parts_of(secrets: Mapping[str, str]) -> tuple[str, ...]:
    """What is never to be seen of the secrets, the longest first: a line may hold only a part."""
    lines = {line.strip() for value in secrets.values() for line in value.splitlines()}
    return tuple(sorted((one for one in lines if len(one) >= SHORTEST_SECRET), key=len)[::-1])
