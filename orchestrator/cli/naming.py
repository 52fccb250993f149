"""How runs are named on the command line: the beginning of a name or id is enough to read, and a
shell completes them. What changes something wants the whole of it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import typer

from orchestrator.cli.options import CommandFailed, Exit, connect, token_file

P = ParamSpec("P")
NEWEST = 1000
MOST_NAMES = 5


def by_prefix(command: Callable[P, None]) -> Callable[P, None]:
    """The command, for a unique beginning of its `run` too.

    It is called again with the whole name where the service knows no run of the given one, which
    it says before anything is printed.
    """

    @functools.wraps(command)
    def called(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except Exception as error:
            given, data = kwargs.get("run"), kwargs.get("data")
            if not isinstance(given, str) or not _unknown(error):
                raise
            whole = _whole(given, data if isinstance(data, Path) else None)
            if whole is None:
                raise
            command(*args, **(kwargs | {"run": whole}))  # pyright: ignore[reportCallIssue]

    return called


def _unknown(error: Exception) -> bool:
    if "orchestrator.client" not in sys.modules:
        return False
    from orchestrator.client import Refused

    return isinstance(error, Refused) and error.problem.type.endswith("no-such-run")


def _whole(given: str, data: Path | None) -> str | None:
    with connect(data) as client:
        runs = list(client.all_runs(limit=NEWEST))
    found = [run for run in runs if run.name.startswith(given) or run.id.startswith(given)]
    if len(found) > 1:
        names = ", ".join(sorted(run.name for run in found)[:MOST_NAMES])
        more = len(found) - MOST_NAMES
        raise CommandFailed(
            f"{given!r} begins {len(found)} names: {names}{f' and {more} more' * (more > 0)}.",
            "Write more of it.",
            Exit.REFUSED,
        )
    return found[0].id if found else None


def complete_run(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of runs with their states. A service that does not answer completes nothing, in
    silence: whoever presses Tab has not asked for a message."""
    from orchestrator.client import Client

    data = context.params.get("data")
    try:
        with Client.of(data, token_file.get(), patience=0.0) as client:
            runs = list(client.all_runs(limit=NEWEST))
    except Exception:  # noqa: BLE001 - any message would be taken for a name
        return []
    return [
        (name, str(run.state))
        for run in runs
        for name in (run.name, run.id)
        if name.startswith(incomplete) and (incomplete or name == run.name)
    ]
