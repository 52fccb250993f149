"""The entry of the command line: which commands there are, and how they end."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from orchestrator.cli import (
    access,
    backup,
    checkpoint_wishes,
    data,
    demo,
    drain,
    drill,
    hosts,
    importing,
    logs,
    orphans,
    reading,
    service,
    submit,
    watch,
    why,
    wishes,
)
from orchestrator.cli.failures import guarded
from orchestrator.cli.options import Exit, token_file
from orchestrator.plain_words import unmarked


class _Commands(TyperGroup):
    """Commands whose expected failures are told in words and become exit codes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result, code = guarded(lambda: super(_Commands, self).invoke(ctx))
        except typer.BadParameter as error:
            error.message = unmarked(error.message)
            raise
        if code is not Exit.OK:
            raise typer.Exit(code)
        return result


app = typer.Typer(
    name="longhaul",
    cls=_Commands,
    help="Keeps long JAX pretraining runs alive: submit, train, crash, resume, finish.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 refused by the service, 4 unreachable.",
    no_args_is_help=True,
    # Plain help: it is faster than Rich's, and reads the same when piped.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

for _command in (
    demo.demo,
    service.up,
    submit.submit,
    submit.preflight,
    submit.presets,
    reading.runs,
    reading.show,
    watch.watch,
    logs.logs,
    why.why,
    wishes.pause,
    wishes.resume,
    wishes.cancel,
    wishes.rollback,
    wishes.fork,
    checkpoint_wishes.checkpoint,
    reading.checkpoints,
    checkpoint_wishes.quarantine,
    reading.goodput,
    drain.drain,
    drill.drill,
    orphans.orphans,
    service.link,
    service.doctor,
    backup.backup,
    backup.restore,
    access.audit,
):
    app.command()(_command)
app.command("import")(importing.import_runs)
app.add_typer(data.data_app, name="data")
app.add_typer(hosts.hosts_app, name="hosts")
app.add_typer(access.token_app, name="token")


@app.callback(invoke_without_command=True)
def _root(  # pyright: ignore[reportUnusedFunction]
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    token: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="The file with your token (else LONGHAUL_TOKEN, LONGHAUL_TOKEN_FILE, the data"
            " folder).",
            show_default=False,
        ),
    ] = None,
) -> None:
    token_file.set(token)
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"longhaul {installed('longhaul')}")
        raise typer.Exit


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a mark gets a question mark instead of a traceback.
            stream.reconfigure(errors="replace")
    app()


if __name__ == "__main__":
    main()
