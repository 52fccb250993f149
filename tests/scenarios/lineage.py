"""What a trainer may start from and under which spec: lines of checkpoints, forks, revisions.

Owns the oracle's memory of where each fork began.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.scenarios.world import Blob, Trainer, batch_of
from worker.protocol import DataPlan, JobSpec

if TYPE_CHECKING:
    from tests.scenarios.oracle import Oracle

INHERITED = 0  # the attempt of a checkpoint that a fork began at
OF_A_RUN = ("attempts", "branches", "checkpoints", "revisions", "host_groups", "incidents")
UNSEEN = ("max_crashes", "max_host_losses", "max_rollbacks", "max_ends", "max_hours", "max_cost")
UNSEEN_WAITS = ("backoff_seconds", "max_backoff_seconds", "start_seconds", "hold_seconds")


@dataclass(frozen=True)
class Origin:
    """Where a fork began: its source's checkpoint, as it stood then."""

    source: str
    uri: str
    step: int
    state: int


@dataclass(frozen=True)
class Point:
    """A checkpoint on a run's line. `attempt` is `INHERITED` where another run wrote it."""

    step: int
    attempt: int
    blob: Blob


def rows_of(oracle: Oracle, run_id: str) -> list[list[tuple[Any, ...]]]:
    """Everything that a fork of the run must leave as it is."""
    own = [oracle.database.rows("SELECT * FROM runs WHERE id = ?", run_id)]
    return own + [
        oracle.database.rows(f"SELECT * FROM {table} WHERE run_id = ?", run_id)
        for table in OF_A_RUN
    ]


def forked(
    oracle: Oracle, source: str, run_id: str, blob: Blob, uri: str, before: list[Any]
) -> None:
    """The source is untouched, and up to its first step the fork's history is the source's."""
    oracle.expect(rows_of(oracle, source) == before, f"fork: {run_id} has changed {source}")
    oracle.origins[run_id] = Origin(source, uri, blob.step, blob.state)
    [(begins, text)] = oracle.database.rows(
        "SELECT from_step, data_plan FROM branches WHERE run_id = ?", run_id
    )
    oracle.expect(begins == blob.step, f"fork: {run_id} begins at {begins}, not at {blob.step}")
    plan, job = DataPlan.model_validate_json(text), oracle.people.job(run_id)
    if job.seed != oracle.people.job(source).seed:
        oracle.expect(plan == DataPlan(seed=job.seed), f"fork: {run_id} reads other data by {plan}")
        return
    theirs = _plan_of(oracle, source, blob)
    same = all(batch_of(plan, step) == batch_of(theirs, step) for step in range(blob.step))
    oracle.expect(same, f"fork: {run_id} has {plan}, and its checkpoint was trained by {theirs}")


def _plan_of(oracle: Oracle, run_id: str, blob: Blob) -> DataPlan:
    """By which a checkpoint of the run was trained; one that it inherited, by its first branch."""
    branch = blob.branch if blob.run_id == run_id else 1
    [(text,)] = oracle.database.rows(
        "SELECT data_plan FROM branches WHERE run_id = ? AND number = ?", run_id, branch
    )
    return DataPlan.model_validate_json(text)


def limits(oracle: Oracle, run_id: str, branch: int) -> dict[int, float]:
    """Of a branch and of its ancestors: up to which step each is on the line."""
    parents = {
        number: (parent, step)
        for number, parent, step in oracle.database.rows(
            "SELECT number, parent, from_step FROM branches WHERE run_id = ?", run_id
        )
    }
    found = {branch: math.inf}
    parent, limit = parents[branch]
    while parent is not None:
        found[parent] = limit
        parent, step = parents[parent]
        limit = min(limit, step)
    return found


def plan(oracle: Oracle, run_id: str) -> DataPlan | None:
    """What trainers had of the line that the run is on; it stands for the steps before it too."""
    [(branch,)] = oracle.database.rows("SELECT branch FROM runs WHERE id = ?", run_id)
    plans = oracle.world.plans
    had = (plans.get((run_id, number)) for number in limits(oracle, run_id, branch))
    return next((plan for plan in had if plan is not None), None)


def teller(oracle: Oracle, run_id: str, step: int) -> int | None:
    """The last attempt of the line that the run is on which trained `step`."""
    [(branch,)] = oracle.database.rows("SELECT branch FROM runs WHERE id = ?", run_id)
    reach = limits(oracle, run_id, branch)
    launches = oracle.database.rows(
        "SELECT number, branch, resumed_from_step FROM attempts WHERE run_id = ?", run_id
    )
    on_line = (
        number for number, of, resumed in launches if resumed < step <= reach.get(of, -math.inf)
    )
    return max(on_line, default=None)


def line(oracle: Oracle, run_id: str, branch: int) -> list[Point]:
    """The checkpoints of a branch and of its ancestors up to where it left them."""
    storage, reach = oracle.world.storage, limits(oracle, run_id, branch)
    points = [
        Point(blob.step, blob.attempt, blob)
        for blob in storage.values()
        if blob.run_id == run_id
        and not blob.given_up
        and blob.step <= reach.get(blob.branch, -math.inf)
    ]
    origin = oracle.origins.get(run_id)
    if origin is not None:
        points.append(Point(origin.step, INHERITED, storage[origin.uri]))
    return points


def good(oracle: Oracle, run_id: str, branch: int) -> list[Point]:
    """Those that count, are whole, and were not set apart by this run."""
    return [
        point
        for point in line(oracle, run_id, branch)
        if point.blob.counted and point.blob.whole and run_id not in point.blob.rejected_by
    ]


def adrift(oracle: Oracle, run_id: str) -> bool:
    """A fork of which no checkpoint is left that it could begin at."""
    if run_id not in oracle.origins:
        return False
    [(branch,)] = oracle.database.rows("SELECT branch FROM runs WHERE id = ?", run_id)
    return not good(oracle, run_id, branch)


# ---- the spec of a trainer ---------------------------------------------------------------------


def told(oracle: Oracle, new: Trainer) -> None:
    """A trainer is told the spec of the revision that it is told, and its gang the same."""
    spec, run_id = new.spec, new.spec.run_id
    known = oracle.people.revisions[run_id]
    words = f"revision: {new.name} trains another spec than revision {spec.revision} has"
    oracle.expect(spec.revision <= len(known) and spec.job == known[spec.revision - 1], words)
    for peer in oracle.world.gang(spec):
        same = _as_seen(peer.spec.job) == _as_seen(spec.job)
        oracle.expect(same, f"revision: {new.name} and {peer.name} train different specs")


def _as_seen(job: JobSpec) -> JobSpec:
    """Without the fields that no trainer looks at."""
    policy = job.policy.model_copy(update=dict.fromkeys((*UNSEEN, *UNSEEN_WAITS)))
    return job.model_copy(update={"policy": policy, "priority": 0})
