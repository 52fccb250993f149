"""What must hold once a leader has looked at a run and found nothing more to do, and when it acts.

Owns the judgment of limits, holds and revisions by the meter: what is due is done at the look that
sees it, and what is not due is not done before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.scenarios import judge

if TYPE_CHECKING:
    from tests.scenarios.oracle import AttemptRow, Oracle

OVER = ("succeeded", "failed", "cancelled")
KEPT = ("requested", "creating", "ready")


def check(oracle: Oracle, run_id: str) -> None:
    """Nothing of the run is left to do, says a leader that has looked at it just now."""
    state, desired, branch, revision = _run(oracle, run_id)
    rows = oracle.attempts.get(run_id, [])
    current = rows[-1] if rows and rows[-1].state != "ended" else None
    if current is not None:
        _goes_on_rightly(oracle, current, desired, branch, revision)
    if state == "paused" or state in OVER:
        _holds_rightly(oracle, run_id, state, desired)


def _run(oracle: Oracle, run_id: str) -> tuple[str, str, int, int]:
    [row] = oracle.database.rows(
        "SELECT state, desired, branch, revision FROM runs WHERE id = ?", run_id
    )
    return row


def _goes_on_rightly(
    oracle: Oracle, current: AttemptRow, desired: str, branch: int, revision: int
) -> None:
    """An attempt that is wanted otherwise is asked to leave."""
    if current.state == "draining" or _all_down(oracle, current):
        return
    asked = f"{current.key} is not asked to stop"
    oracle.expect(desired == "run", f"wish: {asked}, and people want {desired}")
    oracle.expect(current.branch == branch, f"branch: {asked}, and the run is on {branch}")
    behind = f"revision: {asked}, under {current.revision} of {revision}"
    oracle.expect(current.revision == revision, behind)
    run_id = current.run_id
    over = oracle.meter.reached(run_id, oracle.people.job(run_id), oracle.people.clock.now())
    oracle.expect(over is None, f"limit: {asked}: {over}")


def _all_down(oracle: Oracle, current: AttemptRow) -> bool:
    """Nothing is left to stop: it only waits for its cause to show."""
    [(down, processes)] = oracle.database.rows(
        "SELECT count(t.exited_at), a.processes FROM attempts a LEFT JOIN trainers t"
        " ON t.run_id = a.run_id AND t.attempt = a.number WHERE a.run_id = ? AND a.number = ?",
        *current.key,
    )
    return down >= processes


def _holds_rightly(oracle: Oracle, run_id: str, state: str, desired: str) -> None:
    """Invariant 5: what rests keeps hosts for its hold at the most."""
    kept = [
        name
        for name, known in oracle.meter.states.items()
        if known in KEPT and name.split("-")[2] == run_id
    ]
    if not kept:
        return
    now, job = oracle.people.clock.now(), oracle.people.job(run_id)
    due = oracle.meter.hold_due(run_id, job, oracle.provider_hold, now) if state == "paused" else 0
    oracle.expect(due and desired == "pause", f"inv. 5: {run_id} is {state} and keeps {kept}")


def given_back(oracle: Oracle, name: str, run_id: str, hosts: int) -> None:
    """Ready hosts are let go of. Within the hold of a pause, only for a reason of their own."""
    state, desired, _, _ = _run(oracle, run_id)
    if (state, desired) != ("paused", "pause"):
        return
    job, at = oracle.people.job(run_id), oracle.decided_at
    if not oracle.meter.hold_due(run_id, job, oracle.provider_hold, at):
        oracle.noted("hold ran out", run_id)
        return
    reason = hosts != job.hosts.count or oracle.meter.near(run_id, job, at) or _harmed(oracle, name)
    oracle.expect(reason, f"hold: {name} is given back before the hold of {run_id} is over")
    oracle.noted("hosts lost within the hold", run_id)


def _harmed(oracle: Oracle, name: str) -> bool:
    kinds = {harm.kind for harm in oracle.world.harms if harm.group == name}
    return any(kind == "refused" or judge.VERDICTS.get(kind) == judge.HOSTS for kind in kinds)
