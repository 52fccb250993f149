"""What several commands share: their options, and the exit codes. Imports Typer alone."""

from __future__ import annotations

import os
import re
from contextvars import ContextVar
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from orchestrator.client import Client


class Exit(IntEnum):
    """How every command ends; scripts may rely on it."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


class CommandFailed(Exception):
    """A command cannot go on. `hint` says what to do; `code` is the exit code."""

    def __init__(self, what: str, hint: str | None = None, code: Exit = Exit.FAILED) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.code = code


def _no_path(run: str) -> str:
    """What could not be a part of an address is no run's name, and needs no service to say so."""
    if re.fullmatch(r"[A-Za-z0-9-]+", run):
        return run
    raise CommandFailed(
        f"There is no run named {''.join(c if c.isprintable() else '?' for c in run)!r}.",
        "Names look like demo-1m: a small letter, then small letters, digits and dashes."
        " List the runs: longhaul runs",
        Exit.REFUSED,
    )


def _names(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    from orchestrator.cli.naming import complete_run

    return complete_run(context, incomplete)


RunName: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="The run's name or its id.",
        show_default=False,
        callback=_no_path,
        autocompletion=_names,
    ),
]
# Of commands that only read.
AnyRun: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="The run's name or its id, or how only one of them begins.",
        show_default=False,
        callback=_no_path,
        autocompletion=_names,
    ),
]
DataDir: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="The service's data folder (else LONGHAUL_DATA_DIR, else the default one).",
        show_default=False,
    ),
]
Settings: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change one field, as in --set batch.sequences=8; may be repeated.",
        show_default=False,
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# What --token-file says, which stands before the command and counts for every one.
token_file: ContextVar[Path | None] = ContextVar("token_file", default=None)


def connect(data: Path | None) -> Client:
    """The client of the service that `--data` or the environment names."""
    from orchestrator.client import Client

    url = os.environ.get("LONGHAUL_URL", "")
    if url and not url.startswith(("http://", "https://")):
        raise CommandFailed(
            f"LONGHAUL_URL is no address: {url!r}.",
            "Write it with its scheme, like http://127.0.0.1:8700",
            Exit.USAGE,
        )
    return Client.of(data, token_file.get())
