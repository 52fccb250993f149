"""`checkpoint` and `quarantine`: what people want of single checkpoints."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.options import AsJson, CommandFailed, DataDir, Exit, RunName, connect
from orchestrator.cli.wishes import Reason


def checkpoint(
    run: RunName, reason: Reason = None, as_json: AsJson = False, data: DataDir = None
) -> None:
    """Save a running run now, beyond its regular saves."""
    from orchestrator.cli import render

    with connect(data) as client:
        detail = client.wishes.checkpoint(run, reason)
    if as_json:
        render.print_json(detail)
        return
    out = render.console()
    out.print(f"{detail.name} is asked to save at its next step.")
    out.print(f"→ See when it has: longhaul checkpoints {detail.name}")


def quarantine(
    run: RunName,
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="The checkpoint's id.", show_default=False),
    ],
    reason: Annotated[
        str,
        typer.Option("--reason", metavar="TEXT", help="Why it must not be used."),
    ],
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """Set a checkpoint apart: nothing resumes from it any more.

    Wants exact ids. There is no way back; its files are kept.
    """
    from orchestrator.cli import render

    if not reason.strip():
        raise CommandFailed(
            "--reason is empty.", "Say what is wrong with the checkpoint.", Exit.USAGE
        )
    with connect(data) as client:
        detail = client.wishes.quarantine(run, checkpoint, reason)
    if as_json:
        render.print_json(detail)
        return
    out = render.console()
    out.print(f"{checkpoint} of {detail.name} is in quarantine; its files are kept.")
    out.print(f"→ What is left to resume from: longhaul checkpoints {detail.name}")
