"""The causal timeline of a run: what was seen, decided and done, in the order it was stored."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pydantic_core import to_json
from sqlalchemy import Connection, insert

from orchestrator.store.tables import events

KIND_LENGTH = 40


def tell(
    connection: Connection,
    run_id: str,
    kind: str,
    now: datetime,
    *,
    attempt: int | None = None,
    **body: object,
) -> None:
    """Writes one line of the control plane's own."""
    connection.execute(insert(events), [line(run_id, kind, now, now, body, attempt)])


def line(
    run_id: str,
    kind: str,
    at: datetime,
    received_at: datetime,
    body: Mapping[str, object],
    attempt: int | None = None,
    rank: int | None = None,
) -> dict[str, object]:
    """One row of `events`; numbers that JSON lacks are written as words."""
    return {
        "run_id": run_id,
        "attempt": attempt,
        "rank": rank,
        "kind": fit(kind, KIND_LENGTH),
        "at": at,
        "received_at": received_at,
        "body": to_json(body, inf_nan_mode="strings").decode(),
    }


def fit(text: str, length: int) -> str:
    """Text that every database stores: PostgreSQL takes no NUL and no more than was declared."""
    return text.replace("\0", "\ufffd")[:length]
