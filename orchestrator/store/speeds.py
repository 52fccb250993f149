"""How fast earlier runs trained, and on what: the ground of a forecast.

Reads only. Must not import the API.
"""

from __future__ import annotations

import json
import re
from typing import Any

from sqlalchemy import Connection, Row, select

from orchestrator.forecast import Known, Speed
from orchestrator.store.tables import (
    attempts,
    host_groups,
    metric_points,
    revisions,
    runs,
    trainers,
)
from worker.protocol import AnySpec, CommandSpec

RUNS_LOOKED_AT = 30
STEPS_MEASURED = 100
WARM_UP_STEPS = 2  # the first steps of an attempt compile
_KIND = re.compile(r"(.+?) x\d+, ")


def known(connection: Connection, job: AnySpec, run_id: str | None = None) -> Known:
    """What was measured that fits `job`; of the run `run_id` itself before all others."""
    return Known(measured_speed(connection, job, run_id), device_kind(connection, job))


def measured_speed(connection: Connection, job: AnySpec, run_id: str | None) -> Speed | None:
    """Of the newest run with the same model, batch and devices that trained at all."""
    if isinstance(job, CommandSpec):
        return None
    wanted = _shape(json.loads(job.model_dump_json()))
    for row in _newest_runs(connection, run_id):
        if _shape(json.loads(row.spec)) == wanted:
            found = _speed_of(connection, row)
            if found is not None:
                return found
    return None


def device_kind(connection: Connection, job: AnySpec) -> str | None:
    """The kind of device that a trainer last found at the provider of `job`."""
    t, a, g = trainers.c, attempts.c, host_groups.c
    query = (
        select(t.numerics_key)
        .join(attempts, (a.run_id == t.run_id) & (a.number == t.attempt))
        .join(host_groups, g.name == a.group)
        .where(g.provider == job.hosts.provider, t.numerics_key.is_not(None))
        .order_by(a.created_at.desc())
        .limit(1)
    )
    found = _KIND.match(connection.execute(query).scalar() or "")
    return None if found is None else found[1]


def _newest_runs(connection: Connection, run_id: str | None) -> list[Row[*tuple[Any, ...]]]:
    r, v = runs.c, revisions.c
    query = select(r.id, r.name, v.spec).join(
        revisions, (v.run_id == r.id) & (v.number == r.revision)
    )
    newest = connection.execute(
        query.order_by(r.created_at.desc(), r.id.desc()).limit(RUNS_LOOKED_AT)
    )
    own = () if run_id is None else connection.execute(query.where(r.id == run_id)).all()
    return [*own, *newest]


def _shape(spec: Any) -> tuple[object, ...]:
    """What the speed of a run depends on, of its spec as data."""
    return spec.get("model"), spec.get("batch"), spec.get("hosts")


def _speed_of(connection: Connection, run: Row[*tuple[Any, ...]]) -> Speed | None:
    """Over the last steps of the newest attempt that told any but its first ones."""
    m, a = metric_points.c, attempts.c
    query = select(a.number, a.resumed_from_step).where(a.run_id == run.id)
    for number, start in connection.execute(query.order_by(a.number.desc()).limit(5)):
        warm = m.step > start + WARM_UP_STEPS
        steps = select(m.tokens, m.seconds).where(m.run_id == run.id, m.attempt == number, warm)
        found = connection.execute(steps.order_by(m.step.desc()).limit(STEPS_MEASURED)).all()
        seconds = sum(row.seconds for row in found)
        if seconds > 0:
            return Speed(sum(row.tokens for row in found) / seconds, run.name, len(found))
    return None
