"""`pause`, `resume`, `cancel`: what people want of a run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, CommandFailed, DataDir, Exit, RunName, connect

if TYPE_CHECKING:
    from orchestrator.api.schemas import RunDetail


def pause(run: RunName, as_json: AsJson = False, data: DataDir = None) -> None:
    """Save, stop and keep a run until it is resumed."""
    with connect(data) as client:
        detail = client.pause(run)
    _print_wish(
        detail,
        as_json,
        f"{detail.name} is asked to save and stop.",
        "Let it go on with: longhaul resume",
    )


def resume(
    run: RunName,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Kept in the run's history.")
    ] = None,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """Let a paused or failed run go on.

    It starts from its newest good checkpoint.
    """
    with connect(data) as client:
        detail = client.resume(run, reason)
    _print_wish(
        detail, as_json, f"{detail.name} is asked to go on.", "Follow it with: longhaul watch"
    )


def cancel(
    run: RunName,
    yes: Annotated[
        str | None,
        typer.Option("--yes", metavar="NAME", help="The run's exact name or id, to confirm."),
    ] = None,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """End a run for good. Its checkpoints are kept."""
    with connect(data) as client:
        detail = client.run(run)
        _confirm(detail, yes)
        # By its id: the name could have gone to another run while the person typed.
        detail = client.cancel(detail.id)
    _print_wish(
        detail,
        as_json,
        f"{detail.name} is asked to end; its checkpoints stay.",
        "See when it has: longhaul show",
    )


def _confirm(run: RunDetail, yes: str | None) -> None:
    if yes is None:
        if not sys.stdin.isatty():
            raise CommandFailed(
                "Cancelling cannot be undone, so it wants the run's exact name.",
                f"longhaul cancel {run.name} --yes {run.name}",
                Exit.USAGE,
            )
        typer.echo(
            f"{run.name} is {run.state} at step {run.progress.step:,} of {run.progress.steps:,}."
            " A cancelled run cannot go on; its checkpoints are kept.",
            err=True,
        )
        yes = str(typer.prompt("Type the run's name to cancel it", err=True))
    if yes not in {run.name, run.id}:
        raise CommandFailed(
            f"{yes!r} is not the name of this run; nothing was changed.",
            f"longhaul cancel {run.name} --yes {run.name}",
            Exit.USAGE,
        )


def _print_wish(run: RunDetail, as_json: bool, words: str, then: str) -> None:
    from rich.text import Text

    from orchestrator.cli import render

    if as_json:
        render.print_json(run)
        return
    out = render.console()
    out.print(Text.assemble(words, " Now: ", render.state(run)))
    out.print(f"→ {then} {run.name}")
