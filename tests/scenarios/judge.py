"""What the world justifies: which verdicts, which pauses, and which new attempts.

Owns the judgment of ends by the harms that were really done, and the count of budgets by the
checkpoints that really count.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.scenarios.oracle import AttemptRow, Oracle

OBEYED = ("completed", "paused", "cancelled", "superseded")
HOSTS = ("preempted", "maintenance", "host_lost", "unreachable")
CRASHES = ("crashed", "out_of_memory", "hung", "storage_failed", "unknown")
CRASHED = ("crashed", "unknown")
VERDICTS: dict[str, tuple[str, ...]] = {
    "SIGKILL": CRASHED,
    "SIGSEGV": CRASHED,
    "exit 1": CRASHED,
    "out of memory": ("out_of_memory", "crashed"),
    "memory kill": ("out_of_memory", "crashed"),  # an older agent does not tell of the kernel
    "invalid": ("invalid",),
    "exit 66": ("storage_failed",),
    "exit 67": CRASHED,
    "exit 68": ("storage_failed",),
    "exit 69": ("diverged",),
    "exit 75": ("preempted",),
    "hang": ("hung", "crashed"),  # nor why it ended its trainer
    "divergence": ("diverged",),
    "storage down": ("storage_failed",),
    "checkpoint rejected": ("storage_failed",),
    "agent dies": (*CRASHED, "host_lost"),
    "trainer can not start": CRASHED,
    "hosts vanish": HOSTS,
    "preempted": HOSTS,
    "maintenance": HOSTS,
    "host lost": HOSTS,
    "host isolated": HOSTS,
}
COUNTED = ("crashes", "host losses", "rollbacks")
LOOKS_BACK_SECONDS = 60.0
LATE_WORD_SECONDS = 35.0  # what a cloud says so late still counts as the cause


def harms(oracle: Oracle, row: AttemptRow, after: float = 0.0) -> list[str]:
    """What happened on its hosts that could have ended it, up to `after` seconds later."""
    run_id, number = row.key
    since = oracle.born.get((run_id, number - 1), 0.0) - LOOKS_BACK_SECONDS
    until = oracle.ended[row.key] + after
    return [
        harm.kind
        for harm in oracle.world.harms
        if harm.group == row.group and since <= harm.until and harm.at <= until
    ]


def ended(oracle: Oracle, row: AttemptRow) -> None:
    """Invariant 11: nothing but a harm, a wish or its work's end ends an attempt."""
    if row.verdict in OBEYED:
        return
    words = f"inv. 11: {row.key} was healthy and ended as {row.verdict}: {row.summary}"
    oracle.expect(harms(oracle, row), words)


def final(oracle: Oracle, row: AttemptRow) -> None:
    """Invariants 12 and 13: the verdict that stands is one that the harms explain."""
    if row.verdict is None or row.verdict in OBEYED:
        return
    done = harms(oracle, row, LATE_WORD_SECONDS)
    allowed = {verdict for kind in done for verdict in VERDICTS.get(kind, (row.verdict,))}
    words = (
        f"inv. 12/13: {row.key} ended as {row.verdict} ({row.summary}), but what happened: {done}"
    )
    oracle.expect(row.verdict in allowed, words)


def _tally(oracle: Oracle, run_id: str, rows: list[AttemptRow], generation: int) -> Counter[str]:
    """Ends in a row without progress, by class, under the current wish."""
    best, count = 0, Counter[str]()
    for row in rows:
        counted = [
            blob.step
            for blob in oracle.world.storage.values()
            if (blob.run_id, blob.attempt) == row.key and blob.counted
        ]
        reached = max(counted, default=0)
        if reached > best:
            best = reached
            count.clear()
        if row.generation == generation and row.verdict is not None:
            count["crashes"] += row.verdict in CRASHES
            count["host losses"] += row.verdict in HOSTS
            count["memory"] += row.verdict == "out_of_memory"
            count["rollbacks"] += row.verdict == "diverged"
    return count


def _exhausted(oracle: Oracle, run_id: str, count: Counter[str]) -> bool:
    policy = oracle.people.jobs[run_id].policy
    return (
        count["crashes"] > policy.max_crashes
        or count["host losses"] > policy.max_host_losses
        or count["memory"] > 1
        or count["rollbacks"] > policy.max_rollbacks
        or sum(count[kind] for kind in COUNTED) > policy.max_ends
    )


def goes_on(oracle: Oracle, run_id: str, rows: list[AttemptRow], generation: int) -> None:
    """Invariant 14: no attempt after a budget is exhausted, or after an end that ends the run."""
    count = _tally(oracle, run_id, rows, generation)
    over = _exhausted(oracle, run_id, count)
    oracle.expect(not over, f"inv. 14: {run_id} goes on after {dict(count)} in a row")
    last = rows[-1].verdict if rows and rows[-1].generation == generation else None
    oracle.expect(last not in ("completed", "invalid"), f"{run_id} goes on after {last}")


def gave_up(oracle: Oracle, run_id: str) -> None:
    """Invariant 14: nobody is asked before a budget is exhausted, by the wish of the last end."""
    asked = oracle.database.rows(
        "SELECT verdict FROM incidents WHERE run_id = ? AND closed_at IS NULL", run_id
    )
    verdicts = [verdict for (verdict,) in asked]
    if not set(verdicts) <= {*CRASHES, *HOSTS}:
        return
    rows = oracle.attempts.get(run_id, [])
    count = _tally(oracle, run_id, rows, rows[-1].generation if rows else 0)
    count["host losses"] += _lost_idle(oracle, run_id, rows)
    exhausted = _exhausted(oracle, run_id, count)
    oracle.expect(exhausted, f"inv. 14: {run_id} is paused ({verdicts}) after {dict(count)} only")


def _lost_idle(oracle: Oracle, run_id: str, rows: list[AttemptRow]) -> int:
    """Groups that were lost and of which no attempt tells: at most so many count beside those."""
    told = {row.group for row in rows if row.verdict in HOSTS}
    harmed = {harm.group for harm in oracle.world.harms if VERDICTS.get(harm.kind) == HOSTS}
    return len({group for group in harmed - told if group.split("-")[2] == run_id})
