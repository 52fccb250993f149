"""From rows to what people read: log lines, paged both ways and searched.

Owns what of a log may be shown and what a search finds: it looks at lines as they are shown,
without control characters. A call looks at a bounded number of lines, so a search over a long log
may answer few or none and say where to go on. Must not write, nor import FastAPI.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import re2  # pyright: ignore[reportMissingTypeStubs]
from sqlalchemy import Connection

from orchestrator.api.history_schemas import LogLine, LogPage
from orchestrator.service import Service
from orchestrator.store import log_rows
from orchestrator.store import views as rows
from orchestrator.store.log_rows import ALL_LINES, Lines
from orchestrator.store.wishes import find

LOOKED_AT = 20_000
REGEX_MEMORY = 1 << 20
_re2: Any = re2  # it has no types
Matches = Callable[[str], bool]

# Terminal sequences first, then whatever control character is left except the tab, and what turns
# the direction of text around.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


class NotARegex(ValueError):
    """The text is no regular expression of RE2; its words say why."""


@dataclass(frozen=True)
class Search:
    """`text` is found in any case; `regex` is RE2's, which takes linear time. Both must match."""

    text: str | None = None
    regex: str | None = None


NOTHING = Search()


def clean(line: str) -> str:
    """A machine's words without what could steer a terminal or a page."""
    return _CONTROL.sub("", line)


def logs(
    connection: Connection,
    service: Service,
    id_or_name: str,
    wanted: Lines = ALL_LINES,
    limit: int = 200,
    search: Search = NOTHING,
    *,
    newest: bool = False,
) -> LogPage:
    """The first `limit` lines that are wanted, or the `newest` ones; oldest first either way.

    `next_cursor` goes into `after`, `previous_cursor` into `before` for the page on that side; None
    where no line of the log is left there now. Raises `NotARegex`.
    """
    run = find(connection, id_or_name)
    fits = matcher(search)
    look = limit if fits is None else LOOKED_AT
    found = log_rows.lines(connection, run.id, wanted, look + 1, newest=newest)
    kept, last = _kept(found, look, limit, fits)
    further = None if last is None or last == found[-1].id else last
    if newest:
        items = tuple(log_line(row) for row in reversed(kept))
        back = _came_from(wanted.before, items, -1)
        through = found[0].id if found else None
        return LogPage(items=items, next_cursor=back, previous_cursor=further, through=through)
    items = tuple(log_line(row) for row in kept)
    back = _came_from(wanted.after, items, 0)
    return LogPage(items=items, next_cursor=further, previous_cursor=back, through=last)


def _kept(
    found: Sequence[rows.AnyRow], look: int, limit: int, fits: Matches | None
) -> tuple[list[rows.AnyRow], int | None]:
    """Up to `limit` lines that fit, of the first `look`; and the id of the last one looked at."""
    kept: list[rows.AnyRow] = []
    last: int | None = None
    for row in found[:look]:
        last = row.id
        if fits is None or fits(clean(row.line)):
            kept.append(row)
            if len(kept) == limit:
                break
    return kept, last


def _came_from(edge: int | None, items: tuple[LogLine, ...], nearest: int) -> int | None:
    """The cursor back to the side that a page was reached from; None at the end of the log."""
    if not edge:
        return None
    if items:
        return items[nearest].id
    return edge + (1 if nearest == 0 else -1)


def matcher(search: Search) -> Matches | None:
    """None where everything fits."""
    tests: list[Matches] = []
    if search.text:
        wanted = search.text.casefold()
        tests.append(lambda line: wanted in line.casefold())
    if search.regex:
        tests.append(_regex(search.regex))
    if not tests:
        return None
    return lambda line: all(test(line) for test in tests)


def _regex(text: str) -> Matches:
    options = _re2.Options()
    options.log_errors = False
    options.max_mem = REGEX_MEMORY
    try:
        compiled = _re2.compile(text, options)
    except _re2.error as error:
        words = error.args[0] if error.args else "it can not be read"
        raise NotARegex(words.decode() if isinstance(words, bytes) else str(words)) from None
    return lambda line: compiled.search(line) is not None


def log_line(row: rows.AnyRow) -> LogLine:
    return LogLine(id=row.id, attempt=row.attempt, rank=row.rank, at=row.at, line=clean(row.line))
