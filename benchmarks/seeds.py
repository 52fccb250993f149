"""Rows that a benchmark begins with: runs under way, each on a host whose agent is registered."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine, insert

from orchestrator.presets import PRESETS
from orchestrator.state import AttemptState, Desired, GroupState, RunState
from orchestrator.store import tables
from orchestrator.store.callers import secret_digest
from worker.protocol import PROTOCOL_VERSION, SPEC_VERSION, DataPlan, JobSpec

SECRET = secrets.token_hex(32)


@dataclass(frozen=True)
class Host:
    run_id: str
    group: str
    instance: str


def seed_hosts(engine: Engine, count: int) -> list[Host]:
    """`count` runs of one host each, training in their first attempt."""
    hosts = [Host(f"bench{n}", f"lh-bench-bench{n}-g1", secrets.token_hex(8)) for n in range(count)]
    now = datetime.now(UTC)
    with engine.begin() as connection:
        for table, rows in (
            (tables.runs, [_run(host, now) for host in hosts]),
            (tables.revisions, [_revision(host, now) for host in hosts]),
            (tables.branches, [_branch(host, now) for host in hosts]),
            (tables.host_groups, [_group(host, now) for host in hosts]),
            (tables.hosts, [_host(host, now) for host in hosts]),
            (tables.attempts, [_attempt(host, now) for host in hosts]),
            (tables.trainers, [_trainer(host, now) for host in hosts]),
        ):
            connection.execute(insert(table), rows)
    return hosts


def _run(host: Host, now: datetime) -> dict[str, object]:
    return {
        "id": host.run_id,
        "name": host.run_id,
        "owner": "bench",
        "desired": Desired.RUN,
        "desired_generation": 1,
        "settled_generation": 1,
        "state": RunState.RUNNING,
        "state_since": now,
        "revision": 1,
        "branch": 1,
        "created_at": now,
    }


def _revision(host: Host, now: datetime) -> dict[str, object]:
    spec = PRESETS["demo-1m"].spec.model_dump() | {"name": host.run_id, "steps": 1_000_000_000}
    return {
        "run_id": host.run_id,
        "number": 1,
        "spec_version": SPEC_VERSION,
        "spec": JobSpec.model_validate(spec).model_dump_json(),
        "author": "bench",
        "created_at": now,
    }


def _branch(host: Host, now: datetime) -> dict[str, object]:
    plan = DataPlan(seed=0).model_dump_json()
    return {"run_id": host.run_id, "number": 1, "data_plan": plan, "created_at": now}


def _group(host: Host, now: datetime) -> dict[str, object]:
    return {
        "name": host.group,
        "run_id": host.run_id,
        "generation": 1,
        "provider": "local",
        "hosts": 1,
        "devices": 1,
        "state": GroupState.READY,
        "created_at": now,
        "ready_at": now,
    }


def _host(host: Host, now: datetime) -> dict[str, object]:
    return {
        "group": host.group,
        "index": 0,
        "address": "127.0.0.1",
        "secret_sha256": secret_digest(SECRET),
        "protocol": PROTOCOL_VERSION,
        "instance": host.instance,
        "registered_at": now,
        "last_seen_at": now,
        "running_attempt": 1,
        "launched_at": now,
        "launches": 1,
    }


def _attempt(host: Host, now: datetime) -> dict[str, object]:
    return {
        "run_id": host.run_id,
        "number": 1,
        "revision": 1,
        "branch": 1,
        "group": host.group,
        "processes": 1,
        "state": AttemptState.RUNNING,
        "desired_generation": 1,
        "created_at": now,
        "spawned_at": now,
        "first_step_at": now,
    }


def _trainer(host: Host, now: datetime) -> dict[str, object]:
    return {
        "run_id": host.run_id,
        "attempt": 1,
        "rank": 0,
        "pid": 1,
        "phase": "train",
        "phase_at": now,
    }
