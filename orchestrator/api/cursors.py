"""Cursors of lists: where a page ended, as text that a caller hands back.

Owns their form: an instant in microseconds, whole numbers and names, joined by dots. Each names the
last item of a page, so that items made or deleted meanwhile move nothing. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar

from pydantic import AfterValidator, AwareDatetime

from orchestrator.store.tables import EPOCH

T = TypeVar("T")
Item = TypeVar("Item")

_NUMBER = re.compile(r"\d{1,18}")
_MICROSECOND = timedelta(microseconds=1)


def _in_utc(given: datetime) -> datetime:
    """Instants near the ends of the calendar do not exist in every time zone."""
    try:
        return max(given.astimezone(UTC), EPOCH)
    except OverflowError:
        raise ValueError("the time is out of range") from None


DatabaseTime = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class NotACursor(ValueError):
    """The text is not a cursor that this list made."""


def number(cursor: str) -> int:
    if _NUMBER.fullmatch(cursor) is None:
        raise NotACursor(cursor)
    return int(cursor)


def instant(text: str) -> datetime:
    return EPOCH + number(text) * _MICROSECOND


def micros(moment: datetime) -> str:
    return str((moment - EPOCH) // _MICROSECOND)


def parts(cursor: str, count: int) -> list[str]:
    """`count` texts that are letters, digits and dashes alone."""
    found = cursor.split(".")
    if len(found) != count or not all(re.fullmatch(r"[A-Za-z0-9-]+", part) for part in found):
        raise NotACursor(cursor)
    return found


def optional(read: Callable[[str], T], cursor: str | None) -> T | None:
    return None if cursor is None else read(cursor)


def page(
    found: Sequence[Item], limit: int, name: Callable[[Item], str]
) -> tuple[Sequence[Item], str | None]:
    """The first `limit` of what was found, and the cursor of the next page where there is more."""
    shown = found[:limit]
    return shown, name(shown[-1]) if len(found) > limit else None
