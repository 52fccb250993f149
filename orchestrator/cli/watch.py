"""`watch`: a run's progress as it goes, live on a terminal, line by line elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from orchestrator.cli.naming import by_prefix
from orchestrator.cli.options import AnyRun, AsJson, DataDir, Exit, connect

if TYPE_CHECKING:
    from orchestrator.api.schemas import RunDetail
    from orchestrator.client import Client


@by_prefix
def watch(run: AnyRun, as_json: AsJson = False, data: DataDir = None) -> None:
    """Watch a run until it ends or pauses. Ctrl-C stops the watching alone."""
    with connect(data) as client:
        raise typer.Exit(watch_to_end(client, run, as_json=as_json))


def watch_to_end(client: Client, run: str, *, as_json: bool = False) -> Exit:
    """Shows `run` until it is over. OK where it succeeded, FAILED otherwise."""
    from orchestrator.cli import render
    from orchestrator.cli.follow import Frame, frames
    from orchestrator.cli.screens import JsonLines, screen_for

    last: RunDetail | None = None
    try:
        with JsonLines() if as_json else screen_for(render.console()) as screen:
            for look in frames(client, run):
                if isinstance(look, Frame):
                    screen.show(look)
                    last = look.run
                else:
                    screen.lost(look.error)
    except KeyboardInterrupt:
        again = f" Watch again with: longhaul watch {last.name}" if last else ""
        render.console(stderr=True).print(f"Stopped watching; the run goes on.{again}")
        return Exit.INTERRUPTED
    assert last is not None
    if not as_json:
        _print_next(last)
    return Exit.OK if last.state == "succeeded" else Exit.FAILED


def _print_next(run: RunDetail) -> None:
    from orchestrator.cli import render
    from orchestrator.state import RunState

    out = render.console()
    if run.needs_person or run.state is RunState.FAILED:
        out.print(f"→ What happened and what to do: longhaul why {run.name}")
    elif run.state is RunState.PAUSED:
        out.print(f"→ Let it go on with: longhaul resume {run.name}")
