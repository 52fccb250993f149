"""`logs`: what a run's trainers printed, kept by the service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from orchestrator.cli.naming import by_prefix
from orchestrator.cli.options import AnyRun, AsJson, DataDir, Exit, connect

if TYPE_CHECKING:
    from orchestrator.api.history_schemas import LogLine, LogPage
    from orchestrator.client import Client

LOOK_SECONDS = 0.5
Wanted: TypeAlias = dict[str, str | int | None]


@by_prefix
def logs(
    run: AnyRun,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on printing until the run is over.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option("--attempt", metavar="N", min=1, help="Only this attempt's lines.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="N", min=0, help="Only this trainer's lines.")
    ] = None,
    grep: Annotated[
        str | None, typer.Option("--grep", metavar="TEXT", help="Only lines with TEXT in any case.")
    ] = None,
    regex: Annotated[
        str | None,
        typer.Option("--regex", metavar="PATTERN", help="Only lines that match, in RE2's syntax."),
    ] = None,
    tail: Annotated[
        int | None,
        typer.Option("--tail", metavar="N", min=1, max=5000, help="Begin N lines from the end."),
    ] = None,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """Print a run's log lines, oldest first."""
    wanted: Wanted = {"attempt": attempt, "rank": rank, "search": grep, "regex": regex}
    with connect(data) as client:
        after, found = 0, False
        for page in _first_pages(client, run, wanted, tail):
            found = found or bool(page.items)
            after = _print_page(page, as_json) or after
        if not follow:
            if not found:
                asked = any(value is not None for value in wanted.values())
                typer.echo("No line fits." if asked else "There are no lines yet.", err=True)
            return
        try:
            for page in new_pages(client, run, wanted, after):
                _print_page(page, as_json)
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None


def _first_pages(client: Client, run: str, wanted: Wanted, tail: int | None) -> Iterator[LogPage]:
    if tail is None:
        yield from stored_pages(client, run, wanted, after=0)
    else:
        yield client.logs(run, tail=tail, filters=wanted)


def stored_pages(client: Client, run: str, wanted: Wanted, after: int) -> Iterator[LogPage]:
    """Every line after `after` that the service has now, oldest first."""
    cursor: int | None = after
    while cursor is not None:
        page = client.logs(run, after=cursor, filters=wanted)
        yield page
        cursor = page.next_cursor


def new_pages(
    client: Client,
    run: str,
    wanted: Wanted,
    after: int,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[LogPage]:
    """Lines as they come, until the run is over; a service that is away is asked again."""
    from orchestrator.cli.follow import is_over
    from orchestrator.client import Unreachable

    while True:
        try:
            # Read before the lines, so that the last lines of a run are not missed.
            over = is_over(client.run(run))
            for page in stored_pages(client, run, wanted, after):
                yield page
                after = page.through or after
            if over:
                return
        except Unreachable:
            pass
        sleep(LOOK_SECONDS)


def _print_page(page: LogPage, as_json: bool) -> int | None:
    """Where to go on."""
    for line in page.items:
        _print(line, as_json)
    return page.through


def _print(line: LogLine, as_json: bool) -> None:
    from orchestrator.cli import text

    if as_json:
        typer.echo(line.model_dump_json())
        return
    prefix = f"{text.clock(line.at)} {line.attempt}.{line.rank}  "
    typer.echo(typer.style(prefix, dim=True) + text.clean(line.line))
