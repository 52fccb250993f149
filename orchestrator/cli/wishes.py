"""`pause`, `resume`, `cancel`, `rollback`, `fork`: what people want of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypeVar

import typer

from orchestrator.cli.options import (
    AsJson,
    CommandFailed,
    DataDir,
    Exit,
    RunName,
    Settings,
    connect,
)

if TYPE_CHECKING:
    from orchestrator.api.requests import Asking
    from orchestrator.api.schemas import RunDetail

A = TypeVar("A", bound="Asking")

Reason: TypeAlias = Annotated[
    str | None,
    typer.Option("--reason", metavar="TEXT", help="Kept in the run's history.", show_default=False),
]
SkipBatches: TypeAlias = Annotated[
    int,
    typer.Option(
        "--skip-batches",
        metavar="N",
        min=0,
        help="Pass over the next N batches from there, for good.",
    ),
]


def pause(run: RunName, as_json: AsJson = False, data: DataDir = None) -> None:
    """Save, stop and keep a run until it is resumed."""
    with connect(data) as client:
        detail = client.wishes.pause(run)
    _print_wish(
        detail,
        as_json,
        f"{detail.name} {_paused(detail)}.",
        "Let it go on with: longhaul resume",
    )


def resume(
    run: RunName,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STEP|CHECKPOINT",
            help="Begin there, on a new branch, instead of at the newest good checkpoint.",
            show_default=False,
        ),
    ] = None,
    skip_batches: SkipBatches = 0,
    settings: Settings = None,
    expected: Annotated[
        int | None,
        typer.Option(
            "--expect-revision",
            metavar="N",
            help="Refuse if the spec is at another revision by now.",
            show_default=False,
        ),
    ] = None,
    reason: Reason = None,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """Let a run go on: as it is, under another spec, or from an earlier checkpoint.

    --set takes what does not change the trajectory: hosts, microbatches, saves, evals, policy.
    """
    from orchestrator.api.requests import ResumeRequest
    from orchestrator.cli import workdirs
    from orchestrator.cli.document import read_settings

    changes = read_settings(settings or [])
    fields = {
        "reason": reason,
        "from": place(start),
        "skip_batches": skip_batches,
        "expected_revision": expected,
    }
    with connect(data) as client:
        changes = workdirs.sent(client, changes, Path())
        detail = client.wishes.resume(run, request(ResumeRequest, fields | {"set": changes}))
    _print_wish(
        detail, as_json, f"{detail.name} is asked to go on.", "Follow it with: longhaul watch"
    )


def rollback(
    run: RunName,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="STEP|CHECKPOINT",
            help="The checkpoint to go back to, by its step or its id; 0 is the beginning.",
            show_default=False,
        ),
    ],
    skip_batches: SkipBatches = 0,
    reason: Reason = None,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """Go back to an earlier checkpoint, on a new branch.

    Wants the run's exact name or id. The newer checkpoints are kept, on the branch that is left.
    """
    from orchestrator.api.requests import RollbackRequest

    asked = request(
        RollbackRequest, {"to": place(to), "skip_batches": skip_batches, "reason": reason}
    )
    with connect(data) as client:
        detail = client.wishes.rollback(run, asked)
    _print_wish(
        detail,
        as_json,
        f"{detail.name} goes back to {_told(to)}, on branch {detail.branch}.",
        "See what it can begin at: longhaul checkpoints",
    )


def fork(
    run: RunName,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            metavar="STEP|CHECKPOINT",
            help="The checkpoint that the new run begins at.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str,
        typer.Option("--name", metavar="NAME", help="The new run's name.", show_default=False),
    ],
    settings: Settings = None,
    reason: Reason = None,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """Make a new run that begins at a checkpoint of this one.

    --set may change everything but the architecture.
    """
    from orchestrator.api.requests import ForkRequest
    from orchestrator.cli import workdirs
    from orchestrator.cli.document import read_settings

    changes = read_settings(settings or [])
    fields = {"at": place(at), "name": name, "reason": reason}
    with connect(data) as client:
        changes = workdirs.sent(client, changes, Path())
        detail = client.wishes.fork(run, request(ForkRequest, fields | {"set": changes}))
    _print_wish(
        detail,
        as_json,
        f"{detail.name} ({detail.id}) begins at {_told(at)} of {run}.",
        "Follow it with: longhaul watch",
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
        detail = client.wishes.cancel(detail.id)
    _print_wish(
        detail,
        as_json,
        f"{detail.name} is asked to end; its checkpoints stay.",
        "See when it has: longhaul show",
    )


def place(given: str | None) -> int | str | None:
    """A step where it is a number, else a checkpoint's id."""
    return int(given) if given is not None and given.isdecimal() else given


def _paused(run: RunDetail) -> str:
    """A run at rest has nothing to save, and goes on only by a resume."""
    return "stays paused" if run.state == "paused" else "is asked to save and stop"


def _told(given: str) -> str:
    return f"step {given}" if given.isdecimal() else given


def request(model: type[A], fields: Mapping[str, object]) -> A:
    """The body of a wish from what was given; a field that does not fit is an error of usage."""
    from pydantic import ValidationError

    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = str(first["loc"][0]).replace("_", "-")
        raise CommandFailed(f"--{field}: {first['msg']}.", code=Exit.USAGE) from error


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
