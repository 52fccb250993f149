"""`import`: runs and their ledgers made again from the storage, where the database is gone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import CommandFailed, DataDir
from orchestrator.cli.service import read_settings

if TYPE_CHECKING:
    from orchestrator.ledger.finding import FoundRun
    from orchestrator.settings import Settings
    from orchestrator.store.importing import Imported

SOURCE = "The storage of a service, or the folder of one run in it: a path or gs://bucket/prefix."
TAKE = "Count this checkpoint too, although nothing says that it was accepted; may be repeated."


def import_runs(
    source: Annotated[str, typer.Argument(metavar="URI", show_default=False, help=SOURCE)],
    take: Annotated[
        list[str] | None, typer.Option("--take", metavar="CHECKPOINT", help=TAKE)
    ] = None,
    owner: Annotated[str, typer.Option("--owner", help="Whose the runs are.")] = "admin",
    data: DataDir = None,
) -> None:
    """Rebuild runs from their checkpoints, with the service stopped. They land paused."""
    from orchestrator.instance import CannotStart, claimed

    settings = read_settings(data_dir=data)
    root, only = _parts(settings, source)
    found = _found(root, only)
    taken = frozenset(take or ())
    if taken and len(found) != 1:
        raise CommandFailed("--take needs one run.", "Name its folder: URI/runs/ID")
    try:
        with claimed(settings):
            made = _stored(settings, found, taken, root, owner)
    except CannotStart as error:
        raise CommandFailed(str(error)) from error
    for run, imported in zip(found, made, strict=True):
        _tell(run, imported)
    typer.echo("→ Start the service: longhaul up")


def _parts(settings: Settings, source: str) -> tuple[str, str | None]:
    """The storage's root, and the one run that is meant, if one is."""
    from orchestrator.settings import storage_place

    try:
        place = storage_place(source)
    except ValueError as error:
        raise CommandFailed(f"{error}.", "Give a folder, or gs://bucket/prefix.") from error
    root, runs, run = place.rpartition("/runs/")
    root, only = (root, run) if runs and "/" not in run else (place, None)
    allowed = (settings.storage_root, *settings.allowed_storage)
    if not any(root == one or root.startswith(f"{one.rstrip('/')}/") for one in allowed):
        raise CommandFailed(
            f"{root} is not a storage that this service may use: it has {', '.join(allowed)}.",
            "Set LONGHAUL_STORAGE to it, or name it in LONGHAUL_ALLOWED_STORAGE.",
        )
    return root, only


def _found(root: str, only: str | None) -> list[FoundRun]:
    from orchestrator.ledger.finding import find_run, run_ids
    from orchestrator.storage import CanNotRead, tree_at

    try:
        tree = tree_at(root)
        ids = run_ids(tree)
        if only is not None:
            ids = [one for one in ids if one == only]
        found = [run for one in ids if (run := find_run(tree, root, one)) is not None]
    except CanNotRead as error:
        raise CommandFailed(f"{str(error).rstrip('.')}.") from error
    if not found:
        where = root if only is None else f"{root}/runs/{only}"
        raise CommandFailed(
            f"There is no run to import in {where}.",
            "Give the folder that has 'runs' in it; runs that never saved leave nothing behind.",
        )
    return found


def _stored(
    settings: Settings, found: list[FoundRun], taken: frozenset[str], root: str, owner: str
) -> list[Imported]:
    """All of them or none."""
    from orchestrator.cli.database import told
    from orchestrator.roles import Role
    from orchestrator.store.audit import Actor
    from orchestrator.store.engine import open_engine
    from orchestrator.store.importing import import_run
    from orchestrator.store.migrate import ensure_installation, upgrade
    from orchestrator.store.wishes import NotAccepted

    now, who = datetime.now(UTC), Actor(owner, Role.ADMIN, None)
    with told(settings):
        engine = open_engine(settings.database)
        try:
            upgrade(engine)
            with engine.begin() as connection:
                ensure_installation(connection, now)
                return [import_run(connection, now, run, taken, root, who) for run in found]
        except NotAccepted as refused:
            raise CommandFailed(refused.detail, refused.hint) from refused
        finally:
            engine.dispose()


def _tell(run: FoundRun, imported: Imported) -> None:
    steps = [one.step for one in imported.counts]
    newest = f", the newest at step {max(steps):,} of {run.job.steps:,}" if steps else ""
    typer.echo(f"{imported.name} ({imported.run_id}): {len(steps)} checkpoints count{newest}")
    for words in run.warnings:
        typer.echo(f"  ! {words}", err=True)
    if imported.left:
        names = ", ".join(f"{one.id} at step {one.step:,}" for one in imported.left)
        typer.echo(f"  ! nothing says that these were ever accepted: {names}", err=True)
        typer.echo(
            f"  ! to count one too, say it again with --take {imported.left[-1].id}", err=True
        )
    typer.echo(f"→ Later: longhaul resume {imported.name}")
