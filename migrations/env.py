"""Runs the migrations on the connection that `orchestrator.store.migrate` hands over.

The connection's owner holds the lock and the transaction, so nothing is begun or committed here.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from orchestrator.store.tables import metadata


def run() -> None:
    connection = context.config.attributes.get("connection")
    if not isinstance(connection, Connection):
        raise RuntimeError("run the migrations through orchestrator.store.migrate.upgrade")
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


run()
