"""`drain`: empties a host. Its runs save, leave, and go on elsewhere or wait in the queue."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, DataDir, Exit, connect

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.api.drain_schemas import DrainView
    from orchestrator.api.schemas import RunDetail
    from orchestrator.client import Client

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Moved:
    """Runs that were on the host when it was looked at first, as they stand now; by their id."""

    view: DrainView
    runs: Mapping[str, RunDetail]


def drain(
    host: Annotated[
        str,
        typer.Argument(
            metavar="HOST",
            help="Its name in the inventory; 'local' is the service's own machine.",
            show_default=False,
        ),
    ],
    reason: Annotated[
        str | None,
        typer.Option(
            "--reason",
            metavar="TEXT",
            help="Shown wherever a run waits because of it.",
            show_default=False,
        ),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return at once; the runs leave by themselves.")
    ] = False,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """Empty a host: its runs save and leave, and nobody gets it.

    They go on where other hosts fit, or wait in the queue. Asking again changes nothing. Undo it
    with: longhaul hosts uncordon
    """
    from orchestrator.api.drain_schemas import DrainRequest
    from orchestrator.cli import render
    from orchestrator.cli.wishes import request

    asked = request(DrainRequest, {"reason": reason}).reason
    with connect(data) as client:
        first = client.drain_host(host, asked)
        moved = Moved(first, {})
        try:
            if not no_wait:
                moved = _follow(client, first, quiet=as_json)
        except KeyboardInterrupt:
            words = f"Stopped waiting; {host} goes on being drained."
            render.console(stderr=True).print(f"{words} Look again with: longhaul drain {host}")
            raise typer.Exit(Exit.INTERRUPTED) from None
    if as_json:
        runs = [run.model_dump(mode="json") for run in moved.runs.values()]
        render.print_data(moved.view.model_dump(mode="json") | {"left": runs})
        return
    _print(render.console(), moved, waited=not no_wait)


# ---- waiting -----------------------------------------------------------------------------------


def _follow(client: Client, first: DrainView, *, quiet: bool) -> Moved:
    """Until no run holds a part of the host, with a bar where somebody looks at it."""
    from rich.progress import BarColumn, Progress, TextColumn

    from orchestrator.cli import render

    out = render.console(stderr=quiet)
    total, last = len(first.runs), first
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total} runs have left"),
        console=out,
        disable=not out.is_terminal or quiet or not total,
        transient=True,
    )
    with bar:
        task = bar.add_task(f"Draining {first.host}", total=total)
        for last in _looks(client, first):
            bar.update(task, completed=max(0, total - len(last.runs)))
    return Moved(last, {run.id: client.run(run.id) for run in first.runs})


def _looks(client: Client, first: DrainView) -> Iterator[DrainView]:
    look = first
    yield look
    while not look.done:
        time.sleep(LOOK_SECONDS)
        look = client.drain_state(first.host)
        yield look


# ---- words -------------------------------------------------------------------------------------


def _print(out: Console, moved: Moved, *, waited: bool) -> None:
    from rich.text import Text

    from orchestrator.cli import render, text

    view = moved.view
    if not view.done:
        names = ", ".join(run.name for run in view.runs)
        out.print(Text(text.clean(f"{view.host} is being drained; there is still: {names}.")))
    else:
        out.print(Text(text.clean(f"{view.host} is empty, and nobody gets it ({view.reason}).")))
    for run in moved.runs.values():
        line = Text.assemble("  ", (run.name, "bold"), "  ", render.state(run))
        if run.waits_for:
            line.append(text.clean(f"  waits for {run.waits_for}"))
        out.print(line, soft_wrap=True)
    again = "" if waited or view.done else f"See who is there with: longhaul drain {view.host}\n→ "
    out.print(f"→ {again}Give it to runs again with: longhaul hosts uncordon {view.host}")
