"""`up`, `link`, `doctor`: the service itself."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from orchestrator.cli.checks import Check, host_checks
from orchestrator.cli.options import AsJson, CommandFailed, DataDir, Exit, connect

if TYPE_CHECKING:
    from orchestrator.settings import Settings

LEAST_FREE_BYTES = 1_000_000_000


def up(
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Where everything is kept."),
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="The address to listen on.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", metavar="N", min=0, max=65535, help="The port; 0: any free one."),
    ] = None,
) -> None:
    """Start the service; Ctrl-C stops it. Runs go on while it is down."""
    settings = read_settings(data_dir=data, host=host, port=port)
    from orchestrator.app import serve
    from orchestrator.cli.database import refuse_unusable

    refuse_unusable(settings)
    raise typer.Exit(serve(settings))


def read_settings(**given: object) -> Settings:
    """The settings, with what the command line gives put over file and environment."""
    from orchestrator import settings

    try:
        return settings.read_settings(**{n: v for n, v in given.items() if v is not None})
    except settings.SettingsError as error:
        hint = "longhaul doctor shows every setting; the environment sets them as LONGHAUL_<NAME>."
        raise CommandFailed(str(error), hint, Exit.USAGE) from error


def link(as_json: AsJson = False, data: DataDir = None) -> None:
    """Print a link that opens the dashboard once."""
    from orchestrator.cli import render, text

    with connect(data) as client:
        made = client.login_link()
    if as_json:
        render.print_json(made)
        return
    typer.echo(made.url)
    note = render.console(stderr=True)
    if note.is_terminal:
        note.print(f"It opens the dashboard once, until {text.clock(made.expires_at)}.")


def doctor(as_json: AsJson = False, data: DataDir = None) -> None:
    """Check the settings, the folders, the disk and the service."""
    from orchestrator.cli import render
    from orchestrator.cli.database import masked

    settings = read_settings(data_dir=data)
    local = [_folder(settings.data_dir), _storage(settings), _trainer(), *host_checks(settings)]
    service = _service(data)
    if settings.database_url is not None and not service.ok:
        local.insert(1, _database(settings))  # a service that answers has one
    checks = [*local, service]
    values = {name: shown(name, value) for name, value in settings.model_dump().items()}
    derived = {"database": masked(settings.database), "storage": settings.storage_root}
    if as_json:
        render.print_data(
            {"settings": values, "derived": derived, "checks": [asdict(c) for c in checks]}
        )
    else:
        _print_checks(checks, values, derived)
    if not all(check.ok for check in local):
        raise typer.Exit(Exit.FAILED)
    if not service.ok:
        raise typer.Exit(Exit.UNREACHABLE)


def _print_checks(checks: list[Check], values: dict[str, str], derived: dict[str, str]) -> None:
    from rich.text import Text

    from orchestrator.cli import render

    out = render.console()
    rows = [
        (
            Text("✓" if check.ok else "✕", style="" if check.ok else render.RED),
            check.name,
            check.found if check.ok or not check.hint else f"{check.found}\n→ {check.hint}",
        )
        for check in checks
    ]
    columns = (render.Column(""), render.Column("CHECK"), render.Column("FOUND", fold=True))
    render.put(out, render.table(columns, rows))
    out.print()
    rows = [(f"LONGHAUL_{name.upper()}", value) for name, value in values.items()]
    rows += [(f"{name} in use", value) for name, value in derived.items()]
    settings = (render.Column("SETTING"), render.Column("VALUE", fold=True))
    render.put(out, render.table(settings, rows))


def shown(name: str, value: object) -> str:
    from orchestrator.cli.database import masked

    if value is None:
        return "not set"
    if value in ((), {}):
        return "none"
    if isinstance(value, tuple):
        return ", ".join(str(one) for one in cast("tuple[object, ...]", value))
    return masked(str(value)) if name == "database_url" else str(value)


def _existing(path: Path) -> Path:
    """`path`, or its nearest parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _folder(path: Path) -> Check:
    near = _existing(path)
    if not os.access(near, os.W_OK | os.X_OK) or not near.is_dir():
        hint = "Choose another one with --data, or change its rights."
        return Check("data folder", False, f"{path} cannot be written", hint)
    state = "" if path.exists() else ", made at the first start"
    return Check("data folder", True, f"{path}{state}")


def _database(settings: Settings) -> Check:
    from orchestrator.cli.database import masked, refuse_unusable

    try:
        refuse_unusable(settings)
    except CommandFailed as failed:
        return Check("database", False, failed.what, failed.hint)
    return Check("database", True, masked(settings.database))


def _storage(settings: Settings) -> Check:
    from orchestrator import storage

    folder = settings.storage_folder
    if folder is not None:
        return _disk(folder)
    trouble = storage.trouble(settings.storage_root)
    if trouble is not None:
        return Check("storage", False, trouble.detail, trouble.hint)
    return Check("storage", True, f"{settings.storage_root} can be listed, read, written, deleted")


def _disk(path: Path) -> Check:
    from orchestrator.cli import text

    free = shutil.disk_usage(_existing(path)).free
    found = f"{text.size(free)} free for checkpoints in {path}"
    hint = "Free some space, or set LONGHAUL_STORAGE to a folder on a larger disk."
    return Check("disk", free >= LEAST_FREE_BYTES, found, hint)


def _trainer() -> Check:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Check("trainer", True, f"JAX {version('jax')}, Flax {version('flax')}")
    except PackageNotFoundError as error:
        hint = "Install it with: pip install 'longhaul[cpu]'; runs cannot start on this machine."
        return Check("trainer", False, f"{error.name} is not installed here", hint)


def _service(data: Path | None) -> Check:
    from orchestrator.client import ClientError, Unreachable

    try:
        with connect(data) as client:
            health = client.health()
            client.runs(limit=1)  # the token is good
            found = f"{client.url}, version {health.version}, {health.status}"
            found += f": {health.detail}" if health.detail else ""
            hint = "It may still be starting; ask again, and read its log."
            return Check("service", health.status == "ok", found, hint)
    except Unreachable as error:
        hint = "Start it with: longhaul up"
        return Check("service", False, f"does not answer: {error.why}", hint)
    except ClientError as error:
        return Check("service", False, str(error), "Check LONGHAUL_TOKEN, or use the right --data.")
