"""`logs`: what a run's trainers printed, kept by the service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, DataDir, Exit, RunName, connect

if TYPE_CHECKING:
    from orchestrator.api.schemas import LogLine
    from orchestrator.client import Client

LOOK_SECONDS = 0.5


def logs(
    run: RunName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on printing until the run is over.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option("--attempt", metavar="N", help="Only this attempt's lines.")
    ] = None,
    tail: Annotated[
        int | None,
        typer.Option("--tail", metavar="N", min=1, max=5000, help="Begin N lines from the end."),
    ] = None,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """Print a run's log lines, oldest first."""
    with connect(data) as client:
        last = 0
        for line in _first_lines(client, run, attempt, tail):
            last = line.id
            _print(line, as_json)
        if not follow:
            return
        try:
            for line in new_lines(client, run, attempt, after=last):
                _print(line, as_json)
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None


def _first_lines(
    client: Client, run: str, attempt: int | None, tail: int | None
) -> Iterator[LogLine]:
    if tail is None:
        yield from stored_lines(client, run, attempt, after=0)
    else:
        yield from client.logs(run, tail=tail, attempt=attempt).items


def stored_lines(client: Client, run: str, attempt: int | None, after: int) -> Iterator[LogLine]:
    """Every line after `after` that the service has now, oldest first."""
    while True:
        page = client.logs(run, after=after, attempt=attempt)
        yield from page.items
        if not page.items or page.next_cursor is None:
            return
        after = page.items[-1].id


def new_lines(
    client: Client,
    run: str,
    attempt: int | None,
    after: int,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[LogLine]:
    """Lines as they come, until the run is over; a service that is away is asked again."""
    from orchestrator.cli.follow import is_over
    from orchestrator.client import Unreachable

    while True:
        try:
            # Read before the lines, so that the last lines of a run are not missed.
            over = is_over(client.run(run))
            for line in stored_lines(client, run, attempt, after):
                after = line.id
                yield line
            if over:
                return
        except Unreachable:
            pass
        sleep(LOOK_SECONDS)


def _print(line: LogLine, as_json: bool) -> None:
    from orchestrator.cli import text

    if as_json:
        typer.echo(line.model_dump_json())
        return
    prefix = f"{text.clock(line.at)} {line.attempt}.{line.rank}  "
    typer.echo(typer.style(prefix, dim=True) + text.clean(line.line))
